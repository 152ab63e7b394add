"""BCBT: choose an item by walking down a tree of features."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from agents.poisonrec.bcbt import Tree, walks
from agents.poisonrec.kernel import (
    number_visited,
    push_back_scores,
    score_decisions,
    walk_down,
)
from agents.poisonrec.spaces import ActionSpace, Decisions
from agents.poisonrec.threads import Blocks


class TreeSpace(ActionSpace):
    """Choose an item by walking down a tree; costs the tree's depth per click, not the catalogue's size.

    Args:
        tree: With one feature per node, in the tree's numbering of nodes.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.n_rows = tree.n_nodes
        self.first_item_row = tree.n_inner
        self.depth = tree.depth
        self._number = np.full(tree.n_inner, -1, dtype=np.int32)
        self._visited = np.zeros(tree.n_inner, dtype=np.int32)

    def sample(
        self,
        query: NDArray[np.float32],
        features: NDArray[np.float32],
        rng: np.random.Generator,
        blocks: Blocks,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See `ActionSpace.sample`."""
        n = len(query)
        uniform = rng.random((n, self.depth), dtype=np.float32)
        items = np.zeros(n, dtype=np.int64)
        log_p = np.zeros((n, self.depth), dtype=np.float32)
        tree = self.tree
        blocks.run(n, walk_down, query, features, tree.left, tree.right, uniform, items, log_p)
        return items, log_p

    def decisions(self, item_ids: NDArray[np.int64], blocks: Blocks) -> "TreeDecisions":
        """See `ActionSpace.decisions`."""
        nodes, turns = walks(self.tree, item_ids)
        n_visited = number_visited(nodes, self._number, self._visited)
        visited = self._visited[:n_visited]
        rows = np.stack([self.tree.left[visited], self.tree.right[visited]], axis=1)
        return TreeDecisions(rows.reshape(-1).astype(np.int64), nodes, turns, blocks)


class TreeDecisions(Decisions):
    """Walks down a tree: pairs of siblings, numbered in the order in which they are met.

    Args:
        rows: Left and right sibling of every pair in turn, shape `(2 * n_pairs,)`.
        pairs: Shape `(R, depth)`, -1 after the last decision.
        turns: +1 for left and -1 for right, shape `(R, depth)`, 0 after the last decision.
        blocks: Threads.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        pairs: NDArray[np.int32],
        turns: NDArray[np.float32],
        blocks: Blocks,
    ) -> None:
        self.rows = rows
        last = (pairs >= 0).sum(axis=1) - 1
        walk = np.arange(len(pairs))
        self.item_places = 2 * pairs[walk, last].astype(np.int64) + (turns[walk, last] < 0)
        self.mask = torch.from_numpy(turns != 0)
        self._pairs = pairs
        self._turns = torch.from_numpy(turns)
        self._blocks = blocks

    def log_p(self, query: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """See `Decisions.log_p`."""
        siblings = features.view(-1, 2, features.shape[-1])
        difference = siblings[:, 0] - siblings[:, 1]
        scores = _scores(query, difference, self._pairs, self._blocks)
        return functional.logsigmoid(scores * self._turns)


def _scores(
    query: torch.Tensor, difference: torch.Tensor, pairs: NDArray[np.int32], blocks: Blocks
) -> torch.Tensor:
    scores: torch.Tensor = _ScoreDecisions.apply(query, difference, pairs, blocks)  # type: ignore[no-untyped-call]  # torch
    return scores


class _ScoreDecisions(torch.autograd.Function):
    """`query[r] . difference[pairs[r, level]]`, compiled."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  # torch's own
        query: torch.Tensor,
        difference: torch.Tensor,
        pairs: NDArray[np.int32],
        blocks: Blocks,
    ) -> torch.Tensor:
        q = np.ascontiguousarray(query.detach().numpy())
        f = np.ascontiguousarray(difference.detach().numpy())
        scores = np.empty(pairs.shape, dtype=np.float32)
        blocks.run(len(q), score_decisions, q, f, pairs, scores)
        ctx.given = (q, f, pairs, blocks)
        return torch.from_numpy(scores)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401  # torch's own
        *gradients: torch.Tensor,
    ) -> tuple[torch.Tensor | None, ...]:
        q, f, pairs, blocks = ctx.given
        query_gradient = np.empty_like(q)
        difference_gradient = np.zeros_like(f)
        g = np.ascontiguousarray(gradients[0].numpy())
        blocks.run(
            q.shape[1], push_back_scores, g, q, f, pairs, query_gradient, difference_gradient
        )
        return torch.from_numpy(query_gradient), torch.from_numpy(difference_gradient), None, None
