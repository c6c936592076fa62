"""Write the tables of results in README.md and docs/results.md from the records beside this file.

    python benchmarks/tables.py [--check] [FILE ...]

A table stands between two comments, of which the first names its record::

    <!-- table mdtb-xavier -->
    <!-- end -->

``--check`` changes nothing and fails if a table is not the one that its record gives. The records named
``mdtb-*``, ``disb-*`` and ``pair-*`` are the ``results.json`` of ``miriam bench`` with ``--out FOLDER`` without
their timelines: ``python benchmarks/tables.py --keep FOLDER/results.json mdtb-NAME`` makes one.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from miriam.bench.results import Results
from miriam.bench.suites import SUITES
from miriam.bench.summary import Spread, Summary, summaries

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "benchmarks" / "records"
FILES = (ROOT / "README.md", ROOT / "docs" / "results.md")
GLANCE = ("mdtb-xavier", "mdtb-rtx2060", "mdtb-h200-16")
PLACE = re.compile(r"(<!-- table (?P<record>\S+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def mdtb(results: Results) -> str:
    """Policies by workload, with what a reader has to know about them."""
    rows = [
        (w, row) for w in results.workloads for row in summaries(results, w) if not (row.alone and results.simulated)
    ]
    columns = [
        (head, cell)
        for head, cell, measured in COLUMNS
        if not (measured and results.simulated) and any(cell(row) != "-" for _, row in rows)
    ]
    lines = [
        f"| workload | {' | '.join(head for head, _ in columns)} |",
        "|---|---" + "|--:" * (len(columns) - 1) + "|",
    ]
    before = None
    for workload, row in rows:
        title = "" if workload is before else f"**{workload.name}**: {workload.title}"
        before = workload
        lines.append(f"| {title} | {' | '.join(cell(row) for _, cell in columns)} |")
    options = "" if results.critical_load is None else f" --critical-load {results.critical_load:g}"
    if not results.simulated:
        options += f" --repeats {results.repeats} --policy {','.join(results.policies)}"
    command = (
        f"miriam bench {results.suite} --workload {','.join(w.name for w in results.workloads)} "
        f"--device {results.device} --duration {results.duration_s:g} --seed {results.seed}{options}"
    )
    notes = "".join(f" {note[0].upper()}{note[1:]}." for note in results.notes)
    kind = "Simulated" if results.simulated else f"Measured on one {results.made.machine.get('gpu', 'GPU')}"
    turns = f" Medians of {results.repeats} turns, in brackets the least and the most." if results.repeats > 1 else ""
    return (
        "\n".join(lines)
        + f"\n\n{kind}. From `{command}` ({results.made.date[:10]}, Miriam {results.made.versions['miriam']})."
        + " Latency is response time, from arrival to finish; slowdown is against the network alone in the same run."
        + turns
        + notes
        + "\n"
    )


def _time(value_us: float | None) -> str:
    return "-" if value_us is None else f"{value_us:,.0f} us"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _spread(spread: Spread | None, text: Callable[[float], str]) -> str:
    if spread is None:
        return "-"
    between = "" if spread.low == spread.high else f" ({text(spread.low)} to {text(spread.high)})"
    return text(spread.median) + between


COLUMNS: tuple[tuple[str, Callable[[Summary], str], bool], ...] = (
    ("policy", lambda row: row.label if row.alone else f"`{row.label}`", False),
    ("critical p50", lambda row: _time(row.p50_us), False),
    ("critical p99", lambda row: _time(row.p99_us), False),
    ("slowdown p99", lambda row: _spread(row.slowdown, _ratio), False),
    ("normal requests/s", lambda row: _spread(row.normal_per_s, "{:,.0f}".format), True),
    ("of stock", lambda row: _ratio(row.normal_vs_stock), True),
    ("of free", lambda row: _ratio(row.normal_vs_free), True),
    ("requests/s, all", lambda row: f"{row.overall_per_s:,.0f}", False),
    ("against `sequential`", lambda row: _ratio(row.overall_vs_sequential), False),
)
"""Head, cell of a row, and whether a column is for measured results only; one with nothing in it is left out."""


def glance() -> str:
    """Each policy over all workloads, on every device of a record with rates as written."""
    records = {name: Results.load(RECORDS / f"{name}.json") for name in GLANCE}
    heads = [f"`{results.device}`: critical p99 vs alone | requests/s vs `sequential`" for results in records.values()]
    rows = [f"| policy | {' | '.join(heads)} |", "|---" + "|--:" * (2 * len(heads)) + "|"]
    for policy in next(iter(records.values())).policies:
        cells = []
        for results in records.values():
            points = [results.point(workload.name, policy) for workload in results.workloads]
            slower = [p.critical.slowdown.p99 for p in points if p and p.critical and p.critical.slowdown]
            ratios = [p.overall_vs_sequential for p in points if p and p.overall_vs_sequential]
            cells += [f"{statistics.geometric_mean(slower):.2f}", f"{statistics.geometric_mean(ratios):.2f}"]
        rows.append(f"| `{policy}` | {' | '.join(cells)} |")
    names = ", ".join(w.name for w in next(iter(records.values())).workloads)
    return "\n".join(rows) + (
        f"\n\nSimulated; geometric means over the workloads {names} of MDTB, rates as written. `sim:xavier` and"
        " `sim:rtx2060` are scaled from measurements of an H200.\n"
    )


def zoo(record: dict[str, Any]) -> str:
    """Programs of the zoo against the stock best."""
    rows = [
        "| program | launches | of them Triton | latency | eager, cuDNN and cuBLAS | equal from the file |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for name, facts in record["programs"].items():
        stock = "-" if facts["stock_us"] is None else f"{facts['stock_us']:,.0f} us"
        equal = "to the bit" if facts["equal"] else "no"
        rows.append(
            f"| `{name}` | {facts['launches']} | {facts['triton']} | {facts['us']:,.0f} us | {stock} | {equal} |"
        )
    on, command = record["measured_on"], record["command"]
    return (
        "\n".join(rows)
        + f"\n\nMeasured on one {on['gpu']} (torch {on['torch']}, Triton {on['triton']}, CUDA {on['cuda_driver']}, "
        + f"{record['date']}): median latency as one CUDA graph, against the eager module in fp16 and channels-last, "
        + f"also in a CUDA graph. Compiling ResNet-50 takes {command['cold_s']:.0f} s with nothing cached, and "
        + f"{command['warm_s']:.1f} s a second time ({on['host']}; the whole command).\n"
    )


def solo(record: dict[str, Any]) -> str:
    """Simulated against measured latency alone, by device."""
    rows = ["| device | programs | median error | largest error | in |", "|---|--:|--:|--:|---|"]
    for device in dict.fromkeys(row["device"] for row in record["rows"]):
        own = [row for row in record["rows"] if row["device"] == device]
        worst = max(own, key=lambda row: abs(row["error"]))
        median = statistics.median(abs(row["error"]) for row in own)
        rows.append(f"| `{device}` | {len(own)} | {median:.2%} | {abs(worst['error']):.1%} | `{worst['program']}` |")
    on = record["measured_on"]
    return "\n".join(rows) + f"\n\nMeasured on one {on['gpu']}, {on['date']}; simulated {record['date']}.\n"


def model_check(record: dict[str, Any]) -> str:
    """Simulated against measured figures: the spread of the errors, and the largest."""
    rows = ["| measured on | figure | | values | median error | 90th percentile | largest | in |",
            "|---|---|---|--:|--:|--:|--:|---|"]  # fmt: skip
    named = {"p50_us": "p50", "p99_us": "p99", "throughput_per_s": "requests/s"}
    parts = [(f"`{part['suite']}`, `{part['measured_on']['device']}`", part) for part in record["parts"]]
    for where, part in [*parts, ("**all**", record)]:
        for row in part["summary"]:
            rows.append(f"| {where} | {named[row['figure']]} | {'alone' if row['alone'] else 'in company'} | "
                        f"{row['rows']} | {row['median']:.1%} | {row['p90']:.1%} | {row['largest']:+.1%} | "
                        f"{row['largest_in']} |")  # fmt: skip
    shares = ", ".join(f"{part['simulated_s']:g} of {part['duration_s']:g} s ({where})" for where, part in parts)
    on = record["parts"][0]["measured_on"]
    return "\n".join(rows) + f"\n\nMeasured on one {on['gpu']}, {on['date'][:10]}, one turn; simulated: {shares}.\n"


def elastic_kernels(record: dict[str, Any]) -> str:
    """What becomes of the kernels of the zoo."""
    rows = [
        "| kernels | launches | of them elastic | form | registers added: median | mean | most | spill more |",
        "|---|--:|--:|---|--:|--:|--:|--:|",
    ]
    for kind, facts in record["sets"].items():
        for form, added in facts["registers_added"].items():
            spills = facts["kernels_that_spill_more"][form]
            rows.append(
                f"| {facts['kernels']} {kind} | {facts['launches']} | {facts['elastic_launches']} | `{form}` "
                f"| {added['median']:g} | {added['mean']:.1f} | {added['most']} | {spills} |"
            )
    return "\n".join(rows) + f"\n\nAssembled by ptxas {record['ptxas']} for Hopper, {record['date']}; no GPU.\n"


def elastic_cost(record: dict[str, Any]) -> str:
    """Elastic against unmodified programs."""
    rows = ["| program | 132 SMs | elastic | cost | 16 SMs | elastic | cost |", "|---|--:|--:|--:|--:|--:|--:|"]
    sets: dict[str, list[dict[str, Any]]] = {"tuned": [], "naive": []}
    for name, facts in record["programs"].items():
        sets["naive" if "-naive-" in name else "tuned"].append(facts)
        cells = [
            f"{facts[sms]['plain_us']:,.0f} us | {facts[sms]['elastic_us']:,.0f} us | {facts[sms]['cost']:+.1%}"
            for sms in ("132", "16")
        ]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    for kind, found in sets.items():
        median = {sms: statistics.median(facts[sms]["cost"] for facts in found) for sms in ("132", "16")}
        rows.append(f"| **median, {kind}** | | | **{median['132']:+.1%}** | | | **{median['16']:+.1%}** |")
    equal = all(facts["equal"] for found in sets.values() for row in found for facts in row.values())
    on = record["machine"]
    return (
        "\n".join(rows)
        + f"\n\nMeasured on one {on['gpu']} (driver {on['driver']}, CUDA {on['cuda']}, {record['date']}): medians of "
        + f"{record['rounds']} runs in turn, each program one CUDA graph, the gate included. "
        + f"All buffers equal to the bit: {'yes' if equal else 'no'}.\n"
    )


def interruptions(record: dict[str, Any]) -> str:
    """Interrupted inferences."""
    rows = [
        "| program | inferences | wrong | passes | of them stopped | lane changed | shared by two lanes |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    counts = ("inferences", "wrong", "passes", "stopped", "moves", "shared")
    for name, facts in record["programs"].items():
        cells = [f"{facts['storm'][count]:,}" if "storm" in facts else "-" for count in counts]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    total = record["total"]
    rows.append(f"| **all** | {' | '.join(f'**{total[count]:,}**' for count in counts)} |")
    return "\n".join(rows) + f"\n\nMeasured on one {record['machine']['gpu']}, {record['date']}.\n"


def leaving(record: dict[str, Any]) -> str:
    """How soon programs leave."""
    goal = f"{record['goal_us']:g} us"
    rows = [
        f"| program | moments | leaving: median | p90 | p99 | most | within {goal} | walked: median | p99 |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    sums = {f"**all {kind}**": facts for kind, facts in record["leaving"].items()}
    own = {f"`{name}`": facts for name, facts in record["programs"].items() if "leaving_us" in facts}
    for name, facts in {**own, **sums}.items():
        left, walked = facts["leaving_us"], facts["walked_us"]
        cells = [f"{left['samples']:,}", *(f"{left[part]:,.1f} us" for part in ("p50", "p90", "p99", "max"))]
        cells += [f"{left['within_goal']:.1%}", *(f"{walked[part]:,.1f} us" for part in ("p50", "p99"))]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return (
        "\n".join(rows)
        + f"\n\nMeasured on one {record['machine']['gpu']}, {record['date']}. With so few moments a program, its p99 "
        + "is the second slowest of them.\n"
    )


def rewriting(record: dict[str, Any]) -> str:
    """What it takes to make kernels elastic."""
    rows = ["| 100 kernels of the zoo | cold | warm |", "|---|--:|--:|"]
    rows += [f"| {row['what']} | {row['cold_s']:.1f} s | {row['warm_s']:.2f} s |" for row in record["rows"]]
    on = record["machine"]
    return (
        "\n".join(rows)
        + f"\n\nMeasured on {on['cpus']} cores ({on['cpu']}, ptxas {on['ptxas']}, {record['date']}); rewriting alone "
        + f"takes {record['rewriting_s']:.1f} s.\n"
    )


def _on(record: dict[str, Any]) -> str:
    """Where and when, in brackets."""
    on, made = record["machine"], record.get("versions", {})
    miriam = made.get("miriam") or on.get("miriam")
    cores, cpu = on.get("cores") or on["cpus"], on.get("processor") or on["cpu"]
    torch = f", torch {on['torch']}" if "torch" in on else ""
    return (
        f"({cores} cores, {cpu}, Python {on.get('python') or made['python']}{torch}, Miriam {miriam}, {record['date']})"
    )


def cpu_company(record: dict[str, Any]) -> str:
    """A critical network beside a normal one on the CPU, in two ways."""
    rows = [
        "| way, and who asks | critical p50 | p99 | slowdown p50 | p99 | normal images/s | of alone |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in record["rows"]:
        found = row.get("latency_ms", {})
        cells = [
            *(f"{found[q]:.1f} ms" if q in found else "-" for q in ("p50", "p99")),
            *(f"{row[k]:.2f}" if k in row else "-" for k in ("slowdown_p50", "slowdown_p99")),
            f"{row['normal_per_s']:.1f}" if "normal_per_s" in row else "-",
            f"{row['normal_share']:.0%}" if "normal_share" in row else "-",
        ]
        rows.append(f"| {row['what']} | {' | '.join(cells)} |")
    return (
        "\n".join(rows)
        + f"\n\nMeasured {_on(record)}, {record['threads']} threads, waiting of OpenMP: {record['waiting']}, "
        + f"{record['rounds']} rounds; load of the machine before: {record['load_before']}.\n"
    )


def serve_overhead(record: dict[str, Any]) -> str:
    """What a server costs a request, and what it can answer."""
    rows = ["| a small model, one request at a time | p50 | p99 |", "|---|--:|--:|"]
    names = {"function": "called as a function", "runtime": "through `miriam.Runtime`",
             "grpc": "through the server, gRPC", "http": "through the server, HTTP",
             "answer": "gRPC alone: answered without a model"}  # fmt: skip
    rows += [
        f"| {label} | {record['latency'][key]['p50_us']:,} us | {record['latency'][key]['p99_us']:,} us |"
        for key, label in names.items()
    ]
    rows += ["", "| a tiny model, requests at a time | gRPC: requests/s | p50 | HTTP: requests/s | p50 |",
             "|--:|--:|--:|--:|--:|"]  # fmt: skip
    by = {(one["protocol"], one["at_once"]): one for one in record["throughput"]}
    for depth in sorted({depth for _, depth in by}):
        cells = [
            cell
            for way in ("grpc", "http")
            for cell in (f"{by[way, depth]['per_s']:,}", f"{by[way, depth]['p50_us']:,} us")
        ]
        rows.append(f"| {depth} | {' | '.join(cells)} |")
    return (
        "\n".join(rows)
        + f"\n\nMeasured with the clients on the same cores {_on(record)}; medians of {record['rounds']} rounds of "
        + f"{record['seconds']:g} s; load of the machine before: {float(record['machine']['load_before']):.2f}.\n"
    )


def start_times(record: dict[str, Any]) -> str:
    """How long it takes to be there."""
    what = {"import": "`import miriam`", "help": "`miriam --help`", "ready": "`miriam serve`, until it is ready"}
    rows = ["| without PyTorch | median | least | most |", "|---|--:|--:|--:|"]
    rows += [
        f"| {what[name]} | {t['median_s']:.3f} s | {t['least_s']:.3f} s | {t['most_s']:.3f} s |"
        for name, t in record["times"].items()
    ]
    return "\n".join(rows) + f"\n\nMeasured {_on(record)}, {record['runs']} fresh processes each.\n"


def serve_soak(record: dict[str, Any]) -> str:
    """A server under load and faults."""
    held, columns = {"rss_kib": "memory of the server, KiB"}, ("first", "last", "most", "tolerance")
    rows = ["| after the first minute | first quarter | last quarter | most | may grow by |", "|---|--:|--:|--:|--:|"]
    rows += [
        f"| {held.get(name, name)} | {' | '.join(f'{one[key]:,.0f}' for key in columns)} |"
        for name, one in record["held"].items()
    ]
    count = sum(record["faults"].values())
    return (
        f"{record['seconds']:,.0f} s, {record['requests']:,} requests, {count} faults of {len(record['faults'])} "
        f"kinds: **{record['lost']} lost, {record['wrong']} wrong**.\n\n"
        + "\n".join(rows)
        + f"\n\nMeasured {_on(record)}.\n"
    )


def segments(record: dict[str, Any]) -> str:
    """Where the time of a critical request goes."""
    ways = record["ways"]
    count = len(next(iter(ways.values()))["segments_us"])
    quarters = [range(i * count // 4, (i + 1) * count // 4) for i in range(4)]
    rows = [
        f"| `{record['critical']}` | {' | '.join(f'{word} quarter' for word in ('first', 'second', 'third', 'last'))} "
        "| on the GPU | from its submission |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for label, facts in ways.items():
        sums = [sum(facts["segments_us"][i] for i in quarter) for quarter in quarters]
        cells = [f"{us:,.0f} us" for us in (*sums, facts["gpu_us"], facts["service_us"])]
        rows.append(f"| {label} | {' | '.join(cells)} |")
    return (
        "\n".join(rows)
        + f"\n\nMeasured on one {record['gpu']} (CUDA {record['cuda']}, {record['date']}): medians of "
        + f"{min(facts['requests'] for facts in ways.values())} requests each, 200 a second, beside "
        + f"`{record['normal']}`; quarters of its launches, by the clock of the GPU.\n"
    )


def table(name: str) -> str:
    """The table of a record."""
    if name == "glance":
        return glance()
    path = RECORDS / f"{'interruptions' if name == 'leaving' else name}.json"
    if name.partition("-")[0] in SUITES:
        return mdtb(Results.load(path))
    record = json.loads(path.read_text("utf-8"))
    makers = {
        "zoo": zoo, "solo-accuracy": solo, "elastic-kernels": elastic_kernels, "elastic-cost": elastic_cost,
        "interruptions": interruptions, "leaving": leaving, "rewriting": rewriting,
        "model-check-h200": model_check, "cpu-company": cpu_company, "serve-overhead": serve_overhead,
        "start-times": start_times, "serve-soak": serve_soak, "critical-segments": segments,
    }  # fmt: skip
    return makers[name](record)


def keep(source: Path, name: str) -> None:
    """Make a record of a results document: everything but its timelines."""
    results = Results.load(source)
    small = replace(results, points=tuple(replace(point, timeline=None) for point in results.points))
    (RECORDS / f"{name}.json").write_text(json.dumps(small.to_json(), separators=(",", ":")) + "\n", "utf-8")


def main() -> int:
    """Write or check the tables, or keep a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--keep", nargs=2, metavar=("RESULTS", "NAME"))
    args = parser.parse_args()
    if args.keep:
        keep(Path(args.keep[0]), args.keep[1])
        return 0
    stale = 0
    for path in args.files or FILES:
        old = path.read_text("utf-8")
        new = PLACE.sub(lambda m: f"{m[1]}\n{table(m['record'])}\n{m[3]}", old)
        stale += old != new
        if not args.check:
            path.write_text(new, "utf-8")
    return int(args.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
