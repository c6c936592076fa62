"""What the server does, whatever the protocol: HTTP and gRPC both ask a `Service`.

A protocol's part in a request is

1. ``with service.admitted(model):`` around all of it, as soon as the name of the model is known, so that a server that
   is about to end knows what it still owes an answer;
2. its own form -> `InferCall`, with `miriam.serve.tensors`;
3. ``result = await service.infer(call)``, on the event loop; cancelling it takes the request out of the queue;
4. `InferResult` -> its own form; a `ServiceError` -> its own code, by its ``status``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import miriam
from miriam.errors import MiriamError
from miriam.serve.copying import Copying
from miriam.serve.errors import ServiceError, Status, as_service_error
from miriam.serve.shared import Place, Regions, Shared, Slot
from miriam.serve.tensors import DATATYPES, Array, datatype_of, to_binary, usable

if TYPE_CHECKING:
    from miriam.runtime import Loaded, Response, Runtime, Spec
    from miriam.runtime.statistics import TaskStatistics
    from miriam.serve.repository import Entry, Repository

__all__ = ["EXTENSIONS", "InferCall", "InferResult", "Service"]

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "schedule_policy", "statistics")
"""Triton's extensions of the protocol that are spoken here; ``system_shared_memory`` where that is on."""


@dataclass(frozen=True, slots=True)
class InferCall:
    """A request for one inference.

    Attributes
    ----------
    model, version
        Which model; an empty version is the only one that there is.
    id
        The client's own name of the request; comes back with the answer.
    inputs
        Each once, in any order.
    outputs
        Names of those that are wanted, in their order; None for all.
    places
        Where outputs are to go that are not wanted in the answer, by name.
    priority
        0: as the model is configured; 1: the highest level that its configuration lets a request choose, 2 the next
        one, and so on down to the lowest that it may choose.
    timeout_us
        Time that it may wait in the queue; 0: as the model is configured.
    parameters
        What else the client said; nobody looks at it.
    """

    model: str
    inputs: Sequence[tuple[str, Array | Shared]]
    version: str = ""
    id: str = ""
    outputs: Sequence[str] | None = None
    places: Mapping[str, Place] = field(default_factory=dict)
    priority: int = 0
    timeout_us: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InferResult:
    """The answer to an `InferCall`.

    Attributes
    ----------
    number
        Of the request in the runtime: its name in traces.
    outputs
        In the order in which they were asked for; or where they are now.
    queue_us, compute_us
        Time in the queue, and from its first step to its last.
    """

    model: str
    version: str
    id: str
    number: int
    outputs: Sequence[tuple[str, Array | Shared]]
    queue_us: float
    compute_us: float


