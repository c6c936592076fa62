"""Small kernels for inferences that look after themselves on the GPU, in PTX of our own.

A *resident* inference is one CUDA graph: a loop of passes, each of them a gate, a pass in one of two
ways, and a step that tells the loop whether anything is left. No host is asked in between::

    WHILE(loop) { gate_resident -> choice
                  SWITCH(choice) { 0: exclusive launches   1: looped launches }
                  step -> loop }
    notify

or several such loops, one behind the other, each over the launches of one span of the program.

Entries, with their parameters (``u64`` unless said); each is one block of ``THREADS`` unless said:

``miriam_gate_resident(inference, lane, choice)``
    Waits while there is something to run and the lane's limit forbids it, then begins a pass: an
    exclusive one under ``ALL``, a claimed one under any other limit above 0. ``choice`` is the handle
    of the switch; 0: there are exclusive passes alone, and any limit but ``ALL`` makes it wait. After about
    a second it stops waiting and begins an exclusive pass: whoever could let it go may wait for it, in
    the driver, which loads code only when nothing runs.
``miriam_step(inference, lane, loop, until u32)``
    Behind a pass in ``lane`` over the launches below ``until``, whichever gate began it: writes down which
    launch is the next one. From then on no gate needs the lane's words, so other programs may have passes in
    the lane. Sets the handle ``loop`` (0: none) to whether any of these launches is incomplete.
``miriam_look(lane, index u32, handle)``
    In the place of the first worker of a launch that only runs whole, in an exclusive pass: sets the
    handle to whether the pass is to run it. A limit that is not the width stops the pass here.
``miriam_notify(inference, counter, words)``
    A run has ended: ``counter`` (u32 on the device) goes up by one. The host finds in ``words``, two u32
    in its own memory, the counter, and whether the inference is complete (inference 0: yes).
``miriam_hold(table, lanes u32, count u32)``
    ``table`` has the addresses of a lane's words and of its :class:`~miriam.elastic.state.Limiter`, for
    each of so many lanes. Adds ``count`` to what is pending there and brings the limit to what the
    limiter says from then on. A count of 0 does the latter alone, behind a change of ``padded`` or
    ``idle``.
``miriam_release(table, lanes u32, counter, words)``
    Takes one off and brings the limit back; ``counter`` and ``words`` as of ``miriam_notify``.
``miriam_feed(counter, a, b, destination, bytes)``
    As many blocks as a copy has: copies a, or b if the counter is odd, to ``destination``.
``miriam_compare(counter, output, a, b, bytes, wrong)``
    As many blocks: adds to ``wrong`` (u32) how many words of 4 bytes of ``output`` are not those of a,
    or of b if the counter is odd; the last word may be shorter.

Handles are those of CUDA graphs. ``cudaGraphSetConditional`` is known to the driver alone: the module
is loaded as it is, not assembled.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from miriam.elastic.gate import BEGIN, CLAIMED_THREADS, COUNT, LAST, PUBLISH, REGISTERS, SCAN, STOPPED
from miriam.elastic.memory import COPY_REGISTERS, COPYING, MEMORY_THREADS, START
from miriam.elastic.state import ALL, COPIES, COPY_BYTES, LOOK_NS, LOOKS, MAX_LAUNCHES

__all__ = ["COMPARE", "FEED", "GATE", "HOLD", "LOOK", "NOTIFY", "RELEASE", "RESIDENT", "STEP", "THREADS"]

GATE = "miriam_gate_resident"
STEP = "miriam_step"
LOOK = "miriam_look"
NOTIFY = "miriam_notify"
HOLD = "miriam_hold"
RELEASE = "miriam_release"
FEED = "miriam_feed"
COMPARE = "miriam_compare"

_WARP = 32
THREADS: Mapping[str, int] = MappingProxyType(
    {
        GATE: CLAIMED_THREADS,
        STEP: _WARP,
        LOOK: _WARP,
        NOTIFY: _WARP,
        HOLD: _WARP,
        RELEASE: 2 * _WARP,
        FEED: MEMORY_THREADS,
        COMPARE: MEMORY_THREADS,
    }
)
"""Threads of each entry's block."""


