"""What becomes of the kernels of the zoo when they are made elastic. Needs ptxas and no GPU.

    python benchmarks/elastic_kernels.py --out FILE

Counts the launches whose kernel is elastic and, as ptxas sees each kernel, the registers that a
form adds to a thread and the bytes that it spills more than the original does.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from collections import Counter
from pathlib import Path

from miriam import zoo
from miriam.elastic.generator import assembled, assembled_texts, make_elastic
from miriam.elastic.ptxas import Assembled, find_ptxas, ptxas_version
from miriam.elastic.rewrite import ELASTIC
from miriam.program import Kernel


def main() -> None:
    """Count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    record: dict[str, object] = {
        "what": "kernels of the zoo made elastic, as ptxas sees them; benchmarks/elastic_kernels.py",
        "date": datetime.date.today().isoformat(),
        "ptxas": ".".join(map(str, ptxas_version(find_ptxas() or Path()))),
        "sets": {},
    }
    for kind in ("tuned", "naive"):
        programs = [make_elastic(zoo.load(name)) for name in zoo.names(kind)]
        kernels: dict[str, Kernel] = {}
        launches: Counter[str] = Counter()
        for program in programs:
            for step in program.launches:
                kernel = program.kernels[step.kernel]
                launches["all"] += 1
                launches["elastic"] += not kernel.opaque and kernel.elastic is not None
                kernels[kernel.digest] = kernel
        target = programs[0].target
        texts = {digest: kernel.ptx or "" for digest, kernel in kernels.items()}
        plain = assembled_texts(texts.values(), target)
        forms = dict(zip(kernels, assembled(kernels.values(), target), strict=True))
        added: dict[str, list[int]] = {str(form): [] for form in ELASTIC}
        spilled: Counter[str] = Counter()
        for digest, kernel in kernels.items():
            before, after = plain[texts[digest]], forms[digest]
            if kernel.opaque or not isinstance(before, Assembled) or not isinstance(after, Assembled):
                continue
            for form in ELASTIC:
                was, now = before.entries[kernel.name], after.entries[form.of(kernel.name)]
                added[form].append(now.registers - was.registers)
                spilled[form] += now.spill_stores > was.spill_stores
        record["sets"][kind] = {  # type: ignore[index]
            "programs": len(programs), "launches": launches["all"], "elastic_launches": launches["elastic"],
            "kernels": len(kernels), "refused": {k.name: k.opaque for k in kernels.values() if k.opaque},
            "registers_added": {
                form: {"median": statistics.median(n), "mean": round(statistics.mean(n), 2), "most": max(n),
                       "above_4": sum(x > 4 for x in n)} for form, n in added.items()
            },
            "kernels_that_spill_more": {str(form): spilled[form] for form in ELASTIC},
        }  # fmt: skip
        print(kind, record["sets"][kind], flush=True)  # type: ignore[index]
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
