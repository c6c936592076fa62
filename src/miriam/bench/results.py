"""The results document: everything that a benchmark found out, in one versioned JSON file.

``results.schema.json`` beside this module describes it field by field.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from miriam._files import replacing
from miriam.bench.arrivals import arrivals_from_json
from miriam.bench.metrics import PROBABILITIES, Latency, Slowdown, TaskMetrics
from miriam.bench.timeline import Timeline
from miriam.bench.workload import Entry, Workload
from miriam.errors import WorkloadError

__all__ = ["ALONE", "BASELINE", "FORMAT_VERSION", "LOAD", "Made", "Point", "Results", "Step", "label", "schema"]

FORMAT_VERSION = 2
_FORMAT = "miriam.results"
LOAD = "load"
"""The suite of requests to a server."""
BASELINE = "sequential"
"""The policy whose overall throughput the others are compared with."""
ALONE = "multistream"
"""The policy that serves a task alone: with one task it does nothing but hand its requests to the device."""


@dataclass(frozen=True, slots=True)
class Made:
    """Where, when and with what a document was made.

    Attributes
    ----------
    date
        ISO 8601, UTC.
    wall_s
        Time that the whole benchmark took.
    machine, versions
        Processor, cores, system; Python and packages.
    """

    date: str
    wall_s: float
    machine: Mapping[str, str]
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Step:
    """One launch of a program, for the captions of a timeline."""

    kernel: str
    blocks: int
    threads: int


@dataclass(frozen=True, slots=True)
class Point:
    """One run: a workload under a policy, or one of its tasks alone.

    Attributes
    ----------
    workload, policy
        Their names; ``policy`` is the one that served the task also where it was alone.
    alone
        Name of the task that had the device for itself, or None.
    repeat
        Which turn of the benchmark it belongs to, from 0. Points are compared within a turn only.
    tasks
        Metrics by task.
    overall_vs_sequential
        Overall throughput over that of the policy ``sequential`` in the same turn; None where it did
        not run.
    normal_vs_alone
        Throughput of a normal task over its throughput alone, mean over the normal tasks; None where
        there is none.
    normal_vs_stock
        Throughput of a normal task over that of its model alone in plain PyTorch, mean over the normal
        tasks for which that was measured; None where there is none.
    normal_vs_free
        ``normal_vs_stock / (1 - busy)`` with ``busy``, the share of the time that critical requests take
        alone: the sum over the critical tasks of requests by second times mean service latency, both
        alone in the same turn. 1 is all that plain PyTorch would do in the time that is left. None where
        nothing is left or one of these is not known.
    busy
        Share of the run in which at least one block was resident.
    occupancy, sm_active, blocks
        As :class:`miriam.device.base.Usage` defines them, over the whole run. These three and ``busy``
        are None where the device cannot know.
    report
        What the policy says about itself.
    timeline
        An excerpt, where one was kept.
    """

    workload: str
    policy: str
    alone: str | None
    tasks: tuple[TaskMetrics, ...]
    busy: float | None
    occupancy: float | None
    sm_active: float | None
    blocks: int | None
    report: Mapping[str, float]
    timeline: Timeline | None = None
    repeat: int = 0
    overall_vs_sequential: float | None = None
    normal_vs_alone: float | None = None
    normal_vs_stock: float | None = None
    normal_vs_free: float | None = None

    @property
    def label(self) -> str:
        """For people: policy, or the task that was alone."""
        return label(self.policy, self.alone)

    @property
    def critical(self) -> TaskMetrics | None:
        """The most critical task of this run, of equal ones the first."""
        found = [t for t in self.tasks if t.critical]
        return max(found, key=lambda t: t.criticality, default=None)

    @property
    def leading(self) -> tuple[TaskMetrics, ...]:
        """The tasks of the highest level above the normal one."""
        top = self.critical
        return () if top is None else tuple(t for t in self.tasks if t.criticality == top.criticality)

    @property
    def critical_slowdown(self) -> float | None:
        """Slowdown of the p99 of :attr:`leading`, of several the largest; None where one of them has none."""
        found = [t.slowdown.p99 if t.slowdown else None for t in self.leading]
        return None if None in found else max((s for s in found if s is not None), default=None)

    @property
    def critical_per_s(self) -> float:
        """Throughput of the tasks above the normal level."""
        return sum(t.throughput_per_s for t in self.tasks if t.critical)

    @property
    def normal_per_s(self) -> float:
        """Throughput of the normal tasks."""
        return sum(t.throughput_per_s for t in self.tasks if not t.critical)

    @property
    def overall_per_s(self) -> float:
        """Requests of all tasks finished in the window, by second."""
        return sum(t.throughput_per_s for t in self.tasks)

    @property
    def missed(self) -> int | None:
        """Deadline misses of all tasks; None if no task has a deadline."""
        known = [t.missed for t in self.tasks if t.missed is not None]
        return sum(known) if known else None


@dataclass(frozen=True, slots=True)
class Results:
    """A whole benchmark.

    Attributes
    ----------
    made
        Where, when and with what.
    suite
        Name of the benchmark.
    device, simulated, notes
        Name of the device as the user wrote it, whether it is a model of one, and what a reader of
        the results has to know about it.
    duration_s, warm_up_s
        Length of every run, and how much of its begin does not count.
    seed, critical_load
        As the user gave them. Turn ``i`` has the arrivals of ``seed + i``.
    repeats
        Turns: each holds every task alone and every policy once.
    kernels
        Which kernels networks of the zoo are made of.
    policies, workloads
        What was run; rates of ``workloads`` are those that were used.
    programs
        By model: its launches.
    points
        Every run.
    """

    made: Made
    suite: str
    device: str
    simulated: bool
    notes: tuple[str, ...]
    duration_s: float
    warm_up_s: float
    seed: int
    critical_load: float | None
    repeats: int
    kernels: str
    policies: tuple[str, ...]
    workloads: tuple[Workload, ...]
    programs: Mapping[str, tuple[Step, ...]]
    points: tuple[Point, ...]

    @property
    def served(self) -> bool:
        """Whether it is of requests to a server: what its device did is not known then."""
        return self.suite == LOAD

    def point(self, workload: str, policy: str, repeat: int = 0) -> Point | None:
        """The run of a workload under a policy."""
        return next((p for p in self.turns(workload, policy) if p.repeat == repeat), None)

    def alone(self, workload: str, task: str, policy: str = ALONE, repeat: int = 0) -> Point | None:
        """The run in which a task of a workload was alone."""
        return next((p for p in self.turns(workload, policy, task) if p.repeat == repeat), None)

    def turns(self, workload: str, policy: str, alone: str | None = None) -> tuple[Point, ...]:
        """The runs of all turns of a workload under a policy, or of one of its tasks alone."""
        wanted = (workload, policy, alone)
        return tuple(p for p in self.points if (p.workload, p.policy, p.alone) == wanted)

    def to_json(self) -> dict[str, Any]:
        """The document, ready for :mod:`json`."""
        return {
            "format": _FORMAT,
            "version": FORMAT_VERSION,
            "made": asdict(self.made),
            "suite": self.suite,
            "device": {"name": self.device, "simulated": self.simulated, "notes": list(self.notes)},
            "duration_s": self.duration_s,
            "warm_up_s": self.warm_up_s,
            "seed": self.seed,
            "critical_load": self.critical_load,
            "repeats": self.repeats,
            "kernels": self.kernels,
            "policies": list(self.policies),
            "workloads": [_workload_json(w) for w in self.workloads],
            "programs": {
                model: [[s.kernel, s.blocks, s.threads] for s in steps] for model, steps in self.programs.items()
            },
            "probabilities": list(PROBABILITIES),
            "points": [_point_json(p) for p in self.points],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the document to ``path`` in one step: a reader sees the old file or the whole new one."""
        with replacing(path, WorkloadError) as part:
            part.write_text(json.dumps(self.to_json(), separators=(",", ":"), allow_nan=False) + "\n", "utf-8")

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Results:
        """Read a results document.

        Raises
        ------
        WorkloadError
            The file is missing, no results document, damaged, or of another version.
        """
        again = "run the benchmark again with 'miriam bench'"
        try:
            raw = json.loads(Path(path).read_text("utf-8"))
        except OSError as error:
            raise WorkloadError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise WorkloadError(f"{path} is no results document or is damaged ({error}): {again}") from error
        if not isinstance(raw, dict) or raw.get("format") != _FORMAT:
            raise WorkloadError(f"{path} is no results document of Miriam: {again}")
        if raw.get("version") != FORMAT_VERSION:
            raise WorkloadError(
                f"{path} has results version {raw.get('version')!r}, this Miriam reads {FORMAT_VERSION}: "
                f"{again}, or read it with the Miriam that wrote it"
            )
        try:
            return _from_json(raw)
        except Exception as error:  # whatever a field of the wrong kind leads to
            raise WorkloadError(f"{path} is a damaged results document ({error!r}): {again}") from error


