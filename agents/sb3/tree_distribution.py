"""A distribution over items whose log-probabilities are sums over the decisions of a walk."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.distributions import CategoricalDistribution
from torch import nn
from torch.nn import functional

from agents.poisonrec.bcbt import Tree, walks
from agents.poisonrec.kernel import compiled, push_back_scores, score_decisions


class TreeHead(nn.Module):
    """The last layer of the actor: one vector and one bias per inner node of the tree.

    All begin at zero, so that no node has a preference, whatever the layers before it say.

    Args:
        latent_size: Width of what describes the state.
        n_inner: Inner nodes of the tree.
    """

    def __init__(self, latent_size: int, n_inner: int) -> None:
        super().__init__()
        self.nodes = nn.Parameter(torch.zeros(n_inner, latent_size + 1))

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Return the query, shape `(B, latent_size + 1)`: `latent` and a one for the bias."""
        return functional.pad(latent, (0, 1), value=1.0)


class TreeDistribution(CategoricalDistribution):
    """Choose an item by turning left or right at every node on the way from the root to its leaf.

    At a node, left has probability `sigmoid(query . node)`. A walk needs as many decisions as the tree is
    deep; nothing here is as long as the catalogue, but the table of nodes itself and its gradient.

    **Entropy.** By the chain rule, the entropy over items is the expectation, over walks, of the summed
    entropies of the decisions that are met. `entropy` returns that sum for the actions given to `log_prob`
    just before: its mean over actions drawn from this distribution is the exact entropy. (Minus
    log-probability, which Stable-Baselines3 falls back on, has the same mean, but the mean of its gradient
    is zero.) Its gradient makes the decisions met more even and does not say that other nodes should be met
    more often.

    **Mode.** The likelier branch at every node, left where both are equal: the likeliest *walk step by
    step*, which need not end at the likeliest item.

    **Randomness.** Comes from PyTorch's global generator, which Stable-Baselines3 seeds.

    Args:
        tree: One leaf per action.
    """

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree.n_items)
        self._tree = tree
        self._nodes, self._turns = walks(tree, np.arange(tree.n_items))  # (n_items, depth) each
        self._head = TreeHead(0, tree.n_inner)
        self._query = torch.zeros(0, 1)
        self._met: tuple[torch.Tensor, torch.Tensor] | None = None

    def proba_distribution_net(self, latent_dim: int) -> TreeHead:
        """Return the layer that holds the vectors of the nodes."""
        self._head = TreeHead(latent_dim, self._tree.n_inner)
        return self._head

    def proba_distribution(self, action_logits: torch.Tensor) -> "TreeDistribution":
        """Set the query, which is what the layer returns, shape `(B, latent_size + 1)`."""
        self._query = action_logits
        self._met = None
        return self

    def sample(self) -> torch.Tensor:
        """Return item ids, shape `(B,)`."""
        return self._walk(torch.rand(len(self._query), self._tree.depth))

    def mode(self) -> torch.Tensor:
        """Return the items that the likelier branches lead to, shape `(B,)`."""
        return self._walk(torch.full((len(self._query), self._tree.depth), 0.5))

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities of items, shape `(B,)`; `actions` is `(B,)` or `(B, 1)`."""
        items = actions.detach().cpu().numpy().reshape(-1).astype(np.int64)
        turns = torch.from_numpy(self._turns[items]).to(self._query.device)
        scores = _scores(self._query, self._head.nodes, self._nodes[items])
        self._met = scores, turns
        return (functional.logsigmoid(scores * turns) * turns.abs()).sum(dim=1)

    def entropy(self) -> torch.Tensor:
        """Return the summed entropies of the decisions met, shape `(B,)`; see the class.

        Without a call of `log_prob` before it, for fresh samples.
        """
        if self._met is None:
            self.log_prob(self.sample())
        assert self._met is not None  # noqa: S101  # log_prob sets it
        scores, turns = self._met
        each = functional.softplus(scores) - scores * scores.sigmoid()
        return (each * turns.abs()).sum(dim=1)

    def _walk(self, uniform: torch.Tensor) -> torch.Tensor:
        query = self._query.detach().cpu().numpy()
        nodes = self._head.nodes.detach().cpu().numpy()
        items = np.zeros(len(query), dtype=np.int64)
        walk_by_query(query, nodes, self._tree.left, self._tree.right, uniform.numpy(), items)
        return torch.from_numpy(items).to(self._query.device)


@compiled
def walk_by_query(
    query: NDArray[np.float32],
    nodes: NDArray[np.float32],
    left: NDArray[np.int32],
    right: NDArray[np.int32],
    uniform: NDArray[np.float32],
    items: NDArray[np.int64],
) -> None:
    """Walk from the root to a leaf; at a node, left has probability `sigmoid(query . node)`.

    Args:
        query: Shape `(B, D)`.
        nodes: Shape `(n_inner, D)`.
        left: Left child of every inner node, shape `(n_inner,)`.
        right: Right child of every inner node, shape `(n_inner,)`.
        uniform: A number in `[0, 1)` per decision, shape `(B, depth)`; 0.5 takes the likelier branch.
        items: Written: the items reached, shape `(B,)`.
    """
    n_inner = len(left)
    for r in range(len(query)):
        node, level = np.int32(0), 0
        while node < n_inner:
            x = np.float32(0)
            for d in range(query.shape[1]):
                x += query[r, d] * nodes[node, d]
            goes_left = uniform[r, level] * (np.float32(1) + np.exp(-x)) <= np.float32(1)
            node = left[node] if goes_left else right[node]
            level += 1
        items[r] = node - n_inner


def _scores(query: torch.Tensor, nodes: torch.Tensor, pairs: NDArray[np.int32]) -> torch.Tensor:
    scores: torch.Tensor = _NodeScores.apply(query, nodes, pairs)  # type: ignore[no-untyped-call]  # torch
    return scores


class _NodeScores(torch.autograd.Function):
    """`query[r] . nodes[pairs[r, level]]`, compiled, without a copy of nodes per decision."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  # torch's own
        query: torch.Tensor,
        nodes: torch.Tensor,
        pairs: NDArray[np.int32],
    ) -> torch.Tensor:
        q = np.ascontiguousarray(query.detach().cpu().numpy())
        table = nodes.detach().cpu().numpy()
        scores = np.zeros(pairs.shape, dtype=np.float32)
        score_decisions(0, len(q), q, table, pairs, scores)
        ctx.given = (q, table, pairs, query.device)
        return torch.from_numpy(scores).to(query.device)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401  # torch's own
        *gradients: torch.Tensor,
    ) -> tuple[torch.Tensor | None, ...]:
        q, table, pairs, device = ctx.given
        query_gradient = np.empty_like(q)
        table_gradient = np.zeros_like(table)
        g = np.ascontiguousarray(gradients[0].cpu().numpy())
        push_back_scores(0, q.shape[1], g, q, table, pairs, query_gradient, table_gradient)
        return (
            torch.from_numpy(query_gradient).to(device),
            torch.from_numpy(table_gradient).to(device),
            None,
        )
