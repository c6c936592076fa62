"""Cases of the CUDA C++ corpus that cannot be elastic: their blocks do not stand on their own."""

from __future__ import annotations

import numpy as np
from cuda_cases import Case, Numbers, Out, case

_WAITS = "waits for another block"


@case(large=False)
def grid_sync(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(4, 32)
    after = x + 1
    arguments = {"x": Out(after, x), "y": Out(after.reshape(-1)[::-1])}
    return Case("refused.cu", 4, 32, arguments, opaque="synchronizes its grid")


@case(large=False)
def grid_barrier(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(4, 32)
    after, zero = x + 1, np.zeros(1, np.uint32)
    arguments = {"x": Out(after, x), "y": Out(after.reshape(-1)[::-1]), "arrived": Out(zero + 4, zero, scratch=True)}
    return Case("refused.cu", 4, 32, arguments, opaque=_WAITS)


@case(large=False)
def look_back(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(6)
    y, zero = np.cumsum(x, dtype=np.int32), np.zeros_like(x)
    arguments = {"x": x, "y": Out(y), "sums": Out(y, scratch=True), "ready": Out(zero + 1, zero, scratch=True)}
    return Case("refused.cu", 6, 32, arguments, opaque=_WAITS)


@case(large=False)
def waits_in_a_function(numbers: Numbers, large: bool) -> Case:
    x, zero = numbers.ints(4, 32), np.zeros(4, np.int32)
    return Case("refused.cu", 4, 32, {"x": x, "y": Out(x), "ready": Out(zero + 1, zero, scratch=True)}, opaque=_WAITS)


@case(large=False)
def lock(numbers: Numbers, large: bool) -> Case:
    zero, value = np.zeros(1, np.int32), 5
    for _ in range(4):
        value = value * 3 % 1009 + 1
    y, start = np.array([value], np.int32), np.array([5], np.int32)
    return Case("refused.cu", 4, 32, {"held": Out(zero, zero, scratch=True), "y": Out(y, start)}, opaque=_WAITS)


@case(large=False)
def cluster(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(4, 32)
    return Case("refused.cu", 4, 32, {"x": x, "y": Out(x[[1, 0, 3, 2]])}, opaque="its blocks form clusters")


@case(large=False)
def cluster_rank(numbers: Numbers, large: bool) -> Case:
    return Case("refused.cu", 4, 32, {"y": Out(np.zeros(128, np.int32))}, opaque="asks for its place in a cluster")


@case(large=False)
def dependent_launch(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(4, 32)
    return Case("refused.cu", 4, 32, {"x": x, "y": Out(x + 1)}, opaque="overlaps the launches around it")


@case(large=False)
def function_pointer(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(4, 32)
    block = np.arange(4, dtype=np.int32)[:, None]
    y = np.where(x & 1, x // 3 - block, x // 2 + block)
    return Case("refused.cu", 4, 32, {"x": x, "y": Out(y)}, opaque="calls through a pointer")


@case(large=False)
def register_shift(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(3, 256)
    why = "moves registers from warp to warp"
    return Case("refused.cu", 3, 256, {"x": x, "y": Out(x * 2)}, target="sm_90a", opaque=why)


@case(large=False)
def parent(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(3, 32)
    options = ("--relocatable-device-code=true",)
    return Case("children.cu", 3, 32, {"x": x, "y": Out(x + 1)}, options=options, opaque="launches another kernel")
