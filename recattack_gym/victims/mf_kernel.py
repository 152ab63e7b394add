"""Compiled training of matrix factorisations (BPR, PMF) and their fast poisoning engine."""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_words
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.kernels import compiled, draw_below, stream_key
from recattack_gym.victims.schedule import MAX_TRIES

_VISITS, _NEGATIVES = 16, 1 << 20
"""First streams of clean training: the order of the events and their negatives, one per epoch each."""


def visit_order(seed: int, epoch: int, n_events: int) -> NDArray[np.int64]:
    """Return the order in which an epoch visits the events; shape `(n_events,)`.

    Events that are added at the end fall in between and leave the order of the others as it was, so
    that retraining with a few fake clicks differs from clean training by those clicks alone.
    """
    n_bits = np.uint64(max(n_events - 1, 1).bit_length())
    words = counter_words(seed, _VISITS + epoch, np.arange(n_events)) >> n_bits << n_bits
    keys = np.sort(words | np.arange(n_events, dtype=np.uint64))
    return (keys & ((np.uint64(1) << n_bits) - np.uint64(1))).astype(np.int64)


def fit_bpr(
    factors: Factors,
    log: Interactions,
    *,
    n_negative_items: int,
    epochs: int,
    learning_rate: float,
    reg: float,
    seed: int,
) -> None:
    """Train factors in place by stochastic gradient descent on the BPR loss.

    Args:
        factors: Untrained.
        log: What to train on.
        n_negative_items: Negatives are drawn from `[0, n_negative_items)`.
        epochs: Passes over the log.
        learning_rate: Step size.
        reg: L2 penalty on the rows of an example.
        seed: What order and negatives are drawn from.
    """
    indptr, seen = log.seen
    for epoch in range(epochs):
        rate = np.float32(learning_rate)
        _bpr_epoch(
            factors.users,
            factors.items,
            factors.bias,
            log.user_ids,
            log.item_ids,
            visit_order(seed, epoch, len(log)),
            indptr,
            seen,
            n_negative_items,
            seed,
            _NEGATIVES + epoch,
            rate,
            np.float32(reg),
        )


def fit_pmf(
    factors: Factors,
    log: Interactions,
    *,
    n_negative_items: int,
    n_negatives: int,
    epochs: int,
    learning_rate: float,
    reg: float,
    seed: int,
) -> None:
    """Train factors in place by stochastic gradient descent on the squared error of clicks.

    Args:
        factors: Untrained.
        log: What to train on.
        n_negative_items: Negatives are drawn from `[0, n_negative_items)`.
        n_negatives: Negatives per click.
        epochs: Passes over the log.
        learning_rate: Step size.
        reg: L2 penalty on the rows of an example.
        seed: What order and negatives are drawn from.
    """
    indptr, seen = log.seen
    for epoch in range(epochs):
        _pmf_epoch(
            factors.users,
            factors.items,
            log.user_ids,
            log.item_ids,
            visit_order(seed, epoch, len(log)),
            indptr,
            seen,
            n_negative_items,
            n_negatives,
            seed,
            _NEGATIVES + epoch,
            np.float32(learning_rate),
            np.float32(reg),
        )


@compiled
def _has(indptr: NDArray[np.int64], seen: NDArray[np.int32], user: int, item: np.int64) -> np.bool_:
    low, high = indptr[user], indptr[user + 1]
    while low < high:
        middle = (low + high) >> 1
        if seen[middle] < item:
            low = middle + 1
        else:
            high = middle
    return np.bool_(low < indptr[user + 1] and seen[low] == item)


@compiled
def _draw_negative(
    indptr: NDArray[np.int64],
    seen: NDArray[np.int32],
    user: int,
    place: int,
    key: np.uint64,
    below: int,
) -> np.int64:
    """Draw an item that the user has not seen (after `MAX_TRIES` draws: any item)."""
    drawn = np.int64(0)
    for attempt in range(MAX_TRIES):
        drawn = draw_below(key, place * MAX_TRIES + attempt, below)
        if not _has(indptr, seen, user, drawn):
            break
    return drawn


@compiled
def _bpr_epoch(
    users: NDArray[np.float32],
    items: NDArray[np.float32],
    bias: NDArray[np.float32],
    user_ids: NDArray[np.int64],
    item_ids: NDArray[np.int64],
    order: NDArray[np.int64],
    indptr: NDArray[np.int64],
    seen: NDArray[np.int32],
    n_negative_items: int,
    seed: int,
    stream: int,
    rate: np.float32,
    reg: np.float32,
) -> None:
    one = np.float32(1.0)
    key = stream_key(seed, stream)
    for event in order:
        user, item = user_ids[event], item_ids[event]
        negative = _draw_negative(indptr, seen, user, event, key, n_negative_items)
        p, q, r = users[user], items[item], items[negative]
        margin = bias[item] - bias[negative]
        for d in range(len(p)):
            margin += p[d] * (q[d] - r[d])
        pull = one / (one + np.exp(margin))
        for d in range(len(p)):
            x, y, z = p[d], q[d], r[d]
            p[d] = x + rate * (pull * (y - z) - reg * x)
            q[d] = y + rate * (pull * x - reg * y)
            r[d] = z - rate * (pull * x + reg * z)
        bias[item] += rate * (pull - reg * bias[item])
        bias[negative] -= rate * (pull + reg * bias[negative])


@compiled
def _pmf_epoch(
    users: NDArray[np.float32],
    items: NDArray[np.float32],
    user_ids: NDArray[np.int64],
    item_ids: NDArray[np.int64],
    order: NDArray[np.int64],
    indptr: NDArray[np.int64],
    seen: NDArray[np.int32],
    n_negative_items: int,
    n_negatives: int,
    seed: int,
    stream: int,
    rate: np.float32,
    reg: np.float32,
) -> None:
    key = stream_key(seed, stream)
    for event in order:
        user = user_ids[event]
        p = users[user]
        for j in range(n_negatives + 1):
            item = item_ids[event]
            target = np.float32(1.0)
            if j > 0:
                place = event * n_negatives + j - 1
                item = _draw_negative(indptr, seen, user, place, key, n_negative_items)
                target = np.float32(0.0)
            q = items[item]
            error = target
            for d in range(len(p)):
                error -= p[d] * q[d]
            for d in range(len(p)):
                x, y = p[d], q[d]
                p[d] = x + rate * (error * y - reg * x)
                q[d] = y + rate * (error * x - reg * y)
