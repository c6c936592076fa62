"""Which kernels are refused, each for its reason and with its line, and which are not."""

from __future__ import annotations

import pytest
from elastic_text import HEAD, STORE, entry, refusal_at, refused

from miriam.elastic.rewrite import rewrite

FUNCTION = ".func f()\n{{\n.reg .b32 %r<9>;\n.reg .b64 %rd<9>;\n{body}\nret;\n}}\n"
CALL = "call f, ();\n"
INSTRUCTIONS = {
    "griddepcontrol.wait;": "it is launched before the kernel in front of it ends (programmatic dependent launch)",
    "mapa.u64 %rd1, %rd2, 0;": "it uses distributed shared memory",
    "getctarank.u64 %r1, %rd2;": "it uses distributed shared memory",
    "clusterlaunchcontrol.try_cancel.async.b128 [%rd1], [%rd2];": "it cancels or takes over blocks of its own grid",
    "multimem.red.relaxed.sys.global.add.f32 [%rd1], %r1;": "it works on the memory of several GPUs at once",
    "setmaxnreg.inc.sync.aligned.u32 96;": "its warps change their number of registers",
    "alloca.u64 %rd1, 16, 4;": "its stack grows while it runs",
    "stacksave.u64 %rd1;": "its stack grows while it runs",
    "nanosleep.u32 32;": "it sleeps, as kernels do that wait for other blocks",
    "tcgen05.alloc.cta_group::1.sync.aligned.b32 [%rd1], 32;": "it keeps state in tensor memory",
    "tensormap.replace.tile.rank.global.b1024.b32 [%rd1], 1;": "it changes tensor maps while it runs",
    "frobnicate.u32 %r1, %r2;": "frobnicate is not known to be safe",
    "barrier.cluster.arrive;": "its blocks form clusters",
    "cp.async.bulk.shared::cta.global.multicast::cluster [%r1], [%rd1], 16;": "its blocks form clusters",
    "mbarrier.arrive.release.cluster.shared::cta.b64 _, [pool];": "its blocks form clusters",
    "ld.shared::cluster.u32 %r1, [%r2];": "it uses distributed shared memory",
    "st.shared::cluster.u32 [%r2], %r1;": "it uses distributed shared memory",
    "atom.shared::cluster.add.u32 %r1, [%r2], 1;": "it uses distributed shared memory",
    "red.shared::cluster.add.u32 [%r2], 1;": "it uses distributed shared memory",
    "mbarrier.arrive.shared::cluster.b64 _, [%r2];": "it uses distributed shared memory",
    "st.async.weak.b32 [%r1], %r2, [%r3];": "it uses distributed shared memory",
    "red.async.relaxed.add.u32 [%r1], %r2, [%r3];": "it uses distributed shared memory",
    "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r1], [%r2], 16, [%r3];": (
        "it uses distributed shared memory"
    ),
    "cp.reduce.async.bulk.shared::cluster.global.add.u32 [%r1], [%r2], 16;": "it uses distributed shared memory",
    "add.u32 %r1, %ctaid.x, 1;": "it reads %ctaid.x in a way that is not known",
    "mov.u64 %rd1, %ctaid.y;": "it reads %ctaid.y in a way that is not known",
    "mov.u32 %r1, %nctaid;": "it reads %nctaid in a way that is not known",
    "mov.u32 %r1, %clusterid.x;": "it knows of clusters",
    "mov.u32 %r1, %nclusterid.x;": "it knows of clusters",
    "mov.u32 %r1, %cluster_ctarank;": "it knows of clusters",
    "mov.pred %p1, %is_explicit_cluster;": "it knows of clusters",
    "mov.u32 %r1, %smid;": "it behaves by the SM that it runs on",
    "mov.u32 %r1, %nsmid;": "it behaves by the SM that it runs on",
    "mov.u32 %r1, %envreg1;": "it may be a cooperative launch",
    "mov.u64 %rd1, %gridid;": "it behaves by the launch that it belongs to",
    "mov.u32 %r1, %clock;": "it reads a clock",
    "mov.u64 %rd1, %clock64;": "it reads a clock",
    "mov.u64 %rd1, %globaltimer;": "it reads a clock",
    "mov.u32 %r1, %pm3;": "it reads performance counters",
    "mov.u64 %rd1, f;": "it takes the address of the function f",
    "mov.u64 %rd1, k;": "it takes the address of the function k",
    "call (%r1), %rd1, (%r2), proto;": "it calls a function through a pointer",
    "call there, ();": "it calls there, whose code is not here",
}


