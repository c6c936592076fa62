"""The Chrome trace of a runtime."""

import itertools
import json
from collections import defaultdict
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from trace_support import Clock, Job, play, schedule

from miriam.trace import Recorder, Recording, document
from miriam.trace.perfetto import text

JOBS = [
    Job("caption", 0, 0, 2000), Job("caption", 0, 100, 3000), Job("detector", 1, 2500, 700),
    Job("detector", 1, 2600, 300), Job("caption", 0, 9000, 500, fails=True),
]  # fmt: skip


def recorded(*jobs: Job) -> Recording:
    clock = Clock()
    recorder = Recorder(clock=clock)
    schedule(jobs)
    play(recorder, clock, jobs)
    return recorder.recording()


def of(events: list[dict[str, Any]], phase: str) -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] == phase]


def test_a_lane_is_a_track_with_what_ran_and_what_stood_still() -> None:
    events = document(recorded(*JOBS))["traceEvents"]
    tracks = {e["tid"]: e["args"]["name"] for e in of(events, "M") if e["name"] == "thread_name"}
    bars = defaultdict(list)
    for event in of(events, "X"):
        if event["cat"] in ("ran", "paused"):
            bars[tracks[event["tid"]]].append((event["name"], event["ts"], event["dur"]))
    assert bars["lane critical"] == [("detector #3", 2500, 700), ("detector #4", 3200, 300)]
    assert bars["lane normal"] == [
        ("caption #1", 0, 2000), ("caption #2", 2000, 500), ("caption #2 paused", 2500, 1000),
        ("caption #2", 3500, 2500), ("caption #5", 9000, 500),
    ]  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 60), st.sampled_from([0, 1])), min_size=1, max_size=10,
                unique_by=lambda one: one[0]))  # fmt: skip
def test_bars_of_a_track_do_not_overlap(rows: list[tuple[int, int, int]]) -> None:
    jobs = [Job("ab"[level], level, float(at), float(length)) for at, length, level in rows]
    tracks = defaultdict(list)
    for event in of(document(recorded(*jobs))["traceEvents"], "X"):
        if event["cat"] in ("ran", "paused"):
            tracks[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert tracks
    for bars in tracks.values():
        bars.sort()
        assert all(end <= begin + 1e-6 for (_, end), (begin, _) in itertools.pairwise(bars))


def test_every_request_has_a_life_and_an_arrow_to_its_start() -> None:
    recording = recorded(*JOBS)
    events = document(recording)["traceEvents"]
    begins, ends = ({e["id"]: e["ts"] for e in of(events, phase)} for phase in "be")
    arrows = {e["id"]: (e["tid"], e["ts"]) for e in of(events, "f")}
    assert begins.keys() == ends.keys() == arrows.keys()
    for request in recording.requests:
        key = f"1.{request.number}"
        assert request.lane is not None
        assert (begins[key], ends[key]) == (request.submitted_us, request.finished_us)
        assert arrows[key] == (request.lane + 1, request.started_us)


def test_the_counter_never_goes_below_zero_and_ends_at_it() -> None:
    counts = [event["args"] for event in of(document(recorded(*JOBS))["traceEvents"], "C")]
    assert all(count >= 0 for row in counts for count in row.values())
    assert counts[-1] == {"caption": 0, "detector": 0}
    assert max(row["caption"] for row in counts) == 1


def test_decisions_are_told_in_words() -> None:
    [decision] = [e for e in of(document(recorded(*JOBS))["traceEvents"], "i") if e["name"] == "arrived detector #3"]
    assert decision["args"] == {"command 1": "run #3 on lane critical: whole and at once"}


def test_the_text_is_the_document_and_holds_the_recording() -> None:
    recording = recorded(*JOBS)
    written = json.loads("".join(text(recording)))
    assert written == json.loads(json.dumps(document(recording)))
    assert Recording.from_json(written["recording"]).to_json() == recording.to_json()
