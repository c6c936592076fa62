"""Pause an inference on a GPU between two blocks, and let it go on: python examples/elastic.py."""

from miriam import zoo
from miriam.device.cuda.driver import Gpu, Stream, unavailable
from miriam.device.cuda.elastic import ElasticCode, ElasticInstance
from miriam.device.cuda.instance import Instance


def main() -> None:
    """Show it."""
    if why := unavailable():
        print(f"This example needs a GPU: {why}")
        return
    # begin
    gpu, program = Gpu(0), zoo.load("resnet18-b1")
    code, instance = ElasticCode(program), Instance(gpu, program)
    instance.fill()  # random numbers; instance.write(tensor, data) sets an input
    elastic = ElasticInstance(gpu, instance, code)
    lane = elastic.lane()
    work, control = Stream(), Stream(priority=-5)

    lane.limit(control, 0)  # pause: at any time, also in the middle of a pass
    control.synchronize()
    lane.enqueue(work)
    work.synchronize()
    print("paused:", "complete" if elastic.complete else f"launch {elastic.progress.next} is next")

    lane.limit(control)  # free again
    control.synchronize()
    lane.enqueue(work)  # goes on where it was
    work.synchronize()
    print("free:", "complete" if elastic.complete else "not complete")
    # end
    for owned in (lane, elastic, instance, code, work, control, gpu):
        owned.close()


if __name__ == "__main__":
    main()
