"""PTX that is broken: refused with its line, whatever it is, in a time that grows with its length."""

import pickle
import re
import time
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ptx_sample import HEAD, SAMPLE, check_tiles

from miriam.elastic import ptx
from miriam.errors import PtxError

ERRORS = [
    ("", 1, "'.version'"),
    ("\n\n", 2, "'.version'"),
    (".version 8.7\n", 1, "'.target'"),
    (".target sm_90\n.version 8.7\n", 1, "'.version'"),
    (".version x\n.target sm_90", 1, "'.version' is not followed"),
    ("\0", 1, "'\\x00' means nothing"),
    (HEAD + "é", 4, "means nothing"),
    (HEAD + "/* a\n b", 4, "comment is not closed"),
    (HEAD + '.pragma "a\n;', 4, "string is not closed"),
    (HEAD + "{\n}", 4, "expected a directive"),
    (HEAD + "ret;", 4, "expected a directive"),
    (HEAD + ".pragma ", 4, "expected ';'"),
    (HEAD + ".foo (a;", 4, "expected ')'"),
    (HEAD + ".foo a);", 4, "expected ';'"),
    (HEAD + ".visible .foo", 4, "a state space"),
    (HEAD + ".global x;", 4, "a type"),
    (HEAD + ".global .b8 .b16 x;", 4, "a name"),
    (HEAD + ".global .b8 x", 4, "expected ';'"),
    (HEAD + ".global .b8 x[2;", 4, "expected ']'"),
    (HEAD + ".global .b8 x[1.5];", 4, "an extent"),
    (HEAD + ".global .b8 x = {1, 2\n;", 5, "expected '}'"),
    (HEAD + ".global .b8 x = \n{1, 2", 5, "'{' is not closed"),
    (HEAD + ".global .b8 x = ;", 4, "a value"),
    (HEAD + ".global .align x .b8 x;", 4, "an alignment"),
    (HEAD + ".section .x { {}", 4, "'{' is not closed"),
    (HEAD + ".entry 5", 4, "the name of a function"),
    (HEAD + ".entry k(.param .b8 a .param .b8 b)", 4, "expected ','"),
    (HEAD + ".entry k(.param .b8 a,) {}", 4, "a state space"),
    (HEAD + ".entry k ret;", 4, "'{' or ';'"),
    (HEAD + ".entry k .maxntid 1, {}", 4, "a whole number"),
    (HEAD + ".entry k {\n ret\n}", 6, "expected an operand"),
    (HEAD + ".entry k {\n ret;;\n}", 5, "expected an instruction"),
    (HEAD + ".entry k\n{ ret;\n", 5, "'{' is not closed"),
    (HEAD + ".entry k { { ret; }\n", 4, "'{' is not closed"),
    (HEAD + ".entry k { } }", 4, "a directive"),
    (HEAD + ".entry k { % }", 4, "an instruction"),
    (HEAD + ".entry k { $x a; }", 4, "an instruction"),
    (HEAD + ".entry k { @ bra; }", 4, "an instruction"),
    (HEAD + ".entry k { @%p { ret; } }", 4, "an instruction"),
    (HEAD + ".entry k { .loc 1 2 }", 4, "'.loc' is not followed"),
    (HEAD + ".entry k { .loc 1 2 3 4; }", 4, "an instruction"),
    (HEAD + ".entry k { .foo a\n}", 5, "expected ';'"),
    (HEAD + ".entry k { a::b: ret; }", 4, "expected an instruction, found ':'"),
    (HEAD + ".entry k { mov a b; }", 4, "',' or ';'"),
    (HEAD + ".entry k { mov a,\n; }", 5, "an operand"),
    (HEAD + ".entry k { mov a, [b; }", 4, "expected ']'"),
    (HEAD + ".entry k { mov a, [b+c]; }", 4, "a constant offset"),
    (HEAD + ".entry k { mov a, {}; }", 4, "an operand"),
    (HEAD + ".entry k { mov a, {b, {c}}; }", 4, "an operand"),
    (HEAD + ".entry k { mov a, 1|b; }", 4, "',' or ';'"),
    (HEAD + ".entry k { mov a, 08; }", 4, "'08' is no number"),
    (HEAD + ".entry k { mov a, 12q; }", 4, "'12q' is no number"),
    (HEAD + ".entry k { mov a, 0f3f80; }", 4, "is no number"),
    (HEAD + ".entry k { mov a, 18446744073709551616; }", 4, "more than 64 bits"),
    (HEAD + ".entry k { mov a, [b+08]; }", 4, "'08' is no number"),
    (HEAD + ".entry k { mov a, b::c; }", 4, "no operand"),
    (HEAD + ".entry k { .reg .b32 %r<99999999999999999999>; }", 4, "more than 64 bits"),
    (HEAD + "#line 1\n", 4, "means nothing"),
]


