"""The benchmarks that can be named: MDTB, DISB and the pair.

MDTB
    The mixed-critical benchmark of the Miriam paper (SenSys'23, arXiv 2307.04339). The definitions here
    are the paper's benchmark as we know it; the paper's own kernels are far slower than ours, so the
    rates as written leave a tuned device nearly idle: see :meth:`Workload.scaled`.
DISB
    Workloads A to E of https://github.com/SJTU-IPADS/disb, the benchmark of REEF (OSDI'22) and its
    successors. Real-time tasks are critical here, best-effort ones normal.
pair
    A ResNet-34 at random moments beside large batches through a ResNet-18, two networks of the size
    that a large GPU is shared for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from miriam.bench.arrivals import Arrivals, Closed, Poisson, Uniform
from miriam.bench.workload import Entry, Workload
from miriam.errors import WorkloadError
from miriam.task import Criticality

__all__ = ["MDTB", "SUITES", "Suite", "select", "suite"]


@dataclass(frozen=True, slots=True)
class Suite:
    """Workloads that belong together.

    Attributes
    ----------
    name
        As the user writes it.
    workloads
        By name.
    usual
        Names of those that are run if none is named.
    notes
        What a reader of its results has to know.
    """

    name: str
    workloads: Mapping[str, Workload]
    usual: tuple[str, ...]
    notes: tuple[str, ...] = ()


def _by_name(*workloads: Workload) -> Mapping[str, Workload]:
    return MappingProxyType({w.name: w for w in workloads})


def _critical(name: str, model: str, arrivals: Arrivals) -> Entry:
    return Entry(name, model, Criticality.CRITICAL, arrivals)


def _normal(name: str, model: str, arrivals: Arrivals) -> Entry:
    return Entry(name, model, Criticality.NORMAL, arrivals)


MDTB: Mapping[str, Workload] = _by_name(
    Workload(
        "A", "AlexNet beside CifarNet, both without a pause",
        (_critical("AlexNet", "alexnet-b1", Closed()), _normal("CifarNet", "cifarnet-b1", Closed())),
    ),
    Workload(
        "B", "SqueezeNet at a fixed rate beside AlexNet without a pause",
        (_critical("SqueezeNet", "squeezenet-b1", Uniform(10)), _normal("AlexNet", "alexnet-b1", Closed())),
    ),
    Workload(
        "C", "GRU at random moments beside ResNet-50 without a pause",
        (_critical("GRU", "gru-b1", Poisson(10)), _normal("ResNet-50", "resnet50-b1", Closed())),
    ),
    Workload(
        "D", "LSTM at a fixed rate beside SqueezeNet without a pause",
        (_critical("LSTM", "lstm-b1", Uniform(10)), _normal("SqueezeNet", "squeezenet-b1", Closed())),
    ),
    Workload(
        "driving", "Obstacle detection at 10 Hz beside pose estimation at 12.5 Hz",
        (_critical("ResNet-50", "resnet50-b1", Uniform(10)), _normal("SqueezeNet", "squeezenet-b1", Uniform(12.5))),
    ),
)  # fmt: skip
"""Workloads A to D and the driving case, by name."""


_FIVE = (
    ("ResNet-152", "resnet152-b1"), ("DenseNet-201", "densenet201-b1"), ("VGG-19", "vgg19-b1"),
    ("Inception v3", "inceptionv3-b1"), ("DistilBERT", "distilbert-b1"),
)  # fmt: skip


def _five_critical(arrivals: Arrivals) -> tuple[Entry, ...]:
    return tuple(_critical(name, model, arrivals) for name, model in _FIVE)


_RESNET = _normal("ResNet-152", "resnet152-b1", Closed())
_FIVE_NORMAL = tuple(_normal(f"{name} beside", model, Closed()) for name, model in _FIVE)

_DISB = _by_name(
    Workload(
        "A", "VGG-19 at a fixed rate beside ResNet-152 without a pause",
        (_critical("VGG-19", "vgg19-b1", Uniform(100)), _RESNET),
    ),
    Workload(
        "B", "VGG-19 beside ResNet-152, both without a pause",
        (_critical("VGG-19", "vgg19-b1", Closed()), _RESNET),
    ),
    Workload(
        "C", "VGG-19 at a fixed rate beside five networks without a pause",
        (_critical("VGG-19", "vgg19-b1", Uniform(100)), *_FIVE_NORMAL),
    ),
    Workload(
        "D", "Five networks at a fixed rate beside the same five without a pause",
        (*_five_critical(Uniform(20)), *_FIVE_NORMAL),
    ),
    Workload(
        "E", "Five networks at random moments beside the same five without a pause",
        (*_five_critical(Poisson(20)), *_FIVE_NORMAL),
    ),
)  # fmt: skip

_PAIR = _by_name(
    Workload(
        "pair", "ResNet-34 at random moments beside batches of 32 through ResNet-18 without a pause",
        (
            _critical("ResNet-34", "resnet34-b1", Poisson(200)),
            _normal("ResNet-18", "resnet18-b32", Closed(2)),
        ),
    ),
)  # fmt: skip

SUITES: Mapping[str, Suite] = MappingProxyType(
    {
        s.name: s
        for s in (
            Suite("mdtb", MDTB, ("A", "B", "C", "D")),
            Suite("disb", _DISB, tuple(_DISB),
                  ("the rates of DISB as published belong to a GeForce RTX 3080 with TensorRT",)),
            Suite("pair", _PAIR, tuple(_PAIR)),
        )
    }
)  # fmt: skip
"""All of them, by name."""


def suite(name: str) -> Suite:
    """The suite of a name.

    Raises
    ------
    WorkloadError
        There is none.
    """
    if name not in SUITES:
        raise WorkloadError(f"there is no benchmark {name!r}: choose from {', '.join(SUITES)}")
    return SUITES[name]


def select(names: str | Iterable[str | Workload] | None, among: Suite) -> tuple[Workload, ...]:
    """Workloads by name (``"A,B"`` or a list), the usual ones for None; workloads pass through, repeats are dropped.

    Raises
    ------
    WorkloadError
        A name is unknown, or nothing is left.
    """
    found: dict[str, Workload] = {}
    for name in among.usual if names is None else names.split(",") if isinstance(names, str) else names:
        if isinstance(name, Workload):
            found.setdefault(name.name, name)
            continue
        key = name.strip()
        match = next((w for w in among.workloads.values() if w.name.lower() == key.lower()), None)
        if match is None:
            raise WorkloadError(f"{among.name} has no workload {key!r}: choose from {', '.join(among.workloads)}")
        found.setdefault(match.name, match)
    if not found:
        raise WorkloadError(f"no workload was named: choose from {', '.join(among.workloads)}")
    return tuple(found.values())
