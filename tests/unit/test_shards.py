from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miriam.elastic.shards import ShadedTree, slices
from miriam.errors import PolicyError

grids = st.builds(lambda odd, n: (2 * odd + 1) << n, st.integers(0, 40), st.integers(0, 10))


def test_slices_of_the_conformance_list():
    assert slices(96) == (3, 6, 12, 24, 48, 96)
    assert slices(256) == (1, 2, 4, 8, 16, 32, 64, 128, 256)
    assert slices(729) == (729,)


@given(grids)
def test_slices_are_exact_halvings_and_all_of_them(blocks):
    sizes = slices(blocks)
    assert sizes[-1] == blocks
    assert sizes[0] % 2 == 1
    assert all(2 * small == large for small, large in pairwise(sizes))


def test_a_grid_without_blocks_cannot_be_cut():
    with pytest.raises(PolicyError, match="at least one"):
        slices(0)


def test_the_root_is_the_whole_grid():
    tree = ShadedTree(12)
    assert tree.untouched
    assert tree.take(12) == (0, 12)
    assert tree.left == 0
    assert tree.largest == 0
    assert tree.take(3) is None
    assert tree.take_largest() is None


def test_a_node_is_halved_down_and_its_peers_stay():
    tree = ShadedTree(16)
    assert tree.take(2) == (0, 2)
    assert not tree.untouched
    assert tree.largest == 8
    assert tree.take(8) == (8, 16)
    assert tree.take(2) == (2, 4)
    assert tree.take(8) is None
    assert tree.take(4) == (4, 8)
    assert tree.left == 0


def test_the_lowest_node_that_is_large_enough_goes_first():
    tree = ShadedTree(16)
    tree.take(1)
    assert tree.take(2) == (2, 4)
    assert tree.take(2) == (4, 6)
    assert tree.take(1) == (1, 2)


def test_the_largest_unshaded_subtree_of_equal_ones_the_lowest():
    tree = ShadedTree(12)
    tree.take(3)
    assert [tree.take_largest() for _ in range(3)] == [(6, 12), (3, 6), None]


@pytest.mark.parametrize("size", [0, -3, 1, 5, 24])
def test_only_nodes_of_the_tree_are_handed_out(size):
    with pytest.raises(PolicyError, match="no shard of 12"):
        ShadedTree(12).take(size)


@given(grids, st.data())
def test_shards_partition_the_grid_in_whatever_order_they_are_taken(blocks, data):
    tree = ShadedTree(blocks)
    taken = []
    while tree.left:
        size = data.draw(st.one_of(st.none(), st.sampled_from(slices(blocks))))
        largest, left = tree.largest, tree.left
        shard = tree.take_largest() if size is None else tree.take(size)
        if shard is None:
            assert size is not None
            assert size > largest
            taken.append(tree.take(largest))
        else:
            assert shard[1] - shard[0] == (largest if size is None else size)
            taken.append(shard)
        begin, end = taken[-1]
        assert begin % (end - begin) == 0
        assert tree.left == left - (end - begin)
    ends = [0, *(end for _, end in sorted(taken))]
    assert [begin for begin, _ in sorted(taken)] == ends[:-1]
    assert ends[-1] == blocks
