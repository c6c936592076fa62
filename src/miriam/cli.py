"""The command ``miriam``.

Nothing heavy is imported before the command that needs it runs: ``miriam --help`` has to be there at once.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from miriam._cli_bench import bench
from miriam._cli_load import LoadCommand, load
from miriam._cli_serve import serve
from miriam._cli_trace import trace
from miriam._console import BadInputError, Json, bad_input, print_json, progress_bar
from miriam._files import replacing
from miriam.errors import MiriamError, ProgramError

if TYPE_CHECKING:
    from miriam.program import Program

__all__ = ["app", "main"]


class _Group(TyperGroup):
    """Turns an error of Miriam into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; ``MIRIAM_DEBUG=1`` leaves errors as they are."""
        try:
            return super().invoke(ctx)
        except MiriamError as error:
            if os.environ.get("MIRIAM_DEBUG"):
                raise
            typer.echo(f"miriam: {error}", err=True)
            raise typer.Exit(2 if isinstance(error, BadInputError) else 1) from None


def _app(text: str, **options: Any) -> typer.Typer:
    return typer.Typer(
        cls=_Group, help=text, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, **options
    )


app = _app(
    """Critical networks keep their latency on a shared GPU, the others get the rest.

    \b
    Try it on a simulated GPU, without any GPU here:
      miriam bench mdtb --device sim:xavier --out report
    Bring a model of your own (needs a GPU and the extras torch and cuda):
      miriam compile mypackage.nets:resnet18 --shape 1,3,224,224 -o resnet18.miriam
      miriam profile resnet18.miriam
    See what can be used on this machine:
      miriam devices
    """,
    add_completion=False,
)
zoo = _app("Programs that come with the package.\n\nReal networks, compiled and measured on an H200.")
app.command("bench")(bench)
app.command("serve")(serve)
app.command("load", cls=LoadCommand)(load)
app.command("trace")(trace)
app.add_typer(zoo, name="zoo", no_args_is_help=False)


def _version(wanted: bool) -> None:
    if wanted:
        import miriam

        typer.echo(f"miriam {miriam.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None: ...


@app.command("compile")
def compile_(
    factory: Annotated[
        str, typer.Argument(help="package.module:factory or file.py:factory; gives an nn.Module, takes nothing.")
    ],
    shape: Annotated[list[str], typer.Option(metavar="N,N,...", help="Shape of an input; repeat it for each input.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The program file to write.")],
    dtype: Annotated[str, typer.Option(help="Of inputs and weights, as torch names it.")] = "float16",
    name: Annotated[str | None, typer.Option(help="Name of the program; the factory's if left out.")] = None,
    weights: Annotated[bool, typer.Option(help="Keep the contents of the weights in the file.")] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compile anew what was compiled before.")] = False,
    as_json: Json = False,
) -> None:
    """Compile a PyTorch model into a program file.

    A program holds kernels, launches and buffers, and can be loaded anywhere. A model that was
    compiled before, with the same weights and code, comes from your cache folder.
    Needs a GPU, and Miriam installed with its extras: pip install '.[torch,cuda]'.

    \b
    Examples:
      miriam compile torchvision.models:resnet18 --shape 1,3,224,224 -o resnet18.miriam
      miriam compile nets.py:two_inputs --shape 8,128 --shape 8,64 --dtype bfloat16 -o two.miriam
    """
    shapes = [_shape(text) for text in shape]
    if not output.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {output.absolute().parent}", param_hint="--output")
    from miriam.frontend.torch import compile_factory

    with progress_bar() as progress:
        program = compile_factory(factory, shapes, dtype, name=name, weights=weights, fresh=fresh, progress=progress)
    program.save(output)
    if as_json:
        print_json(_summary(program) | {"file": str(output)})
    else:
        typer.echo(f"{output}: {_in_words(program)}")


@app.command()
def profile(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A program file.")],
    device: Annotated[str, typer.Option(help="The GPU to measure on.")] = "cuda:0",
    counters: Annotated[
        bool | None,
        typer.Option(
            help="Read hardware counters with Nsight Compute; where it can if left out. Others are estimated."
        ),
    ] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write everything in the store to a .json.xz file.")
    ] = None,
) -> None:
    """Measure the launches of a program on a GPU.

    Each is measured alone, on several numbers of SMs, and kept in the store. The store is
    profiles.db in your cache folder, or in the folder that MIRIAM_CACHE names.
    Needs a GPU, and Miriam installed with its extra: pip install '.[cuda]'.

    \b
    Examples:
      miriam profile resnet18.miriam
      miriam profile resnet18.miriam --no-counters --export profiles.json.xz
    """
    from miriam.program import Program
    from miriam.store import ProfileStore

    with bad_input():
        program = Program.load(file)
    from miriam.device.cuda.profiler import profile_program

    with ProfileStore() as store:
        with progress_bar() as progress:
            profile_program(program, store, device, counters=counters, progress=progress)
        typer.echo(f"{program.name}: {len(program.launches)} launches are in {store.path}")
        if export is not None:
            store.export(export)
            typer.echo(f"everything in the store is in {export} too")


@app.command()
def elastic(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A program file or a PTX module.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the elastic program or the elastic PTX module."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make kernels elastic, or say why not.

    Shows for each kernel whether it is elastic, the other sizes that its block may have, and the
    registers that it takes as it was and in its elastic forms. Needs no GPU; registers need NVIDIA's
    ptxas. Nothing is written without -o.

    \b
    Examples:
      miriam elastic resnet18.miriam
      miriam elastic kernels.ptx -o kernels.elastic.ptx --json
    """
    if output is not None and not output.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {output.absolute().parent}", param_hint="--output")
    from miriam.elastic.generator import make_elastic, rewritten
    from miriam.elastic.survey import print_survey, read, survey_module, survey_program
    from miriam.program import Program

    with bad_input():
        source = read(file)
        made = None if isinstance(source, Program) else rewritten(source)
        if output is not None:
            _check_output(output, file, ".miriam" if isinstance(source, Program) else ".ptx")
    with progress_bar() as progress:
        if isinstance(source, Program):
            program = make_elastic(source, progress=progress)
            survey = survey_program(program, progress=progress)
            if output is not None:
                program.save(output)
        else:
            assert made is not None
            survey = survey_module(source, made, progress=progress)
            if output is not None:
                with replacing(output, ProgramError) as part:
                    part.write_text(made.ptx, "utf-8")
    if as_json:
        print_json({"file": str(file)} | survey.to_json() | {"output": output and str(output)})
        return
    print_survey(survey)
    if output is not None:
        typer.echo(f"The elastic {'program' if isinstance(source, Program) else 'module'} is in {output}")