@pytest.mark.parametrize("code", INSTRUCTIONS)
def test_an_instruction_is_refused_with_its_line(code):
    before = ".extern .func there();\n" + FUNCTION.format(body="")
    ptx = HEAD + before + entry(f"{STORE}{code}\nret;")
    assert refusal_at(code, ptx) == INSTRUCTIONS[code]
    if " %ctaid" in code or " %nctaid" in code:
        return
    # In a function that is called it counts as well, and in one that is not it does not.
    inside = HEAD + ".extern .func there();\n" + FUNCTION.format(body=code) + entry(CALL + "ret;")
    if ", f;" not in code:
        assert refusal_at(code, inside) == INSTRUCTIONS[code]
    assert refused(inside.replace(CALL, "")) == ""


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("mov.u32 %r1, %ctaid.x;", "a function that it calls reads the block's index"),
        ("mov.u32 %r1, %nctaid.z;", "a function that it calls reads the block's index"),
        ("exit;", "a function that it calls ends the kernel"),
    ],
)
def test_a_function_may_not_do_what_only_the_entry_is_rewritten_for(code, reason):
    ptx = HEAD + FUNCTION.format(body=code) + entry(CALL + "ret;")
    assert refusal_at(code, ptx) == reason
    assert refused(ptx.replace(CALL, "")) == ""
    deep = FUNCTION.replace("f()", "g()").format(body="call f, ();")
    assert refusal_at(code, HEAD + FUNCTION.format(body=code) + deep + entry("call g, ();\nret;")) == reason


@pytest.mark.parametrize(
    "directive", [".explicitcluster", ".reqnctapercluster 2, 1, 1", ".maxclusterrank 8", ".blocksareclusters"]
)
def test_blocks_of_clusters_are_refused(directive):
    assert refusal_at(directive, HEAD + entry(directives=directive)) == "its blocks form clusters"


def test_modules_that_leave_no_way_are_refused():
    ptx = HEAD + entry("ret;")
    assert refused(ptx.replace("size 64", "size 32")) == "its addresses have 32 bits"
    assert "PTX 5.9" in refused(ptx.replace("8.0", "5.9"))
    assert "sm_61" in refused(ptx.replace("sm_90", "sm_61"))
    assert refused(ptx.replace("8.0", "6.0").replace("sm_90", "sm_70")) == ""
    for size, reason in ((4032, ""), (4033, "its parameters take 4033 bytes, which leaves no room for another one")):
        assert refused(HEAD + entry("ret;", parameters=f"(.param .align 4 .b8 p[{size}])")) == reason


def test_functions_in_a_table_are_refused():
    table = ".global .align 8 .u64 table[2] = {0, f};"
    assert (
        refusal_at(table, HEAD + FUNCTION.format(body="") + table + "\n" + entry()) == "it keeps functions in a table"
    )
    assert refused(HEAD + FUNCTION.format(body="") + table.replace("f}", "1}") + "\n" + entry()) == ""


