"""Devices that serve, by name."""

from __future__ import annotations

from miriam.device.base import Serving
from miriam.errors import DeviceError
from miriam.profile import ProfileSource

__all__ = ["best", "open_device"]


def best() -> str:
    """The name of the best device here: the first GPU that can be used, or else the cores."""
    from miriam.device.cuda import driver

    return "cpu" if driver.unavailable() else "cuda:0"


def open_device(name: str, profiles: ProfileSource | None) -> Serving:
    """Open a device of that name.

    Parameters
    ----------
    profiles
        What was measured; None: the user's own measurements and those of the zoo, where the device needs them.

    Raises
    ------
    DeviceError
        There is none of that name.
    """
    kind = name.partition(":")[0].partition("/")[0]
    if kind == "cpu":
        from miriam.device.cpu import CpuDevice

        return CpuDevice(name)
    if kind == "cuda":
        from miriam.device.cuda.serving import ServingCuda

        return ServingCuda(name, profiles or _usual())
    if kind == "sim":
        from miriam.device.sim.device import SimDevice
        from miriam.runtime.paced import Paced

        return Paced(SimDevice(name, profiles or _usual()))
    raise DeviceError(f"{name!r} is no device: take cpu, cuda:0 or sim:orin, for example; 'miriam devices' lists them")


def _usual() -> ProfileSource:
    from miriam import zoo
    from miriam.store import ChainedProfiles, ProfileStore

    return ChainedProfiles(ProfileStore(), zoo.profiles())
