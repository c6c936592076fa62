"""Modules of PyTorch as chains: a step for each operator of the exported graph, slice by slice of the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils import _pytree as pytree

from miriam.errors import CompileError, ModelError
from miriam.frontend._torch_steps import Body, alone, close, outputs_of, stepwise
from miriam.frontend.chain import Chain, as_arrays, host_program, named, plain_tensor, timed

__all__ = ["array_of", "structure_of", "tensor_of", "torch_chain"]

_LONG_US = 2000.0  # what a step should take at most
_COST = 1.25  # what slices may take together, to the batch as a whole

_OUTPUT = object()  # stands for one

_Tensors: TypeAlias = Sequence[torch.Tensor]


def torch_chain(
    model: torch.nn.Module | torch.export.ExportedProgram, example: Any, name: str, threads: int | None,
    rows: int | None, inputs: Sequence[str], outputs: Sequence[str],
) -> Chain:  # fmt: skip
    """Make a chain; see :meth:`miriam.frontend.chain.Chain.of`.

    Steps last 2 ms at most where that can be had: a batch is computed slice by slice, if no output of one slice
    depends on another slice and slices together take little longer than the batch as a whole.
    """
    module: torch.nn.Module
    if isinstance(model, torch.export.ExportedProgram):
        module = model.module(check_guards=False)
        if example is None and model.example_inputs is not None:
            example = model.example_inputs[0]
    else:
        module = model
        if model.training:
            raise CompileError(f"{name} is in training mode: call .eval() on it")
    if example is None:
        raise CompileError(f"{name} needs an example of its inputs: shapes and dtypes follow from it")
    given = [tensor_of(x).detach() for x in as_arrays(example)]
    if any(tensor.device.type != "cpu" for tensor in (*module.parameters(), *module.buffers(), *given)):
        raise CompileError(f"{name} or its example is not on the host: move it with .cpu()")
    given = [x.clone() for x in given]
    with torch.no_grad(), _threads(threads), _restored(list(module.buffers())) as changed:
        try:
            result = module(*(x.clone() for x in given))
        except Exception as error:
            raise CompileError(f"{name} fails on its example: {type(error).__name__}: {error}") from error
        expected = outputs_of(result)
        if not expected:
            raise CompileError(f"{name} gives no tensor")
        if changed():
            size, body, note = 0, alone(module, given, "it keeps something from one request to the next"), ""
        else:
            size, body, note = _chosen(module, given, expected, rows)
        steps = _steps(body, size, len(expected[0]) if size else 0)
        formats = [_format(x) for x in given]

        def begin(asked: Sequence[Any] | None) -> _State:
            return _State(given if asked is None else asked, formats, kept)

        kept: tuple[bool, ...] = ()
        step_us, state = timed(steps, lambda: begin(None))
        kept = tuple(map(_one_memory, expected, state.end()))
    ins, outs = (
        [
            plain_tensor(label, str(t.dtype).removeprefix("torch."), t.shape)
            for label, t in zip(labels, some, strict=True)
        ]
        for labels, some in (
            (named(inputs, len(given), "input", name), given),
            (named(outputs, len(expected), "output", name), expected),
        )
    )
    meta = {"torch": torch.__version__, "rows of a slice": str(size or "all")}
    program = host_program(name, [step.label for step in steps], ins, outs, meta)
    notes = tuple(f"{name}: {note}" for note in (body.why and f"one step, since {body.why}", note) if note)
    return Chain(name, program, tuple(steps), begin, _State.end, step_us, structure_of(result), _use, notes)


@contextmanager
def _restored(tensors: _Tensors) -> Iterator[Callable[[], bool]]:
    """Leave these as they were; what is given says whether they are that now."""
    before = [tensor.clone() for tensor in tensors]

    def changed() -> bool:
        return not all(map(_same, tensors, before))

    try:
        yield changed
    finally:
        for tensor, old in zip(tensors, before, strict=True):
            if not _same(tensor, old):
                tensor.copy_(old)


def _chosen(
    module: torch.nn.Module, given: _Tensors, expected: _Tensors, rows: int | None
) -> tuple[int, Body, str]:  # fmt: skip
    """Rows of a slice (0: the batch is computed as a whole), what computes it, and what is to be said about it."""
    batch = len(given[0]) if given and given[0].dim() else 0
    if rows is not None and (rows < 1 or batch % rows):
        raise CompileError(f"slices of {rows} rows do not make up a batch of {batch} rows: take a divisor")
    body = stepwise(module, given, expected)
    longest_us, whole_us = max(body.times_us), sum(body.times_us)
    sizes = [n for n in range(batch - 1, 0, -1) if batch % n == 0]
    if rows is not None:
        sizes = [n for n in sizes if n == rows]
    elif longest_us <= _LONG_US:
        sizes = []
    if not sizes or any(not t.dim() or len(t) != batch for t in (*given, *expected)):
        return 0, body, ""
    given, others = [_other(x) for x in given], given
    try:
        expected = outputs_of(module(*(x.clone() for x in given)))
        independent = _independent(module, given, others, expected)
    except Exception:  # it minds what it is given
        independent = False
    if not independent:
        return 0, body, "the rows of its batch depend on each other, so all are computed together"
    chosen = 0
    for size in sizes:
        parts = _in_slices(module, given, size)
        if parts is None or not close([torch.cat(pieces) for pieces in zip(*parts, strict=True)], expected):
            return 0, body, "slices of its batch give something else than all of it, so it is computed as a whole"
        found = stepwise(module, [x[:size].clone() for x in given], parts[0])
        if rows is None and sum(found.times_us) * batch > _COST * whole_us * size:
            break
        chosen, body = size, found
        if max(found.times_us) <= _LONG_US:
            break
    return chosen, body, ""


def _in_slices(module: torch.nn.Module, given: _Tensors, size: int) -> list[list[torch.Tensor]] | None:
    """Outputs of each slice by itself; None if the module takes none, or gives something of another size."""
    try:
        parts = [outputs_of(module(*(x[i : i + size].clone() for x in given))) for i in range(0, len(given[0]), size)]
    except Exception:
        return None
    sizes = {len(t) if t.dim() else 0 for part in parts for t in part}
    return parts if sizes == {size} and len({len(part) for part in parts}) == 1 else None


def _independent(module: torch.nn.Module, given: _Tensors, others: _Tensors, expected: _Tensors) -> bool:
    """Whether each row of the outputs is the same to the bit whatever is in the other rows of the inputs."""
    if all(map(_same, given, others)):
        return False  # nobody can know
    some = torch.zeros(len(given[0]), dtype=torch.bool)
    some[torch.randperm(len(some), generator=torch.Generator().manual_seed(0))[: len(some) // 2]] = True
    for rows in (some, ~some):
        mixed = [x.clone() for x in others]
        for x, own in zip(mixed, given, strict=True):
            x[rows] = own[rows]
        found = outputs_of(module(*mixed))
        if len(found) != len(expected) or not all(
            _same(a[rows], b[rows]) for a, b in zip(found, expected, strict=True)
        ):
            return False
    return True


def _other(x: torch.Tensor) -> torch.Tensor:
    """Values like these in another order, or, where they are all the same, others."""
    order = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(1))
    mixed = x.flatten()[order].view(x.shape)
    return mixed + torch.rand_like(mixed) if x.is_floating_point() and _same(mixed, x) else mixed


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether these are equal to the bit."""
    return a.dtype == b.dtype and a.shape == b.shape and bool((_bits(a) == _bits(b)).all())


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().flatten().view(torch.uint8)


