"""Compile the networks of the zoo on this machine's GPU and check each program against its module.

    python benchmarks/make_zoo.py --out FOLDER [--only resnet18-b1 gru-b1]

All cores compile the candidates of one network at a time, since what is timed must have the GPU to
itself; each file is there as soon as its network is done. Writes ``FOLDER/<name>.miriam`` and
``FOLDER/zoo.json``: for each program its compile time, launches, how many of them are Triton's,
whether the program loaded from its file gives the output of the compiled module to the bit, and how
far that output lies from the eager module's.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from miriam.device.cuda.driver import Gpu, Stream
from miriam.device.cuda.instance import Instance
from miriam.frontend.torch import Captured, capture
from miriam.program import Program, Source
from miriam.zoo.models import MODELS


def bits(tensor: torch.Tensor) -> bytes:
    """Bytes of a contiguous tensor."""
    return tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes()


def check(captured: Captured, path: Path, module: torch.nn.Module, fresh: list[torch.Tensor]) -> dict[str, object]:
    """Compare the program in ``path`` with the graph it came from, and the graph with the eager module."""
    for x, y in zip(captured.inputs, fresh, strict=True):
        x.copy_(y)
    captured.replay()
    torch.cuda.synchronize()
    wanted = [bits(y) for y in captured.outputs]
    with torch.no_grad():
        eager = module.float()(*[x.float() if x.is_floating_point() else x for x in fresh])
    norm = float((captured.outputs[0].float() - eager).norm() / eager.norm())
    program = Program.load(path)
    gpu = Gpu(torch.cuda.current_device())
    start = time.perf_counter()
    instance = Instance(gpu, program)
    loaded_s = time.perf_counter() - start
    for tensor, x in zip(program.inputs, fresh, strict=True):
        instance.write(tensor, bits(x))
    stream = Stream()
    instance.enqueue(stream)
    stream.synchronize()
    got = [instance.read(t, len(w)) for t, w in zip(program.outputs, wanted, strict=True)]
    dense = all(y.is_contiguous() for y in captured.outputs)
    stream.close()
    instance.close()
    gpu.close()
    return {"equal": got == wanted, "dense": dense, "error": norm, "code_s": loaded_s}


def median_us(run: Callable[[], None]) -> float:
    """Median time of ``run`` over 60 calls, after 20, one at a time, in us."""
    times = []
    for i in range(80):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        if i >= 20:
            times.append(start.elapsed_time(end) * 1e3)
    return round(statistics.median(times), 2)


def stock_us(module: torch.nn.Module, inputs: list[torch.Tensor]) -> float:
    """Median latency of the eager module (cuDNN, cuBLAS, channels-last, fp16) in a CUDA graph."""
    module = module.to(memory_format=torch.channels_last)
    inputs = [x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs]
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    with torch.no_grad(), torch.cuda.stream(side):
        for _ in range(3):
            module(*inputs)
    torch.cuda.synchronize()
    with torch.no_grad(), torch.cuda.graph(graph, stream=side):
        module(*inputs)
    torch.backends.cudnn.benchmark = benchmark
    return median_us(graph.replay)


def main() -> None:
    """Compile what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="names with batch, such as gru-b1")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    record: dict[str, dict[str, object]] = {}
    for label, model in MODELS.items():
        for batch in model.batches:
            name = f"{label}-b{batch}"
            if args.only and name not in args.only:
                continue
            torch.manual_seed(0)
            torch.cuda.empty_cache()
            module = model.make().eval().cuda().half()
            inputs = [model.inputs(batch, "cuda")]
            start = time.perf_counter()
            try:
                phases: dict[str, float] = {}

                def note(
                    what: str, done: int, total: int, start: float = start, phases: dict = phases, name: str = name
                ) -> None:
                    if what not in phases:  # so that one that is ended too soon tells how far it came
                        print(f"{name}: {what}, {total}, after {time.perf_counter() - start:.0f} s", flush=True)
                    phases[what] = round(time.perf_counter() - start, 1)

                captured = capture(module, inputs, name=name, progress=note)
                seconds = time.perf_counter() - start
                program = captured.program
                path = args.out / f"{name}.miriam"
                program.save(path)
                latency = median_us(captured.replay)
                facts = check(captured, path, copy.deepcopy(module), [model.inputs(batch, "cuda")])
                stock = stock_us(module, inputs)
                program.without_weights().save(path)
                triton = sum(program.kernel_of(i).source is Source.TRITON for i in range(len(program.launches)))
                record[name] = {
                    "compile_s": round(seconds, 2), "phases_s": phases, "us": latency, "stock_us": stock,
                    "launches": len(program.launches), "triton": triton,
                    "opaque": sorted({program.kernel_of(i).name for i in range(len(program.launches))
                                      if program.kernel_of(i).opaque}),
                    "file_bytes": path.stat().st_size, **facts,
                }  # fmt: skip
            except Exception as error:
                traceback.print_exc(limit=-3)
                record[name] = {"failed": f"{type(error).__name__}: {error}"[:600]}
            print(name, record[name], flush=True)
            (args.out / "zoo.json").write_text(json.dumps(record, indent=1))
            captured = module = inputs = None
    if unknown := set(args.only or ()) - record.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}")


if __name__ == "__main__":
    main()
