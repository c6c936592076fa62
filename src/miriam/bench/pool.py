"""Points side by side, in processes of their own, or one after another."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from miriam.bench.mps import Mps
from miriam.bench.outside import regime, run_outside
from miriam.bench.point import Job, Outcome, run_point
from miriam.errors import MiriamError

__all__ = ["Progress", "named", "processors", "run_one", "side_by_side"]

Progress = Callable[[int, int, str], None]
"""Called with (points done, points in all, label of the point that was done)."""


def run_one(job: Job, mps: Mps) -> Outcome:
    """Run a point in this process or, where the policy is one of the driver, outside; errors carry its name."""
    with named(job.label):
        if regime(job.policy) is not None:
            return run_outside(job, mps)
        mps.stop()
        return run_point(job)


def side_by_side(todo: Sequence[Job], jobs: int, progress: Progress) -> list[Outcome]:
    """Outcomes in the order of ``todo``, from at most so many processes."""
    if min(jobs, len(todo)) == 1:
        outcomes = []
        for i, job in enumerate(todo):
            with named(job.label):
                outcomes.append(run_point(job))
            progress(i + 1, len(todo), job.label)
        return outcomes
    with _pool(min(jobs, len(todo))) as pool:
        pending: dict[Future[Outcome], int] = {pool.submit(run_point, job): i for i, job in enumerate(todo)}
        done: dict[int, Outcome] = {}
        for future in as_completed(pending):
            i = pending[future]
            with named(todo[i].label):
                done[i] = future.result()
            progress(len(done), len(todo), todo[i].label)
        return [done[i] for i in range(len(todo))]


@contextmanager
def named(label: str) -> Iterator[None]:
    """Put the name of a point before the message of an error."""
    try:
        yield
    except BrokenProcessPool as error:
        raise MiriamError(
            f"{label}: a worker process died: try again with fewer jobs if memory is short, and put what a script "
            "does under 'if __name__ == \"__main__\":'"
        ) from error
    except MiriamError as error:
        raise type(error)(f"{label}: {error}") from error
    except Exception as error:
        raise MiriamError(f"{label}: {type(error).__name__}: {error}") from error


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _pool(jobs: int) -> Iterator[Executor]:
    """Worker processes that end with the block, at once if it ends in an error."""
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_quiet_interrupt)
    try:
        yield pool
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _quiet_interrupt() -> None:
    """Let Ctrl-C end a worker without a traceback of its own."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
