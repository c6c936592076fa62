"""The runtime: models are loaded into it, and asked."""

from __future__ import annotations

import atexit
import itertools
import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from miriam.coordinator import Listener, Policy
from miriam.device.base import Serving
from miriam.errors import ClosedError, RequestError, WorkloadError
from miriam.policy import check, create_serving
from miriam.policy.base import Joining, Setting
from miriam.profile import ProfileSource
from miriam.progress import Progress, silent
from miriam.runtime import forks
from miriam.runtime.caller import Caller
from miriam.runtime.desk import Desk, Entry
from miriam.runtime.devices import best, open_device
from miriam.runtime.gate import Gate, preempts
from miriam.runtime.loaded import Loaded, Office
from miriam.runtime.loop import Loop
from miriam.runtime.response import host_us
from miriam.runtime.statistics import TaskStatistics
from miriam.task import Criticality, Task

if TYPE_CHECKING:
    from miriam.runtime.models import Adopted

__all__ = ["Runtime"]

_Kept: TypeAlias = "tuple[Loaded, Adopted, Entry]"


class Runtime:
    """Several models on one device; those that are critical keep the latency that they have alone.

    From any thread. A thread of its own runs the device, and on ``cpu`` the models too.

    Parameters
    ----------
    device
        ``cuda:0``, ``cuda:0/16`` (of its SMs), ``cpu``, ``cpu/2`` (threads), or a model of a GPU, such as
        ``sim:orin``. None: the first GPU that can be used, or else ``cpu``.
    policy
        ``resident``, ``contract:1.05``, ``priority``, ``sequential`` or ``multistream``.
    levels
        Criticality levels that tasks and requests may have.
    store
        Where profiles are; None: the user's own measurements and those of the zoo.
    admission
        What is done about a task with which a deadline cannot be shown to hold: nothing, a warning, or
        :class:`~miriam.errors.AdmissionError`.
    keep
        Latencies of each task that its statistics look back on.
    progress
        Is told how far long work is, such as compiling a model.
    listeners
        Hear what the coordinator hears and does. One that has methods ``queued(response)``,
        ``offered(response, request)`` and ``answered(response)`` is told of each request, too, and one with
        ``opened(device, policy, lanes, zero_us)`` of the begin: ``zero_us`` is what :func:`time.perf_counter`
        showed, in us, when the clock of the device was at zero. They must be quick, and not call the runtime.

    Attributes
    ----------
    device, policy
        Names.

    Raises
    ------
    DeviceError, PolicyError
        There is none of that name; or tasks may not come and go under that policy.

    Examples
    --------
    >>> import numpy as np
    >>> with Runtime("cpu") as rt:
    ...     double = rt.load(lambda x: 2 * x, np.ones(3), name="double", criticality="critical")
    ...     double(np.arange(3.0))
    array([0., 2., 4.])
    """

    def __init__(
        self,
        device: str | None = None,
        *,
        policy: str = "resident",
        levels: Sequence[int] = (0, 1, 2, 3),
        store: ProfileSource | None = None,
        admission: Literal["off", "warn", "refuse"] = "warn",
        keep: int = 1000,
        progress: Progress = silent,
        listeners: Sequence[Listener] = (),
    ) -> None:
        if not levels or keep < 1:
            raise WorkloadError(f"levels {tuple(levels)}, {keep} latencies to keep: at least one of each is needed")
        check(policy)
        self.device = device or best()
        self.policy = policy
        self.levels: Sequence[int] = tuple(sorted({int(level) for level in levels}))
        self._keep, self._progress = keep, progress
        self._gate = Gate(admission, policy, self.device)
        self._door = threading.Lock()  # tasks come one at a time
        self._lock = threading.Lock()
        self._tasks: dict[str, _Kept] = {}
        self._loading: set[str] = set()
        self._caller = Caller()
        self._loop = Loop(
            lambda: open_device(self.device, store),
            self._make_policy,
            lambda request: self._desk.settle(request),
            lambda error: self._desk.fail(error),
            listeners,
        )
        self._desk = Desk(
            self._loop, lambda: self._device.now_us, self._device.depth, preempts=preempts(policy), witnesses=listeners
        )
        self._office = Office(
            self._desk, self._caller, itertools.count(), self.levels, lambda: self._loop.inside, self.unload
        )
        zero_us = host_us() - self._device.now_us
        for listener in listeners:
            if (opened := getattr(listener, "opened", None)) is not None:
                opened(self.device, policy, self._loop.policy.lanes, zero_us)
        self._forked = False
        forks.tell(self._abandon)
        atexit.register(self.close, drain=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of its results has to know."""
        with self._lock:
            of_models = [note for _, adopted, _ in self._tasks.values() for note in adopted.notes]
        return tuple(dict.fromkeys((*self._device.notes, *of_models)))

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests: it was closed, or the device or the policy failed."""
        return self._desk.closed

    def report(self) -> Mapping[str, float]:
        """What the policy has to say, such as how well a contract is held."""
        return self._loop.call(self._loop.policy.report)

    def load(
        self,
        model: Any,
        example: Any = None,
        *,
        name: str | None = None,
        criticality: int | str | Criticality = Criticality.NORMAL,
        deadline_ms: float | None = None,
        period_ms: float | None = None,
        queue: int = 64,
        timeout_ms: float | None = None,
        inputs: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
        replace: bool = False,
    ) -> Loaded:
        """Make a task of a model. Others run meanwhile.

        Parameters
        ----------
        model
            A module of PyTorch in ``eval()`` mode, a program or the path of its file, what ``torch.export`` gives,
            something that can be called, or a sequence of such things.
        example
            An array or tensor, or a sequence of them, where the model does not say by itself what it takes: shapes
            and types are fixed from now on.
        name
            Of the task; None: one that follows from the model.
        criticality
            A level, ``"normal"`` or ``"critical"``.
        deadline_ms
            Time from being submitted in which a request should be answered.
        period_ms
            Least time between two requests.
        queue
            Most requests that may wait.
        timeout_ms
            Time after which a request is given up if it still waits; None: never.
        inputs, outputs
            Names; ``input0``, ``output0`` and so on where the model has none.
        replace
            Take the place of the task that has the name, if there is one. That goes on until the new one could be
            made, and has answered what waits; if the new one cannot be had, it stays.

        Raises
        ------
        WorkloadError
            An option makes no sense, or another task has the name and is not to be replaced.
        CompileError, ProgramError, DeviceError
            The model cannot be run here.
        AdmissionError
            With this task a deadline cannot be shown to hold, and that is to be refused.
        ClosedError
            The runtime is closed.
        """
        level = self._level(criticality)
        times_us = {
            what: None if given is None else _positive(what, given) * 1e3
            for what, given in (("deadline_ms", deadline_ms), ("period_ms", period_ms), ("timeout_ms", timeout_ms))
        }
        if queue < 1:
            raise WorkloadError(f"a queue of {queue}: at least one request has to have room")
        from miriam.runtime.models import adopt

        if replace:
            self._check_outside()
        name, old = self._reserve(model, name, replace)
        try:
            adopted = adopt(model, example, self._device, name, inputs=inputs, outputs=outputs, progress=self._progress)
            task = Task(name, adopted.program, level, times_us["deadline_ms"], times_us["period_ms"])
            entry = Entry(name, level, queue, self._keep)
            timeout_us = times_us["timeout_ms"]
            loaded = Loaded(self._office, task, adopted, entry, math.inf if timeout_us is None else timeout_us)
            try:
                if old is not None and not self._take_out(old, drain=True):
                    old = None
                self._begin(loaded, adopted, entry)
            except BaseException:
                adopted.close()
                if old is not None:
                    self._put_back(old)
                raise
            if old is not None:
                old[1].close()
        finally:
            with self._lock:
                self._loading.discard(name)
        return loaded

    def unload(self, task: str | Loaded, *, drain: bool = True) -> None:
        """Let go of a task, once none of its requests is there. Others run meanwhile.

        Parameters
        ----------
        drain
            Answer the requests that wait; otherwise only those that are on the device.

        Raises
        ------
        KeyError
            There is none of that name.
        """
        self._check_outside()
        one = self._find(task if isinstance(task, str) else task.name)
        if not isinstance(task, str) and one[0] is not task:
            raise KeyError(f"another task has taken the place of {task.name!r}: unload that one, or nothing")
        if self._take_out(one, drain=drain):
            one[1].close()

    def statistics(self) -> Mapping[str, TaskStatistics]:
        """What is known of each task now."""
        with self._lock:
            entries = [entry for _, _, entry in self._tasks.values()]
        return {entry.name: self._desk.statistics(entry) for entry in entries}

    def close(self, *, drain: bool = True) -> None:
        """Take no more requests, answer those that are there, and give everything back; allowed twice.

        Parameters
        ----------
        drain
            Answer the requests that wait; otherwise only those that are on the device.
        """
        self._check_outside()
        if self._forked:
            return
        self._desk.close(drain=drain)
        self._loop.stop()
        with self._lock:
            adopted = [one for _, one, _ in self._tasks.values()]
            self._tasks.clear()
        for one in adopted:
            one.close()
        self._caller.close()
        atexit.unregister(self.close)

    def __getitem__(self, name: str) -> Loaded:
        return self._find(name)[0]

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._tasks))

    def __len__(self) -> int:
        return len(self._tasks)

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(drain=kind is None)

    def __repr__(self) -> str:
        return f"<Runtime on {self.device}, policy {self.policy}, tasks: {', '.join(self) or 'none'}>"

    def _abandon(self) -> None:
        """Leave everything to the process from which this one was forked; locks are as its threads had them."""
        self._forked = self._loop.ended = True
        self._lock = threading.Lock()
        self._desk.abandon()
        atexit.unregister(self.close)

    @property
    def _device(self) -> Serving:
        return self._loop.device

    def _make_policy(self, device: Serving) -> Policy:
        return create_serving(self.policy, Setting((), device.geometry, {}, device.command_us, self.levels))

    def _level(self, criticality: int | str) -> int:
        if isinstance(criticality, str):
            named = {level.name.lower(): level for level in Criticality}
            if criticality not in named:
                raise WorkloadError(f"criticality {criticality!r}: take {', '.join(named)} or a number")
            criticality = named[criticality]
        if criticality not in self.levels:
            levels = ", ".join(map(str, self.levels))
            raise WorkloadError(f"criticality {criticality!r}: this runtime has the levels {levels}")
        return int(criticality)

    def _reserve(self, model: Any, name: str | None, replace: bool) -> tuple[str, _Kept | None]:
        """A name that no other task has or will have, but for the one that is to be replaced."""
        with self._lock:
            if self.closed:
                raise ClosedError("the runtime is closed: make another one")
            taken = self._loading | self._tasks.keys()
            if name is None:
                plain = _name_of(model)
                name = next(n for i in itertools.count(1) if (n := plain if i == 1 else f"{plain}-{i}") not in taken)
            elif not name or name in (self._loading if replace else taken):
                raise WorkloadError(f"there is a task {name!r} already: unload it, or take another name")
            self._loading.add(name)
            return name, self._tasks.get(name)

    def _begin(self, loaded: Loaded, adopted: Adopted, entry: Entry) -> None:
        """Let a task in."""
        task = loaded.task
        self._device.prepare(task, adopted.bound)
        try:
            with self._door:
                self._gate.admit(task, [one.task for one, _, _ in tuple(self._tasks.values())], self._device)
                policy = self._loop.policy
                if isinstance(policy, Joining):
                    self._loop.post(lambda: policy.join(task))
                with self._lock:
                    if self.closed:
                        raise ClosedError("the runtime was closed while this was loaded")
                    self._desk.admit(entry)
                    self._tasks[task.name] = loaded, adopted, entry
        except BaseException:
            self._device.forget(task)
            raise

    def _take_out(self, one: _Kept, *, drain: bool) -> bool:
        """Let a task out; whether it was this call that did."""
        loaded, _, entry = one
        name = loaded.name
        self._desk.dismiss(entry, drain=drain)
        with self._lock:
            if self._tasks.get(name) is not one:
                return False  # somebody else was faster
            del self._tasks[name]
            reserved = name in self._loading
            self._loading.add(name)  # until it is gone
        try:
            self._leave(loaded.task)
        finally:
            if not reserved:
                with self._lock:
                    self._loading.discard(name)
        return True

    def _put_back(self, one: _Kept) -> None:
        """Let in again what was let out for another one, which could not be let in."""
        try:
            self._begin(*one)
        except BaseException:
            one[1].close()
            raise

    def _leave(self, task: Task) -> None:
        policy = self._loop.policy
        if isinstance(policy, Joining):
            self._loop.post(lambda: policy.leave(task))
        if not self._loop.ended:  # with the device goes all of its memory
            self._device.forget(task)

    def _check_outside(self) -> None:
        if self._loop.inside:
            raise RequestError("a model waits for its own end here: unload and close from another thread")

    def _find(self, name: str) -> _Kept:
        found = self._tasks.get(name)
        if found is None:
            raise KeyError(f"no task {name!r} is loaded; there are: {', '.join(self) or 'none'}")
        return found


def _positive(what: str, given_ms: float) -> float:
    if not 0 < given_ms < math.inf:
        raise WorkloadError(f"{what} is {given_ms}: give milliseconds above zero")
    return given_ms


def _name_of(model: Any) -> str:
    """What a model may be called that was given no name."""
    if isinstance(model, str) or hasattr(model, "__fspath__"):
        return re.sub(r"[^\w.-]+", "-", re.sub(r".*[/\\:]|\.miriam$", "", str(model))).strip("-") or "model"
    for found in (getattr(model, "name", None), getattr(model, "__name__", None)):
        if isinstance(found, str) and re.fullmatch(r"[\w.-]+", found):
            return found
    return type(model).__name__.lower()
