# ruff: noqa: E402 - what is imported below may be missing
"""A small program is profiled on a GPU, alone: every launch at every number of SMs."""

import math
import shutil
from pathlib import Path

import pytest
from gpu_support import LENIENT, need_gpu

need_gpu(torch=True)

import torch

from miriam.device.cuda.driver import Gpu
from miriam.device.cuda.profiler import SM_COUNTS, profile_program, short_name
from miriam.errors import ProfileError
from miriam.frontend.torch import capture
from miriam.profile import launch_key
from miriam.program import Program
from miriam.store import ProfileStore
from miriam.zoo.models import cifarnet

pytestmark = LENIENT


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    torch.manual_seed(0)
    captured = capture(cifarnet().eval().cuda().half(), [torch.randn(1, 3, 32, 32, device="cuda").half()], name="net")
    path = tmp_path_factory.mktemp("programs") / "net.miriam"
    captured.program.save(path)
    return Program.load(path)


def test_the_store_is_filled_at_every_number_of_sms(program: Program, tmp_path: Path) -> None:
    gpu = Gpu()
    name, sms = short_name(gpu.name), gpu.geometry.sms
    gpu.close()
    counts = [*(count for count in SM_COUNTS if count < sms), sms]
    assert program.runnable
    with ProfileStore(tmp_path / "p.db") as store:
        profile_program(program, store, counters=False)
    with ProfileStore(tmp_path / "p.db") as store:
        assert store.devices[name]["sms"] == sms
        assert store.devices[name]["launch_gap_us"] > 0
        whole = store.program(name, program)
        assert whole is not None
        assert list(whole.times_us) == counts
        assert all(0 < median_us <= p99_us < math.inf for median_us, p99_us in whole.times_us.values())
        for i, step in enumerate(program.launches):
            found = store.launch(name, launch_key(program.kernel_of(i), step))
            assert found is not None
            assert list(found.times_us) == counts
            assert all(0 < time_us < math.inf for time_us in found.times_us.values())
            assert 1 <= found.blocks_per_sm <= 32
            assert not found.measured


@pytest.mark.skipif(shutil.which("ncu") is None, reason="needs Nsight Compute (ncu) on the PATH")
def test_counters_are_read_by_nsight_compute(program: Program, tmp_path: Path) -> None:
    gpu = Gpu()
    name = short_name(gpu.name)
    gpu.close()
    with ProfileStore(tmp_path / "p.db") as store:
        try:
            profile_program(program, store, counters=True)
        except ProfileError as error:
            pytest.skip(str(error))
        for i, step in enumerate(program.launches):
            found = store.launch(name, launch_key(program.kernel_of(i), step))
            assert found is not None
            if program.kernel_of(i).ptx is None:  # a copy or a fill
                continue
            assert found.measured
            assert 0 < found.counters.issue_utilization <= 1
            assert 0 < found.counters.pipe_utilization <= 1
            assert found.counters.touched_bytes > 0
            assert found.counters.l2_bytes > 0