class Service:
    """The models of a repository, served.

    All methods are for the thread of the event loop. All errors are a `ServiceError`.

    Attributes
    ----------
    repository
        The models.
    regions
        What clients on this machine registered of its shared memory.
    draining
        Whether the server is about to end: nothing new is admitted.
    """

    def __init__(self, repository: Repository, regions: Regions | None = None) -> None:
        self.repository = repository
        self.regions = Regions() if regions is None else regions
        self._copying = Copying()
        self.draining = False
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def runtime(self) -> Runtime:
        """What runs the models."""
        return self.repository.runtime

    # Health

    def live(self) -> bool:
        """Whether the server can answer and the runtime works."""
        return not self.runtime.closed

    def ready(self) -> bool:
        """Whether everything that the configuration names can be asked for now."""
        return self.live() and not self.draining and self.repository.complete

    def model_ready(self, model: str, version: str = "") -> bool:
        """Whether requests for a model are answered; an unknown one is not found."""
        return self.entry(model, version).ready and self.live() and not self.draining

    # Requests

    @property
    def busy(self) -> bool:
        """Whether a request was admitted that has no answer yet."""
        return not self._idle.is_set()

    @contextmanager
    def admitted(self, model: str | None = None) -> Iterator[None]:
        """Stand for a request that is being read, computed and answered.

        Where the model is loaded and more critical than normal, the runtime is told that a request for it is on its
        way, so that no work of a lower level begins meanwhile (for at most 100 ms).
        """
        if self.draining:
            raise ServiceError(Status.UNAVAILABLE, "the server is about to end: ask another one")
        entry = None if model is None else self.repository.get(model)
        self._open += 1
        self._idle.clear()
        try:
            if entry is not None and entry.loaded is not None and entry.loaded.task.critical:
                with entry.loaded.hint():
                    yield
            else:
                yield
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()

    async def drained(self, timeout_s: float) -> bool:
        """Admit nothing from now on, and wait for what was admitted; whether all of it was answered in time."""
        self.draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def infer(self, call: InferCall, take: Callable[[int], None] = lambda size: None) -> InferResult:
        """Answer a request.

        Parameters
        ----------
        take
            Told of the bytes of shared memory that are read for it, before they are.
        """
        entry = self.entry(call.model, call.version)
        loaded = _loaded(entry)
        inputs = _in_order(loaded, call.inputs)
        wanted = _wanted(loaded, call.outputs)
        level = entry.level(call.priority)
        if call.timeout_us < 0:
            raise ServiceError(Status.INVALID, f"timeout is {call.timeout_us}: give microseconds, from 0")
        slots = {name: self.regions.slot(name, given.place) for name, given in call.inputs if isinstance(given, Shared)}
        take(sum(slot.place.size for slot in slots.values()))
        targets = self._targets(loaded, wanted, call.places)

        def submit() -> Response:
            return loaded.submit(
                *(
                    slots[spec.name].input(given) if isinstance(given, Shared) else usable(given)
                    for spec, given in zip(loaded.inputs, inputs, strict=True)
                ),
                criticality=level, timeout_ms=call.timeout_us / 1e3 if call.timeout_us else None, raw=True,
            )  # fmt: skip

        size = sum(given.place.size if isinstance(given, Shared) else given.nbytes for given in inputs)
        try:
            response = await self._copying.call(level, size, submit, lambda response: response.cancel())
            outputs: Sequence[Array] = await response.answered()
        except MiriamError as error:
            raise as_service_error(error) from error
        given = [(loaded.outputs[i].name, outputs[i]) for i in wanted]
        return InferResult(
            call.model, entry.version, call.id, response.number,
            [(name, await self._left(level, targets[name], out) if name in targets else out) for name, out in given],
            response.queue_us or 0.0, response.compute_us or 0.0,
        )  # fmt: skip

    def _targets(self, loaded: Loaded, wanted: Sequence[int], places: Mapping[str, Place]) -> Mapping[str, Slot]:
        """Where outputs go that are not in the answer; they have room there."""
        found = {}
        for spec in (loaded.outputs[i] for i in wanted):
            if (place := places.get(spec.name)) is not None:
                found[spec.name] = slot = self.regions.slot(spec.name, place)
                slot.check(math.prod(spec.shape) * DATATYPES[datatype_of(spec.dtype)].itemsize)
        return found

    async def _left(self, level: int, slot: Slot, array: Array) -> Shared:
        """An output that was left in shared memory."""
        await self._copying.call(level, array.nbytes, lambda: slot.write(to_binary(array)))
        return Shared(datatype_of(array.dtype), array.shape, replace(slot.place, size=array.nbytes))

    def close(self) -> None:
        """Let go of shared memory and of threads."""
        if self.regions.on:
            self.regions.unregister()
        self._copying.close()

    # What there is

    def metadata(self, model: str | None = None, version: str = "") -> dict[str, Any]:
        """The protocol's metadata, of the server or of a model, as its JSON has it."""
        if model is None:
            extensions = [*EXTENSIONS, *(("system_shared_memory",) if self.regions.on else ())]
            return {"name": "miriam", "version": miriam.__version__, "extensions": extensions}
        entry = self.entry(model, version)
        loaded = _loaded(entry)
        return {
            "name": model,
            "versions": [entry.version],
            "platform": f"miriam_{self.runtime.device.partition(':')[0].partition('/')[0]}",
            "inputs": [_tensor(spec) for spec in loaded.inputs],
            "outputs": [_tensor(spec) for spec in loaded.outputs],
        }

    def config(self, model: str, version: str = "") -> dict[str, Any]:
        """Triton's configuration of a model, as its JSON has it."""
        entry = self.entry(model, version)
        loaded, config = _loaded(entry), entry.config
        # Where Triton has these, in dynamic_batching, they would say that requests are put together.
        said = {
            "criticality": loaded.criticality,
            "deadline_ms": config.deadline_ms,
            "period_ms": config.period_ms,
            "priority_levels": len(entry.levels),
            "default_priority_level": entry.levels.index(config.criticality) + 1,
            "max_queue_size": config.queue,
            "default_timeout_microseconds": config.timeout_ms and round(config.timeout_ms * 1e3),
        }
        return {
            "name": model,
            "platform": self.metadata(model)["platform"],
            "backend": "miriam",
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": 0,
            "input": [_triton_tensor(spec) for spec in loaded.inputs],
            "output": [_triton_tensor(spec) for spec in loaded.outputs],
            "parameters": {name: {"string_value": str(value)} for name, value in said.items() if value is not None},
        }

    def statistics(self, model: str | None = None, version: str = "") -> Mapping[str, TaskStatistics]:
        """What was counted of a model, or of every model that is loaded, by name."""
        if model is not None:
            return {model: _loaded(self.entry(model, version)).statistics}
        return {name: entry.loaded.statistics for name, entry in self.repository.items() if entry.loaded is not None}

    def index(self, *, ready: bool = False) -> list[dict[str, str]]:
        """Every model with its state, or only those that are ready."""
        return [
            {"name": name, "version": entry.version, "state": entry.state, "reason": entry.reason}
            for name, entry in self.repository.items()
            if entry.ready or not ready
        ]

    async def load(self, model: str) -> None:
        """Load a model of the configuration file as that is now; one that is loaded is loaded anew."""
        if self.draining:
            raise ServiceError(Status.UNAVAILABLE, "the server is about to end: it loads nothing more")
        await self.repository.load(model)

    async def unload(self, model: str) -> None:
        """Answer what waits for a model, then forget it."""
        await self.repository.unload(model)

    def entry(self, model: str, version: str = "") -> Entry:
        """A model of the repository."""
        entry = self.repository.get(model)
        if entry is None:
            known = ", ".join(sorted(self.repository)) or "none"
            raise ServiceError(Status.NOT_FOUND, f"there is no model {model!r:.80}; this server has: {known}")
        if version not in ("", entry.version):
            raise ServiceError(
                Status.NOT_FOUND,
                f"model {model!r} has no version {version!r:.40}: ask for {entry.version!r}, or for none",
            )
        return entry


