"""The assembler: what it reports of a kernel, and how it refuses one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from miriam.elastic.ptxas import Assembled, assemble, assemble_many, find_ptxas, ptxas_version
from miriam.errors import CompileError, ProgramError

HEAD = ".version 8.0\n.target sm_75\n.address_size 64\n"
ENTRY = """.visible .entry {name}(.param .u64 p) {{
    .reg .b64 %rd<4>;
    .reg .b32 %r<3>;
    .shared .align 4 .b8 pool[{shared}];
    .local .align 4 .b8 own[{local}];
    ld.param.u64 %rd1, [p];
    ld.global.u32 %r1, [%rd1];
    mov.u64 %rd2, own;
    cvt.u64.u32 %rd3, %r1;
    add.u64 %rd2, %rd2, %rd3;
    st.local.u32 [%rd2], %r1;
    ld.local.u32 %r2, [%rd1];
    st.shared.u32 [pool], %r1;
    st.global.u32 [%rd1], %r2;
    ret;
}}
"""


@pytest.fixture
def ptxas() -> Path:
    found = find_ptxas()
    if found is None:
        pytest.skip("needs ptxas")
    return found


@pytest.fixture
def fresh():
    """Look for ptxas anew, before and after a test that changes where it is."""
    find_ptxas.cache_clear()
    yield
    find_ptxas.cache_clear()


def script(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("target", ["sm_75", "sm_87", "sm_90a"])
def test_a_module_is_measured_by_entry(ptxas, target):
    done = assemble(
        HEAD + ENTRY.format(name="a", shared=400, local=64) + ENTRY.format(name="b", shared=8, local=16), target
    )
    assert done.cubin.startswith(b"\x7fELF")
    assert set(done.registers) == {"a", "b"}
    assert all(4 <= count <= 255 for count in done.registers.values())
    assert [done.entries[name].shared_bytes for name in "ab"] == [400, 8]
    assert [done.entries[name].stack_bytes for name in "ab"] == [64, 16]
    assert done.spill_stores == done.spill_loads == 0


def test_spills_are_seen(ptxas):
    held = range(64)
    body = "".join(f"ld.volatile.global.u32 %r{i}, [%rd1+{4 * i}];\n" for i in held)
    body += "".join(f"st.volatile.global.u32 [%rd1+{4 * i + 512}], %r{i};\n" for i in held)
    head = ".visible .entry a(.param .u64 p) { .reg .b64 %rd<2>; .reg .b32 %r<64>; ld.param.u64 %rd1, [p];\n"
    ptx = HEAD + head + body + "ret; }"
    tight, wide = assemble(ptx, "sm_75", options=["--maxrregcount=24"]), assemble(ptx, "sm_75")
    assert tight.registers["a"] <= 24 < wide.registers["a"]
    assert tight.entries["a"].spill_stores == tight.spill_stores > 0 == wide.spill_stores
    assert tight.spill_loads > 0 == wide.spill_loads


def test_a_refusal_names_line_and_mistake(ptxas):
    with pytest.raises(ProgramError, match=r"sm_75.*kernel\.ptx, line 5: .*'frobnicate'"):
        assemble(HEAD + ".visible .entry a() {\nfrobnicate; ret; }", "sm_75")
    with pytest.raises(ProgramError, match="sm_12"):
        assemble(HEAD + ".visible .entry a() { ret; }", "sm_12")
    with pytest.raises(ProgramError, match=r"99\.9.*MIRIAM_PTXAS"):
        assemble(HEAD.replace("8.0", "99.9") + ".visible .entry a() { ret; }", "sm_75")


def test_many_keep_their_order_and_one_refusal_costs_no_other(ptxas):
    texts = [HEAD + ENTRY.format(name=f"k{i}", shared=16 * (i + 1), local=4) for i in range(5)]
    texts[2] = "no PTX at all"
    done = assemble_many([(text, "sm_75") for text in texts], workers=3)
    assert isinstance(done[2], ProgramError)
    kept = {i: one for i, one in enumerate(done) if isinstance(one, Assembled)}
    assert {i: one.entries[f"k{i}"].shared_bytes for i, one in kept.items()} == {i: 16 * (i + 1) for i in (0, 1, 3, 4)}


def test_the_newest_is_taken_and_a_named_one_before_it(tmp_path, monkeypatch, fresh):
    newer = script(tmp_path, "ptxas", "echo Cuda compilation tools, release 99.1, V99.1.2\n")
    named = script(tmp_path, "other", "echo Cuda compilation tools, release 1.0, V1.0.1\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("MIRIAM_PTXAS", raising=False)
    assert find_ptxas() == newer
    assert ptxas_version(newer) == (99, 1, 2)
    find_ptxas.cache_clear()
    monkeypatch.setenv("MIRIAM_PTXAS", str(named))
    assert find_ptxas() == named
    find_ptxas.cache_clear()
    monkeypatch.setenv("MIRIAM_PTXAS", str(tmp_path / "none"))
    with pytest.raises(CompileError, match="unset it"):
        find_ptxas()


def test_what_ptxas_said_of_lost_performance_is_kept(tmp_path):
    tool = script(
        tmp_path,
        "ptxas",
        'for a; do case $a in --output-file=*) echo cubin > "${a#*=}";; esac; done\n'
        "cat >&2 <<'E'\n"
        "ptxas-blackwell info    : (C7510) Potential Performance Loss: wgmma.mma_async is serialized in function 'k'\n"
        "ptxas-blackwell info    : 0 bytes gmem\n"
        "ptxas-blackwell info    : Compiling entry function 'k' for 'sm_90a'\n"
        "ptxas-blackwell info    : Function properties for k\n"
        "    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n"
        "ptxas-blackwell info    : Used 245 registers, 24 bytes cumulative stack size, 400 bytes smem\n"
        "E\n",
    )
    done = assemble("", "sm_90a", ptxas=tool)
    assert done.warnings == ("(C7510) Potential Performance Loss: wgmma.mma_async is serialized in function 'k'",)
    needs = done.entries["k"]
    assert (needs.registers, needs.shared_bytes, needs.stack_bytes) == (245, 400, 24)
    assert (needs.spill_stores, needs.spill_loads) == (4, 12)


def test_an_assembler_that_cannot_run_is_named(tmp_path):
    with pytest.raises(CompileError, match=r"gone.*nvidia-cuda-nvcc"):
        assemble(HEAD, "sm_75", ptxas=tmp_path / "gone")
