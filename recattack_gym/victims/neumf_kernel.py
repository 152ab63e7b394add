"""Compiled training of NeuMF, and RecNum of a poisoned one; the fast twins of `neumf.py`.

The first layer is linear in the user's and the item's embedding, so it is computed once per distinct
user and item of a batch and added up per example. The other layers run over a few hundred examples at
a time, which stay in the cache.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_permutation
from recattack_gym.victims.kernels import (
    adam_rows,
    adam_touched,
    best_target,
    check_finite,
    compiled,
    count_shown,
    draw_below,
    fill_examples,
    is_better,
    stream_key,
)
from recattack_gym.victims.parallel import over_sets
from recattack_gym.victims.ranking import CandidateLists
from recattack_gym.victims.schedule import MAX_TRIES, UpdateSchedule

EPOCH_ORDER, EPOCH_NEGATIVES = 16, 17
"""Streams of clean training, times 2^32, plus the epoch."""

Examples = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]
"""Users `(S,)`, clicked items `(S,)` and negatives `(S, n_negatives)`."""

CHUNK = 256
"""Examples that go through the layers together."""

TILE = 32
"""Users that are ranked together."""

FURTHER = 8
"""Candidates that a user still in question tries next, after the first k."""


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
    touched: NDArray[np.int64]
    """Shape `(n_rows,)`: rows that have had a gradient in this run, in order of first touch."""
    is_touched: NDArray[np.bool_]
    """Shape `(n_rows,)`; false before a run, or all true: then everything counts as touched."""


class Layers(NamedTuple):
    """What a chunk of examples looks like between the layers; first axis `CHUNK`."""

    hidden1: NDArray[np.float32]
    hidden2: NDArray[np.float32]
    hidden3: NDArray[np.float32]
    gradient1: NDArray[np.float32]
    gradient2: NDArray[np.float32]
    gradient3: NDArray[np.float32]


class Workspace(NamedTuple):
    """Buffers of one thread."""

    gradient: Weights
    """Zero between steps, as far as it is not overwritten."""
    first: Weights
    """Adam's first moment; zero before a run, no rows for plain gradient descent."""
    second: Weights
    """Adam's second moment, likewise."""
    user_part: Part
    item_part: Part
    layers: Layers


def make_workspace(
    weights: Weights, batch_size: int, n_negatives: int, *, is_adam: bool
) -> Workspace:
    """Allocate buffers for one thread and batches of at most `batch_size` clicks.

    Args:
        weights: What is trained.
        batch_size: Clicks.
        n_negatives: Items per click.
        is_adam: Whether there are moments; plain gradient descent has none.
    """
    d, h2 = weights.layer2.shape
    h3 = len(weights.mlp_output)
    gradient = Weights(*(np.zeros_like(array) for array in weights))

    def moments() -> Weights:
        return Weights(*(np.zeros_like(array if is_adam else array[:0]) for array in weights))

    def part(n_rows: int, n_used: int) -> Part:
        size = min(n_rows, n_used)
        return Part(
            place=np.full(n_rows, -1, dtype=np.int32),
            rows=np.zeros(size, dtype=np.int64),
            inputs=np.zeros((size, d), dtype=np.float32),
            outputs=np.zeros((size, d), dtype=np.float32),
            outputs_gradient=np.zeros((size, d), dtype=np.float32),
            touched=np.zeros(n_rows, dtype=np.int64),
            is_touched=np.zeros(n_rows, dtype=np.bool_),
        )

    chunk = max(CHUNK, 1 + n_negatives)
    return Workspace(
        gradient=gradient,
        first=moments(),
        second=moments(),
        user_part=part(len(weights.users), batch_size),
        item_part=part(len(weights.items), batch_size * (1 + n_negatives)),
        layers=Layers(
            *(np.zeros((chunk, width), dtype=np.float32) for width in (d, h2, h3, d, h2, h3))
        ),
    )