def _check_output(output: Path, file: Path, suffix: str) -> None:
    """Refuse to write over the input, or to a name that says something else."""
    if output.exists() and output.samefile(file):
        raise ProgramError(f"{output} is the input: give another file to write to")
    if output.suffix in {".miriam", ".ptx"} - {suffix}:
        raise ProgramError(f"{file} gives no {output.suffix} file: call the output {output.with_suffix(suffix)}")


@zoo.callback(invoke_without_command=True)
def _zoo(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        zoo_list()


@zoo.command("list")
def zoo_list(as_json: Json = False) -> None:
    """List the programs.

    \b
    Example:
      miriam zoo list --json
    """
    from miriam import zoo as animals

    programs = [animals.load(name) for name in animals.names()]
    if as_json:
        print_json([_summary(program) for program in programs])
        return
    width = max((len(program.name) for program in programs), default=0)
    for program in programs:
        typer.echo(f"{program.name:{width}}  {_in_words(program)}")


@zoo.command("show")
def zoo_show(name: Annotated[str, typer.Argument(help="See 'miriam zoo list'.")], as_json: Json = False) -> None:
    """Show the launches of a program.

    \b
    Example:
      miriam zoo show resnet18-b1
    """
    from miriam import zoo as animals

    with bad_input():
        program = animals.load(name)
    launches = [
        {
            "kernel": kernel.name, "source": str(kernel.source), "grid": step.grid, "block": kernel.block,
            "registers": kernel.registers, "shared_bytes": kernel.shared_bytes, "opaque": kernel.opaque,
        }
        for step in program.launches
        for kernel in (program.kernels[step.kernel],)
    ]  # fmt: skip
    if as_json:
        print_json(_summary(program) | {"meta": dict(program.meta), "launch": launches})
        return
    typer.echo(f"{program.name}: {_in_words(program)}")
    for tensor in (*program.inputs, *program.outputs):
        typer.echo(f"  {tensor.name}: {tensor.dtype} {'x'.join(map(str, tensor.shape))}")
    typer.echo(f"\n{'':4} {'blocks':>7} {'threads':>7} {'regs':>4} {'shared':>7}  kernel")
    for i, step in enumerate(program.launches):
        kernel = program.kernels[step.kernel]
        typer.echo(
            f"{i:4} {step.blocks:7} {kernel.threads:7} {kernel.registers:4} {kernel.shared_bytes:7}  {kernel.name}"
            + (f"  (opaque: {kernel.opaque})" if kernel.opaque else "")
        )


@zoo.command("export")
def zoo_export(
    name: Annotated[str, typer.Argument(help="See 'miriam zoo list'.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The program file to write.")],
) -> None:
    """Write a program of the zoo to a file.

    \b
    Example:
      miriam zoo export resnet18-b1 -o resnet18.miriam
    """
    from miriam import zoo as animals

    with bad_input():
        program = animals.load(name)
    program.save(output)
    typer.echo(f"{output}: {_in_words(program)}")


@app.command()
def devices(as_json: Json = False) -> None:
    """Say what can be used here.

    For what can't be used: why, and how to get it.

    \b
    Example:
      miriam devices --json
    """
    from miriam.device import devices

    found = devices()
    if as_json:
        print_json(
            [
                {
                    "name": d.name, "title": d.title, "sms": d.sms, "usable": not d.unusable, "why": d.unusable,
                    "notes": list(d.notes),
                }
                for d in found
            ]
        )  # fmt: skip
        return
    width = max(len(d.name) for d in found)
    for d in found:
        sms = "" if d.sms is None else f", {d.sms} SMs"
        typer.echo(f"{d.name:{width}}  {f'not usable: {d.unusable}' if d.unusable else f'{d.title}{sms}'}")
    for note in dict.fromkeys(note for d in found for note in d.notes):
        about = ", ".join(d.name for d in found if note in d.notes)
        typer.echo(f"\n{about}: {note}.")
    typer.echo("\nA slice of a simulated GPU is named by its number of SMs: sim:h200/16.")


def main() -> None:
    """Run the command; the entry point of the package."""
    warnings.showwarning = lambda message, *_, **__: typer.echo(f"miriam: warning: {message}", err=True)
    app()


def _shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise typer.BadParameter(
            f"{text!r} is no shape: write whole numbers above zero with commas, like 1,3,224,224", param_hint="--shape"
        )
    return sizes


def _summary(program: Program) -> dict[str, Any]:
    kernels = [program.kernel_of(i) for i in range(len(program.launches))]
    return {
        "name": program.name,
        "target": program.target,
        "launches": len(kernels),
        "kernels": len(program.kernels),
        "blocks": sum(step.blocks for step in program.launches),
        "triton_launches": sum(kernel.source == "triton" for kernel in kernels),
        "opaque_launches": sum(bool(kernel.opaque) for kernel in kernels),
        "size_bytes": program.size_bytes,
        "inputs": [[t.dtype, *t.shape] for t in program.inputs],
        "outputs": [[t.dtype, *t.shape] for t in program.outputs],
    }


def _in_words(program: Program) -> str:
    found = _summary(program)
    opaque = f", {found['opaque_launches']} opaque" if found["opaque_launches"] else ""
    return (
        f"{found['launches']} launches ({found['triton_launches']} Triton{opaque}), {found['blocks']:,} blocks, "
        f"{found['size_bytes'] / 2**20:.0f} MiB, {program.target}"
    )
