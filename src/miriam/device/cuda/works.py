"""Tasks on a GPU, which may come and go."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from miriam.device.cuda.bound import Bound
from miriam.device.cuda.place import Place
from miriam.device.cuda.transfer import Staged
from miriam.device.cuda.work import Codes, Work
from miriam.elastic.dealing import share_sizes
from miriam.errors import ClosedError, DeviceError
from miriam.profile import ProfileSource
from miriam.program import Program
from miriam.task import Task

__all__ = ["Works"]


class Works:
    """Makes the work of tasks, one for each place in which they run, and keeps it. From any thread.

    Parameters
    ----------
    model
        Of the GPU, as profiles know it.
    profiles, verify, bound
        See :class:`miriam.device.cuda.device.CudaDevice`.

    Attributes
    ----------
    making
        A lock that is held while something is made or given back.
    """

    def __init__(
        self, codes: Codes, model: str, profiles: ProfileSource, *, verify: bool, bound: Iterable[Bound]
    ) -> None:  # fmt: skip
        self._codes = codes
        self._model = model
        self._profiles = profiles
        self._verify = verify
        self._bound = {id(one.program): one for one in bound}
        self._works: dict[tuple[str, Place], Work] = {}
        self.making = threading.RLock()
        self._made = 0

    def __iter__(self) -> Iterator[tuple[str, Work]]:
        for (task, _), work in list(self._works.items()):
            yield task, work

    def bound(self, program: Program) -> Bound | None:
        """What runs a program that is there already."""
        return self._bound.get(id(program))

    def find(self, task: Task, place: Place) -> Work | None:
        """The work of a task in a place, if it has been made.

        Raises
        ------
        DeviceError
            It is that of another task.
        """
        work = self._works.get((task.name, place))
        if work is not None and work.program is not task.program:
            raise DeviceError(f"two tasks have the name {task.name!r}: give each a name of its own")
        return work

    def make(self, task: Task, place: Place) -> Work:
        """The same, made if need be."""
        with self.making:
            if (work := self.find(task, place)) is not None:
                return work
            self._check_alone(task)
            sizes = share_sizes(task.program, self._profiles, self._model, place.sms)
            bound = self.bound(task.program)
            verify = self._verify and bound is None
            work = Work(self._codes, place, task.program, sizes, seed=self._made, verify=verify, bound=bound)
            self._made += 1
            self._works[task.name, place] = work
            return work

    def prepare(self, task: Task, place: Place, bound: Bound | None) -> None:
        """Load everything that a task needs, so that its first request finds it."""
        with self.making, self._codes.gpu.visited():
            if bound is not None:
                if bound.program is not task.program:
                    raise DeviceError(f"task {task.name} has another program than what it is bound to")
                self._bound[id(task.program)] = bound
            self.find(task, place)  # or what another one has would be given back
            try:
                self.make(task, place).load(warm=task.critical)
            except BaseException:
                self.forget(task)
                raise

    def stage(self, task: Task, place: Place, inputs: Sequence[Any]) -> Staged:
        """Take the inputs of a request."""
        work = self.find(task, place)
        if work is None:
            raise ClosedError(f"{task.name} is not there (any more)")
        return work.transfer.stage(inputs)

    def forget(self, task: Task) -> list[Work]:
        """Give back what a task has, and what code no other needs; the works that are no more."""
        with self.making, self._codes.gpu.visited():
            gone = [self._works.pop(key) for key in list(self._works) if key[0] == task.name]
            for work in gone:
                work.close()
            left = [work.program for work in self._works.values()]
            if all(program is not task.program for program in left):
                self._bound.pop(id(task.program), None)
            if all(program.digest != task.program.digest for program in left):
                self._codes.drop(task.program)
            return gone

    def close(self) -> None:
        """Give everything back."""
        with self.making:
            for work in self._works.values():
                work.close()
            self._works.clear()

    def _check_alone(self, task: Task) -> None:
        """Refuse a task that would run in the memory of another one."""
        for (name, _), work in self._works.items():
            if name != task.name and work.program is task.program and id(task.program) in self._bound:
                raise DeviceError(
                    f"{task.name} and {name} are one live program, {task.program.name}, in whose memory one inference "
                    "at a time has room: make one for each task"
                )
