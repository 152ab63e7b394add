"""NGCF compiled: training and propagation on the rows that a step needs.

The plain path in `ngcf` is the reference. What is saved here, without changing the result: layer L is
computed for the batch's nodes alone, layer L-1 for these and their neighbours, and so on, forward and
backward; sums over neighbours, products and activations are fused over blocks that stay in the cache.
The steps of Adam in fine-tuning move few embeddings, so layer 1 is taken from the clean victim except
around those. What comes before them, BPR beside the clean run, is in `ngcf_warm_kernel`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from recattack_gym.victims.graph import InteractionGraph
from recattack_gym.victims.graph_kernel import (
    GraphArrays,
    add_neighbours,
    graph_arrays,
    push_to_neighbours,
    with_neighbours,
)
from recattack_gym.victims.kernels import adam_rows, compiled, dot

SLOPE = 0.2
"""Of LeakyReLU below zero."""

BLOCK = 256
"""Nodes per matrix product."""


class Parameters(NamedTuple):
    """What NGCF learns; also its gradients and moments.

    Attributes:
        embeddings: Shape `(n_nodes, d)`.
        weights: Shape `(n_layers, 2 * d, d)`.
        biases: Shape `(n_layers, d)`.
    """

    embeddings: NDArray[np.float32]
    weights: NDArray[np.float32]
    biases: NDArray[np.float32]


class Workspace(NamedTuple):
    """Buffers of one thread; V nodes, L layers, width `w = (L + 1) * d`.

    Attributes:
        first: First moments of Adam; one row per embedding that may move.
        second: Second moments, likewise.
        gradient: All zero between steps.
        layers: Shape `(L, V, d)`: outputs of layers 1 to L, before the L2 norm.
        sums: Shape `(L, V, d)`: normalised sums over neighbours, inputs of layers 1 to L.
        through: Shape `(2, V, d)`: gradients of sums over neighbours; layers take turns.
        final: Shape `(V, w)`: concatenated layers; in training of the batch's nodes only.
        final_gradient: Shape `(V, w)`: of the batch's nodes.
        nodes: Shape `(L + 1, V)`: the nodes that each layer is computed for.
        n_nodes: Shape `(L + 1,)`: how many of them.
        place: Shape `(V,)`: where a batch node is in `nodes[L]`; -1 elsewhere.
        mark: Shape `(V,)`, all false.
        inputs: Shape `(BLOCK, 2 * d)`.
        inputs_gradient: Shape `(BLOCK, 2 * d)`.
        outputs: Shape `(BLOCK, d)`.
        weight_part: Shape `(2 * d, d)`.
    """

    first: Parameters
    second: Parameters
    gradient: Parameters
    layers: NDArray[np.float32]
    sums: NDArray[np.float32]
    through: NDArray[np.float32]
    final: NDArray[np.float32]
    final_gradient: NDArray[np.float32]
    nodes: NDArray[np.int32]
    n_nodes: NDArray[np.int64]
    place: NDArray[np.int32]
    mark: NDArray[np.bool_]
    inputs: NDArray[np.float32]
    inputs_gradient: NDArray[np.float32]
    outputs: NDArray[np.float32]
    weight_part: NDArray[np.float32]


def make_parameters(n_nodes: int, n_layers: int, size: int) -> Parameters:
    """Return zeros of the given sizes."""
    return Parameters(
        np.zeros((n_nodes, size), dtype=np.float32),
        np.zeros((n_layers, 2 * size, size), dtype=np.float32),
        np.zeros((n_layers, size), dtype=np.float32),
    )


def make_workspace(n_nodes: int, n_layers: int, size: int, n_moving: int) -> Workspace:
    """Return the buffers of one thread for at most `n_moving` embeddings that move."""
    width = (n_layers + 1) * size

    def floats(*shape: int) -> NDArray[np.float32]:
        return np.zeros(shape, dtype=np.float32)

    return Workspace(
        first=make_parameters(n_moving, n_layers, size),
        second=make_parameters(n_moving, n_layers, size),
        gradient=make_parameters(n_nodes, n_layers, size),
        layers=floats(n_layers, n_nodes, size),
        sums=floats(n_layers, n_nodes, size),
        through=floats(2, n_nodes, size),
        final=floats(n_nodes, width),
        final_gradient=floats(n_nodes, width),
        nodes=np.zeros((n_layers + 1, n_nodes), dtype=np.int32),
        n_nodes=np.zeros(n_layers + 1, dtype=np.int64),
        place=np.full(n_nodes, -1, dtype=np.int32),
        mark=np.zeros(n_nodes, dtype=np.bool_),
        inputs=floats(BLOCK, 2 * size),
        inputs_gradient=floats(BLOCK, 2 * size),
        outputs=floats(BLOCK, size),
        weight_part=floats(2 * size, size),
    )


class Trainer:
    """Clean training in place, one call per epoch; BLAS is held to one thread."""

    def __init__(self, parameters: Parameters, graph: InteractionGraph, n_items: int) -> None:
        self._parameters, self._graph, self._n_items = parameters, graph_arrays(graph), n_items
        n_layers, size = parameters.biases.shape
        self._work = make_workspace(graph.n_nodes, n_layers, size, graph.n_nodes)
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
        with threadpool_limits(limits=1, user_api="blas"):
            train(
                self._parameters,
                self._graph,
                np.ascontiguousarray(users, dtype=np.int32),
                np.ascontiguousarray(items, dtype=np.int32),
                np.ascontiguousarray(negatives, dtype=np.int32),
                batch_indptr,
                self._n_items,
                learning_rate,
                reg,
                self._steps,
                self._work,
            )
        self._steps += len(batch_indptr) - 1


@compiled
def train(
    parameters: Parameters,
    graph: GraphArrays,
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
    """Take one Adam step per batch; the compiled twin of the plain path's loop.

    Args:
        parameters: Changed in place.
        graph: What to propagate over.
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
    gradient, first, second = work.gradient, work.first, work.second
    for b in range(len(batch_indptr) - 1):
        batch = slice(batch_indptr[b], batch_indptr[b + 1])
        _select_batch(graph, users[batch], items[batch], negatives[batch], n_items, work)
        layer1, everyone = work.nodes[1, : work.n_nodes[1]], work.nodes[0, : work.n_nodes[0]]
        _forward(parameters, graph, layer1, work)
        _concatenate(parameters, work)
        _loss_gradient(users[batch], items[batch], negatives[batch], n_items, reg, work)
        _backward(parameters, graph, layer1, everyone, True, work)  # noqa: FBT003
        step = first_step + b + 1
        for weights, slope, mean, square in (
            (parameters.embeddings, gradient.embeddings, first.embeddings, second.embeddings),
            (parameters.biases, gradient.biases, first.biases, second.biases),
        ):
            adam_rows(
                weights.reshape(-1),
                slope.reshape(-1),
                mean.reshape(-1),
                square.reshape(-1),
                weights.size,
                learning_rate,
                step,
            )
        adam_rows(
            parameters.weights.reshape(-1),
            gradient.weights.reshape(-1),
            first.weights.reshape(-1),
            second.weights.reshape(-1),
            parameters.weights.size,
            learning_rate,
            step,
        )


