"""LightGCN compiled: averaging the layers, clean training, and fine-tuning of final embeddings."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recattack_gym.victims.graph import InteractionGraph
from recattack_gym.victims.graph_kernel import GraphArrays, add_neighbours, graph_arrays
from recattack_gym.victims.kernels import adam_rows, compiled


class Workspace(NamedTuple):
    """Buffers of clean training, all of shape `(n_nodes, d)`.

    Attributes:
        final: What nodes are scored by.
        final_gradient: Of the loss by `final`; zero between steps.
        gradient: Of the loss by the embeddings; zero between steps.
        first: First moment of Adam.
        second: Second moment of Adam.
        layer: One layer of propagation.
        next_layer: The next one.
    """

    final: NDArray[np.float32]
    final_gradient: NDArray[np.float32]
    gradient: NDArray[np.float32]
    first: NDArray[np.float32]
    second: NDArray[np.float32]
    layer: NDArray[np.float32]
    next_layer: NDArray[np.float32]


def make_workspace(n_nodes: int, size: int) -> Workspace:
    """Return zeros."""
    return Workspace(*(np.zeros((n_nodes, size), dtype=np.float32) for _ in Workspace._fields))


class Trainer:
    """Clean training in place, one call per epoch.

    Args:
        embeddings: Layer 0, shape `(n_nodes, d)`; changed.
        graph: What to propagate over.
        n_layers: Rounds of propagation.
    """

    def __init__(
        self, embeddings: NDArray[np.float32], graph: InteractionGraph, n_layers: int
    ) -> None:
        self._embeddings, self._graph, self._n_layers = embeddings, graph, n_layers
        self._work = make_workspace(*embeddings.shape)
        self._steps = 0

    def train(
        self,
        users: NDArray[np.int32] | NDArray[np.int64],
        items: NDArray[np.int32] | NDArray[np.int64],
        negatives: NDArray[np.int32] | NDArray[np.int64],
        batch_indptr: NDArray[np.int64],
        learning_rate: float,
        *,
        reg: float,
    ) -> None:
        """Take one Adam step per batch; see the kernel of the same name."""
        train(
            self._embeddings,
            graph_arrays(self._graph),
            self._n_layers,
            np.ascontiguousarray(users, dtype=np.int32),
            np.ascontiguousarray(items, dtype=np.int32),
            np.ascontiguousarray(negatives, dtype=np.int32),
            batch_indptr,
            self._graph.n_items,
            learning_rate,
            reg,
            self._steps,
            self._work,
        )
        self._steps += len(batch_indptr) - 1


def mean_of_layers(
    graph: InteractionGraph, n_layers: int, rows: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the mean of layers 0 to `n_layers` above layer 0 `rows`; shape `(n_nodes, d)`."""
    mean, layer, next_layer = (np.empty_like(rows) for _ in range(3))
    everyone = np.arange(len(rows), dtype=np.int32)
    average_layers(graph_arrays(graph), n_layers, everyone, rows, layer, next_layer, mean)
    return mean


@compiled
def average_layers(
    graph: GraphArrays,
    n_layers: int,
    needed: NDArray[np.int32],
    rows: NDArray[np.float32],
    layer: NDArray[np.float32],
    next_layer: NDArray[np.float32],
    mean: NDArray[np.float32],
) -> None:
    """Write the mean of layers 0 to `n_layers` (He et al., SIGIR 2020, Eqs. 7 and 8).

    The operator is symmetric, so this is its own backward.

    Args:
        graph: `A` and `D^-1/2`.
        n_layers: Rounds of propagation.
        needed: The nodes whose mean is wanted; distinct.
        rows: Layer 0, shape `(n_nodes, d)`.
        layer: Scratch of the same shape, as the next one.
        next_layer: Scratch.
        mean: Written, shape `(n_nodes, d)`; right at `needed`.
    """
    everyone = np.arange(len(rows)).astype(np.int32)
    flat, total = rows.reshape(-1), mean.reshape(-1)
    for x in range(len(flat)):
        total[x] = flat[x]
    below, above = rows, layer
    for step in range(n_layers):
        above[:] = np.float32(0.0)
        add_neighbours(graph, needed if step == n_layers - 1 else everyone, below, above)
        added = above.reshape(-1)
        for x in range(len(added)):
            total[x] += added[x]
        below = above
        above = next_layer if step % 2 == 0 else layer
    share = np.float32(1.0 / (n_layers + 1))
    for x in range(len(total)):
        total[x] *= share


