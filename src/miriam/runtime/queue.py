"""Requests that wait: by level, and in a level by deadline."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Container, Iterator

from miriam.errors import QueueFullError
from miriam.runtime.response import Response

__all__ = ["Queue"]


class Queue:
    """Requests that have not gone to the device.

    The highest level goes first, and in a level the earliest deadline (EDF: Liu and Layland, "Scheduling Algorithms
    for Multiprogramming in a Hard-Real-Time Environment", JACM 1973); of equal ones the one that came first. What is
    taken out of the queue belongs to who took it: so each request has one end. Not thread-safe by itself.
    """

    def __init__(self) -> None:
        self._levels: dict[int, list[tuple[float, int, Response]]] = {}
        self._depths: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(map(len, self._levels.values()))

    def __iter__(self) -> Iterator[Response]:
        """In the order in which they will go, if every task can."""
        for level in sorted(self._levels, reverse=True):
            yield from (response for _, _, response in self._levels[level])

    def depth(self, task: str) -> int:
        """How many of a task wait."""
        return self._depths[task]

    def push(self, response: Response, most: int) -> None:
        """Put one in.

        Raises
        ------
        QueueFullError
            ``most`` of its task wait already.
        """
        name = response.name
        if self._depths[name] >= most:
            raise QueueFullError(f"{most} requests of {name} wait already: send fewer, or load it with a longer queue")
        insort(self._levels.setdefault(response.criticality, []), _key(response))
        self._depths[name] += 1

    def take(self, room: Callable[[int], bool], busy: Container[str]) -> Response | None:
        """Take out the first one that may go; None if there is none.

        Parameters
        ----------
        room
            Whether requests of a level may go.
        busy
            Tasks that may have no more of them on the device.
        """
        for level in sorted(self._levels, reverse=True):
            if not room(level):
                continue
            for _, _, response in self._levels[level]:
                if response.name not in busy:
                    self.remove(response)
                    return response
        return None

    def remove(self, response: Response) -> bool:
        """Take one out; whether it was there."""
        level, key = self._levels.get(response.criticality, []), _key(response)
        place = bisect_left(level, key)
        if place == len(level) or level[place][2] is not response:
            return False
        del level[place]
        self._depths[response.name] -= 1
        return True

    def take_all(self, which: Callable[[Response], bool]) -> list[Response]:
        """Take out those of a kind."""
        taken = [response for response in self if which(response)]
        for response in taken:
            self.remove(response)
        return taken

    @property
    def expiry_us(self) -> float:
        """When the first of them has waited too long; infinite if none ever has."""
        return min((response.expires_us for response in self), default=math.inf)


def _key(response: Response) -> tuple[float, int, Response]:
    return response.deadline_us, response.number, response