@compiled
def finetune(
    parameters: Parameters,
    graph: GraphArrays,
    users: NDArray[np.int32],
    items: NDArray[np.int32],
    negatives: NDArray[np.int32],
    batch_indptr: NDArray[np.int64],
    n_items: int,
    learning_rate: float,
    reg: float,
    moving: NDArray[np.int32],
    around: NDArray[np.int32],
    work: Workspace,
) -> None:
    """Take one step per batch of a fresh Adam on some embeddings, all else being fixed.

    Args:
        parameters: `embeddings` is changed in place at `moving`.
        graph: What to propagate over.
        users: See `train`, also for the next six.
        items: Shape `(S,)`.
        negatives: Shape `(S,)`.
        batch_indptr: Shape `(n_batches + 1,)`.
        n_items: User `u` is node `n_items + u`.
        learning_rate: Step size.
        reg: L2 penalty.
        moving: The nodes whose embeddings move.
        around: These and their neighbours; for all other nodes, `work.sums[0]` and `work.layers[0]`
            must be right already.
        work: Buffers.
    """
    first, second = work.first.embeddings, work.second.embeddings
    first[:] = np.float32(0.0)
    second[:] = np.float32(0.0)
    for b in range(len(batch_indptr) - 1):
        batch = slice(batch_indptr[b], batch_indptr[b + 1])
        _select_batch(graph, users[batch], items[batch], negatives[batch], n_items, work)
        _forward(parameters, graph, around, work)
        _concatenate(parameters, work)
        _loss_gradient(users[batch], items[batch], negatives[batch], n_items, reg, work)
        _backward(parameters, graph, around, moving, False, work)  # noqa: FBT003
        gradient = work.gradient.embeddings
        for r in range(len(moving)):
            row, slope = parameters.embeddings[moving[r]], gradient[moving[r]]
            adam_rows(row, slope, first[r], second[r], len(row), learning_rate, b + 1)
        gradient[:] = np.float32(0.0)


@compiled
def propagate_all(
    parameters: Parameters, graph: GraphArrays, around: NDArray[np.int32], work: Workspace
) -> None:
    """Write what all nodes are scored by to `work.final`, row by node; `around` as in `finetune`."""
    for level in range(len(work.n_nodes)):
        _select_all(work, level)
    _forward(parameters, graph, around, work)
    _concatenate(parameters, work)


