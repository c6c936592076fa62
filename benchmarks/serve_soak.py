"""Ten minutes of mixed load on a server, with a fault every five seconds: what is lost, wrong, or grows.

    python benchmarks/serve_soak.py [--seconds 600] [--every 5] [--seed 0] [--out benchmarks/records]

A real `miriam serve` on the CPU device, seven models, HTTP and gRPC, JSON and bytes, three levels, streams, requests
that are given up and such that may not wait long; see `soaking.py`. Every answer is compared with the right one to
the bit.
Faults come in a random order, each once before any comes twice; see `soak_faults.py`. In the end what the server
counted has to be what its clients saw, and a request that is under way when it is asked to end has to be answered.

What the server holds is looked at every second. Of the time after the first minute (of a shorter run, after its first
half) the first and the last quarter are compared, in lower quartiles, for a large body that is just there is no growth:

- threads: none more;
- files: 3. Connections that clients keep open come and go by as many; one that was forgotten with each fault of one
  kind would be five or six in ten minutes, and one with each request thousands;
- memory: 6 MiB. That is 70 bytes for each of the some 90,000 requests between the two: a response, an array or a dict
  that is left behind of each takes more. An allocator that has not seen every order of sizes yet needs some room.

Exit code 1 if anything was lost or wrong, or grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from soak_faults import FAULTS
from soaking import PATIENCE_S, RIGHT, Process, Sample, Site, ask, callers, get, question, sample

from miriam.bench.made import machine, versions

TOLERANCES = {"rss_kib": 6 << 10, "reader_kib": 6 << 10, "files": 3, "threads": 0}
RELOADED = ("swapped", "guest")  # a server counts anew after each load


@dataclass(frozen=True, slots=True)
class Growth:
    """Of one thing that the server holds."""

    what: str
    first: float
    last: float
    most: float

    @property
    def grew(self) -> bool:
        """More than it may."""
        return self.last - self.first > TOLERANCES[self.what]


def growth(samples: Sequence[Sample], seconds: float) -> list[Growth]:
    """From the first to the last quarter of the time that counts."""
    begin = min(60.0, seconds / 2)
    window = (seconds - begin) / 4
    first = [one for one in samples if begin <= one.at_s < begin + window]
    last = [one for one in samples if seconds - window <= one.at_s]
    return [
        Growth(what, *(_low([getattr(s, what) for s in part]) for part in (first, last)),
               max(getattr(s, what) for s in samples))
        for what in TOLERANCES
    ]  # fmt: skip


def _low(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=4, method="inclusive")[0] if len(values) > 1 else values[0]


async def faults(site: Site, until_s: float, every_s: float) -> Counter[str]:
    """Do one every so often; how often each was done."""
    done: Counter[str] = Counter()
    bag: list[str] = []
    while time.monotonic() + every_s < until_s:
        await asyncio.sleep(every_s)
        if not bag:
            bag = site.rng.sample(list(FAULTS), len(FAULTS))
        name = bag.pop()
        try:
            async with asyncio.timeout(2 * PATIENCE_S):
                await FAULTS[name](site)
        except Exception as error:
            site.book.lost.append(f"the fault {name!r} could not be done: {error!r:.200}")
        done[name] += 1
    return done


async def counted(site: Site) -> dict[str, dict[str, int]]:
    """What the server counted, once nothing is open: by model, how many requests ended how."""
    for _ in range(200):
        _, body = await get(site, "/metrics")
        page = body.decode()
        if not re.search(r"^miriam_(queue_depth|running)\{[^}]*\} [^0]", page, re.M):
            break
        await asyncio.sleep(0.05)
    else:
        site.book.lost.append("requests are still open, and nobody waits for them")
    found: dict[str, dict[str, int]] = {}
    for labels, value in re.findall(r"^miriam_requests_total\{([^}]*)\} (\S+)", page, re.M):
        said = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        found.setdefault(said["model"], {})[said["outcome"]] = int(float(value))
    return found


def compare(site: Site, found: dict[str, dict[str, int]]) -> None:
    """What the server counted with what its clients saw."""
    book = site.book
    for model in RIGHT:
        if model in RELOADED:
            continue
        server, abandoned = found[model], book.of(model, "abandoned")
        if model == "table":  # whose answer was written by a process that was killed
            abandoned += book.of(model, "internal")
        pairs = {
            "answered": book.of(model, "right"),
            "failed": book.of(model, "internal") if model == "moody" else 0,
            "rejected": book.of(model, "exhausted"),
            "timed_out": book.of(model, "deadline"),
            "cancelled": 0,
        }
        for outcome, seen in pairs.items():
            if not seen <= server[outcome] <= seen + abandoned:
                book.wrong.append(f"{model}: {server[outcome]} {outcome} by its server, {seen} by its clients "
                                  f"({abandoned} clients went)")  # fmt: skip


async def ends(site: Site) -> None:
    """The last requests: they are under way when the server is asked to end."""
    http, grpc_ = site.senders()
    rng = np.random.default_rng(site.rng.getrandbits(32))
    for sender in (http, grpc_):  # so that both have connections
        await ask(site, sender, "archive", question("archive", rng))
    open_ = [
        asyncio.create_task(ask(site, sender, "archive", question("archive", rng), may=("unavailable",)))
        for sender in (http, grpc_)
        for _ in range(8)
    ]
    await asyncio.sleep(0.03)
    code = await asyncio.to_thread(site.process.end)
    await asyncio.gather(*open_)
    await http.close()
    await grpc_.close()
    if code:
        site.book.wrong.append(f"the server ended with {code}")


async def soak(process: Process, seconds: float, every_s: float, seed: int) -> tuple[Site, list[Sample], Counter[str]]:
    """All of it."""
    site = Site(process, random.Random(seed))
    began = time.monotonic()
    samples: list[Sample] = []

    async def look() -> None:
        while not site.ending:
            if not process.alive:
                site.book.lost.append("the server has ended")
                site.ending = True
                return
            samples.append(sample(process, began))
            await asyncio.sleep(1)

    looking = asyncio.create_task(look())
    calling = asyncio.create_task(callers(site))
    faulting = asyncio.create_task(faults(site, began + seconds, every_s))
    await asyncio.wait((looking, calling, faulting), timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    done = await faulting
    site.ending = True
    await asyncio.gather(looking, calling)
    if process.alive:
        compare(site, await counted(site))
        await ends(site)
    return site, samples, done


def report(site: Site, samples: Sequence[Sample], seconds: float, done: Counter[str]) -> dict[str, Any]:
    """What is printed, and written."""
    book = site.book
    models = sorted({model for model, _ in book.counts})
    outcomes = sorted({outcome for _, outcome in book.counts}, key=lambda one: (one != "right", one))
    print(f"\n{'model':9}" + "".join(f"{outcome:>12}" for outcome in outcomes))
    for model in models:
        print(f"{model:9}" + "".join(f"{book.of(model, outcome):12,}" for outcome in outcomes))
    grown = growth(samples, seconds)
    print(f"\n{'':12}{'first':>10}{'last':>10}{'most':>10}   (first and last quarter of what counts)")
    for row in grown:
        print(f"{row.what:12}{row.first:10,.0f}{row.last:10,.0f}{row.most:10,.0f}{'   grew' if row.grew else ''}")
    print(f"\n{sum(done.values())} faults of {len(done)} kinds, {sum(book.counts.values()):,} requests, "
          f"{len(book.lost)} lost, {len(book.wrong)} wrong")  # fmt: skip
    for text in (book.lost + book.wrong)[:20]:
        print(f"  {text}")
    log = site.process.log()
    if log:
        print(f"the server said:\n{log[-4000:]}")
    return {
        "seconds": seconds,
        "requests": sum(book.counts.values()),
        "outcomes": {model: {o: book.of(model, o) for o in outcomes if book.of(model, o)} for model in models},
        "faults": dict(sorted(done.items())),
        "lost": len(book.lost),
        "wrong": len(book.wrong),
        "held": {
            row.what: {"first": row.first, "last": row.last, "most": row.most, "tolerance": TOLERANCES[row.what]}
            for row in grown
        },
        "grew": [row.what for row in grown if row.grew],
        "every_10_s": [[round(s.at_s), s.rss_kib, s.reader_kib, s.files, s.threads] for s in samples[::10]],
    }


def main() -> int:
    """Soak, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--every", type=float, default=5, help="seconds between two faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder of the record; none is written if left out")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        process = Process(Path(folder))
        try:
            found = report(*_soaked(process, options))
        finally:
            process.end()
    if options.out is not None:
        record = {
            "what": "a server under mixed load with a fault every so often: what was lost, wrong, or grew",
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": machine() | {"load_before": str(load_before)},
            "versions": versions(),
            "fault_every_s": options.every,
            "seed": options.seed,
        } | found
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / "serve-soak.json"
        path.write_text(json.dumps(record, indent=2) + "\n")
        print(f"written to {path}")
    return int(bool(found["lost"] or found["wrong"] or found["grew"]))


def _soaked(process: Process, options: argparse.Namespace) -> tuple[Site, list[Sample], float, Counter[str]]:
    site, samples, done = uvloop.run(soak(process, options.seconds, options.every, options.seed))
    return site, samples, options.seconds, done


if __name__ == "__main__":
    sys.exit(main())