WATCHING = (
    "ld.volatile.global.u32 %r2, [%rd1];",
    "ld.relaxed.gpu.global.u32 %r2, [%rd1];",
    "ld.acquire.sys.global.u32 %r2, [%rd1];",
    "ld.mmio.relaxed.sys.global.u32 %r2, [%rd1];",
    "ld.global.cv.u32 %r2, [%rd1];",
    "ld.global.cg.u32 %r2, [%rd1];",
    "ld.volatile.u32 %r2, [%rd1];",
    "atom.global.exch.b32 %r2, [%rd1], 0;",
    "atom.or.b32 %r2, [%rd1], 0;",
    "atom.global.cas.b32 %r2, [%rd1], 0, 1;",
)
WAITING = "it may wait in a loop for what other blocks write"
LOOPS = {
    "around it": "$top:\n{watch}\nsetp.eq.u32 %p1, %r2, 0;\n@%p1 bra $top;  // here\nret;",
    "that is left": "$top:\n{watch}\nsetp.eq.u32 %p1, %r2, 0;\n@%p1 bra $out;  // here\nbra $top;\n$out:\nret;",
    "with a way out of the kernel": "$top:\n{watch}\nsetp.eq.u32 %p1, %r2, 0;\n@%p1 ret;  // here\nbra $top;",
    "by way of other registers": (
        "$top:\n{watch}\nadd.u32 %r3, %r2, 1;\nsetp.eq.u32 %p2, %r3, 9;\nselp.u32 %r4, 1, 0, %p2;\n"
        "setp.eq.u32 %p1, %r4, 0;\n@!%p1 bra $top;  // here\nret;"
    ),
    "by way of a guard": (
        "$top:\n{watch}\nsetp.eq.u32 %p2, %r2, 0;\nmov.u32 %r3, 0;\n@%p2 mov.u32 %r3, 1;\n"
        "setp.eq.u32 %p1, %r3, 0;\n@%p1 bra $top;  // here\nret;"
    ),
    "of two blocks": "bra $low;\n$top:\n{watch}\nsetp.eq.u32 %p1, %r2, 0;\n$low:\n@%p1 bra $top;  // here\nret;",
}


PASSED = """$top:
{watch}
{store}
bar.sync 0;
{load}
setp.eq.u32 %p1, %r4, 0;
@%p1 bra $top; // here
ret;"""


STORES = (
    "st.shared.u32 [pool], %r2;", "@%p3 st.u32 [%rd2], %r2;", "stmatrix.sync.aligned.m8n8.x1.shared.b16 [pool], {%r2};",
    "atom.shared.exch.b32 %r8, [pool], %r2;", "red.shared.add.u32 [pool], %r2;", "call f, (%r2);",
    "cp.async.ca.shared.global [pool], [%rd2], 4, %r2;",
)  # fmt: skip
LOADS = (
    "ld.shared.u32 %r4, [pool];", "ld.u32 %r4, [%rd2];", "ld.shared.v2.u32 {%r3, %r4}, [pool];",
    "ldu.global.u32 %r4, [%rd2];", "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r4}, [pool];",
    "atom.shared.add.u32 %r4, [pool], 0;", "call (%r4), f, ();",
)  # fmt: skip


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("load", LOADS)
def test_what_is_seen_counts_behind_memory_too(store, load):
    function = FUNCTION.format(body="")
    loop = PASSED.format(watch=WATCHING[0], store=store, load=load)
    assert refusal_at("// here", HEAD + function + entry(loop)) == WAITING
    assert WAITING not in refused(HEAD + function + entry(loop.replace(store, "")))


@pytest.mark.parametrize("fence", ["membar.gl;", "membar.sys;", "fence.acq_rel.gpu;", "fence.sc.sys;"])
def test_a_plain_load_beside_a_fence_watches(fence):
    loop = LOOPS["around it"].format(watch=f"ld.global.u32 %r2, [%rd1];\n{fence}")
    assert refusal_at("// here", HEAD + entry(loop)) == WAITING
    for harmless in ("membar.cta;", "fence.acq_rel.cta;"):
        assert refused(HEAD + entry(loop.replace(fence, harmless))) == ""


@pytest.mark.parametrize("watch", WATCHING)
@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_a_loop_that_may_wait_for_another_block_is_refused(watch, loop):
    assert refusal_at("// here", HEAD + entry(loop.format(watch=watch))) == WAITING


@pytest.mark.parametrize("watch", WATCHING)
def test_a_loop_around_a_call_of_one_that_watches_is_refused(watch):
    loop = "$top:\ncall f, (); // here\nsetp.eq.u32 %p1, %r1, 0;\n@%p1 bra $top;\nret;"
    assert refusal_at("// here", HEAD + FUNCTION.format(body=watch) + entry(loop)) == WAITING
    assert refused(HEAD + FUNCTION.format(body=watch) + entry(CALL + "ret;")) == ""


