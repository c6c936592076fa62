from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sim_support import MEASURED_SMS, QUIET, HandMade
from support import Profiles, program

from miriam.device.sim.costs import CostModel
from miriam.device.sim.spec import KNOWN, parse
from miriam.errors import ProfileError
from miriam.profile import Counters, LaunchProfile
from miriam.program import Program


def counters(dram: float = 0.0, l2: float = 0.0, pipe: float = 0.0, touched: float | None = None) -> Counters:
    return Counters(dram, 0.0, dram if touched is None else touched, l2, 0.0, pipe)


def one(blocks: int, profile: LaunchProfile, threads: int = 128, **kernel: int) -> tuple[Program, HandMade]:
    toy = program("one", [(blocks, threads)], **kernel)
    profiles = HandMade()
    profiles.add(toy, 0, profile)
    return toy, profiles


@st.composite
def launch_profiles(draw: st.DrawFn) -> tuple[int, LaunchProfile]:
    blocks = draw(st.integers(1, 20_000))
    residency = draw(st.integers(1, 16))
    wave_us = draw(st.floats(0.5, 80.0))
    times = {s: draw(st.floats(1.0, 1.3)) * (2.0 + wave_us * -(-blocks // (residency * s))) for s in MEASURED_SMS}
    share = st.floats(0.0, 1.2)
    bytes_ = times[132] * 4.8e6
    some = Counters(
        draw(share) * bytes_, draw(share) * bytes_, draw(share) * bytes_, draw(share) * bytes_,
        draw(st.floats(0.0, 1.0)), draw(st.floats(0.0, 1.0)),
    )  # fmt: skip
    return blocks, LaunchProfile(times, residency, some, measured=True)


@given(launch_profiles(), st.sampled_from(MEASURED_SMS))
def test_a_launch_alone_takes_what_was_measured(case: tuple[int, LaunchProfile], sms: int) -> None:
    blocks, profile = case
    toy, profiles = one(blocks, profile)
    (cost,) = CostModel(parse(f"sim:h200/{sms}"), profiles).program(toy)
    assert cost.alone_us == pytest.approx(profile.times_us[sms], rel=1e-6)


@given(launch_profiles(), st.sampled_from([*KNOWN, "h200/20", "h200/3"]))
def test_costs_are_sane(case: tuple[int, LaunchProfile], name: str) -> None:
    toy, profiles = one(*case)
    (cost,) = CostModel(parse(f"sim:{name}"), profiles).program(toy)
    assert cost.duration_us > 0
    assert cost.gap_us > 0
    assert cost.alone_us >= cost.gap_us + 0.25 * cost.duration_us
    assert min(cost.sm_share, cost.dram_share, cost.l2_share) >= 0
    assert 0 <= cost.dram_weight <= 1
    assert 0 <= cost.l2_weight <= 1
    assert 2**-9 < cost.rest <= 1


def test_times_between_measured_counts_lie_between() -> None:
    profile = LaunchProfile({8: 1000.0, 16: 600.0, 132: 100.0}, 1, QUIET, measured=True)
    toy, profiles = one(132 * 16, profile)

    def wave_us(sms: int) -> float:
        return CostModel(parse(f"sim:h200/{sms}"), profiles).program(toy)[0].duration_us

    assert wave_us(8) < wave_us(12) < wave_us(16)
    assert wave_us(4) == wave_us(8)


def test_a_launch_without_a_profile_is_named() -> None:
    toy = program("lonely", [(4, 32), (8, 32)])
    with pytest.raises(ProfileError, match=r"launch 0 of lonely .*miriam profile"):
        CostModel(parse("sim:h200"), HandMade()).program(toy)


def test_the_measured_residency_holds() -> None:
    toy = program("toy", [(1000, 128)])
    (cost,) = CostModel(parse("sim:h200"), Profiles(toy, residency=3)).program(toy)
    assert cost.footprint.residency(parse("sim:h200").geometry) == 3


def test_thin_blocks_take_longer_and_load_less() -> None:
    times = dict.fromkeys(MEASURED_SMS, 21.06)
    toy, profiles = one(132, LaunchProfile(times, 4, counters(pipe=0.6), measured=True), threads=256)
    model = CostModel(parse("sim:h200"), profiles)
    (whole,), (thin,) = model.program(toy), model.program(toy, threads=64)
    assert thin.footprint.threads == 64
    assert 3 * whole.duration_us < thin.duration_us <= 4 * whole.duration_us
    assert thin.sm_share < whole.sm_share / 3
    assert thin.sm_share * thin.duration_us == pytest.approx(whole.sm_share * whole.duration_us)


def test_scaling_follows_what_binds() -> None:
    times = {132: 101.06}
    blocks = 132

    def ratio(some: Counters, name: str) -> float:
        toy, profiles = one(blocks, LaunchProfile(times, 1, some, measured=True))
        here, there = (CostModel(parse(n), profiles).program(toy)[0] for n in ("sim:h200/8", name))
        return there.duration_us / here.duration_us

    h200, xavier = parse("sim:h200"), parse("sim:xavier")
    clocks = h200.clock_mhz / xavier.clock_mhz
    assert ratio(QUIET, "sim:xavier") == pytest.approx(clocks)
    assert ratio(counters(pipe=1.0), "sim:xavier") == pytest.approx(2 * clocks, rel=0.03)  # 64 lanes against 128
    # 8 SMs drew 8/132 of the bandwidth of an H200: all blocks together draw more than a Xavier has.
    bound = 100 * 8 / 132 * h200.dram_bytes_per_us / xavier.dram_bytes_per_us
    assert ratio(counters(dram=4.8e6 * 100, l2=4.8e6 * 100), "sim:xavier") * 100 >= bound


def test_a_small_cache_moves_more() -> None:
    profile = LaunchProfile({132: 11.06}, 1, counters(dram=1e6, l2=5e7, touched=5e7), measured=True)
    toy, profiles = one(132, profile)
    warm = CostModel(replace(parse("sim:xavier"), l2_bytes=1 << 40), profiles).program(toy)[0]
    cold = CostModel(parse("sim:xavier"), profiles).program(toy)[0]
    moved = cold.dram_share * cold.duration_us / (warm.dram_share * warm.duration_us)
    assert moved == pytest.approx(50, rel=0.03)
    assert cold.duration_us > warm.duration_us


def test_tiles_that_do_not_fit_are_cut_and_noted() -> None:
    toy, profiles = one(64, LaunchProfile({132: 11.06}, 1, QUIET, measured=True), shared_bytes=180 * 1024)
    small, large = CostModel(parse("sim:rtx2060"), profiles), CostModel(parse("sim:h200"), profiles)
    (cost,) = small.program(toy)
    assert cost.footprint.residency(parse("sim:rtx2060").geometry) == 1
    assert len(small.notes) == 1
    assert "shared memory" in small.notes[0]
    large.program(toy)
    assert not large.notes
