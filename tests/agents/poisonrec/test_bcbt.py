"""The tree against obvious walks, and against the sizes of the paper's catalogues."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.poisonrec.bcbt import (
    Tree,
    biased_tree,
    leaf_log_probabilities,
    leaf_order,
    make_tree,
    popularity_order,
    walks,
)
from recattack_gym.core import ArgumentError


@pytest.mark.parametrize(
    ("n", "order"),
    [
        (1, [0]),
        (2, [1, 2]),
        (3, [3, 4, 2]),
        (5, [7, 8, 4, 5, 6]),
        (6, [7, 8, 9, 10, 5, 6]),
        (8, [7, 8, 9, 10, 11, 12, 13, 14]),
    ],
)
def test_leaves_stand_in_the_order_of_space_not_of_the_heap(n: int, order: list[int]) -> None:
    assert leaf_order(n).tolist() == order


@pytest.mark.parametrize(
    ("n_items", "depths"),
    [  # edges below the subtree's root; worked out by hand from 2^q <= n < 2^(q+1)
        (5134, {13: 2076, 12: 3058}),
        (3706, {12: 3316, 11: 390}),
        (10429, {14: 4474, 13: 5955}),
        (23033, {15: 13298, 14: 9735}),
    ],
)
def test_the_papers_catalogues_have_leaves_at_these_depths(
    n_items: int, depths: dict[int, int]
) -> None:
    popularity = np.zeros(n_items + 8, dtype=np.int64)
    tree = make_tree(popularity, np.arange(n_items, n_items + 8))
    nodes, _ = walks(tree, np.arange(n_items))
    below_subtree_root = (nodes >= 0).sum(axis=1) - 1
    assert Counter(below_subtree_root.tolist()) == depths


def descend(tree: Tree, logits: np.ndarray) -> dict[int, float]:
    """Return P of every item by an obvious walk over all branches."""
    found: dict[int, float] = {}
    todo = [(0, 1.0)]
    while todo:
        node, p = todo.pop()
        if node >= tree.n_inner:
            found[node - tree.n_inner] = p
            continue
        p_left = 1 / (1 + np.exp(-logits[node]))
        todo.append((int(tree.left[node]), p * p_left))
        todo.append((int(tree.right[node]), p * (1 - p_left)))
    return found


@given(st.integers(1, 9), st.integers(1, 70), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_every_item_is_a_leaf_and_probabilities_are_those_of_the_walks(
    n_targets: int, n_others: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.permutation(n_targets + n_others)
    tree = biased_tree(ids[:n_targets], ids[n_targets:])
    logits = 3 * rng.standard_normal(tree.n_inner)
    p = np.exp(leaf_log_probabilities(tree, logits))
    expected = descend(tree, logits)
    assert len(expected) == len(ids)
    assert np.allclose(p, [expected[item] for item in range(len(ids))], rtol=1e-9)
    assert p.sum() == pytest.approx(1.0, abs=1e-9)


@given(st.integers(1, 9), st.integers(1, 70))
@settings(max_examples=40, deadline=None)
def test_without_a_preference_half_of_all_clicks_fall_on_targets(
    n_targets: int, n_others: int
) -> None:
    targets = np.arange(n_others, n_others + n_targets)
    tree = make_tree(np.zeros(n_others + n_targets, dtype=np.int64), targets)
    p = np.exp(leaf_log_probabilities(tree, np.zeros(tree.n_inner)))
    assert p[targets].sum() == pytest.approx(0.5)


def test_each_of_eight_targets_has_a_sixteenth() -> None:
    tree = make_tree(np.zeros(20, dtype=np.int64), np.arange(8))
    p = np.exp(leaf_log_probabilities(tree, np.zeros(tree.n_inner)))
    assert p[:8] == pytest.approx(np.full(8, 1 / 16))


def test_walks_lead_from_the_root_to_the_item() -> None:
    rng = np.random.default_rng(0)
    tree = make_tree(rng.integers(9, size=45), np.array([3, 30, 7]))
    nodes, turns = walks(tree, np.arange(45).reshape(5, 9))
    assert nodes.shape == turns.shape == (5, 9, tree.depth)
    for item in range(45):
        at = 0
        walk, turn = nodes.reshape(45, -1)[item], turns.reshape(45, -1)[item]
        for node, side in zip(walk, turn, strict=True):
            if node < 0:
                assert side == 0
                continue
            assert node == at
            at = int(tree.left[at] if side > 0 else tree.right[at])
        assert at == tree.n_inner + item


def test_neighbours_in_popularity_share_their_walk_down_to_the_last_decision() -> None:
    popularity = np.array([5, 1, 9, 7, 3, 2, 8, 4, 6, 0, 0, 0])
    tree = make_tree(popularity, np.array([9, 10, 11, 1]))
    nodes, _ = walks(tree, np.array([2, 6, 3, 8, 0, 7, 4, 5]))  # others, most popular first
    for first in range(0, 8, 2):
        assert nodes[first].tolist() == nodes[first + 1].tolist()
    assert popularity_order(popularity, np.array([0, 1, 9, 10])).tolist() == [0, 1, 9, 10]


def test_a_random_assignment_differs_from_the_popular_one_and_between_seeds() -> None:
    popularity = np.arange(40)[::-1].copy()
    targets = np.array([0, 1, 2])
    trees = [make_tree(popularity, targets, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(trees[0].left, trees[1].left)
    assert not np.array_equal(trees[0].left, trees[2].left)
    assert not np.array_equal(trees[0].left, make_tree(popularity, targets).left)


@pytest.mark.parametrize(
    ("targets", "others"),
    [([], [0, 1]), ([0], []), ([0], [2]), ([0, 1], [1, 2]), ([0, 0], [1])],
)
def test_two_sets_that_are_no_partition_are_refused(targets: list[int], others: list[int]) -> None:
    with pytest.raises(ArgumentError, match="target_items and other_items must each hold an item"):
        biased_tree(np.array(targets, dtype=np.int64), np.array(others, dtype=np.int64))