def test_a_barrier_that_combines_what_threads_saw_passes_it_on():
    loop = "$top:\n{watch}\nsetp.eq.u32 %p2, %r2, 0;\n{meet}.red.or.pred %p1, 0, %p2;\n@%p1 bra $top; // here\nret;"
    for meet in ("bar", "bar.cta", "barrier", "barrier.cta"):
        assert refusal_at("// here", HEAD + entry(loop.format(watch=WATCHING[0], meet=meet))) == WAITING


def test_a_table_of_branches_may_be_a_loop():
    loop = f"$top:\n{WATCHING[0]}\nbrx.idx %r2, $ways; // here\n$out:\nret;\n$ways: .branchtargets $top, $out;"
    assert refusal_at("// here", HEAD + entry(loop)) == WAITING


def test_a_result_of_a_call_may_be_made_of_what_was_seen():
    head = ".func (.param .b32 r) ready(.param .b32 a)"
    ready = head + "\n{\n.reg .b32 %r<9>;\nld.param.b32 %r1, [a];\nst.param.b32 [r], %r1;\nret;\n}\n"
    call = "st.param.b32 [a0], %r2;\ncall (r0), ready, (a0);\nld.param.b32 %r3, [r0];\n}"
    call = "{ .param .b32 a0; .param .b32 r0;\n" + call
    loop = f"$top:\n{WATCHING[0]}\n{call}\nsetp.eq.u32 %p1, %r3, 0;\n@%p1 bra $top; // here\nret;"
    assert refusal_at("// here", HEAD + ready + entry(loop)) == WAITING
    assert refused(HEAD + ready + entry(loop.replace(WATCHING[0], ""))) == ""


def test_who_calls_one_that_watches_watches():
    functions = FUNCTION.format(body=WATCHING[0]) + FUNCTION.replace("f()", "g()").format(body="call f, ();")
    loop = "$top:\ncall g, (); // here\nsetp.eq.u32 %p1, %r1, 0;\n@%p1 bra $top;\nret;"
    assert refusal_at("// here", HEAD + functions + entry(loop)) == WAITING


def test_a_recursion_is_a_loop():
    body = f"{WATCHING[0]}\nsetp.eq.u32 %p1, %r2, 0;\n@%p1 call f, ();".replace("setp", ".reg .pred %p<9>; setp")
    assert "recursion of f" in refused(HEAD + FUNCTION.format(body=body) + entry(CALL + "ret;"))
    assert refused(HEAD + FUNCTION.format(body=body.replace(WATCHING[0], "")) + entry(CALL + "ret;")) == ""


def test_a_loop_in_a_function_counts():
    body = ".reg .pred %p<3>;\n" + LOOPS["around it"].format(watch=WATCHING[0])
    assert refusal_at("// here", HEAD + FUNCTION.format(body=body) + entry(CALL + "ret;")) == WAITING


NOT_WAITING = {
    "no loop": "{watch}\nsetp.eq.u32 %p1, %r2, 0;\n@%p1 bra $out;\nmov.u32 %r1, 1;\n$out:\nret;",
    "what it sees does not decide": (
        "$top:\n{watch}\nadd.u32 %r4, %r4, %r2;\nadd.u32 %r3, %r3, 1;\nsetp.lt.u32 %p1, %r3, 9;\n@%p1 bra $top;\nret;"
    ),
    "it stands before the loop": (
        "{watch}\n$top:\nadd.u32 %r3, %r3, 1;\nsetp.lt.u32 %p1, %r3, %r2;\n@%p1 bra $top;\nret;"
    ),
}


@pytest.mark.parametrize("watch", WATCHING)
@pytest.mark.parametrize("code", NOT_WAITING.values(), ids=NOT_WAITING)
def test_what_waits_for_nobody_is_elastic(watch, code):
    assert refused(HEAD + entry(code.format(watch=watch))) == ""


