from __future__ import annotations

import pytest
from sim_support import alone

from miriam import zoo
from miriam.device.sim.device import SimDevice
from miriam.device.sim.spec import KNOWN
from miriam.profile import launch_key


@pytest.mark.parametrize("name", zoo.names())
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
    for name in zoo.names():
        network, profiles = zoo.load(name), zoo.profiles()
        small, large = (sum(SimDevice(f"sim:{d}", profiles).launch_us(network)) for d in (device, "h200"))
        assert small > 1.5 * large
