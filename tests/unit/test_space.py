from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PTX

from miriam.device.base import Geometry
from miriam.elastic.shards import slices
from miriam.elastic.space import Shape, block_sizes, multiples, o_score, shrink, wi_score
from miriam.program import Kernel, Source


def gpu(sms: int, threads: int) -> Geometry:
    return Geometry(sms, threads, 16, 65536, 65536, 49152)


def shape(blocks: int, threads: int) -> Shape:
    return Shape(blocks, threads, slices(blocks), multiples(threads))


# Conformance: section 4 of the paper as reconstructed.
VECTORS = [
    ((30, 1024), (96, 736), (256, 169), 54, 30, 6, (16, 169), 0.6481),
    ((30, 1024), (192, 169), (96, 736), 138, 69, 14, (12, 736), 0.7070),
    ((30, 1024), (96, 1024), (256, 169), 54, 0, 0, None, None),
    ((8, 2048), (96, 736), (256, 169), 54, 24, 5, (8, 169), 0.4419),
    ((132, 2048), (96, 736), (256, 169), 54, 36, 8, (32, 169), 0.4285),
    ((132, 2048), (264, 256), (96, 256), 48, 48, 10, (96, 256), 0.1818),
    ((132, 2048), (128, 729), (729, 256), 8, 0, 0, None, None),
]


@pytest.mark.parametrize(("device", "rt", "be", "candidates", "feasible", "kept", "best", "score"), VECTORS)
def test_vectors(device, rt, be, candidates, feasible, kept, best, score):
    space = shrink(shape(*rt), shape(*be), gpu(*device))
    assert (space.candidates, space.feasible, len(space.kept)) == (candidates, feasible, kept)
    assert space.pruned == 1 - kept / candidates
    if best is None:
        assert space.kept == ()
    else:
        assert (space.kept[0].blocks, space.kept[0].threads) == best
        assert round(space.kept[0].score, 4) == score


# The launches of AlexNet in the Tango suite, which the paper's benchmark uses.
ALEXNET = [
    *[(96, 1024), (96, 736), (96, 736), (96, 529)] * 2, (96, 729), (128, 729), (128, 729), (256, 729), (256, 169),
    (384, 169), (192, 169), (192, 169), (128, 169), (128, 169), (256, 36), (4096, 1), (4096, 1), (1000, 1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("device", "mean", "least"),
    [((30, 1024), 0.924, 0.875), ((34, 1024), 0.933, 0.862), ((8, 2048), 0.923, 0.889)],
)
def test_share_pruned_over_all_pairs_of_alexnet(device, mean, least):
    pruned = [shrink(shape(*rt), shape(*be), gpu(*device)).pruned for rt in ALEXNET for be in ALEXNET]
    assert len(pruned) == 22 * 22
    assert round(sum(pruned) / len(pruned), 3) == mean
    assert round(min(pruned), 3) == least


sizes = st.tuples(st.integers(1, 3000), st.integers(1, 1024))


@given(sizes, sizes, st.integers(1, 150), st.sampled_from([1024, 1536, 2048]), st.floats(0, 50))
def test_what_is_kept_satisfies_the_limits_and_is_the_best(rt, be, sms, threads, limit_us):
    device = gpu(sms, threads)
    critical, normal = shape(*rt), shape(*be)
    space = shrink(critical, normal, device, launch_us=1.0, limit_us=limit_us)
    assert space.candidates >= space.feasible >= len(space.kept)
    assert len(space.kept) <= -(-space.feasible // 5)
    scores = [c.score for c in space.kept]
    assert scores == sorted(scores, reverse=True)
    for c in space.kept:
        assert c.blocks <= sms - critical.blocks % sms
        assert c.threads <= threads - critical.threads
        assert normal.blocks // c.blocks <= limit_us
        assert 0 < c.score == wi_score(critical, c.blocks, c.threads, device) <= 1
    everything = shrink(critical, normal, device)
    assert len(everything.kept) == -(-everything.feasible // 5)


def test_launch_overhead_bounds_the_shards_from_below():
    critical, normal, device = shape(96, 736), shape(256, 169), gpu(30, 1024)
    free = shrink(critical, normal, device)
    assert {c.blocks for c in free.kept} == {16}
    assert shrink(critical, normal, device, launch_us=4.0, limit_us=64.0).kept == free.kept
    assert shrink(critical, normal, device, launch_us=4.0, limit_us=63.9).kept == ()
    assert (o_score(16, 4.0, 64.0), o_score(17, 4.0, 64.0)) == (1, 0)


def test_multiples():
    assert multiples(169) == (32, 64, 96, 128, 160, 169)
    assert multiples(128) == (32, 64, 96, 128)
    assert multiples(1) == (1,)


ALONE = "mov.u32 %r1, %ctaid.x;\n st.global.u32 [%rd1], %r1;"
REGISTERS = ".reg .pred %p<4>; .reg .b32 %r<4>; .reg .b64 %rd<4>; .reg .f32 %f<4>; .param .b32 param0, param1, retval0;"


def kernel(body: str, threads: int = 256, source: Source = Source.CUDA, **more) -> Kernel:
    ptx = PTX.format(name="k", salt="").replace("ret;", f"{REGISTERS} {body} ret;")
    return Kernel("k", source, (threads, 1, 1), 32, ptx=ptx, **more)


def test_independent_threads_may_share_a_physical_one():
    assert block_sizes(kernel(ALONE, 100)) == (32, 64, 96, 100)
    assert block_sizes(kernel(ALONE, 100, Source.TRITON, ttir="module {}")) == (32, 64, 96, 100)


@pytest.mark.parametrize(
    "body",
    [
        "bar.sync 0;",
        "barrier.cta.sync.aligned 0;",
        "ld.shared.u32 %r1, [%r2];",
        "shfl.sync.bfly.b32 %r1, %r2, 1, 31, -1;",
        "vote.sync.any.pred %p1, %p2, -1;",
        "redux.sync.add.s32 %r1, %r2, -1;",
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1}, {%r1}, {%r2}, {%f1};",
        "mov.u32 %r1, %laneid;",
        "call.uni (retval0), vprintf, (param0, param1);",
    ],
)
def test_threads_that_know_of_each_other_stay_as_they_are(body):
    assert block_sizes(kernel(body)) == (256,)
    assert block_sizes(kernel(body, source=Source.TRITON, ttir="module {}")) == (32, 64, 128, 256)
    assert block_sizes(kernel(body, source=Source.TRITON)) == (256,)


def test_code_that_cannot_be_read_stays_as_it_is():
    assert block_sizes(kernel(ALONE + "]")) == (256,)
    assert block_sizes(replace(kernel(ALONE), name="another")) == (256,)


def test_shared_memory_forbids_thin_blocks():
    assert block_sizes(replace(kernel(ALONE), shared_bytes=1024)) == (256,)


def test_triton_blocks_that_are_no_power_of_two_of_warps_stay():
    assert block_sizes(kernel("bar.sync 0;", 96, Source.TRITON, ttir="module {}")) == (96,)


def test_an_opaque_kernel_has_one_shard():
    library = Kernel("gemm", Source.LIBRARY, (256, 1, 1), 128, opaque="part of cuBLAS")
    assert Shape.of(library, 64) == Shape(64, 256, (64,), (256,))
    assert Shape.of(kernel(ALONE, 64), 6) == Shape(6, 64, (3, 6), (32, 64))
