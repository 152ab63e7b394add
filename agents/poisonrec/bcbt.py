"""The biased complete binary tree (BCBT): every item is a leaf, and a click is a walk from the root.

Pure functions on index arrays; no features and no learning. PoisonRec (Song et al., ICDE 2020), §IV-D.

Nodes are numbered so that both kinds are found without a search: the `n_items - 1` inner nodes come
first, the root is 0, and the leaf of item `a` is node `n_items - 1 + a`.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError
from recattack_gym.core.checks import as_count, as_generator, as_ids


@dataclass(frozen=True, eq=False)
class Tree:
    """A binary tree with one leaf per item."""

    left: NDArray[np.int32]
    """Left child of every inner node, shape `(n_items - 1,)`."""
    right: NDArray[np.int32]
    """Right child of every inner node, shape `(n_items - 1,)`."""

    @property
    def n_inner(self) -> int:
        """Number of inner nodes."""
        return len(self.left)

    @property
    def n_items(self) -> int:
        """Number of leaves."""
        return len(self.left) + 1

    @property
    def n_nodes(self) -> int:
        """Number of nodes, `2 n_items - 1`."""
        return 2 * len(self.left) + 1

    @cached_property
    def parent(self) -> NDArray[np.int32]:
        """Parent of every node, shape `(n_nodes,)`; -1 for the root."""
        parent = np.full(self.n_nodes, -1, dtype=np.int32)
        inner = np.arange(self.n_inner, dtype=np.int32)
        parent[self.left] = inner
        parent[self.right] = inner
        return parent

    @cached_property
    def depth(self) -> int:
        """Decisions of the longest walk."""
        depth, level = 0, np.zeros(1, dtype=np.int32)
        while len(level := level[level < self.n_inner]):
            depth += 1
            level = np.concatenate([self.left[level], self.right[level]])
        return depth


def leaf_order(n_leaves: int) -> NDArray[np.int64]:
    """Return the heap indices of a complete binary tree's leaves, from left to right in space.

    The heap has `2 n - 1` nodes, filled level by level; inner nodes are `0 .. n - 2`. Where n is no power
    of two the leaves stand on two levels, and the deeper ones, which have the *larger* indices, stand on
    the left.

    Args:
        n_leaves: n, at least 1.

    Returns:
        Shape `(n,)`; for n = 5: 7, 8, 4, 5, 6.
    """
    n = as_count("n_leaves", n_leaves)
    last_level = (1 << ((2 * n - 1).bit_length() - 1)) - 1  # heap index where the last level begins
    return np.concatenate([np.arange(last_level, 2 * n - 1), np.arange(n - 1, last_level)])


def biased_tree(target_items: NDArray[np.int64], other_items: NDArray[np.int64]) -> Tree:
    """Join two complete binary trees, over the targets and over all other items, under one root.

    At the root, left is the targets' tree. Without a preference at any node, half of all clicks fall on
    targets: that is the bias.

    Args:
        target_items: Item ids in the order of their leaves from left to right, shape `(n_targets,)`.
        other_items: The same for all other items, shape `(n_others,)`.

    Raises:
        ArgumentError: If the two together are not exactly the ids `0 .. n_items - 1`, or one is empty.
    """
    n_items = len(target_items) + len(other_items)
    both = np.sort(np.concatenate([target_items, other_items]))
    if not (len(target_items) and len(other_items) and np.array_equal(both, np.arange(n_items))):
        raise ArgumentError(
            "target_items and other_items must each hold an item, and together every id from 0 on once, "
            f"got {len(target_items)} and {len(other_items)} ids"
        )
    n_inner = n_items - 1
    left = np.zeros(n_inner, dtype=np.int32)
    right = np.zeros(n_inner, dtype=np.int32)
    first_free = 1
    for side, items in ((left, target_items), (right, other_items)):
        side[0] = _hang_in(left, right, items, n_inner, first_free)
        first_free += len(items) - 1
    return Tree(left, right)


def popularity_order(
    item_popularity: NDArray[np.int64], item_ids: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Sort items by popularity, the most popular first; equal ones by id.

    The order from left to right of BCBT-Popular: items that are about equally popular share most of
    their walk. Which end is on the left decides only which one may be a level deeper.

    Args:
        item_popularity: Clicks per item, shape `(n_items,)`.
        item_ids: Ascending ids, shape `(n,)`.

    Returns:
        Shape `(n,)`.
    """
    return item_ids[np.argsort(-item_popularity[item_ids], kind="stable")]


