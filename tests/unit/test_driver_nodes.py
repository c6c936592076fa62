"""Captured graphs are read node by node, in the order of their edges."""

import ctypes

import pytest
from fake_driver import FakeDriver, Node
from hypothesis import given
from hypothesis import strategies as st

from miriam.device.cuda.driver import graph_nodes


@pytest.fixture
def cu(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    fake.install(monkeypatch)
    return fake


def kernel_node(number: int, parameters: int = 0, function: int = 0) -> Node:
    return Node(
        number, "KERNEL", func=function or number, kern=number, gridDimX=4, gridDimY=2, gridDimZ=1, blockDimX=128,
        blockDimY=1, blockDimZ=1, sharedMemBytes=512, kernelParams=parameters,
    )  # fmt: skip


def test_a_graph_without_nodes(cu: FakeDriver) -> None:
    assert graph_nodes(1) == []


def test_nodes_come_in_the_order_of_the_edges(cu: FakeDriver) -> None:
    cu.nodes = [kernel_node(n) for n in (30, 10, 20)]
    cu.edges = [(10, 20), (20, 30)]
    assert [node.name for node in graph_nodes(1)] == ["kernel10", "kernel20", "kernel30"]


@given(st.data())
def test_every_node_comes_once_and_after_those_before_it(data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.integers(1, 1000), unique=True, max_size=12))
    fake = FakeDriver()
    pairs = [(a, b) for i, a in enumerate(numbers) for b in numbers[i + 1 :]]
    fake.edges = data.draw(st.lists(st.sampled_from(pairs), max_size=20)) if pairs else []
    fake.nodes = [kernel_node(n) for n in data.draw(st.permutations(numbers))]
    with pytest.MonkeyPatch.context() as patch:
        fake.install(patch)
        order = [node.function for node in graph_nodes(1)]
    assert sorted(order) == sorted(numbers)
    assert all(order.index(a) < order.index(b) for a, b in fake.edges)


def test_a_kernel_node_with_its_parameters(cu: FakeDriver) -> None:
    held = [ctypes.create_string_buffer(raw, len(raw)) for raw in (b"12345678", b"\1\2\3\4")]
    table = (ctypes.c_void_p * 2)(*[ctypes.addressof(raw) for raw in held])
    cu.parameters[5] = (8, 4)
    cu.nodes = [kernel_node(5, ctypes.addressof(table))]
    (node,) = graph_nodes(1)
    assert (node.kind, node.function, node.name) == ("kernel", 5, "kernel5")
    assert (node.grid, node.block, node.shared_bytes) == ((4, 2, 1), (128, 1, 1), 512)
    assert node.parameters == (b"12345678", b"\1\2\3\4")


def test_parameters_passed_in_another_way_cannot_be_read(cu: FakeDriver) -> None:
    cu.nodes = [kernel_node(5)]
    assert graph_nodes(1)[0].parameters is None


def test_a_node_that_holds_a_kernel_instead_of_a_function(cu: FakeDriver) -> None:
    node = kernel_node(5)
    node.params.func, node.params.kern = 0, 9
    cu.nodes = [node]
    assert graph_nodes(1)[0].name == "kernel9"


COPY = {
    "WidthInBytes": 64, "Height": 1, "Depth": 1, "dstDevice": 1000, "srcDevice": 2000, "dstXInBytes": 8,
    "srcXInBytes": 16,
}  # fmt: skip
FILL = {"dst": 1000, "value": 7, "elementSize": 4, "width": 16, "height": 1}


@pytest.mark.parametrize(
    ("kind", "params", "numbers"),
    [
        ("MEMCPY", COPY, (1008, 2016, 64)),
        ("MEMCPY", COPY | {"Height": 0, "Depth": 0}, (1008, 2016, 64)),
        ("MEMCPY", COPY | {"Height": 2}, None),
        ("MEMCPY", COPY | {"Depth": 2}, None),
        ("MEMCPY", COPY | {"srcDevice": 0}, None),  # from the host
        ("MEMSET", FILL, (1000, 7, 4, 16)),
        ("MEMSET", FILL | {"height": 3}, None),
    ],
)
def test_copies_and_fills_are_numbers_where_they_are_flat(cu: FakeDriver, kind, params, numbers) -> None:
    cu.nodes = [Node(1, kind, **params)]
    (node,) = graph_nodes(1)
    assert node.kind == {"MEMCPY": "copy", "MEMSET": "fill"}[kind]
    assert node.parameters == (numbers and tuple(n.to_bytes(8, "little") for n in numbers))


def test_nodes_of_other_kinds_keep_the_name_that_the_driver_gives_them(cu: FakeDriver) -> None:
    cu.nodes = [Node(1, "EMPTY"), Node(2, "HOST")]
    assert sorted(node.kind for node in graph_nodes(1)) == ["CU_GRAPH_NODE_TYPE_HOST", "empty"]
