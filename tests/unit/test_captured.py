"""Graph nodes made by hand become programs: pointers, weights, opaque kernels, and what cannot be captured."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PTX

from miriam.device.cuda.driver import GraphNode
from miriam.errors import CompileError
from miriam.frontend.captured import Code, Memory, Region, pointer_parameters, to_program
from miriam.program import Kernel, Launch, Pointer, Program, Role, Scalar, Source

X = Region(0x1000, 0x100, Role.INPUT, "x")
W = Region(0x1100, 0x80, Role.WEIGHT, "w")  # begins where x ends
ARENA = Region(0x8000, 0x1000, Role.INTERMEDIATE, "arena")
REGIONS = (ARENA, X, W)

TRITON = """.visible .entry {name}(
	.param .u64 .ptr .global .align 1 {name}_param_0,
	.param .u64 .ptr .global .align 1 {name}_param_1,
	.param .u32 {name}_param_2,
	.param .u64 .ptr .global .align 1 {name}_param_3,
	.param .u64 .ptr .global .align 1 {name}_param_4
)
.reqntid 128
{{ // {salt}
	ret;
}}
"""


def raw(value: int, size: int = 8) -> bytes:
    return value.to_bytes(size, "little")


def node(name: str = "relu", first: int = X.address, second: int = ARENA.address, **changes) -> GraphNode:
    """A launch of a Triton kernel: two pointers, a count, and two scratch pointers that are NULL."""
    made = {
        "kind": "kernel", "function": 7, "name": name, "grid": (4, 2, 1), "block": (128, 1, 1), "shared_bytes": 512,
        "parameters": (raw(first), raw(second), raw(99, 4), raw(0), raw(0)),
    }  # fmt: skip
    return GraphNode(**(made | changes))


def code(node: GraphNode) -> Code:
    return Code(40, 16, TRITON.format(name=node.name, salt=""), "module {}")


def build(nodes: Sequence[GraphNode], code=code, regions=REGIONS, read=None, inputs=None, outputs=None) -> Program:
    memory = Memory(regions, read)
    return to_program("toy", "sm_90a", nodes, code, memory, inputs or {}, outputs or {}, {"made": "by hand"})


def test_a_kernel_its_launch_and_its_arguments() -> None:
    program = build([node(second=ARENA.address + 64)])
    (kernel,) = program.kernels
    assert kernel == Kernel(
        "relu", Source.TRITON, (128, 1, 1), registers=40, shared_bytes=528, dynamic_shared_bytes=512,
        ptx=TRITON.format(name="relu", salt=""), ttir="module {}",
    )  # fmt: skip
    args = (Pointer(0, 0), Pointer(1, 64), Scalar(raw(99, 4)), Scalar(raw(0)), Scalar(raw(0)))
    assert program.launches == (Launch(0, (4, 2, 1), args),)
    assert [(b.name, b.size_bytes, b.role, b.data) for b in program.buffers] == [
        ("x", 0x100, Role.INPUT, None),
        ("arena", 0x1000, Role.INTERMEDIATE, None),
    ]
    assert program.runnable
    assert (program.name, program.target, program.meta) == ("toy", "sm_90a", {"made": "by hand"})


def test_only_what_something_points_into_becomes_a_buffer() -> None:
    assert [b.name for b in build([node(first=W.address)]).buffers] == ["w", "arena"]
    assert [b.name for b in build([node()]).buffers] == ["x", "arena"]


def test_weights_are_read_once_and_whole_and_nothing_else_is_read() -> None:
    asked = []

    def read(address: int, size_bytes: int) -> bytes:
        asked.append((address, size_bytes))
        return b"\x5a" * size_bytes

    nodes = [node(first=W.address + 8), node(first=W.address + 16), node()]
    program = build(nodes, read=read)
    assert asked == [(W.address, W.size_bytes)]
    assert {b.name: b.data for b in program.buffers} == {"w": b"\x5a" * 0x80, "arena": None, "x": None}


def test_inputs_and_outputs_are_places_in_buffers() -> None:
    program = build(
        [node()],
        inputs={"input0": (X.address + 2, "float16", (1, 8), (8, 1))},
        outputs={"output0": (ARENA.address + 256, "float32", (4,), (2,))},
    )
    (given_,), (result,) = program.inputs, program.outputs
    assert (given_.name, given_.dtype, given_.shape, given_.strides, given_.at) == (
        "input0", "float16", (1, 8), (8, 1), Pointer(0, 2),
    )  # fmt: skip
    assert (result.shape, result.strides, result.at) == ((4,), (2,), Pointer(1, 256))


def test_an_output_outside_of_known_memory_is_named() -> None:
    with pytest.raises(CompileError, match="output0 of toy lies in memory that torch does not manage"):
        build([node()], outputs={"output0": (0x9999_0000, "float16", (1,), (1,))})


def test_a_pointer_to_nowhere_names_the_kernel_and_the_address() -> None:
    with pytest.raises(CompileError, match="softmax points to 0xdead0000, which lies in no memory"):
        build([node(), node("softmax", first=0xDEAD0000)])


def test_numbers_are_not_taken_for_addresses() -> None:
    scalar = raw(X.address, 4)  # the count happens to look like the address of x
    program = build([node(parameters=(raw(X.address), raw(ARENA.address), scalar, raw(0), raw(0)))])
    assert program.launches[0].args[2] == Scalar(scalar)


@pytest.mark.parametrize("count", [0, 4, 6])
def test_a_parameter_too_few_or_too_many_is_an_error(count: int) -> None:
    with pytest.raises(CompileError, match=f"relu has 5 parameters in PTX and {count} in the graph"):
        build([node(parameters=(raw(0),) * count)])


def test_a_kernel_without_code_is_opaque_and_its_arguments_are_left_out() -> None:
    library = node("ampere_h1688cudnn", block=(256, 1, 1), parameters=(raw(0xDEAD0000),))
    program = build([node(), library], lambda n: code(n) if n.name == "relu" else Code(128, 1024))
    kernel = program.kernels[1]
    assert (kernel.source, kernel.ptx, kernel.ttir) == (Source.LIBRARY, None, None)
    assert (kernel.block, kernel.registers, kernel.shared_bytes) == ((256, 1, 1), 128, 1536)
    assert "library" in kernel.opaque
    assert program.launches[1] == Launch(1, (4, 2, 1), ())
    assert not program.runnable


def test_parameters_that_cannot_be_read_leave_a_launch_without_arguments() -> None:
    assert build([node(parameters=None)]).launches[0].args == ()


def test_copies_and_fills_are_launches_of_one_block() -> None:
    copy = GraphNode("copy", name="memcpy", parameters=(raw(ARENA.address + 8), raw(X.address), raw(64)))
    fill = GraphNode("fill", name="memset", parameters=(raw(ARENA.address), raw(0), raw(4), raw(16)))
    program = build([copy, fill, copy])
    assert [k.source for k in program.kernels] == [Source.COPY, Source.FILL]
    assert [step.kernel for step in program.launches] == [0, 1, 0]
    assert program.launches[0].args == (Pointer(0, 8), Pointer(1, 0), Scalar(raw(64)))
    assert program.launches[1].args == (Pointer(0, 0), Scalar(raw(0)), Scalar(raw(4)), Scalar(raw(16)))
    assert all(step.blocks == 1 for step in program.launches)
    assert program.runnable


def test_copies_of_different_sizes_are_measured_apart() -> None:
    copies = [
        GraphNode("copy", name="memcpy", parameters=(raw(ARENA.address), raw(X.address), raw(size))) for size in (4, 64)
    ]
    program = build(copies)
    assert len({k.digest for k in program.kernels}) == 2


def test_the_value_of_a_fill_is_not_an_address() -> None:
    fill = GraphNode("fill", name="memset", parameters=(raw(ARENA.address), raw(X.address), raw(4), raw(16)))
    assert build([fill]).launches[0].args[1] == Scalar(raw(X.address))


@pytest.mark.parametrize("kind", ["copy", "fill"])
def test_a_copy_that_is_not_flat_is_opaque(kind: str) -> None:
    flat = GraphNode(kind, name="memory", parameters=(raw(ARENA.address), raw(X.address), raw(4), raw(1)))
    program = build([flat, GraphNode(kind, name="memory")])
    assert [step.kernel for step in program.launches] == [0, 1]
    assert "not flat" in program.kernels[1].opaque
    assert program.launches[1].args == ()
    assert not program.runnable


def test_a_copy_from_host_memory_is_an_error() -> None:
    with pytest.raises(CompileError, match="memcpy points to 0x7f0000"):
        build([GraphNode("copy", name="memcpy", parameters=(raw(ARENA.address), raw(0x7F0000), raw(4)))])


def test_empty_nodes_are_left_out_and_others_are_refused() -> None:
    assert len(build([GraphNode("empty"), node(), GraphNode("empty")]).launches) == 1
    with pytest.raises(CompileError, match="the graph holds a CU_GRAPH_NODE_TYPE_HOST"):
        build([GraphNode("CU_GRAPH_NODE_TYPE_HOST")])


def test_equal_kernels_are_kept_once_whatever_their_names() -> None:
    program = build([node("relu_0"), node("gelu", block=(64, 1, 1)), node("relu_1"), node("relu_0")])
    assert [k.name for k in program.kernels] == ["relu_0", "gelu"]
    assert [step.kernel for step in program.launches] == [0, 1, 0, 0]


def test_kernels_that_differ_in_their_needs_stay_apart() -> None:
    program = build([node(), node(shared_bytes=1024), node(block=(64, 1, 1))])
    assert [step.kernel for step in program.launches] == [0, 1, 2]


@pytest.mark.parametrize(
    ("address", "found"),
    [
        (X.address - 1, None),
        (X.address, ("x", 0)),
        (X.address + 0xFF, ("x", 0xFF)),
        (X.address + 0x100, ("w", 0)),  # the end of x is the beginning of w
        (W.address + W.size_bytes, ("w", 0x80)),  # a pointer to the end of a tensor is a pointer all the same
        (W.address + W.size_bytes + 1, None),
        (ARENA.address + 1, ("arena", 1)),
        (2**63, None),
        (1, None),
    ],
)
def test_the_edges_of_regions(address: int, found: tuple[str, int] | None) -> None:
    memory = Memory(REGIONS, None)
    at = memory.point(address)
    assert (at and (memory.buffers()[at.buffer].name, at.offset_bytes)) == found


def test_memory_without_regions_holds_nothing() -> None:
    assert Memory([], None).point(0x1000) is None
    assert Memory([], None).buffers() == ()


@st.composite
def regions(draw) -> list[Region]:
    """Regions side by side or apart, in any order."""
    found, address = [], draw(st.integers(1, 50))
    for i, (size, gap) in enumerate(draw(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 20)), max_size=8))):
        found.append(Region(address, size, Role.INTERMEDIATE, f"r{i}"))
        address += size + gap
    return draw(st.permutations(found))


@given(regions(), st.lists(st.integers(0, 600), max_size=30))
def test_a_pointer_is_found_in_the_region_that_holds_it(given_: list[Region], addresses: list[int]) -> None:
    memory = Memory(given_, None)
    found = [memory.point(address) for address in addresses]
    buffers = memory.buffers()
    assert len({b.name for b in buffers}) == len(buffers)
    for address, at in zip(addresses, found, strict=True):
        holds = [r for r in given_ if r.address <= address < r.address + r.size_bytes]
        ends = [r for r in given_ if r.address + r.size_bytes == address]
        expected = (holds or ends or [None])[0]
        assert (at is None) == (expected is None)
        if at is not None:
            assert buffers[at.buffer].name == expected.name
            assert at.offset_bytes == address - expected.address


@pytest.mark.parametrize(
    ("ptx", "pointers"),
    [
        (PTX.format(name="k", salt=""), [True, False]),
        (TRITON.format(name="k", salt="(a, b, c)"), [True, True, False, True, True]),
        (".visible .entry empty() { ret; }", []),
        (".func helper(.param .u64 .ptr a) { ret; }\n.entry k(\n.param .f32 k_0,\n.param .u64 k_1\n) {}", [False] * 2),
        (".entry k(.param .align 8 .b8 k_0[24], .param .u64 .ptr .global k_1) {}", [False, True]),
    ],
)
def test_parameters_of_an_entry(ptx: str, pointers: list[bool]) -> None:
    assert pointer_parameters(ptx) == pointers


@given(st.lists(st.booleans(), max_size=30))
def test_parameters_in_any_order(pointers: list[bool]) -> None:
    lines = [f"\t.param .u64 {'.ptr .global .align 1 ' if p else ''}k_param_{i}" for i, p in enumerate(pointers)]
    assert pointer_parameters(".visible .entry k(\n" + ",\n".join(lines) + "\n)\n{ ret; }") == pointers


def test_a_live_graph_takes_what_cannot_be_read_as_opaque() -> None:
    nodes = [
        node(), node("stray", first=0x50), GraphNode("CU_GRAPH_NODE_TYPE_HOST"),
        GraphNode("copy", name="memcpy", parameters=(raw(ARENA.address), raw(0x7F0000), raw(4))),
    ]  # fmt: skip
    with pytest.raises(CompileError, match="stray points to 0x50"):
        build(nodes)
    memory = Memory(REGIONS, None)
    program = to_program("toy", "sm_90a", nodes, code, memory, {}, {}, {}, live=True)
    assert [bool(program.kernel_of(i).opaque) for i in range(4)] == [False, True, True, True]
    assert [step.grid for step in program.launches] == [(4, 2, 1), (4, 2, 1), (1, 1, 1), (1, 1, 1)]
    stray = program.kernel_of(1)
    assert (stray.name, stray.source, stray.registers, stray.shared_bytes) == ("stray", Source.LIBRARY, 40, 528)
    assert "which lies in no memory that torch manages" in stray.opaque
    assert memory.addresses == (X.address, ARENA.address)
