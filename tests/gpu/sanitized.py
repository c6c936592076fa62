"""Run the corpus once in each elastic form, for a memory checker: python tests/gpu/sanitized.py [original]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from corpus import load

from miriam.device.cuda.driver import Gpu, Stream
from miriam.device.cuda.elastic import ElasticCode, ElasticInstance
from miriam.device.cuda.instance import Instance
from miriam.elastic.generator import elastic_kernel, forms_of
from miriam.elastic.rewrite import Form


def main() -> None:
    """Run them."""
    original = sys.argv[1:] == ["original"]
    gpu, stream = Gpu(0), Stream()
    ran = 0
    for kind in ("cuda", "triton"):
        for name, program in load(kind).items():
            if name.endswith("-large") or Form.DIRECT not in forms_of(elastic_kernel(program.kernels[0])):
                continue
            code = None if original else ElasticCode(program)
            for each, workers in ((1, None), (3, None), (1, 5), (2, 1)):
                instance = Instance(gpu, program)  # a new one: kernels may count on what they find
                instance.fill()
                if code is None:
                    instance.enqueue(stream)
                else:
                    elastic = ElasticInstance(gpu, instance, code, [each])
                    lane = elastic.lane(16)
                    lane.enqueue(stream, workers=workers)
                    stream.synchronize()
                    lane.close()
                    elastic.close()
                stream.synchronize()
                instance.close()
            if code is not None:
                code.close()
            ran += 1
    print(f"{ran} kernels {'as they are' if original else 'in their elastic forms'}")


if __name__ == "__main__":
    main()
