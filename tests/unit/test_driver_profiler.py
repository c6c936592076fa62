"""A program is profiled at every number of SMs, against a driver on which everything takes the same time."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from fake_driver import ATTRIBUTES, FakeDriver
from hypothesis import given
from hypothesis import strategies as st
from support import program

from miriam.device.cuda.profiler import SM_COUNTS, profile_program, without_events
from miriam.errors import DeviceError, ProfileError
from miriam.profile import Counters, LaunchProfile, launch_key
from miriam.store import ProfileStore


@pytest.fixture
def cu(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    fake.install(monkeypatch)
    return fake


def test_every_launch_at_every_number_of_sms(cu: FakeDriver, tmp_path: Path) -> None:
    toy, told = program(), []
    with ProfileStore(tmp_path / "p.db") as store:
        profile_program(toy, store, counters=False, progress=lambda *what: told.append(what))
        found = [store.launch("h200", launch_key(toy.kernel_of(i), step)) for i, step in enumerate(toy.launches)]
        whole = store.program("h200", toy)
        facts = store.devices["h200"]
    assert whole is not None
    assert list(whole.times_us) == [*SM_COUNTS, 132]
    for i, launch in enumerate(found):
        assert launch is not None
        assert list(launch.times_us) == [*SM_COUNTS, 132]
        assert launch.blocks_per_sm == 2048 // toy.kernel_of(i).threads
        assert not launch.measured
    for sms, (median_us, p99_us) in whole.times_us.items():
        assert median_us == p99_us == 25.0  # there, 0.25 ms pass between any two events: around ten runs
        assert sum(launch.times_us[sms] for launch in found) == pytest.approx(median_us)
    assert (facts["gpu"], facts["sms"]) == ("NVIDIA H200", 132)
    assert told == [("timing toy", 0, 1)]


class Slow(FakeDriver):
    """One launch of a graph takes ``graph_ms``, and each of the two launches in it half of that."""

    graph_ms = 0.0

    def _cuEventElapsedTime(self, start: Any, end: Any) -> tuple[float]:  # noqa: N802 - a call of the driver
        recorded: dict[Any, int] = {}
        graphs = 0
        for name, args in self.calls:
            graphs += name == "cuGraphLaunch"
            if name == "cuEventRecord":
                recorded[id(args[0])] = graphs
        if id(start) in recorded:
            return (self.graph_ms * (recorded[id(end)] - recorded[id(start)]),)
        return (self.graph_ms / 2,)


@pytest.mark.parametrize(("graph_ms", "least", "most"), [(0.2, 400, 600), (15, 80, 200), (127, 30, 50)])
def test_long_programs_are_measured_less_often_and_as_well(
    graph_ms: float, least: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miriam.device.cuda.profiler.SM_COUNTS", ())
    monkeypatch.setattr("miriam.device.cuda.profiler._gap_us", lambda gpu: 1.0)
    cu, toy = Slow(), program()
    cu.graph_ms = graph_ms
    cu.install(monkeypatch)
    with ProfileStore(tmp_path / "p.db") as store:
        profile_program(toy, store, counters=False)
        whole = store.program("h200", toy)
        found = [store.launch("h200", launch_key(toy.kernel_of(i), step)) for i, step in enumerate(toy.launches)]
    assert whole is not None
    assert whole.times_us[132] == pytest.approx((1e3 * graph_ms, 1e3 * graph_ms))
    assert [launch and launch.times_us[132] for launch in found] == pytest.approx([500 * graph_ms] * 2)
    assert least <= cu.names().count("cuGraphLaunch") <= most


def test_counters_stay_when_only_times_are_taken_anew(cu: FakeDriver, tmp_path: Path) -> None:
    toy = program(launches=[(64, 128)])
    key, counters = launch_key(toy.kernels[0], toy.launches[0]), Counters(1, 2, 3, 4, 0.5, 0.25)
    with ProfileStore(tmp_path / "p.db") as store:
        store.put_launch("h200", key, LaunchProfile({132: 1.0}, 1, counters, measured=True))
        profile_program(toy, store, counters=False)
        found = store.launch("h200", key)
    assert found is not None
    assert (found.counters, found.measured) == (counters, True)
    assert found.times_us[132] == 25.0


def test_counters_that_cannot_be_read_are_estimated_unless_they_must_be(
    cu: FakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_: None)
    toy = program(launches=[(64, 128)])
    with ProfileStore(tmp_path / "p.db") as store:
        with pytest.raises(ProfileError, match="ncu"):
            profile_program(toy, store, counters=True)
        with pytest.warns(UserWarning, match="counters of toy are estimated: Nsight Compute"):
            profile_program(toy, store)
        found = store.launch("h200", launch_key(toy.kernels[0], toy.launches[0]))
    assert found is not None
    assert not found.measured


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=30), st.floats(0, 1e5))
def test_launches_add_up_to_the_program_and_none_is_shorter_than_the_least(
    marked_us: list[float], whole_us: float
) -> None:
    found = without_events(marked_us, whole_us, least_us=0.25)
    assert min(found) >= 0.25
    assert sum(found) == pytest.approx(max(whole_us, 0.25 * len(found)), rel=1e-6)
    order = sorted(range(len(found)), key=lambda i: marked_us[i])
    assert all(found[a] <= found[b] for a, b in itertools.pairwise(order))  # a longer launch stays a longer one


def test_everything_is_given_back(cu: FakeDriver, tmp_path: Path) -> None:
    with ProfileStore(tmp_path / "p.db") as store:
        profile_program(program(), store, counters=False)
    assert "cuGreenCtxCreate" in cu.names()
    assert cu.leaks() == []


def test_a_small_gpu_is_measured_whole_and_in_the_parts_that_it_has(
    cu: FakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ATTRIBUTES, "MULTIPROCESSOR_COUNT", 20)
    toy = program(launches=[(64, 128)])
    with ProfileStore(tmp_path / "p.db") as store:
        profile_program(toy, store, counters=False)
        found = store.launch("h200", launch_key(toy.kernels[0], toy.launches[0]))
        assert found is not None
        assert list(found.times_us) == [8, 16, 20]


def test_a_partition_of_another_size_than_asked_for_is_an_error(
    cu: FakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miriam.device.cuda.profiler.SM_COUNTS", (12,))
    with ProfileStore(tmp_path / "p.db") as store, pytest.raises(ProfileError, match=r"asked for 12 SMs .* gave 16"):
        profile_program(program(), store, counters=False)
    assert "cuDevicePrimaryCtxRelease" in cu.names()


@pytest.mark.parametrize("device", ["sim:h200", "cuda:x", "h200", ""])
def test_only_a_gpu_can_be_profiled_on(cu: FakeDriver, tmp_path: Path, device: str) -> None:
    with ProfileStore(tmp_path / "p.db") as store, pytest.raises(DeviceError, match="name a GPU, such as cuda:0"):
        profile_program(program(), store, device, counters=False)