def _entry(name: str, parameters: str, body: str) -> str:
    """``parameters``: names of those with 64 bits; ``name:32`` for one with 32."""
    words = [word.partition(":") for word in parameters.split()]
    declared = ", ".join(f".param .u{bits or 64} {word}" for word, _, bits in words)
    return f"\n.visible .entry {name}({declared})\n.reqntid {THREADS[name]}\n{{\n{body}}}\n"


def _tell(handle: str, value: str) -> str:
    """Code that sets a handle of a graph."""
    return f"""	{{
	.param .b64 handle_;
	.param .b32 value_;
	st.param.b64 [handle_], {handle};
	st.param.b32 [value_], {value};
	call.uni cudaGraphSetConditional, (handle_, value_);
	}}
"""


# The limit that ends the wait is the width of the pass: it is not loaded again.
_GATE = f"""{REGISTERS}
	.reg .b64 %choice;
	ld.param.u64 %choice, [choice];
	ld.global.u64 %taken, [%inference+24];
	ld.global.u64 %counters, [%inference+32];
	setp.ne.u32 %go, %me, 0;
	@%go bra $told;
	ld.relaxed.gpu.global.v4.u32 {{%next, %epoch, %claimed, %launches}}, [%inference];
	setp.ne.u32 %q, %claimed, 0;
	@%q bra $shared;
{LAST}{STOPPED}
	bra $latch;
$shared:
{SCAN}
$latch:
{BEGIN}
	mov.u32 %first, {MAX_LAUNCHES};
	mov.u32 %i, 0;  // the way: 1 for a claimed pass
	ld.relaxed.gpu.global.u32 %limit, [%lane];
	setp.ge.u32 %p, %next, %launches;
	@%p bra $open;
	mov.u32 %first, %next;
	mov.u32 %n, {LOOKS};
$wait:
	setp.eq.u32 %p, %limit, {ALL};
	setp.eq.or.u32 %p, %n, 0, %p;
	@%p bra $open;
	sub.u32 %n, %n, 1;
	setp.eq.u64 %p, %choice, 0;
	setp.eq.or.u32 %p, %limit, 0, %p;
	@!%p bra $narrow;
	nanosleep.u32 {LOOK_NS};
	ld.relaxed.gpu.global.u32 %limit, [%lane];
	bra $wait;
$narrow:
	mov.u32 %i, 1;
$open:
	setp.ne.u32 %p, %i, 0;
	selp.u64 %last, 0, %lane, %p;
	st.relaxed.gpu.global.v2.u32 [%inference], {{%next, %epoch}};
	st.relaxed.gpu.global.u32 [%inference+8], %i;
	st.global.u64 [%inference+40], %last;
	not.pred %p, %fresh;
	and.pred %p, %p, %q;
	selp.u32 %t, 0, %i, %p;
	st.shared.v4.b32 [shared], {{%next, %epoch, %limit, %first}};
	st.shared.v2.b32 [shared+16], {{%t, %launches}};
	setp.eq.u64 %p, %choice, 0;
	@%p bra $told;
{_tell("%choice", "%i")}$told:
{COUNT}{PUBLISH}
	ret;
"""

_STEP = f"""{REGISTERS}
	.reg .b64 %loop;
	setp.ne.u32 %p, %me, 0;
	@%p ret;
	ld.relaxed.gpu.global.v4.u32 {{%next, %epoch, %claimed, %launches}}, [%inference];
	ld.param.u32 %launches, [until];
	ld.global.u64 %counters, [%inference+32];
	setp.eq.u32 %p, %claimed, 0;
	@%p bra $exclusive;
{SCAN}
	bra $stopped;
$exclusive:
	ld.global.u64 %last, [%inference+40];
	setp.ne.u64 %p, %last, %lane;
{STOPPED}
	st.relaxed.gpu.global.u32 [%inference], %next;
	st.global.u64 [%inference+40], 0;
	ld.param.u64 %loop, [loop];
	setp.eq.u64 %p, %loop, 0;
	@%p ret;
	setp.lt.u32 %go, %next, %launches;
	selp.u32 %t, 1, 0, %go;
{_tell("%loop", "%t")}	ret;
"""

