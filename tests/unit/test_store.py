"""The profile store and its export: exact round trips, damage, several processes."""

import lzma
import multiprocessing
import sqlite3
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Profiles, program

from miriam.errors import ProfileError
from miriam.profile import Counters, LaunchProfile, ProgramProfile, launch_key
from miriam.store import ChainedProfiles, ExportedProfiles, ProfileStore, default_path

COUNTERS = Counters(1e3, 2e3, 3e3, 4e3, 0.25, 0.5)
LAUNCH = LaunchProfile({8: 90.5, 132: 7.125}, 4, COUNTERS, measured=True)
PROGRAM = ProgramProfile({132: (755.25, 801.0)})
KEY = ("0123abcd", (64, 1, 1))
FACTS = {"launch_gap_us": 1.06, "gpu": "NVIDIA H200", "sms": 132}

numbers = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
names = st.text(min_size=1, max_size=12)
sms = st.integers(1, 512)
keys = st.tuples(names, st.tuples(*[st.integers(1, 2**31 - 1)] * 3))
launch_profiles = st.builds(
    LaunchProfile,
    st.dictionaries(sms, numbers, max_size=6),
    st.integers(0, 32),
    st.builds(Counters, *[numbers] * 6),
    st.booleans(),
)
program_profiles = st.builds(ProgramProfile, st.dictionaries(sms, st.tuples(numbers, numbers), max_size=6))


def filled(path: Path) -> ProfileStore:
    store = ProfileStore(path)
    store.put_device("h200", FACTS)
    store.put_launch("h200", KEY, LAUNCH)
    store.put_program("h200", program(), PROGRAM)
    return store


