"""The CUDA C++ corpus: its files hold what its sources say, and its kernels compute what they should."""

from __future__ import annotations

import numpy as np
import pytest
from corpus import load
from corpus.make_cuda import case_names, expected, make
from run_program import can_run, outputs

from miriam import MiriamError

PROGRAMS = load("cuda")
SMALL = [name for name in PROGRAMS if not name.endswith("-large")]


def test_there_is_a_file_for_each_case_and_none_more():
    assert sorted(case_names()) == sorted(PROGRAMS)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("seed", range(3))
def test_kernels_compute_what_numpy_computes(name, seed):
    program, wanted = PROGRAMS[name], expected(name)
    if not can_run(program):
        pytest.skip(f"the machine lacks an instruction of {name}")
    # blocks that wait for each other have to be there together
    found = outputs(program, seed, slots=range(program.launches[0].blocks if program.meta["expect"] == "opaque" else 2))
    assert set(found) == set(wanted)
    for output, array in wanted.items():
        in_order = np.sort if program.meta["compare"] == "sorted" else np.asarray
        assert np.array_equal(in_order(found[output].ravel()), in_order(array.ravel())), output


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name.endswith("-large")])
def test_large_grids_are_of_the_same_kernel(name):
    large, small = PROGRAMS[name], PROGRAMS[name.removesuffix("-large")]
    assert large.launches[0].blocks > 100 * small.launches[0].blocks
    assert large.kernels[0].name == small.kernels[0].name
    assert [t.name for t in large.outputs] == [t.name for t in small.outputs]
    assert large.size_bytes < 1 << 27


def test_files_are_small():
    from corpus import FOLDER

    assert sum(path.stat().st_size for path in (FOLDER / "cuda").iterdir()) < 1 << 19


@pytest.mark.parametrize("name", SMALL)
def test_files_hold_what_their_sources_say(name):
    try:
        made = make(name)
    except MiriamError as error:
        pytest.skip(str(error))
    kept = PROGRAMS[name]
    assert made.launches == kept.launches
    assert made.buffers == kept.buffers
    assert {**made.meta, "compiler": ""} == {**kept.meta, "compiler": ""}
    if made.meta["compiler"] == kept.meta["compiler"]:
        assert [kernel.ptx for kernel in made.kernels] == [kernel.ptx for kernel in kept.kernels]
