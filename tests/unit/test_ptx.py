"""PTX in and out: what is read, that nothing is lost, and how it is edited."""

import math
import re
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ptx_sample import HEAD, SAMPLE, check_tiles, structure

from miriam.elastic import ptx
from miriam.errors import PtxError
from miriam.program import Program


def body_of(text: str) -> ptx.Block:
    (entry,) = ptx.parse(f"{HEAD}.entry k() {{\n{text}\n}}").entries
    assert entry.body is not None
    return entry.body


def only(text: str) -> ptx.Statement:
    (statement,) = body_of(text).statements
    return statement


def test_a_module_and_its_items() -> None:
    module = ptx.parse(SAMPLE)
    assert (module.version, module.target, module.address_size) == ((8, 7), "sm_90a", 64)
    assert str(module) == SAMPLE
    assert [f.name for f in module.entries] == ["sw"]
    assert [f.name for f in module.functions] == ["callee"]
    assert module.line(module.entries[0].start) == SAMPLE[: SAMPLE.index(".visible .entry")].count("\n") + 1
    check_tiles(module, operands=True)

    declared = {f.name: f for f in module.items if isinstance(f, ptx.Function)}
    assert [d.name for d in declared["ext_nr"].directives] == [".noreturn"]
    assert (declared["ext_nr"].has_list, declared["ali"].has_list) == (True, False)
    assert declared["vprintf"].linkage == (".extern",)
    assert [(v.type, v.align, v.names[0].name) for v in declared["vprintf"].parameters] == [
        ("b64", 0, "vprintf_param_0"), ("b64", 0, "vprintf_param_1"),
    ]  # fmt: skip
    assert [v.names[0].name for v in declared["vprintf"].returns] == ["func_retval0"]

    sw = declared["sw"]
    assert (sw.kind, sw.linkage) == ("entry", (".visible",))
    assert [(d.name, d.rest) for d in sw.directives] == [
        (".maxntid", "128, 1, 1"), (".minnctapersm", "2"), (".explicitcluster", ""), (".pragma", '"nounroll"'),
        (".reqnctapercluster", "2, 1, 1"),
    ]  # fmt: skip
    assert [v.size_bytes(v.names[0]) for v in sw.parameters] == [8, 24, 4]

    directives = [(d.name, d.rest[:12]) for d in module.items if isinstance(d, ptx.Directive)]
    assert directives == [
        (".version", "8.7"), (".target", "sm_90a, debu"), (".address_size", "64"), (".file", '1 "C:\\tmp\\a '),
        (".alias", "ali, callee"), (".pragma", '"used_bytes_'), (".section", ".debug_str\n\t"),
    ]  # fmt: skip


def test_variables() -> None:
    found = {v.names[0].name: v for v in ptx.parse(SAMPLE).items if isinstance(v, ptx.Variable)}
    summary = {name: (v.space, v.type, v.vector, v.align, v.linkage) for name, v in found.items()}
    assert summary == {
        "tab": ("global", "b8", 0, 4, (".visible",)),
        "ptr": ("global", "u64", 0, 8, (".visible",)),
        "packed": ("global", "u8", 0, 8, ()),
        "dbl": ("const", "f64", 0, 8, ()),
        "mg": ("global", "u32", 0, 4, ()),
        "smp": ("global", "samplerref", 0, 0, ()),
        "sm": ("shared", "b8", 0, 16, (".extern",)),
        "quad": ("global", "f32", 4, 0, (".weak",)),
    }
    assert [d.name for d in found["ptr"].names] == ["ptr", "other", "third"]
    sizes = {d.name: v.size_bytes(d) for v in found.values() for d in v.names}
    assert sizes == {
        "tab": 16, "ptr": 16, "other": 8, "third": 8, "packed": 11, "dbl": 8, "mg": 4, "smp": None, "sm": None,
        "quad": 96,
    }  # fmt: skip
    assert (found["sm"].names[0].extents, found["quad"].names[0].extents) == ((None,), (2, 3))


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        (".reg .b32 %r<40>, x;", [160, 4]),
        (".reg .pred %p<3>;", [None]),
        (".reg .bf16x2 a;", [4]),
        (".reg .bf16 a;", [2]),
        (".reg .v2 .f16 a;", [4]),
        (".reg .b128 a;", [16]),
        (".local .align 8 .b8 depot[0x20];", [32]),
        (".shared .f64 t[4][5], u;", [160, 8]),
    ],
)
def test_sizes(text, sizes) -> None:
    variable = only(text)
    assert isinstance(variable, ptx.Variable)
    assert [variable.size_bytes(declared) for declared in variable.names] == sizes


