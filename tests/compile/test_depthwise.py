# ruff: noqa: E402 - what is imported below may be missing
"""Depthwise convolutions as sums over taps: the same numbers as torch's own, computed by Inductor's CPU back end."""

import shutil

import pytest
from compile_support import TORCH_WARNS, need_torch_and_triton

need_torch_and_triton()

import torch
from torch import nn
from torch._inductor import cpu_vec_isa
from torch._inductor.utils import fresh_cache, run_and_get_code

from miriam.frontend._inductor_depthwise import _OVERLOADS, depthwise_as_pointwise, lowerings

pytestmark = [TORCH_WARNS, pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs g++ on a CPU")]

CONVOLUTIONS = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "no padding, no bias": {"kernel_size": 3, "bias": False},
    "stride": {"kernel_size": 5, "padding": 2, "stride": 2},
    "dilation": {"kernel_size": 3, "padding": 4, "dilation": 4},
    "unequal": {"kernel_size": (3, 5), "padding": (0, 2), "stride": (2, 1), "dilation": (1, 3)},
    "one tap": {"kernel_size": 1, "stride": 3},
}


QUICKLY = {"compile_threads": 1, "fx_graph_cache": False, "cpp.simdlen": 1, "cpp_cache_precompile_headers": False}


class Side(nn.Module):
    """All of them on one input, each behind something that Inductor may fuse with it."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(6, 6, groups=6, **how) for how in CONVOLUTIONS.values())

    def forward(self, x):
        return tuple(part(torch.relu(x)).sigmoid() for part in self.parts)


def test_every_depthwise_convolution_gives_the_numbers_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    # Which vectors the processor has, Inductor finds out by compiling; none are used here.
    monkeypatch.setattr(cpu_vec_isa, "valid_vec_isa_list", list)
    torch.manual_seed(0)
    module, x = Side().eval(), torch.randn(2, 6, 17, 19)
    with torch.no_grad(), fresh_cache(), depthwise_as_pointwise():
        torch._dynamo.reset()
        found, code = run_and_get_code(torch.compile(module, fullgraph=True, options=QUICKLY), x)
        wanted = module(x)
    torch._dynamo.reset()
    assert "extern_kernels.convolution(" not in "".join(code)
    for how, one, other in zip(CONVOLUTIONS, found, wanted, strict=True):
        assert one.shape == other.shape, how
        torch.testing.assert_close(one, other, msg=how, rtol=1e-6, atol=1e-6)


def test_other_convolutions_stay_what_they_are_and_everything_comes_back() -> None:
    before = [lowerings[overload] for overload in _OVERLOADS]
    with depthwise_as_pointwise():
        assert all(lowerings[o] is not was for o, was in zip(_OVERLOADS, before, strict=True))
    assert [lowerings[overload] for overload in _OVERLOADS] == before
