"""Elastic forms as text: what is added to an entry, what is left as it was, and that it is PTX.

What the forms do when they run is tested on the PTX machine, what is refused in test_legality.
"""

from __future__ import annotations

import pytest
from corpus import load
from elastic_text import HEAD, REGISTERS, STORE, entry
from hypothesis import given
from hypothesis import strategies as st

from miriam import zoo
from miriam.elastic.ptx import Function, Instruction, Module, parse, walk
from miriam.elastic.ptxas import assemble_many, find_ptxas
from miriam.elastic.rewrite import ELASTIC, Form, rewrite
from miriam.elastic.state import ARGUMENT_BYTES
from miriam.errors import ProgramError, PtxError
from miriam.program import Kernel

needs_ptxas = pytest.mark.skipif(find_ptxas() is None, reason="needs ptxas")


def by_name(module: Module) -> dict[str, Function]:
    return {function.name: function for function in module.entries}


def assembles(*texts: str, target: str = "sm_90a") -> None:
    wrong = [str(done) for done in assemble_many([(text, target) for text in texts]) if isinstance(done, ProgramError)]
    assert wrong == []


def test_an_entry_becomes_its_forms_with_one_more_parameter_each():
    made = rewrite(HEAD + entry(parameters="(.param .u64 p, .param .align 4 .b8 s[12])", directives=".maxntid 64"))
    found = by_name(parse(made.ptx))
    assert list(found) == ["k_direct", "k_strided", "k_looped"] == [form.of("k") for form in ELASTIC]
    for function in found.values():
        *before, argument = function.parameters
        assert [variable.names[0].name for variable in before] == ["p", "s"]
        assert argument.size_bytes(argument.names[0]) == ARGUMENT_BYTES
        assert argument.align == 8
        assert [(d.name, d.rest) for d in function.directives] == [(".maxntid", "64")]
        assert function.linkage == (".visible",)


@pytest.mark.parametrize("parameters", ["", "()", "( )"])
def test_an_entry_without_parameters_gets_its_only_one(parameters):
    body = "mov.u32 %r1, %ctaid.x;\nst.shared.u32 [pool], %r1;\nret;"
    made = rewrite(HEAD + entry(body, parameters=parameters))
    assert [len(function.parameters) for function in parse(made.ptx).entries] == [1, 1, 1]
    if find_ptxas():
        assembles(made.ptx)


def test_the_text_around_entries_stays_as_it_was():
    before = HEAD + "// a comment\n.global .align 4 .u32 table[2] = {1, 2};\n.extern .shared .align 16 .b8 smem[];\n"
    between = "\n.func (.reg .b32 r) twice(.reg .b32 a)\n{\n  add.u32 r, a, a; // ~\n  ret;\n}\n/* ~ */"
    after = "\n.const .u32 last = 7; // ~\n"
    made = rewrite(before + entry(name="a") + between + entry(name="b") + after).ptx
    assert made.startswith(before)
    assert made.endswith(after)
    assert made.count(between) == 1
    assert made.index("a_looped") < made.index(between) < made.index("b_direct")


def test_a_guarded_body_is_the_original_to_the_letter():
    body = f"{STORE}mov.u32 %r5, ~7; // ~ a tilde, %ctaid.x and ret;\nmov.u32 %r6, %smid;\n@%p1 ret;\n\texit;"
    made = rewrite(HEAD + entry(body))
    assert list(by_name(parse(made.ptx))) == ["k_guarded"]
    assert f"{REGISTERS}{body}\n}}" in made.ptx


def test_the_other_forms_keep_every_instruction_of_the_body_in_its_order():
    body = f"""{STORE}mov.u32 %r5, ~7; // ~
setp.eq.u32 %p1, %r1, 3;
@%p1 bra $there;
{{ .reg .b32 own; mov.b32 own, %r5; st.shared.b32 [pool], own; }}
$there:
add.u32 %r2, %r1, 4;
ret;"""
    ptx = HEAD + entry(body)
    original = [ptx[s.start : s.end] for s in walk(by_name(parse(ptx))["k"].body) if isinstance(s, Instruction)]
    original = [text for text in original if text != "ret;"]
    made = rewrite(ptx)
    for name, function in by_name(parse(made.ptx)).items():
        steps = [made.ptx[s.start : s.end] for s in walk(function.body) if isinstance(s, Instruction)]
        at = 0
        for text in original:
            if "%ctaid" in text and name != "k_direct":
                text = text.replace("%ctaid.x", "%miriamctaid_x")
            at = steps.index(text, at) + 1


def test_only_the_entries_that_are_wanted_are_made():
    ptx = HEAD + "".join(entry(name=name) for name in ("a", "b", "c"))
    made = rewrite(ptx, ["c", "a"])
    assert list(made.forms) == ["a", "c"]
    assert list(by_name(parse(made.ptx))) == [form.of(name) for name in ("a", "c") for form in ELASTIC]
    assert rewrite(parse(ptx)) == rewrite(ptx)
    assert [f.name for f in parse(rewrite(ptx, ["b"], [Form.LOOPED]).ptx).entries] == ["b_looped"]
    assert parse(rewrite(ptx, []).ptx).entries == ()


def test_each_entry_of_a_module_is_judged_by_itself():
    made = rewrite(HEAD + entry(name="good") + entry("mov.u32 %r1, %smid;\nret;", "bad") + entry(name="fine"))
    assert list(made.refused) == ["bad"]
    assert made.forms == {"good": ELASTIC, "bad": (Form.GUARDED,), "fine": ELASTIC}
    assert "bad_guarded" in by_name(parse(made.ptx))


