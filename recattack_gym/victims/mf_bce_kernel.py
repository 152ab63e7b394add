"""Compiled pieces of MF-BCE: clean training and fine-tuning on the logistic loss.

The counting is that of the other factorisations (`mf_kernel`); which examples fine-tuning has is laid out in
`mf_bce_schedule`.
"""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.victims.epochs import NEGATIVES, visit_order
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.kernels import (
    compiled,
    draw_below,
    draw_negative,
    has_item,
    stream_key,
)
from recattack_gym.victims.mf_bce_schedule import CleanRun
from recattack_gym.victims.schedule import MAX_TRIES, NEGATIVE

CLICK, FIRST, OTHER, FRESH, PUSHED = range(5)
COINS = 1 << 20
"""As in `mf_bce_schedule`: machine code is kept for this file, so what it is made from stands here."""


def fit_bce(
    factors: Factors,
    log: Interactions,
    *,
    n_negative_items: int,
    n_negatives: int,
    popular_negatives: float,
    epochs: int,
    learning_rate: float,
    reg: float,
    seed: int,
    n_waypoints: int,
) -> CleanRun:
    """Train factors in place by stochastic gradient descent on the logistic loss of clicks.

    Args:
        factors: Untrained.
        log: What to train on.
        n_negative_items: Uniform negatives are drawn from `[0, n_negative_items)`.
        n_negatives: Negatives per click.
        popular_negatives: Share of clicks' first negatives that are drawn by popularity.
        epochs: Passes over the log.
        learning_rate: Step size.
        reg: L2 penalty on the rows of an example.
        seed: What order and negatives are drawn from.
        n_waypoints: How many states to keep, at `CleanRun.epochs`.

    Returns:
        The states that were kept.
    """
    indptr, seen = log.seen
    kept = CleanRun.epochs(n_waypoints, epochs)
    states: list[Factors] = []

    def keep(n_epochs: int) -> None:
        if n_epochs in kept:
            now = Factors(factors.users.copy(), factors.items.copy(), factors.bias.copy())
            states.extend([now] * kept.count(n_epochs))

    keep(0)
    for epoch in range(epochs):
        bce_epoch(
            factors.users,
            factors.items,
            factors.bias,
            log.user_ids,
            log.item_ids,
            visit_order(seed, epoch, len(log)),
            indptr,
            seen,
            n_negative_items,
            n_negatives,
            popular_negatives,
            seed,
            NEGATIVES + epoch,
            learning_rate,
            reg,
        )
        keep(epoch + 1)
    return CleanRun.of(states)


@compiled
def bce_epoch(
    users: NDArray[np.float32],
    items: NDArray[np.float32],
    bias: NDArray[np.float32],
    user_ids: NDArray[np.int64],
    item_ids: NDArray[np.int64],
    order: NDArray[np.int64],
    indptr: NDArray[np.int64],
    seen: NDArray[np.int32],
    n_negative_items: int,
    n_negatives: int,
    popular_negatives: float,
    seed: int,
    stream: int,
    learning_rate: float,
    reg: float,
) -> None:
    """Take one step per click or negative of an epoch; arguments as in `fit_bce`.

    Args:
        users: Shape `(n_users, d)`; changed, like the next two.
        items: Shape `(n_items, d)`.
        bias: Shape `(n_items,)`.
        user_ids: Of all events, as the next one.
        item_ids: Shape `(n_events,)`.
        order: In which events are visited, shape `(n_events,)`.
        indptr: Of `Interactions.seen`, as the next one.
        seen: The distinct items of each user.
        n_negative_items: See `fit_bce`, also for the next two.
        n_negatives: Per click.
        popular_negatives: Share.
        seed: What is drawn from.
        stream: Which use of the seed this is.
        learning_rate: Step size.
        reg: L2 penalty.
    """
    rate, shrink = np.float32(learning_rate), np.float32(reg)
    key = stream_key(seed, stream)
    for event in order:
        user = user_ids[event]
        p = users[user]
        for j in range(n_negatives + 1):
            item = item_ids[event]
            label = np.float32(1.0)
            if j > 0:
                place = event * n_negatives + j - 1
                popular = popular_negatives if j == 1 else 0.0
                item = draw_negative(
                    indptr, seen, user, place, key, n_negative_items, item_ids, popular
                )
                label = np.float32(0.0)
            q = items[item]
            logit = bias[item]
            for d in range(len(p)):
                logit += p[d] * q[d]
            error = label - sigmoid(logit)
            for d in range(len(p)):
                x, y = p[d], q[d]
                p[d] = x + rate * (error * y - shrink * x)
                q[d] = y + rate * (error * x - shrink * y)
            bias[item] += rate * (error - shrink * bias[item])


@compiled
def sigmoid(x: np.float32) -> np.float32:
    """Return the logistic function, for any finite number."""
    one, bound = np.float32(1.0), np.float32(80.0)  # exp(89) is not a float32
    return np.float32(one / (one + np.exp(-min(max(x, -bound), bound))))


