"""Baselines with a process for each task, and the processes and the daemon behind them."""

import multiprocessing
import os
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bench_processes import Deadly, Telling, echo, gone, lost_program, sleepy
from bench_support import CLOSED, STEADY, Clockwork, toy_profiles, toy_program

from miriam.bench import Results, run_mdtb
from miriam.bench.children import Call, Children
from miriam.bench.mps import Mps
from miriam.bench.outside import Regime, regime
from miriam.bench.workload import Workload
from miriam.errors import DeviceError, PolicyError, ProgramError

CONTROL = """#!/bin/sh
pid="$CUDA_MPS_PIPE_DIRECTORY/nvidia-cuda-mps-control.pid"
case "$1" in
-d)
    if [ -e "{folder}/broken" ]; then echo "no GPU here"; exit 1; fi
    sleep 300 &
    echo $! > "$pid"
    echo "started $CUDA_MPS_PIPE_DIRECTORY" >> "{folder}/calls"
    ;;
*)
    read words
    echo "$words" >> "{folder}/calls"
    echo "one line of the server" >> "$CUDA_MPS_LOG_DIRECTORY/server.log"
    if [ "$words" = quit ] && [ ! -e "{folder}/deaf" ]; then kill $(cat "$pid"); rm "$pid"; fi
    ;;
esac
"""


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with a control program that starts and ends a process; it writes down its calls."""
    program = tmp_path / "nvidia-cuda-mps-control"
    program.write_text(CONTROL.format(folder=tmp_path))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.fixture(autouse=True)
def _no_gpu_that_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miriam.bench.asked._REAL_WARM_UP_S", 0.05)


def run(*workloads: Workload, policies: str, device: Any = Clockwork, **options: Any) -> Results:
    return run_mdtb(
        workloads, policies, "cuda:0", 0.25, repeats=1, programs=options.pop("programs", toy_program),
        profiles=toy_profiles, open_device=device, **options,
    )  # fmt: skip


def test_names_and_options() -> None:
    assert regime("timeslice") == Regime("timeslice")
    assert regime("mps") == Regime("mps", True)
    assert regime("mps:50") == Regime("mps", True, 50)
    assert regime("miriam") is None
    for name in ("mps:", "mps:0", "mps:101", "mps:x", "timeslice:5"):
        with pytest.raises(PolicyError, match=f"'{name}'"):
            regime(name)


def test_each_task_has_a_process_of_its_own_and_the_arrivals_of_the_seed(control: Path) -> None:
    found = run(STEADY, policies="multistream,mps:50,timeslice,mps", device=Telling)
    assert [p.label for p in found.points] == [
        "quick alone", "big alone", "multistream",
        "quick alone, timeslice", "big alone, timeslice", "timeslice",
        "quick alone, mps", "big alone, mps", "mps:50", "mps",
    ]  # fmt: skip
    assert found.policies == ("multistream", "mps:50", "timeslice", "mps")
    arrived = {p.tasks[0].arrived for p in found.points if p.tasks[0].name == "quick"}
    assert max(arrived) - min(arrived) <= 1  # one may arrive in the last moment
    for point in found.points[3:]:
        assert point.occupancy is None
        assert all(t.response is not None and t.checked for t in point.tasks)
    for policy in ("timeslice", "mps", "mps:50"):
        point = found.point("S", policy)
        assert point is not None
        assert all(t.slowdown is not None for t in point.tasks)
        assert point.normal_vs_alone
    places = [note.split() for note in found.notes]
    children = [place for place in places if int(place[0]) != os.getpid()]
    assert len(children) == len({place[0] for place in children}) == 10
    assert [place[1:] for place in children[:4]] == [["-", "-"]] * 4
    assert all(place[1].endswith("/pipe") for place in children[4:])
    assert sorted(place[2] for place in children[4:]) == ["-"] * 5 + ["50"]
    calls = (control / "calls").read_text().split("\n")
    assert [call.split()[0] for call in calls if call] == ["started", "get_server_list", "quit"]
    assert not Path(calls[0].split()[1]).parent.exists()


def test_on_a_model_they_are_refused() -> None:
    with pytest.raises(PolicyError, match="'mps:50' is one of the driver of a GPU"):
        run_mdtb([CLOSED], "multistream,mps:50", "sim:h200/16", jobs=1, programs=toy_program, profiles=toy_profiles)


def test_an_error_in_a_process_ends_all_and_names_the_task(control: Path) -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(ProgramError, match="X, big alone, mps: big: lost on the way"):
        run(CLOSED, policies="mps", programs=lost_program)
    with pytest.raises(DeviceError, match="X, quick alone, timeslice: the process of quick died with exit code 7"):
        run(CLOSED, policies="timeslice", device=Deadly)
    with pytest.raises(DeviceError, match=r"died with exit code 7; MPS says: .*one line of the server"):
        run(CLOSED, policies="mps", device=Deadly)
    assert set(multiprocessing.active_children()) <= before
    assert (control / "calls").read_text().count("quit") == 2


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def has_ended(process: int) -> bool:
    """A process that was killed takes a moment to end."""
    until = time.monotonic() + 5.0
    while alive(process) and time.monotonic() < until:
        time.sleep(0.01)
    return not alive(process)


def test_the_daemon_is_ours_and_ends_with_the_block(control: Path) -> None:
    with Mps() as mps:
        assert mps.environment == {}
        mps.start()
        folder = Path(mps.environment["CUDA_MPS_PIPE_DIRECTORY"])
        daemon = int((folder / "nvidia-cuda-mps-control.pid").read_text())
        assert alive(daemon)
        mps.start()
        assert (control / "calls").read_text().count("started") == 1
    assert has_ended(daemon)
    assert not folder.exists()
    mps.stop()


def test_a_daemon_that_does_not_listen_is_killed(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miriam.bench.mps._PATIENCE_S", 0.5)
    (control / "deaf").touch()
    with Mps() as mps:
        mps.start()
        daemon = int((Path(mps.environment["CUDA_MPS_PIPE_DIRECTORY"]) / "nvidia-cuda-mps-control.pid").read_text())
        assert alive(daemon)
    assert has_ended(daemon)


def test_without_the_program_or_where_it_fails_there_is_a_way_out(
    control: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (control / "broken").touch()
    with Mps() as mps, pytest.raises(DeviceError, match=r"MPS does not start: .*no GPU here"):
        mps.start()
    monkeypatch.setenv("PATH", "/nowhere")
    with Mps() as mps, pytest.raises(DeviceError, match="no nvidia-cuda-mps-control"):
        mps.start()


def test_children_have_an_environment_of_their_own_and_answer_in_order() -> None:
    with Children({name: Call({"MIRIAM_TEST": name}, echo, ["MIRIAM_TEST"]) for name in ("b", "a")}) as children:
        assert children.answers(60) == {"b": "ready", "a": "ready"}
        children.tell("now")
        assert list(children.answers(60).items()) == [("b", "b now"), ("a", "a now")]
    assert "MIRIAM_TEST" not in os.environ


@pytest.mark.parametrize("wait_s", [0.0, 0.3])
def test_children_that_die_unasked_or_without_listening_are_named(wait_s: float) -> None:
    with Children({"one": Call({}, gone, [wait_s])}) as children:
        children.answers(60)
        time.sleep(0.2)  # it has died, or has not read what comes now
        children.tell("begin")
        with pytest.raises(DeviceError, match="the process of one died with exit code 9"):
            children.answers(60)


def test_children_that_do_not_answer_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miriam.bench.children._END_S", 0.2)
    before = set(multiprocessing.active_children())
    with Children({"one": Call({}, sleepy, [])}) as children:
        children.answers(60)
        with pytest.raises(DeviceError, match=r"process of one gave no answer for 0\.1 s"):
            children.answers(0.1)
    assert set(multiprocessing.active_children()) <= before


def test_what_cannot_be_had_is_found_before_the_first_point(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DeviceError, match="no nvidia-cuda-mps-control"):
        run(STEADY, policies="multistream,mps:50", progress=lambda done, total, label: told.append(label))
    with pytest.raises(PolicyError, match=r"S: .*partition"):
        run(STEADY, policies="multistream,partition:99", progress=lambda done, total, label: told.append(label))
    assert told == []


@contextmanager
def interrupting() -> Iterator[None]:
    """A block in which Ctrl-C does what it does at a prompt: a job in the background of a shell ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_ends_the_daemon_at_once(control: Path, number: int, kind: type[BaseException]) -> None:
    def interrupt(done: int, total: int, label: str) -> None:
        if label == "X, quick alone, mps":
            signal.raise_signal(number)

    with interrupting():
        handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        with pytest.raises(kind) as caught:  # and with it all frames that it went through
            run(CLOSED, policies="mps:50,mps", progress=interrupt)
        assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers
    assert caught.tb is not None
    started, *_, last = (control / "calls").read_text().split("\n")[:-1]
    assert last == "quit"
    assert not Path(started.split()[1]).parent.exists()


def test_what_was_measured_stays_when_a_later_point_fails(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="died with exit code 7"):
        run(STEADY, policies="multistream,timeslice", device=Deadly, out=tmp_path)
    kept = Results.load(tmp_path / "results.json")
    assert [p.label for p in kept.points] == ["quick alone", "big alone", "multistream"]
