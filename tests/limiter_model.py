"""Every interleaving of a few streams that hold a lane's limit down and let it go.

Each stream is a row of kernels and of words that the host writes. A kernel adds to ``pending``; then a
thread loads the limiter's words, one after the other, writes the limit, and does so again until it finds
what it wrote for. What it writes stays on its way as long as it likes, while the thread goes on to
load: only a fence waits for it. Each copy of the limit has threads of its own, which know nothing of
the others: here is one copy. What is promised:

    Whenever no kernel is under way, and none is to follow a word that the host wrote, ``pending`` is the sum
    of what the kernels added, and the copy is what the limiter says.

``LINES`` names what the kernels need for that: a search without one of them finds a way to a wrong copy.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

from miriam.elastic.state import ALL, Limiter

__all__ = ["LINES", "SETTINGS", "search"]

LINES = {
    "fence: change": "a fence between the change of pending and the first look",
    "fence: look": "a fence between what is written and the look behind it",
    "again": "what was written is looked at again",
    "count": "pending is raised and lowered in one step",
    "hold behind a word": "a kernel follows a word that the host wrote",
}

Action = int | tuple[str, int]  # what a kernel adds to ``pending``; or a word and what the host writes there
CRITICAL = (1, -1)

SETTINGS: dict[str, tuple[tuple[Action, ...], ...]] = {
    "two criticals": (CRITICAL, CRITICAL),
    "two criticals each": ((*CRITICAL, *CRITICAL), (*CRITICAL, *CRITICAL)),
    "held by another stream": ((1, 1), (-1, -1)),
    "held by another stream, once more": ((*CRITICAL, -1), (1,)),
    "another width": (CRITICAL, (("padded", 2), 0)),
    "a pause": (CRITICAL, (("idle", 0), 0, ("idle", 3), 0)),
    "three streams": (CRITICAL, CRITICAL, (("idle", 0), 0)),
}
LOADS = ("pending", "padded", "idle")


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread that sees to the copy: what it has loaded, what it wrote last, and what of that is on its way."""

    loaded: tuple[int, ...] = ()
    fenced: bool = False
    wrote: int | None = None
    on_its_way: int | None = None
    done: bool = False


@dataclass(frozen=True, slots=True)
class Stream:
    """Where a stream is: its next action; the kernel under way, what it has yet to add, and its thread."""

    next: int = 0
    adding: int | None = None
    read: int | None = None  # of a sum that is not made in one step
    thread: Thread | None = None


@dataclass(frozen=True, slots=True)
class State:
    """Memory and streams."""

    limiter: Limiter
    copy: int
    streams: tuple[Stream, ...]
    unsettled: bool = False  # the host wrote a word, and no kernel has begun since

    def at(self, index: int, stream: Stream) -> State:
        """With one stream elsewhere."""
        return replace(self, streams=(*self.streams[:index], stream, *self.streams[index + 1 :]))

    @property
    def quiet(self) -> bool:
        """Whether the promise holds here."""
        return not self.unsettled and all(stream.thread is None for stream in self.streams)


def _steps(state: State, actions: tuple[tuple[Action, ...], ...], without: frozenset[str]) -> Iterator[State]:
    for i, stream in enumerate(state.streams):
        if stream.thread is not None:
            yield from _kernel(state, i, stream, stream.thread, without)
        elif stream.next < len(actions[i]):
            action = actions[i][stream.next]
            if isinstance(action, int):
                begun = Stream(stream.next + 1, action, None, Thread())
                yield replace(state.at(i, begun), unsettled=False)
            else:
                word, value = action
                after = 2 if "hold behind a word" in without else 1
                written = replace(state, limiter=replace(state.limiter, **{word: value}), unsettled=after == 1)
                yield written.at(i, Stream(stream.next + after))


def _kernel(state: State, i: int, stream: Stream, thread: Thread, without: frozenset[str]) -> Iterator[State]:
    if stream.adding is not None:
        if "count" not in without:
            limiter = replace(state.limiter, pending=state.limiter.pending + stream.adding)
            yield replace(state, limiter=limiter).at(i, replace(stream, adding=None))
        elif stream.read is None:
            yield state.at(i, replace(stream, read=state.limiter.pending))
        else:
            limiter = replace(state.limiter, pending=stream.read + stream.adding)
            yield replace(state, limiter=limiter).at(i, replace(stream, adding=None, read=None))
    elif thread.done and thread.on_its_way is None:
        yield state.at(i, Stream(stream.next))
    if thread.on_its_way is not None:
        arrived = replace(stream, thread=replace(thread, on_its_way=None))
        yield replace(state, copy=thread.on_its_way).at(i, arrived)
    if not thread.done and (after := _thread(state.limiter, stream, thread, without)) is not None:
        yield state.at(i, replace(stream, thread=after))


def _thread(limiter: Limiter, stream: Stream, thread: Thread, without: frozenset[str]) -> Thread | None:
    """The thread one access further; None if it has to wait."""
    if not thread.fenced:
        change = stream.adding is not None and "fence: change" not in without
        look = thread.on_its_way is not None and "fence: look" not in without
        return None if change or look else replace(thread, fenced=True)
    loaded = (*thread.loaded, getattr(limiter, LOADS[len(thread.loaded)]))
    if len(loaded) < len(LOADS):
        return replace(thread, loaded=loaded)
    limit = Limiter(*loaded).limit
    if thread.wrote == limit:
        return replace(thread, loaded=(), done=True)
    return Thread(wrote=limit, on_its_way=limit, done="again" in without)


def search(name: str, without: frozenset[str] = frozenset()) -> tuple[int, State | None]:
    """Come to every state of a setting, or to the first that breaks the promise; how many were seen.

    Raises
    ------
    KeyError
        There is no such setting, or no such line.
    """
    if unknown := without - LINES.keys():
        raise KeyError(*unknown)
    actions = SETTINGS[name]
    limiter = Limiter(padded=1, idle=ALL)
    level = [State(limiter, limiter.limit, (Stream(),) * len(actions))]
    seen = set(level)
    while level:
        following = []
        for state in level:
            if state.quiet:
                ran = (a for row, stream in zip(actions, state.streams, strict=True) for a in row[: stream.next])
                pending = sum(action for action in ran if isinstance(action, int))
                if (state.limiter.pending, state.copy) != (pending, state.limiter.limit):
                    return len(seen), state
            for new in _steps(state, actions, without):
                if new not in seen:
                    seen.add(new)
                    following.append(new)
        level = following
    return len(seen), None


if __name__ == "__main__":
    for setting in SETTINGS:
        states, wrong = search(setting)
        print(f"{setting}: {states:,} states, {'holds' if wrong is None else wrong}")
        if wrong is not None:
            sys.exit(1)
