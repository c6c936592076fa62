"""What the tests on a GPU need, or why it is not there; and how outputs are compared."""

from collections.abc import Sequence
from importlib.util import find_spec

import pytest

from miriam.device.cuda.driver import Stream, unavailable
from miriam.device.cuda.instance import Instance

# Warnings of torch about itself, of which a run on a GPU has some, are no errors here.
LENIENT = pytest.mark.filterwarnings("default")


def need_gpu(torch: bool = False) -> None:
    """Skip the module that calls this where there is no GPU, or no torch that sees it."""
    if why := unavailable():
        pytest.skip(why, allow_module_level=True)
    if torch:
        if not (find_spec("torch") and find_spec("triton")):
            pytest.skip("needs torch and triton", allow_module_level=True)
        import torch as installed

        if not installed.cuda.is_available():
            pytest.skip("torch sees no GPU: it may be a build for the CPU", allow_module_level=True)


def bits(tensor) -> bytes:
    """Bytes of a tensor, as a program writes them."""
    import torch

    assert tensor.is_contiguous()
    return tensor.detach().cpu().view(torch.uint8).numpy().tobytes()


def run(instance: Instance, stream: Stream, inputs: Sequence[bytes], sizes: Sequence[int]) -> list[bytes]:
    """Outputs of a program for these inputs."""
    program = instance.program
    for tensor, data in zip(program.inputs, inputs, strict=True):
        instance.write(tensor, data)
    instance.enqueue(stream)
    stream.synchronize()
    return [instance.read(tensor, size) for tensor, size in zip(program.outputs, sizes, strict=True)]
