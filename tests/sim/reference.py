"""The rules of the model once more, as plainly as possible: one object for each block, nothing cached.

Slow, and only for small cases; the engine must agree with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from miriam.device.base import Lane, Limit, Run
from miriam.device.sim.costs import BlockCost
from miriam.device.sim.spec import Spec

TOGETHER_US = 1e-6


@dataclass(eq=False)
class Block:
    lane: int
    cost: BlockCost
    duration_us: float
    left: float = 1.0
    rate: float = 0.0


@dataclass(eq=False)
class LaneState:
    priority: int
    sms: range
    limit: int | None = None
    queue: list[Run] = field(default_factory=list)
    run: Run | None = None
    launch: int = 0
    begins_us: float | None = None  # end of the gap; None: the launch is open
    ready_us: float = 0.0
    waiting: int = 0
    left: int = 0
    span_us: float | None = None
    held: float = math.inf
    said: bool = False
    walks_us: float = 0.0  # until when a pass that was left walks over its other launches


class Reference:
    """Runs (time in us, command) to the end; ``spans`` and ``yields`` (lanes) say what happened."""

    def __init__(self, spec: Spec, lanes: Sequence[Lane], costs: dict[int, tuple[BlockCost, ...]]) -> None:
        self.spec, self.geometry, self.costs = spec, spec.geometry, costs
        self.lanes = []
        top = spec.geometry.sms
        for lane in lanes:
            part = range(top if lane.sms is None else top - lane.sms, top)
            self.lanes.append(LaneState(lane.priority, part or range(spec.geometry.sms)))
            top = part.start
        self.sms: list[list[Block]] = [[] for _ in range(spec.geometry.sms)]
        self.shared = [0] * spec.geometry.sms  # bytes, as the first block of an SM wants them
        self.now_us = 0.0
        self.spans: list[tuple[int, int, int, float, float]] = []
        self.yields: list[int] = []

    def run(self, commands: list[tuple[float, Run | Limit]]) -> None:
        commands = list(commands)
        while True:
            self.settle()
            ends = [self.now_us + block.left / block.rate for sm in self.sms for block in sm]
            begins = [lane.begins_us for lane in self.lanes if lane.begins_us is not None]
            next_us = min(ends + begins, default=math.inf)
            command_us = commands[0][0] if commands else math.inf
            if math.inf == next_us == command_us:
                return
            at_us = min(next_us, command_us)
            for block in (block for sm in self.sms for block in sm):
                block.left -= (at_us - self.now_us) * block.rate
            self.now_us = at_us
            if command_us < next_us:
                self.command(commands.pop(0)[1])
            else:
                self.happen()

    def command(self, command: Run | Limit) -> None:
        if isinstance(command, Limit):
            self.lanes[command.lane].limit = command.sms
        else:
            self.lanes[command.lane].queue.append(command)

    def happen(self) -> None:
        for lane in self.lanes:
            if lane.begins_us is not None and lane.begins_us <= self.now_us + TOGETHER_US:
                lane.begins_us = None
                lane.ready_us = self.now_us
                if lane.said:
                    lane.said = False
                    continue
                lane.waiting = lane.left = self.blocks(lane)
                lane.span_us = None
        for number, sm in enumerate(self.sms):
            for block in sorted(sm, key=lambda block: block.lane):
                if block.left > block.rate * TOGETHER_US:
                    continue
                lane = self.lanes[block.lane]
                lane.left -= 1
                if self.workers(block.lane) is not None and lane.waiting and number in self.may_use(block.lane):
                    lane.waiting -= 1
                    block.left = 1.0
                else:
                    sm.remove(block)
        for index, lane in enumerate(self.lanes):
            if lane.run is not None and lane.begins_us is None and lane.left == 0:
                assert lane.span_us is not None
                self.spans.append((index, lane.launch, self.blocks(lane), lane.span_us, self.now_us))
                lane.launch += 1
                if lane.launch in lane.run.launches:
                    lane.begins_us = self.now_us + self.gap_us(lane)
                else:
                    lane.run = None

    def settle(self) -> None:
        for lane in self.lanes:
            if lane.run is None and lane.queue:
                lane.run = lane.queue.pop(0)
                lane.launch = lane.run.first
                start_us = self.spec.run_us + (0.0 if lane.run.workers is None else self.spec.elastic_run_us)
                lane.begins_us = self.now_us + start_us + self.gap_us(lane)
        for index, lane in enumerate(self.lanes):
            before, lane.held = lane.held, self.limit(index)
            if lane.run is None or lane.begins_us is not None or not lane.held > before:
                continue
            if lane.said:
                passed = lane.launch - lane.run.first
                again_us = max(self.now_us, lane.walks_us)
                lane.begins_us = again_us + passed * self.spec.skip_us + self.cost(lane).gap_us
            elif self.workers(index) is not None:
                lane.ready_us = self.now_us
        order = sorted(range(len(self.lanes)), key=lambda i: (-self.lanes[i].priority, self.lanes[i].ready_us, i))
        for index in order:
            lane = self.lanes[index]
            if lane.run is None or lane.begins_us is not None:
                continue
            wanted = lane.waiting
            workers = self.workers(index)
            if workers is not None:
                wanted = min(wanted, workers - self.resident(index))
            elif lane.run.workers is not None and self.limit(index) == 0 and lane.waiting == lane.left:
                wanted = 0
            usable = self.may_use(index)
            while wanted:
                rooms = [self.room(i, self.cost(lane)) if i in usable else 0 for i in range(len(self.sms))]
                if max(rooms) == 0:
                    break
                cost = self.cost(lane)
                factor = 1.0 if lane.run.workers is None or cost.rigid else self.spec.elastic_overhead
                here = rooms.index(max(rooms))
                if not self.sms[here]:
                    self.shared[here] = cost.carveout_bytes
                self.sms[here].append(Block(index, cost, cost.duration_us * factor))
                lane.waiting -= 1
                wanted -= 1
                if lane.span_us is None:
                    lane.span_us = self.now_us
            if wanted and len(usable) == self.geometry.sms:
                break
        for index, lane in enumerate(self.lanes):
            stopped = self.limit(index) == 0 and not self.resident(index) and not lane.said
            if stopped and lane.run is not None and lane.run.workers is not None and lane.begins_us is None:
                lane.said = True
                behind = lane.run.launches.stop - lane.launch - 1
                lane.walks_us = self.now_us + behind * self.spec.skip_us
                self.yields.append(index)
        blocks = [block for sm in self.sms for block in sm]
        dram, l2 = sum(block.cost.dram_share for block in blocks), sum(block.cost.l2_share for block in blocks)
        for sm in self.sms:
            load = sum(block.cost.sm_share for block in sm)
            for block in sm:
                cost = block.cost
                square = cost.rest + load**2 + cost.dram_weight * dram**2 + cost.l2_weight * l2**2
                block.rate = 1.0 / (block.duration_us * max(square, 2.0**-4) ** 0.5)
            self.check(sm)

    def check(self, sm: list[Block]) -> None:
        assert len(sm) <= self.geometry.blocks_per_sm
        assert sum(block.cost.footprint.threads for block in sm) <= self.geometry.threads_per_sm
        assert sum(block.cost.footprint.registers for block in sm) <= self.geometry.registers_per_sm
        assert sum(block.cost.footprint.shared_bytes for block in sm) <= self.geometry.shared_per_sm_bytes

    def gap_us(self, lane: LaneState) -> float:
        others = [other for other in self.lanes if other is not lane and other.run is not None]
        left = [other for other in others if other.said and other.begins_us is None]
        walk_us = max((other.walks_us - self.now_us for other in left), default=0.0)
        company_us = self.spec.company_gap_us if len(left) < len(others) else 0.0
        return self.cost(lane).gap_us + company_us + max(0.0, walk_us)

    def room(self, number: int, cost: BlockCost) -> int:
        sm = self.sms[number]
        shared_bytes = self.shared[number] if sm else self.geometry.shared_per_sm_bytes
        need, here = cost.footprint, [block.cost.footprint for block in sm]
        fits = [
            self.geometry.blocks_per_sm - len(sm),
            (self.geometry.threads_per_sm - sum(f.threads for f in here)) // need.threads,
            (self.geometry.registers_per_sm - sum(f.registers for f in here)) // need.registers,
        ]
        if need.shared_bytes:
            fits.append((shared_bytes - sum(f.shared_bytes for f in here)) // need.shared_bytes)
        return min(fits)

    def resident(self, lane: int) -> int:
        return sum(block.lane == lane for sm in self.sms for block in sm)

    def cost(self, lane: LaneState) -> BlockCost:
        assert lane.run is not None
        return self.costs[id(lane.run.request.task.program)][lane.launch]

    def blocks(self, lane: LaneState) -> int:
        assert lane.run is not None
        return self.cost(lane).blocks if lane.run.blocks is None else lane.run.blocks[1] - lane.run.blocks[0]

    def limit(self, index: int) -> float:
        limits = [self.lanes[index].limit]
        limits += [lane.run.limits.get(index) for lane in self.lanes if lane.run is not None]
        return min((limit for limit in limits if limit is not None), default=math.inf)

    def workers(self, index: int) -> int | None:
        """Workers of a lane; None if its launch is not elastic."""
        run = self.lanes[index].run
        return None if run is None or self.cost(self.lanes[index]).rigid else run.workers

    def may_use(self, index: int) -> range:
        """SMs on which a lane may begin blocks."""
        sms, limit = self.lanes[index].sms, self.limit(index)
        return sms if self.workers(index) is None or limit >= len(sms) else sms[: int(limit)]
