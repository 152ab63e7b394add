"""Compiled training of AutoRec, and RecNum of a poisoned one; the fast twins of `autorec.py`.

The dense decoder asks every user about every item, yet its loss is a square. So the part of the loss
that belongs to unclicked items needs only the second moments of the hidden states and of the decoder
(`d x d` matrices), and the clicked entries are corrected one by one: O(clicks d + n_items d^2) a
step instead of O(users n_items d), without any approximation.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from recattack_gym.victims.kernels import (
    adam_rows,
    adam_touched,
    best_target,
    check_finite,
    compiled,
    count_shown,
    is_better,
)
from recattack_gym.victims.parallel import over_sets
from recattack_gym.victims.ranking import CandidateLists

RowSchedule = Callable[[int, int], tuple[NDArray[np.int64], NDArray[np.int64], float]]
"""From (N, seed) to what `autorec.row_schedule` returns."""


class Weights(NamedTuple):
    """All parameters, or arrays of the same shapes (gradient, moments); float32, C order."""

    encoder: NDArray[np.float32]
    """Shape `(n_items, d)`."""
    encoder_bias: NDArray[np.float32]
    """Shape `(d,)`."""
    decoder: NDArray[np.float32]
    """Shape `(n_items, d)`."""
    decoder_bias: NDArray[np.float32]
    """Shape `(n_items,)`."""


class Rows(NamedTuple):
    """Which items each user has clicked, ascending; genuine users, then fake users."""

    indptr: NDArray[np.int64]
    """Shape `(n_users + 1,)`."""
    items: NDArray[np.int32]
    """Genuine user `u` has `items[indptr[u]:indptr[u + 1]]`."""
    fake_counts: NDArray[np.int64]
    """Shape `(n_fake_users,)`."""
    fake_items: NDArray[np.int32]
    """Shape `(n_fake_users, T)`: fake user `f` has `fake_items[f, :fake_counts[f]]`."""


class Workspace(NamedTuple):
    """Buffers of one thread for batches of at most `B` users."""

    gradient: Weights
    """Zero between steps, as far as it is not overwritten."""
    first: Weights
    """Adam's first moment; zero before a run."""
    second: Weights
    """Adam's second moment; zero before a run."""
    hidden: NDArray[np.float32]
    """Shape `(B, d)`."""
    hidden_gradient: NDArray[np.float32]
    """Shape `(B, d)`."""
    shares: NDArray[np.float32]
    """Shape `(B,)`: each user's share of the loss."""
    touched: NDArray[np.int64]
    """Shape `(n_items,)`: items whose encoder rows have had a gradient, in order of first touch."""
    is_touched: NDArray[np.bool_]
    """Shape `(n_items,)`; false before a run, or all true: then everything counts as touched."""


