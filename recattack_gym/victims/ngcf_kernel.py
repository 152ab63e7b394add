"""NGCF compiled: training and evaluation on the rows that a step needs, one poison set per thread.

The plain path in `ngcf` is the reference. What is saved here, without changing the result: layer L is
computed for the batch's nodes alone, layer L-1 for these and their neighbours, and so on, forward and
backward; sums over neighbours, products and activations are fused over blocks that stay in the cache.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from recattack_gym.core.random import counter_normal
from recattack_gym.victims.graph import InteractionGraph
from recattack_gym.victims.graph_kernel import (
    Contest,
    GraphArrays,
    count_exposure,
    dot,
    graph_arrays,
    inject_edges,
    room_for_fakes,
    sum_neighbours,
    with_neighbours,
)
from recattack_gym.victims.kernels import adam_rows, compiled, fill_examples
from recattack_gym.victims.parallel import n_threads, over_sets
from recattack_gym.victims.schedule import INITIAL, UpdateSchedule

MakeSchedule = Callable[[tuple[int, int], int], UpdateSchedule]
"""Lays out the fine-tuning of profiles of shape `(N, T)` under a seed."""

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
        first: First moments of Adam.
        second: Second moments.
        gradient: All zero between steps.
        layers: Shape `(L, V, d)`: outputs of layers 1 to L, before the L2 norm.
        sums: Shape `(L, V, d)`: normalised sums over neighbours, inputs of layers 1 to L.
        scaled: Shape `(2, V, d)`: inputs of a layer times the nodes' scale; by turns.
        upstream: Shape `(L, V, d)`: gradients of layers 1 to L.
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
        total: Shape `(d,)`.
    """

    first: Parameters
    second: Parameters
    gradient: Parameters
    layers: NDArray[np.float32]
    sums: NDArray[np.float32]
    scaled: NDArray[np.float32]
    upstream: NDArray[np.float32]
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
    total: NDArray[np.float32]


def make_parameters(n_nodes: int, n_layers: int, size: int) -> Parameters:
    """Return zeros of the given sizes."""
    return Parameters(
        np.zeros((n_nodes, size), dtype=np.float32),
        np.zeros((n_layers, 2 * size, size), dtype=np.float32),
        np.zeros((n_layers, size), dtype=np.float32),
    )


def make_workspace(n_nodes: int, n_layers: int, size: int) -> Workspace:
    """Return the buffers of one thread."""
    width = (n_layers + 1) * size

    def floats(*shape: int) -> NDArray[np.float32]:
        return np.zeros(shape, dtype=np.float32)

    return Workspace(
        first=make_parameters(n_nodes, n_layers, size),
        second=make_parameters(n_nodes, n_layers, size),
        gradient=make_parameters(n_nodes, n_layers, size),
        layers=floats(n_layers, n_nodes, size),
        sums=floats(n_layers, n_nodes, size),
        scaled=floats(2, n_nodes, size),
        upstream=floats(n_layers, n_nodes, size),
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
        total=floats(size),
    )


class Trainer:
    """Clean training in place, one call per epoch; BLAS is held to one thread."""

    def __init__(self, parameters: Parameters, graph: InteractionGraph, n_items: int) -> None:
        self._parameters, self._graph, self._n_items = parameters, graph_arrays(graph), n_items
        n_layers, size = parameters.biases.shape
        self._work = make_workspace(graph.n_nodes, n_layers, size)
        self._steps = 0

    def train(
        self,
        users: NDArray[np.int64],
        items: NDArray[np.int64],
        negatives: NDArray[np.int64],
        batch_indptr: NDArray[np.int64],
        *,
        learning_rate: float,
        reg: float,
    ) -> None:
        """Take one Adam step per batch; see the kernel of the same name."""
        with threadpool_limits(limits=1, user_api="blas"):
            train(
                self._parameters,
                self._graph,
                users.astype(np.int32),
                items.astype(np.int32),
                negatives.astype(np.int32),
                batch_indptr,
                self._n_items,
                learning_rate,
                reg,
                self._steps,
                self._work,
            )
        self._steps += len(batch_indptr) - 1


class _Thread(NamedTuple):
    """What one thread writes to."""

    model: Parameters
    graph: GraphArrays
    work: Workspace
    items: NDArray[np.int32]
    negatives: NDArray[np.int32]