@dataclass(frozen=True, slots=True)
class _Step:
    """Part of the operators for one slice of the batch; ``rows`` None: for all of it."""

    label: str
    call: Callable[[list[Any]], None]
    rows: slice | None
    batch: int
    first: bool
    last: bool

    def __call__(self, state: _State) -> None:
        with torch.no_grad():
            if self.first:
                state.take(self.rows)
            self.call(state.values)
            if self.last:
                state.put(self.rows, self.batch)


def _steps(body: Body, rows: int, batch: int) -> list[_Step]:
    slices = [slice(i, i + rows) for i in range(0, batch, rows)] if rows else [None]
    last = len(body.calls) - 1
    return [
        _Step(label, call, one, batch, number == 0, number == last)
        for one in slices
        for number, (label, call) in enumerate(zip(body.labels, body.calls, strict=True))
    ]


class _State:
    """What a request has computed so far; its outputs are arrays if all of its inputs are."""

    __slots__ = ("_arrays", "_formats", "_inputs", "_kept", "_outputs", "values")

    def __init__(self, given: Sequence[Any], formats: Sequence[torch.memory_format], kept: Sequence[bool]) -> None:
        self._arrays = not any(isinstance(x, torch.Tensor) for x in given)
        self._formats = formats
        self._inputs = given
        self._kept = kept  # whether an output is the model's own, such as a weight
        self._outputs: list[torch.Tensor] = []
        self.values: list[Any] = []

    def take(self, rows: slice | None) -> None:
        """Begin with these rows of the inputs."""
        taken = self._inputs if rows is None else [x[rows] for x in self._inputs]
        self.values = [
            tensor_of(x).contiguous(memory_format=format) for x, format in zip(taken, self._formats, strict=True)
        ]

    def put(self, rows: slice | None, batch: int) -> None:
        """Keep the outputs of these rows."""
        found, self.values = self.values, []
        if rows is None:
            self._outputs = [x.clone() if own else x for x, own in zip_longest(found, self._kept)]
            return
        if not self._outputs:
            self._outputs = [torch.empty((batch, *t.shape[1:]), dtype=t.dtype) for t in found]
        for whole, part in zip(self._outputs, found, strict=True):
            whole[rows] = part

    def end(self) -> tuple[Any, ...]:
        """The outputs."""
        return tuple(map(array_of, self._outputs)) if self._arrays else tuple(self._outputs)


