"""What Prometheus reads: the statistics of the runtime, and Triton's names for what has one there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    UntypedMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

import miriam
from miriam.runtime.statistics import BUCKETS_S, TaskStatistics
from miriam.task import Criticality

if TYPE_CHECKING:
    from miriam.serve.service import Service

__all__ = ["Metrics"]

Tasks = Mapping[str, TaskStatistics]

_OUTCOMES = ("answered", "failed", "timed_out", "cancelled", "rejected")
_REASONS = {"BACKEND": ("failed",), "CANCELED": ("cancelled",), "REJECTED": ("rejected", "timed_out")}
_BOUNDS = tuple(map(floatToGoString, BUCKETS_S))
_MODEL = ("model", "version", "criticality")


class Metrics:
    """The page ``/metrics`` of a server.

    Nothing is counted for it: what it shows is read when it is asked for.
    """

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Served(service))
        ProcessCollector(registry=self._registry)

    def page(self, accept: str = "") -> tuple[bytes, str]:
        """The text and its content type.

        Parameters
        ----------
        accept
            The header of that name: OpenMetrics is given to who asks for it.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Served(Collector):
    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        service = self._service
        tasks = {name: task for name, task in service.statistics().items() if name in service.repository}
        versions = {name: service.repository[name].version for name in tasks}
        yield from _server(service)
        yield from _requests(tasks, versions)
        yield from _latencies(tasks, versions)
        yield from _aliases(tasks, versions)


def _server(service: Service) -> Iterator[Metric]:
    runtime = service.runtime
    about = GaugeMetricFamily("miriam_build_info", "What serves.", labels=("version", "device", "policy"))
    about.add_metric((miriam.__version__, runtime.device, runtime.policy), 1)
    yield about
    yield GaugeMetricFamily("miriam_ready", "Whether all models that should be are ready.", value=service.ready())
    models = GaugeMetricFamily("miriam_model_ready", "Whether a model is ready.", labels=("model", "version"))
    for row in service.index():
        models.add_metric((row["name"], row["version"]), row["state"] == "READY")
    yield models


def _requests(tasks: Tasks, versions: Mapping[str, str]) -> Iterator[Metric]:
    ended = CounterMetricFamily("miriam_requests", "Requests that have ended, by how.", labels=(*_MODEL, "outcome"))
    sums = {
        "queue": CounterMetricFamily("miriam_queue_seconds", "Time in the queue, of answered requests.", labels=_MODEL),
        "compute": CounterMetricFamily(
            "miriam_compute_seconds", "Time from first step to last, of answered requests.", labels=_MODEL
        ),
    }
    counters = {
        "preemptions": CounterMetricFamily(
            "miriam_preemptions", "Times that a more critical request came while one ran.", labels=_MODEL
        ),
        "deadline_missed": CounterMetricFamily("miriam_deadlines_missed", "Answers that were late.", labels=_MODEL),
    }
    gauges = {
        "queue_depth": GaugeMetricFamily("miriam_queue_depth", "Requests that wait.", labels=_MODEL),
        "running": GaugeMetricFamily("miriam_running", "Requests that are on the device.", labels=_MODEL),
    }
    for name, task in tasks.items():
        labels = (name, versions[name], _level(task.criticality))
        for outcome in _OUTCOMES:
            ended.add_metric((*labels, outcome), getattr(task, outcome))
        for part, family in sums.items():
            family.add_metric(labels, getattr(task, f"{part}_sum_us") / 1e6)
        for what, counter in counters.items():
            counter.add_metric(labels, getattr(task, what))
        for what, gauge in gauges.items():
            gauge.add_metric(labels, getattr(task, what))
    yield from (ended, *sums.values(), *counters.values(), *gauges.values())
    # By model: a sum of all would fall when one is unloaded, which for a counter means that it began anew.
    normal = CounterMetricFamily(
        "miriam_normal_answers",
        "Answered requests of the normal level: the sum of their rates is its throughput.",
        labels=("model", "version"),
    )
    for name, task in tasks.items():
        normal.add_metric((name, versions[name]), task.levels[0].count if 0 in task.levels else 0)
    yield normal


def _latencies(tasks: Tasks, versions: Mapping[str, str]) -> Iterator[Metric]:
    sizes = HistogramMetricFamily(
        "miriam_request_duration_seconds",
        "Latency of answered requests in the server's runtime, by the criticality of the request.",
        labels=_MODEL,
    )
    quantiles = (*_MODEL, "quantile")
    last = GaugeMetricFamily("miriam_recent_latency_seconds", "Quantiles of the last latencies.", labels=quantiles)
    solo = GaugeMetricFamily(
        "miriam_solo_latency_seconds", "The same of requests that met no other one.", labels=quantiles
    )
    slowdown = GaugeMetricFamily("miriam_slowdown_ratio", "The one over the other.", labels=quantiles)
    for name, task in tasks.items():
        for level, found in sorted(task.levels.items()):
            buckets = list(zip(_BOUNDS, found.counts, strict=True))
            sizes.add_metric((name, versions[name], _level(level)), buckets, found.sum_us / 1e6)
        labels = (name, versions[name], _level(task.criticality))
        _add(last, labels, (task.p50_us, task.p99_us), 1e6)
        _add(solo, labels, (task.solo_us, task.solo_p99_us), 1e6)
        _add(slowdown, labels, (task.slowdown_p50, task.slowdown_p99), 1)
    yield from (sizes, last, solo, slowdown)


def _add(family: GaugeMetricFamily, labels: tuple[str, ...], values: Iterable[float | None], unit: float) -> None:
    for quantile, value in zip(("0.5", "0.99"), values, strict=True):
        if value is not None:
            family.add_metric((*labels, quantile), value / unit)


def _aliases(tasks: Tasks, versions: Mapping[str, str]) -> Iterator[Metric]:
    """Triton's names: github.com/triton-inference-server/server, ``docs/user_guide/metrics.md``.

    They have no type, since the ending that the format asks of a counter is not in them.
    """
    failed = UntypedMetricFamily("nv_inference_request_failure", "As in Triton.", labels=("model", "version", "reason"))
    families: dict[str, Callable[[TaskStatistics], float]] = {
        "nv_inference_request_success": lambda task: task.answered,
        "nv_inference_count": lambda task: task.answered,
        "nv_inference_exec_count": lambda task: task.answered,
        "nv_inference_request_duration_us": lambda task: task.latency_sum_us,
        "nv_inference_queue_duration_us": lambda task: task.queue_sum_us,
        "nv_inference_compute_infer_duration_us": lambda task: task.compute_sum_us,
        "nv_inference_pending_request_count": lambda task: task.queue_depth,
    }
    for family, value in families.items():
        metric = UntypedMetricFamily(family, "As in Triton.", labels=("model", "version"))
        for name, task in tasks.items():
            metric.add_metric((name, versions[name]), value(task))
        yield metric
    for name, task in tasks.items():
        for reason, outcomes in _REASONS.items():
            failed.add_metric((name, versions[name], reason), sum(getattr(task, outcome) for outcome in outcomes))
    yield failed


def _level(criticality: int) -> str:
    """``normal``, ``critical``, or the number of a level above."""
    return Criticality(criticality).name.lower() if criticality in set(Criticality) else str(criticality)
