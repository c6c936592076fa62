"""A policy of your own beside one of the package's, on a simulated GPU.

python examples/policy.py
"""

from collections.abc import Callable, Iterator, Mapping

from miriam import (
    Command,
    Criticality,
    Event,
    EventKind,
    Lane,
    Policy,
    Run,
    Setting,
    Task,
    View,
    coordinate,
    zoo,
)  # fmt: skip
from miriam.bench.arrivals import Closed, SeededTraffic, Uniform
from miriam.bench.metrics import measure
from miriam.device.sim.device import SimDevice
from miriam.policy import create

NORMAL, CRITICAL = 0, 1  # lanes


class Yielding:
    """Normal networks leave at the end of a block while a critical one runs, and come back after it."""

    name = "yielding"

    def __init__(self, setting: Setting) -> None:
        self.lanes = (Lane("normal"), Lane("critical", priority=1))
        self._workers = setting.geometry.sms * setting.geometry.blocks_per_sm

    def decide(self, event: Event, view: View) -> Iterator[Command]:
        """Everything at once; the limit holds as long as the critical run does."""
        if event.kind is EventKind.ARRIVED and event.request is not None:
            if event.request.task.critical:
                yield Run(event.request, CRITICAL, limits={NORMAL: 0})
            else:
                yield Run(event.request, NORMAL, workers=self._workers)

    def report(self) -> Mapping[str, float]:
        """Nothing."""
        return {}


def serve(make: Callable[[Setting], Policy], seconds: float = 0.5) -> str:
    """Serve a critical and a normal network with a policy, and say how that went."""
    device = SimDevice("sim:xavier", zoo.profiles())
    camera = Task("camera", zoo.load("squeezenet-b1"), Criticality.CRITICAL)
    archive = Task("archive", zoo.load("alexnet-b1"))
    alone_us = {task.name: device.launch_us(task.program) for task in (camera, archive)}
    policy = make(Setting((camera, archive), device.geometry, alone_us, device.command_us))

    until_us = seconds * 1e6
    traffic = SeededTraffic([(camera, Uniform(100)), (archive, Closed())], until_us, seed=0)
    coordinate(device, policy, traffic, until_us)

    critical = measure(camera, traffic.requests, 0.0, until_us)
    normal = measure(archive, traffic.requests, 0.0, until_us)
    assert critical.response is not None
    slowdown = critical.response.p99_us / sum(alone_us["camera"])
    return f"{policy.name:12} critical p99 {slowdown:5.2f} x alone   normal {normal.throughput_per_s:6.1f} requests/s"


if __name__ == "__main__":
    print(serve(lambda setting: create("multistream", setting)))
    print(serve(Yielding))
