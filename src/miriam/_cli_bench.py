"""The command ``miriam bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from miriam._console import Json, bad_input, print_json, progress_bar
from miriam.errors import DeviceError, PolicyError, WorkloadError

__all__ = ["bench"]


def bench(
    benchmark: Annotated[Literal["mdtb", "disb", "pair"], typer.Argument(help="Which workloads.")],
    workload: Annotated[
        str | None,
        typer.Option(
            help="Several with commas. mdtb: A, B, C, D, driving; disb: A, B, C, D, E. All but driving if left out."
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Several with commas; all if left out. On a GPU also those of the driver: timeslice, mps, mps:50."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="See 'miriam devices'; a slice: sim:h200/16, cuda:0/16.")] = "sim:xavier",
    duration: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Length of every run, in device time; 1 if left out, 5 on a GPU."),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Turns of every task alone and every policy; 1 if left out, 3 on a GPU.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same arrivals.")] = 0,
    critical_load: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Scale the rates so that the critical network alone would keep the device busy this share of the "
            "time (above 0, at most 1).",
        ),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Requests that a normal closed loop keeps outstanding; as published if left out.")
    ] = None,
    kernels: Annotated[
        str, typer.Option(help="tuned (Triton), or naive (plain CUDA C++, as the paper's benchmark had them).")
    ] = "tuned",
    verify: Annotated[bool, typer.Option("--verify", help="On a GPU: compare every output.")] = False,
    stock: Annotated[
        bool, typer.Option("--stock", help="On a GPU: also measure the normal networks in plain PyTorch.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write index.html, results.json and a trace there.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Processes for a simulated device; one for each core if left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare policies on mixed workloads: mdtb, disb or pair.

    Each network runs alone first, then all of a workload together under each policy. mdtb is the
    benchmark of the Miriam paper, disb that of REEF and its successors, pair a ResNet-34 beside
    batches through a ResNet-18.

    \b
    Examples:
      miriam bench mdtb --device sim:xavier --out report
      miriam bench mdtb --workload B,driving --policy multistream,miriam --device sim:h200/16
      miriam bench mdtb --critical-load 0.3 --json > results.json
      miriam bench pair --device cuda:0 --policy multistream,miriam,mps:50 --stock --out report
    """
    from miriam import bench as library

    with bad_input((WorkloadError, PolicyError, DeviceError)), progress_bar() as progress:
        results = library.run(
            benchmark, workload, policy, device, duration, seed, out, repeats=repeats, critical_load=critical_load,
            depth=depth, kernels=kernels, verify=verify, stock=stock, jobs=jobs,
            progress=lambda done, total, label: progress("running", done, total),
        )  # fmt: skip
    if as_json:
        print_json(results.to_json())
        return
    library.print_table(results)
    if out is not None:
        typer.echo(f"The report is in {out / 'index.html'}")
