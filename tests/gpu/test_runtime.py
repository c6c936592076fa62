# ruff: noqa: E402 - what is imported below may be missing
"""The runtime on a GPU: modules, program files and functions with kernels of libraries, asked from several threads."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpu_support import LENIENT, need_gpu

need_gpu(torch=True)

import numpy as np
import torch
from torch import nn

from miriam import Runtime
from miriam.errors import ClosedError, InputError
from miriam.frontend import dynamo
from miriam.frontend.torch import capture

pytestmark = LENIENT
SHAPE = (2, 3, 32, 32)


class Small(nn.Module):
    """Convolutions and a head, with a result that has a structure."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Conv2d(width, 8, 1)

    def forward(self, x):
        y = self.head(self.stem(x)).relu()
        return {"map": y, "score": y.mean((1, 2, 3))}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A program file and the module that it was compiled from."""
    module = small(32)
    captured = capture(module, [torch.randn(SHAPE, device="cuda").half()], name="small")
    path = tmp_path_factory.mktemp("programs") / "small.miriam"
    captured.program.save(path)
    captured.close()
    return path, module


def small(width: int = 16) -> nn.Module:
    torch.manual_seed(width)
    return Small(width).eval().cuda().half()


@pytest.fixture(params=["cuda:0", "cuda:0/16"])
def rt(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    with Runtime(request.param, admission="off") as runtime, torch.no_grad():
        yield runtime


def close(found, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(found).cuda().float(), wanted.float(), rtol=2e-2, atol=2e-2)


def test_a_module_is_compiled_and_gives_what_it_gives(rt: Runtime) -> None:
    module = small()
    task = rt.load(module, torch.randn(SHAPE).half(), name="small", criticality="critical")
    assert not any("as PyTorch runs it" in note for note in rt.notes), rt.notes
    for _ in range(3):
        x = torch.randn(SHAPE).half()
        wanted = module(x.cuda())
        for given, kind in ((x, "cpu"), (x.cuda(), "cuda")):
            found = task(given)
            assert set(found) == {"map", "score"}
            assert found["map"].device.type == kind
            close(found["map"], wanted["map"])
            close(found["score"], wanted["score"])
        found = task(x.numpy())
        assert isinstance(found["map"], np.ndarray)
        close(found["map"], wanted["map"])


def test_a_program_file_and_any_layout_of_its_input(rt: Runtime, program: tuple[Path, nn.Module]) -> None:
    path, module = program
    task = rt.load(path)
    x = torch.randn(SHAPE).half()
    wanted = module(x.cuda())
    for given in (x, x.to(memory_format=torch.channels_last), x.cuda().to(memory_format=torch.channels_last)):
        maps, score = task(given)
        close(maps, wanted["map"])
        close(score, wanted["score"])


def test_a_function_with_kernels_of_libraries(rt: Runtime) -> None:
    weight = torch.randn(512, 512, device="cuda").half()

    def layer(x, y):
        return torch.softmax(x @ weight, -1), y @ weight

    example = [torch.randn(64, 512).half() for _ in range(2)]
    tasks = [rt.load(layer, example, name=f"layer{level}", criticality=level) for level in (0, 1)]
    assert any("as PyTorch runs it" in note for note in rt.notes)
    for _ in range(20):
        x, y = (torch.randn(64, 512).half() for _ in range(2))
        responses = [task.submit(x, y) for task in tasks]
        for response in responses:
            for found, wanted in zip(response.result(60.0), layer(x.cuda(), y.cuda()), strict=True):
                close(found, wanted)


def test_tensors_that_are_still_being_made_are_waited_for(rt: Runtime) -> None:
    task = rt.load(lambda x: x * 2, torch.zeros(1 << 20), name="double")
    for value in range(10):
        x = torch.zeros(1 << 20, device="cuda")
        torch.cuda._sleep(5_000_000)  # a few ms of nothing in front of what follows
        x += value
        assert task(x).eq(2 * value).all()


def test_bfloat16_and_whole_numbers(rt: Runtime) -> None:
    task = rt.load(
        lambda x, at: x[at] + 1, [torch.zeros(16, 8, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.int64)],
        name="rows",
    )  # fmt: skip
    x, at = torch.randn(16, 8).bfloat16(), torch.tensor([3, 1, 15, 0])
    found = task(x, at)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, x[at] + 1)


def test_threads_get_their_own_answers_while_models_come_and_go(
    rt: Runtime, program: tuple[Path, nn.Module]
) -> None:  # fmt: skip
    """Also while another model is captured: what is served meanwhile must not end the capture, nor be ended by it."""
    path, module = program
    weight = torch.randn(256, 256, device="cuda").half()
    critical = rt.load(lambda x: x @ weight, torch.randn(8, 256).half(), name="critical", criticality="critical")
    normal = rt.load(path, name="normal")
    wrong: list[str] = []
    stop = threading.Event()

    def ask_critical() -> None:
        while not stop.is_set():
            x = torch.randn(8, 256).half()
            if not torch.allclose(critical(x).cuda(), x.cuda() @ weight, rtol=2e-2, atol=2e-2):
                wrong.append("critical")

    def ask_normal() -> None:
        images = [torch.randn(SHAPE).half() for _ in range(4)]
        with torch.no_grad():
            scores = [module(x.cuda())["score"] for x in images]
        while not stop.is_set():
            for x, score in zip(images, scores, strict=True):
                if not torch.allclose(normal(x)[1].cuda(), score, rtol=2e-2, atol=2e-2):
                    wrong.append("normal")

    threads = [threading.Thread(target=ask) for ask in (ask_critical, ask_critical, ask_normal)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(5):
            guest = rt.load(lambda x, by=turn: torch.relu(x) + by, torch.randn(100), name="guest")
            x = torch.randn(100)
            close(guest(x), torch.relu(x).cuda() + turn)
            rt.unload(guest)
            with pytest.raises(ClosedError):
                guest(x)
    finally:
        stop.set()
        for thread in threads:
            thread.join(120.0)
    assert wrong == []
    assert not rt.closed
    assert rt.statistics()["normal"].answered > 0


def test_wrong_inputs_fail_alone(rt: Runtime) -> None:
    task = rt.load(lambda x: x + 1, torch.zeros(4), name="one")
    beside = task.submit(torch.ones(4))
    for wrong in (torch.zeros(5), torch.zeros(4, dtype=torch.float64), [0.0] * 4):
        with pytest.raises(InputError):
            task(wrong)
    assert torch.equal(beside.result(60.0), torch.full((4,), 2.0))
    assert torch.equal(task(torch.zeros(4)), torch.ones(4))


def test_memory_comes_back_with_the_task(program: tuple[Path, nn.Module]) -> None:
    with Runtime("cuda:0", admission="off") as rt:
        free = []
        for _ in range(6):
            task = rt.load(program[0])
            task(torch.randn(SHAPE).half())
            rt.unload(task)
            free.append(torch.cuda.mem_get_info()[0])
    assert min(free[2:]) >= free[1] - (8 << 20), free  # the driver's own pools settle in the first turns


def test_torch_compile_on_the_gpu(rt: Runtime) -> None:
    torch._dynamo.reset()
    module = small()
    fast = torch.compile(module, backend=dynamo.miriam, options={"runtime": rt, "criticality": "critical"})
    for rows in (2, 4, 2):
        x = torch.randn(rows, *SHAPE[1:], device="cuda").half()
        found, wanted = fast(x), module(x)
        assert found["map"].is_cuda
        close(found["map"], wanted["map"])
        close(found["score"], wanted["score"])
    torch._dynamo.reset()
