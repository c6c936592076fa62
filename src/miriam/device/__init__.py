"""Devices: where lanes of work run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from miriam.errors import DeviceError

__all__ = ["Found", "devices"]


@dataclass(frozen=True, slots=True)
class Found:
    """A device that this machine has, or could have.

    Attributes
    ----------
    name
        As the user writes it, for example ``sim:xavier``.
    title
        What it is.
    sms
        Its streaming multiprocessors, or None where they are not known or it has none.
    unusable
        Why it cannot be used here, and what to do about it; empty if it can.
    notes
        What a reader of its results has to know.
    """

    name: str
    title: str
    sms: int | None
    unusable: str = ""
    notes: tuple[str, ...] = ()


def devices() -> tuple[Found, ...]:
    """Every simulated GPU, the host, and every real GPU; one entry says why if there is none. Never fails."""
    from miriam.device.sim import spec

    origin = {True: "from measurements of that GPU", False: f"scaled from measurements of {spec.MEASURED.name}"}
    models = [
        Found(f"{spec.PREFIX}{s.name}", f"model, {origin[s.measured]}", s.geometry.sms, notes=s.notes)
        for s in spec.KNOWN.values()
    ]
    return (*models, _host(), *_gpus())


def _host() -> Found:
    import platform

    from miriam.device.cpu import cores

    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    processor = next(names, "") or platform.processor() or platform.machine()
    note = "computes modules and functions as they are, and no programs that were compiled for a GPU"
    return Found("cpu", f"{processor}, cores: {cores()}", None, notes=(note,))


def _gpus() -> list[Found]:
    from miriam.device.cuda import driver

    def gpu(ordinal: int) -> Found:
        try:
            device = driver.Gpu(ordinal)
            try:
                return Found(f"cuda:{ordinal}", f"{device.name}, CUDA {device.driver_version}", device.geometry.sms)
            finally:
                device.close()
        except DeviceError as error:
            return Found(f"cuda:{ordinal}", "GPU", None, str(error))

    why = driver.unavailable()
    if why:
        return [Found("cuda:0", "GPU", None, why)]
    return [gpu(i) for i in range(driver.check("cuDeviceGetCount"))]
