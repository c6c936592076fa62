"""A PTX text with most of what compilers write, and what holds for every text that is read."""

from __future__ import annotations

import dataclasses
import re

from miriam.elastic import ptx

HEAD = ".version 8.7\n.target sm_90a, debug\n.address_size 64\n"

# Of what LLVM and NVVM write: declarations, initializers, calls, a branch table, debug sections, inline assembly.
SAMPLE = (
    HEAD
    + r"""
	// .globl	sw                      // -- Begin function sw
.file 1 "C:\tmp\a b.cu", 1700000000, 12
.extern .func  (.param .b32 func_retval0) vprintf
(
	.param .b64 vprintf_param_0,
	.param .b64 .ptr .global .align 16 vprintf_param_1
)
;
.extern .func ext_nr
()
.noreturn;
.visible .func ali
;
.alias ali, callee;
.pragma "used_bytes_mask 0xff";
.visible .global .align 4 .b8 tab[16] = {1, 0, 0, 0, 254, 255, 255, 255, 3, 0, 0, 0, 4};
.visible .global .align 8 .u64 ptr[2] = {tab, generic(tab)+8}, other = generic(tab)+4, third;
.global .align 8 .u8 packed[11] = {1, 0xFF(tab), 0xFF00(tab), /* { */ 0, 2, 0};
.const .align 8 .f64 dbl = 0d400C000000000000;
.global .attribute(.managed) .align 4 .u32 mg = -3;
.global .samplerref smp = {addr_mode_0 = clamp, filter_mode = nearest};
.extern .shared .align 16 .b8 sm[];
.weak .global .v4 .f32 quad[2][3];
.func  (.param .align 16 .b8 func_retval0[32]) callee(
	.param .b32 callee_param_0
)                                       // @callee
{
	.reg .b32 	%r<4>, one;
	ld.param.b32 	%r1, [callee_param_0];
	st.param.b32 	[func_retval0], %r1;
	ret;
}
.visible .entry sw(
	.param .u64 .ptr .global .align 1 sw_param_0,
	.param .align 8 .b8 sw_param_1[24],
	.param .u32 sw_param_2
)
.maxntid 128, 1, 1
.minnctapersm 2
.explicitcluster
.pragma "nounroll";
.reqnctapercluster 2, 1, 1              // @sw
{
	.reg .pred 	%p<4>;
	.reg .b32 	%r<26>;
	.shared .align 16 .b8 shm[128];
$L__func_begin0:
	.loc	1 5 0                           // a.cu:5:0
// %bb.0:
	mov.u32 	%r1, %ctaid.x;
	.loc 1 20 3, function_name $L__info_string0, inlined_at 1 6 3
	@!%p2 bra 	$L__BB4_11;
	$L_brx_0: .branchtargets
		$L__BB4_2,
		$L__BB4_3;
	brx.idx 	%r7, $L_brx_0;
$L__BB4_2:
	{ // callseq 0, 0
	.reg .b32 temp_param_reg;
	.param .b64 	param0;
	.param .b32 	retval0;
	st.param.b64 	[param0+0], 0d3FF123456789ABCD;
	call.uni (retval0), vprintf, (param0, 1);
	prototype_1 : .callprototype (.param .b32 _) _ (.param .b64 _) .noreturn;
	call (retval0),
	%rd4,
	(
	param0
	)
	, prototype_1;
	} // callseq 0
$L__BB4_3:
	// begin inline asm
	{ .reg .pred p; { elect.sync _|p, -1; }
@p mbarrier.init.shared::cta.b64 [%r3], 1; }
	// end inline asm
	@%p3 cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r13], [%rd11, {%r5, 0}], [%r10];
	wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%f1,%f2, %f3 , %f4}, %rd1, %rd2, %p1, 1, -1, 0, 0;
$L__BB4_11: ret;
}
	.section	.debug_str
	{
$L__info_string0:
.b8 95,90 // {
.b64 .debug_abbrev+8
	}
"""
)


def structure(node: object) -> object:
    """A node without its places; white space and comments in raw text do not count."""
    if isinstance(node, tuple):
        return tuple(structure(item) for item in node)
    if not dataclasses.is_dataclass(node):
        return node
    left_out = {"start", "end", "parameters_end", "name_start", "_operands"}
    if isinstance(node, ptx.Instruction | ptx.Module | ptx.Number):
        left_out.add("text")
    parts = {f.name: getattr(node, f.name) for f in dataclasses.fields(node) if f.name not in left_out}
    if isinstance(node, ptx.Instruction):
        parts["operands"] = node.operands
    if isinstance(node, ptx.Directive):
        parts["rest"] = re.sub(r"\s|//.*|/\*.*?\*/", "", node.rest)
    return (type(node).__name__, *((key, structure(value)) for key, value in parts.items()))


GAP = re.compile(r"(?:\s|//[^\n]*(?:\n|\Z)|/\*(?s:.*?)\*/)*")


def check_tiles(module: ptx.Module, *, operands: bool) -> None:
    """Siblings cover their parent; every node is inside its parent and where it says."""
    text = module.text

    def tile(nodes, start, end):
        for node in nodes:
            assert GAP.fullmatch(text, start, node.start), text[start : node.start]
            assert start <= node.start < node.end <= end
            start = node.end
        assert GAP.fullmatch(text, start, end), text[start:end]

    def inside(nodes, start, end):
        for node in nodes:
            assert start <= node.start < node.end <= end
            start = node.end

    tile(module.items, 0, len(text))
    for item in module.items:
        if not isinstance(item, ptx.Function):
            continue
        assert text.startswith(item.name, item.name_start)
        assert item.parameters_end == (
            text.index(")", item.parameters_end) if item.has_list else item.name_start + len(item.name)
        )
        inside([*item.returns, *item.parameters, *([item.body] if item.body else [])], item.start, item.end)
        inside(item.directives, item.start, item.end)
        blocks = [item.body, *(s for s in ptx.walk(item.body) if isinstance(s, ptx.Block))] if item.body else []
        for block in blocks:
            assert (text[block.start], text[block.end - 1]) == ("{", "}")
            tile(block.statements, block.start + 1, block.end - 1)
        if operands:
            for block in blocks:
                for s in block.statements:
                    if isinstance(s, ptx.Instruction):
                        inside([*filter(None, [s.guard]), *s.operands], s.start, s.end - 1)
                        for name in (name for operand in s.operands for name in ptx.names(operand)):
                            assert text[name.start : name.end] == name.text