class NGCFEngine:
    """Fine-tuning, propagation and counting of every poison set, one set per thread.

    Args:
        clean: The clean victim's parameters; never written.
        graph: The genuine graph.
        contest: The platform's lists.
        make_schedule: The examples to fine-tune on.
        learning_rate: Of fine-tuning.
        reg: L2 penalty on layer 0.
        initial_scale: Standard deviation of fake users' first embeddings.
    """

    def __init__(
        self,
        clean: Parameters,
        graph: InteractionGraph,
        contest: Contest,
        make_schedule: MakeSchedule,
        *,
        learning_rate: float,
        reg: float,
        initial_scale: float,
    ) -> None:
        self._clean, self._graph, self._contest = clean, graph, contest
        self._make_schedule = make_schedule
        self._learning_rate, self._reg = learning_rate, reg
        self._initial_scale = np.float32(initial_scale)
        self._prepared: tuple[tuple[int, int, int], UpdateSchedule, NDArray[np.float32]] | None = (
            None
        )
        self._threads: dict[tuple[int, int, int, int], _Thread] = {}

    def exposure(self, profiles: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """See `ExposureEngine.exposure`."""
        n_sets, n_fake_users, profile_size = profiles.shape
        schedule, fakes = self._prepare(seed, n_fake_users, profile_size)
        counts = np.zeros((n_sets, len(self._contest.targets)), dtype=np.int64)
        clean_graph, n_items = graph_arrays(self._graph), self._graph.n_items
        threads = [
            self._thread(t, n_fake_users, profile_size, len(schedule.clicks))
            for t in range(min(n_threads(), n_sets))
        ]

        def work(thread: int, sets: range) -> None:
            own = threads[thread]
            for m in sets:
                fill_examples(
                    schedule.clicks,
                    schedule.item_ids,
                    schedule.negatives,
                    profiles[m],
                    schedule.seed,
                    schedule.n_items,
                    own.items,
                    own.negatives,
                )
                inject_edges(clean_graph, profiles[m], own.graph)
                _reset(own.model, self._clean, fakes, own.work)
                train(
                    own.model,
                    own.graph,
                    schedule.user_ids,
                    own.items,
                    own.negatives[:, 0],
                    schedule.batch_indptr,
                    n_items,
                    self._learning_rate,
                    self._reg,
                    0,
                    own.work,
                )
                propagate_all(own.model, own.graph, own.work)
                count_exposure(own.work.final, n_items, self._contest, counts[m])

        over_sets(n_sets, work)
        return counts

    def _prepare(
        self, seed: int, n_fake_users: int, profile_size: int
    ) -> tuple[UpdateSchedule, NDArray[np.float32]]:
        key = (seed, n_fake_users, profile_size)
        if self._prepared is None or self._prepared[0] != key:
            size = self._clean.embeddings.shape[1]
            fakes = counter_normal(seed, INITIAL, (n_fake_users, size)) * self._initial_scale
            schedule = self._make_schedule((n_fake_users, profile_size), seed)
            self._prepared = (key, schedule, fakes)
        return self._prepared[1:]

    def _thread(
        self, thread: int, n_fake_users: int, profile_size: int, n_examples: int
    ) -> _Thread:
        key = (n_fake_users, profile_size, n_examples)
        if any(known[:3] != key for known in self._threads):
            self._threads.clear()
        own = self._threads.get((*key, thread))
        if own is None:
            n_layers, size = self._clean.biases.shape
            n_nodes = self._graph.n_nodes + n_fake_users
            own = _Thread(
                model=make_parameters(n_nodes, n_layers, size),
                graph=room_for_fakes(self._graph, n_fake_users, profile_size),
                work=make_workspace(n_nodes, n_layers, size),
                items=np.zeros(n_examples, dtype=np.int32),
                negatives=np.zeros((n_examples, 1), dtype=np.int32),
            )
            self._threads[(*key, thread)] = own
        return own


@compiled
def _reset(
    model: Parameters, clean: Parameters, fakes: NDArray[np.float32], work: Workspace
) -> None:
    """Return a thread's model to the clean state with fresh fake users and a fresh Adam."""
    n_clean = len(clean.embeddings)
    model.embeddings[:n_clean] = clean.embeddings
    model.embeddings[n_clean:] = fakes
    model.weights[:] = clean.weights
    model.biases[:] = clean.biases
    for moments in (work.first, work.second):
        moments.embeddings[:] = np.float32(0.0)
        moments.weights[:] = np.float32(0.0)
        moments.biases[:] = np.float32(0.0)


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
        start, end = batch_indptr[b], batch_indptr[b + 1]
        _select_batch(graph, users, items, negatives, start, end, n_items, work)
        _forward(parameters, graph, work)
        _concatenate(parameters, work)
        _loss_gradient(users, items, negatives, start, end, n_items, reg, work)
        _backward(parameters, graph, work)
        step = first_step + b + 1
        adam_rows(
            parameters.embeddings.reshape(-1),
            gradient.embeddings.reshape(-1),
            first.embeddings.reshape(-1),
            second.embeddings.reshape(-1),
            parameters.embeddings.size,
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
        adam_rows(
            parameters.biases.reshape(-1),
            gradient.biases.reshape(-1),
            first.biases.reshape(-1),
            second.biases.reshape(-1),
            parameters.biases.size,
            learning_rate,
            step,
        )


@compiled
def propagate_all(parameters: Parameters, graph: GraphArrays, work: Workspace) -> None:
    """Write what all nodes are scored by to `work.final`, row by node."""
    for level in range(len(work.n_nodes)):
        _select_all(work, level)
    _forward(parameters, graph, work)
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
    start: int,
    end: int,
    n_items: int,
    work: Workspace,
) -> None:
    top = len(work.n_nodes) - 1
    mark, nodes = work.mark, work.nodes[top]
    for s in range(start, end):
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
def _forward(parameters: Parameters, graph: GraphArrays, work: Workspace) -> None:
    scale, size = graph.scale, parameters.embeddings.shape[1]
    for v in range(len(scale)):
        for d in range(size):
            work.scaled[0, v, d] = scale[v] * parameters.embeddings[v, d]
    for layer in range(len(parameters.weights)):
        below = parameters.embeddings if layer == 0 else work.layers[layer - 1]
        nodes, n_nodes = work.nodes[layer + 1], work.n_nodes[layer + 1]
        rows, next_rows = work.scaled[layer % 2], work.scaled[(layer + 1) % 2]
        weight, bias = parameters.weights[layer], parameters.biases[layer]
        for block in range(0, n_nodes, BLOCK):
            n = min(BLOCK, n_nodes - block)
            for r in range(n):
                v = nodes[block + r]
                total, own = work.sums[layer, v], below[v]
                sum_neighbours(graph.indptr, graph.neighbours, v, rows, total)
                for d in range(size):
                    total[d] *= scale[v]
                _join(total, own, work.inputs[r])
            np.dot(work.inputs[:n], weight, work.outputs[:n])
            for r in range(n):
                v = nodes[block + r]
                out, scaled, above = work.outputs[r], next_rows[v], work.layers[layer, v]
                for d in range(size):
                    x = out[d] + bias[d]
                    x = max(x, np.float32(SLOPE) * x)
                    above[d] = x
                    scaled[d] = scale[v] * x


@compiled
def _join(
    total: NDArray[np.float32], own: NDArray[np.float32], joined: NDArray[np.float32]
) -> None:
    size = len(total)
    for d in range(size):
        joined[d] = total[d] + own[d]
        joined[size + d] = total[d] * own[d]


@compiled
def _concatenate(parameters: Parameters, work: Workspace) -> None:
    size, n_layers = parameters.embeddings.shape[1], len(parameters.weights)
    nodes = work.nodes[n_layers]
    for r in range(work.n_nodes[n_layers]):
        v, row = nodes[r], work.final[r]
        for d in range(size):
            row[d] = parameters.embeddings[v, d]
        for layer in range(n_layers):
            out = work.layers[layer, v]
            inverse = _inverse_norm(out)
            for d in range(size):
                row[(layer + 1) * size + d] = inverse * out[d]


@compiled
def _inverse_norm(row: NDArray[np.float32]) -> np.float32:
    return np.float32(1.0 / max(np.sqrt(dot(row, row)), 1e-12))


@compiled
def _loss_gradient(
    users: NDArray[np.int32],
    items: NDArray[np.int32],
    negatives: NDArray[np.int32],
    start: int,
    end: int,
    n_items: int,
    reg: float,
    work: Workspace,
) -> None:
    top = len(work.n_nodes) - 1
    nodes, n = work.nodes[top], work.n_nodes[top]
    size, width = work.layers.shape[2], work.final.shape[1]
    for r in range(n):
        work.place[nodes[r]] = r
        for x in range(width):
            work.final_gradient[r, x] = np.float32(0.0)
    share = np.float32(1.0 / (end - start))
    decay = np.float32(reg) * share
    for s in range(start, end):
        u = work.place[n_items + users[s]]
        i, j = work.place[items[s]], work.place[negatives[s]]
        user, item, other = work.final[u], work.final[i], work.final[j]
        to_user, to_item = work.final_gradient[u], work.final_gradient[i]
        to_other = work.final_gradient[j]
        margin = np.float32(0.0)
        for x in range(width):
            margin += user[x] * (item[x] - other[x])
        slope = -share / (np.float32(1.0) + np.exp(margin))
        for x in range(width):
            to_user[x] += slope * (item[x] - other[x])
            to_item[x] += slope * user[x]
            to_other[x] -= slope * user[x]
        for d in range(size):
            to_user[d] += decay * user[d]
            to_item[d] += decay * item[d]
            to_other[d] += decay * other[d]


@compiled
def _backward(parameters: Parameters, graph: GraphArrays, work: Workspace) -> None:
    scale, n_layers = graph.scale, len(parameters.weights)
    size = parameters.embeddings.shape[1]
    _add_loss(n_layers, work, work.upstream[n_layers - 1])
    for layer in range(n_layers - 1, -1, -1):
        below = parameters.embeddings if layer == 0 else work.layers[layer - 1]
        below_gradient = work.gradient.embeddings if layer == 0 else work.upstream[layer - 1]
        gradient, layers, sums = work.upstream[layer], work.layers[layer], work.sums[layer]
        nodes, n_nodes = work.nodes[layer + 1], work.n_nodes[layer + 1]
        weight, to_neighbours = parameters.weights[layer], work.scaled[0]
        if layer > 0:
            below_gradient[:] = np.float32(0.0)
        to_neighbours[:] = np.float32(0.0)
        for block in range(0, n_nodes, BLOCK):
            n = min(BLOCK, n_nodes - block)
            for r in range(n):
                v = nodes[block + r]
                _join(sums[v], below[v], work.inputs[r])
                back, out, given = work.outputs[r], layers[v], gradient[v]
                for d in range(size):
                    rate = np.float32(1.0) if out[d] > np.float32(0.0) else np.float32(SLOPE)
                    back[d] = rate * given[d]
                    work.gradient.biases[layer, d] += back[d]
            np.dot(work.outputs[:n], weight.T, work.inputs_gradient[:n])
            np.dot(work.inputs[:n].T, work.outputs[:n], work.weight_part)
            for x in range(2 * size):
                for d in range(size):
                    work.gradient.weights[layer, x, d] += work.weight_part[x, d]
            for r in range(n):
                v = nodes[block + r]
                own, total, change = below[v], sums[v], work.inputs_gradient[r]
                to_own, to_total = below_gradient[v], to_neighbours[v]
                for d in range(size):
                    by_sum, by_product = change[d], change[size + d]
                    to_own[d] += by_sum + by_product * total[d]
                    to_total[d] = scale[v] * (by_sum + by_product * own[d])
        _spread(
            graph,
            nodes,
            n_nodes,
            work.nodes[layer],
            work.n_nodes[layer],
            to_neighbours,
            below_gradient,
            work.total,
        )
        _add_loss(layer, work, below_gradient)
    for r in range(work.n_nodes[n_layers]):
        work.place[work.nodes[n_layers, r]] = -1


@compiled
def _spread(
    graph: GraphArrays,
    sources: NDArray[np.int32],
    n_sources: int,
    nodes: NDArray[np.int32],
    n_nodes: int,
    rows: NDArray[np.float32],
    gradient: NDArray[np.float32],
    total: NDArray[np.float32],
) -> None:
    """Add the normalised sum over neighbours of `rows`, zero outside `sources`, to `gradient`."""
    size = len(total)
    n_out, n_in = 0, 0
    for r in range(n_sources):
        n_out += graph.indptr[sources[r] + 1] - graph.indptr[sources[r]]
    for r in range(n_nodes):
        n_in += graph.indptr[nodes[r] + 1] - graph.indptr[nodes[r]]
    if 2 * n_out < n_in:
        for r in range(n_sources):
            row = rows[sources[r]]
            for e in range(graph.indptr[sources[r]], graph.indptr[sources[r] + 1]):
                v = graph.neighbours[e]
                target = gradient[v]
                for d in range(size):
                    target[d] += graph.scale[v] * row[d]
        return
    for r in range(n_nodes):
        v = nodes[r]
        target = gradient[v]
        sum_neighbours(graph.indptr, graph.neighbours, v, rows, total)
        for d in range(size):
            target[d] += graph.scale[v] * total[d]


@compiled
def _add_loss(layer: int, work: Workspace, gradient: NDArray[np.float32]) -> None:
    """Add the loss's own gradient of one layer, through the L2 norm above layer 0."""
    top, size = len(work.n_nodes) - 1, work.layers.shape[2]
    for r in range(work.n_nodes[top]):
        v = work.nodes[top, r]
        given = work.final_gradient[r, layer * size : (layer + 1) * size]
        target = gradient[v]
        if layer == 0:
            for d in range(size):
                target[d] += given[d]
            continue
        unit = work.final[r, layer * size : (layer + 1) * size]
        inverse, along = _inverse_norm(work.layers[layer - 1, v]), dot(unit, given)
        for d in range(size):
            change = inverse * (given[d] - along * unit[d])
            target[d] = change if layer == top else target[d] + change
