"""What is told of a request is what happened to it."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_support import Clock, Job, play, schedule

from miriam.errors import TraceError
from miriam.trace import Decision, Done, Recorder, Recording, Story, Traced, explain, read
from miriam.trace.explain import time_text
from miriam.trace.intervals import Intervals

JOBS = st.lists(
    st.builds(
        Job,
        task=st.sampled_from(["a", "b"]),
        level=st.sampled_from([0, 1]),
        arrival_us=st.integers(0, 300).map(float),
        length_us=st.integers(1, 60).map(float),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda job: job.arrival_us,
)


def recorded(*jobs: Job) -> Recording:
    clock = Clock()
    recorder = Recorder(clock=clock)
    schedule(jobs)
    play(recorder, clock, jobs)
    return recorder.recording()


def paper(*requests: Traced, **given: Any) -> Recording:
    """A recording of a GPU, by hand."""
    plain = Recording("cuda:0", "resident", ("critical", "normal"), (1, 0), {}, 1000.0, 0.0, requests, ())
    return replace(plain, **given)


def part(story: Story, what: str) -> tuple[float, str]:
    [found] = [part for part in story.parts if part.what == what]
    return found.length_us, found.text


@given(JOBS)
def test_the_parts_are_what_the_device_did_and_together_the_latency(jobs: list[Job]) -> None:
    recording = recorded(*jobs)
    for number, job in enumerate(jobs, 1):
        story = explain(recording, number)
        assert job.start_us is not None
        assert story.latency_us == pytest.approx(job.end_us - job.arrival_us)
        assert part(story, "waited")[0] == pytest.approx(job.start_us - job.arrival_us)
        assert part(story, "paused")[0] == pytest.approx(job.paused_us)
        assert part(story, "ran")[0] == pytest.approx(job.length_us)
        assert sum(one.share for one in story.parts) == pytest.approx(1)


@given(JOBS)
def test_who_was_before_it_covers_the_time_that_it_waited_once(jobs: list[Job]) -> None:
    recording = recorded(*jobs)
    intervals = Intervals(recording)
    for number, job in enumerate(jobs, 1):
        request = recording.find(number)
        assert job.start_us is not None
        held = intervals.before(request)
        assert all(hold.by is not None and hold.by is not request for hold in held)
        assert sum(hold.length_us for hold in held) == pytest.approx(job.start_us - job.arrival_us)
        for moment in range(int(job.arrival_us), int(job.start_us)):
            assert any(hold.begin_us <= moment + 0.5 <= hold.end_us for hold in held)


@given(JOBS)
def test_a_recording_survives_being_written(jobs: list[Job]) -> None:
    recording = recorded(*jobs)
    again = Recording.from_json(json.loads("".join(recording.text())))
    assert again.to_json() == recording.to_json() == json.loads("".join(again.text()))
    assert [str(explain(again, i)) for i in range(1, len(jobs) + 1)] == [
        str(explain(recording, i)) for i in range(1, len(jobs) + 1)
    ]


def test_it_says_who_was_before_it_and_who_paused_it() -> None:
    jobs = [Job("caption", 0, 0, 2000), Job("caption", 0, 100, 3000, deadline_us=4000), Job("detector", 1, 2500, 700)]
    story = explain(recorded(*jobs, Job("caption", 0, 20000, 2000)), 2)
    assert story.headline == "caption #2 (normal) took 5.60 ms, 2.80 times the 2.00 ms that it takes alone."
    assert part(story, "waited") == (1900, "1 request was before it: caption #1 (normal) 1.90 ms")
    assert part(story, "paused") == (700, "once: by detector #3 (critical) 700 µs")
    assert part(story, "ran") == (3000, "with the device to itself")
    assert story.notes == (
        "resident put it on lane normal: whole and at once.",
        "Of the 3.60 ms that it took longer than alone, most is waiting.",
        "It missed its deadline of 4.00 ms by 1.60 ms.",
    )
    assert "caption #1" in str(story)
    assert json.loads(json.dumps(story.to_json()))["parts"][1]["share"] == pytest.approx(700 / 5600)


def test_a_request_that_met_nobody_says_so() -> None:
    story = explain(recorded(Job("caption", 0, 0, 100)), 1)
    told = "nothing was before it: 0 µs in the queue, 0 µs on the way to its first step"
    assert part(story, "waited") == (0, told)
    assert part(story, "paused") == (0, "never")
    assert part(story, "ran")[1] == "with the device to itself"
    assert story.headline.endswith("1.00 times the 100 µs that it takes alone.")


def test_many_are_told_by_task_and_those_that_overtook_are_counted() -> None:
    jobs = [Job("caption", 0, 0, 1000), Job("caption", 0, 1, 10)]
    jobs += [Job("detector", 1, 100 + 150 * i, 50) for i in range(5)]
    waited, text = part(explain(recorded(*jobs), 2), "waited")
    assert waited == 1249
    assert text.startswith("6 requests were before it: 1 of caption (normal) 999 µs, 5 of detector (critical) 250 µs")
    assert text.endswith("5 of them came later and went first, being more urgent")


def test_a_critical_request_does_not_call_those_company_that_it_paused() -> None:
    story = explain(recorded(Job("caption", 0, 0, 1000), Job("detector", 1, 500, 100)), 2)
    assert part(story, "ran") == (100, "with the device to itself")
    assert "alone yet" in story.notes[1]


def test_a_limit_above_zero_narrows_and_does_not_pause() -> None:
    wide = Traced(1, "caption", 0, 0, started_us=0, finished_us=900, lane=1, workers=64, outcome="answered")
    above = Traced(2, "detector", 1, 100, started_us=100, finished_us=400, lane=0, limits={1: 16}, outcome="answered")
    recording = paper(wide, above)
    assert part(explain(recording, 1), "paused") == (0, "never")
    told = "300 µs of it beside detector #2 (critical) 300 µs, which left it 16 SMs"
    assert part(explain(recording, 1), "ran") == (900, told)
    assert part(explain(recording, 2), "ran") == (300, "300 µs of it beside caption #1 (normal) 300 µs")


def test_on_a_gpu_a_higher_lane_alone_pauses_nobody_and_on_a_cpu_it_does() -> None:
    low = Traced(1, "caption", 0, 0, started_us=0, finished_us=900, lane=1, outcome="answered")
    high = Traced(2, "detector", 1, 100, started_us=100, finished_us=400, lane=0, outcome="answered")
    gpu, cpu = paper(low, high, policy="priority"), paper(low, high, policy="priority", device="cpu/2")
    assert part(explain(gpu, 1), "paused")[0] == 0
    assert part(explain(cpu, 1), "paused")[0] == 300


def test_a_pause_of_the_policy_is_told_with_its_reason() -> None:
    why = "a pause, to measure detector alone"
    decisions = (
        Decision(200.0, "arrived", 7, "detector", (Done("limit", 1, sms=0, why=why),)),
        Decision(500.0, "tick", commands=(Done("limit", 1, why="over"),)),
    )
    ran = Traced(1, "caption", 0, 0, started_us=100, finished_us=900, lane=1, outcome="answered")
    waits = Traced(2, "caption", 0, 300, started_us=950, finished_us=990, lane=1, outcome="answered")
    recording = paper(ran, waits, decisions=decisions)
    assert part(explain(recording, 1), "paused") == (300, f"once: 300 µs by the policy: {why}")
    assert part(explain(recording, 2), "waited")[1].endswith(f"200 µs of it its lane was held at zero: {why}")


def test_what_has_not_ended_is_told_up_to_now() -> None:
    runs = Traced(1, "caption", 0, 0, started_us=100, lane=1)
    waits = Traced(2, "caption", 0, 300)
    recording = paper(runs, waits)
    assert explain(recording, 1).headline == "caption #1 (normal) has been there for 1.00 ms and has not ended."
    assert part(explain(recording, 1), "ran")[0] == 900
    assert part(explain(recording, 2), "waited") == (700, "1 request was before it: caption #1 (normal) 700 µs")
    assert part(explain(recording, 2), "ran") == (0, "not at all")


def test_what_never_began_is_told_with_its_end() -> None:
    gone = Traced(1, "caption", 0, 0, finished_us=400, outcome="cancelled")
    failed = Traced(2, "caption", 2, 0, finished_us=600, outcome="failed", error="RequestTimeoutError: too long")
    assert explain(paper(gone), 1).headline == "caption #1 (normal) was given up after 400 µs."
    story = explain(paper(gone, failed), 2)
    assert story.headline == "caption #2 (level 2) failed after 600 µs."
    assert part(story, "waited")[1] == "it never began"
    assert "Its error: RequestTimeoutError: too long" in story.notes


def test_a_request_that_is_not_there_is_an_error() -> None:
    with pytest.raises(TraceError, match="request 5 is not in this trace, which holds 1 to 1; 0 older ones are gone"):
        explain(recorded(Job("caption", 0, 0, 100)), 5)
    with pytest.raises(TraceError, match="has none"):
        explain(paper(), 5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nonsense", "is no JSON"),
        ("[]", "is no trace of a runtime"),
        ('{"traceEvents": []}', "is no trace of a runtime"),
        ('{"requests": [], "decisions": [], "version": 99}', "has version 99"),
        ('{"requests": [{"nobody": 1}], "decisions": [], "version": 1}', "is broken"),
        ('{"requests": [7], "decisions": [], "version": 1}', "is broken"),
        (
            '{"requests": [{"number": 1, "task": "", "level": 0, "submitted_us": "2"}], "decisions": [], "version": 1}',
            "is broken: submitted_us is '2'",
        ),
        (
            '{"requests": [{"number": 1, "task": "", "level": 0, "submitted_us": 2, "outcome": "?"}], '
            '"decisions": [], "version": 1}',
            "is broken: outcome is '?'",
        ),
    ],
)
def test_a_file_that_holds_something_else_is_an_error(tmp_path: Any, text: str, says: str) -> None:
    (tmp_path / "trace.json").write_text(text)
    with pytest.raises(TraceError, match=says):
        read(tmp_path / "trace.json")


def test_a_file_that_is_not_there_is_an_error(tmp_path: Any) -> None:
    with pytest.raises(TraceError, match="cannot read"):
        read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("us", "text"),
    [(0, "0 µs"), (0.5, "0.50 µs"), (12.34, "12.3 µs"), (999, "999 µs"), (4_200, "4.20 ms"), (3e6, "3.00 s")],
)
def test_times_have_three_figures(us: float, text: str) -> None:
    assert time_text(us) == text
    assert not math.isnan(us)