def clean_epochs(
    log: Interactions, seed: int, *, epochs: int, n_negatives: int, below: int
) -> Iterator[Examples]:
    """Yield the examples of each epoch of clean training.

    Args:
        log: What to train on; every click is used once per epoch.
        seed: What all draws are made from.
        epochs: How many.
        n_negatives: Items per click.
        below: Negatives are drawn from `[0, below)` outside what the user has clicked.
    """
    indptr, seen = log.seen
    for epoch in range(epochs):
        order = counter_permutation(seed, (EPOCH_ORDER << 32) + epoch, len(log))
        users, items = (ids[order].astype(np.int32) for ids in (log.user_ids, log.item_ids))
        negatives = np.empty((len(log), n_negatives), dtype=np.int32)
        _draw_negatives(
            users, indptr, seen, seed, (EPOCH_NEGATIVES << 32) + epoch, below, negatives
        )
        yield users, items, negatives


def fit(
    weights: dict[str, NDArray[np.float32]],
    epochs: Iterator[Examples],
    *,
    batch_size: int,
    reg: float,
    learning_rate: float,
) -> None:
    """Train in place.

    Args:
        weights: By the names of `Weights`.
        epochs: From `clean_epochs`.
        batch_size: Clicks per Adam step.
        reg: L2 penalty.
        learning_rate: Adam's.
    """
    arrays = Weights(**weights)
    work: Workspace | None = None
    step = 0
    with threadpool_limits(limits=1, user_api="blas"):
        for users, items, negatives in epochs:
            if work is None:
                work = make_workspace(arrays, batch_size, negatives.shape[1], is_adam=True)
                work.user_part.is_touched[:] = True
                work.item_part.is_touched[:] = True
            batches = np.append(np.arange(0, len(users), batch_size), len(users))
            train(
                arrays,
                work,
                users,
                items,
                negatives,
                batches,
                reg,
                learning_rate,
                step,
            )
            step += len(batches) - 1


class Updates(Protocol):
    """What the engine asks its victim for; see `NeuMF`."""

    def __call__(self, n_fake_users: int, profile_size: int, seed: int) -> "Update":
        """Return what all poison sets of one shape and seed share."""
        ...


class Update(NamedTuple):
    """What fine-tuning on any poison set of one shape and seed shares."""

    schedule: UpdateSchedule
    fake_rows: NDArray[np.float32]
    """Shape `(N, 2d)`: untrained rows of the fake users."""


