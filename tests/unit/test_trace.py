"""The Chrome trace: tracks, counters and arrows."""

import itertools
import json
from collections import defaultdict
from typing import Any

import pytest
from bench_support import toy_results

from miriam.bench.trace import trace_json

Events = list[dict[str, Any]]


@pytest.fixture(scope="module")
def events() -> Events:
    found: Events = json.loads(json.dumps(trace_json(toy_results())))["traceEvents"]
    return found


def of(events: Events, phase: str) -> Events:
    return [e for e in events if e["ph"] == phase]


def test_every_traced_point_is_a_process(events: Events) -> None:
    names = [e["args"]["name"] for e in of(events, "M") if e["name"] == "process_name"]
    points = [p for p in toy_results().points if p.timeline]
    assert names == [f"{p.workload}: {p.label}" for p in points]
    assert {e["pid"] for e in events} == set(range(1, len(points) + 1))


def test_every_lane_is_a_track_whose_bars_do_not_overlap(events: Events) -> None:
    lanes = {(e["pid"], e["tid"]): e["args"]["name"] for e in of(events, "M") if e["name"] == "thread_name"}
    bars = defaultdict(list)
    for e in of(events, "X"):
        if e["cat"] in ("launch", "shard"):
            bars[e["pid"], e["tid"]].append((e["ts"], e["ts"] + e["dur"]))
    assert sum(map(len, bars.values())) == sum(len(p.timeline.bars) for p in toy_results().points if p.timeline)
    for track, spans in bars.items():
        assert lanes[track].startswith("lane ")
        spans.sort()
        assert all(end <= begin + 2e-3 for (_, end), (begin, _) in itertools.pairwise(spans))


def test_counters_are_the_samples(events: Events) -> None:
    counted = defaultdict(list)
    for e in of(events, "C"):
        counted[e["pid"]].append((e["ts"], tuple(e["args"].values())))
    timelines = [p.timeline for p in toy_results().points if p.timeline]
    for pid, timeline in enumerate(timelines, 1):
        assert counted[pid] == list(zip(timeline.time_us, zip(*timeline.resident, strict=True), strict=True))


def test_arrows_lead_from_an_arrival_to_a_start(events: Events) -> None:
    begins = {e["id"]: e for e in of(events, "s")}
    ends = {e["id"]: e for e in of(events, "f")}
    assert begins
    assert begins.keys() == ends.keys()
    marks = {(e["pid"], e["tid"], e["ts"]) for e in of(events, "X") if e["cat"] == "request"}
    for flow, begin in begins.items():
        assert begin["ts"] <= ends[flow]["ts"]
        assert (begin["pid"], begin["tid"], begin["ts"]) in marks


def test_requests_begin_and_end(events: Events) -> None:
    begins, ends = ({(e["pid"], e["id"]): e["ts"] for e in of(events, phase)} for phase in "be")
    assert begins.keys() == ends.keys()
    assert all(begins[key] <= ends[key] for key in begins)
