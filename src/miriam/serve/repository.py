"""The models of a server: which there are, which are loaded, and why not."""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

import ml_dtypes
import numpy as np

from miriam.errors import MiriamError
from miriam.serve import process
from miriam.serve.config import ConfigError, ModelConfig, ServerConfig
from miriam.serve.errors import ServiceError, Status

if TYPE_CHECKING:
    from miriam.runtime import Loaded, Runtime

__all__ = ["Entry", "Repository", "State", "in_thread"]

_T = TypeVar("_T")


class State(StrEnum):
    """Of a model, as the index of Triton's repository extension names it."""

    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"


@dataclass(slots=True)
class Entry:
    """One model.

    Attributes
    ----------
    levels
        Criticality levels that its requests may have, highest first.
    version
        The only one that it has.
    loaded
        The model in the runtime.
    otherwise, reason
        Where it stands while it cannot be asked, and why.
    wanted
        Whether the server is ready only with it: until somebody unloads it.
    """

    name: str
    config: ModelConfig
    levels: tuple[int, ...]
    version: str = "1"
    otherwise: State = State.UNAVAILABLE
    reason: str = "not loaded yet"
    loaded: Loaded | None = None
    wanted: bool = True
    lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)

    @property
    def state(self) -> State:
        """Where it stands."""
        return self.otherwise if self.loaded is None or self.loaded.closed else State.READY

    @property
    def ready(self) -> bool:
        """Whether it can be asked."""
        return self.state is State.READY

    def level(self, priority: int) -> int:
        """The criticality level of a request with this priority: 0 as configured, 1 the highest, and so on."""
        if priority < 0:
            raise ServiceError(
                Status.INVALID, f"priority is {priority}: give 1 (the highest) or more, or 0 for the default"
            )
        return self.levels[min(priority, len(self.levels)) - 1] if priority else self.config.criticality


class Repository(Mapping[str, Entry]):
    """The models of a configuration, by name.

    Loading and unloading take place in threads of their own, one at a time for each model.

    Parameters
    ----------
    reread
        Gives the configuration as its file is now; models can be loaded that it did not have at the start.
    """

    def __init__(
        self, runtime: Runtime, config: ServerConfig, reread: Callable[[], ServerConfig] | None = None
    ) -> None:
        self.runtime = runtime
        self._reread = reread or (lambda: config)
        self._entries = {name: _entry(name, model, config) for name, model in config.models.items()}
        self._spared: set[str] = set()

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def complete(self) -> bool:
        """Whether all are ready that are wanted."""
        return all(entry.ready for entry in self._entries.values() if entry.wanted)

    async def load_all(self, tried: Callable[[Entry], None] = lambda entry: None) -> None:
        """Load every model, the most critical first; one that cannot be loaded says so in its entry.

        Parameters
        ----------
        tried
            Is given each entry, after that.
        """
        for entry in sorted(self._entries.values(), key=lambda entry: -entry.config.criticality):
            async with entry.lock:
                with suppress(ServiceError):
                    await self._load(entry, entry)
            tried(entry)

    def spare(self) -> None:
        """Let the garbage collector leave alone what is loaded, and every module: `miriam.serve.process.spare`."""
        process.spare()
        self._spared = {name for name, entry in self._entries.items() if entry.loaded is not None}

    async def load(self, name: str) -> None:
        """Load a model as the configuration has it now. One that is loaded serves until the new one is there.

        Raises
        ------
        ServiceError
            The configuration has no such model, is wrong, or the model cannot be loaded.
        """
        try:
            config = await in_thread(self._reread)
        except ConfigError as error:
            raise ServiceError(Status.INVALID, str(error)) from error
        if name not in config.models:
            raise ServiceError(Status.NOT_FOUND, f"the configuration has no model {name!r:.80}: add it there first")
        fresh = _entry(name, config.models[name], config)
        entry = self._entries.setdefault(name, fresh)

        async def load() -> None:
            async with entry.lock:
                entry.wanted = True
                await self._load(entry, fresh)

        await asyncio.shield(load())  # a client that goes meanwhile leaves nothing half done

    async def unload(self, name: str) -> None:
        """Answer what waits for a model, then forget it; nothing happens to one that is not loaded.

        Raises
        ------
        ServiceError
            There is no such model.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise ServiceError(Status.NOT_FOUND, f"there is no model {name!r:.80}")

        async def unload() -> None:
            async with entry.lock:
                entry.wanted = False
                await self._unload(entry)
                entry.reason = "unloaded"

        await asyncio.shield(unload())

    async def _load(self, entry: Entry, fresh: Entry) -> None:
        entry.otherwise, entry.reason = State.LOADING, ""
        if not entry.ready:
            entry.config, entry.levels = fresh.config, fresh.levels
        replaced = entry.loaded is not None
        try:
            entry.loaded = await in_thread(self._put, entry.name, fresh.config)
        except BaseException as error:  # a factory may raise anything, even a wish to exit
            why = str(error) if isinstance(error, MiriamError) else f"{type(error).__name__}: {error}"
            if not entry.ready:
                entry.loaded, entry.reason = None, why
            if isinstance(error, asyncio.CancelledError):
                raise
            raise ServiceError(Status.INVALID, f"model {entry.name!r} cannot be loaded: {why}") from error
        finally:
            entry.otherwise = State.UNAVAILABLE
        entry.config, entry.levels = fresh.config, fresh.levels
        if replaced:
            await in_thread(self._discard, entry.name)

    def _discard(self, name: str) -> None:
        """Give back the memory of a model that is not there any more, or not as it was."""
        if name in self._spared:
            gc.unfreeze()
            self.spare()
        else:
            gc.collect()

    def _put(self, name: str, config: ModelConfig) -> Loaded:
        """Load it. Whatever goes wrong before it is there leaves the one that serves where it is."""
        model, example = _made(config)
        return self.runtime.load(
            model, example, name=name, criticality=config.criticality, deadline_ms=config.deadline_ms,
            period_ms=config.period_ms, queue=config.queue, timeout_ms=config.timeout_ms, inputs=config.inputs,
            outputs=config.outputs, replace=True,
        )  # fmt: skip

    async def _unload(self, entry: Entry) -> None:
        if entry.loaded is None:
            return
        entry.otherwise = State.UNLOADING
        try:
            await in_thread(self.runtime.unload, entry.name)
        finally:
            entry.loaded, entry.otherwise = None, State.UNAVAILABLE
        await in_thread(self._discard, entry.name)


async def in_thread(function: Callable[..., _T], *arguments: Any) -> _T:
    """Call a function that may take minutes in a thread that nobody waits for when the server ends."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    result: Future[_T] = Future()

    def call() -> None:
        try:
            result.set_result(function(*arguments))
        except BaseException as error:
            result.set_exception(error)
        with suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(done.set)

    Thread(target=call, name="miriam-loading", daemon=True).start()
    await done.wait()
    return result.result()