def _loaded(entry: Entry) -> Loaded:
    if entry.loaded is None or not entry.ready:
        reason = f" ({entry.reason})" if entry.reason else ""
        raise ServiceError(Status.UNAVAILABLE, f"model {entry.name!r} is {entry.state.lower()}{reason}")
    return entry.loaded


def _in_order(loaded: Loaded, given: Sequence[tuple[str, Array | Shared]]) -> list[Array | Shared]:
    """The inputs in the model's order; the runtime looks at their shapes."""
    arrays = dict(given)
    if len(arrays) != len(given):
        raise ServiceError(Status.INVALID, f"model {loaded.name!r} was given an input twice")
    names = [spec.name for spec in loaded.inputs]
    if arrays.keys() != set(names):
        said = ", ".join(f"{name!r:.40}" for name in list(arrays)[:20])
        raise ServiceError(
            Status.INVALID,
            f"model {loaded.name!r} takes the inputs {', '.join(map(repr, names))}; given: {said or 'none'}",
        )
    for spec in loaded.inputs:
        found = arrays[spec.name]
        want, have = datatype_of(spec.dtype), found.datatype if isinstance(found, Shared) else datatype_of(found.dtype)
        if want != have:
            raise ServiceError(Status.INVALID, f"input {spec.name!r} of model {loaded.name!r} is {want}, not {have}")
    return [arrays[name] for name in names]


def _wanted(loaded: Loaded, names: Sequence[str] | None) -> Sequence[int]:
    places = {spec.name: i for i, spec in enumerate(loaded.outputs)}
    if names is None:
        return range(len(places))
    unknown = [name for name in names if name not in places]
    if unknown or len(set(names)) != len(names):
        what = f"has no output {unknown[0]!r:.80}" if unknown else "was asked for an output twice"
        raise ServiceError(Status.INVALID, f"model {loaded.name!r} {what}; its outputs: {', '.join(map(repr, places))}")
    return [places[name] for name in names]


def _tensor(spec: Spec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype_of(spec.dtype), "shape": list(spec.shape)}


def _triton_tensor(spec: Spec) -> dict[str, Any]:
    datatype = datatype_of(spec.dtype)
    return {
        "name": spec.name,
        "data_type": f"TYPE_{'STRING' if datatype == 'BYTES' else datatype}",
        "dims": list(spec.shape),
    }