def test_a_loop_over_memory_that_nobody_else_has_or_writes_is_elastic():
    mine = ("ld.volatile.shared.u32", "ld.volatile.local.u32", "ld.relaxed.cta.global.u32")
    for read in ("ld.global.u32", "ld.global.nc.u32", *mine):
        watch = f"{read} %r2, [%rd1];"
        assert refused(HEAD + entry(LOOPS["around it"].format(watch=watch))) == ""
    for atom in ("atom.shared.cas.b32 %r2, [pool], 0, 1;", "atom.shared::cta.exch.b32 %r2, [pool], 1;"):
        assert refused(HEAD + entry(LOOPS["around it"].format(watch=atom))) == ""


RETRY = """ld.global.u32 %r1, [%rd1];
$top:
add.u32 %r3, %r1, 5;
atom.global.cas.b32 %r2, [%rd1], %r1, %r3;
setp.ne.u32 %p1, %r2, %r1;
mov.u32 %r1, %r2;
@%p1 bra $top; // here
ret;"""


def test_an_update_that_is_tried_again_waits_for_nobody():
    assert refused(HEAD + entry(RETRY)) == ""
    for changed in (
        RETRY.replace("mov.u32 %r1, %r2;\n", ""),
        RETRY.replace("setp.ne.u32 %p1, %r2, %r1", "setp.ne.u32 %p1, %r2, 0"),
        RETRY.replace("setp.ne.u32 %p1, %r2, %r1", "setp.lt.u32 %p1, %r2, %r1"),
        RETRY.replace("%p1, %r2, %r1;", "%p1, %r2, %r1;\nsetp.gt.or.u32 %p1, %r2, 7, %p1;"),
        RETRY.replace("cas.b32 %r2, [%rd1], %r1, %r3", "exch.b32 %r2, [%rd1], %r3"),
    ):
        assert refusal_at("// here", HEAD + entry(changed)) == WAITING


def test_mbarriers_that_are_left_behind_are_refused():
    init = "mbarrier.init.shared::cta.b64 [pool], 1;\n"
    reason = "it leaves mbarriers behind in shared memory"
    assert refused(HEAD + entry(init + "ret;")) == reason
    assert refused(HEAD + FUNCTION.format(body=init.replace("pool", "%r1")) + entry(CALL + "ret;")) == reason
    assert refused(HEAD + entry(f"{init}mbarrier.inval.shared::cta.b64 [pool];\nret;")) == ""


