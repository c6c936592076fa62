"""Copies and fills as kernels, in PTX of our own, so that they are elastic like any other launch.

A program's copies and fills are operations of the driver, which run whole and know of no pause.
As kernels they go through the same rewriting as what a compiler writes. Both work byte by byte
where addresses or sizes are odd, else sixteen bytes at a time.
"""

from __future__ import annotations

__all__ = ["COPY", "FILL", "MEMORY", "MEMORY_THREADS", "memory_grid"]

COPY = "miriam_copy"
FILL = "miriam_fill"
MEMORY_THREADS = 256
_BYTES_PER_BLOCK = 16 * MEMORY_THREADS * 4
_MOST_BLOCKS = 2048


def memory_grid(size_bytes: int) -> int:
    """Blocks for a copy or a fill of ``size_bytes``."""
    return min(max(1, -(-size_bytes // _BYTES_PER_BLOCK)), _MOST_BLOCKS)


# %i: the number of this thread in the launch; %stride: threads of the launch.
START = """	mov.u32 %a, %ctaid.x;
	mov.u32 %b, %ntid.x;
	mov.u32 %c, %tid.x;
	mad.wide.u32 %i, %a, %b, 0;
	cvt.u64.u32 %j, %c;
	add.u64 %i, %i, %j;
	mov.u32 %a, %nctaid.x;
	mul.wide.u32 %stride, %a, %b;
"""

COPY_REGISTERS = """	.reg .pred %p;
	.reg .b16 %h;
	.reg .b32 %a, %b, %c, %x<4>;
	.reg .b64 %i, %j, %stride, %to, %from, %size, %wide, %at, %offset;
"""

# Copies %size bytes from %from to %to.
COPYING = f"""{START}	or.b64 %j, %to, %from;
	and.b64 %j, %j, 15;
	shr.u64 %wide, %size, 4;
	setp.ne.u64 %p, %j, 0;
	selp.u64 %wide, 0, %wide, %p;
	mov.u64 %j, %i;
$wide:
	setp.ge.u64 %p, %j, %wide;
	@%p bra $rest;
	shl.b64 %offset, %j, 4;
	add.u64 %at, %from, %offset;
	ld.global.v4.u32 {{%x0, %x1, %x2, %x3}}, [%at];
	add.u64 %at, %to, %offset;
	st.global.v4.u32 [%at], {{%x0, %x1, %x2, %x3}};
	add.u64 %j, %j, %stride;
	bra $wide;
$rest:
	shl.b64 %wide, %wide, 4;
	add.u64 %i, %i, %wide;
$bytes:
	setp.ge.u64 %p, %i, %size;
	@%p ret;
	add.u64 %j, %from, %i;
	ld.global.u8 %h, [%j];
	add.u64 %j, %to, %i;
	st.global.u8 [%j], %h;
	add.u64 %i, %i, %stride;
	bra $bytes;
"""

MEMORY = f"""
.version 7.0
.target sm_75
.address_size 64

.visible .entry {COPY}(.param .u64 to, .param .u64 from, .param .u64 size)
.reqntid {MEMORY_THREADS}
{{
{COPY_REGISTERS}	ld.param.u64 %to, [to];
	ld.param.u64 %from, [from];
	ld.param.u64 %size, [size];
{COPYING}}}

.visible .entry {FILL}(.param .u64 to, .param .u64 value, .param .u64 width, .param .u64 count)
.reqntid {MEMORY_THREADS}
{{
	.reg .pred %p, %one, %two;
	.reg .b16 %h;
	.reg .b32 %a, %b, %c, %v;
	.reg .b64 %i, %j, %stride, %to, %value, %width, %count;
	ld.param.u64 %to, [to];
	ld.param.u64 %value, [value];
	ld.param.u64 %width, [width];
	ld.param.u64 %count, [count];
	cvt.u32.u64 %v, %value;
	cvt.u16.u32 %h, %v;
	setp.eq.u64 %one, %width, 1;
	setp.eq.u64 %two, %width, 2;
{START}$next:
	setp.ge.u64 %p, %i, %count;
	@%p ret;
	mad.lo.u64 %j, %i, %width, %to;
	@%one st.global.u8 [%j], %h;
	@%two st.global.u16 [%j], %h;
	or.pred %p, %one, %two;
	@!%p st.global.u32 [%j], %v;
	add.u64 %i, %i, %stride;
	bra $next;
}}
"""
