"""The command ``miriam trace``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from miriam._console import Json, bad_input, print_json
from miriam._files import replacing
from miriam.errors import TraceError

if TYPE_CHECKING:
    from miriam.trace.recording import Recording, Traced

__all__ = ["trace"]

_SLOWEST = 5


def trace(
    source: Annotated[
        str, typer.Argument(metavar="URL|FILE", help="A running server, http://127.0.0.1:8000, or what -o wrote.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the trace, for Perfetto and for this.")
    ] = None,
    request: Annotated[int | None, typer.Option(metavar="N", help="Explain this request.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Requests of this model only.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Holds the server's token, where it asks for one.")
    ] = None,
    ca: Annotated[Path | None, typer.Option(metavar="FILE", help="Certificates to trust, for https.")] = None,
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your certificate, where the server asks for one.")
    ] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key.")] = None,
    as_json: Json = False,
) -> None:
    """Say what happened to requests, and why.

    Asks a running server for the requests that it remembers. Without --request it lists the tasks, and explains
    the slowest request. The file that -o writes opens in Perfetto (ui.perfetto.dev).

    \b
    Examples:
      miriam trace http://127.0.0.1:8000 -o trace.json
      miriam trace trace.json --model detector
      miriam trace http://127.0.0.1:8000 --request 1042
    """
    from miriam.trace.explain import explain
    from miriam.trace.perfetto import text
    from miriam.trace.recording import read

    remote = source.startswith(("http://", "https://"))
    with bad_input(TraceError):
        if not remote and not Path(source).exists():
            raise TraceError(f"there is no file {source}; the address of a server begins with http:// or https://")
        recording = _fetch(source, token_file, ca, certificate, key) if remote else read(source)
        chosen = None if request is None else recording.find(request)
        ended = [one for one in recording.requests if one.finished_us is not None and model in (None, one.task)]
        if model is not None and not any(one.task == model for one in recording.requests):
            known = ", ".join(sorted({one.task for one in recording.requests})) or "none"
            raise TraceError(f"no request of {model!r} is in this trace; it has those of: {known}")
    if output is not None:
        with replacing(output, TraceError) as part:
            part.write_text("".join(text(recording)), "utf-8")
    slow = sorted(ended, key=lambda one: -_slowness(one, recording))[:_SLOWEST]
    told = chosen or (slow[0] if slow else None)
    story = None if told is None else explain(recording, told.number)
    if as_json:
        print_json(
            {"tasks": _tasks(ended, recording), "slowest": [one.number for one in slow]}
            | {"story": story and story.to_json(), "output": output and str(output)}
        )
        return
    if chosen is None:
        _print_tasks(_tasks(ended, recording), recording)
    if story is not None:
        typer.echo(("" if chosen else "\nThe slowest against alone. ") + str(story))
    if chosen is None and len(slow) > 1:
        typer.echo(f"\nNext: {', '.join(f'{one.name} {_ms(_latency_us(one))}' for one in slow[1:])}")
    if output is not None:
        typer.echo(f"\nThe trace is in {output}: open it in ui.perfetto.dev, or give it to this command")


def _fetch(url: str, token_file: Path | None, ca: Path | None, certificate: Path | None, key: Path | None) -> Recording:
    """The recording of a server.

    Raises
    ------
    TraceError
        It does not answer, or not with one.
    """
    import http.client
    import ssl
    from urllib.error import HTTPError, URLError
    from urllib.request import HTTPSHandler, ProxyHandler, Request, build_opener

    from miriam.trace.recording import Recording

    headers = {"Accept": "application/json"}
    try:
        if token_file is not None:
            headers["Authorization"] = f"Bearer {token_file.read_text('ascii').strip()}"
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"cannot read the token from {token_file}: {error}") from error
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except OSError as error:
        raise TraceError(f"cannot use {ca or certificate}: {error}: give PEM files") from error
    try:
        opener = build_opener(ProxyHandler({}), HTTPSHandler(context=context))
        with opener.open(Request(f"{url.rstrip('/')}/v2/trace", headers=headers), timeout=30) as answer:
            raw = json.load(answer)
    except HTTPError as error:
        error.close()
        way = ": give its token with --token-file" if error.code == 401 else ""
        raise TraceError(f"{url} says {error.code} {error.reason}{way}") from error
    except http.client.HTTPException as error:
        raise TraceError(f"{url} does not speak HTTP: give the address that 'miriam serve' names for it") from error
    except (URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise TraceError(f"{url} does not answer ({reason}): start a server with 'miriam serve'") from error
    except ValueError as error:
        raise TraceError(f"{url} answers with something else than JSON: is it a server of Miriam?") from error
    return Recording.from_json(raw)


def _tasks(ended: Sequence[Traced], recording: Recording) -> list[dict[str, Any]]:
    """What a recording says of each task."""
    from miriam.trace.intervals import Intervals
    from miriam.trace.recording import Outcome, level_name

    intervals = Intervals(recording)
    tasks: dict[tuple[int, str], list[Traced]] = {}
    for one in ended:
        tasks.setdefault((-one.level, one.task), []).append(one)
    found = []
    for (level, name), some in sorted(tasks.items()):
        latencies = sorted(_latency_us(one) for one in some if one.outcome == Outcome.ANSWERED)
        whole_us = sum(_latency_us(one) for one in some) or 1.0
        waited_us = sum(intervals.waited_until_us(one) - one.submitted_us for one in some)
        paused_us = sum(end_us - begin_us for one in some for begin_us, end_us in intervals.pauses(one))
        found.append(
            {
                "task": name, "level": level_name(-level), "requests": len(some), "answered": len(latencies),
                "p50_us": _quantile(latencies, 0.5), "p99_us": _quantile(latencies, 0.99),
                "alone_us": recording.alone_us.get(name),
                "waited": waited_us / whole_us, "paused": paused_us / whole_us,
            }
        )  # fmt: skip
    return found


def _print_tasks(tasks: Sequence[dict[str, Any]], recording: Recording) -> None:
    typer.echo(
        f"{recording.device}, policy {recording.policy}: {len(recording.requests):,} requests, {recording.lost:,} older"
    )
    width = max([4, *(len(f"{task['task']} ({task['level']})") for task in tasks)])
    typer.echo(f"\n{'task':{width}} {'answered':>8} {'p50':>8} {'p99':>8} {'alone':>8} {'waited':>7} {'paused':>7}")
    for task in tasks:
        name = f"{task['task']} ({task['level']})"
        times = " ".join(f"{_ms(task[key]):>8}" for key in ("p50_us", "p99_us", "alone_us"))
        shares = " ".join(f"{100 * task[key]:5.0f} %" for key in ("waited", "paused"))
        typer.echo(f"{name:{width}} {task['answered']:8,} {times} {shares}")


def _latency_us(request: Traced) -> float:
    return 0.0 if request.finished_us is None else request.finished_us - request.submitted_us


def _slowness(request: Traced, recording: Recording) -> float:
    """Latency against that alone; where nobody knows it, less than any that is known."""
    alone_us = recording.alone_us.get(request.task)
    return _latency_us(request) / alone_us if alone_us else -1 / max(_latency_us(request), 1e-3)


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that so many of them do not pass."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def _ms(value_us: float | None) -> str:
    from miriam.trace.explain import time_text

    return "-" if value_us is None else time_text(value_us)