DONE = "some threads of a block may be done while others meet at a barrier"
DONE_IN_WARP = "some threads of a warp may be done while others work together"
OWN = "mov.u32 %r2, %tid.x;\nmul.wide.u32 %rd2, %r2, 4;\nadd.u64 %rd3, %rd1, %rd2;\n"
DIFFERS = {
    "the thread": "mov.u32 %r1, %tid.x;",
    "the lane": "mov.u32 %r1, %laneid;",
    "the warp": "mov.u32 %r1, %warpid;",
    "a mask of lanes": "mov.u32 %r1, %lanemask_lt;",
    "what was loaded from a place of its own": OWN + "ld.global.u32 %r1, [%rd3];",
    "what is in its own memory": "ld.local.u32 %r1, [%rd1];",
    "what may change meanwhile": "ld.volatile.global.u32 %r1, [%rd1];",
    "a shuffle": "shfl.sync.idx.b32 %r1, %r2, 0, 31, -1;",
    "a vote": "activemask.b32 %r1;",
    "an atomic": "atom.shared.add.u32 %r1, [pool], 1;",
    "a number made of it": "mov.u32 %r2, %tid.y;\nadd.u32 %r3, %r2, 1;\nshl.b32 %r1, %r3, 2;",
    "a number that was chosen by it": "setp.eq.u32 %p2, %tid.x, 0;\nmov.u32 %r1, 0;\n@%p2 mov.u32 %r1, 1;",
    "a number that one side wrote": (
        "setp.eq.u32 %p2, %tid.x, 0;\nmov.u32 %r1, 0;\n@%p2 bra $side;\nmov.u32 %r1, 1;\n$side:"
    ),
}
SAME = {
    "a parameter": "ld.param.u32 %r1, [p];",
    "a constant": "ld.const.u32 %r1, [%rd1];",
    "what was loaded from one place": "ld.global.u32 %r1, [%rd1];",
    "the block": "mov.u32 %r2, %ctaid.x;\nmul.lo.u32 %r1, %r2, 3;",
    "the grid": "mov.u32 %r1, %nctaid.y;",
    "the block's size": "mov.u32 %r1, %ntid.x;",
}
WAYS = {
    "return": "setp.eq.u32 %p1, %r1, 5;\n@%p1 ret;\nMEET // here\nret;",
    "exit": "setp.eq.u32 %p1, %r1, 5;\n@!%p1 exit;\nMEET // here\nret;",
    "branch": "setp.eq.u32 %p1, %r1, 5;\n@%p1 bra $out;\nMEET // here\nret;\n$out:\nret;",
    "loop": "$top:\nMEET // here\nsetp.eq.u32 %p1, %r1, 5;\n@%p1 bra $top;\nret;",
}
TABLE = "brx.idx %r1, $ways;\n$in:\nMEET // here\nret;\n$out:\nret;\n$ways: .branchtargets $in, $out;"
BARRIERS = ("bar.sync 0;", "barrier.sync 0;", "barrier.cta.red.or.pred %p3, 0, %p4;", "bar.arrive 1, 64;")
TOGETHER = (
    "bar.warp.sync -1;", "shfl.sync.idx.b32 %r8, %r9, 0, 31, -1;", "vote.sync.any.pred %p3, %p4, -1;",
    "redux.sync.add.s32 %r8, %r9, -1;", "match.any.sync.b32 %r8, %r9, -1;", "elect.sync %r8|%p3, -1;",
    "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r8}, [pool];",
    "stmatrix.sync.aligned.m8n8.x1.shared.b16 [pool], {%r8};",
    "movmatrix.sync.aligned.m8n8.trans.b16 %r8, %r9;", "mma.sync.aligned.m8n8k4.f64 {%r8}, {%r9};",
    "wmma.store.d.sync.aligned.m16n16k16.shared.f16 [pool], {%r8};", "wgmma.fence.sync.aligned;",
)  # fmt: skip


@pytest.mark.parametrize("value", DIFFERS.values(), ids=DIFFERS)
@pytest.mark.parametrize("way", [*WAYS.values(), TABLE], ids=[*WAYS, "table"])
def test_threads_that_are_done_while_others_meet_are_refused(value, way):
    ptx = HEAD + entry(f"{value}\n{way}")
    for meeting in BARRIERS:
        assert refusal_at("// here", ptx.replace("MEET", meeting)) == DONE
    assert refusal_at("// here", ptx.replace("MEET", TOGETHER[0])) == DONE_IN_WARP
    assert refused(ptx.replace("MEET", "")) == ""


@pytest.mark.parametrize("meeting", TOGETHER)
def test_threads_that_are_done_while_their_warp_works_together_are_refused(meeting):
    ptx = HEAD + entry(f"{DIFFERS['the thread']}\n{WAYS['return']}")
    assert refusal_at("// here", ptx.replace("MEET", meeting)) == DONE_IN_WARP


@pytest.mark.parametrize("value", SAME.values(), ids=SAME)
@pytest.mark.parametrize("way", [*WAYS.values(), TABLE], ids=[*WAYS, "table"])
def test_blocks_that_leave_as_one_are_elastic(value, way):
    for meeting in (BARRIERS[0], TOGETHER[0]):
        assert refused(HEAD + entry(f"{value}\n{way}".replace("MEET", meeting))) == ""


def test_threads_that_meet_again_before_the_barrier_are_elastic():
    body = "mov.u32 %r1, %tid.x;\nsetp.eq.u32 %p1, %r1, 5;\n@%p1 bra $on;\nst.shared.u32 [pool], %r1;\n$on:\n"
    for meeting in (*BARRIERS, *TOGETHER):
        assert refused(HEAD + entry(f"{body}{meeting}\nret;")) == ""
    assert refusal_at("// here", HEAD + entry(f"{body}@%p1 ret;\nbar.sync 0; // here\nret;")) == DONE


