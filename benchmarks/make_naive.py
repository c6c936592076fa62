"""Build the networks of plain kernels and write them into the zoo: ``python benchmarks/make_naive.py``.

No GPU is needed, only NVRTC and ptxas; the same versions give the same files. The programs carry no weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from miriam.zoo import naive

ZOO = Path(__file__).parent.parent / "src" / "miriam" / "zoo" / "programs"


def main() -> None:
    """Build what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ZOO, help="folder for the files")
    parser.add_argument("--only", nargs="*", choices=sorted(naive.NETWORKS), default=sorted(naive.NETWORKS))
    parser.add_argument("--target", default="sm_90", help="architecture to compile for")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for network in args.only:
        program = naive.program(network, target=args.target)
        path = args.out / f"{program.name}.miriam"
        program.save(path)
        blocks = sum(step.blocks for step in program.launches)
        print(f"{path}: {len(program.launches)} launches, {blocks} blocks, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
