"""Compiled pieces of MF-BCE: clean training and fine-tuning on the logistic loss.

What the loss has to do with is here; the schedule, the working copies, the negatives of fine-tuning and the
counting are those of the other factorisations (`mf_engine`, `mf_kernel`).
"""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.victims.epochs import NEGATIVES, visit_order
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.kernels import compiled, draw_negative, stream_key


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
) -> None:
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
    """
    indptr, seen = log.seen
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
def train_logits(
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
    """Minimise the loss of `MFBCE._finetune`, batch by batch.

    Args:
        users: Shape `(n, d)`; changed, like the next two.
        items: Shape `(n_items, d)`.
        bias: Shape `(n_items,)`.
        share: What an item's steps are scaled by, shape `(n_items,)`.
        user_rows: Shape `(S,)`: the row of each example's user.
        item_rows: Shape `(S, 1 + n_negatives)`: click, negatives.
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
            user = user_rows[s]
            p, to_p = users[user], user_gradient[user]
            for j in range(item_rows.shape[1]):
                item = item_rows[s, j]
                q = items[item]
                logit = bias[item]
                for x in range(d):
                    logit += p[x] * q[x]
                error = (one if j == 0 else zero) - sigmoid(logit)
                for x in range(d):
                    to_p[x] += shrink * p[x] - error * q[x]
                if share[item] > zero:
                    to_q = item_gradient[item]
                    for x in range(d):
                        to_q[x] += shrink * q[x] - error * p[x]
                    bias_gradient[item] += shrink * bias[item] - error
        for s in range(start, end):
            user = user_rows[s]
            row, slope = users[user], user_gradient[user]
            for x in range(d):
                row[x] -= rate * slope[x]
                slope[x] = zero
            for j in range(item_rows.shape[1]):
                item = item_rows[s, j]
                if share[item] > zero:
                    row, slope, step = items[item], item_gradient[item], rate * share[item]
                    for x in range(d):
                        row[x] -= step * slope[x]
                        slope[x] = zero
                    bias[item] -= step * bias_gradient[item]
                    bias_gradient[item] = zero
