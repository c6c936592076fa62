"""The store of profiles (SQLite), and the compressed file in which they travel.

A store that is damaged, or was written by another version, is never trusted: it is renamed aside
and a fresh one is made, because everything in it can be measured again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import lzma
import os
import sqlite3
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import platformdirs

from miriam._files import replacing
from miriam.errors import ProfileError
from miriam.profile import Counters, LaunchKey, LaunchProfile, ProfileSource, ProgramProfile
from miriam.program import Program

__all__ = ["ChainedProfiles", "ExportedProfiles", "Facts", "ProfileStore", "default_path"]

Facts: TypeAlias = Mapping[str, str | int | float]
"""What is known of a device and of how it was measured: launch gap, machine, versions, date."""

SCHEMA_VERSION = 1
EXPORT_VERSION = 1

_BUSY_S = 30.0
_AGAIN = "measure again with 'miriam profile'"
_TABLES = """
CREATE TABLE devices (
    device TEXT PRIMARY KEY, facts TEXT NOT NULL, crc INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE launches (
    device TEXT, kernel TEXT, grid TEXT, profile TEXT NOT NULL, crc INTEGER NOT NULL,
    PRIMARY KEY (device, kernel, grid)
) WITHOUT ROWID;
CREATE TABLE programs (
    device TEXT, program TEXT, profile TEXT NOT NULL, crc INTEGER NOT NULL,
    PRIMARY KEY (device, program)
) WITHOUT ROWID;
"""
# What another process or the file system does is not the fault of the contents.
_BLAMELESS = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_PERM)
_ROWS = {
    "devices": "device, facts, crc",
    "launches": "device, kernel, grid, profile, crc",
    "programs": "device, program, profile, crc",
}


def default_path() -> Path:
    """``profiles.db`` in the user's cache folder, or in the folder that ``MIRIAM_CACHE`` names."""
    folder = os.environ.get("MIRIAM_CACHE") or platformdirs.user_cache_dir("miriam", appauthor=False)
    return Path(folder).expanduser() / "profiles.db"


class ProfileStore:
    """Profiles in a SQLite file; several processes may use one at a time.

    Parameters
    ----------
    path
        The file; made with its folder if it is not there. None: :func:`default_path`.

    Raises
    ------
    ProfileError
        The file cannot be opened or written, by no fault of its contents.

    Warns
    -----
    UserWarning
        What was there is damaged or of another version: it now has the name in the warning.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = default_path() if path is None else Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(self.path):
                if self.path.exists() and not os.access(self.path, os.W_OK):
                    raise PermissionError("it may not be written")
                self._db = _open(self.path)
        except (OSError, sqlite3.Error) as error:
            raise ProfileError(
                f"cannot open the profile store {self.path} ({error}): set MIRIAM_CACHE to a folder that can be written"
            ) from error

    def put_device(self, device: str, facts: Facts) -> None:
        """Keep what is known of ``device``, in place of what was known."""
        self._put("devices", (device, _dump(dict(facts))))

    def put_launch(self, device: str, key: LaunchKey, profile: LaunchProfile) -> None:
        """Keep the profile of a launch, in place of an older one."""
        kernel, grid = key
        self._put("launches", (device, kernel, _dump(grid), _dump(_launch_json(profile))))

    def put_program(self, device: str, program: Program, profile: ProgramProfile) -> None:
        """Keep the profile of a whole program, in place of an older one."""
        self._put("programs", (device, program.digest, _dump(_program_json(profile))))

    @property
    def devices(self) -> Mapping[str, Facts]:
        """The devices that facts are known of, and the facts."""
        return MappingProxyType({name: json.loads(facts) for name, facts in self._rows("devices")})

    def launch(self, device: str, key: LaunchKey) -> LaunchProfile | None:
        """Profile of a launch on ``device``, or None."""
        row = self._one("launches", {"device": device, "kernel": key[0], "grid": _dump(key[1])})
        return None if row is None else _launch(row)

    def program(self, device: str, program: Program) -> ProgramProfile | None:
        """Profile of a whole program on ``device``, or None."""
        row = self._one("programs", {"device": device, "program": program.digest})
        return None if row is None else _program(row)

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one compressed file; the same contents give the same bytes.

        See Also
        --------
        ExportedProfiles : reads it.
        """
        launches = [[d, kernel, json.loads(grid), json.loads(p)] for d, kernel, grid, p in self._rows("launches")]
        programs = [[d, program, json.loads(p)] for d, program, p in self._rows("programs")]
        contents = {
            "format": EXPORT_VERSION,
            "devices": {name: dict(facts) for name, facts in self.devices.items()},
            "launches": sorted(launches),
            "programs": sorted(programs),
        }
        with replacing(path, ProfileError) as part:
            part.write_bytes(lzma.compress(_dump(contents).encode(), check=lzma.CHECK_SHA256))

    def load_export(self, path: str | os.PathLike[str]) -> None:
        """Take in everything that an exported file holds, in place of what is here under the same key."""
        contents = ExportedProfiles(path)
        with self._changing():
            for name, facts in contents.devices.items():
                self.put_device(name, facts)
            for (device, key), launch in contents.launches.items():
                self.put_launch(device, key, launch)
            for (device, digest), program in contents.programs.items():
                self._put("programs", (device, digest, _dump(_program_json(program))))

    def close(self) -> None:
        """Close the file; allowed twice."""
        self._db.close()

    def __enter__(self) -> ProfileStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _put(self, table: str, row: tuple[str, ...]) -> None:
        with self._changing():
            marks = ", ".join("?" * (len(row) + 1))
            self._db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", (*row, _crc(row)))

    def _one(self, table: str, key: Mapping[str, str]) -> Any:
        where = " AND ".join(f"{column} = ?" for column in key)
        with self._reporting():
            row = self._db.execute(f"SELECT profile FROM {table} WHERE {where}", tuple(key.values())).fetchone()
        return None if row is None else json.loads(row[0])

    def _rows(self, table: str) -> list[tuple[str, ...]]:
        with self._reporting():
            return [row[:-1] for row in self._db.execute(f"SELECT {_ROWS[table]} FROM {table}")]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        with self._reporting():
            if self._db.in_transaction:  # part of a larger change
                yield
                return
            self._db.execute("BEGIN IMMEDIATE")
            with self._db:
                yield

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ProfileError(
                f"the profile store {self.path} failed ({error}): free space, or move it away"
            ) from error


class ExportedProfiles:
    """Profiles out of an exported file, in memory.

    Attributes
    ----------
    devices
        Facts by device name.
    launches
        By device and :data:`~miriam.profile.LaunchKey`.
    programs
        By device and digest of the program.

    Raises
    ------
    ProfileError
        The file is missing, no export, truncated, damaged or of another version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            raw = json.loads(lzma.decompress(Path(path).read_bytes()))
            version = raw.get("format") if isinstance(raw, dict) else None
            if version != EXPORT_VERSION:
                raise ProfileError(
                    f"{path} has profile format {version!r}, this Miriam reads {EXPORT_VERSION}: {_AGAIN}"
                )
            self.devices: Mapping[str, Facts] = MappingProxyType(raw["devices"])
            self.launches: Mapping[tuple[str, LaunchKey], LaunchProfile] = MappingProxyType(
                {(device, (kernel, _grid(grid))): _launch(p) for device, kernel, grid, p in raw["launches"]}
            )
            self.programs: Mapping[tuple[str, str], ProgramProfile] = MappingProxyType(
                {(device, digest): _program(p) for device, digest, p in raw["programs"]}
            )
        except FileNotFoundError:
            raise ProfileError(f"there is no profile file {path}: make one with 'miriam profile --export'") from None
        except OSError as error:
            raise ProfileError(f"cannot read {path}: {error.strerror or error}") from error
        except ProfileError:
            raise
        except Exception as error:  # damage can surface in the decompressor, in JSON, or in what is missing
            raise ProfileError(f"{path} is no profile file or is damaged ({error!r}): {_AGAIN}") from error

    def launch(self, device: str, key: LaunchKey) -> LaunchProfile | None:
        """Profile of a launch on ``device``, or None."""
        return self.launches.get((device, key))

    def program(self, device: str, program: Program) -> ProgramProfile | None:
        """Profile of a whole program on ``device``, or None."""
        return self.programs.get((device, program.digest))


class ChainedProfiles:
    """The answer of the first source that has one: the user's own measurements, then those of the zoo."""

    def __init__(self, *sources: ProfileSource) -> None:
        self.sources = sources

    def launch(self, device: str, key: LaunchKey) -> LaunchProfile | None:
        """Profile of a launch on ``device``, or None."""
        return next((found for source in self.sources if (found := source.launch(device, key)) is not None), None)

    def program(self, device: str, program: Program) -> ProgramProfile | None:
        """Profile of a whole program on ``device``, or None."""
        return next((found for source in self.sources if (found := source.program(device, program)) is not None), None)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock beside the store: of two processes that find it damaged only one may set it aside."""
    with open(path.with_name(path.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _connect(path: Path) -> sqlite3.Connection:
    # From any thread: SQLite lets in one at a time (sqlite3.threadsafety is 3), and a call here is one statement.
    return sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)


def _open(path: Path) -> sqlite3.Connection:
    db = _connect(path)
    try:
        why = _distrust(db)
        if why:
            db.close()
            _set_aside(path, why)
            db = _connect(path)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        if db.execute("PRAGMA user_version").fetchone() == (0,):
            db.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")
    except BaseException:
        db.close()
        raise
    return db


def _distrust(db: sqlite3.Connection) -> str:
    """Why the contents of a database are not to be trusted, or nothing."""
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if version == 0 and tables == 0:
            return ""
        if version != SCHEMA_VERSION:
            return f"it has schema {version}, this Miriam uses {SCHEMA_VERSION}"
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            return str(verdict)
        for table, columns in _ROWS.items():
            for *row, crc in db.execute(f"SELECT {columns} FROM {table}"):
                if _crc(row) != crc:
                    return f"a row of {table} is not what was written"
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")  # a changed header can make a good file read-only
    except (sqlite3.Error, UnicodeError) as error:
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in _BLAMELESS:
            raise
        return str(error)
    return ""


def _set_aside(path: Path, why: str) -> None:
    mark = f"set-aside-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 1_000_000_000:09d}"
    aside = path.with_name(f"{path.name}.{mark}")
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    warnings.warn(
        f"the profile store {path} cannot be used ({why}): it is {aside.name} now, and an empty one takes its place; "
        f"{_AGAIN}",
        stacklevel=4,
    )


def _dump(value: object) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise ProfileError(f"a profile holds a number that is none ({error}): {_AGAIN}") from error


def _crc(row: Iterable[object]) -> int:
    return zlib.crc32("\0".join(map(str, row)).encode())


def _launch_json(profile: LaunchProfile) -> dict[str, Any]:
    return {
        "times_us": _times(profile.times_us),
        "blocks_per_sm": profile.blocks_per_sm,
        "counters": asdict(profile.counters),
        "measured": profile.measured,
    }


def _program_json(profile: ProgramProfile) -> dict[str, Any]:
    return {"times_us": _times(profile.times_us)}


def _times(times: Mapping[int, Any]) -> list[list[Any]]:
    return [[sms, times[sms]] for sms in sorted(times)]


def _launch(raw: dict[str, Any]) -> LaunchProfile:
    times = MappingProxyType({int(sms): float(us) for sms, us in raw["times_us"]})
    return LaunchProfile(times, raw["blocks_per_sm"], Counters(**raw["counters"]), raw["measured"])


def _program(raw: dict[str, Any]) -> ProgramProfile:
    return ProgramProfile(MappingProxyType({int(sms): (float(p50), float(p99)) for sms, (p50, p99) in raw["times_us"]}))


def _grid(raw: list[int]) -> tuple[int, int, int]:
    x, y, z = raw
    return x, y, z
