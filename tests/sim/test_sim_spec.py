from __future__ import annotations

import pytest

from miriam.device.sim.spec import KNOWN, parse
from miriam.errors import DeviceError


@pytest.mark.parametrize(("name", "sms", "threads", "blocks"), [
    ("sim:h200", 132, 2048, 32),
    ("sim:xavier", 8, 2048, 32),
    ("sim:orin", 16, 1536, 16),
    ("sim:rtx2060", 30, 1024, 16),
])  # fmt: skip
def test_known_devices(name: str, sms: int, threads: int, blocks: int) -> None:
    geometry = parse(name).geometry
    assert (geometry.sms, geometry.threads_per_sm, geometry.blocks_per_sm) == (sms, threads, blocks)


def test_a_slice_has_fewer_sms_and_the_memory_of_the_whole() -> None:
    whole, part = parse("sim:h200"), parse("sim:h200/16")
    assert part.geometry.sms == 16
    assert part.name == "h200/16"
    assert (part.dram_bytes_per_us, part.l2_bytes, part.clock_mhz) == (
        whole.dram_bytes_per_us, whole.l2_bytes, whole.clock_mhz,
    )  # fmt: skip
    assert any("16 of 132 SMs" in note for note in part.notes)


def test_a_slice_of_everything_is_the_whole() -> None:
    assert parse("sim:h200/132") == parse("sim:h200")


@pytest.mark.parametrize("part", ["0", "133", "-1", "", "half", "1.5", "²"])
def test_slices_that_do_not_exist(part: str) -> None:
    with pytest.raises(DeviceError, match="1 to 132"):
        parse(f"sim:h200/{part}")


@pytest.mark.parametrize("name", ["sim:a100", "h200", "sim:", "cuda:0", "sim:h200x"])
def test_unknown_names_list_the_known_ones(name: str) -> None:
    with pytest.raises(DeviceError, match="known are") as error:
        parse(name)
    assert all(f"sim:{known}" in str(error.value) for known in KNOWN)


def test_what_is_not_measured_says_so() -> None:
    assert not parse("sim:h200").notes
    assert all("scaled" in " ".join(spec.notes) for spec in KNOWN.values() if not spec.measured)
