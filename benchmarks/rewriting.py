"""How long it takes to make kernels elastic: rewriting, assembling, and finding again what was made before.

    python benchmarks/rewriting.py [--kernels 100] [--out benchmarks/records]

The kernels are taken at equal distances from all distinct ones of the zoo, in the order of their names. Each
row begins with an empty cache (cold) and is then repeated on what is there (warm; the median of several). CPU
time stands beside the time on the clock, which other work on the machine makes longer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import miriam
from miriam import zoo
from miriam.elastic.generator import assembled, assembled_texts
from miriam.elastic.ptxas import find_ptxas, ptxas_version
from miriam.elastic.rewrite import ELASTIC, Form, rewrite
from miriam.program import Kernel

WARM = 9
CHOICES: dict[str, tuple[Form, ...]] = {
    "one form": (Form.DIRECT,),
    "two forms": (Form.DIRECT, Form.LOOPED),
    "all forms": ELASTIC,
}


def kernels(count: int) -> tuple[list[Kernel], str]:
    """So many distinct kernels of the zoo, and their target."""
    programs = [zoo.load(name) for name in zoo.names()]
    target = programs[0].target
    distinct = {k.digest: k for p in programs if p.target == target for k in p.kernels if k.ptx is not None}
    ordered = sorted(distinct.values(), key=lambda k: (k.name, k.digest))
    return [ordered[i * len(ordered) // count] for i in range(count)], target


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of all processors together."""

    def cpu_s() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(u.ru_utime + u.ru_stime for u in used)

    cpu, clock = cpu_s(), time.perf_counter()
    work()
    return time.perf_counter() - clock, cpu_s() - cpu


def measure(work: Callable[[], Sequence[object]]) -> dict[str, float]:
    """Cold and warm."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MIRIAM_CACHE"] = folder
        cold_s, cold_cpu_s = timed(work)
        failed = [str(made) for made in work() if made is None or isinstance(made, Exception)]
        if failed:
            raise SystemExit(f"{len(failed)} were not assembled: {failed[0]}")
        warm = [timed(work)[0] for _ in range(WARM)]
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.bin"))
    return {
        "cold_s": round(cold_s, 2),
        "cold_cpu_s": round(cold_cpu_s, 2),
        "warm_s": round(statistics.median(warm), 3),
        "kept_mb": round(size / 1e6, 1),
    }


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    tool, info = find_ptxas(), Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cpus": os.cpu_count(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "ptxas": ".".join(map(str, ptxas_version(tool))) if tool else None,
        "miriam": miriam.__version__,
    }


def main() -> None:
    """Print the table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "records", help="folder of the record")
    options = parser.parse_args()

    chosen, target = kernels(options.kernels)
    load = os.getloadavg()[0]
    rewriting_s, _ = timed(lambda: [rewrite(kernel.ptx or "", [kernel.name], block=kernel.block) for kernel in chosen])
    print(f"rewriting alone, one core: {rewriting_s:.2f} s, {1e3 * rewriting_s / len(chosen):.1f} ms a kernel")
    originals = [kernel.ptx or "" for kernel in chosen]
    rows = [{"what": "originals, only assembled"} | measure(lambda: [*assembled_texts(originals, target).values()])]
    for name, forms in CHOICES.items():
        rows.append({"what": name, "forms": forms} | measure(partial(assembled, chosen, target, forms)))
    print(f"{'':28} {'cold s':>7} {'its CPU s':>9} {'warm s':>7} {'kept MB':>8}")
    for row in rows:
        print(f"{row['what']:28} {row['cold_s']:7} {row['cold_cpu_s']:9} {row['warm_s']:7} {row['kept_mb']:8}")
    record = {
        "what": "seconds to make kernels of the zoo elastic: rewritten and assembled, cold and warm",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "load_before": round(load, 2),
        "kernels": len(chosen),
        "target": target,
        "ptx_mb": round(sum(map(len, originals)) / 1e6, 2),
        "rewriting_s": round(rewriting_s, 2),
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "rewriting.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
