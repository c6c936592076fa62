"""Measure every program of the zoo on this machine's GPU.

    python benchmarks/profile_zoo.py --out FOLDER [--programs FOLDER] [--only gru-b1 ...] [--base FILE --no-counters]

Writes ``FOLDER/h200.json.xz`` (named after the GPU), the file that ships with the zoo, after each
program, so that an interrupted run keeps what it has.
"""

from __future__ import annotations

import argparse
import time
from importlib.resources import files
from pathlib import Path

from miriam.device.cuda.driver import Gpu
from miriam.device.cuda.profiler import profile_program, short_name
from miriam.program import Program
from miriam.store import ProfileStore


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--programs", type=Path, default=Path(str(files("miriam.zoo") / "programs")))
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--no-counters", action="store_true", help="keep those of --base")
    parser.add_argument("--base", type=Path, help="an earlier export to start from")
    args = parser.parse_args()
    gpu = Gpu(0)
    target = args.out / f"{short_name(gpu.name)}.json.xz"
    gpu.close()
    with ProfileStore(args.out / "profiles.db") as store:
        if args.base is not None:
            store.load_export(args.base)
        for path in sorted(args.programs.glob("*.miriam")):
            if args.only and path.stem not in args.only:
                continue
            start = time.perf_counter()
            program = Program.load(path)
            profile_program(program, store, counters=not args.no_counters)
            store.export(target)
            measured = store.program(target.name.removesuffix(".json.xz"), program)
            times = {} if measured is None else {sms: round(us[0], 1) for sms, us in measured.times_us.items()}
            print(f"{path.stem:18} {time.perf_counter() - start:6.1f} s  {times}", flush=True)


if __name__ == "__main__":
    main()