@compiled
def _select_all(work: Workspace, level: int) -> None:
    nodes = work.nodes[level]
    for v in range(len(nodes)):
        nodes[v] = v
    work.n_nodes[level] = len(nodes)


@compiled
def _select_batch(
    graph: GraphArrays,
    users: NDArray[np.int32],
    items: NDArray[np.int32],
    negatives: NDArray[np.int32],
    n_items: int,
    work: Workspace,
) -> None:
    top = len(work.n_nodes) - 1
    mark, nodes = work.mark, work.nodes[top]
    for s in range(len(users)):
        mark[n_items + users[s]] = True
        mark[items[s]] = True
        mark[negatives[s]] = True
    n = 0
    for v in range(len(mark)):
        if mark[v]:
            nodes[n] = v
            n += 1
            mark[v] = False
    work.n_nodes[top] = n
    for level in range(top - 1, -1, -1):
        above = work.n_nodes[level + 1]
        if 2 * above > len(mark):  # their neighbours are then nearly everyone
            _select_all(work, level)
        else:
            work.n_nodes[level] = with_neighbours(
                graph, work.nodes[level + 1], above, mark, work.nodes[level]
            )


@compiled
def _forward(
    parameters: Parameters, graph: GraphArrays, layer1: NDArray[np.int32], work: Workspace
) -> None:
    """Compute layer 1 for `layer1` and the others for `work.nodes`."""
    size = parameters.embeddings.shape[1]
    inputs, outputs = work.inputs, work.outputs
    for layer in range(len(parameters.weights)):
        below = parameters.embeddings if layer == 0 else work.layers[layer - 1]
        needed = layer1 if layer == 0 else work.nodes[layer + 1, : work.n_nodes[layer + 1]]
        sums, layers = work.sums[layer], work.layers[layer]
        weight, bias = parameters.weights[layer], parameters.biases[layer]
        for block in range(0, len(needed), BLOCK):
            nodes = needed[block : block + BLOCK]
            for v in nodes:
                sums[v] = np.float32(0.0)
            add_neighbours(graph, nodes, below, sums)
            _join(nodes, sums, below, inputs)
            np.dot(inputs[: len(nodes)], weight, outputs[: len(nodes)])
            for r in range(len(nodes)):
                out, above = outputs[r], layers[nodes[r]]
                for d in range(size):
                    x = out[d] + bias[d]
                    above[d] = max(x, np.float32(SLOPE) * x)


@compiled
def _join(
    nodes: NDArray[np.int32],
    sums: NDArray[np.float32],
    below: NDArray[np.float32],
    inputs: NDArray[np.float32],
) -> None:
    """Write what the weights multiply, the sum and the product of a node's own row and its sum."""
    size = sums.shape[1]
    for r in range(len(nodes)):
        total, own = sums[nodes[r]], below[nodes[r]]
        added, multiplied = inputs[r, :size], inputs[r, size:]
        for d in range(size):
            added[d] = total[d] + own[d]
        for d in range(size):
            multiplied[d] = total[d] * own[d]


@compiled
def _concatenate(parameters: Parameters, work: Workspace) -> None:
    """Write the layers of the last layer's nodes side by side, divided by their norms."""
    embeddings, final = parameters.embeddings, work.final
    size, n_layers = embeddings.shape[1], len(parameters.weights)
    nodes = work.nodes[n_layers, : work.n_nodes[n_layers]]
    for r in range(len(nodes)):
        row, own = final[r, :size], embeddings[nodes[r]]
        for d in range(size):
            row[d] = own[d]
    for layer in range(n_layers):
        layers = work.layers[layer]
        for r in range(len(nodes)):
            out, unit = layers[nodes[r]], final[r, (layer + 1) * size : (layer + 2) * size]
            inverse = _inverse_norm(out)
            for d in range(size):
                unit[d] = inverse * out[d]


@compiled
def _inverse_norm(row: NDArray[np.float32]) -> np.float32:
    return np.float32(1.0 / max(np.sqrt(dot(row, row)), 1e-12))


