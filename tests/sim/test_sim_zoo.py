from __future__ import annotations

import pytest
from sim_support import alone

from miriam import zoo
from miriam.device.sim.device import SimDevice
from miriam.device.sim.spec import KNOWN
from miriam.profile import launch_key

MEASURED = [name for kernels in zoo.KERNELS for name in zoo.names(kernels)
            if zoo.profiles().program("h200", zoo.load(name)) is not None]  # fmt: skip


def test_all_tuned_programs_are_measured() -> None:
    assert set(zoo.names()) <= set(MEASURED)


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("sms", [16, 132])
def test_a_network_alone_takes_the_sum_of_its_measured_launches(name: str, sms: int) -> None:
    network, profiles = zoo.load(name), zoo.profiles()
    total_us = 0.0
    for step in network.launches:
        profile = profiles.launch("h200", launch_key(network.kernels[step.kernel], step))
        assert profile is not None
        total_us += profile.times_us[sms]
    assert alone(f"sim:h200/{sms}", profiles, network) == pytest.approx(total_us, rel=0.01)


@pytest.mark.parametrize("device", [name for name, spec in KNOWN.items() if not spec.measured])
def test_smaller_gpus_are_slower(device: str) -> None:
    for name in MEASURED:
        network, profiles = zoo.load(name), zoo.profiles()
        small, large = (sum(SimDevice(f"sim:{d}", profiles).launch_us(network)) for d in (device, "h200"))
        # Plain kernels may have fewer blocks than either GPU has room for: then the clock alone makes a difference.
        assert small > (1.0 if "-naive-" in name else 1.5) * large