def make_tree(
    item_popularity: NDArray[np.int64],
    target_items: NDArray[np.int64],
    rng: np.random.Generator | None = None,
) -> Tree:
    """Return BCBT-Popular, or BCBT-Random where `rng` is given.

    Args:
        item_popularity: Clicks per item, shape `(n_items,)`.
        target_items: Distinct ids, shape `(n_targets,)`; at least one item is no target.
        rng: Source of the random assignment of items to leaves; `None` sorts by popularity.
    """
    n_items = len(item_popularity)
    targets = np.sort(as_ids("target_items", target_items, below=n_items, shape=(None,)))
    others = np.setdiff1d(np.arange(n_items, dtype=np.int64), targets, assume_unique=True)
    if rng is None:
        return biased_tree(
            popularity_order(item_popularity, targets), popularity_order(item_popularity, others)
        )
    as_generator("rng", rng)
    return biased_tree(rng.permutation(targets), rng.permutation(others))


def walks(tree: Tree, item_ids: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the decisions that lead from the root to items.

    Costs the tree's depth per item, whatever the size of the catalogue.

    Args:
        tree: The tree.
        item_ids: Any shape `S`.

    Returns:
        The inner nodes on the way, shape `(*S, depth)`, the root first and -1 after the last; and where
        the walk turns at each, +1 left, -1 right, 0 after the last.
    """
    items = as_ids("item_ids", item_ids, below=tree.n_items, shape=np.shape(item_ids))
    nodes = np.full((items.size, tree.depth), -1, dtype=np.int32)
    turns = np.zeros((items.size, tree.depth), dtype=np.float32)
    at = (items.reshape(-1) + tree.n_inner).astype(np.int32)
    length = np.zeros(items.size, dtype=np.int64)
    walk = np.arange(items.size)
    while len(walk):  # from the leaves up, written backwards; the rows are turned round at the end
        above = tree.parent[at]
        nodes[walk, length[walk]] = above
        turns[walk, length[walk]] = np.where(tree.left[above] == at, 1.0, -1.0)
        length[walk] += 1
        is_on_the_way = above != 0
        walk, at = walk[is_on_the_way], above[is_on_the_way]
    backwards = length[:, None] - 1 - np.arange(tree.depth)
    is_walk = backwards >= 0
    backwards = np.where(is_walk, backwards, 0)
    nodes = np.where(is_walk, np.take_along_axis(nodes, backwards, axis=1), np.int32(-1))
    turns = np.where(is_walk, np.take_along_axis(turns, backwards, axis=1), np.float32(0))
    shape = (*items.shape, tree.depth)
    return nodes.reshape(shape), turns.reshape(shape)


def leaf_log_probabilities(tree: Tree, logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return log P of every item: the sum over the decisions on its walk. Costs O(n_items).

    Args:
        tree: The tree.
        logits: Log-odds of turning left at every inner node, shape `(n_inner,)`.

    Returns:
        Shape `(n_items,)`; the probabilities sum to 1.
    """
    nodes, turns = walks(tree, np.arange(tree.n_items))
    signed = turns * np.asarray(logits, dtype=np.float64)[nodes]
    log_p: NDArray[np.float64] = np.where(turns == 0, 0.0, -np.logaddexp(0.0, -signed)).sum(axis=1)
    return log_p


def _hang_in(
    left: NDArray[np.int32],
    right: NDArray[np.int32],
    items: NDArray[np.int64],
    n_inner: int,
    first_free: int,
) -> int:
    """Fill in a complete tree over `items`, with inner nodes from `first_free` on; return its root."""
    n = len(items)
    node = np.empty(2 * n - 1, dtype=np.int32)  # heap index -> node
    node[: n - 1] = first_free + np.arange(n - 1)
    node[leaf_order(n)] = n_inner + items
    heap = np.arange(n - 1)
    left[node[heap]] = node[2 * heap + 1]
    right[node[heap]] = node[2 * heap + 2]
    return int(node[0])
