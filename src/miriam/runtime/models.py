"""What a user gives -> what a device runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from miriam.device.base import Serving
from miriam.device.unread import read
from miriam.errors import DeviceError, ModelError, ProgramError
from miriam.frontend.chain import Chain, as_array, named, one_or_all
from miriam.program import Program, Role
from miriam.progress import Progress, silent
from miriam.runtime.spec import Spec, dtype_name
from miriam.task import Task

if TYPE_CHECKING:
    from miriam.device.cuda.serving import ServingCuda

__all__ = ["Adopted", "adopt", "load_program"]

_ZOO = "zoo:"


def _in_memory(task: Task, inputs: Sequence[Any]) -> Sequence[Any]:
    return [read(given) for given in inputs]


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Adopted:
    """A model as a device runs it.

    Attributes
    ----------
    program
        What a task of it has.
    inputs, outputs
        What goes in and comes out, with the names that were asked for.
    bound
        What runs the program where the device does not do it by itself; for ``Serving.prepare``.
    notes
        What its user has to know.
    whole
        Outputs, in the program's order, in the structure in which the model gives them.
    stage
        Inputs of a request of a task -> where the device finds them best; raises InputError. In the thread of
        whoever asks. The task has been prepared.
    close
        Gives back what was made; the task has been forgotten by the device.
    """

    program: Program
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    bound: Any = None
    notes: tuple[str, ...] = ()
    whole: Callable[[Sequence[Any]], Any] = field(default=one_or_all)
    stage: Callable[[Task, Sequence[Any]], Sequence[Any]] = field(default=_in_memory)
    close: Callable[[], None] = field(default=_nothing)

    def unwrap(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """What was given, in the program's order."""
        return inputs

    def wrap(self, outputs: Sequence[Any], inputs: Sequence[Any]) -> Any:
        """Outputs as the model gives them: tensors where one of these inputs was one, arrays otherwise.

        Raises
        ------
        ModelError
            NumPy has no such type, and its extension that has is not there.
        """
        torch = sys.modules.get("torch")
        tensors = torch is not None and any(isinstance(x, torch.Tensor) for x in inputs)
        as_given = _tensor if tensors else _array
        return self.whole([as_given(out, spec) for out, spec in zip(outputs, self.outputs, strict=True)])


def adopt(
    model: Any, example: Any, device: Serving, name: str, *, inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None, progress: Progress = silent,
) -> Adopted:  # fmt: skip
    """Make of a model what a device runs. From any thread; may take minutes.

    Parameters
    ----------
    model
        A module of PyTorch in ``eval()`` mode, what ``torch.export`` gives, the path of a program file, or
        ``zoo:`` and the name of a program that comes with the package, a program, a chain, something that can be
        called, or a sequence of such things.
    example
        An array or tensor, or a sequence of them. Not for programs.
    device
        What it will run on.
    name
        Of its program.
    inputs, outputs
        Names of the tensors.
    progress
        Told what is being done.

    Raises
    ------
    CompileError
        It cannot be made into what the device runs.
    DeviceError
        This kind of device does not run such a thing.
    ProgramError
        The program file cannot be used.
    """
    where = device.name
    kind = where.partition(":")[0].partition("/")[0]
    if isinstance(model, str | os.PathLike | Program):
        made = _program(model, kind, where)
    elif kind == "cpu":
        made = _chain(model, example, where, name, inputs or (), outputs or ())
    elif kind == "cuda":
        from miriam.runtime._gpu_models import on_gpu

        made = on_gpu(model, example, cast("ServingCuda", device), name, progress)
    else:
        raise DeviceError(
            f"{where} runs programs only, and {name} is a {type(model).__name__}: compile it with 'miriam compile', "
            "or use a GPU or the device cpu"
        )
    ins, outs = (
        tuple(
            replace(spec, name=label) for spec, label in zip(specs, named(labels, len(specs), what, name), strict=True)
        )
        for what, specs, labels in (
            ("input", made.inputs, inputs or [spec.name for spec in made.inputs]),
            ("output", made.outputs, outputs or [spec.name for spec in made.outputs]),
        )
    )
    stage = cast("ServingCuda", device).stage if kind == "cuda" else _in_memory
    return replace(made, inputs=ins, outputs=outs, stage=stage)


def load_program(model: str | os.PathLike[str] | Program) -> Program:
    """A program by the path of its file, or by ``zoo:`` and its name."""
    if isinstance(model, Program):
        return model
    text = os.fspath(model)
    if not text.startswith(_ZOO):
        return Program.load(text)
    from miriam import zoo

    return zoo.load(text.removeprefix(_ZOO))


def of_program(program: Program, **more: Any) -> Adopted:
    """A program, with the names that its tensors have."""
    ins, outs = (tuple(map(Spec.of, tensors)) for tensors in (program.inputs, program.outputs))
    return Adopted(program, ins, outs, **more)


def _program(model: str | os.PathLike[str] | Program, kind: str, where: str) -> Adopted:
    what = model.name if isinstance(model, Program) else str(model)
    if kind == "cpu":
        raise DeviceError(
            f"{what} holds code for a GPU, and {where} has none: load the module that it was compiled from, or use a "
            "GPU or a simulated one, such as sim:orin"
        )
    program, notes = load_program(model), tuple[str, ...]()
    if kind == "cuda" and any(b.role is Role.WEIGHT and b.data is None for b in program.buffers):
        if not what.startswith(_ZOO):
            raise ProgramError(f"{what} carries no weights: compile it with them, without --no-weights")
        notes = (f"{program.name} carries no weights: they are random, and outputs mean nothing",)
    return of_program(program, notes=notes)


def _chain(model: Any, example: Any, where: str, name: str, inputs: Sequence[str], outputs: Sequence[str]) -> Adopted:
    threads = where.partition("/")[2]
    if not isinstance(model, Chain):
        model = Chain.of(
            model, example, name=name, threads=int(threads) if threads else None, inputs=inputs, outputs=outputs
        )
    return of_program(model.program, bound=model, notes=model.notes, whole=model.whole)


def _tensor(output: Any, spec: Spec) -> Any:
    """A tensor of PyTorch, in the same memory."""
    if not isinstance(output, np.ndarray | np.generic):
        return output
    output = np.asarray(output)
    torch: Any = sys.modules["torch"]
    if output.dtype.isbuiltin == 1 and output.dtype.name == spec.dtype:
        return torch.from_numpy(output)
    return torch.from_numpy(output.view(f"int{8 * output.itemsize}")).view(getattr(torch, spec.dtype))


def _array(output: Any, spec: Spec) -> Any:
    output = as_array(output)
    if isinstance(output, np.ndarray) and dtype_name(output.dtype) != spec.dtype:
        raise ModelError(f"arrays of {spec.dtype} need ml_dtypes: pip install ml_dtypes, or give tensors")
    return output
