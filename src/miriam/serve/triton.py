"""Statistics in the shape of Triton's extension, as its JSON has them.

The messages of gRPC have fields of the same names. Address of the format:
github.com/triton-inference-server/server, ``docs/protocol/extension_statistics.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miriam.runtime.statistics import TaskStatistics

__all__ = ["statistics"]


def statistics(tasks: Mapping[str, TaskStatistics], version: str = "1") -> dict[str, Any]:
    """What was counted of some tasks, as the answer to a request for statistics.

    A request is an execution of its own: none are joined to a batch. What it takes to bring in inputs and outputs is
    within the time of computing, and a request that got no answer has no time.

    Parameters
    ----------
    tasks
        What was counted, by the name of the model.
    version
        That all of them have.
    """
    return {"model_stats": [_model(name, version, task) for name, task in tasks.items()]}


def _model(name: str, version: str, task: TaskStatistics) -> dict[str, Any]:
    answered, failed = task.answered, task.failed + task.timed_out + task.cancelled + task.rejected
    moved, compute = _duration(answered), _duration(answered, task.compute_sum_us)
    return {
        "name": name,
        "version": version,
        "last_inference": round((task.last_us or 0) / 1e3),
        "inference_count": answered,
        "execution_count": answered,
        "inference_stats": {
            "success": _duration(answered, task.latency_sum_us),
            "fail": _duration(failed),
            "queue": _duration(answered, task.queue_sum_us),
            "compute_input": moved,
            "compute_infer": compute,
            "compute_output": moved,
            "cache_hit": _duration(0),
            "cache_miss": _duration(0),
        },
        "response_stats": {},
        "batch_stats": [{"batch_size": 1, "compute_input": moved, "compute_infer": compute, "compute_output": moved}],
        "memory_usage": [],
    }


def _duration(count: int, us: float = 0.0) -> dict[str, int]:
    return {"count": count, "ns": round(us * 1e3)}
