"""Compiled training of NeuMF; the fast twin of `NeuMF._train`.

The first layer is linear in the user's and the item's embedding, so it is computed once per distinct
user and item of a batch and added up per example. The other layers run over a few hundred examples at
a time, which stay in the cache.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from recattack_gym.victims.epochs import Epoch
from recattack_gym.victims.kernels import adam_rows, compiled

CHUNK = 256
"""Examples that go through the layers together."""


class Weights(NamedTuple):
    """All parameters, or arrays of the same shapes (gradient, moments); float32, C order.

    `d` is the embedding size, `h2` and `h3` the widths of the second and third layer.
    """

    users: NDArray[np.float32]
    """Shape `(n_users, 2d)`: the GMF part, then the MLP part; `items (n_items, 2d)` alike."""
    items: NDArray[np.float32]
    user_layer: NDArray[np.float32]
    """Shape `(d, d)`: the half of the first layer that sees the user; `item_layer` the other."""
    item_layer: NDArray[np.float32]
    bias1: NDArray[np.float32]
    layer2: NDArray[np.float32]
    """Shape `(d, h2)`."""
    bias2: NDArray[np.float32]
    layer3: NDArray[np.float32]
    """Shape `(h2, h3)`."""
    bias3: NDArray[np.float32]
    gmf_output: NDArray[np.float32]
    """Shape `(d,)`."""
    mlp_output: NDArray[np.float32]
    """Shape `(h3,)`."""
    output_bias: NDArray[np.float32]
    """Shape `(1,)`."""


class Part(NamedTuple):
    """The distinct users, or items, of a batch and their half of the first layer."""

    place: NDArray[np.int32]
    """Shape `(n_rows,)`: where each row is in the batch, -1 where it is not (and between batches)."""
    rows: NDArray[np.int64]
    """Shape `(B,)`: the distinct rows in order of first use."""
    inputs: NDArray[np.float32]
    """Shape `(B, d)`: their MLP embeddings, and later the gradient of those."""
    outputs: NDArray[np.float32]
    """Shape `(B, d)`: their half of the first layer's input."""
    outputs_gradient: NDArray[np.float32]
    """Shape `(B, d)`; zero between batches."""


class Layers(NamedTuple):
    """What a chunk of examples looks like between the layers; first axis `CHUNK`."""

    hidden1: NDArray[np.float32]
    hidden2: NDArray[np.float32]
    hidden3: NDArray[np.float32]
    gradient1: NDArray[np.float32]
    gradient2: NDArray[np.float32]
    gradient3: NDArray[np.float32]


class Workspace(NamedTuple):
    """Buffers of clean training."""

    gradient: Weights
    """Zero between steps, as far as it is not overwritten."""
    first: Weights
    """Adam's first moment; zero before a run."""
    second: Weights
    """Adam's second moment, likewise."""
    user_part: Part
    item_part: Part
    layers: Layers


def make_workspace(weights: Weights, batch_size: int, n_negatives: int) -> Workspace:
    """Allocate buffers for batches of at most `batch_size` clicks.

    Args:
        weights: What is trained.
        batch_size: Clicks.
        n_negatives: Items per click.
    """
    d = len(weights.gmf_output)

    def zeros() -> Weights:
        return Weights(*(np.zeros_like(array) for array in weights))

    def part(n_rows: int, n_used: int) -> Part:
        size = min(n_rows, n_used)
        return Part(
            place=np.full(n_rows, -1, dtype=np.int32),
            rows=np.zeros(size, dtype=np.int64),
            inputs=np.zeros((size, d), dtype=np.float32),
            outputs=np.zeros((size, d), dtype=np.float32),
            outputs_gradient=np.zeros((size, d), dtype=np.float32),
        )

    return Workspace(
        gradient=zeros(),
        first=zeros(),
        second=zeros(),
        user_part=part(len(weights.users), batch_size),
        item_part=part(len(weights.items), batch_size * (1 + n_negatives)),
        layers=make_layers(weights, 1 + n_negatives),
    )


def make_layers(weights: Weights, at_least: int) -> Layers:
    """Return buffers for chunks of `CHUNK` examples, or of `at_least` if that is more."""
    d, h2 = weights.layer2.shape
    h3 = len(weights.mlp_output)
    chunk = max(CHUNK, at_least)
    return Layers(*(np.zeros((chunk, width), dtype=np.float32) for width in (d, h2, h3, d, h2, h3)))


def fit(
    weights: dict[str, NDArray[np.float32]],
    epochs: Iterator[Epoch],
    after_epoch: Callable[[int, dict[str, NDArray[np.float32]]], None],
    *,
    reg: float,
    learning_rate: float,
) -> None:
    """Train in place.

    Args:
        weights: By the names of `Weights`.
        epochs: What to train on; every batch is an Adam step.
        after_epoch: Told the number of each epoch, from 1, and what it has left.
        reg: L2 penalty.
        learning_rate: Adam's.
    """
    arrays = Weights(**weights)
    work: Workspace | None = None
    step = 0
    with threadpool_limits(limits=1, user_api="blas"):
        for number, (users, items, negatives, batches) in enumerate(epochs, start=1):
            if work is None:  # batches differ in size, and none is larger than the epoch
                work = make_workspace(arrays, len(users), negatives.shape[1])
            train(arrays, work, users, items, negatives, batches, reg, learning_rate, step)
            step += len(batches) - 1
            after_epoch(number, weights)