def make_workspace(n_items: int, d: int, batch_size: int) -> Workspace:
    """Allocate buffers for one thread."""

    def zeros() -> Weights:
        return Weights(
            encoder=np.zeros((n_items, d), dtype=np.float32),
            encoder_bias=np.zeros(d, dtype=np.float32),
            decoder=np.zeros((n_items, d), dtype=np.float32),
            decoder_bias=np.zeros(n_items, dtype=np.float32),
        )

    return Workspace(
        gradient=zeros(),
        first=zeros(),
        second=zeros(),
        hidden=np.zeros((batch_size, d), dtype=np.float32),
        hidden_gradient=np.zeros((batch_size, d), dtype=np.float32),
        shares=np.zeros(batch_size, dtype=np.float32),
        touched=np.zeros(n_items, dtype=np.int64),
        is_touched=np.zeros(n_items, dtype=np.bool_),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """What is minimised, and how fast."""

    n_unclickable: int
    """Trailing items that are left out of rows without any of them."""
    unclicked_weight: float
    """Weight of an unclicked entry; a clicked entry has 1."""
    reg: float
    """L2 penalty, once per click."""
    learning_rate: float
    """Adam's."""
    genuine_weight: float = 1.0
    """Weight of a genuine user's row; a fake user's has 1."""


def fit(
    weights: dict[str, NDArray[np.float32]],
    seen: tuple[NDArray[np.int64], NDArray[np.int32]],
    rows: NDArray[np.int64],
    batches: NDArray[np.int64],
    objective: Objective,
) -> None:
    """Train in place.

    Args:
        weights: By the names of `Weights`.
        seen: The log's distinct items of each user in CSR form.
        rows: User ids in training order.
        batches: Bounds of the batches in `rows`.
        objective: What is minimised.
    """
    n_items, d = weights["decoder"].shape
    work = make_workspace(n_items, d, int(np.diff(batches).max(initial=1)))
    work.is_touched[:] = True
    fakes = Rows(*seen, np.zeros(0, dtype=np.int64), np.zeros((0, 0), dtype=np.int32))
    with threadpool_limits(limits=1, user_api="blas"):
        _run(Weights(**weights), work, fakes, rows, batches, objective)


def _run(
    weights: Weights,
    work: Workspace,
    rows: Rows,
    schedule: NDArray[np.int64],
    batches: NDArray[np.int64],
    objective: Objective,
) -> int:
    return train(
        weights,
        work,
        rows,
        schedule,
        batches,
        len(weights.decoder) - objective.n_unclickable,
        objective.unclicked_weight,
        objective.genuine_weight,
        objective.reg,
        objective.learning_rate,
    )


class AutoRecEngine:
    """Fine-tunes and ranks one poison set per thread at a time, and undoes it.

    Args:
        weights: Its parameters, by the names of `Weights`; not changed.
        candidates: Shape `(U, C)`: of each user, best first by clean score.
        lists: Targets, who may see them, and the length of a list.
        schedule: Which rows to train on, in which order.
        objective: Of fine-tuning.
    """

    def __init__(
        self,
        weights: dict[str, NDArray[np.float32]],
        candidates: NDArray[np.int32],
        lists: CandidateLists,
        schedule: RowSchedule,
        objective: Objective,
    ) -> None:
        self._clean = Weights(**weights)
        self._seen = lists.log.seen
        self._candidates = candidates
        self._targets = lists.target_items
        self._eligible = lists.eligible
        self._k = lists.k
        self._schedule = lru_cache(maxsize=1)(schedule)
        self._objective = objective

    def exposure(self, profiles: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """See `ExposureEngine.exposure`."""
        n_sets, n_fake_users, _ = profiles.shape
        order, batches, genuine_weight = self._schedule(n_fake_users, seed)
        objective = replace(self._objective, genuine_weight=genuine_weight)
        batch_size = int(np.diff(batches).max(initial=1))
        exposure = np.zeros((n_sets, len(self._targets)), dtype=np.int64)

        def work(thread: int, sets: range) -> None:
            del thread  # each call has its own buffers
            weights = Weights(*(array.copy() for array in self._clean))
            n_items, d = weights.decoder.shape
            space = make_workspace(n_items, d, batch_size)
            for m in sets:
                rows = Rows(*self._seen, *_distinct(profiles[m]))
                n_touched = _run(weights, space, rows, order, batches, objective)
                check_finite(*weights)
                _count(
                    weights,
                    rows,
                    self._candidates,
                    self._targets,
                    self._eligible,
                    self._k,
                    exposure[m],
                )
                _undo(weights, self._clean, space, n_touched)

        over_sets(n_sets, work)
        return exposure


def _distinct(profile: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return how many distinct items each fake user has, and which, ascending, at the row's start."""
    ordered = np.sort(profile, axis=1)
    is_new = np.ones(ordered.shape, dtype=np.bool_)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.argsort(~is_new, axis=1, kind="stable")
    items = np.take_along_axis(ordered, first, axis=1).astype(np.int32)
    return is_new.sum(axis=1), items


@compiled
def _count(
    weights: Weights,
    rows: Rows,
    candidates: NDArray[np.int32],
    targets: NDArray[np.int64],
    eligible: NDArray[np.bool_],
    k: int,
    counts: NDArray[np.int64],
) -> None:
    """Add the exposure of every target over all genuine users.

    A user's candidates come best first by clean score; as soon as k of them beat the best target, no
    target is shown and the rest need no score.
    """
    n_users, n_candidates = candidates.shape
    hidden = np.empty(len(weights.encoder_bias), dtype=np.float32)
    scores = np.empty(len(targets), dtype=np.float32)
    candidate_scores = np.empty(n_candidates, dtype=np.float32)
    for u in range(n_users):
        encode(weights, items_of(rows, u), hidden)
        for z in range(len(targets)):
            scores[z] = predict(weights, hidden, targets[z])
        best = best_target(scores, targets, eligible[u])
        if best < 0:
            continue
        n_better = 0
        for c in range(n_candidates):
            item = candidates[u, c]
            candidate_scores[c] = predict(weights, hidden, item)
            n_better += int(is_better(candidate_scores[c], item, scores[best], targets[best]))
            if n_better == k:
                break
        if n_better < k:
            count_shown(candidate_scores, candidates[u], scores, targets, eligible[u], k, counts)


@compiled
def _undo(weights: Weights, clean: Weights, work: Workspace, n_touched: int) -> None:
    """Go back to the clean weights and to zero moments."""
    for i in work.touched[:n_touched]:
        work.is_touched[i] = False
        weights.encoder[i] = clean.encoder[i]
        work.first.encoder[i] = np.float32(0.0)
        work.second.encoder[i] = np.float32(0.0)
    weights.encoder_bias[:] = clean.encoder_bias
    weights.decoder[:] = clean.decoder
    weights.decoder_bias[:] = clean.decoder_bias
    for moment in (work.first, work.second):
        moment.encoder_bias[:] = np.float32(0.0)
        moment.decoder[:] = np.float32(0.0)
        moment.decoder_bias[:] = np.float32(0.0)


@compiled
def items_of(rows: Rows, row: int) -> NDArray[np.int32]:
    """Return the items of one user, ascending."""
    n_genuine = len(rows.indptr) - 1
    if row < n_genuine:
        return rows.items[rows.indptr[row] : rows.indptr[row + 1]]
    return rows.fake_items[row - n_genuine, : rows.fake_counts[row - n_genuine]]


@compiled
def encode(weights: Weights, items: NDArray[np.int32], hidden: NDArray[np.float32]) -> None:
    """Write the hidden units of a user with these items, shape `(d,)`."""
    d = len(hidden)
    for j in range(d):
        hidden[j] = weights.encoder_bias[j]
    for i in items:
        for j in range(d):
            hidden[j] += weights.encoder[i, j]
    one, bound = np.float32(1.0), np.float32(80.0)  # exp(89) is not a float32
    for j in range(d):
        hidden[j] = one / (one + np.exp(-min(max(hidden[j], -bound), bound)))


@compiled
def predict(weights: Weights, hidden: NDArray[np.float32], item: int) -> np.float32:
    """Return the score of one item."""
    total: np.float32 = weights.decoder_bias[item]
    for j in range(len(hidden)):
        total += hidden[j] * weights.decoder[item, j]
    return total


@compiled
def train(
    weights: Weights,
    work: Workspace,
    rows: Rows,
    schedule: NDArray[np.int64],
    batches: NDArray[np.int64],
    n_known: int,
    unclicked_weight: float,
    genuine_weight: float,
    reg: float,
    learning_rate: float,
) -> int:
    """Take one Adam step per batch of users, in place.

    Args:
        weights: Changed.
        work: Buffers.
        rows: Of all users.
        schedule: Shape `(S,)`: users in training order.
        batches: Shape `(n_batches + 1,)`: bounds of the batches in `schedule`.
        n_known: Items from here on are unclicked only in rows that have one of them.
        unclicked_weight: Weight of an unclicked entry.
        genuine_weight: Weight of a genuine user's row.
        reg: L2 penalty, once per click.
        learning_rate: Adam's.

    Returns:
        How many of `work.touched` are set: the encoder rows that have moved.
    """
    n_touched = 0
    for is_touched in work.is_touched:
        n_touched += int(is_touched)
    n_genuine = len(rows.indptr) - 1
    for b in range(len(batches) - 1):
        users = schedule[batches[b] : batches[b + 1]]
        hidden, hidden_gradient = work.hidden[: len(users)], work.hidden_gradient[: len(users)]
        shares = work.shares[: len(users)]
        for r in range(len(users)):
            shares[r] = np.float32(genuine_weight if users[r] < n_genuine else 1.0)
            encode(weights, items_of(rows, users[r]), hidden[r])
        shares /= shares.sum()
        _unclicked_gradient(
            weights, work.gradient, hidden, hidden_gradient, shares, n_known, unclicked_weight
        )
        for r in range(len(users)):
            items = items_of(rows, users[r])
            if len(items) > 0 and items[-1] >= n_known:
                _new_items_gradient(
                    weights,
                    work.gradient,
                    hidden[r],
                    hidden_gradient[r],
                    n_known,
                    unclicked_weight * shares[r],
                )
            _clicked_gradient(
                weights,
                work.gradient,
                items,
                hidden[r],
                hidden_gradient[r],
                shares[r],
                unclicked_weight,
                reg,
            )
            for i in items:
                if not work.is_touched[i]:
                    work.is_touched[i] = True
                    work.touched[n_touched] = i
                    n_touched += 1
        _adam(weights, work, n_touched, learning_rate, b + 1)
    return n_touched


@compiled
def _unclicked_gradient(
    weights: Weights,
    gradient: Weights,
    hidden: NDArray[np.float32],
    hidden_gradient: NDArray[np.float32],
    shares: NDArray[np.float32],
    n_known: int,
    unclicked_weight: float,
) -> None:
    """Write the gradient of `unclicked_weight sum_u share_u sum_i score_ui^2` over items i < n_known."""
    n_users, d = hidden.shape
    decoder, bias = weights.decoder[:n_known], weights.decoder_bias
    factor = np.float32(2.0 * unclicked_weight)
    mean = np.zeros(d, dtype=np.float32)
    for r in range(n_users):
        for j in range(d):
            hidden_gradient[r, j] = shares[r] * hidden[r, j]
            mean[j] += hidden_gradient[r, j]
    moment = np.dot(hidden_gradient.T, hidden)
    for j in range(d):
        mean[j] *= factor
        for k in range(d):
            moment[j, k] *= factor
    np.dot(decoder, moment, gradient.decoder[:n_known])
    np.dot(decoder, mean, gradient.decoder_bias[:n_known])
    for i in range(n_known):
        row, b = gradient.decoder[i], bias[i]
        for j in range(d):
            row[j] += b * mean[j]
        gradient.decoder_bias[i] += factor * b
    gram = np.dot(decoder.T, decoder)
    offset = np.dot(decoder.T, bias[:n_known])
    np.dot(hidden, gram, hidden_gradient)
    for r in range(n_users):
        for j in range(d):
            hidden_gradient[r, j] = factor * shares[r] * (hidden_gradient[r, j] + offset[j])


@compiled
def _new_items_gradient(
    weights: Weights,
    gradient: Weights,
    hidden: NDArray[np.float32],
    hidden_gradient: NDArray[np.float32],
    n_known: int,
    weight: float,
) -> None:
    """Add the gradient of `weight sum_i score_i^2` over the other items, for one user."""
    for i in range(n_known, len(weights.decoder)):
        error = np.float32(2.0 * weight) * predict(weights, hidden, i)
        for j in range(len(hidden)):
            hidden_gradient[j] += error * weights.decoder[i, j]
            gradient.decoder[i, j] += error * hidden[j]
        gradient.decoder_bias[i] += error


@compiled
def _clicked_gradient(
    weights: Weights,
    gradient: Weights,
    items: NDArray[np.int32],
    hidden: NDArray[np.float32],
    hidden_gradient: NDArray[np.float32],
    share: np.float32,
    unclicked_weight: float,
    reg: float,
) -> None:
    """Turn the clicked entries of one user from unclicked to clicked, and go back to the encoder."""
    d = len(hidden)
    one = np.float32(1.0)
    factor, unclicked = np.float32(2.0) * share, np.float32(unclicked_weight)
    decay = np.float32(reg) * share
    for i in items:
        score = predict(weights, hidden, i)
        error = factor * (score - one - unclicked * score)
        for j in range(d):
            hidden_gradient[j] += error * weights.decoder[i, j]
            gradient.decoder[i, j] += error * hidden[j] + decay * weights.decoder[i, j]
        gradient.decoder_bias[i] += error
    for j in range(d):
        hidden_gradient[j] *= hidden[j] * (one - hidden[j])
        gradient.encoder_bias[j] += hidden_gradient[j]
    for i in items:
        for j in range(d):
            gradient.encoder[i, j] += hidden_gradient[j] + decay * weights.encoder[i, j]


@compiled
def _adam(
    weights: Weights, work: Workspace, n_touched: int, learning_rate: float, step: int
) -> None:
    gradient, first, second = work.gradient, work.first, work.second
    adam_rows(
        weights.decoder.reshape(-1),
        gradient.decoder.reshape(-1),
        first.decoder.reshape(-1),
        second.decoder.reshape(-1),
        weights.decoder.size,
        learning_rate,
        step,
    )
    adam_rows(
        weights.decoder_bias,
        gradient.decoder_bias,
        first.decoder_bias,
        second.decoder_bias,
        weights.decoder_bias.size,
        learning_rate,
        step,
    )
    adam_rows(
        weights.encoder_bias,
        gradient.encoder_bias,
        first.encoder_bias,
        second.encoder_bias,
        weights.encoder_bias.size,
        learning_rate,
        step,
    )
    adam_touched(
        weights.encoder,
        gradient.encoder,
        first.encoder,
        second.encoder,
        work.touched[:n_touched],
        learning_rate,
        step,
    )
