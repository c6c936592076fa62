"""The gates: one small kernel at the start of each pass, in PTX of our own.

A gate looks at how the last pass ended, finds the first launch that is not complete, begins the
next inference if there is nothing left of this one, and takes over the lane's limit as the width
of the pass. Entries, each with the addresses of the inference and the lane:

* ``miriam_gate_exclusive``, one block of ``EXCLUSIVE_THREADS``: for passes of direct, strided and
  guarded launches. No other lane may have a pass of this inference in flight.
* ``miriam_gate_claimed``, one block of ``CLAIMED_THREADS``: for passes of looped launches. Other
  lanes may have claimed passes of the same inference in flight, but no exclusive one, and the gate
  that begins an inference or follows an exclusive pass must come before those of the other lanes:
  with several lanes, count what is wanted, and raise it only while no pass is in flight.
"""

from __future__ import annotations

from miriam.elastic.state import ALL, COPIES, COPY_BYTES, COUNTER_BYTES, EPOCHS, MAX_LAUNCHES, NONE

__all__ = ["CLAIMED", "CLAIMED_THREADS", "EXCLUSIVE", "EXCLUSIVE_THREADS", "GATES"]

EXCLUSIVE = "miriam_gate_exclusive"
CLAIMED = "miriam_gate_claimed"
EXCLUSIVE_THREADS = 32
CLAIMED_THREADS = 256

# next, epoch: in and out. Moves on to the next inference if this one is complete and another is wanted.
BEGIN = f"""
	ld.relaxed.gpu.global.v2.u32 {{%begun, %wanted}}, [%inference+16];
	mov.pred %fresh, 0;
	setp.lt.u32 %go, %next, %launches;
	@%go bra $begun;
	setp.eq.u32 %p, %wanted, {ALL};
	setp.ne.or.u32 %go, %begun, %wanted, %p;
	@!%go bra $begun;
	mov.pred %fresh, 1;
	mov.u32 %next, 0;
	add.u32 %begun, %begun, 1;
	setp.eq.u32 %p, %epoch, {EPOCHS};
	add.u32 %epoch, %epoch, 1;
	selp.u32 %epoch, 1, %epoch, %p;
	st.relaxed.gpu.global.u32 [%inference+16], %begun;
$begun:
"""
_LATCH = f"""{BEGIN}
	ld.relaxed.gpu.global.u32 %limit, [%lane];
"""

# %p: the limit lets this pass run nothing.
_FIRST = f"""
	setp.ge.or.u32 %p, %next, %launches, %p;
	selp.u32 %first, {MAX_LAUNCHES}, %next, %p;
"""

# Thread i writes copy i of the lane's words, from what the first thread put into shared memory.
PUBLISH = f"""
	bar.sync 0;
	setp.ge.u32 %p, %me, {COPIES};
	@%p ret;
	ld.shared.v4.b32 {{%next, %epoch, %limit, %first}}, [shared];
	shl.b32 %t, %epoch, 16;
	or.b32 %t, %t, %first;
	mad.wide.u32 %at, %me, {COPY_BYTES}, %lane;
	st.relaxed.gpu.global.u32 [%at+4], %limit;
	st.relaxed.gpu.global.u32 [%at+8], %t;
	st.relaxed.gpu.global.u32 [%at+12], {NONE};
"""

REGISTERS = """
	.reg .pred %p, %q, %go, %fresh;
	.reg .b32 %next, %epoch, %claimed, %launches, %begun, %wanted, %limit, %first, %stop, %t, %done, %shares, %i, %n;
	.reg .b16 %half;
	.reg .b32 %me;
	.reg .b64 %inference, %lane, %last, %counters, %taken, %at;
	.shared .align 16 .b32 shared[8];
	mov.u32 %me, %tid.x;
	ld.param.u64 %inference, [inference];
	ld.param.u64 %lane, [lane];
"""

# %next advances over launches whose shares have all ended; acquire, for what other lanes' blocks wrote.
SCAN = f"""
$scan:
	setp.ge.u32 %p, %next, %launches;
	@%p bra $scanned;
	mad.wide.u32 %at, %next, {COUNTER_BYTES}, %counters;
	ld.acquire.gpu.global.u32 %done, [%at+4];
	ld.global.u32 %shares, [%at+8];
	setp.ne.u32 %p, %done, %shares;
	@%p bra $scanned;
	add.u32 %next, %next, 1;
	bra $scan;
$scanned:
"""

# After an exclusive pass, in the lane %last: from where it stopped, or all launches if it did not. A
# pass that ran nothing says nothing. %p: there is no such lane.
STOPPED = f"""
	@%p bra $stopped;
	ld.relaxed.gpu.global.v2.u32 {{%first, %stop}}, [%last+8];
	and.b32 %first, %first, 65535;
	setp.eq.u32 %p, %first, {MAX_LAUNCHES};
	@%p bra $stopped;
	setp.eq.u32 %p, %stop, {NONE};
	selp.u32 %next, %launches, %stop, %p;
$stopped:
"""

