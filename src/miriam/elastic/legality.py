"""Which kernels may be made elastic, and why the others may not.

An elastic kernel runs its blocks in any order, with any number of them at a time, one after
another on the same worker, and with any pause between two of them. That is wrong for a kernel
whose blocks know of each other, and for one that leaves something behind in its worker. Being
wrong here means wrong numbers for a user: whatever is not known to be right is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from functools import cache

from miriam.elastic.divergence import Divergence
from miriam.elastic.flow import Flow
from miriam.elastic.ptx import Function, Instruction, Module, Name, Operand, Variable, names, walk

__all__ = ["flat", "refusal", "target_from"]

_PARAMETER_LIMIT_BYTES = 4096  # PTX ISA, 5.1.6.1: "4,352 ... 32,764 for PTX 8.1 on"; the smaller one holds everywhere
_STATE_BYTES = 64

# Instructions that touch nothing but their own block, and memory that any block may touch in any order.
_KNOWN = frozenset(
    """
    abs activemask add addc and applypriority atom bar barrier bfe bfi bfind bmsk bra brev brx call clz cnot
    copysign cos cp createpolicy cvt cvta discard div dp2a dp4a elect ex2 exit fence fma fns isspacep ld ldmatrix
    ldu lg2 lop3 mad mad24 madc match max mbarrier membar min mma mov movmatrix mul mul24 neg not or pmevent popc
    prefetch prefetchu prmt rcp red redux rem ret rsqrt sad selp set setp shf shfl shl shr sin slct sqrt st
    stmatrix sub subc szext tanh testp trap vote wgmma wmma xor
    """.split()
)
_REASONS = {
    "griddepcontrol": "it is launched before the kernel in front of it ends (programmatic dependent launch)",
    "mapa": "it uses distributed shared memory",
    "getctarank": "it uses distributed shared memory",
    "clusterlaunchcontrol": "it cancels or takes over blocks of its own grid",
    "multimem": "it works on the memory of several GPUs at once",
    "setmaxnreg": "its warps change their number of registers",
    "alloca": "its stack grows while it runs",
    "stacksave": "its stack grows while it runs",
    "nanosleep": "it sleeps, as kernels do that wait for other blocks",
    "tcgen05": "it keeps state in tensor memory",
    "tensormap": "it changes tensor maps while it runs",
}
_CLUSTERS = (".explicitcluster", ".reqnctapercluster", ".maxclusterrank", ".blocksareclusters")
_BLOCK_INDEX = ("%ctaid", "%nctaid")
_HARMLESS = ("%tid", "%ntid", "%laneid", "%warpid", "%nwarpid", "%lanemask_", "%dynamic_smem_size", "%total_smem_size",
             "%aggr_smem_size")  # fmt: skip
_SPECIAL = {
    "%clusterid": "it knows of clusters", "%nclusterid": "it knows of clusters", "%cluster_": "it knows of clusters",
    "%is_explicit_cluster": "it knows of clusters", "%smid": "it behaves by the SM that it runs on",
    "%nsmid": "it behaves by the SM that it runs on", "%envreg": "it may be a cooperative launch",
    "%gridid": "it behaves by the launch that it belongs to", "%clock": "it reads a clock",
    "%globaltimer": "it reads a clock", "%pm": "it reads performance counters",
}  # fmt: skip
_PRINTING = ("vprintf", "__assertfail")
_SEEN_BY_OTHERS = ("volatile", "relaxed", "acquire", "mmio", "cv", "cg")
_PRIVATE = ("shared", "shared::cta", "local", "param", "param::entry", "param::func", "const", "cta")


def refusal(module: Module, entry: Function, block: tuple[int, int, int] | None = None) -> str:
    """Why ``entry`` cannot be made elastic; empty if it can.

    The reason names the line of ``module`` where there is one. ``block`` is what the entry is launched
    with, where that is known.
    """
    return next(_reasons(module, entry, block), "")


def _reasons(module: Module, entry: Function, block: tuple[int, int, int] | None) -> Iterator[str]:
    if module.address_size != 64:
        yield f"its addresses have {module.address_size} bits"
    if module.version < (6, 0) or not target_from(module, 70):
        yield f"it is PTX {'.'.join(map(str, module.version))} for {module.target}: 6.0 and sm_70 are the least"
    for directive in entry.directives:
        if directive.name in _CLUSTERS:
            yield f"line {module.line(directive.start)}: its blocks form clusters"
    size = sum(parameter.size_bytes(parameter.names[0]) or 0 for parameter in entry.parameters)
    if size + _STATE_BYTES > _PARAMETER_LIMIT_BYTES:
        yield f"its parameters take {size} bytes, which leaves no room for another one"
    functions: dict[str, Function | None] = {}  # a forward declaration has no body
    for item in module.items:
        if isinstance(item, Function) and functions.get(item.name) is None:
            functions[item.name] = item if item.body else None
    yield from _pointers(module, functions)
    telling = _mentions(functions)
    pending, seen = [entry], {entry.name}
    waiting: set[str] = set()
    while pending:
        function = pending.pop()
        assert function.body is not None
        for step in walk(function.body):
            if not isinstance(step, Instruction):
                continue
            inner = function is not entry
            found = _opcode(step.opcode, inner)
            if telling(step.text, step.start, step.end):  # few do, and operands take long to read
                found += (*_registers(step, inner), *_addresses(step, functions))
            for reason in found:
                yield f"line {module.line(step.start)}: {reason}"
            if step.opcode[0] == "call":
                called = _callee(step, functions)
                if called is None:
                    yield f"line {module.line(step.start)}: it calls a function through a pointer"
                elif called not in _PRINTING:
                    target = functions[called]
                    if target is None:
                        yield f"line {module.line(step.start)}: it calls {called}, whose code is not here"
                    elif called not in seen:
                        seen.add(called)
                        pending.append(target)
            if _watches(step) or _fences(step):
                waiting.add(function.name)
    bodies = [f for name, f in functions.items() if f is not None and name in seen]
    calls = {f.name: {_callee(s, functions) for s in _steps(f) if s.opcode[0] == "call"} for f in bodies}
    known = 0
    while known < len(waiting):  # who calls one that watches, watches
        known = len(waiting)
        waiting |= {name for name, called in calls.items() if called & waiting}
    if waiting:
        yield from _recursions(calls, waiting)
        for function in bodies:
            yield from _waits(module, function, waiting, functions)
    yield from _mbarriers(bodies)
    yield from _leaves(module, entry, block)


def target_from(module: Module, least: int) -> bool:
    """Whether ``module`` is for an architecture from ``sm_<least>`` on."""
    digits = "".join(c for c in module.target.removeprefix("sm_") if c.isdigit()) if module.target else ""
    return bool(digits) and int(digits) >= least


def _pointers(module: Module, functions: dict[str, Function | None]) -> Iterator[str]:
    # A table of functions in memory is a call through a pointer waiting to happen.
    for item in module.items:
        if isinstance(item, Variable) and "=" in (text := module.text[item.start : item.end]):
            words = set(text.replace("{", " ").replace("}", " ").replace(",", " ").replace(";", " ").split())
            if words & functions.keys():
                yield f"line {module.line(item.start)}: it keeps functions in a table"


def _names(operands: Sequence[Operand]) -> Iterator[str]:
    for operand in operands:
        for name in names(operand):
            yield name.text


def _callee(step: Instruction, functions: dict[str, Function | None]) -> str | None:
    direct = [o.text for o in step.operands if isinstance(o, Name) and not o.text.startswith("%")]
    known = [name for name in direct if name in functions or name in _PRINTING]
    registers = any(isinstance(o, Name) and o.text.startswith("%") for o in step.operands)
    return known[0] if len(known) == 1 and not registers else None


def _mentions(functions: Iterable[str]) -> Callable[[str, int, int], object]:
    """A search for special registers that matter, and for names of functions, in a part of a text."""
    words = (*_BLOCK_INDEX, *_SPECIAL, *functions)
    return re.compile("|".join(map(re.escape, words))).search


@cache
def _opcode(opcode: tuple[str, ...], inner: bool) -> tuple[str, ...]:
    """What speaks against an instruction whatever its operands are."""
    return tuple(_opcode_reasons(opcode[0], opcode[1:], inner))


def _opcode_reasons(head: str, parts: Sequence[str], inner: bool) -> Iterator[str]:
    if head in _REASONS:
        yield _REASONS[head]
    elif head not in _KNOWN:
        yield f"{head} is not known to be safe"
    if head == "barrier" and "cluster" in parts:
        yield "its blocks form clusters"
    if any(part.startswith("multicast::") for part in parts):
        yield "its blocks form clusters"
    if head in ("ld", "st", "atom", "red", "mbarrier") and ("shared::cluster" in parts or "async" in parts):
        yield "it uses distributed shared memory"
    if head == "mbarrier" and "cluster" in parts:
        yield "its blocks form clusters"
    if head == "cp" and "shared::cluster" in parts and (parts[-1] == "shared::cta" or "shared::cta" in parts):
        yield "it uses distributed shared memory"
    if head == "cp" and "reduce" in parts and "shared::cluster" in parts:
        yield "it uses distributed shared memory"
    if head == "exit" and inner:
        yield "a function that it calls ends the kernel"
    if inner and (_meets(head, parts) or _works_together(head, parts)):
        yield "the threads of a block meet in a function that it calls"
    if inner and head == "ld" and "nc" in parts:
        yield "a function that it calls loads by the way for what is never written"


def _registers(step: Instruction, inner: bool) -> Iterator[str]:
    head, parts = step.opcode[0], step.opcode[1:]
    for name in _names(step.operands):
        if not name.startswith("%") or name.startswith(_HARMLESS):
            continue
        if name.startswith(_BLOCK_INDEX):
            if inner:
                yield "a function that it calls reads the block's index"
            elif not (head in ("mov", "cvt") and name.rpartition(".")[2] in ("x", "y", "z") and parts[-1] in _WORDS):
                yield f"it reads {name} in a way that is not known"
            continue
        yield from (reason for special, reason in _SPECIAL.items() if name.startswith(special))


def _addresses(step: Instruction, functions: Container[str]) -> Iterator[str]:
    for name in _names(step.operands):
        if name in functions and step.opcode[0] != "call":
            yield f"it takes the address of the function {name}"


_WORDS = ("u32", "b32", "s32")


def _watches(step: Instruction, *, plain: bool = False) -> bool:
    """Whether it sees what other blocks write while it runs; ``plain`` loads may too, beside a fence."""
    head, parts = step.opcode[0], step.opcode[1:]
    if head not in ("atom", "ld") or any(part in _PRIVATE for part in parts):
        return False
    return plain or head == "atom" or any(part in _SEEN_BY_OTHERS for part in parts)


def _fences(step: Instruction) -> bool:
    """Whether it orders memory beyond the block."""
    head, parts = step.opcode[0], step.opcode[1:]
    return (head == "membar" and parts[0] in ("gl", "sys")) or (head == "fence" and bool({"gpu", "sys"} & set(parts)))


def _waits(
    module: Module, function: Function, waiting: set[str], functions: dict[str, Function | None]
) -> Iterator[str]:
    """Loops that may go on until another block did something: it may be the paused one."""
    for loop in Flow(function).loops():
        for step in loop:
            if step.opcode[0] == "call" and _callee(step, functions) in waiting:
                yield f"line {module.line(step.start)}: it may wait in a loop for what other blocks write"
        fenced = any(_fences(step) for step in loop)
        watched = [step for step in loop if _watches(step, plain=fenced)]
        if not watched:
            continue
        tainted = {name for step in watched if not _swaps(step, loop) for name in _written(step)}
        passed, grown = False, True  # passed: on to other threads, through memory
        while grown:
            before = len(tainted), passed
            for step in loop:
                if tainted & (set(_read(step)) | ({step.guard.register} if step.guard else set())):
                    passed = passed or step.opcode[0] in _STORES
                    tainted.update(_written(step))
                elif passed and step.opcode[0] in _LOADS and not _given(step, function):
                    tainted.update(_written(step))
            grown = before != (len(tainted), passed)
        for step in loop:
            if step.opcode[0] in ("bra", "ret", "exit", "brx") and tainted & (
                {step.guard.register} if step.guard else set(_read(step))
            ):
                yield f"line {module.line(step.start)}: it may wait in a loop for what other blocks write"


def _given(step: Instruction, function: Function) -> bool:
    """Whether it loads a constant, or a parameter of its own function; others are results of calls."""
    own = {declared.name for parameter in function.parameters for declared in parameter.names}
    return "const" in step.opcode or ("param" in step.opcode and bool(own & set(_names(step.operands[1:]))))


_STORES = frozenset(("st", "stmatrix", "atom", "red", "call", "cp"))
_LOADS = frozenset(("ld", "ldu", "ldmatrix", "atom", "call"))


def _recursions(calls: dict[str, set[str | None]], waiting: set[str]) -> Iterator[str]:
    # A function that calls itself is a loop, too.
    for name in sorted(waiting & calls.keys()):
        reached: set[str] = set()
        pending = [name]
        while pending:
            fresh = {called for called in calls.get(pending.pop(), ()) if called is not None} - reached
            reached |= fresh
            pending += fresh
        if name in reached:
            yield f"it may wait in a recursion of {name} for what other blocks write"


def _swaps(step: Instruction, loop: Sequence[Instruction]) -> bool:
    """Whether it is the compare-and-swap of an update that is tried again, and so waits for nobody."""
    if step.opcode[0] != "atom" or "cas" not in step.opcode or len(step.operands) < 4:
        return False
    got, wanted = step.operands[0], step.operands[2]
    if not (isinstance(got, Name) and isinstance(wanted, Name)):
        return False
    # What it wants has to be what it last saw: a wish that never changes waits for somebody to fulfil it.
    seen, before = {got.text}, 0
    while before < len(seen):
        before = len(seen)
        seen.update(name for s in loop if seen & set(_read(s)) for name in _written(s))
    wishes = [s for s in loop if wanted.text in _written(s)]
    if not wishes or not all(s.opcode[0] == "ld" or seen & set(_read(s)) for s in wishes):
        return False
    compared = [s for s in loop if s.opcode[0] == "setp" and got.text in _read(s)]
    return bool(compared) and all(
        s.opcode[1] in ("eq", "ne") and set(_read(s)) == {got.text, wanted.text} for s in compared
    )


def _written(step: Instruction) -> list[str]:
    head = step.opcode[0]
    if head in ("st", "red", "bra", "brx", "ret", "exit", "membar", "fence") or not step.operands:
        return []
    if head == "bar" and "red" not in step.opcode:
        return []
    return list(_names(step.operands[:1]))


def _read(step: Instruction) -> list[str]:
    first = 0 if not _written(step) else 1
    return list(_names(step.operands[first:]))


def _steps(function: Function) -> Iterator[Instruction]:
    assert function.body is not None
    return (step for step in walk(function.body) if isinstance(step, Instruction))


def _mbarriers(bodies: Sequence[Function]) -> Iterator[str]:
    # The next block of the worker would initialise them while they are still in use: undefined.
    sites = [step.opcode[1] for f in bodies for step in _steps(f) if step.opcode[0] == "mbarrier"]
    if sites.count("init") > sites.count("inval"):
        yield "it leaves mbarriers behind in shared memory"


def _leaves(module: Module, entry: Function, block: tuple[int, int, int] | None) -> Iterator[str]:
    """Threads that are done while others of their block, or of their warp, still meet.

    A thread that has left is not waited for, but in a worker it is only at the end of its block: it
    would be counted at the wrong barrier, or waited for for ever. One that traps goes nowhere, and nobody
    else does: the grid is killed, and the context with it, elastic or not.
    """
    if not any(_barrier(step) or _warpwide(step) for step in _steps(entry)):
        return
    ways = Divergence(entry, flat=flat(entry, block))
    for step in ways.apart(within_warps=False):
        if _barrier(step):
            yield f"line {module.line(step.start)}: some threads of a block may be done while others meet at a barrier"
    for step in ways.apart(within_warps=True):
        if _warpwide(step):
            yield f"line {module.line(step.start)}: some threads of a warp may be done while others work together"


_WARPWIDE = frozenset(
    ("shfl", "vote", "match", "redux", "elect", "mma", "wmma", "wgmma", "ldmatrix", "stmatrix", "movmatrix")
)


def _barrier(step: Instruction) -> bool:
    return _meets(step.opcode[0], step.opcode[1:])


def _meets(head: str, parts: Sequence[str]) -> bool:
    return head in ("bar", "barrier") and "warp" not in parts


def _warpwide(step: Instruction) -> bool:
    return _works_together(step.opcode[0], step.opcode[1:])


def _works_together(head: str, parts: Sequence[str]) -> bool:
    return head in _WARPWIDE or (head == "bar" and "warp" in parts)


def flat(entry: Function, block: tuple[int, int, int] | None) -> bool:
    """Whether the block of ``entry`` is known to have one dimension."""
    if block is not None:
        return block[1] == block[2] == 1
    for directive in entry.directives:
        if directive.name == ".reqntid":  # .maxntid only bounds their product
            return all(word.strip() in ("1", "0x1") for word in directive.rest.split(",")[1:])
    return False