def set_aside(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.set-aside-*"))


def test_an_empty_store_knows_nothing(tmp_path: Path) -> None:
    with ProfileStore(tmp_path / "new" / "folder" / "profiles.db") as store:
        assert store.launch("h200", KEY) is None
        assert store.program("h200", program()) is None
        assert dict(store.devices) == {}


def test_what_is_put_in_is_there_after_closing(tmp_path: Path) -> None:
    filled(tmp_path / "p.db").close()
    with ProfileStore(tmp_path / "p.db") as store:
        assert store.launch("h200", KEY) == LAUNCH
        assert store.program("h200", program()) == PROGRAM
        assert store.devices == {"h200": FACTS}


@pytest.mark.parametrize("other", [("h100", KEY), ("h200", ("other", KEY[1])), ("h200", (KEY[0], (1, 64, 1)))])
def test_device_kernel_and_grid_all_count(tmp_path: Path, other: tuple[str, tuple[str, tuple[int, int, int]]]) -> None:
    with filled(tmp_path / "p.db") as store:
        assert store.launch(*other) is None


def test_a_later_measurement_takes_the_place_of_the_older(tmp_path: Path) -> None:
    newer = LaunchProfile({132: 6.5}, 4, COUNTERS, measured=False)
    with filled(tmp_path / "p.db") as store:
        store.put_launch("h200", KEY, newer)
        assert store.launch("h200", KEY) == newer


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_time_that_is_no_number_is_refused_and_nothing_is_kept(tmp_path: Path, bad: float) -> None:
    with ProfileStore(tmp_path / "p.db") as store:
        with pytest.raises(ProfileError, match="miriam profile"):
            store.put_launch("h200", KEY, LaunchProfile({132: bad}, 4, COUNTERS, measured=True))
        assert store.launch("h200", KEY) is None


@settings(max_examples=30)
@given(
    launches=st.dictionaries(st.tuples(names, keys), launch_profiles, max_size=5),
    whole=program_profiles,
    facts=st.dictionaries(names, st.one_of(names, numbers, st.integers(-(2**60), 2**60)), max_size=4),
)
def test_round_trip_is_exact_through_store_and_export(tmp_path_factory, launches, whole, facts) -> None:
    folder = tmp_path_factory.mktemp("store")
    toy = program()
    with ProfileStore(folder / "a.db") as a, ProfileStore(folder / "b.db") as b:
        for (device, key), profile in launches.items():
            a.put_launch(device, key, profile)
        a.put_program("h200", toy, whole)
        a.put_device("h200", facts)
        a.export(folder / "a.json.xz")
        b.load_export(folder / "a.json.xz")
        b.export(folder / "b.json.xz")
        read = ExportedProfiles(folder / "a.json.xz")
        for source in (a, b, read):
            for (device, key), profile in launches.items():
                assert source.launch(device, key) == profile
            assert source.program("h200", toy) == whole
            assert source.devices == {"h200": facts}
    assert (folder / "a.json.xz").read_bytes() == (folder / "b.json.xz").read_bytes()


def test_an_export_does_not_depend_on_the_order_of_measuring(tmp_path: Path) -> None:
    rows = [((f"k{i}", (i + 1, 1, 1)), LaunchProfile({8: i + 0.5}, 1, COUNTERS, measured=True)) for i in range(20)]
    for name, order in (("a", rows), ("b", rows[::-1])):
        with ProfileStore(tmp_path / f"{name}.db") as store:
            for key, profile in order:
                store.put_launch("h200", key, profile)
            store.export(tmp_path / f"{name}.json.xz")
    assert (tmp_path / "a.json.xz").read_bytes() == (tmp_path / "b.json.xz").read_bytes()


def test_a_failed_load_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    text = '{"devices":{},"format":1,"programs":[],"launches":[["h200","good",[1,1,1],%s],["h200","nan",[1,1,1],%s]]}'
    counters = ",".join(f'"{name}":1' for name in Counters.__slots__)
    profile = '{"times_us":[[8,%s]],"blocks_per_sm":1,"measured":true,"counters":{' + counters + "}}"
    (tmp_path / "x.json.xz").write_bytes(lzma.compress((text % (profile % "1.5", profile % "NaN")).encode()))
    with ProfileStore(tmp_path / "p.db") as store:
        with pytest.raises(ProfileError):
            store.load_export(tmp_path / "x.json.xz")
        assert store.launch("h200", ("good", (1, 1, 1))) is None
        store.put_launch("h200", KEY, LAUNCH)
        assert store.launch("h200", KEY) == LAUNCH


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: b"", "damaged"),
        (lambda data: data[: len(data) // 2], "damaged"),
        (lambda data: data[:-1], "damaged"),
        (lambda data: bytes([data[0] ^ 1]) + data[1:], "damaged"),
        (lambda data: data[:40] + bytes([data[40] ^ 0x10]) + data[41:], "damaged"),
        (lambda data: b"no profiles at all", "damaged"),
        (lambda data: lzma.compress(b"[1, 2, 3]"), "format None"),
        (lambda data: lzma.compress(b'{"format": 1}'), "damaged"),
        (lambda data: lzma.compress(b'{"format": 99}'), "format 99"),
    ],
)
def test_a_broken_export_says_so_and_how_to_go_on(tmp_path: Path, damage, says: str) -> None:
    path = tmp_path / "h200.json.xz"
    with filled(tmp_path / "p.db") as store:
        store.export(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ProfileError, match=says) as caught:
        ExportedProfiles(path)
    assert str(path) in str(caught.value)
    assert "miriam profile" in str(caught.value)


def test_a_missing_export_and_an_unwritable_target_are_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"no profile file .*none\.json\.xz"):
        ExportedProfiles(tmp_path / "none.json.xz")
    with ProfileStore(tmp_path / "p.db") as store, pytest.raises(ProfileError, match="cannot write"):
        store.export(tmp_path / "no" / "folder" / "x.json.xz")
    with pytest.raises(ProfileError, match="MIRIAM_CACHE"):
        ProfileStore(tmp_path / "p.db" / "under-a-file.db")
    with pytest.raises(ProfileError, match="MIRIAM_CACHE"):
        ProfileStore(tmp_path)


def test_a_chain_answers_from_the_first_that_knows(tmp_path: Path) -> None:
    toy = program()
    zoo = Profiles(toy)
    key = launch_key(toy.kernels[0], toy.launches[0])
    with ProfileStore(tmp_path / "p.db") as store:
        chain = ChainedProfiles(store, zoo)
        assert chain.launch("h200", key) == zoo.launch("h200", key)
        store.put_launch("h200", key, LAUNCH)
        store.put_program("h200", toy, PROGRAM)
        assert chain.launch("h200", key) == LAUNCH
        assert chain.launch("h100", key) is None
        assert chain.program("h200", toy) == PROGRAM
        assert chain.program("h100", toy) is None


