"""Models as chains of steps that the host computes, one after another."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np

from miriam.errors import CompileError
from miriam.program import Buffer, Kernel, Launch, Pointer, Program, Role, Source, Tensor

__all__ = [
    "Chain",
    "State",
    "Step",
    "as_array",
    "as_arrays",
    "host_program",
    "named",
    "one_or_all",
    "plain_tensor",
    "timed",
]

State: TypeAlias = Any
"""What a request of a chain has computed so far; only the chain itself looks inside."""

Step: TypeAlias = Callable[[State], None]

_RUNS, _FEW, _LONG_S = 9, 4, 0.5  # how often steps are timed; a few times even where that takes long


def one_or_all(outputs: Sequence[Any]) -> Any:
    """What a caller is given: the only output, or a tuple of all."""
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _any_threads(count: int) -> None:
    """For steps that ask nobody for threads."""


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """A model that the host computes in steps, between which it can be interrupted.

    All that a request has computed is in its state, so requests of one chain do not disturb each other. What the
    steps are is fixed when the chain is made, so what they compute does not depend on the company that they run in.

    Attributes
    ----------
    name
        Of the program.
    program
        One launch of one block for each step; inputs and outputs as their users see them.
    steps
        To be called in their order with the state.
    begin
        Inputs, in the program's order, to a state. None: those that the chain was made with.
    end
        The state after the last step to the outputs, in the program's order: arrays for arrays, tensors for
        tensors.
    step_us
        What each step took when the chain was made: the median of several runs.
    whole
        Outputs as the model itself would give them.
    threads
        Is told, in the thread that will call the steps, how many threads they may use.
    notes
        What a reader of its results has to know.
    """

    name: str
    program: Program
    steps: tuple[Step, ...]
    begin: Callable[[Sequence[Any] | None], State]
    end: Callable[[State], tuple[Any, ...]]
    step_us: tuple[float, ...]
    whole: Callable[[Sequence[Any]], Any] = one_or_all
    threads: Callable[[int], None] = _any_threads
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(
        model: object, example: Any = None, *, name: str, threads: int | None = None, rows: int | None = None,
        inputs: Sequence[str] = (), outputs: Sequence[str] = (),
    ) -> Chain:  # fmt: skip
        """Make a chain of a model, and run it several times on the example.

        Parameters
        ----------
        model
            A module of PyTorch in ``eval()`` mode, what ``torch.export`` gives, something that can be called, or
            a sequence of such things, of which each is a step and is called with what the one before returned
            (a tuple: with several arguments).
        example
            An array or tensor, or a sequence of them; shapes and dtypes are fixed from now on. None where
            the model brings its own.
        name
            Of the program.
        threads
            That the steps will be given; None: as many as they take by themselves.
        rows
            Of a module, how many rows of a batch are computed at a time, where they can be computed apart from each
            other. None: chosen by measurements, so that outputs can differ from one process to another as sums of
            different order do; within a chain they never differ.
        inputs, outputs
            Names of the tensors; ``input0``, ``output0`` and so on where there are none.

        Raises
        ------
        CompileError
            The model cannot be called like this, is in training mode, or gives something that is no array.
        """
        if (torch := sys.modules.get("torch")) is not None and isinstance(
            model, torch.nn.Module | torch.export.ExportedProgram
        ):
            from miriam.frontend._torch_chain import torch_chain

            return torch_chain(model, example, name, threads, rows, inputs, outputs)
        calls = (model,) if callable(model) else tuple(model) if isinstance(model, Sequence) else ()
        if not calls or not all(callable(call) for call in calls):
            raise CompileError(
                f"{name} is a {type(model).__name__}: give a module of PyTorch, something that can be called, or a "
                "sequence of such things"
            )
        if example is None:
            raise CompileError(f"{name} needs an example of its inputs: shapes and dtypes follow from it")
        return _callables(calls, as_arrays(example), name, inputs, outputs)


def as_arrays(example: Any) -> tuple[Any, ...]:
    """An example as a tuple: what has a shape is one input by itself."""
    return (example,) if hasattr(example, "shape") or not isinstance(example, Sequence) else tuple(example)


def host_program(
    name: str, steps: Sequence[str], inputs: Sequence[Tensor], outputs: Sequence[Tensor], meta: dict[str, str]
) -> Program:
    """The program of a chain.

    Parameters
    ----------
    steps
        What each is called.
    inputs, outputs
        Where they lie does not matter: each is given a buffer of its own.
    """
    distinct = list(dict.fromkeys(steps))
    index = {step: i for i, step in enumerate(distinct)}
    kernels = tuple(Kernel(step, Source.HOST, (1, 1, 1), 0, opaque="the host computes it") for step in distinct)
    launches = tuple(Launch(index[step], (1, 1, 1)) for step in steps)
    buffers: list[Buffer] = []
    placed: list[Tensor] = []
    for tensor, role in (*((t, Role.INPUT) for t in inputs), *((t, Role.OUTPUT) for t in outputs)):
        at = Pointer(len(buffers))
        placed.append(Tensor(tensor.name, tensor.dtype, tensor.shape, tensor.strides, at))
        buffers.append(Buffer(tensor.name, tensor.span_bytes, role))
    count = len(inputs)
    return Program(
        name, "host", kernels, launches, tuple(buffers), tuple(placed[:count]), tuple(placed[count:]), meta
    )  # fmt: skip


def plain_tensor(name: str, dtype: str, shape: Sequence[int]) -> Tensor:
    """A tensor in C order; :func:`host_program` says where."""
    extents = tuple(int(n) for n in shape)
    strides = tuple(math.prod(extents[i + 1 :]) for i in range(len(extents)))
    return Tensor(name, dtype, extents, strides, Pointer(0))


def named(given: Sequence[str], count: int, what: str, name: str) -> list[str]:
    """Names of so many tensors.

    Raises
    ------
    CompileError
        There are more or fewer names than tensors, or two are the same.
    """
    if not given:
        return [f"{what}{i}" for i in range(count)]
    if len(given) != count or len(set(given)) != count:
        raise CompileError(f"{name} has {count} {what}s, and the names given are {', '.join(given)}: name each once")
    return list(given)


def timed(
    steps: Sequence[Step], begin: Callable[[], State], of: Callable[[Sequence[float]], float] = statistics.median
) -> tuple[tuple[float, ...], State]:
    """What each step takes, in us, as the median (or what ``of`` says) of several runs; and the last run's state."""
    runs: list[list[float]] = []
    since = perf_counter()
    while len(runs) < _FEW or (len(runs) < _RUNS and perf_counter() - since < _LONG_S):
        state, times = begin(), []
        for step in steps:
            before = perf_counter()
            step(state)
            times.append(1e6 * (perf_counter() - before))
        runs.append(times)
    return tuple(map(of, zip(*runs[1:], strict=True))), state  # the first is not like the others


