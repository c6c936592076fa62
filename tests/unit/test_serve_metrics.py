"""What Prometheus reads of a server, by the parser of its client library."""

from __future__ import annotations

import math
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics
from serving import MODELS, Serving
from tritonclient import grpc as triton

import miriam
from miriam.runtime.statistics import BUCKETS_S
from miriam.serve.metrics import Metrics


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    with Serving() as serving:
        yield serving


def families(serving: Serving) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{serving.metrics}/metrics") as answer:
        assert answer.headers["content-type"].startswith("text/plain")
        return {family.name: family for family in parser.text_string_to_metric_families(answer.read().decode())}


def values(found: dict[str, Any], sample: str, **labels: str) -> float:
    """The sum of the samples of that name with these labels."""
    samples = [s for family in found.values() for s in family.samples if s.name == sample]
    chosen = [s.value for s in samples if labels.items() <= s.labels.items()]
    assert chosen, (sample, labels, samples)
    return sum(chosen)


def infer(serving: Serving, model: str, *arrays: np.ndarray[Any, Any], **others: Any) -> None:
    names = MODELS[model]["inputs"]
    kinds = {"float32": "FP32", "int32": "INT32"}
    inputs = []
    for name, array in zip(names, arrays, strict=True):
        one = triton.InferInput(name, array.shape, kinds[array.dtype.name])
        one.set_data_from_numpy(array)
        inputs.append(one)
    with triton.InferenceServerClient(serving.grpc) as client:
        client.infer(model, inputs, **others)


INTS = np.arange(4, dtype=np.int32)
ONE = np.ones(1, np.float32)


def test_requests_are_counted_by_what_became_of_them(serving: Serving) -> None:
    before = families(serving)
    for _ in range(3):
        infer(serving, "both", INTS, INTS)
    infer(serving, "raising", ONE)
    with pytest.raises(triton.InferenceServerException):
        infer(serving, "raising", -ONE)
    after = families(serving)

    def rise(sample: str, **labels: str) -> float:
        return values(after, sample, **labels) - values(before, sample, **labels)

    assert rise("miriam_requests_total", model="both", criticality="critical", outcome="answered") == 3
    assert rise("miriam_requests_total", model="raising", criticality="normal", outcome="answered") == 1
    assert rise("miriam_requests_total", model="raising", outcome="failed") == 1
    assert rise("miriam_normal_answers_total") == rise("miriam_normal_answers_total", model="raising") == 1
    assert rise("miriam_compute_seconds_total", model="both") > 0
    assert rise("nv_inference_request_success", model="both", version="1") == 3
    assert rise("nv_inference_request_failure", model="raising", reason="BACKEND") == 1
    assert values(after, "miriam_queue_depth") == values(after, "miriam_running") == 0
    for name in MODELS:
        assert values(after, "nv_inference_count", model=name) == serving.statistics(name).answered


def test_latencies_are_in_seconds_by_the_criticality_of_the_request(serving: Serving) -> None:
    lowered = {"priority": 3}  # of the levels 2, 1 and 0
    for _ in range(2):
        infer(serving, "both", INTS, INTS, **lowered)
    infer(serving, "both", INTS, INTS)
    found = families(serving)
    assert found["miriam_request_duration_seconds"].type == "histogram"
    task = serving.statistics("both")
    assert task.levels[0].count == 2
    for level, name in ((0, "normal"), (1, "critical")):
        labels = {"model": "both", "criticality": name}
        assert values(found, "miriam_request_duration_seconds_count", **labels) == task.levels[level].count
        assert values(found, "miriam_request_duration_seconds_sum", **labels) == pytest.approx(
            task.levels[level].sum_us / 1e6
        )
        bucket = "miriam_request_duration_seconds_bucket"
        by_bound = {
            float(s.labels["le"]): s.value
            for s in found["miriam_request_duration_seconds"].samples
            if s.name == bucket and labels.items() <= s.labels.items()
        }
        assert sorted(by_bound) == pytest.approx(BUCKETS_S)
        rising = [by_bound[bound] for bound in sorted(by_bound)]
        assert rising == sorted(rising)
        assert by_bound[math.inf] == task.levels[level].count


def test_slowdown_is_said_once_it_is_known(serving: Serving) -> None:
    fresh = {"double": MODELS["double"]}
    with Serving(fresh) as other:
        assert "miriam_recent_latency_seconds" not in {s.name for f in families(other).values() for s in f.samples}
        for _ in range(25):
            infer(other, "double", np.ones((2, 3), np.float32))
        found, task = families(other), other.statistics("double")
    assert task.slowdown_p99 is not None
    assert values(found, "miriam_slowdown_ratio", model="double", quantile="0.99") == pytest.approx(task.slowdown_p99)
    assert values(found, "miriam_solo_latency_seconds", quantile="0.5") == pytest.approx((task.solo_us or 0) / 1e6)


def test_who_serves_and_whether_it_is_ready(serving: Serving) -> None:
    found = families(serving)
    runtime = serving.server.service.runtime
    about = {"version": miriam.__version__, "device": runtime.device, "policy": runtime.policy}
    assert values(found, "miriam_build_info", **about) == 1
    assert values(found, "miriam_ready") == 1
    assert values(found, "miriam_model_ready") == len(MODELS)
    assert values(found, "process_resident_memory_bytes") > 1e6


def test_openmetrics_is_given_to_who_asks_for_it(serving: Serving) -> None:
    page, kind = Metrics(serving.server.service).page("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    found = {family.name for family in openmetrics.text_string_to_metric_families(page.decode())}
    assert {"miriam_requests", "miriam_request_duration_seconds", "nv_inference_count"} <= found


def test_every_name_says_its_unit(serving: Serving) -> None:
    ours = {name for name in families(serving) if name.startswith("miriam_")}
    units = {"seconds", "ratio"}
    of_time = {
        name for name in ours if {"duration", "latency", "queue_seconds", "compute", "slowdown"} & {*name.split("_")}
    }
    assert of_time
    assert all(name.split("_")[-1] in units for name in of_time), of_time