# The lane of the last exclusive pass.
LAST = """
	ld.global.u64 %last, [%inference+40];
	setp.eq.u64 %p, %last, 0;
"""

# A claimed pass of an inference under way finds its counters in use; any other one (shared[4]) sets them:
# to zero from next on, and in that launch to the shares that were taken.
COUNT = f"""
	bar.sync 0;
	ld.shared.v2.b32 {{%next, %epoch}}, [shared];
	ld.shared.v2.b32 {{%t, %launches}}, [shared+16];
	setp.eq.u32 %p, %t, 0;
	@%p bra $counted;
	add.u32 %i, %next, %me;
$clear:
	setp.ge.u32 %p, %i, %launches;
	@%p bra $cleared;
	mad.wide.u32 %at, %i, {COUNTER_BYTES}, %counters;
	st.relaxed.gpu.global.u32 [%at], 0;
	st.relaxed.gpu.global.u32 [%at+4], 0;
	add.u32 %i, %i, {CLAIMED_THREADS};
	bra $clear;
$cleared:
	bar.sync 0;
	setp.ge.u32 %p, %next, %launches;
	@%p bra $counted;
	mad.wide.u32 %at, %next, 8, %taken;
	ld.global.u64 %taken, [%at];
	mad.wide.u32 %counters, %next, {COUNTER_BYTES}, %counters;
	ld.global.u32 %shares, [%counters+8];
	mov.u32 %i, %me;
	mov.u32 %n, 0;
$count:
	setp.ge.u32 %p, %i, %shares;
	@%p bra $sum;
	mad.wide.u32 %at, %i, 2, %taken;
	ld.global.u16 %half, [%at];
	cvt.u32.u16 %t, %half;
	setp.eq.u32 %p, %t, %epoch;
	selp.u32 %t, 1, 0, %p;
	add.u32 %n, %n, %t;
	add.u32 %i, %i, {CLAIMED_THREADS};
	bra $count;
$sum:
	red.relaxed.gpu.global.add.u32 [%counters+4], %n;
$counted:
"""

_EXCLUSIVE = f"""
.visible .entry {EXCLUSIVE}(.param .u64 inference, .param .u64 lane)
.reqntid {EXCLUSIVE_THREADS}
{{{REGISTERS}
	setp.ne.u32 %go, %me, 0;
	@%go bra $told;
	ld.relaxed.gpu.global.v4.u32 {{%next, %epoch, %claimed, %launches}}, [%inference];
	ld.global.u64 %counters, [%inference+32];
	setp.eq.u32 %p, %claimed, 0;
	@%p bra $exclusive;
{SCAN}
	bra $stopped;
$exclusive:
{LAST}{STOPPED}
{_LATCH}
	setp.ne.u32 %p, %limit, {ALL};
{_FIRST}
	st.relaxed.gpu.global.v2.u32 [%inference], {{%next, %epoch}};
	st.relaxed.gpu.global.u32 [%inference+8], 0;
	st.global.u64 [%inference+40], %lane;
	st.shared.v4.b32 [shared], {{%next, %epoch, %limit, %first}};
$told:
{PUBLISH}
	ret;
}}
"""

_CLAIMED = f"""
.visible .entry {CLAIMED}(.param .u64 inference, .param .u64 lane)
.reqntid {CLAIMED_THREADS}
{{{REGISTERS}
	ld.global.u64 %taken, [%inference+24];
	ld.global.u64 %counters, [%inference+32];
	setp.ne.u32 %go, %me, 0;
	@%go bra $told;
	ld.relaxed.gpu.global.v4.u32 {{%next, %epoch, %claimed, %launches}}, [%inference];
	fence.acq_rel.gpu;
	setp.ne.u32 %q, %claimed, 0;
	@%q bra $shared;
{LAST}{STOPPED}
	bra $latch;
$shared:
{SCAN}
$latch:
{_LATCH}
	setp.eq.u32 %p, %limit, 0;
{_FIRST}
	// A claimed pass of an inference under way finds its counters in use; any other one sets them.
	not.pred %p, %fresh;
	and.pred %p, %p, %q;
	selp.u32 %t, 0, 1, %p;
	st.shared.v4.b32 [shared], {{%next, %epoch, %limit, %first}};
	st.shared.v2.b32 [shared+16], {{%t, %launches}};
	fence.acq_rel.gpu;
	st.relaxed.gpu.global.v2.u32 [%inference], {{%next, %epoch}};
	st.relaxed.gpu.global.u32 [%inference+8], 1;
	st.global.u64 [%inference+40], 0;
$told:
{COUNT}
{PUBLISH}
	ret;
}}
"""

GATES = f".version 7.0\n.target sm_75\n.address_size 64\n{_EXCLUSIVE}{_CLAIMED}"
"""The PTX module of both, for any GPU from sm_75 on."""