class NeuMFEngine:
    """Fine-tunes and ranks one poison set per thread at a time, and undoes it.

    Args:
        weights: Its parameters, by the names of `Weights`; not changed.
        candidates: Shape `(U, C)`: of each user, best first by clean score.
        lists: Targets, who may see them, and the length of a list.
        updates: Schedule and fake users' rows; the last answer is kept.
        reg: L2 penalty.
        learning_rate: Of fine-tuning.
    """

    def __init__(
        self,
        weights: dict[str, NDArray[np.float32]],
        candidates: NDArray[np.int32],
        lists: CandidateLists,
        updates: Updates,
        *,
        reg: float,
        learning_rate: float,
    ) -> None:
        self._clean = Weights(**weights)
        self._candidates = candidates
        self._targets = lists.target_items
        self._eligible = lists.eligible
        self._k = lists.k
        self._updates = lru_cache(maxsize=1)(updates)
        self._reg = reg
        self._learning_rate = learning_rate

    def exposure(self, profiles: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """See `ExposureEngine.exposure`."""
        n_sets, n_fake_users, profile_size = profiles.shape
        schedule, fake_rows = self._updates(n_fake_users, profile_size, seed)
        start = self._clean._replace(users=np.concatenate([self._clean.users, fake_rows]))
        batch_size = int(np.diff(schedule.batch_indptr).max(initial=1))
        exposure = np.zeros((n_sets, len(self._targets)), dtype=np.int64)

        def work(thread: int, sets: range) -> None:
            del thread  # each call has its own buffers
            weights = Weights(*(array.copy() for array in start))
            space = make_workspace(weights, batch_size, schedule.negatives.shape[1], is_adam=False)
            items, negatives = (np.empty_like(x) for x in (schedule.item_ids, schedule.negatives))
            for m in sets:
                fill_examples(
                    schedule.clicks,
                    schedule.item_ids,
                    schedule.negatives,
                    profiles[m],
                    schedule.seed,
                    schedule.n_items,
                    items,
                    negatives,
                )
                touched = train(
                    weights,
                    space,
                    schedule.user_ids,
                    items,
                    negatives,
                    schedule.batch_indptr,
                    self._reg,
                    self._learning_rate,
                    -1,
                )
                check_finite(*weights)
                _count(
                    weights,
                    space.layers,
                    self._candidates,
                    self._targets,
                    self._eligible,
                    self._k,
                    exposure[m],
                )
                _undo(weights, start, space, *touched)

        over_sets(n_sets, work)
        return exposure


@compiled
def _undo(
    weights: Weights, start: Weights, work: Workspace, n_touched_users: int, n_touched_items: int
) -> None:
    """Go back to the weights before poisoning."""
    for row in work.user_part.touched[:n_touched_users]:
        work.user_part.is_touched[row] = False
        weights.users[row] = start.users[row]
    for row in work.item_part.touched[:n_touched_items]:
        work.item_part.is_touched[row] = False
        weights.items[row] = start.items[row]
    weights.user_layer[:] = start.user_layer
    weights.item_layer[:] = start.item_layer
    weights.layer2[:] = start.layer2
    weights.layer3[:] = start.layer3
    weights.bias1[:] = start.bias1
    weights.bias2[:] = start.bias2
    weights.bias3[:] = start.bias3
    weights.gmf_output[:] = start.gmf_output
    weights.mlp_output[:] = start.mlp_output
    weights.output_bias[:] = start.output_bias


@compiled
def _count(
    weights: Weights,
    layers: Layers,
    candidates: NDArray[np.int32],
    targets: NDArray[np.int64],
    eligible: NDArray[np.bool_],
    k: int,
    counts: NDArray[np.int64],
) -> None:
    """Add the exposure of every target over all genuine users.

    Users go through the layers a tile at a time: first with their targets, then with a few of their
    candidates, best first by clean score, as long as fewer than k candidates beat the best target.
    """
    n_users, n_candidates = candidates.shape
    n_targets = len(targets)
    user_halves = _halves(weights.users[:n_users], weights.user_layer)
    item_halves = _halves(weights.items, weights.item_layer)
    user_halves += weights.bias1
    width = max(n_targets, min(k, n_candidates), FURTHER)
    users, items = np.empty(TILE * width, np.int64), np.empty(TILE * width, np.int64)
    pair_scores = np.empty(TILE * width, np.float32)
    scores = np.empty((TILE, n_targets), np.float32)
    candidate_scores = np.empty((TILE, n_candidates), np.float32)
    best, n_better = np.empty(TILE, np.int64), np.zeros(TILE, np.int64)
    active = np.empty(TILE, np.int64)
    for first in range(0, n_users, TILE):
        n_tile = min(TILE, n_users - first)
        n = 0
        for r in range(n_tile):
            for z in range(n_targets):
                users[n], items[n] = first + r, targets[z]
                n += 1
        _pair_scores(weights, layers, user_halves, item_halves, users[:n], items[:n], pair_scores)
        n_active = 0
        for r in range(n_tile):
            for z in range(n_targets):
                scores[r, z] = pair_scores[r * n_targets + z]
            best[r] = best_target(scores[r], targets, eligible[first + r])
            n_better[r] = 0
            if best[r] >= 0:
                active[n_active] = r
                n_active += 1
        start, stop = 0, min(k, n_candidates)
        while n_active > 0 and start < n_candidates:
            n = 0
            for a in range(n_active):
                for c in range(start, stop):
                    users[n] = first + active[a]
                    items[n] = candidates[first + active[a], c]
                    n += 1
            _pair_scores(
                weights, layers, user_halves, item_halves, users[:n], items[:n], pair_scores
            )
            n = 0
            n_still = 0
            for a in range(n_active):
                r = active[a]
                for c in range(start, stop):
                    candidate_scores[r, c] = pair_scores[n]
                    n_better[r] += int(
                        is_better(pair_scores[n], items[n], scores[r, best[r]], targets[best[r]])
                    )
                    n += 1
                if n_better[r] < k:
                    active[n_still] = r
                    n_still += 1
            n_active = n_still
            start, stop = stop, min(stop + FURTHER, n_candidates)
        for a in range(n_active):
            r = active[a]
            u = first + r
            count_shown(
                candidate_scores[r], candidates[u], scores[r], targets, eligible[u], k, counts
            )


@compiled
def _halves(table: NDArray[np.float32], layer: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the first layer's halves of all rows of a table, shape `(n_rows, d)`."""
    halves: NDArray[np.float32] = np.dot(np.ascontiguousarray(table[:, len(layer) :]), layer)
    return halves


@compiled
def _pair_scores(
    weights: Weights,
    layers: Layers,
    user_halves: NDArray[np.float32],
    item_halves: NDArray[np.float32],
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> None:
    """Write the scores of some pairs; `users`, `items` and `scores` alike."""
    zero = np.float32(0.0)
    d = user_halves.shape[1]
    size = len(layers.hidden1)
    for start in range(0, len(users), size):
        n = min(size, len(users) - start)
        for x in range(n):
            p, q = user_halves[users[start + x]], item_halves[items[start + x]]
            for j in range(d):
                layers.hidden1[x, j] = max(p[j] + q[j], zero)
        _upper_layers(weights, layers, n)
        for x in range(n):
            scores[start + x] = _logit(
                weights, layers.hidden3[x], users[start + x], items[start + x]
            )


@compiled
def _draw_negatives(
    users: NDArray[np.int32],
    indptr: NDArray[np.int64],
    seen: NDArray[np.int32],
    seed: int,
    stream: int,
    below: int,
    negatives: NDArray[np.int32],
) -> None:
    key = stream_key(seed, stream)
    n_negatives = negatives.shape[1]
    for s in range(len(users)):
        own = seen[indptr[users[s]] : indptr[users[s] + 1]]
        for n in range(n_negatives):
            for attempt in range(MAX_TRIES):
                item = draw_below(key, (s * n_negatives + n) * MAX_TRIES + attempt, below)
                place = np.searchsorted(own, item)
                if place == len(own) or own[place] != item:
                    break
            negatives[s, n] = item


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
    n_adam_steps: int,
) -> tuple[int, int]:
    """Take one gradient step per batch of clicks, in place.

    Args:
        weights: Changed.
        work: Buffers.
        users: Shape `(S,)`.
        items: Shape `(S,)`.
        negatives: Shape `(S, n_negatives)`.
        batches: Shape `(n_batches + 1,)`: bounds of the batches in `users`.
        reg: L2 penalty on the embeddings of each example.
        learning_rate: Step size.
        n_adam_steps: Adam steps on the mean loss that this run has taken before; negative for plain
            gradient descent on the summed loss instead.

    Returns:
        How many users and items have been touched.
    """
    n_negatives = negatives.shape[1]
    n_touched_users, n_touched_items = 0, 0
    for is_touched in work.user_part.is_touched:
        n_touched_users += is_touched
    for is_touched in work.item_part.is_touched:
        n_touched_items += is_touched
    is_adam = n_adam_steps >= 0
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
                1.0 / ((stop - start) * (1 + n_negatives)) if is_adam else 1.0,
            )
        n_touched_users = _first_layer_gradient(
            weights.user_layer,
            work.gradient.users,
            work.gradient.user_layer,
            work.user_part,
            n_users,
            n_touched_users,
        )
        n_touched_items = _first_layer_gradient(
            weights.item_layer,
            work.gradient.items,
            work.gradient.item_layer,
            work.item_part,
            n_items,
            n_touched_items,
        )
        if is_adam:
            _adam(
                weights,
                work,
                n_touched_users,
                n_touched_items,
                learning_rate,
                n_adam_steps + b + 1,
            )
        else:
            _descend(weights, work, n_users, n_items, learning_rate)
    return n_touched_users, n_touched_items


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
    n_touched: int,
) -> int:
    d = len(layer)
    np.dot(part.inputs[:n].T, part.outputs_gradient[:n], layer_gradient)
    np.dot(part.outputs_gradient[:n], layer.T, part.inputs[:n])
    for r in range(n):
        row = part.rows[r]
        part.place[row] = -1
        for j in range(d):
            table_gradient[row, d + j] += part.inputs[r, j]
            part.outputs_gradient[r, j] = np.float32(0.0)
        if not part.is_touched[row]:
            part.is_touched[row] = True
            part.touched[n_touched] = row
            n_touched += 1
    return n_touched