def structure_of(result: Any) -> Callable[[Sequence[Any]], Any]:
    """What puts outputs back into what the module gave."""
    leaves, spec = pytree.tree_flatten(result)
    others = [_OUTPUT if isinstance(x, torch.Tensor) else x for x in leaves]

    def whole(outputs: Sequence[Any]) -> Any:
        left = iter(outputs)
        return pytree.tree_unflatten([next(left) if x is _OUTPUT else x for x in others], spec)

    return whole


def _one_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two outputs lie in the same memory, though each is there: then it is the model's."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _format(x: torch.Tensor) -> torch.memory_format:
    """How an input lies in memory."""
    for format in (torch.contiguous_format, torch.channels_last, torch.channels_last_3d):
        if x.dim() == {torch.channels_last: 4, torch.channels_last_3d: 5}.get(format, x.dim()) and x.is_contiguous(
            memory_format=format
        ):
            return format
    return torch.contiguous_format


def tensor_of(x: Any) -> torch.Tensor:
    """An array as a tensor, in the same memory where that may be written to."""
    if isinstance(x, torch.Tensor):
        return x
    array = np.asarray(x, order="C")
    if array.dtype.name == "bfloat16":
        return tensor_of(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def array_of(x: torch.Tensor) -> np.ndarray[Any, Any]:
    """A tensor as an array."""
    if x.dtype is not torch.bfloat16:
        return x.numpy(force=True)
    try:
        import ml_dtypes
    except ImportError as error:
        raise ModelError("arrays of bfloat16 need ml_dtypes: pip install ml_dtypes, or give tensors") from error
    return array_of(x.detach().contiguous().view(torch.int16)).view(ml_dtypes.bfloat16)


def _use(threads: int) -> None:
    """Let the operators of this thread take so many threads."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    _use(threads or before)
    try:
        yield
    finally:
        _use(before)