def test_statements_and_walk() -> None:
    (entry,) = ptx.parse(SAMPLE).entries
    assert entry.body is not None
    seen = [(type(s).__name__, getattr(s, "name", getattr(s, "opcode", None))) for s in ptx.walk(entry.body)]
    starts = [s.start for s in ptx.walk(entry.body)]
    assert starts == sorted(starts)
    assert [name for kind, name in seen if kind == "Label"] == [
        "$L__func_begin0", "$L_brx_0", "$L__BB4_2", "prototype_1", "$L__BB4_3", "$L__BB4_11",
    ]  # fmt: skip
    assert [name for kind, name in seen if kind == "Directive"] == [".loc", ".loc", ".branchtargets", ".callprototype"]
    assert sum(kind == "Block" for kind, _ in seen) == 3
    opcodes = [name for kind, name in seen if kind == "Instruction"]
    assert opcodes[-5:] == [
        ("elect", "sync"),
        ("mbarrier", "init", "shared::cta", "b64"),
        ("cp", "async", "bulk", "tensor", "2d", "shared::cluster", "global", "mbarrier::complete_tx::bytes"),
        ("wgmma", "mma_async", "sync", "aligned", "m64n8k16", "f32", "f16", "f16"),
        ("ret",),
    ]


def test_a_guard() -> None:
    for text, register, negated in (
        ("@%p1 exit;", "%p1", False),
        ("@!q exit;", "q", True),
        ("@ ! %p exit;", "%p", True),
    ):
        instruction = only(text)
        assert isinstance(instruction, ptx.Instruction)
        assert instruction.guard is not None
        assert (instruction.guard.register, instruction.guard.negated) == (register, negated)


def name(text: str) -> object:
    return ("Name", ("text", text))


def num(value: float) -> object:
    return ("Number", ("value", value))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%r1", name("%r1")),
        ("%ctaid.x", name("%ctaid.x")),
        ("_", name("_")),
        ("$L__BB0_1", name("$L__BB0_1")),
        ("12", num(12)),
        ("-1", num(-1)),
        ("- 1", num(-1)),
        ("0x1F", num(31)),
        ("0xffffffffffffffffU", num(2**64 - 1)),
        ("017", num(15)),
        ("0b101", num(5)),
        ("0", num(0)),
        ("1.5e-3", num(0.0015)),
        (".5", num(0.5)),
        ("0f3F800000", num(1.0)),
        ("0dC000000000000000", num(-2.0)),
        ("0F7F800000", num(math.inf)),
        ("a|b", ("Pair", ("first", name("a")), ("second", name("b")))),
        ("_ | %p", ("Pair", ("first", name("_")), ("second", name("%p")))),
        ("!%p1", ("Not", ("of", name("%p1")))),
        ("{a, -1,%r2}", ("Vector", ("items", (name("a"), num(-1), name("%r2"))))),
        ("(a, 1)", ("Group", ("items", (name("a"), num(1))))),
        ("()", ("Group", ("items", ()))),
        ("[a]", ("Address", ("base", name("a")), ("offset", 0), ("index", ()))),
        ("[%rd1+16]", ("Address", ("base", name("%rd1")), ("offset", 16), ("index", ()))),
        ("[%rd1+-16]", ("Address", ("base", name("%rd1")), ("offset", -16), ("index", ()))),
        ("[%rd1+010]", ("Address", ("base", name("%rd1")), ("offset", 8), ("index", ()))),
        ("[a - 4 + 0x10].unified", ("Address", ("base", name("a")), ("offset", 12), ("index", ()))),
        ("[64]", ("Address", ("base", num(64)), ("offset", 0), ("index", ()))),
        (
            "[t, s, {a, 1}]",
            (
                "Address", ("base", name("t")), ("offset", 0),
                ("index", (name("s"), ("Vector", ("items", (name("a"), num(1)))))),
            ),
        ),
        ("tab+8", ("Expression", ("items", (name("tab"), num(8))))),
        ("tab[2]", ("Expression", ("items", (name("tab"), num(2))))),
        ("2*3+WARP_SZ", ("Expression", ("items", (num(2), num(3), name("WARP_SZ"))))),
        ("-%r1.b0", ("Expression", ("items", (name("%r1.b0"),)))),
        ("~1", ("Expression", ("items", (num(1),)))),
    ],
)  # fmt: skip
def test_operands(text, expected) -> None:
    for around in ("op.b32 {};", "op.b32 x, {};", "op.b32 {}, [y] ;", "op .b32 /**/ {} ;"):
        instruction = only(around.format(text))
        assert isinstance(instruction, ptx.Instruction)
        assert instruction.opcode == ("op", "b32")
        assert expected in [structure(operand) for operand in instruction.operands]