def _entry(name: str, model: ModelConfig, config: ServerConfig) -> Entry:
    low, high = model.priority or (model.criticality, model.criticality)
    return Entry(name, model, tuple(sorted({n for n in config.levels if low <= n <= high}, reverse=True)))


def _made(config: ModelConfig) -> tuple[Any, Any]:
    """What the runtime is to load, and examples of its inputs."""
    if config.program is not None:
        if config.program.startswith("zoo:"):
            from miriam import zoo

            return zoo.load(config.program.removeprefix("zoo:")), None
        from miriam.program import Program

        return Program.load(config.program), None
    assert config.factory is not None
    return _factory(config.factory)(), _example(config)


def _example(config: ModelConfig) -> list[np.ndarray[Any, Any]]:
    """Arrays of the inputs' shapes. Not all the same number: the rows of a batch have to differ from each other."""
    random, found = np.random.default_rng(0), []
    for i, shape in enumerate(config.example or ()):
        name = config.dtype if isinstance(config.dtype, str) else config.dtype[i]
        if name.startswith(("float", "bfloat")):
            values = random.standard_normal(shape).astype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
        else:
            values = random.integers(0, 2, shape).astype(name)  # within any vocabulary
        found.append(values)
    return found


def _factory(spec: str) -> Callable[[], Any]:
    """The function that ``file.py:function`` or ``package.module:function`` names; a file is read anew each time."""
    where, _, attribute = spec.rpartition(":")
    if not where.endswith(".py"):
        module = importlib.import_module(where)
    else:
        path = Path(where)
        found = importlib.util.spec_from_file_location(f"_miriam_model_{path.stem}", path)
        if found is None or found.loader is None or not path.is_file():
            raise ConfigError(f"there is no file {where}")
        module = importlib.util.module_from_spec(found)
        sys.modules[found.name] = module  # dataclasses and pickle look for it there
        sys.path.insert(0, str(path.parent))
        try:
            found.loader.exec_module(module)
        finally:
            sys.path.remove(str(path.parent))
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise ConfigError(f"{where} has no function {attribute!r}")
    made: Callable[[], Any] = factory
    return made
