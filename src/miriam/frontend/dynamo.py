"""A backend of ``torch.compile``: each graph that Dynamo finds becomes a task of a runtime.

::

    compiled = torch.compile(module.eval(), backend="miriam", options={"criticality": "critical"})
    with torch.no_grad():
        y = compiled(x)

A model whose graph breaks becomes several tasks, which run one after another with Python in between. For a whole
model in one task, with kernels that are compiled to be elastic, use :meth:`miriam.Runtime.load`.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from miriam.errors import CompileError, MiriamError

if TYPE_CHECKING:
    import torch

    from miriam.runtime import Loaded, Runtime

__all__ = ["default_runtime", "miriam"]

_LOAD = ("criticality", "deadline_ms", "period_ms", "queue", "timeout_ms")  # as they are, to Runtime.load
_OWN = ("name", "runtime", "device", "shapes")
_SHAPES = 8

_runtimes: dict[str, Runtime] = {}
_lock = threading.Lock()
_numbers = itertools.count()


def default_runtime(device: str) -> Runtime:
    """The runtime of this process for a device, which stays until the process ends, or it is closed."""
    from miriam.runtime import Runtime

    with _lock:
        if device not in _runtimes or _runtimes[device].closed:
            _runtimes[device] = Runtime(device)
        return _runtimes[device]


def miriam(
    graph: torch.fx.GraphModule, example: Sequence[Any], *, options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:  # fmt: skip
    """Make a graph a task, when it is first called; for ``torch.compile(model, backend="miriam", options=...)``.

    Each shape of inputs is a task of its own, so where Dynamo leaves sizes open they are settled by the calls.
    Weights are those of the module, which must not be in training mode: nothing here has a gradient.

    Parameters
    ----------
    options
        ``criticality``, ``deadline_ms``, ``period_ms``, ``queue``, ``timeout_ms`` as in
        :meth:`miriam.Runtime.load`; ``name``: of the tasks, which get numbers behind it; ``runtime``: a
        :class:`miriam.Runtime`, or ``device``: where one is made for the whole process, by default where the inputs
        are; ``shapes``: how many different shapes of inputs there may be, 8 by default.

    Raises
    ------
    CompileError
        There is no such option; the graph changes what it is given; or, from a call, it has seen too many shapes
        or an input that needs a gradient.
    """
    given = dict(options or {})
    unknown = given.keys() - {*_LOAD, *_OWN}
    if unknown or mode is not None:
        what = f"mode {mode!r}" if mode is not None else ", ".join(sorted(unknown))
        raise CompileError(f"backend miriam has no {what}: its options are {', '.join((*_LOAD, *_OWN))}")
    tasks = _Tasks(graph, _weights(graph, example), given)
    tasks.check(example)
    weakref.finalize(tasks, _unload, tasks.loaded).atexit = False
    return tasks


@dataclass(slots=True, weakref_slot=True, eq=False)
class _Tasks:
    """A graph, and a task for each set of weights and shapes of inputs with which it was called.

    Attributes
    ----------
    weights
        Which of the graph's inputs are weights; Dynamo gives the same graph to all modules that only differ in them.
    """

    graph: torch.fx.GraphModule
    weights: frozenset[int]
    options: Mapping[str, Any]
    loaded: dict[tuple[Any, ...], tuple[Runtime, Loaded]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, *args: Any) -> Any:
        import torch

        key = tuple(
            id(x) if i in self.weights else (x.shape, x.dtype, x.device) if isinstance(x, torch.Tensor) else x
            for i, x in enumerate(args)
        )
        found = self._there(key)
        if found is None:
            with self.lock:
                found = self._there(key)
                if found is None:
                    self.loaded.pop(key, None)
                    found = self.loaded[key] = self._load(args)
        inputs = [x for i, x in enumerate(args) if i not in self.weights and isinstance(x, torch.Tensor)]
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            raise CompileError(
                "an input needs a gradient, and backend miriam is for inference: call the model under torch.no_grad()"
            )
        return found[1](*inputs)

    def _there(self, key: tuple[Any, ...]) -> tuple[Runtime, Loaded] | None:
        """The task for such inputs, if it can still be asked."""
        found = self.loaded.get(key)
        return None if found is None or found[0].closed or found[1].closed else found

    def _load(self, args: Sequence[Any]) -> tuple[Runtime, Loaded]:
        import torch

        most = self.options.get("shapes", _SHAPES)
        if len(self.loaded) >= most:
            raise CompileError(
                f"a graph was called with more than {most} shapes of inputs or sets of weights, each of which is a "
                "task: pad the inputs to a few shapes, or raise the option 'shapes'"
            )
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        if not tensors:
            raise CompileError("a graph without a tensor among its inputs: let backend 'eager' have it")
        runtime = self.options.get("runtime")
        if runtime is None:
            runtime = default_runtime(self.options.get("device") or _device(tensors[0]))
        inputs = [x.detach() for i, x in enumerate(args) if i not in self.weights and isinstance(x, torch.Tensor)]
        whole = _whole(self.graph, args, self.weights)
        model = whole if runtime.device.startswith("cpu") else _function(whole)
        name = f"{self.options.get('name', 'compiled')}-{next(_numbers)}"
        more = {key: value for key, value in self.options.items() if key in _LOAD}
        return runtime, runtime.load(model, inputs, name=name, **more)

    def check(self, example: Sequence[Any]) -> None:
        """Raise :class:`CompileError` if the graph changes what it is given, which a task would keep to itself."""
        import torch
        from torch._subclasses.fake_tensor import FakeTensorMode

        try:
            with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad():
                copies = [fake.from_tensor(x) if isinstance(x, torch.Tensor) else _hint(x) for x in example]
                before = [getattr(x, "_version", 0) for x in copies]
                self.graph(*copies)
        except Exception:  # what cannot be followed like this is found out when it is loaded
            return
        inputs = zip(_placeholders(self.graph), copies, before, strict=True)
        changed = [str(node.target) for node, x, old in inputs if getattr(x, "_version", 0) != old]
        if changed:
            raise CompileError(
                f"the graph changes {', '.join(changed)} in place, which is lost behind a task: keep what changes "
                "outside of the model (a cache or a counter as an input and an output), and call .eval()"
            )


def _placeholders(graph: torch.fx.GraphModule) -> list[torch.fx.Node]:
    return [node for node in graph.graph.nodes if node.op == "placeholder"]


def _weights(graph: torch.fx.GraphModule, example: Sequence[Any]) -> frozenset[int]:
    """Which inputs of a graph belong to the module."""
    import torch

    return frozenset(
        i
        for i, (node, x) in enumerate(zip(_placeholders(graph), example, strict=True))
        if isinstance(x, torch.nn.Parameter) or "_dynamo_static_input_type" in (node.meta.get("tensor_dict") or {})
    )


def _hint(size: Any) -> Any:
    """A size as a number; to ask for the number itself would settle it for good."""
    return size.node.hint if hasattr(size, "node") else size


def _device(tensor: torch.Tensor) -> str:
    return "cpu" if tensor.device.type == "cpu" else f"{tensor.device.type}:{tensor.device.index or 0}"


def _whole(graph: torch.fx.GraphModule, args: Sequence[Any], weights: frozenset[int]) -> torch.nn.Module:
    """The graph with its weights and sizes in it, as a module of the other inputs."""
    import torch

    sizes = {i: x for i, x in enumerate(args) if not isinstance(x, torch.Tensor)}
    count = len(args)

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.graph = graph
            for i in weights:
                if isinstance(args[i], torch.nn.Parameter):
                    self.register_parameter(f"weight{i}", args[i])
                else:
                    self.register_buffer(f"weight{i}", args[i])

        def forward(self, *inputs: torch.Tensor) -> Any:
            left = iter(inputs)
            given = (sizes[i] if i in sizes else getattr(self, f"weight{i}") if i in weights else next(left)
                     for i in range(count))  # fmt: skip
            return self.graph(*given)

    return Whole().eval()


def _function(module: torch.nn.Module) -> Callable[..., Any]:
    """The same without being a module: while Dynamo is at work another model cannot be compiled."""
    return lambda *inputs: module(*inputs)


def _unload(loaded: Mapping[Any, tuple[Runtime, Loaded]]) -> None:
    """Let go of the tasks of a graph that nobody can call any more; not here, which may be any thread at any time."""
    if loaded:
        threading.Thread(target=_unload_all, args=(list(loaded.values()),), daemon=True).start()


def _unload_all(loaded: Sequence[tuple[Runtime, Loaded]]) -> None:
    for runtime, task in loaded:
        if not runtime.closed:
            try:
                runtime.unload(task)
            except (KeyError, MiriamError):
                continue  # closed or unloaded by now
