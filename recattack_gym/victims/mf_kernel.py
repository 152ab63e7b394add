"""Compiled pieces of matrix factorisations (BPR, PMF): clean training, fine-tuning, counting."""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_words
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.kernels import compiled, draw_below, stream_key
from recattack_gym.victims.schedule import MAX_TRIES

_FINE = 1 << 20
"""Resolution of shares."""

_AT_ONCE = 16
"""How many candidates are scored before looking whether a user is decided."""

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
            _NEGATIVES + epoch,
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
            _NEGATIVES + epoch,
            learning_rate,
            reg,
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
    clicked: NDArray[np.int64],
    popular: float,
) -> np.int64:
    """Draw an item that the user has not seen (after `MAX_TRIES` draws: any item).

    A share `popular` is the item of a random event in `clicked`, the rest uniform in `[0, below)`.
    """
    drawn = np.int64(0)
    limit = np.int64(popular * _FINE)
    for attempt in range(MAX_TRIES):
        counter = 2 * (place * MAX_TRIES + attempt)
        if limit > 0 and draw_below(key, counter + 1, _FINE) < limit:
            drawn = clicked[draw_below(key, counter, len(clicked))]
        else:
            drawn = draw_below(key, counter, below)
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
        negative = _draw_negative(
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
                item = _draw_negative(
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
def take_popular(
    clicks: NDArray[np.int32],
    popular: NDArray[np.int32],
    profile: NDArray[np.int64],
    examples: NDArray[np.int32],
) -> None:
    """Replace first negatives by popular ones, where the user has not clicked them.

    Args:
        clicks: Of the schedule, shape `(S,)`.
        popular: Of `popular_negatives`, shape `(S,)`.
        profile: Shape `(N, T)`.
        examples: Changed, shape `(S, 1 + n_negatives)`.
    """
    profile_size = profile.shape[1]
    for s in range(len(clicks)):
        item = popular[s]
        if item < 0:
            continue
        is_own = False
        if clicks[s] >= 0:
            own = profile[clicks[s] // profile_size]
            for t in range(profile_size):
                is_own = is_own or own[t] == item
        if not is_own:
            examples[s, 1] = item


@compiled
def number_rows(ids: NDArray[np.int32], places: NDArray[np.int32], rows: NDArray[np.int32]) -> int:
    """List the rows that are used, each once, in the order of first use.

    Args:
        ids: Shape `(S, w)`: the rows that each example uses.
        places: Shape `(n_rows_of_table,)`; where -1, set to the row's place in `rows` if it is used.
        rows: Written: the used rows.

    Returns:
        How many rows are used.
    """
    n = 0
    for s in range(ids.shape[0]):
        for j in range(ids.shape[1]):
            row = ids[s, j]
            if places[row] < 0:
                places[row] = n
                rows[n] = row
                n += 1
    return n


@compiled
def train_pairs(
    users: NDArray[np.float32],
    items: NDArray[np.float32],
    bias: NDArray[np.float32],
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
    one, rate, shrink = np.float32(1.0), np.float32(learning_rate), np.float32(reg)
    for batch in range(len(batch_indptr) - 1):
        start, end = batch_indptr[batch], batch_indptr[batch + 1]
        for s in range(start, end):
            user, item, other = user_rows[s], item_rows[s, 0], item_rows[s, 1]
            p, q, r = users[user], items[item], items[other]
            margin = bias[item] - bias[other]
            for x in range(d):
                margin += p[x] * (q[x] - r[x])
            pull = one / (one + np.exp(margin))
            to_p, to_q, to_r = user_gradient[user], item_gradient[item], item_gradient[other]
            for x in range(d):
                to_p[x] += shrink * p[x] - pull * (q[x] - r[x])
            for x in range(d):
                to_q[x] += shrink * q[x] - pull * p[x]
            for x in range(d):
                to_r[x] += shrink * r[x] + pull * p[x]
            bias_gradient[item] += shrink * bias[item] - pull
            bias_gradient[other] += shrink * bias[other] + pull
        for s in range(start, end):  # a row that comes again has no gradient left
            row, gradient = users[user_rows[s]], user_gradient[user_rows[s]]
            for x in range(d):
                row[x] -= rate * gradient[x]
            gradient[:] = np.float32(0.0)
            for j in range(2):
                item = item_rows[s, j]
                row, gradient = items[item], item_gradient[item]
                for x in range(d):
                    row[x] -= rate * gradient[x]
                gradient[:] = np.float32(0.0)
                bias[item] -= rate * bias_gradient[item]
                bias_gradient[item] = np.float32(0.0)


@compiled
def train_points(
    users: NDArray[np.float32],
    items: NDArray[np.float32],
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
    rate, shrink = np.float32(learning_rate), np.float32(reg)
    for batch in range(len(batch_indptr) - 1):
        start, end = batch_indptr[batch], batch_indptr[batch + 1]
        for s in range(start, end):
            user = user_rows[s]
            p, to_p = users[user], user_gradient[user]
            for j in range(item_rows.shape[1]):
                item = item_rows[s, j]
                q, to_q = items[item], item_gradient[item]
                error = np.float32(1.0) if j == 0 else np.float32(0.0)
                for x in range(d):
                    error -= p[x] * q[x]
                for x in range(d):
                    to_p[x] += shrink * p[x] - error * q[x]
                for x in range(d):
                    to_q[x] += shrink * q[x] - error * p[x]
        for s in range(start, end):  # a row that comes again has no gradient left
            row, gradient = users[user_rows[s]], user_gradient[user_rows[s]]
            for x in range(d):
                row[x] -= rate * gradient[x]
            gradient[:] = np.float32(0.0)
            for j in range(item_rows.shape[1]):
                row, gradient = items[item_rows[s, j]], item_gradient[item_rows[s, j]]
                for x in range(d):
                    row[x] -= rate * gradient[x]
                gradient[:] = np.float32(0.0)


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
    """Write the score of each listed item `(U, L)`; minus infinity behind a list's end."""
    for user in range(len(item_ids)):
        _score_some(users[user], items, bias, item_ids[user], 0, lengths[user], scores[user])
        scores[user, lengths[user] :] = np.float32(-np.inf)


@compiled
def _is_above(score: np.float32, item: int, other_score: np.float32, other: int) -> np.bool_:
    """Tell whether an item ranks above another: higher score, or equal and the lower id."""
    return np.bool_(score > other_score or (score == other_score and item < other))


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
        while place > 0 and _is_above(
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
        is_above = (scores[c] > limit) | ((scores[c] == limit) & (item_ids[c] < target))
        n += int(is_above)
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
        user_places: Shape `(>= U,)`: row in `moved_users`, or -1.
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
            own[target_items[slot]] = np.float32(-np.inf)
        for place in range(indptr[user], indptr[user + 1]):
            own[seen[place]] = np.float32(-np.inf)
        n = _sort_targets(raw_scores, target_items, eligible[user], slots, target_scores)
        for a in range(min(n, k)):
            n_above = a + _count_above(
                own, every_item, 0, len(own), target_scores[a], target_items[slots[a]]
            )
            if n_above >= k:
                break
            counts[slots[a]] += 1