def test_an_entry_that_is_not_there_and_a_text_that_is_none_are_refused():
    with pytest.raises(ProgramError, match=r"no entry 'x' .* it has a, b"):
        rewrite(HEAD + entry(name="a") + entry(name="b"), ["x"])
    with pytest.raises(ProgramError, match="it has none"):
        rewrite(HEAD, ["x"])
    with pytest.raises(PtxError, match=":4: "):
        rewrite(HEAD + "nonsense")


def test_debug_information_of_the_original_is_left_out_and_lines_stay():
    debug = '.section .debug_abbrev\n{\n.b8 1\n.b8 0\n}\n.section .debug_loc { }\n.file 1 "k.py"\n'
    made = rewrite(HEAD + entry(f".loc 1 7 3\n{STORE}ret;") + debug)
    assert ".section" not in made.ptx
    assert made.ptx.count(".loc 1 7 3") == 3
    assert '.file 1 "k.py"' in made.ptx
    if find_ptxas():
        assembles(made.ptx)


def test_a_declaration_is_no_entry_to_be_made():
    made = rewrite(HEAD + ".visible .entry k(.param .u64 p);\n" + entry())
    assert list(by_name(parse(made.ptx))) == [form.of("k") for form in ELASTIC]


COLLISIONS = {
    "registers": "{ .reg .b32 %miriam<9>, %miriama, %miriam_b; .reg .pred %miriamleave, %miriam_p; }",
    "labels": "$miriamend: $miriamtop: $miriamjoin: $miriamgo: $miriam_end:",
    "a symbol": "{ .shared .align 4 .b8 miriam[8]; .reg .b32 miriam_block; st.shared.u32 [miriam], 1; }",
    "the end of a name": "$amiriam: bra $amiriam_; $amiriam_:",
}


@needs_ptxas
@pytest.mark.parametrize("code", COLLISIONS.values(), ids=COLLISIONS)
@pytest.mark.parametrize("parameter", ["p", "miriam", "miriam_"])
def test_names_of_ours_in_the_original_do_no_harm(code, parameter):
    body = f"{STORE.replace('[p]', f'[{parameter}]')}{code}\nmov.u32 %r2, %ctaid.y;\nmov.u32 %r3, %nctaid.z;\nret;"
    for more in ("", "mov.u32 %r4, %smid;\n"):
        made = rewrite(HEAD + entry(more + body, parameters=f"(.param .u64 {parameter})"))
        assembles(made.ptx)
    assembles(rewrite(HEAD + entry(name="miriam")).ptx)


@given(st.lists(st.from_regex(r"\Amiriam[a-z_]{0,3}\Z"), min_size=1, max_size=6, unique=True))
def test_what_we_add_has_a_name_that_the_original_has_not(words):
    registers = "".join(f".reg .b32 %{word}; mov.u32 %{word}, 0;\n" for word in words)
    labels = "".join(f"${word}:\n" for word in words)
    parameters = ", ".join(f".param .u64 {word}" for word in words)
    made = parse(rewrite(HEAD + entry(registers + labels + "ret;", parameters=f"({parameters})")).ptx)
    for function in made.entries:
        names = [variable.names[0].name for variable in function.parameters]
        assert len(set(names)) == len(names) == len(words) + 1
        assert not any(word.startswith(names[-1]) for word in words)


# What compilers write.


@pytest.mark.parametrize("name", load("cuda"))
def test_cuda_kernels_are_what_their_authors_expect(name):
    program = load("cuda")[name]
    expect = program.meta["expect"]
    for kernel in program.kernels:
        opaque = bool(rewrite(kernel.ptx, [kernel.name], block=kernel.block).refused)
        assert expect == "either" or opaque == (expect == "opaque")


def test_every_kernel_of_the_zoo_is_elastic():
    kernels = {k.digest: k for name in zoo.names() for k in zoo.load(name).kernels}
    reasons = {
        k.name: made.refused for k in kernels.values() if (made := rewrite(k.ptx, [k.name], block=k.block)).refused
    }
    assert reasons == {}


def sample(kind: str) -> list[tuple[Kernel, str]]:
    if kind == "zoo":
        kernels = {k.digest: (k, p.target) for p in map(zoo.load, zoo.names()) for k in p.kernels}
        return [kernels[digest] for digest in sorted(kernels)][::15]
    programs = [program for name, program in load(kind).items() if not name.endswith("-large")]
    return [(kernel, program.target) for program in programs for kernel in program.kernels]


@needs_ptxas
@pytest.mark.parametrize("kind", ["cuda", "triton", "zoo"])
def test_the_assembler_takes_every_form(kind):
    made = [
        (rewrite(kernel.ptx, [kernel.name], block=kernel.block), kernel.name, target) for kernel, target in sample(kind)
    ]
    # A kernel that launches another one of its module needs it there under its own name.
    made = [(m, name, target) for m, name, target in made if "address of the function" not in m.refused.get(name, "")]
    done = assemble_many([(rewritten.ptx, target) for rewritten, _, target in made])
    for (rewritten, name, _), code in zip(made, done, strict=True):
        assert not isinstance(code, ProgramError), f"{name}: {code}"
        assert {form.of(name) for form in rewritten.forms[name]} == set(code.entries)


def test_a_function_with_the_name_of_a_form_is_in_the_way():
    with pytest.raises(ProgramError, match="has a function 'k_direct', which is to be a form of 'k'"):
        rewrite(HEAD + entry() + ".func k_direct()\n{\nret;\n}\n")
