"""The benchmark on the device of a GPU, in front of a driver without a processor."""

from functools import cache

import pytest
from fake_driver import FakeDriver
from null_kernels import EFFECTS
from support import Profiles, program

from miriam.bench import Closed, Entry, Uniform, Workload, run_mdtb
from miriam.bench import point as points
from miriam.bench.report import render
from miriam.errors import DeviceError
from miriam.program import Program
from miriam.task import Criticality

WORKLOAD = Workload(
    "W", "one at a low fixed rate",
    (Entry("fast", "fast", Criticality.CRITICAL, Uniform(50)), Entry("slow", "slow", Criticality.NORMAL, Closed(2))),
)  # fmt: skip


@cache
def made(name: str) -> Program:
    return program(name, ((64, 128),) if name == "fast" else ((300, 128), (64, 128)))


def profiles() -> Profiles:
    return Profiles(made("fast"), made("slow"))


@pytest.fixture
def cu(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    fake.install(monkeypatch)
    fake.effects.update(EFFECTS)
    monkeypatch.setattr("miriam.device.cuda.elastic.find_ptxas", lambda: None)  # the driver assembles
    monkeypatch.setattr(points, "_loaded", {})
    return fake


@pytest.mark.parametrize("device", ["cuda:0", "cuda:0/16"])
def test_turns_on_a_gpu(cu: FakeDriver, device: str) -> None:
    found = run_mdtb(
        [WORKLOAD], "multistream,priority,resident", device, 0.6, repeats=2, programs=made, profiles=profiles,
        verify=True,
    )  # fmt: skip
    assert [p.label for p in found.points] == ["fast alone", "slow alone", "multistream", "priority", "resident"] * 2
    for point in found.points:
        assert all(t.throughput_per_s > 0 and t.response is not None for t in point.tasks)
        assert point.busy is not None
        assert point.occupancy is None
        assert point.blocks
    shared = found.point("W", "resident")
    assert shared is not None
    assert all(t.checked is not None and t.checked > 0 for t in shared.tasks)
    assert ("green context" in " ".join(found.notes)) is (device == "cuda:0/16")
    assert found.made.machine["gpu"]
    assert "Measured on hardware" in render(found)
    assert cu.leaks() == []


@pytest.mark.parametrize("kind", [KeyboardInterrupt, DeviceError])
def test_a_run_that_is_broken_off_leaves_nothing_on_a_gpu_that_works(cu: FakeDriver, kind: type[BaseException]) -> None:
    def break_off(done: int, total: int, label: str) -> None:
        assert cu.leaks()  # kernels are loaded for the next point
        raise kind

    with pytest.raises(kind):
        run_mdtb(
            [WORKLOAD], "multistream", "cuda:0", 0.6, programs=made, profiles=profiles, progress=break_off,
        )  # fmt: skip
    assert bool(cu.leaks()) is (kind is DeviceError)  # it might hang: nothing is asked of it any more