@compiled
def _upper_layers(weights: Weights, layers: Layers, n: int) -> None:
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
def _logit(weights: Weights, hidden3: NDArray[np.float32], user: int, item: int) -> np.float32:
    """Return the score of one pair from its last hidden layer."""
    p, q = weights.users[user], weights.items[item]
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
    _upper_layers(weights, work.layers, n)
    for x in range(n):
        s, c = divmod(x, width)
        user = users[s]
        item = items[s] if c == 0 else negatives[s, c - 1]
        p, q = weights.users[user], weights.items[item]
        logit = _logit(weights, hidden3[x], user, item)
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
def _adam(
    weights: Weights,
    work: Workspace,
    n_touched_users: int,
    n_touched_items: int,
    learning_rate: float,
    step: int,
) -> None:
    gradient, first, second = work.gradient, work.first, work.second
    adam_touched(
        weights.users,
        gradient.users,
        first.users,
        second.users,
        work.user_part.touched[:n_touched_users],
        learning_rate,
        step,
    )
    adam_touched(
        weights.items,
        gradient.items,
        first.items,
        second.items,
        work.item_part.touched[:n_touched_items],
        learning_rate,
        step,
    )
    for w, g, m, v in (
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


@compiled
def _descend(
    weights: Weights, work: Workspace, n_users: int, n_items: int, learning_rate: float
) -> None:
    """Take a step of plain gradient descent and clear the gradient."""
    gradient = work.gradient
    for row in work.user_part.rows[:n_users]:
        _descend_array(weights.users[row], gradient.users[row], learning_rate)
    for row in work.item_part.rows[:n_items]:
        _descend_array(weights.items[row], gradient.items[row], learning_rate)
    for w, g in (
        (weights.user_layer, gradient.user_layer),
        (weights.item_layer, gradient.item_layer),
        (weights.layer2, gradient.layer2),
        (weights.layer3, gradient.layer3),
    ):
        _descend_array(w.reshape(-1), g.reshape(-1), learning_rate)
    for w, g in (
        (weights.bias1, gradient.bias1),
        (weights.bias2, gradient.bias2),
        (weights.bias3, gradient.bias3),
        (weights.gmf_output, gradient.gmf_output),
        (weights.mlp_output, gradient.mlp_output),
        (weights.output_bias, gradient.output_bias),
    ):
        _descend_array(w, g, learning_rate)


@compiled
def _descend_array(
    weights: NDArray[np.float32], gradient: NDArray[np.float32], learning_rate: float
) -> None:
    rate = np.float32(learning_rate)
    for x in range(len(weights)):
        weights[x] -= rate * gradient[x]
        gradient[x] = np.float32(0.0)