@compiled
def train(
    embeddings: NDArray[np.float32],
    graph: GraphArrays,
    n_layers: int,
    users: NDArray[np.int32],
    items: NDArray[np.int32],
    negatives: NDArray[np.int32],
    batch_indptr: NDArray[np.int64],
    n_items: int,
    learning_rate: float,
    reg: float,
    first_step: int,
    work: Workspace,
) -> None:
    """Take one Adam step per batch; the compiled twin of `LightGCN._train`.

    Args:
        embeddings: Layer 0, shape `(n_nodes, d)`; changed.
        graph: What to propagate over.
        n_layers: Rounds of propagation.
        users: User ids, shape `(S,)`.
        items: Clicked items, shape `(S,)`.
        negatives: Items that were not clicked, shape `(S,)`.
        batch_indptr: Batch `b` is `batch_indptr[b]:batch_indptr[b + 1]`.
        n_items: User `u` is node `n_items + u`.
        learning_rate: Step size.
        reg: L2 penalty on layer 0 of each example's three nodes.
        first_step: Steps taken before with the same moments.
        work: Buffers.
    """
    everyone = np.arange(len(embeddings)).astype(np.int32)
    for b in range(len(batch_indptr) - 1):
        start, end = batch_indptr[b], batch_indptr[b + 1]
        average_layers(
            graph, n_layers, everyone, embeddings, work.layer, work.next_layer, work.final
        )
        share = np.float32(1.0 / (end - start))
        decay = np.float32(reg) * share
        for s in range(start, end):
            u, i, j = n_items + users[s], items[s], negatives[s]
            add_pair(work.final, u, i, j, share, work.final_gradient)
        average_layers(
            graph,
            n_layers,
            everyone,
            work.final_gradient,
            work.layer,
            work.next_layer,
            work.gradient,
        )
        work.final_gradient[:] = np.float32(0.0)
        for s in range(start, end):
            for node in (np.int64(n_items + users[s]), np.int64(items[s]), np.int64(negatives[s])):
                row, slope = embeddings[node], work.gradient[node]
                for d in range(len(row)):
                    slope[d] += decay * row[d]
        adam_rows(
            embeddings.reshape(-1),
            work.gradient.reshape(-1),
            work.first.reshape(-1),
            work.second.reshape(-1),
            embeddings.size,
            learning_rate,
            first_step + b + 1,
        )


@compiled
def add_pair(
    final: NDArray[np.float32],
    u: int,
    i: int,
    j: int,
    share: np.float32,
    gradient: NDArray[np.float32],
) -> None:
    """Add the gradient of `share * softplus(x_uj - x_ui)` at rows u, i and j."""
    user, item, other = final[u], final[i], final[j]
    to_user, to_item, to_other = gradient[u], gradient[i], gradient[j]
    margin = np.float32(0.0)
    for d in range(len(user)):
        margin += user[d] * (item[d] - other[d])
    slope = -share / (np.float32(1.0) + np.exp(margin))
    for d in range(len(user)):
        to_user[d] += slope * (item[d] - other[d])
    for d in range(len(user)):
        to_item[d] += slope * user[d]
    for d in range(len(user)):
        to_other[d] -= slope * user[d]


@compiled
def train_factors(
    users: NDArray[np.float32],
    items: NDArray[np.float32],
    share: NDArray[np.float32],
    user_rows: NDArray[np.int32],
    item_rows: NDArray[np.int32],
    batch_indptr: NDArray[np.int64],
    learning_rate: float,
    reg: float,
    user_gradient: NDArray[np.float32],
    item_gradient: NDArray[np.float32],
) -> None:
    """Minimise the BPR loss of final embeddings batch by batch; the twin of `LightGCN._train_final`.

    Args:
        users: Shape `(n, d)`; changed, like the next one.
        items: Shape `(n_items, d)`.
        share: What an item's steps are scaled by, shape `(n_items,)`.
        user_rows: Shape `(S,)`: the row of each example's user.
        item_rows: Shape `(S, 2)`: click, negative.
        batch_indptr: Shape `(n_batches + 1,)`.
        learning_rate: Step size.
        reg: L2 penalty on each example's three rows.
        user_gradient: Zero, shape of `users`; zero again afterwards, like the next one.
        item_gradient: Shape of `items`.
    """
    d, zero = users.shape[1], np.float32(0.0)
    rate, shrink = np.float32(learning_rate), np.float32(reg)
    for batch in range(len(batch_indptr) - 1):
        start, end = batch_indptr[batch], batch_indptr[batch + 1]
        for s in range(start, end):
            i, j = item_rows[s, 0], item_rows[s, 1]
            p, q, r = users[user_rows[s]], items[i], items[j]
            to_p, to_q, to_r = user_gradient[user_rows[s]], item_gradient[i], item_gradient[j]
            margin = zero
            for x in range(d):
                margin += p[x] * (q[x] - r[x])
            slope = np.float32(1.0) / (np.float32(1.0) + np.exp(margin))
            for x in range(d - 1):  # the last one multiplies the item bias
                to_p[x] += shrink * p[x] - slope * (q[x] - r[x])
            if share[i] > zero:
                for x in range(d):
                    to_q[x] += shrink * q[x] - slope * p[x]
            if share[j] > zero:
                for x in range(d):
                    to_r[x] += shrink * r[x] + slope * p[x]
        for s in range(start, end):
            _take_step(users[user_rows[s]], user_gradient[user_rows[s]], rate)
            for item in item_rows[s]:
                if share[item] > zero:
                    _take_step(items[item], item_gradient[item], rate * share[item])


@compiled
def _take_step(row: NDArray[np.float32], gradient: NDArray[np.float32], rate: np.float32) -> None:
    """Move against the gradient and clear it: a row that comes again in a batch has none left.

    As in `mf_kernel`, which is no shared source (`kernels.SHARED_SOURCES`) of other files' machine code.
    """
    for x in range(len(row)):
        row[x] -= rate * gradient[x]
    gradient[:] = np.float32(0.0)