def whole_file(path: Path) -> bytes:
    """The bytes of a store after everything was moved from the log into it."""
    filled(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    return path.read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:50],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1000],
        lambda data: b"garbage" * 1000,
        lambda data: data[:100] + b"\xff" * 500 + data[600:],
        lambda data: data.replace(b"90.5", b"91.5"),
        lambda data: data.replace(b"0123abcd", b"0123abce"),
    ],
)
def test_a_damaged_store_is_set_aside_and_a_fresh_one_made(tmp_path: Path, damage) -> None:
    path = tmp_path / "p.db"
    broken = damage(whole_file(path))
    path.write_bytes(broken)
    with pytest.warns(UserWarning, match=r"p\.db\.set-aside-.*an empty one takes its place"):
        store = ProfileStore(path)
    with store:
        assert store.launch("h200", KEY) is None
        store.put_launch("h200", KEY, LAUNCH)
    aside = set_aside(path)
    assert len(aside) == 1
    assert aside[0].read_bytes() == broken
    with ProfileStore(path) as store:  # no warning now
        assert store.launch("h200", KEY) == LAUNCH


@given(where=st.integers(0, 5 * 4096 - 1), flip=st.integers(1, 255))
def test_a_store_with_any_byte_changed_gives_the_truth_or_nothing(tmp_path_factory, where: int, flip: int) -> None:
    path = tmp_path_factory.mktemp("store") / "p.db"
    data = bytearray(whole_file(path))
    data[where % len(data)] ^= flip
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = ProfileStore(path)
    with store:
        assert store.launch("h200", KEY) in (LAUNCH, None)
        assert store.program("h200", program()) in (PROGRAM, None)
        assert store.devices in ({"h200": FACTS}, {})
        store.put_launch("h200", KEY, LAUNCH)
        assert store.launch("h200", KEY) == LAUNCH


def test_a_store_of_another_version_is_set_aside_with_its_log(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    filled(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    with pytest.warns(UserWarning, match="schema 99"):
        ProfileStore(path).close()
    db.close()
    assert {p.name[-4:] for p in set_aside(path)} >= {"-wal", "-shm"}


def test_somebody_elses_database_is_set_aside_whole(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE songs (title TEXT)")
    db.close()
    with pytest.warns(UserWarning, match="schema 0"):
        ProfileStore(path).close()
    db = sqlite3.connect(set_aside(path)[0])
    assert db.execute("SELECT count(*) FROM songs").fetchone() == (0,)
    db.close()


def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "p.db").touch()
    with filled(tmp_path / "p.db") as store:
        assert store.launch("h200", KEY) == LAUNCH


def _write(path: Path, who: str, begin: "multiprocessing.synchronize.Barrier") -> None:
    begin.wait()
    with ProfileStore(path) as store:
        for i in range(60):
            store.put_launch("h200", (f"{who}{i}", (1, 1, 1)), LaunchProfile({8: i}, 1, COUNTERS, measured=True))
            store.put_launch("h200", ("shared", (1, 1, 1)), LAUNCH)


@pytest.mark.parametrize("contents", [None, b"garbage that both find at the same time" * 100])
def test_two_processes_write_at_a_time_and_nothing_is_lost(tmp_path: Path, contents: bytes | None) -> None:
    path = tmp_path / "p.db"
    if contents is not None:
        path.write_bytes(contents)
    spawn = multiprocessing.get_context("spawn")
    begin = spawn.Barrier(2)
    writers = [spawn.Process(target=_write, args=(path, who, begin)) for who in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    with ProfileStore(path) as store:
        for who in "ab":
            for i in range(60):
                found = store.launch("h200", (f"{who}{i}", (1, 1, 1)))
                assert found is not None
                assert found.times_us == {8: i}
        assert store.launch("h200", ("shared", (1, 1, 1))) == LAUNCH
    assert len(set_aside(path)) == (contents is not None)


def test_the_cache_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRIAM_CACHE", str(tmp_path / "mine"))
    assert default_path() == tmp_path / "mine" / "profiles.db"
    with ProfileStore() as store:
        assert store.path == default_path()
    monkeypatch.delenv("MIRIAM_CACHE")
    assert default_path().name == "profiles.db"
