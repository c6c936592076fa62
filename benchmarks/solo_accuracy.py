"""How far the simulated latency of each zoo program, alone, lies from the measured one.

    python benchmarks/solo_accuracy.py [--out benchmarks/records/solo-accuracy.json]

Both are the time of one inference out of several that are enqueued back to back. The simulator adds
launches that were timed one by one, so this tests their sum, and placement in waves, against the
time of the whole program as one CUDA graph.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path

import miriam
from miriam import zoo
from miriam.coordinator import View, coordinate
from miriam.device.base import Command, Event, EventKind, Lane, Run
from miriam.device.sim.device import SimDevice
from miriam.task import Criticality, Request, Task

INFERENCES = 6


class InOrder:
    """One lane, everything in the order of arrival."""

    name = "in order"
    lanes = (Lane("only"),)

    def decide(self, event: Event, view: View) -> Iterable[Command]:
        """Run what arrived."""
        if event.kind is EventKind.ARRIVED and event.request is not None:
            yield Run(event.request, 0)

    def report(self) -> Mapping[str, float]:
        """Give nothing."""
        return {}


class AtOnce:
    """All requests at time zero."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def start(self) -> Iterable[Request]:
        """Give the requests."""
        return [Request(self._task, i, 0.0) for i in range(INFERENCES)]

    def after(self, finished: Request) -> None:
        """Give no more."""


def simulated_us(device: str, name: str) -> float:
    """Time between the ends of two inferences that run back to back."""
    task = Task(name, zoo.load(name), Criticality.CRITICAL)
    with_ends = coordinate(SimDevice(device, zoo.profiles()), InOrder(), AtOnce(task), until_us=1e9)
    ends = sorted(r.finish_us for r in with_ends if r.finish_us is not None)
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def main() -> None:
    """Print the table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "records" / "solo-accuracy.json")
    args = parser.parse_args()
    rows = []
    for device, sms in (("sim:h200", 132), ("sim:h200/64", 64), ("sim:h200/16", 16), ("sim:h200/8", 8)):
        for name in zoo.names():
            measured = zoo.profiles().program("h200", zoo.load(name))
            if measured is None or sms not in measured.times_us:
                continue
            real, model = measured.times_us[sms][0], simulated_us(device, name)
            rows.append({"device": device, "program": name, "measured_us": round(real, 2),
                         "simulated_us": round(model, 2), "error": round(model / real - 1, 4)})  # fmt: skip
            print(f"{device:12} {name:18} {real:10.1f} us measured {model:10.1f} us simulated {model / real - 1:+7.2%}")
    for device in dict.fromkeys(row["device"] for row in rows):
        errors = [abs(float(row["error"])) for row in rows if row["device"] == device]
        print(f"{device:12} median {statistics.median(errors):.2%}, largest {max(errors):.2%}")
    record = {
        "what": "latency of zoo programs alone, simulated against measured",
        "measured_on": dict(zoo.profiles().devices["h200"]),
        "simulated_on": {"python": platform.python_version(), "machine": platform.machine()},
        "miriam": miriam.__version__,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "rows": rows,
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
