"""Threads that go different ways, in the forms in which compilers and people write it; and waits that hide."""

import pytest

from miriam.elastic.rewrite import rewrite

HEAD = ".version 8.0\n.target sm_90\n.address_size 64\n"
START = """
	.reg .pred %p, pp;
	.reg .b32 %r<20>, t;
	.reg .b64 %d<10>;
	.shared .align 4 .b32 s[64];
	ld.param.u64 %d0, [o];
	mov.u32 %r0, %tid.x;
	mov.u32 %r1, %ctaid.x;
"""
MEET = "bar.sync 0; st.global.u32 [%d0], %r0;\n"
MEETING = "some threads of a block may be done while others meet at a barrier"
TOGETHER = "some threads of a warp may be done while others work together"
WAITING = "it may wait in a loop for what other blocks write"
TID = ".func (.param .b32 rv) f() { .reg .b32 %r; mov.u32 %r, %tid.x; st.param.b32 [rv], %r; ret; }\n"
ECHO = """.func (.param .b32 rv) f(.param .b32 a)
{ .reg .b32 %r; ld.param.b32 %r, [a]; st.param.b32 [rv], %r; ret; }
"""
INNER = (
    ".func f() { .reg .b32 %r; .reg .pred %q; mov.u32 %r, %tid.x; setp.ge.u32 %q, %r, 32; @%q ret; bar.sync 0; ret; }\n"
)
CASES = {
    "a guarded return": ("setp.ge.u32 %p, %r0, 32; @%p ret;" + MEET + "ret;", "", MEETING),
    "registers without a mark": ("mov.u32 t, %tid.x; setp.ge.u32 pp, t, 32; @pp ret;" + MEET + "ret;", "", MEETING),
    "a branch to the end of the text": ("setp.ge.u32 %p, %r0, 32; @%p bra $done;" + MEET + "$done:\n", "", MEETING),
    "a loop that ends the text": (
        "mov.u32 %r6, 0; $top:" + MEET + "add.u32 %r6, %r6, 1; setp.le.u32 %p, %r6, %r0; @%p bra $top;\n", "", MEETING,
    ),
    "a guarded barrier": ("setp.lt.u32 %p, %r0, 32; @%p bar.sync 0;\n@!%p ret; ret;", "", MEETING),
    "a carry": (
        "add.cc.u32 %r6, %r0, -32; addc.u32 %r7, 0, 0; setp.ne.u32 %p, %r7, 0; @%p ret;" + MEET + "ret;", "", MEETING,
    ),
    "what a function gave": (
        "{ .param .b32 rv; call (rv), f, (); ld.param.b32 %r6, [rv]; } setp.ge.u32 %p, %r6, 32; @%p ret;"
        + MEET + "ret;",
        TID, MEETING,
    ),
    "a thread's own memory by a generic address": (
        ".local .align 4 .b8 lo[4]; mov.u64 %d5, lo; st.local.u32 [%d5], %r0; cvta.local.u64 %d6, %d5;"
        "ld.u32 %r6, [%d6];"
        "setp.ge.u32 %p, %r6, 32; @%p ret;" + MEET + "ret;", "", MEETING,
    ),
    "a function that meets": ("call f, (); ret;", INNER, "the threads of a block meet in a function that it calls"),
    "a warp that works together": (
        "setp.lt.u32 %p, %r0, 16; @%p bra $end; redux.sync.add.u32 %r5, %r1, 0xffffffff; st.global.u32 [%d0], %r5;"
        "$end: ret;",
        "", TOGETHER,
    ),
    "a wait with registers without a mark": (
        "$w: ld.acquire.gpu.global.u32 t, [%d0]; setp.eq.u32 pp, t, 5; @pp bra $w; ret;", "", WAITING,
    ),
    "a wait through a function": (
        "$w: ld.acquire.gpu.global.u32 %r6, [%d0]; { .param .b32 a; .param .b32 rv; st.param.b32 [a], %r6;"
        "call (rv), f, (a); ld.param.b32 %r7, [rv]; } setp.eq.u32 %p, %r7, 5; @%p bra $w; ret;", ECHO, WAITING,
    ),
    "a swap whose wish is made anew": (
        "$w: mov.u32 %r5, 1; atom.global.cas.b32 %r6, [%d0], %r5, 1; setp.ne.u32 %p, %r6, %r5; @%p bra $w; ret;",
        "", WAITING,
    ),
}  # fmt: skip


def _text(body: str, functions: str = "", directives: str = "") -> str:
    return f"{HEAD}{functions}.visible .entry k(.param .u64 o) {directives}\n{{{START}{body}\n}}\n"


@pytest.mark.parametrize("name", CASES)
def test_what_must_be_refused(name: str) -> None:
    body, functions, reason = CASES[name]
    assert rewrite(_text(body, functions), block=(64, 1, 1)).refused["k"].endswith(reason)


@pytest.mark.parametrize(
    "body",
    [
        "setp.ge.u32 %p, %r1, 3; @%p ret;" + MEET + "ret;",  # all threads of a block go the same way
        "ld.global.u32 %r6, [%d0]; setp.ge.u32 %p, %r6, 3; @%p ret;" + MEET + "ret;",  # one place, one value
        MEET + "setp.ge.u32 %p, %r0, 32; @%p ret; shfl.sync.bfly.b32 %r5, %r1, 1, 31, -1; ret;",  # whole warps
        "setp.ge.u32 %p, %r0, 32; @%p bra $on; add.u32 %r1, %r1, 1; $on:" + MEET + "ret;",  # ways that meet again
        "$w: atom.global.cas.b32 %r6, [%d0], %r5, %r0; setp.ne.u32 %p, %r6, %r5; mov.u32 %r5, %r6; @%p bra $w; ret;",
    ],
)
def test_what_may_be_elastic(body: str) -> None:
    assert not rewrite(_text(body), block=(64, 1, 1)).refused


def test_a_bound_of_the_block_says_nothing_of_its_shape() -> None:
    body = MEET + "setp.ge.u32 %p, %r0, 32; @%p ret; shfl.sync.bfly.b32 %r5, %r1, 1, 31, -1; ret;"
    assert rewrite(_text(body, directives=".maxntid 64, 1, 1")).refused
    assert not rewrite(_text(body, directives=".reqntid 64, 1, 1")).refused


@pytest.mark.parametrize("target", ["sm_", "foo"])
def test_a_target_that_nobody_knows_is_refused(target: str) -> None:
    assert "are the least" in rewrite(_text("ret;").replace("sm_90", target)).refused["k"]