def test_blocks_nest_to_a_limit() -> None:
    assert len(list(ptx.walk(body_of("{" * 63 + "}" * 63)))) == 63
    with pytest.raises(PtxError, match="more than 64 blocks"):
        body_of("{" * 64 + "}" * 64)
    with pytest.raises(PtxError, match="more than 64 blocks"):
        body_of("{" * 100_000)


TOKEN = re.compile(r'//[^\n]*|"[^"]*"|[ \t\n]+|[%$.]?\w[\w$.:+-]*|.')


def test_comments_and_white_space_change_nothing() -> None:
    """Comments between all tokens also take every statement off the short way through the reader."""
    tokens = [token for token in TOKEN.findall(SAMPLE) if not token.startswith("//") or token.isspace()]
    spaced = "".join(f"{token}/* ;}} // */\r" if re.match(r'[\w%$."]|[],;(){}[]', token) else token for token in tokens)
    assert spaced != SAMPLE
    assert structure(ptx.parse(spaced)) == structure(ptx.parse(SAMPLE))


def corpus() -> list[Path]:
    zoo = Path(str(resources.files("miriam.zoo"))) / "programs"
    here = Path(__file__).parent.parent / "corpus"
    return sorted([*zoo.glob("*.miriam"), *here.rglob("*.miriam")])


@pytest.mark.parametrize("path", corpus(), ids=lambda path: path.stem)
def test_what_compilers_wrote_is_read_whole(path) -> None:
    kernels = {kernel.ptx: kernel.name for kernel in Program.load(path).kernels if kernel.ptx}
    for i, (text, entry) in enumerate(kernels.items()):
        module = ptx.parse(text)
        assert str(module) == text
        assert entry in [f.name for f in module.entries]
        check_tiles(module, operands=i % 8 == 0)


# Edits.


def test_edits_are_made_where_they_say() -> None:
    module = ptx.parse(SAMPLE)
    (entry,) = module.entries
    edited = module.edit(
        [
            (entry.parameters_end, entry.parameters_end, ",\n.param .u64 second"),
            (entry.name_start, entry.name_start + len(entry.name), "renamed"),
            (entry.parameters_end, entry.parameters_end, ",\n.param .u64 third"),
        ]
    )
    (again,) = ptx.parse(edited).entries
    assert again.name == "renamed"
    assert [v.names[0].name for v in again.parameters][-2:] == ["second", "third"]
    assert len(edited) == len(SAMPLE) + len("renamed") - len("sw") + len(",\n.param .u64 second,\n.param .u64 third")
    assert module.edit([]) == SAMPLE


def test_an_insertion_stands_before_what_is_replaced_from_there_on() -> None:
    module = ptx.parse(HEAD)
    assert module.edit([(0, 8, ".VERSION"), (0, 0, "a"), (0, 0, "b"), (8, 8, "c")]) == "ab.VERSIONc" + HEAD[8:]


@given(st.lists(st.integers(0, len(SAMPLE)), max_size=12).map(sorted), st.randoms(use_true_random=False))
def test_edits_are_those_of_one_by_one_from_the_end(cuts, random) -> None:
    edits = [(a, b, f"<{i}>") for i, (a, b) in enumerate(zip(cuts[::2], cuts[1::2], strict=False)) if a < b]
    expected = SAMPLE
    for start, end, replacement in reversed(edits):
        expected = expected[:start] + replacement + expected[end:]
    random.shuffle(edits)
    assert ptx.parse(SAMPLE).edit(edits) == expected


@pytest.mark.parametrize(
    ("edits", "line", "what"),
    [
        ([(0, 14, ""), (13, 20, "")], 2, "overlap"),
        ([(13, 20, ""), (15, 15, "x")], 2, "overlap"),
        ([(0, 5, ""), (0, 5, "")], 1, "overlap"),
        ([(-1, 3, "")], 1, "not in the text"),
        ([(5, 3, "")], 1, "not in the text"),
        ([(0, 10_000, "")], 1, "not in the text"),
    ],
)
def test_edits_that_cannot_be(edits, line, what) -> None:
    with pytest.raises(PtxError, match=what) as caught:
        ptx.parse(HEAD, "toy").edit(edits)
    assert caught.value.line == line
    assert str(caught.value).startswith(f"toy:{line}: ")
