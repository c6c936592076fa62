"""A critical and a normal network on a real GPU, with streams and with elastic kernels.

python examples/gpu.py [cuda:0/16]
"""

import sys

from miriam import Criticality, Setting, Task, coordinate, zoo
from miriam.bench.arrivals import Closed, Poisson, SeededTraffic
from miriam.bench.metrics import measure
from miriam.device.cuda.device import CudaDevice
from miriam.device.cuda.driver import unavailable
from miriam.policy import create


def serve(policy: str, name: str = "cuda:0", seconds: float = 3.0) -> str:
    """Serve both with a policy, and say how that went."""
    # begin
    camera = Task("camera", zoo.load("resnet34-b1"), Criticality.CRITICAL)
    archive = Task("archive", zoo.load("resnet18-b32"))
    until_us = seconds * 1e6
    traffic = SeededTraffic([(camera, Poisson(200)), (archive, Closed(2))], until_us, seed=0)

    device = CudaDevice(name, zoo.profiles())
    alone_us = {task.name: device.launch_us(task.program) for task in (camera, archive)}
    setting = Setting((camera, archive), device.geometry, alone_us, device.command_us)
    coordinate(device, create(policy, setting), traffic, until_us)
    device.close()

    critical = measure(camera, traffic.requests, until_us / 6, until_us)  # the begin is warm-up
    normal = measure(archive, traffic.requests, until_us / 6, until_us)
    # end
    took = "none finished" if critical.response is None else f"p99 {critical.response.p99_us:6.0f} us"
    return f"{policy:12} critical {took}   normal {normal.throughput_per_s:6.0f} batches/s"


def main(name: str = "cuda:0", seconds: float = 3.0) -> None:
    """Show it."""
    if why := unavailable():
        print(f"This example needs a GPU: {why}")
        return
    for policy in ("multistream", "resident"):
        print(serve(policy, name, seconds))


if __name__ == "__main__":
    main(*sys.argv[1:2])
