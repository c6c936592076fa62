"""Write the table of results in README.md from a record of a benchmark.

    python benchmarks/readme_table.py [--record benchmarks/records/mdtb-xavier.json] [--check]

A record is the ``results.json`` that ``miriam bench mdtb --out FOLDER`` writes. ``--check`` changes nothing
and fails if the table is not the one that the record gives.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from miriam.bench.results import Results

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "benchmarks" / "records" / "mdtb-xavier.json"
BEGIN = "<!-- results: begin; written by benchmarks/readme_table.py -->\n"
END = "<!-- results: end -->\n"


def table(results: Results) -> str:
    """The table in Markdown, with what a reader has to know about it."""
    rows = [
        "| workload | policy | critical p50 | critical p99 | slowdown p99 | requests/s, all | against `sequential` |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for workload in results.workloads:
        title = f"**{workload.name}**: {workload.title}"
        for policy in results.policies:
            point = results.point(workload.name, policy)
            if point is None:
                continue
            task = point.critical
            latency = None if task is None else task.response
            slower = None if task is None else task.slowdown
            ratio = point.overall_vs_sequential
            cells = (
                title,
                f"`{policy}`",
                "-" if latency is None else f"{latency.p50_us:,.0f} us",
                "-" if latency is None else f"{latency.p99_us:,.0f} us",
                "-" if slower is None else f"{slower.p99:.2f}",
                f"{point.overall_per_s:,.0f}",
                "-" if ratio is None else f"{ratio:.2f}",
            )
            rows.append(f"| {' | '.join(cells)} |")
            title = ""
    load = "" if results.critical_load is None else f" --critical-load {results.critical_load:g}"
    command = (
        f"miriam bench mdtb --workload {','.join(w.name for w in results.workloads)} --device {results.device} "
        f"--duration {results.duration_s:g} --seed {results.seed}{load}"
    )
    notes = "".join(f" {note[0].upper()}{note[1:]}." for note in results.notes)
    return (
        "\n".join(rows)
        + f"\n\nFrom `{command}` ({results.made.date[:10]}, Miriam {results.made.versions['miriam']})."
        + " Latency is response time, from arrival to finish; slowdown is against the network alone in the same run."
        + notes
        + "\n"
    )


def main() -> int:
    """Write or check the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    before, begin, rest = args.readme.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{args.readme} has no place for the table: put these lines there\n{BEGIN}{END}")
    old = args.readme.read_text("utf-8")
    new = f"{before}{BEGIN}{table(Results.load(args.record))}{END}{after}"
    if args.check:
        return int(old != new)
    args.readme.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