def label(policy: str, alone: str | None) -> str:
    """A run in words: its policy, or the task that is alone."""
    if alone is None:
        return policy
    return f"{alone} alone" + ("" if policy == ALONE else f", {policy}")


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the results document."""
    text = resources.files("miriam.bench").joinpath("results.schema.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def _workload_json(workload: Workload) -> dict[str, Any]:
    return {
        "name": workload.name,
        "title": workload.title,
        "tasks": [
            {
                "name": e.name,
                "model": e.model,
                "criticality": int(e.criticality),
                "arrivals": e.arrivals.to_json(),
                "deadline_us": e.deadline_us,
            }
            for e in workload.entries
        ],
    }


def _workload(raw: dict[str, Any]) -> Workload:
    return Workload(
        raw["name"],
        raw["title"],
        tuple(
            Entry(t["name"], t["model"], t["criticality"], arrivals_from_json(t["arrivals"]), t["deadline_us"])
            for t in raw["tasks"]
        ),
    )


def _point_json(point: Point) -> dict[str, Any]:
    raw = {
        name: getattr(point, name)
        for name in (
            "workload", "policy", "alone", "repeat", "critical_per_s", "normal_per_s", "overall_per_s",
            "overall_vs_sequential", "normal_vs_alone", "normal_vs_stock", "normal_vs_free", "busy", "occupancy",
            "sm_active", "blocks",
        )
    }  # fmt: skip
    return raw | {
        "tasks": [asdict(t) for t in point.tasks],
        "report": dict(point.report),
        "timeline": point.timeline.to_json() if point.timeline else None,
    }


def _task(raw: dict[str, Any]) -> TaskMetrics:
    def summary(found: dict[str, Any] | None) -> Latency | None:
        return Latency(**{**found, "curve_us": tuple(found["curve_us"])}) if found else None

    slower = raw["slowdown"]
    return TaskMetrics(
        **{
            **raw,
            "response": summary(raw["response"]),
            "service": summary(raw["service"]),
            "slowdown": Slowdown(**slower) if slower else None,
        }
    )


def _point(raw: dict[str, Any]) -> Point:
    return Point(
        workload=raw["workload"],
        policy=raw["policy"],
        alone=raw["alone"],
        repeat=raw["repeat"],
        tasks=tuple(_task(t) for t in raw["tasks"]),
        busy=raw["busy"],
        occupancy=raw["occupancy"],
        sm_active=raw["sm_active"],
        blocks=raw["blocks"],
        report=raw["report"],
        timeline=Timeline.from_json(raw["timeline"]) if raw["timeline"] else None,
        overall_vs_sequential=raw["overall_vs_sequential"],
        normal_vs_alone=raw["normal_vs_alone"],
        normal_vs_stock=raw["normal_vs_stock"],
        normal_vs_free=raw["normal_vs_free"],
    )


def _from_json(raw: dict[str, Any]) -> Results:
    return Results(
        made=Made(**raw["made"]),
        suite=raw["suite"],
        device=raw["device"]["name"],
        simulated=raw["device"]["simulated"],
        notes=tuple(raw["device"]["notes"]),
        duration_s=raw["duration_s"],
        warm_up_s=raw["warm_up_s"],
        seed=raw["seed"],
        critical_load=raw["critical_load"],
        repeats=raw["repeats"],
        kernels=raw["kernels"],
        policies=tuple(raw["policies"]),
        workloads=tuple(_workload(w) for w in raw["workloads"]),
        programs={model: tuple(Step(*s) for s in steps) for model, steps in raw["programs"].items()},
        points=tuple(_point(p) for p in raw["points"]),
    )