CHECKED = {
    "branch": "@%p1 bra $bad;\nMEET // here\nret;\n$bad:\nALONE\ntrap;",
    "branch over it": "@!%p1 bra $good;\nALONE\ntrap;\n$good:\nMEET // here\nret;",
    "in a loop": "$top:\n@%p1 bra $bad;\nMEET // here\n@%p5 bra $top;\nret;\n$bad:\nALONE\ntrap;",
}
EQUAL = "ld.param.u32 %r9, [p];\nsetp.eq.u32 %p5, %r9, 0;\n"


@pytest.mark.parametrize("value", DIFFERS.values(), ids=DIFFERS)
@pytest.mark.parametrize("way", CHECKED.values(), ids=CHECKED)
def test_nobody_waits_for_threads_that_trap(value, way):
    ptx = HEAD + entry(f"{EQUAL}{value}\nsetp.eq.u32 %p1, %r1, 5;\n{way}")
    for meetings, reason in ((BARRIERS, DONE), (TOGETHER, DONE_IN_WARP)):
        for meeting in meetings:
            made = ptx.replace("MEET", meeting)
            assert refused(made.replace("ALONE", "")) == ""
            # On their way they may not leave after all, and meet nobody.
            assert refusal_at("// here", made.replace("ALONE", "@%p5 ret;")) == reason
            assert refusal_at("// here", made.replace("trap", "exit").replace("ALONE", "")) == reason
            assert refusal_at("// there", made.replace("ALONE", f"{meeting} // there")) == reason


def test_a_trap_may_stand_alone():
    for meeting in (*BARRIERS, *TOGETHER):
        body = f"{DIFFERS['the thread']}\nsetp.eq.u32 %p1, %r1, 5;\n@%p1 trap;\n{meeting}\nret;"
        assert refused(HEAD + entry(body)) == ""


def test_nobody_meets_in_a_function():
    for meeting in (BARRIERS[0], TOGETHER[0]):
        ptx = HEAD + FUNCTION.format(body=f"{meeting} // here") + entry("call f, ();\nret;")
        assert refusal_at("// here", ptx) == "the threads of a block meet in a function that it calls"
    assert refused(HEAD + FUNCTION.format(body="") + entry("call f, ();\nret;")) == ""


def test_warps_that_part_as_wholes_may_still_work_together():
    def warps(bound: int, compare: str = "lt") -> str:
        body = f"mov.u32 %r1, %tid.x;\nsetp.{compare}.u32 %p1, %r1, {bound};\n@%p1 ret;\nMEET // here\nret;"
        return HEAD + entry(body, directives=".reqntid 128")

    for bound, compare in ((64, "lt"), (64, "ge"), (63, "le"), (63, "gt")):
        assert refused(warps(bound, compare).replace("MEET", TOGETHER[0])) == ""
        assert refusal_at("// here", warps(bound, compare).replace("MEET", BARRIERS[0])) == DONE
    for bound, compare in ((63, "lt"), (48, "ge"), (64, "le"), (64, "eq")):
        assert refusal_at("// here", warps(bound, compare).replace("MEET", TOGETHER[0])) == DONE_IN_WARP
    # A warp is 32 threads in a row only where that is x alone.
    unknown = warps(64).replace("MEET", TOGETHER[0]).replace(".reqntid 128", "")
    assert refusal_at("// here", unknown) == DONE_IN_WARP
    assert refusal_at("// here", unknown.replace("\n{", " .reqntid 64, 2\n{")) == DONE_IN_WARP
    assert rewrite(unknown, block=(128, 1, 1)).refused == {}
    assert DONE_IN_WARP in rewrite(unknown, block=(64, 2, 1)).refused["k"]


def test_printing_is_no_function_that_is_not_known():
    declared = ".extern .func (.param .b32 r) vprintf(.param .b64 a, .param .b64 b);\n"
    call = "{ .param .b64 a; .param .b64 b; .param .b32 r; call.uni (r), vprintf, (a, b); }\nret;"
    assert refused(HEAD + declared + entry(call)) == ""
    assert refused((HEAD + declared + entry(call)).replace("vprintf", "__assertfail")) == ""
    assert "whose code is not here" in refused((HEAD + declared + entry(call)).replace("vprintf", "printv"))