_LOOK = f"""	.reg .pred %p;
	.reg .b32 %me, %index, %limit, %width, %first, %stop, %value;
	.reg .b64 %lane, %handle;
	mov.u32 %me, %tid.x;
	setp.ne.u32 %p, %me, 0;
	@%p ret;
	ld.param.u64 %lane, [lane];
	ld.param.u32 %index, [index];
	ld.param.u64 %handle, [handle];
	mov.u32 %value, 0;
	ld.relaxed.gpu.global.v4.u32 {{%limit, %width, %first, %stop}}, [%lane];
	and.b32 %first, %first, {MAX_LAUNCHES};
	setp.lt.u32 %p, %index, %first;
	setp.gt.or.u32 %p, %index, %stop, %p;
	@%p bra $tell;
	setp.eq.u32 %p, %limit, %width;
	selp.u32 %value, 1, 0, %p;
	@%p bra $tell;
{"".join(f"	st.relaxed.gpu.global.u32 [%lane+{12 + COPY_BYTES * i}], %index;" + chr(10) for i in range(COPIES))}$tell:
{_tell("%handle", "%value")}	ret;
"""

# The host may look as soon as it sees the counter: that is written last. One thread does this.
_NOTIFYING = """	ld.param.u64 %counter, [counter];
	ld.param.u64 %words, [words];
	ld.relaxed.gpu.global.u32 %t, [%counter];
	add.u32 %t, %t, 1;
	st.relaxed.gpu.global.u32 [%counter], %t;
	st.relaxed.sys.global.u32 [%words+4], %complete;
	st.release.sys.global.u32 [%words], %t;
"""

_NOTIFY = f"""	.reg .pred %p;
	.reg .b32 %me, %t, %complete, %next, %launches;
	.reg .b64 %inference, %counter, %words;
	mov.u32 %me, %tid.x;
	setp.ne.u32 %p, %me, 0;
	@%p ret;
	ld.param.u64 %inference, [inference];
	mov.u32 %complete, 1;
	setp.eq.u64 %p, %inference, 0;
	@%p bra $tell;
	ld.relaxed.gpu.global.u32 %next, [%inference];
	ld.relaxed.gpu.global.u32 %launches, [%inference+12];
	setp.ge.u32 %p, %next, %launches;
	selp.u32 %complete, 1, 0, %p;
$tell:
{_NOTIFYING}	ret;
"""

_TABLE = """	.reg .pred %p, %written;
	.reg .b32 %me, %lanes, %count, %i, %n, %pending, %padded, %idle, %limit, %last;
	.reg .b64 %table, %at, %copy, %limiter;
	mov.u32 %me, %tid.x;
	ld.param.u64 %table, [table];
	ld.param.u32 %lanes, [lanes];
"""

# One warp adds %count everywhere, then brings the limits to what the limiters say: each thread its copy
# of every other lane. Other streams may be at the same word, and late with what they have read; so each
# looks again after it has written, until it finds what it wrote for. One fence lies between a change and
# what is written for it, one between what is written and the look behind it: whoever writes a word last has
# then either seen the last change or finds it when it looks again (``tests/limiter_model.py``).
_LIMIT = f"""	mov.u32 %i, %me;
$add:
	setp.ge.u32 %p, %i, %lanes;
	@%p bra $added;
	mad.wide.u32 %at, %i, 16, %table;
	ld.global.u64 %limiter, [%at+8];
	red.relaxed.gpu.global.add.u32 [%limiter], %count;
	add.u32 %i, %i, {_WARP};
	bra $add;
$added:
	bar.warp.sync 0xffffffff;
	shr.u32 %i, %me, {COPIES.bit_length() - 1};
	and.b32 %n, %me, {COPIES - 1};
$lane:
	setp.ge.u32 %p, %i, %lanes;
	@%p ret;
	mad.wide.u32 %at, %i, 16, %table;
	ld.global.v2.u64 {{%copy, %limiter}}, [%at];
	mad.wide.u32 %copy, %n, {COPY_BYTES}, %copy;
	mov.pred %written, 0;
	mov.u32 %last, 0;
$again:
	fence.sc.gpu;
	ld.relaxed.gpu.global.u32 %pending, [%limiter];
	ld.relaxed.gpu.global.u32 %padded, [%limiter+4];
	ld.relaxed.gpu.global.u32 %idle, [%limiter+8];
	min.u32 %padded, %padded, %idle;
	setp.gt.s32 %p, %pending, 0;
	selp.u32 %limit, %padded, %idle, %p;
	setp.eq.and.u32 %p, %limit, %last, %written;
	@%p bra $next;
	st.relaxed.gpu.global.u32 [%copy], %limit;
	mov.u32 %last, %limit;
	mov.pred %written, 1;
	bra $again;
$next:
	add.u32 %i, %i, {_WARP // COPIES};
	bra $lane;
"""

