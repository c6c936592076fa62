"""The state of the engine: flat arrays, their columns, and how they are made and enlarged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from miriam.device.base import Lane
from miriam.device.sim.costs import BlockCost
from miriam.device.sim.spec import Spec
from miriam.elastic.pauses import spans

__all__ = ["ALL", "NONE", "State", "add_rows", "grow_runs", "new_state"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ALL = 1 << 40
"""No limit."""
NONE = -1
"""No run, no launch."""

# What `advance` returns.
REACHED, VISIBLE, IDLE, FULL = 0, 1, 2, 3
# Columns of `now`.
(TIME, BUSY, SM_TIME, WARP_TIME, DRAM_SQUARE, L2_SQUARE, TRACE_FROM, TRACE_TO, SKIP, RUN_US, ELASTIC, COMPANY,
 SPAN_US) = range(13)  # fmt: skip
# Columns of `total`.
BLOCKS, WARPS, ACTIVE, DIRTY, SAMPLES, SPANS, OUT, SHARED_SIZE = range(8)
# Columns of `cost` (floats) and of `need` (integers); `need` starts with the four resources of an SM;
# FRONT and BEHIND are the launches of its span in front of and behind a launch, where its program is cut.
GAP, DURATION, SM, DRAM, L2, DRAM_WEIGHT, L2_WEIGHT, REST = range(8)
THREADS, REGISTERS, SHARED, SLOTS, WARP_COUNT, GRID, RIGID, CARVEOUT, FRONT, BEHIND = range(10)
# Columns of `lane`.
(PRIORITY, BASE, LIMIT, HEAD, TAIL, PHASE, STEP, ROW, WAITING, RUNNING, LEFT, WORKERS, SAID, BLOCKED, TURN,
 FROM_SM, TO_SM, END_SM, STAYS, OWED) = range(20)  # fmt: skip
LANE_COLUMNS = 20
# Columns of `run`.
LANE, NEXT, WAITS, FIRST_ROW, FIRST_STEP, STEPS, SHARD, WORKER_COUNT, CUT = range(9)
# Phases of a lane: nothing begun, the gap before a launch, a launch under way.
EMPTY, BETWEEN, OPEN = range(3)


class State(NamedTuple):
    """All of a device: S SMs, L lanes, R rows of costs, Q places for runs, K blocks on an SM.

    Attributes
    ----------
    now, total
        Time and integrals; counts. Columns are named in this module.
    cost, need
        Shape (R, 8) and (R, 10): launches.
    lane, timer, ready, began
        Shape (L, 20), (L,), (L,), (L,): what a lane does; when its gap ends, when its launch became ready
        and when the first block of it was placed.
    run, started, limits
        Shape (Q, 9), (Q,), (Q, L): runs; time of their first block; limits that they set.
    free
        Shape (S, 4): what an SM has left.
    held, clock, rate
        Shape (S, L): blocks in a cell, its virtual clock and how fast that goes.
    ends, sizes, head, kept
        Shape (S, L, K), (S, L, K), (S, L), (S, L): queue of a cell: ends and counts, a ring.
    synced, due, touched, room
        Shape (S,): time of the clocks, of the next end, whether something changed, scratch.
    out, samples_at, samples, spans_at, spans
        What Python has to be told: (run, blocks left: none if it ended, some if it yielded), threads
        by lane, (run, step, blocks), with times.
    """

    now: Floats
    total: Ints
    cost: Floats
    need: Ints
    lane: Ints
    timer: Floats
    ready: Floats
    began: Floats
    run: Ints
    started: Floats
    limits: Ints
    free: Ints
    held: Ints
    clock: Floats
    rate: Floats
    ends: Floats
    sizes: Ints
    head: Ints
    kept: Ints
    synced: Floats
    due: Floats
    touched: Ints
    room: Ints
    out: Ints
    samples_at: Floats
    samples: Ints
    spans_at: Floats
    spans: Ints


def new_state(spec: Spec, opened: Sequence[Lane], runs: int, samples: int, spans: int) -> State:
    """An empty device; ``runs`` places for runs, buffers for so many samples and spans."""
    geometry = spec.geometry
    sms, lanes, slots = geometry.sms, len(opened), geometry.blocks_per_sm
    lane = np.zeros((lanes, LANE_COLUMNS), np.int64)
    lane[:, PRIORITY] = [one.priority for one in opened]
    lane[:, (BASE, LIMIT)] = ALL
    lane[:, (HEAD, TAIL)] = NONE
    lane[:, TO_SM] = top = sms
    for k, one in enumerate(opened):  # partitions from the top, so that limits of other lanes reach them last
        if one.sms is not None:
            lane[k, FROM_SM], lane[k, TO_SM] = top - one.sms, top
            top -= one.sms
    free = np.empty((sms, 4), np.int64)
    free[:, THREADS] = geometry.threads_per_sm
    free[:, REGISTERS] = geometry.registers_per_sm
    free[:, SHARED] = geometry.shared_per_sm_bytes
    free[:, SLOTS] = slots
    now = np.zeros(13)
    now[[SKIP, RUN_US, ELASTIC]] = spec.skip_us, spec.run_us, spec.elastic_run_us
    now[[COMPANY, SPAN_US]] = spec.company_gap_us, spec.span_us
    now[TRACE_FROM], now[TRACE_TO] = np.inf, -np.inf
    total = np.zeros(8, np.int64)
    total[SHARED_SIZE] = geometry.shared_per_sm_bytes
    return State(
        now=now,
        total=total,
        cost=np.zeros((0, 8)),
        need=np.zeros((0, 10), np.int64),
        lane=lane,
        timer=np.zeros(lanes),
        ready=np.zeros(lanes),
        began=np.zeros(lanes),
        run=np.zeros((runs, 9), np.int64),
        started=np.zeros(runs),
        limits=np.full((runs, lanes), ALL),
        free=free,
        held=np.zeros((sms, lanes), np.int64),
        clock=np.zeros((sms, lanes)),
        rate=np.zeros((sms, lanes)),
        ends=np.zeros((sms, lanes, slots)),
        sizes=np.zeros((sms, lanes, slots), np.int64),
        head=np.zeros((sms, lanes), np.int64),
        kept=np.zeros((sms, lanes), np.int64),
        synced=np.zeros(sms),
        due=np.full(sms, np.inf),
        touched=np.zeros(sms, np.int64),
        room=np.zeros(sms, np.int64),
        out=np.zeros((2 * lanes, 2), np.int64),
        samples_at=np.zeros(samples),
        samples=np.zeros((samples, lanes), np.int64),
        spans_at=np.zeros((spans + lanes, 2)),
        spans=np.zeros((spans + lanes, 3), np.int64),
    )


def add_rows(state: State, costs: Sequence[BlockCost], stretch: float) -> tuple[State, int]:
    """Append the costs of a program's launches; ``stretch`` is a factor on those that can be elastic.

    Returns
    -------
    The enlarged state and the row of the first launch.
    """
    cost = [
        (c.gap_us, c.duration_us * (1.0 if c.rigid else stretch), c.sm_share, c.dram_share, c.l2_share,
         c.dram_weight, c.l2_weight, c.rest)
        for c in costs
    ]  # fmt: skip
    need = [
        (
            c.footprint.threads,
            c.footprint.registers,
            c.footprint.shared_bytes,
            1,
            c.footprint.warps,
            c.blocks,
            c.rigid,
            c.carveout_bytes,
            i - span.start,
            span.stop - i - 1,
        )
        for span in spans(len(costs))
        for i, c in zip(span, costs[span.start : span.stop], strict=True)
    ]
    first = len(state.cost)
    state = state._replace(
        cost=np.concatenate((state.cost, np.array(cost, np.float64))),
        need=np.concatenate((state.need, np.array(need, np.int64))),
    )
    return state, first


def grow_runs(state: State) -> State:
    """Twice the places for runs."""
    return state._replace(
        run=np.concatenate((state.run, np.zeros_like(state.run))),
        started=np.concatenate((state.started, np.zeros_like(state.started))),
        limits=np.concatenate((state.limits, np.full_like(state.limits, ALL))),
    )