def _callables(
    calls: Sequence[Any], example: tuple[Any, ...], name: str, inputs: Sequence[str], outputs: Sequence[str]
) -> Chain:
    def step_of(call: Callable[..., Any]) -> Step:
        def step(state: list[Any]) -> None:
            result = call(*state)
            state[:] = result if isinstance(result, tuple) else (result,)

        return step

    def begin(given: Sequence[Any] | None) -> State:
        return list(example) if given is None else [alike(x) for alike, x in zip(kinds, given, strict=True)]

    kinds = tuple(map(_kind, example))
    steps = tuple(map(step_of, calls))
    labels = [getattr(call, "__qualname__", type(call).__qualname__) for call in calls]
    try:
        step_us, state = timed(steps, lambda: begin(None))
    except Exception as error:
        raise CompileError(f"{name} fails on its example: {type(error).__name__}: {error}") from error
    found = [
        [_described(value, f"{what} {i} of {name}") for i, value in enumerate(values)]
        for what, values in (("input", example), ("output", state))
    ]
    ins, outs = (
        [plain_tensor(label, *facts) for label, facts in zip(named(names, len(facts), what, name), facts, strict=True)]
        for names, what, facts in ((inputs, "input", found[0]), (outputs, "output", found[1]))
    )
    program = host_program(name, labels, ins, outs, {"numpy": np.__version__})
    return Chain(name, program, steps, begin, tuple, step_us)


def _kind(example: Any) -> Callable[[Any], Any]:
    """What makes tensors of arrays, or arrays of tensors, where the example is of the other kind."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(example, torch.Tensor):
        from miriam.frontend._torch_chain import tensor_of

        return tensor_of
    return as_array


def as_array(value: Any) -> Any:
    """An array, of a tensor too; what is no tensor is given back as it is."""
    if isinstance(value, np.ndarray) or not hasattr(value, "detach"):
        return value
    from miriam.frontend._torch_chain import array_of

    return array_of(value)


def _described(value: Any, what: str) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is None or shape is None or "object" in str(dtype):
        raise CompileError(f"{what} is a {type(value).__name__}: arrays and tensors are possible")
    return str(dtype).removeprefix("torch."), tuple(shape)