@pytest.mark.parametrize(("text", "line", "what"), ERRORS)
def test_what_is_not_understood_is_refused_with_its_line(text, line, what) -> None:
    with pytest.raises(PtxError, match=re.escape(what)) as caught:
        ptx.parse(text, "toy.ptx")
    assert caught.value.line == line
    assert str(caught.value).startswith(f"toy.ptx:{line}: ")
    assert pickle.loads(pickle.dumps(caught.value)).line == line


def read_or_refuse(text: str) -> None:
    line = 1
    try:
        module = ptx.parse(text)
    except PtxError as error:
        line = error.line
    else:
        assert str(module) == text
        check_tiles(module, operands=True)
    assert 1 <= line <= max(1, len(text.removesuffix("\n").split("\n")))


@given(st.integers(0, len(SAMPLE)), st.integers(0, len(SAMPLE)))
def test_a_cut_text(start, end) -> None:
    read_or_refuse(SAMPLE[:end])
    read_or_refuse(HEAD + SAMPLE[start:])
    read_or_refuse(SAMPLE[:start] + SAMPLE[end:])


@given(st.randoms(use_true_random=False), st.sampled_from([r"\n", r"\b|(?=[^\w\s])", r";", r""]))
@settings(max_examples=150)
def test_a_shuffled_text(random: Random, cut) -> None:
    pieces = re.split(f"({cut})", SAMPLE[len(HEAD) :]) if cut else list(SAMPLE[len(HEAD) :])
    for _ in range(random.choice([1, 1, 2, 5, 50])):
        i, j = random.randrange(len(pieces)), random.randrange(len(pieces))
        match random.randrange(4):
            case 0:
                pieces[i], pieces[j] = pieces[j], pieces[i]
            case 1:
                pieces[i] = pieces[j]
            case 2:
                pieces.insert(i, pieces[j])
            case 3:
                del pieces[i]
    read_or_refuse(HEAD + "".join(filter(None, pieces)))


WORDS = [
    *"{}[]()<>|!,;:+-=@*&^~?%$._/\"'#\\\r\n\t \0é\ud800٣",
    *["//", "/*", "*/", "a", "%r1", "$L", ".b32", ".param", ".reg", ".global", ".entry", ".func", ".loc", ".section"],
    *[
        "mov.u32",
        "0x",
        "0f3F800000",
        "9" * 5000,
        "1e999",
        "-",
        "::",
        "@!",
        "ret;",
        ".pragma",
        ".align",
        "1 2 3",
        " k {",
    ],
]


@given(st.lists(st.sampled_from(WORDS)).map("".join), st.booleans())
@settings(max_examples=400)
def test_any_words(text, in_body) -> None:
    read_or_refuse(text)
    read_or_refuse(f"{HEAD}.entry k {{ {text} }}" if in_body else HEAD + text)


@given(st.text(), st.binary(), st.integers(0, len(SAMPLE)))
def test_any_text(text, data, at) -> None:
    read_or_refuse(text)
    for piece in (text, data.decode("latin-1")):
        read_or_refuse(SAMPLE[:at] + piece + SAMPLE[at:])


BODY = HEAD + ".entry k {\n"


@pytest.mark.parametrize(
    ("head", "piece", "tail"),
    [
        (BODY, " ", ""), (BODY, "/**/", ""), (BODY, "/*", ""), (BODY, "@", ""), (BODY, "a:", "}"), (BODY, "a.", ""),
        (BODY + "a b", ",c", "?"), (BODY + "a {b", ",c", ""), (BODY + "a {b", "},{c", ""), (BODY + "a ", "(", ""),
        (BODY + "a ", "-", ""), (BODY + "a 1", "+1", ";}"), (BODY + "a [b", "+1", "];}"), (BODY + "a ", "9", ";"),
        (BODY + "a 0x", "f", ";"), (BODY + "a", " .b", ""), (BODY, ".loc 1 2 3 ", ""), (BODY + ".loc", " ", "!"),
        (BODY + ".loc 1 2 3", " ,", ""), (BODY + "@p", " ", "!"), (BODY, "mov /**/ a, b;", "}"), (BODY, '"', ""),
        (HEAD + ".global .b8 x = {", "1,", "};"), (HEAD + ".global .b8 x = ", "{", ""), (HEAD, ".extern ", ""),
        (HEAD + ".entry k(", ".param .b8 a,", ")"), (HEAD + ".global .b8 a", "[1]", ";"), (HEAD, ".func f;", ""),
        (HEAD + ".section .x {", "a ", ""), (".version 8.7 .target a", ", a", "."), (BODY, "{}", "}"), (BODY, "\r", ""),
    ],
)  # fmt: skip
def test_the_time_grows_with_the_text_and_not_faster(head, piece, tail) -> None:
    begin = time.process_time()
    read_or_refuse(head + piece * 20_000 + tail)
    assert time.process_time() - begin < 8.0  # a tenth of a second or two; minutes if it grew with the square
