"""The exported graph of a module of PyTorch as functions that each compute some of its operators."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import fx
from torch.utils import _pytree as pytree

from miriam.errors import CompileError
from miriam.frontend.chain import timed

__all__ = ["Body", "Values", "alone", "close", "outputs_of", "stepwise"]

_SHORT_US = 50.0  # what a step should take at least
_CLOSE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}

Values: TypeAlias = list[Any]
"""What is computed from: at first the inputs, after the last step the outputs."""

_Tensors: TypeAlias = Sequence[torch.Tensor]


@dataclass(frozen=True, slots=True)
class Body:
    """What computes a module for inputs of one shape.

    Attributes
    ----------
    labels, calls, times_us
        Of each step: the operators in it, what computes it, and how long that takes at least, which other work on
        the machine changes least.
    why
        Why it is one step only.
    """

    labels: tuple[str, ...]
    calls: tuple[Callable[[Values], None], ...]
    times_us: tuple[float, ...]
    why: str = ""


def stepwise(module: torch.nn.Module, inputs: _Tensors, expected: _Tensors) -> Body:
    """A module in steps; as a whole where that is not possible or gives something else.

    Parameters
    ----------
    expected
        What the module gives for the inputs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.export(module, tuple(inputs), strict=False)
            operators = _Operators(exported.module(check_guards=False))
        each = operators.calls(range(1, len(operators.lines) + 1))
        times_us, outputs = timed(each, lambda: [x.clone() for x in inputs], min)
        if not close(outputs, expected):
            return alone(module, inputs, "its exported graph gives something else")
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        return alone(module, inputs, f"it cannot be exported ({type(error).__name__}: {said})")
    ends = _ends(times_us)
    spans = [slice(first, last) for first, last in pairwise([0, *ends])]
    labels = tuple(" + ".join(dict.fromkeys(operators.labels[span])) for span in spans)
    return Body(labels, operators.calls(ends), tuple(sum(times_us[span]) for span in spans))


def alone(module: torch.nn.Module, inputs: _Tensors, why: str) -> Body:
    """A module as one step."""

    def call(values: Values) -> None:
        values[:] = outputs_of(module(*values))

    times_us, _ = timed([call], lambda: [x.clone() for x in inputs], min)
    return Body((type(module).__name__,), (call,), times_us, why)


def outputs_of(result: Any) -> list[torch.Tensor]:
    """The tensors in what a module gives."""
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def close(found: _Tensors, expected: _Tensors) -> bool:
    """Whether these are the same but for the order in which sums were taken."""

    def near(a: torch.Tensor, b: torch.Tensor) -> bool:
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        share = _CLOSE.get(b.dtype, 0.0)
        finite = b[torch.isfinite(b)].abs() if share else b
        most = float(finite.max()) if share and finite.numel() else 0.0
        return torch.allclose(a, b, rtol=share, atol=share * most, equal_nan=b.is_floating_point())

    return len(found) == len(expected) and all(map(near, found, expected))


def _ends(times_us: Sequence[float]) -> list[int]:
    """Where steps end, if each should last at least so long; what is left at the end belongs to the last."""
    ends, since_us = [], 0.0
    for number, time_us in enumerate(times_us, 1):
        since_us += time_us
        if since_us >= _SHORT_US:
            ends.append(number)
            since_us = 0.0
    return [*ends[:-1], len(times_us)] if ends else [len(times_us)]


class _Operators:
    """Each operator of a graph as lines of Python that work on the values.

    Attributes
    ----------
    labels, lines
        Of each operator: its name, and what it does.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self.labels: list[str] = []
        self.lines: list[str] = []
        self._constants: list[Any] = []
        places: dict[fx.Node, str] = {}
        used_up = _used_up(graph.graph)
        for node in graph.graph.nodes:
            if node.op == "get_attr":
                places[node] = self._constant(operator.attrgetter(node.target)(graph))
            elif node.op == "output":
                leaves = self._text(pytree.tree_leaves(node.args[0]), places)
                self._end = f"v[:] = [x for x in {leaves} if isinstance(x, {self._constant(torch.Tensor)})]"
            else:
                places[node] = f"v[{sum(place.startswith('v') for place in places.values())}]"
                if node.op != "placeholder":
                    self._add(node, graph, places)
                    self.lines[-1] += "".join(f"; {places[done]} = None" for done in used_up.get(node, ()))
        self._begin = f"v += [None] * ({sum(place.startswith('v') for place in places.values())} - len(v))"

    def calls(self, ends: Sequence[int]) -> tuple[Callable[[Values], None], ...]:
        """Functions that compute the operators up to these ends, each from where the one before ended."""
        made = []
        for first, last in pairwise([0, *ends]):
            lines = [self._begin] if first == 0 else []
            lines += self.lines[first:last]
            lines += [self._end] if last == len(self.lines) else []
            source = "def call(v):\n" + "".join(f"    {line}\n" for line in lines)
            names: dict[str, Any] = {"c": self._constants}
            exec(compile(source, f"<operators {first} to {last}>", "exec"), names)
            made.append(names["call"])
        return tuple(made)

    def _add(self, node: fx.Node, graph: fx.GraphModule, places: Mapping[fx.Node, str]) -> None:
        if node.op == "call_method":
            raise CompileError(f"a call of the method {node.target} is no operator")
        target = node.target if node.op == "call_function" else operator.attrgetter(str(node.target))(graph)
        called = self._constant(target)
        given = [self._text(value, places) for value in node.args]
        given += [f"{key}={self._text(value, places)}" for key, value in node.kwargs.items()]
        self.labels.append(getattr(target, "__name__", str(node.target)).partition(".")[0])
        self.lines.append(f"{places[node]} = {called}({', '.join(given)})")

    def _constant(self, value: Any) -> str:
        self._constants.append(value)
        return f"c[{len(self._constants) - 1}]"

    def _text(self, value: Any, places: Mapping[fx.Node, str]) -> str:
        """An argument as an expression."""
        if isinstance(value, fx.Node):
            return places[value]
        if isinstance(value, list | tuple) and pytree.tree_any(lambda leaf: isinstance(leaf, fx.Node), list(value)):
            inner = "".join(f"{self._text(item, places)}, " for item in value)
            return f"[{inner}]" if isinstance(value, list) else f"({inner})"
        if isinstance(value, slice):
            return f"slice({', '.join(self._text(part, places) for part in (value.start, value.stop, value.step))})"
        return self._constant(value)


def _used_up(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """By operator: the values that no later one needs."""
    found: dict[fx.Node, list[fx.Node]] = {}
    seen: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        fresh = [value for value in (node, *node.all_input_nodes) if value not in seen and value.op != "get_attr"]
        seen.update(fresh)
        found[node] = [value for value in dict.fromkeys(fresh) if node.op not in ("output", "placeholder")]
    return found