@compiled
def train(
    weights: Weights,
    work: Workspace,
    users: NDArray[np.int32],
    items: NDArray[np.int32],
    negatives: NDArray[np.int32],
    batches: NDArray[np.int64],
    reg: float,
    learning_rate: float,
    n_steps: int,
) -> None:
    """Take one Adam step on the mean loss per batch of clicks, in place.

    Args:
        weights: Changed.
        work: Buffers.
        users: Shape `(S,)`.
        items: Shape `(S,)`.
        negatives: Shape `(S, n_negatives)`.
        batches: Shape `(n_batches + 1,)`: bounds of the batches in `users`.
        reg: L2 penalty on the embeddings of each example.
        learning_rate: Step size.
        n_steps: How many steps this run has taken before.
    """
    n_negatives = negatives.shape[1]
    per_chunk = max(CHUNK // (1 + n_negatives), 1)
    for b in range(len(batches) - 1):
        start, stop = batches[b], batches[b + 1]
        n_users, n_items = 0, 0
        for s in range(start, stop):
            n_users = _gather(work.user_part, users[s], n_users)
            n_items = _gather(work.item_part, items[s], n_items)
            for n in range(n_negatives):
                n_items = _gather(work.item_part, negatives[s, n], n_items)
        _first_layer(weights.users, weights.user_layer, work.user_part, n_users)
        _first_layer(weights.items, weights.item_layer, work.item_part, n_items)
        for chunk in range(start, stop, per_chunk):
            end = min(chunk + per_chunk, stop)
            _chunk_gradient(
                weights,
                work,
                users[chunk:end],
                items[chunk:end],
                negatives[chunk:end],
                reg,
                1.0 / ((stop - start) * (1 + n_negatives)),
            )
        _first_layer_gradient(
            weights.user_layer,
            work.gradient.users,
            work.gradient.user_layer,
            work.user_part,
            n_users,
        )
        _first_layer_gradient(
            weights.item_layer,
            work.gradient.items,
            work.gradient.item_layer,
            work.item_part,
            n_items,
        )
        _adam(weights, work, learning_rate, n_steps + b + 1)


@compiled
def _gather(part: Part, row: int, n: int) -> int:
    if part.place[row] >= 0:
        return n
    part.place[row] = n
    part.rows[n] = row
    return n + 1


@compiled
def _first_layer(
    table: NDArray[np.float32], layer: NDArray[np.float32], part: Part, n: int
) -> None:
    d = len(layer)
    for r in range(n):
        row = part.rows[r]
        for j in range(d):
            part.inputs[r, j] = table[row, d + j]
    np.dot(part.inputs[:n], layer, part.outputs[:n])


@compiled
def _first_layer_gradient(
    layer: NDArray[np.float32],
    table_gradient: NDArray[np.float32],
    layer_gradient: NDArray[np.float32],
    part: Part,
    n: int,
) -> None:
    d = len(layer)
    np.dot(part.inputs[:n].T, part.outputs_gradient[:n], layer_gradient)
    np.dot(part.outputs_gradient[:n], layer.T, part.inputs[:n])
    for r in range(n):
        row = part.rows[r]
        part.place[row] = -1
        for j in range(d):
            table_gradient[row, d + j] += part.inputs[r, j]
            part.outputs_gradient[r, j] = np.float32(0.0)


@compiled
def upper_layers(weights: Weights, layers: Layers, n: int) -> None:
    """Write the second and third layer's activations of `n` examples from the first's."""
    zero = np.float32(0.0)
    hidden2, hidden3 = layers.hidden2[:n], layers.hidden3[:n]
    np.dot(layers.hidden1[:n], weights.layer2, hidden2)
    for x in range(n):
        for j in range(hidden2.shape[1]):
            hidden2[x, j] = max(hidden2[x, j] + weights.bias2[j], zero)
    np.dot(hidden2, weights.layer3, hidden3)
    for x in range(n):
        for j in range(hidden3.shape[1]):
            hidden3[x, j] = max(hidden3[x, j] + weights.bias3[j], zero)


@compiled
def score_pair(
    weights: Weights,
    hidden3: NDArray[np.float32],
    p: NDArray[np.float32],
    q: NDArray[np.float32],
) -> np.float32:
    """Return the score of one pair from its last hidden layer and its rows."""
    logit: np.float32 = weights.output_bias[0]
    for j in range(len(hidden3)):
        logit += hidden3[j] * weights.mlp_output[j]
    for j in range(len(weights.gmf_output)):
        logit += p[j] * q[j] * weights.gmf_output[j]
    return logit


@compiled
def _chunk_gradient(
    weights: Weights,
    work: Workspace,
    users: NDArray[np.int32],
    items: NDArray[np.int32],
    negatives: NDArray[np.int32],
    reg: float,
    share: float,
) -> None:
    """Add the gradient of a few clicks and their negatives, up to the first layer's halves."""
    gradient, user_part, item_part = work.gradient, work.user_part, work.item_part
    width = 1 + negatives.shape[1]
    n = len(users) * width
    d, h2 = weights.layer2.shape
    h3 = len(weights.mlp_output)
    zero, one = np.float32(0.0), np.float32(1.0)
    each, decay = np.float32(share), np.float32(reg * share)
    hidden1, hidden2, hidden3 = (
        work.layers.hidden1[:n],
        work.layers.hidden2[:n],
        work.layers.hidden3[:n],
    )
    gradient1, gradient2, gradient3 = (
        work.layers.gradient1[:n],
        work.layers.gradient2[:n],
        work.layers.gradient3[:n],
    )
    for x in range(n):
        s, c = divmod(x, width)
        p = user_part.outputs[user_part.place[users[s]]]
        q = item_part.outputs[item_part.place[items[s] if c == 0 else negatives[s, c - 1]]]
        for j in range(d):
            hidden1[x, j] = max(p[j] + q[j] + weights.bias1[j], zero)
    upper_layers(weights, work.layers, n)
    for x in range(n):
        s, c = divmod(x, width)
        user = users[s]
        item = items[s] if c == 0 else negatives[s, c - 1]
        p, q = weights.users[user], weights.items[item]
        logit = score_pair(weights, hidden3[x], p, q)
        bound = np.float32(80.0)  # exp(89) is not a float32
        error = one / (one + np.exp(-min(max(logit, -bound), bound)))
        if c == 0:
            error -= one
        error *= each
        gradient.output_bias[0] += error
        p_gradient, q_gradient = gradient.users[user], gradient.items[item]
        for j in range(d):
            gradient.gmf_output[j] += error * p[j] * q[j]
            p_gradient[j] += error * weights.gmf_output[j] * q[j]
            q_gradient[j] += error * weights.gmf_output[j] * p[j]
        if decay > zero:
            for j in range(2 * d):
                p_gradient[j] += decay * p[j]
                q_gradient[j] += decay * q[j]
        for j in range(h3):
            gradient.mlp_output[j] += error * hidden3[x, j]
            back = error * weights.mlp_output[j] if hidden3[x, j] > zero else zero
            gradient3[x, j] = back
            gradient.bias3[j] += back
    gradient.layer3[:] += np.dot(hidden2.T, gradient3)
    np.dot(gradient3, weights.layer3.T, gradient2)
    for x in range(n):
        for j in range(h2):
            back = gradient2[x, j] if hidden2[x, j] > zero else zero
            gradient2[x, j] = back
            gradient.bias2[j] += back
    gradient.layer2[:] += np.dot(hidden1.T, gradient2)
    np.dot(gradient2, weights.layer2.T, gradient1)
    for x in range(n):
        s, c = divmod(x, width)
        p_back = user_part.outputs_gradient[user_part.place[users[s]]]
        item = items[s] if c == 0 else negatives[s, c - 1]
        q_back = item_part.outputs_gradient[item_part.place[item]]
        for j in range(d):
            back = gradient1[x, j] if hidden1[x, j] > zero else zero
            p_back[j] += back
            q_back[j] += back
            gradient.bias1[j] += back


@compiled
def _adam(weights: Weights, work: Workspace, learning_rate: float, step: int) -> None:
    gradient, first, second = work.gradient, work.first, work.second
    for w, g, m, v in (
        (weights.users, gradient.users, first.users, second.users),
        (weights.items, gradient.items, first.items, second.items),
        (weights.user_layer, gradient.user_layer, first.user_layer, second.user_layer),
        (weights.item_layer, gradient.item_layer, first.item_layer, second.item_layer),
        (weights.layer2, gradient.layer2, first.layer2, second.layer2),
        (weights.layer3, gradient.layer3, first.layer3, second.layer3),
    ):
        adam_rows(
            w.reshape(-1), g.reshape(-1), m.reshape(-1), v.reshape(-1), w.size, learning_rate, step
        )
    for w, g, m, v in (
        (weights.bias1, gradient.bias1, first.bias1, second.bias1),
        (weights.bias2, gradient.bias2, first.bias2, second.bias2),
        (weights.bias3, gradient.bias3, first.bias3, second.bias3),
        (weights.gmf_output, gradient.gmf_output, first.gmf_output, second.gmf_output),
        (weights.mlp_output, gradient.mlp_output, first.mlp_output, second.mlp_output),
        (weights.output_bias, gradient.output_bias, first.output_bias, second.output_bias),
    ):
        adam_rows(w, g, m, v, len(w), learning_rate, step)