_HOLD = f"""{_TABLE}	ld.param.u32 %count, [count];
{_LIMIT}"""

# A second warp tells the host meanwhile.
_RELEASE = f"""{_TABLE}	.reg .b32 %t, %complete;
	.reg .b64 %counter, %words;
	mov.u32 %count, 0xffffffff;
	setp.lt.u32 %p, %me, {_WARP};
	@%p bra $limit;
	setp.ne.u32 %p, %me, {_WARP};
	@%p ret;
	mov.u32 %complete, 1;
{_NOTIFYING}	ret;
$limit:
{_LIMIT}"""

# One of two, by whether the counter is odd.
_EITHER = """	ld.param.u64 %at, [counter];
	ld.relaxed.gpu.global.u32 %a, [%at];
	and.b32 %a, %a, 1;
	setp.ne.u32 %p, %a, 0;
	ld.param.u64 %from, [a];
	ld.param.u64 %at, [b];
	selp.u64 %from, %at, %from, %p;
	ld.param.u64 %size, [bytes];
"""

_FEED = f"""{COPY_REGISTERS}{_EITHER}	ld.param.u64 %to, [destination];
{COPYING}"""

_COMPARE = f"""	.reg .pred %p, %q, %odd;
	.reg .b16 %g, %h;
	.reg .b32 %a, %b, %c, %wrong;
	.reg .b64 %i, %j, %stride, %output, %from, %size, %at, %k, %end, %words;
{_EITHER}	ld.param.u64 %output, [output];
{START}	or.b64 %j, %output, %from;
	and.b64 %j, %j, 3;
	setp.ne.u64 %odd, %j, 0;
	add.u64 %words, %size, 3;
	shr.u64 %words, %words, 2;
	mov.u32 %wrong, 0;
$word:
	setp.ge.u64 %p, %i, %words;
	@%p bra $sum;
	shl.b64 %k, %i, 2;
	add.u64 %end, %k, 4;
	setp.gt.or.u64 %p, %end, %size, %odd;
	@%p bra $odd;
	add.u64 %at, %output, %k;
	ld.global.u32 %a, [%at];
	add.u64 %at, %from, %k;
	ld.global.u32 %b, [%at];
	setp.ne.u32 %q, %a, %b;
	bra $add;
$odd:
	min.u64 %end, %end, %size;
	mov.pred %q, 0;
$byte:
	setp.ge.u64 %p, %k, %end;
	@%p bra $add;
	add.u64 %at, %output, %k;
	ld.global.u8 %g, [%at];
	add.u64 %at, %from, %k;
	ld.global.u8 %h, [%at];
	setp.ne.or.u16 %q, %g, %h, %q;
	add.u64 %k, %k, 1;
	bra $byte;
$add:
	selp.u32 %a, 1, 0, %q;
	add.u32 %wrong, %wrong, %a;
	add.u64 %i, %i, %stride;
	bra $word;
$sum:
	setp.eq.u32 %p, %wrong, 0;
	@%p ret;
	ld.param.u64 %at, [wrong];
	red.relaxed.gpu.global.add.u32 [%at], %wrong;
	ret;
"""

SET_CONDITIONAL = ".extern .func cudaGraphSetConditional(.param .b64 handle, .param .b32 value);"
"""What the driver brings."""

RESIDENT = f".version 7.0\n.target sm_75\n.address_size 64\n\n{SET_CONDITIONAL}\n" + "".join(
    _entry(*entry)
    for entry in (
        (GATE, "inference lane choice", _GATE),
        (STEP, "inference lane loop until:32", _STEP),
        (LOOK, "lane index:32 handle", _LOOK),
        (NOTIFY, "inference counter words", _NOTIFY),
        (HOLD, "table lanes:32 count:32", _HOLD),
        (RELEASE, "table lanes:32 counter words", _RELEASE),
        (FEED, "counter a b destination bytes", _FEED),
        (COMPARE, "counter output a b bytes wrong", _COMPARE),
    )
)
"""The PTX module, for any GPU from sm_75 on."""
