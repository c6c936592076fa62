"""The command ``miriam load``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from miriam._console import BadInputError, Json, bad_input, print_json, progress_bar
from miriam.errors import MiriamError, WorkloadError

if TYPE_CHECKING:
    from miriam.bench.results import Results
    from miriam.load.plan import Caller, Plan

__all__ = ["LoadCommand", "load"]

_OF_A_MODEL = (
    "closed", "uniform", "poisson", "recorded", "name", "critical", "criticality", "deadline", "priority", "timeout",
    "shape", "inputs", "expected", "shared-memory",
)  # fmt: skip
_FLAGS = ("critical", "shared-memory")
_REPEATED = ("shape",)
_MODELS = "miriam.load.models"


class LoadCommand(TyperCommand):
    """Options of a model belong to the ``--model`` that stands before them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put them aside by model; what is left is parsed as ever."""
        models: list[dict[str, Any]] = []
        rest: list[str] = []
        left = list(args)
        while left:
            option, given, value = left.pop(0).partition("=")
            name = option.removeprefix("--")
            if option == "--" or not option.startswith("--") or name not in (*_OF_A_MODEL, "model"):
                rest.append(option + given + value)
                continue
            if name not in _FLAGS and not given:
                if not left:
                    ctx.fail(f"Option '{option}' requires an argument.")
                value = left.pop(0)
            if name == "model":
                models.append({"model": value})
            elif not models:
                ctx.fail(f"Option '{option}' belongs to a model: write it after '--model NAME'.")
            elif name in _REPEATED:
                models[-1].setdefault(name, []).append(value)
            elif name in models[-1]:
                ctx.fail(f"Option '{option}' is given twice for the model {models[-1]['model']}.")
            else:
                models[-1][name] = value
        ctx.meta[_MODELS] = models
        return super().parse_args(ctx, rest)


def load(
    ctx: typer.Context,
    what: Annotated[
        str, typer.Argument(metavar="FILE|URL", help="A load as a YAML file, or http://host:8000, grpc://host:8001.")
    ],
    model: Annotated[
        str | None, typer.Option(help="A model to ask for; the options about models belong to the one before them.")
    ] = None,
    closed: Annotated[
        int | None, typer.Option(metavar="N", help="Of a model: keep so many requests outstanding.")
    ] = None,
    poisson: Annotated[
        float | None, typer.Option(metavar="RATE", help="Of a model: so many requests/s, at random.")
    ] = None,
    uniform: Annotated[
        float | None, typer.Option(metavar="RATE", help="Of a model: so many requests/s, periodic.")
    ] = None,
    recorded: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of a model: at the times in a file, in seconds, one a line.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of a model: what the report calls it; needed where a model is asked twice.")
    ] = None,
    critical: Annotated[
        bool, typer.Option("--critical", help="Of a model: critical in the report; else as the server says.")
    ] = False,
    criticality: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="Of a model: the same with another level.")
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(metavar="MS", help="Of a model: answers later than that are counted as missed.")
    ] = None,
    priority: Annotated[int | None, typer.Option(help="Of a model: sent with every request; 1 is the highest.")] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="MS", help="Of a model: sent with every request; the server gives up then.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(metavar="INPUT=N,N,...", help="Of a model: shape of an input that leaves it open.")
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of a model: an .npz file to send instead of random numbers.")
    ] = None,
    expected: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of a model: an .npz file to compare answers with.")
    ] = None,
    shared_memory: Annotated[
        bool,
        typer.Option("--shared-memory", help="Of a model: inputs lie in memory that a server on this machine reads."),
    ] = False,
    duration: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Length of every run; 10 if left out.")
    ] = None,
    warm_up: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Begin of every run that does not count.")
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="Turns; 1 if left out.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same arrivals and inputs.")] = None,
    solo: Annotated[
        bool | None, typer.Option("--solo/--no-solo", help="Measure each model alone first; yes if left out.")
    ] = None,
    verify: Annotated[
        bool | None, typer.Option("--verify/--no-verify", help="Compare every answer with the first one.")
    ] = None,
    patience: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="After so long a request counts as lost; 10 if left out.")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="Holds the token to send.")] = None,
    ca: Annotated[Path | None, typer.Option(help="Authorities to trust, PEM.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="Who to be, PEM.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write index.html and results.json there.")] = None,
    as_json: Json = False,
) -> None:
    """Load a server with several models at a time, each alone first.

    Every model has a client in a process of its own; all follow one clock. Requests by rate are sent
    when they are due, whatever became of those before, and their latency runs from then.

    \b
    Examples:
      miriam load grpc://127.0.0.1:8001 --model detector --poisson 200 --critical --model caption --closed 4
      miriam load load.yaml --duration 30 --out report
      miriam load http://127.0.0.1:8000 --model detector --uniform 30 --deadline 20 --verify
    """
    from miriam import load as library
    from miriam.bench.table import print_table, print_tasks

    own = {
        "duration_s": duration, "warm_up_s": warm_up, "repeats": repeats, "seed": seed, "solo": solo,
        "verify": verify, "patience_s": patience,
    }  # fmt: skip
    files = {"token_file": token_file, "ca": ca, "certificate": certificate, "key": key}
    with bad_input(WorkloadError), progress_bar() as progress:
        plan = _plan(what, ctx.meta[_MODELS], own, files)
        results = library.run(plan, out, progress=progress)
    if as_json:
        print_json(results.to_json())
    else:
        print_table(results)
        print_tasks(results)
        for line in _own_words(results):
            typer.echo(line)
        if out is not None:
            typer.echo(f"The report is in {out / 'index.html'}")
    wrong = sum(task.wrong or 0 for point in results.points for task in point.tasks)
    if wrong:
        raise MiriamError(f"answers differ from what was expected, in {wrong:,} words of 4 bytes")


def _plan(what: str, models: Sequence[Mapping[str, Any]], own: dict[str, Any], files: dict[str, Any]) -> Plan:
    from miriam.load.plan import Plan
    from miriam.load.reading import read
    from miriam.load.server import Server

    if "://" in what:
        server = Server.of(what, **files)
        return Plan(server, [_caller(m) for m in models], **{k: v for k, v in own.items() if v is not None})
    if not Path(what).exists():
        raise WorkloadError(f"there is no file {what}; the address of a server begins with http:// or grpc://")
    if models or any(files.values()):
        raise WorkloadError(f"{what} says which models and which files: write those there, or give a URL in its place")
    return read(Path(what), **own)


def _caller(given: Mapping[str, Any]) -> Caller:
    """The caller that options describe: the keys of a file, with a unit where those have one."""
    from miriam.load.reading import caller_of

    keys: dict[str, Any] = {"model": given["model"]}
    for option, value in given.items():
        match option:
            case "critical":
                keys["criticality"] = "critical"
            case "shared-memory":
                keys["shared_memory"] = True
            case "deadline" | "timeout":
                keys[f"{option}_ms"] = _number(option, value)
            case "closed" | "uniform" | "poisson" | "priority":
                keys[option] = _number(option, value)
            case "shape":
                keys["shapes"] = dict(_shape(text) for text in value)
            case "recorded" | "inputs" | "expected" | "criticality":
                keys[option] = value
    return caller_of(given.get("name", given["model"]), keys, Path())


def _number(option: str, text: str) -> int | float:
    try:
        return int(text) if text.strip("+-").isdecimal() else float(text)
    except ValueError:
        raise BadInputError(f"--{option}: {text!r} is no number") from None


def _shape(text: str) -> tuple[str, list[int]]:
    name, given, sizes = text.partition("=")
    try:
        if not name or not given:
            raise ValueError
        return name, [int(size) for size in sizes.split(",")]
    except ValueError:
        raise BadInputError(f"--shape: {text!r} is no shape of an input: write x=1,3,224,224") from None


def _own_words(results: Results) -> Iterator[str]:
    """What the load generator says of itself, in the worst of all runs."""
    worst: dict[str, float] = {}
    for point in results.points:
        for key, value in point.report.items():
            worst[key] = max(worst.get(key, 0.0), value)
    for workload in results.workloads:
        for entry in workload.entries:
            text = f"The client of {entry.name}: {worst[f'{entry.name}_client_us']:,.0f} us of a processor a request"
            if f"{entry.name}_late_p50_us" in worst:
                p50, p99, most = (worst[f"{entry.name}_late_{which}_us"] for which in ("p50", "p99", "max"))
                text += f", sent {p50:,.0f} us late (p50; p99 {p99:,.0f}, at most {most:,.0f})"
            yield text + "."
