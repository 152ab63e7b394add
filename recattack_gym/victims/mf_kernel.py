"""Compiled pieces of matrix factorisations (BPR, PMF): clean training, fine-tuning, counting."""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.victims.epochs import NEGATIVES, visit_order
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.kernels import compiled, draw_negative, has_item, is_better, stream_key

_AT_ONCE = 16
"""How many candidates are scored before looking whether a user is decided."""

_LAST = np.finfo(np.float32).min
"""Score of what is never shown; finite, since compiled arithmetic takes every number to be."""


def fit_bpr(
    factors: Factors,
    log: Interactions,
    *,
    n_negative_items: int,
    popular_negatives: float,
    epochs: int,
    learning_rate: float,
    reg: float,
    seed: int,
) -> None:
    """Train factors in place by stochastic gradient descent on the BPR loss.

    Args:
        factors: Untrained.
        log: What to train on.
        n_negative_items: Uniform negatives are drawn from `[0, n_negative_items)`.
        popular_negatives: Share of negatives that are drawn by popularity.
        epochs: Passes over the log.
        learning_rate: Step size.
        reg: L2 penalty on the rows of an example.
        seed: What order and negatives are drawn from.
    """
    indptr, seen = log.seen
    for epoch in range(epochs):
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
            popular_negatives,
            seed,
            NEGATIVES + epoch,
            learning_rate,
            reg,
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
            NEGATIVES + epoch,
            learning_rate,
            reg,
        )


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
    popular_negatives: float,
    seed: int,
    stream: int,
    learning_rate: float,
    reg: float,
) -> None:
    one, rate, shrink = np.float32(1.0), np.float32(learning_rate), np.float32(reg)
    key = stream_key(seed, stream)
    for event in order:
        user, item = user_ids[event], item_ids[event]
        negative = draw_negative(
            indptr, seen, user, event, key, n_negative_items, item_ids, popular_negatives
        )
        p, q, r = users[user], items[item], items[negative]
        margin = bias[item] - bias[negative]
        for d in range(len(p)):
            margin += p[d] * (q[d] - r[d])
        pull = one / (one + np.exp(margin))
        for d in range(len(p)):
            x, y, z = p[d], q[d], r[d]
            p[d] = x + rate * (pull * (y - z) - shrink * x)
            q[d] = y + rate * (pull * x - shrink * y)
            r[d] = z - rate * (pull * x + shrink * z)
        bias[item] += rate * (pull - shrink * bias[item])
        bias[negative] -= rate * (pull + shrink * bias[negative])


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
    learning_rate: float,
    reg: float,
) -> None:
    rate, shrink = np.float32(learning_rate), np.float32(reg)
    key = stream_key(seed, stream)
    for event in order:
        user = user_ids[event]
        p = users[user]
        for j in range(n_negatives + 1):
            item = item_ids[event]
            target = np.float32(1.0)
            if j > 0:
                place = event * n_negatives + j - 1
                item = draw_negative(
                    indptr, seen, user, place, key, n_negative_items, item_ids, 0.0
                )
                target = np.float32(0.0)
            q = items[item]
            error = target
            for d in range(len(p)):
                error -= p[d] * q[d]
            for d in range(len(p)):
                x, y = p[d], q[d]
                p[d] = x + rate * (error * y - shrink * x)
                q[d] = y + rate * (error * x - shrink * y)


