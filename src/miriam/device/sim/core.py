"""The engine: blocks on SMs, event by event, compiled with Numba over flat arrays.

What it models of the hardware:

* An SM holds blocks of whatever launches as long as threads, registers, shared memory and block
  slots last. A block that runs is never evicted.
* A launch places its blocks breadth first, each on the SM that has most room for more of them.
* Only the head launches of the queues (lanes) can place blocks: those of a higher priority first,
  those of one priority in the order in which they became ready; while one has blocks left that do not
  fit, none behind it places any (Amert et al., "GPU Scheduling on the NVIDIA TX2: Hidden Details
  Revealed", RTSS 2017). One that may use only some of the SMs keeps nobody waiting.
* Shared memory and L1 of an SM are one memory, split as its first block wants it; while blocks are there, it
  stays so.
* A launch follows the one before it later when other lanes have work. A pass that its workers have left
  walks over its other launches, and launches of other lanes wait for that; or it stays where it is, and walks when
  its lane may go on (:mod:`miriam.elastic.pauses`).
* A lane with a partition uses the SMs of that, any other lane all SMs.
* An elastic worker keeps its place on the SM and takes one logical block after another. It leaves at
  the end of a block when a limit of its lane leaves that SM out; others come where the
  lane may stay. A run that all of them left is launched again when its lane may go on, and has to pass
  its complete launches. One that is cut walks within a span.

What one block costs and how company stretches it: :mod:`miriam.device.sim.costs`.

Blocks of one launch on one SM advance at one rate, so each pair of SM and lane (a *cell*) keeps one
virtual clock, which counts blocks' durations, and a queue of (end, count) in order: a wave of equal
blocks costs as much as one block. Everything lives in the arrays of
:class:`~miriam.device.sim.state.State`; Python is needed only when a run ends or yields, and at the
time that the caller named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit

from miriam.device.sim import state as col
from miriam.device.sim.state import ALL, NONE, State

__all__ = ["advance"]

_F = TypeVar("_F", bound=Callable[..., Any])
_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "no_cfunc_wrapper": True}


def _compiled(function: _F) -> _F:
    compiled: _F = njit(**_OPTIONS)(function)
    return compiled


def _inner(function: _F) -> _F:
    """For what only compiled code calls: no way in from Python, which would take long to compile."""
    compiled: _F = njit(**{**_OPTIONS, "no_cpython_wrapper": True})(function)
    return compiled


_TOGETHER_US = 1e-6  # what lies closer than this is one event: rounding must not tear a wave apart
_SLACK = 0.005  # share of stretch^2 by which loads on memory may change before all rates are set anew
_FLOOR = 2.0**-4


@_inner
def _sync(st: State, s: int, t: float) -> None:
    """Bring the clocks of SM ``s`` to ``t``."""
    passed = t - st.synced[s]
    if passed > 0.0:
        for k in range(st.lane.shape[0]):
            if st.held[s, k] > 0:
                st.clock[s, k] += passed * st.rate[s, k]
    st.synced[s] = t


@_inner
def _pace(st: State, s: int) -> None:
    """Set the rates of SM ``s``, whose clocks are synced, and its next end."""
    load = 0.0
    for k in range(st.lane.shape[0]):
        if st.held[s, k] > 0:
            load += st.held[s, k] * st.cost[st.lane[k, col.ROW], col.SM]
    load_square = load * load
    due = np.inf
    for k in range(st.lane.shape[0]):
        if st.held[s, k] > 0:
            row = st.lane[k, col.ROW]
            stretch_square = (
                st.cost[row, col.REST]
                + load_square
                + st.cost[row, col.DRAM_WEIGHT] * st.now[col.DRAM_SQUARE]
                + st.cost[row, col.L2_WEIGHT] * st.now[col.L2_SQUARE]
            )
            rate = 1.0 / (st.cost[row, col.DURATION] * np.sqrt(max(stretch_square, _FLOOR)))
            st.rate[s, k] = rate
            due = min(due, st.synced[s] + max(st.ends[s, k, st.head[s, k]] - st.clock[s, k], 0.0) / rate)
    st.due[s] = due
    st.touched[s] = 0


@_inner
def _add(st: State, s: int, k: int, blocks: int) -> None:
    """Begin ``blocks`` logical blocks in a cell whose clock is synced."""
    size = st.ends.shape[2]
    end = st.clock[s, k] + 1.0
    at = (st.head[s, k] + st.kept[s, k] - 1) % size
    if st.kept[s, k] > 0 and st.ends[s, k, at] == end:
        st.sizes[s, k, at] += blocks
    else:
        at = (at + 1) % size
        st.ends[s, k, at] = end
        st.sizes[s, k, at] = blocks
        st.kept[s, k] += 1


@_inner
def _occupy(st: State, s: int, k: int, blocks: int) -> None:
    """Take (or with a negative number give back) the resources of physical blocks."""
    row, slots = st.lane[k, col.ROW], st.ends.shape[2]
    if st.free[s, col.SLOTS] == slots:
        st.total[col.ACTIVE] += 1
        st.free[s, col.SHARED] = st.need[row, col.CARVEOUT]
    for i in range(4):
        st.free[s, i] -= blocks * st.need[row, i]
    if st.free[s, col.SLOTS] == slots:
        st.total[col.ACTIVE] -= 1
        st.free[s, col.SHARED] = st.total[col.SHARED_SIZE]
    st.held[s, k] += blocks
    st.lane[k, col.RUNNING] += blocks
    st.total[col.WARPS] += blocks * st.need[row, col.WARP_COUNT]
    st.touched[s] = 1


@_inner
def _paused(st: State, k: int) -> bool:
    """Whether a launch of an elastic run is under way in a lane with a limit of zero."""
    if st.lane[k, col.PHASE] != col.OPEN or st.lane[k, col.LIMIT] > 0:
        return False
    elastic: bool = st.run[st.lane[k, col.HEAD], col.WORKER_COUNT] != NONE
    return elastic


@_inner
def _wanted(st: State, k: int) -> int:
    """Physical blocks that a lane would place now."""
    if st.lane[k, col.PHASE] != col.OPEN:
        return 0
    waiting: int = st.lane[k, col.WAITING]
    if st.lane[k, col.WORKERS] < ALL:
        more: int = st.lane[k, col.WORKERS] - st.lane[k, col.RUNNING]
        return min(waiting, more)
    if _paused(st, k) and waiting == st.lane[k, col.LEFT]:
        return 0  # a launch that only runs whole does not begin in a paused lane
    return waiting


@_inner
def _place(st: State, k: int, wanted: int) -> int:
    """Place up to ``wanted`` blocks of a lane; how many found no room."""
    row = st.lane[k, col.ROW]
    begin, end = st.lane[k, col.FROM_SM], st.lane[k, col.END_SM]
    everywhere, most = 0, 0
    for s in range(begin, end):
        room = 0
        if st.touched[s] or not st.lane[k, col.BLOCKED]:
            room = st.free[s, col.SLOTS]
            for i in range(3):
                if st.need[row, i] > 0:
                    room = min(room, st.free[s, i] // st.need[row, i])
        st.room[s] = room
        everywhere += room
        most = max(most, room)
    left = wanted
    while left > 0 and most > 0:
        for s in range(begin, end):
            if st.room[s] == most:
                take = most if everywhere <= wanted else 1
                _sync(st, s, st.now[col.TIME])
                _add(st, s, k, take)
                _occupy(st, s, k, take)
                st.room[s] -= take
                left -= take
                if left == 0:
                    break
        most -= 1
    if left < wanted:
        st.lane[k, col.WAITING] -= wanted - left
        run = st.lane[k, col.HEAD]
        if np.isnan(st.began[k]):
            st.began[k] = st.now[col.TIME]
        if np.isnan(st.started[run]):
            st.started[run] = st.now[col.TIME]
    return left


@_inner
def _place_all(st: State) -> None:
    """Let the lanes place blocks in their order, up to the first that has some left."""
    lanes = st.lane.shape[0]
    free = True
    for k in range(lanes):
        st.lane[k, col.TURN] = _wanted(st, k)
    for _ in range(lanes):
        first = lanes
        for k in range(lanes):
            if st.lane[k, col.TURN] > 0 and (
                first == lanes
                or st.lane[k, col.PRIORITY] > st.lane[first, col.PRIORITY]
                or (st.lane[k, col.PRIORITY] == st.lane[first, col.PRIORITY] and st.ready[k] < st.ready[first])
            ):
                first = k
        if first == lanes:
            break
        left = 0
        if free:
            left = _place(st, first, st.lane[first, col.TURN])
            free = left == 0 or st.lane[first, col.END_SM] - st.lane[first, col.FROM_SM] < st.free.shape[0]
        st.lane[first, col.TURN] = -1 if left > 0 else 0
    for k in range(lanes):
        # Only a lane that has just found every SM full may look at the changed ones alone next time.
        st.lane[k, col.BLOCKED] = 1 if st.lane[k, col.TURN] < 0 else 0


@_inner
def _gap(st: State, k: int) -> float:
    """From now to the next launch of a lane: longer if another lane is at work."""
    walk, company = 0.0, 0.0
    for j in range(st.lane.shape[0]):
        if j != k and st.lane[j, col.PHASE] != col.EMPTY:
            if st.lane[j, col.SAID] and st.lane[j, col.PHASE] == col.OPEN:
                walk = max(walk, st.timer[j] - st.now[col.TIME])
            else:
                company = st.now[col.COMPANY]
    gap: float = st.cost[st.lane[k, col.ROW], col.GAP] + company + walk
    return gap


@_inner
def _begin(st: State) -> None:
    """Start the runs that can start, and make the limits of all that are under way hold."""
    lanes = st.lane.shape[0]
    for k in range(lanes):
        run = st.lane[k, col.HEAD]
        if st.lane[k, col.PHASE] == col.EMPTY and run != NONE and st.run[run, col.WAITS] == 0:
            st.lane[k, col.PHASE] = col.BETWEEN
            st.lane[k, col.STEP] = 0
            st.lane[k, col.ROW] = st.run[run, col.FIRST_ROW]
            start = st.now[col.RUN_US]
            if st.run[run, col.WORKER_COUNT] != NONE:
                start += st.now[col.ELASTIC]
            st.timer[k] = st.now[col.TIME] + start + _gap(st, k)
    for k in range(lanes):
        limit = st.lane[k, col.BASE]
        for j in range(lanes):
            if st.lane[j, col.PHASE] != col.EMPTY:
                limit = min(limit, st.limits[st.lane[j, col.HEAD], k])
        if limit > st.lane[k, col.LIMIT]:
            st.lane[k, col.BLOCKED] = 0  # SMs that it may use now have not changed otherwise
        if limit > st.lane[k, col.LIMIT] and st.lane[k, col.PHASE] == col.OPEN:
            if st.lane[k, col.SAID]:  # everybody left: the run is launched again and passes what is complete
                st.lane[k, col.PHASE] = col.BETWEEN
                again = st.lane[k, col.OWED] * st.now[col.SKIP] + st.cost[st.lane[k, col.ROW], col.GAP]
                st.timer[k] = max(st.now[col.TIME], st.timer[k]) + again
            elif st.lane[k, col.WORKERS] < ALL:
                st.ready[k] = st.now[col.TIME]
        st.lane[k, col.LIMIT] = limit
        st.lane[k, col.END_SM] = st.lane[k, col.TO_SM]
        if st.lane[k, col.WORKERS] < ALL:
            st.lane[k, col.END_SM] = min(st.lane[k, col.TO_SM], st.lane[k, col.FROM_SM] + limit)


@_inner
def _blocks(st: State, k: int) -> int:
    """Logical blocks of the launch, or the shard of it, that a lane is at."""
    blocks: int = st.run[st.lane[k, col.HEAD], col.SHARD]
    if blocks == NONE:
        blocks = st.need[st.lane[k, col.ROW], col.GRID]
    return blocks


@_inner
def _open(st: State, k: int) -> None:
    """Make the launch of a lane ready to place blocks, or to go on after a pause."""
    st.lane[k, col.PHASE] = col.OPEN
    st.lane[k, col.BLOCKED] = 0
    st.ready[k] = st.now[col.TIME]
    if st.lane[k, col.SAID]:
        st.lane[k, col.SAID] = 0
        return
    run, row = st.lane[k, col.HEAD], st.lane[k, col.ROW]
    blocks = _blocks(st, k)
    rigid = st.run[run, col.WORKER_COUNT] == NONE or st.need[row, col.RIGID]
    st.lane[k, col.WAITING] = blocks
    st.lane[k, col.LEFT] = blocks
    st.lane[k, col.WORKERS] = ALL if rigid else st.run[run, col.WORKER_COUNT]
    st.began[k] = np.nan


@_inner
def _finish(st: State, s: int) -> None:
    """Take off SM ``s`` the blocks that end now; workers that may stay begin their next block."""
    _sync(st, s, st.now[col.TIME])
    size = st.ends.shape[2]
    for k in range(st.lane.shape[0]):
        if st.held[s, k] == 0:
            continue
        done = 0
        reached = st.clock[s, k] + st.rate[s, k] * _TOGETHER_US
        while st.kept[s, k] > 0 and st.ends[s, k, st.head[s, k]] <= reached:
            done += st.sizes[s, k, st.head[s, k]]
            st.head[s, k] = (st.head[s, k] + 1) % size
            st.kept[s, k] -= 1
        if done == 0:
            continue
        st.lane[k, col.LEFT] -= done
        st.total[col.BLOCKS] += done
        stay = 0
        if st.lane[k, col.WORKERS] < ALL and s < st.lane[k, col.END_SM]:
            stay = min(done, st.lane[k, col.WAITING])
        if stay > 0:
            st.lane[k, col.WAITING] -= stay
            _add(st, s, k, stay)
        if stay < done:
            _occupy(st, s, k, stay - done)
        if st.held[s, k] == 0:
            st.clock[s, k] = 0.0
    st.touched[s] = 1


@_inner
def _tell(st: State, k: int) -> None:
    st.out[st.total[col.OUT], 0] = st.lane[k, col.HEAD]
    st.out[st.total[col.OUT], 1] = st.lane[k, col.LEFT]
    st.total[col.OUT] += 1


@_inner
def _close(st: State, k: int) -> None:
    """End the launch of a lane, and its run if that was the last."""
    run, t = st.lane[k, col.HEAD], st.now[col.TIME]
    if st.now[col.TRACE_FROM] <= t <= st.now[col.TRACE_TO]:
        at = st.total[col.SPANS]
        st.spans[at, 0] = run
        st.spans[at, 1] = st.run[run, col.FIRST_STEP] + st.lane[k, col.STEP]
        st.spans[at, 2] = _blocks(st, k)
        st.spans_at[at, 0] = st.began[k]
        st.spans_at[at, 1] = t
        st.total[col.SPANS] += 1
    st.lane[k, col.STEP] += 1
    if st.lane[k, col.STEP] < st.run[run, col.STEPS]:
        st.lane[k, col.PHASE] = col.BETWEEN
        st.lane[k, col.ROW] += 1
        st.timer[k] = t + _gap(st, k)
        if st.run[run, col.CUT] and st.need[st.lane[k, col.ROW], col.FRONT] == 0:
            st.timer[k] += st.now[col.SPAN_US]
        return
    _tell(st, k)
    st.lane[k, col.PHASE] = col.EMPTY
    st.lane[k, col.HEAD] = st.run[run, col.NEXT]
    if st.lane[k, col.HEAD] == NONE:
        st.lane[k, col.TAIL] = NONE


@_inner
def _leave(st: State, k: int) -> None:
    """Let a pass without workers walk over the launches behind, now or, where it stays, when it goes on."""
    run, row = st.lane[k, col.HEAD], st.lane[k, col.ROW]
    front = st.lane[k, col.STEP]
    behind = st.run[run, col.STEPS] - front - 1
    if st.run[run, col.CUT]:
        front, behind = st.need[row, col.FRONT], st.need[row, col.BEHIND]
        if front == 0 and np.isnan(st.began[k]):
            behind = 0  # nothing of this span is under way: it waits at its gate
    meanwhile = 0 if st.lane[k, col.STAYS] else behind
    st.lane[k, col.OWED] = front + behind - meanwhile
    st.timer[k] = st.now[col.TIME] + meanwhile * st.now[col.SKIP]


@_inner
def _settle(st: State) -> None:
    """After a change: start runs, place blocks, say which lanes are paused, set the new rates."""
    lanes, sms = st.lane.shape[0], st.free.shape[0]
    _begin(st)
    _place_all(st)
    dram, l2 = 0.0, 0.0
    for k in range(lanes):
        if st.lane[k, col.RUNNING] > 0:
            dram += st.lane[k, col.RUNNING] * st.cost[st.lane[k, col.ROW], col.DRAM]
            l2 += st.lane[k, col.RUNNING] * st.cost[st.lane[k, col.ROW], col.L2]
        elif _paused(st, k) and not st.lane[k, col.SAID]:
            st.lane[k, col.SAID] = 1
            _leave(st, k)
            _tell(st, k)
    dram_square, l2_square = dram * dram, l2 * l2
    everywhere = False
    for k in range(lanes):
        if st.lane[k, col.RUNNING] > 0:
            row = st.lane[k, col.ROW]
            of_dram, of_l2 = st.cost[row, col.DRAM_WEIGHT], st.cost[row, col.L2_WEIGHT]
            change = of_dram * abs(dram_square - st.now[col.DRAM_SQUARE]) + of_l2 * abs(
                l2_square - st.now[col.L2_SQUARE]
            )
            if change > _SLACK * (st.cost[row, col.REST] + of_dram * dram_square + of_l2 * l2_square):
                everywhere = True
    if everywhere:
        st.now[col.DRAM_SQUARE] = dram_square
        st.now[col.L2_SQUARE] = l2_square
    changed = False
    for s in range(sms):
        if st.touched[s] or everywhere:
            changed = changed or st.touched[s]
            _sync(st, s, st.now[col.TIME])
            _pace(st, s)
    if changed and st.now[col.TRACE_FROM] <= st.now[col.TIME] <= st.now[col.TRACE_TO]:
        at = st.total[col.SAMPLES]
        st.samples_at[at] = st.now[col.TIME]
        for k in range(lanes):
            st.samples[at, k] = st.lane[k, col.RUNNING] * st.need[st.lane[k, col.ROW], col.THREADS]
        st.total[col.SAMPLES] += 1
    st.total[col.DIRTY] = 0


@_inner
def _pass(st: State, t: float) -> None:
    """Let time go on to ``t`` and sum up how full the device was until then."""
    passed = t - st.now[col.TIME]
    if st.total[col.ACTIVE] > 0:
        st.now[col.BUSY] += passed
        st.now[col.SM_TIME] += passed * st.total[col.ACTIVE]
        st.now[col.WARP_TIME] += passed * st.total[col.WARPS]
    st.now[col.TIME] = t


@_compiled
def advance(st: State, stop: float) -> int:
    """Run until ``stop`` (us), or until Python has to know something.

    Returns
    -------
    REACHED: it is ``stop``. VISIBLE: runs ended or yielded, ``out`` names them. IDLE: nothing is left to
    happen by itself. FULL: spans or samples have to be taken away first. In all cases calling it again
    goes on from there.
    """
    lanes, sms = st.lane.shape[0], st.free.shape[0]
    while True:
        if st.total[col.DIRTY]:
            _settle(st)
            if st.total[col.OUT] > 0:
                return col.VISIBLE
        if st.total[col.SAMPLES] >= st.samples.shape[0] or st.total[col.SPANS] + lanes > st.spans.shape[0]:
            return col.FULL
        t = np.inf
        for s in range(sms):
            t = min(t, st.due[s])
        for k in range(lanes):
            if st.lane[k, col.PHASE] == col.BETWEEN:
                t = min(t, st.timer[k])
        t = max(t, st.now[col.TIME])
        if t > stop or t == np.inf:
            if stop < np.inf:
                _pass(st, max(stop, st.now[col.TIME]))
            return col.IDLE if t == np.inf else col.REACHED
        _pass(st, t)
        for k in range(lanes):
            if st.lane[k, col.PHASE] == col.BETWEEN and st.timer[k] <= t + _TOGETHER_US:
                _open(st, k)
        for s in range(sms):
            if st.due[s] <= t + _TOGETHER_US:
                _finish(st, s)
        for k in range(lanes):
            if st.lane[k, col.PHASE] == col.OPEN and st.lane[k, col.LEFT] == 0:
                _close(st, k)
        st.total[col.DIRTY] = 1
        if st.total[col.OUT] > 0:
            return col.VISIBLE