@compiled
def _loss_gradient(
    users: NDArray[np.int32],
    items: NDArray[np.int32],
    negatives: NDArray[np.int32],
    n_items: int,
    reg: float,
    work: Workspace,
) -> None:
    """Write the gradient of one batch's loss by its nodes' layers, through the L2 norm."""
    n_layers, size = len(work.layers), work.layers.shape[2]
    nodes = work.nodes[n_layers, : work.n_nodes[n_layers]]
    place, final, gradient = work.place, work.final, work.final_gradient
    width = final.shape[1]
    for r in range(len(nodes)):
        place[nodes[r]] = r
        gradient[r] = np.float32(0.0)
    share = np.float32(1.0 / len(users))
    decay = np.float32(reg) * share
    for s in range(len(users)):
        u, i, j = place[n_items + users[s]], place[items[s]], place[negatives[s]]
        user, item, other = final[u], final[i], final[j]
        to_user, to_item, to_other = gradient[u], gradient[i], gradient[j]
        margin = np.float32(0.0)
        for x in range(width):
            margin += user[x] * (item[x] - other[x])
        slope = -share / (np.float32(1.0) + np.exp(margin))
        for x in range(width):
            to_user[x] += slope * (item[x] - other[x])
        for x in range(width):
            to_item[x] += slope * user[x]
        for x in range(width):
            to_other[x] -= slope * user[x]
        for d in range(size):
            to_user[d] += decay * user[d]
        for d in range(size):
            to_item[d] += decay * item[d]
        for d in range(size):
            to_other[d] += decay * other[d]
    for layer in range(n_layers):
        layers = work.layers[layer]
        start, end = (layer + 1) * size, (layer + 2) * size
        for r in range(len(nodes)):
            unit, given = final[r, start:end], gradient[r, start:end]
            inverse, along = _inverse_norm(layers[nodes[r]]), dot(unit, given)
            for d in range(size):
                given[d] = inverse * (given[d] - along * unit[d])
    for v in nodes:
        place[v] = -1


@compiled
def _backward(
    parameters: Parameters,
    graph: GraphArrays,
    layer1: NDArray[np.int32],
    moving: NDArray[np.int32],
    trains_weights: bool,  # noqa: FBT001  # kernels take no keywords
    work: Workspace,
) -> None:
    """Turn the loss's gradient into that of the parameters, from the last layer down.

    `gradient.embeddings` holds, layer by layer, what each node's output has got from above except
    through its neighbours; that part waits in `through`, one row per node, until the node's turn.
    The result is right for the embeddings of `moving`, whose neighbours must be in `layer1`.
    """
    n_layers, size = parameters.biases.shape
    gradient, inputs, outputs = work.gradient.embeddings, work.inputs, work.outputs
    inputs_gradient, weight_part = work.inputs_gradient, work.weight_part
    is_waiting = False
    _add_loss(n_layers, work, gradient)
    for layer in range(n_layers - 1, -1, -1):
        below = parameters.embeddings if layer == 0 else work.layers[layer - 1]
        layers, sums, weight = work.layers[layer], work.sums[layer], parameters.weights[layer]
        to_weight, to_bias = work.gradient.weights[layer], work.gradient.biases[layer]
        needed = layer1 if layer == 0 else work.nodes[layer + 1, : work.n_nodes[layer + 1]]
        waiting, through = work.through[(layer + 1) % 2], work.through[layer % 2]
        if len(needed) < len(through):
            through[:] = np.float32(0.0)
        for block in range(0, len(needed), BLOCK):
            nodes = needed[block : block + BLOCK]
            n = len(nodes)
            if is_waiting:
                add_neighbours(graph, nodes, waiting, gradient)
            for r in range(n):
                back, out, given = outputs[r], layers[nodes[r]], gradient[nodes[r]]
                for d in range(size):
                    rate = np.float32(1.0) if out[d] > np.float32(0.0) else np.float32(SLOPE)
                    back[d] = rate * given[d]
            np.dot(outputs[:n], weight.T, inputs_gradient[:n])
            if trains_weights:
                _join(nodes, sums, below, inputs)
                np.dot(inputs[:n].T, outputs[:n], weight_part)
                for x in range(2 * size):
                    for d in range(size):
                        to_weight[x, d] += weight_part[x, d]
                for r in range(n):
                    back = outputs[r]
                    for d in range(size):
                        to_bias[d] += back[d]
            for r in range(n):
                v = nodes[r]
                own, total, to_own, to_total = below[v], sums[v], gradient[v], through[v]
                by_sum, by_product = inputs_gradient[r, :size], inputs_gradient[r, size:]
                for d in range(size):
                    to_own[d] = by_sum[d] + by_product[d] * total[d]
                for d in range(size):
                    to_total[d] = by_sum[d] + by_product[d] * own[d]
        _add_loss(layer, work, gradient)
        is_waiting = 4 * len(needed) > len(through)
        if layer > 0 and not is_waiting:
            push_to_neighbours(graph, needed, through, gradient)
    add_neighbours(graph, moving, work.through[0], gradient)


@compiled
def _add_loss(layer: int, work: Workspace, gradient: NDArray[np.float32]) -> None:
    """Add the loss's own gradient of one layer at the batch's nodes."""
    top, size = len(work.layers), gradient.shape[1]
    nodes = work.nodes[top, : work.n_nodes[top]]
    given = work.final_gradient[:, layer * size : (layer + 1) * size]
    for r in range(len(nodes)):
        target, change = gradient[nodes[r]], given[r]
        for d in range(size):
            target[d] += change[d]