@compiled
def take_first_negatives(
    clicks: NDArray[np.int32],
    user_ids: NDArray[np.int32],
    popular: NDArray[np.int32],
    pushed: NDArray[np.int32],
    indptr: NDArray[np.int64],
    seen: NDArray[np.int32],
    profile: NDArray[np.int64],
    examples: NDArray[np.int32],
) -> None:
    """Set the first negatives that `FactorSchedule.examples` sets.

    Args:
        clicks: Of the schedule's updates, shape `(S,)`.
        user_ids: Likewise.
        popular: Of the schedule, shape `(S,)`.
        pushed: Likewise.
        indptr: Of `Interactions.seen`, as the next one.
        seen: What genuine users have clicked.
        profile: Shape `(N, T)`.
        examples: Changed, shape `(S, 1 + n_negatives)`.
    """
    profile_size = profile.shape[1]
    for s in range(len(clicks)):
        if popular[s] >= 0:
            is_own = False
            for item in profile[clicks[s] // profile_size]:
                is_own = is_own or item == popular[s]
            if not is_own:
                examples[s, 1] = popular[s]
        elif pushed[s] >= 0:
            item = profile[pushed[s] // profile_size, pushed[s] % profile_size]
            if not has_item(indptr, seen, user_ids[s], item):
                examples[s, 1] = item


@compiled
def train_pairs(
    users: NDArray[np.float32],
    items: NDArray[np.float32],
    bias: NDArray[np.float32],
    share: NDArray[np.float32],
    user_rows: NDArray[np.int32],
    item_rows: NDArray[np.int32],
    batch_indptr: NDArray[np.int64],
    learning_rate: float,
    reg: float,
    user_gradient: NDArray[np.float32],
    item_gradient: NDArray[np.float32],
    bias_gradient: NDArray[np.float32],
) -> None:
    """Minimise the BPR loss of `BPR._finetune`, batch by batch.

    Args:
        users: Shape `(n, d)`; changed, like the next two.
        items: Shape `(n_items, d)`.
        bias: Shape `(n_items,)`.
        share: What an item's steps are scaled by, shape `(n_items,)`.
        user_rows: Shape `(S,)`: the row of each example's user.
        item_rows: Shape `(S, 2)`: click, negative.
        batch_indptr: Shape `(n_batches + 1,)`.
        learning_rate: Step size.
        reg: L2 penalty.
        user_gradient: Zero, shape of `users`; zero again afterwards, like the next two.
        item_gradient: Shape of `items`.
        bias_gradient: Shape of `bias`.
    """
    d = users.shape[1]
    zero, one = np.float32(0.0), np.float32(1.0)
    rate, shrink = np.float32(learning_rate), np.float32(reg)
    for batch in range(len(batch_indptr) - 1):
        start, end = batch_indptr[batch], batch_indptr[batch + 1]
        for s in range(start, end):
            user, item, other = user_rows[s], item_rows[s, 0], item_rows[s, 1]
            p, q, r = users[user], items[item], items[other]
            margin = bias[item] - bias[other]
            for x in range(d):
                margin += p[x] * (q[x] - r[x])
            pull = one / (one + np.exp(margin))
            to_p = user_gradient[user]
            for x in range(d):
                to_p[x] += shrink * p[x] - pull * (q[x] - r[x])
            if share[item] > zero:
                to_q = item_gradient[item]
                for x in range(d):
                    to_q[x] += shrink * q[x] - pull * p[x]
                bias_gradient[item] += shrink * bias[item] - pull
            if share[other] > zero:
                to_r = item_gradient[other]
                for x in range(d):
                    to_r[x] += shrink * r[x] + pull * p[x]
                bias_gradient[other] += shrink * bias[other] + pull
        for s in range(start, end):
            _take_step(users[user_rows[s]], user_gradient[user_rows[s]], rate)
            for j in range(2):
                item = item_rows[s, j]
                if share[item] > zero:
                    _take_step(items[item], item_gradient[item], rate * share[item])
                    bias[item] -= rate * share[item] * bias_gradient[item]
                    bias_gradient[item] = zero


@compiled
def _take_step(row: NDArray[np.float32], gradient: NDArray[np.float32], rate: np.float32) -> None:
    """Move against the gradient and clear it: a row that comes again in a batch has none left."""
    for x in range(len(row)):
        row[x] -= rate * gradient[x]
    gradient[:] = np.float32(0.0)


@compiled
def train_points(
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
    """Minimise the squared error of `PMF._finetune`; arguments as in `train_pairs`.

    `item_rows` has shape `(S, 1 + n_negatives)`.
    """
    d = users.shape[1]
    zero, rate, shrink = np.float32(0.0), np.float32(learning_rate), np.float32(reg)
    for batch in range(len(batch_indptr) - 1):
        start, end = batch_indptr[batch], batch_indptr[batch + 1]
        for s in range(start, end):
            user = user_rows[s]
            p, to_p = users[user], user_gradient[user]
            for j in range(item_rows.shape[1]):
                item = item_rows[s, j]
                q = items[item]
                error = np.float32(1.0) if j == 0 else zero
                for x in range(d):
                    error -= p[x] * q[x]
                for x in range(d):
                    to_p[x] += shrink * p[x] - error * q[x]
                if share[item] > zero:
                    to_q = item_gradient[item]
                    for x in range(d):
                        to_q[x] += shrink * q[x] - error * p[x]
        for s in range(start, end):
            _take_step(users[user_rows[s]], user_gradient[user_rows[s]], rate)
            for item in item_rows[s]:
                if share[item] > zero:
                    _take_step(items[item], item_gradient[item], rate * share[item])


@compiled
def _score_some(
    p: NDArray[np.float32],
    items: NDArray[np.float32],
    bias: NDArray[np.float32],
    item_ids: NDArray[np.int32],
    start: int,
    end: int,
    scores: NDArray[np.float32],
) -> None:
    """Write the scores of `item_ids[start:end]`; several per call, since a call costs ten products."""
    if len(p) == 64:  # a known length is unrolled: 2.9 instead of 4.3 ns per score
        for c in range(start, end):
            q = items[item_ids[c]]
            total = bias[item_ids[c]]
            for x in range(64):
                total += p[x] * q[x]
            scores[c] = total
    else:
        for c in range(start, end):
            q = items[item_ids[c]]
            total = bias[item_ids[c]]
            for x in range(len(p)):
                total += p[x] * q[x]
            scores[c] = total


@compiled
def _score_moved(
    p: NDArray[np.float32],
    items: NDArray[np.float32],
    bias: NDArray[np.float32],
    item_ids: NDArray[np.int32],
    item_places: NDArray[np.int32],
    clean_scores: NDArray[np.float32],
    start: int,
    end: int,
    scores: NDArray[np.float32],
) -> None:
    """Write scores as `_score_some` does, taking those of unmoved items from the clean ones."""
    for c in range(start, end):
        item = item_ids[c]
        if item_places[item] < 0:
            scores[c] = clean_scores[c]
        else:
            q = items[item]
            total = bias[item]
            for x in range(len(p)):
                total += p[x] * q[x]
            scores[c] = total


@compiled
def score_lists(
    users: NDArray[np.float32],
    items: NDArray[np.float32],
    bias: NDArray[np.float32],
    item_ids: NDArray[np.int32],
    lengths: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> None:
    """Write the score of each listed item `(U, L)`; the lowest number behind a list's end."""
    for user in range(len(item_ids)):
        _score_some(users[user], items, bias, item_ids[user], 0, lengths[user], scores[user])
        scores[user, lengths[user] :] = _LAST


@compiled
def _sort_targets(
    scores: NDArray[np.float32],
    target_items: NDArray[np.int64],
    eligible: NDArray[np.bool_],
    slots: NDArray[np.int64],
    sorted_scores: NDArray[np.float32],
) -> int:
    """Sort the eligible targets by rank; write their slots and scores, return their number."""
    n = 0
    for slot in range(len(target_items)):
        if not eligible[slot]:
            continue
        place = n
        while place > 0 and is_better(
            scores[slot],
            target_items[slot],
            sorted_scores[place - 1],
            target_items[slots[place - 1]],
        ):
            slots[place] = slots[place - 1]
            sorted_scores[place] = sorted_scores[place - 1]
            place -= 1
        slots[place] = slot
        sorted_scores[place] = scores[slot]
        n += 1
    return n


@compiled
def _count_above(
    scores: NDArray[np.float32],
    item_ids: NDArray[np.int32],
    start: int,
    end: int,
    limit: np.float32,
    target: int,
) -> int:
    """Count the items in `[start, end)` that rank above a target."""
    n = 0
    for c in range(start, end):
        n += int(is_better(scores[c], item_ids[c], limit, target))
    return n


@compiled
def count_lists(
    clean_users: NDArray[np.float32],
    moved_users: NDArray[np.float32],
    user_places: NDArray[np.int32],
    items: NDArray[np.float32],
    bias: NDArray[np.float32],
    item_places: NDArray[np.int32],
    item_ids: NDArray[np.int32],
    lengths: NDArray[np.int64],
    clean_scores: NDArray[np.float32],
    is_complete: NDArray[np.bool_],
    target_items: NDArray[np.int64],
    eligible: NDArray[np.bool_],
    k: int,
    counts: NDArray[np.int64],
    undecided: NDArray[np.int64],
) -> int:
    """Count the lists of length `k` that show each target.

    A target is shown if fewer than `k` candidates and other targets rank above it.

    Args:
        clean_users: Shape `(U, d)`.
        moved_users: Shape `(n_moving_users, d)`.
        user_places: Shape `(U,)`: row in `moved_users`, or -1.
        items: After fine-tuning, shape `(n_items, d)`.
        bias: Shape `(n_items,)`.
        item_places: Shape `(n_items,)`: -1 where fine-tuning has not moved the item.
        item_ids: Candidates in clean order, shape `(U, L)`.
        lengths: Shape `(U,)`: how many of them there are.
        clean_scores: Shape `(U, L)`.
        is_complete: Shape `(U,)`: whether the list has every candidate.
        target_items: Shape `(n_targets,)`.
        eligible: Shape `(U, n_targets)`.
        k: Length of a shown list.
        counts: Added to, shape `(n_targets,)`.
        undecided: Written, shape `(U,)`: users whose list is too short to tell.

    Returns:
        How many users are undecided.
    """
    n_targets = len(target_items)
    targets = target_items.astype(np.int32)
    raw_scores = np.empty(n_targets, dtype=np.float32)
    target_scores = np.empty(n_targets, dtype=np.float32)
    slots = np.empty(n_targets, dtype=np.int64)
    scores = np.empty(item_ids.shape[1], dtype=np.float32)
    most_moved = 2 * np.sum(item_places >= 0) > len(items)
    n_undecided = 0
    for user in range(len(item_ids)):
        place, length, own = user_places[user], lengths[user], item_ids[user]
        p = moved_users[place] if place >= 0 else clean_users[user]
        _score_some(p, items, bias, targets, 0, n_targets, raw_scores)
        n = _sort_targets(raw_scores, target_items, eligible[user], slots, target_scores)
        if n == 0:
            continue
        n_above, n_listed = 0, 0
        while n_listed < length and n_above < k:
            end = min(n_listed + max(k, _AT_ONCE), length)
            if place >= 0 or most_moved:
                _score_some(p, items, bias, own, n_listed, end, scores)
            else:
                _score_moved(
                    p, items, bias, own, item_places, clean_scores[user], n_listed, end, scores
                )
            n_above += _count_above(
                scores, own, n_listed, end, target_scores[0], target_items[slots[0]]
            )
            n_listed = end
        if n_above >= k:
            continue
        if not is_complete[user]:
            undecided[n_undecided] = user
            n_undecided += 1
            continue
        counts[slots[0]] += 1
        for a in range(1, min(n, k)):
            n_above = a + _count_above(
                scores, own, 0, length, target_scores[a], target_items[slots[a]]
            )
            if n_above >= k:
                break
            counts[slots[a]] += 1
    return n_undecided


@compiled
def count_rows(
    scores: NDArray[np.float32],
    user_ids: NDArray[np.int64],
    indptr: NDArray[np.int64],
    seen: NDArray[np.int32],
    target_items: NDArray[np.int64],
    eligible: NDArray[np.bool_],
    k: int,
    counts: NDArray[np.int64],
) -> None:
    """Count as `count_lists` does, from scores of the whole catalogue.

    Args:
        scores: Shape `(B, n_items)`; overwritten.
        user_ids: Shape `(B,)`.
        indptr: Of `Interactions.seen`, as the next one.
        seen: What is never shown.
        target_items: Shape `(n_targets,)`.
        eligible: Shape `(U, n_targets)`.
        k: Length of a shown list.
        counts: Added to, shape `(n_targets,)`.
    """
    n_targets = len(target_items)
    raw_scores = np.empty(n_targets, dtype=np.float32)
    target_scores = np.empty(n_targets, dtype=np.float32)
    slots = np.empty(n_targets, dtype=np.int64)
    every_item = np.arange(scores.shape[1]).astype(np.int32)
    for row in range(len(user_ids)):
        user, own = user_ids[row], scores[row]
        for slot in range(n_targets):
            raw_scores[slot] = own[target_items[slot]]
            own[target_items[slot]] = _LAST
        for place in range(indptr[user], indptr[user + 1]):
            own[seen[place]] = _LAST
        n = _sort_targets(raw_scores, target_items, eligible[user], slots, target_scores)
        for a in range(min(n, k)):
            n_above = a + _count_above(
                own, every_item, 0, len(own), target_scores[a], target_items[slots[a]]
            )
            if n_above >= k:
                break
            counts[slots[a]] += 1