@compiled
def fill_logits(
    user_ids: NDArray[np.int32],
    kinds: NDArray[np.int8],
    clicks: NDArray[np.int32],
    fresh_ids: NDArray[np.int32],
    seed: int,
    below: int,
    popular_negatives: float,
    indptr: NDArray[np.int64],
    seen: NDArray[np.int32],
    profile: NDArray[np.int64],
    events: NDArray[np.int64],
    items: NDArray[np.int32],
) -> None:
    """Fill in one poison set; the compiled twin of `LogisticSchedule.examples`.

    Args:
        user_ids: Of the schedule, shape `(S,)`, as the next three.
        kinds: Shape `(S,)`.
        clicks: Shape `(S,)`.
        fresh_ids: The schedule's `item_ids`.
        seed: The schedule's, as the next two.
        below: Where uniform negatives end.
        popular_negatives: Share.
        indptr: Of `Interactions.seen`, as the next one.
        seen: What genuine users have clicked.
        profile: Shape `(N, T)`.
        events: Items of all events, the fake ones last, shape `(n_events + N * T,)`.
        items: Written, shape `(S,)`.
    """
    profile_size = profile.shape[1]
    key = stream_key(seed, NEGATIVE)
    popular = np.int64(popular_negatives * COINS)
    for s in range(len(kinds)):
        kind, click = kinds[s], clicks[s]
        if kind == FRESH:
            items[s] = fresh_ids[s]
            continue
        own = profile[click // profile_size]
        if kind == CLICK:
            items[s] = own[click % profile_size]
            continue
        if kind == PUSHED:
            item = own[click % profile_size]
            items[s] = -1 if has_item(indptr, seen, user_ids[s], item) else item
            continue
        limit = popular if kind == FIRST else np.int64(0)
        drawn = np.int64(-1)
        for attempt in range(MAX_TRIES):
            counter = 2 * (s * MAX_TRIES + attempt)
            if limit > 0 and draw_below(key, counter + 1, COINS) < limit:
                drawn = events[draw_below(key, counter, len(events))]
            else:
                drawn = draw_below(key, counter, below)
            is_own = False
            for item in own:
                is_own = is_own or item == drawn
            if not is_own:
                break
        items[s] = drawn


@compiled
def train_logits(
    fakes: NDArray[np.float32],
    items: NDArray[np.float32],
    bias: NDArray[np.float32],
    share: NDArray[np.float32],
    follows: NDArray[np.int64],
    past_users: NDArray[np.float32],
    past_items: NDArray[np.float32],
    past_bias: NDArray[np.float32],
    user_ids: NDArray[np.int32],
    kinds: NDArray[np.int8],
    item_ids: NDArray[np.int32],
    batch_indptr: NDArray[np.int64],
    waypoints: NDArray[np.int64],
    learning_rate: float,
    reg: float,
    fake_gradient: NDArray[np.float32],
    item_gradient: NDArray[np.float32],
    bias_gradient: NDArray[np.float32],
) -> None:
    """Minimise the loss of `MFBCE._finetune`, batch by batch.

    Args:
        fakes: Fake users' rows, shape `(N, d)`; changed, like the next two.
        items: Shape `(n_items, d)`; only clicked items are read and changed.
        bias: Shape `(n_items,)`.
        share: What an item's steps are scaled by, shape `(n_items,)`; zero for items that rest.
        follows: Clicked items that move with the clean run from one waypoint to the next, beside what the
            examples do to them. They begin where the first waypoint is.
        past_users: Of `CleanRun`, shape `(n_users, W, d)`, as the next two.
        past_items: Shape `(n_items, W, d)`.
        past_bias: Shape `(n_items, W)`.
        user_ids: Of each example, shape `(S,)`, as the next two.
        kinds: See `LogisticSchedule`.
        item_ids: From `fill_logits`.
        batch_indptr: Shape `(n_batches + 1,)`.
        waypoints: Shape `(n_batches,)`, at least one.
        learning_rate: Step size.
        reg: L2 penalty.
        fake_gradient: Zero, shape of `fakes`; zero again afterwards, like the next two.
        item_gradient: Shape of `items`.
        bias_gradient: Shape of `bias`.
    """
    d, n_users = fakes.shape[1], len(past_users)
    zero, one = np.float32(0.0), np.float32(1.0)
    rate, shrink = np.float32(learning_rate), np.float32(reg)
    place = waypoints[0]
    for batch in range(len(waypoints)):
        start, end = batch_indptr[batch], batch_indptr[batch + 1]
        if waypoints[batch] != place:
            after = waypoints[batch]
            for item in follows:
                for x in range(d):
                    items[item, x] += past_items[item, after, x] - past_items[item, place, x]
                bias[item] += past_bias[item, after] - past_bias[item, place]
            place = after
        for s in range(start, end):
            item, user = item_ids[s], user_ids[s]
            if item < 0 or (user < n_users and share[item] == zero):
                continue
            rests = share[item] == zero
            p = past_users[user, place] if user < n_users else fakes[user - n_users]
            q = past_items[item, place] if rests else items[item]
            logit = past_bias[item, place] if rests else bias[item]
            for x in range(d):
                logit += p[x] * q[x]
            error = (one if kinds[s] == CLICK else zero) - sigmoid(logit)
            if user >= n_users:
                to_p = fake_gradient[user - n_users]
                for x in range(d):
                    to_p[x] += shrink * p[x] - error * q[x]
            if not rests:
                to_q = item_gradient[item]
                for x in range(d):
                    to_q[x] += shrink * q[x] - error * p[x]
                bias_gradient[item] += shrink * bias[item] - error
        for s in range(start, end):
            item, user = item_ids[s], user_ids[s]
            if item < 0:
                continue
            if user >= n_users:
                row, slope = fakes[user - n_users], fake_gradient[user - n_users]
                for x in range(d):
                    row[x] -= rate * slope[x]
                    slope[x] = zero
            if share[item] > zero:
                row, slope, step = items[item], item_gradient[item], rate * share[item]
                for x in range(d):
                    row[x] -= step * slope[x]
                    slope[x] = zero
                bias[item] -= step * bias_gradient[item]
                bias_gradient[item] = zero
