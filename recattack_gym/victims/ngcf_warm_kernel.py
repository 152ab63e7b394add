"""Compiled pieces of NGCF's fine-tuning by BPR beside the clean run.

Which examples fine-tuning has is laid out in `ngcf_warm`.
"""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.victims.kernels import compiled

CLICK, FIRST = 0, 1
"""As in `mf_bce_schedule`: machine code is kept for this file, so what it is made from stands here."""


@compiled
def fill_triples(
    user_ids: NDArray[np.int32],
    kinds: NDArray[np.int8],
    filled: NDArray[np.int32],
    positives: NDArray[np.int32],
    batch_indptr: NDArray[np.int64],
    is_learnt: NDArray[np.bool_],
    users: NDArray[np.int32],
    items: NDArray[np.int32],
    negatives: NDArray[np.int32],
    bounds: NDArray[np.int64],
) -> None:
    """Put triples together; the compiled twin of `PairSchedule.examples`.

    Args:
        user_ids: Of the schedule's rows, shape `(S,)`, as the next one.
        kinds: Shape `(S,)`.
        filled: The rows' items, from `fill_logits`.
        positives: Of the schedule, shape `(S,)`.
        batch_indptr: Of the rows.
        is_learnt: Shape `(n_items,)`: genuine users' examples with other negatives are left out.
        users: Written from the front, shape `(S,)`, like the next two.
        items: Shape `(S,)`.
        negatives: Shape `(S,)`.
        bounds: Written: where batches of triples begin and end; shape `(n_batches + 1,)`.
    """
    n = 0
    for batch in range(len(batch_indptr) - 1):
        bounds[batch] = n
        for s in range(batch_indptr[batch], batch_indptr[batch + 1]):
            if kinds[s] == FIRST:
                continue
            if kinds[s] == CLICK:
                items[n], negatives[n] = filled[s], filled[s + 1]
            elif filled[s] < 0 or not is_learnt[filled[s]]:
                continue
            else:
                items[n], negatives[n] = positives[s], filled[s]
            users[n] = user_ids[s]
            n += 1
    bounds[len(batch_indptr) - 1] = n


@compiled
def train_beside(
    fakes: NDArray[np.float32],
    items: NDArray[np.float32],
    moved: NDArray[np.float32],
    share: NDArray[np.float32],
    follows: NDArray[np.int64],
    past: NDArray[np.float32],
    user_ids: NDArray[np.int32],
    clicks: NDArray[np.int32],
    negatives: NDArray[np.int32],
    bounds: NDArray[np.int64],
    waypoints: NDArray[np.int64],
    learning_rate: float,
    reg: float,
    fake_gradient: NDArray[np.float32],
    item_gradient: NDArray[np.float32],
    moved_gradient: NDArray[np.float32],
) -> None:
    """Minimise the BPR loss beside the clean run, batch by batch; the twin of `NGCF._beside`.

    Args:
        fakes: Fake users' rows, shape `(N, d)`, the last coordinate 1; changed, like the next two.
        items: Shape `(n_items, d)`; only clicked items are read and changed.
        moved: How far genuine users stand from the clean run, shape `(n_users, d)`.
        share: What an item's steps are scaled by, shape `(n_items,)`; zero for items that rest.
        follows: Clicked items that move with the clean run, beside what the examples do to them. They
            begin where the first waypoint is.
        past: Of `WarmRun`, shape `(n_nodes, W, d)`.
        user_ids: Of each example, shape `(S,)`, as the next two.
        clicks: Clicked items.
        negatives: Items that were not clicked; a genuine user's are clicked by fake users.
        bounds: Of the batches, shape `(n_batches + 1,)`.
        waypoints: Shape `(n_batches,)`, at least one.
        learning_rate: Step size.
        reg: L2 penalty.
        fake_gradient: Zero, shape of `fakes`; zero again afterwards, like the next two.
        item_gradient: Shape of `items`.
        moved_gradient: Shape of `moved`.
    """
    d, n_users, n_items = fakes.shape[1], len(moved), len(items)
    zero, one = np.float32(0.0), np.float32(1.0)
    rate, shrink = np.float32(learning_rate), np.float32(reg)
    p = np.empty(d, dtype=np.float32)
    place = waypoints[0]
    for batch in range(len(waypoints)):
        after, start, end = waypoints[batch], bounds[batch], bounds[batch + 1]
        if after != place:
            for item in follows:
                for x in range(d):
                    items[item, x] += past[item, after, x] - past[item, place, x]
            place = after
        for s in range(start, end):
            user, item, other = user_ids[s], clicks[s], negatives[s]
            if user < n_users:
                for x in range(d):
                    p[x] = past[n_items + user, place, x] + moved[user, x]
            else:
                for x in range(d):
                    p[x] = fakes[user - n_users, x]
            q = items[item] if share[item] > zero else past[item, place]
            r = items[other] if share[other] > zero else past[other, place]
            margin = zero
            for x in range(d):
                margin += p[x] * (q[x] - r[x])
            pull = one / (one + np.exp(margin))
            if user < n_users:
                to_p = moved_gradient[user]
                for x in range(d - 1):
                    to_p[x] += pull * r[x]
            else:
                to_p = fake_gradient[user - n_users]
                for x in range(d - 1):
                    to_p[x] += shrink * p[x] - pull * (q[x] - r[x])
                if share[item] > zero:
                    to_q = item_gradient[item]
                    for x in range(d):
                        to_q[x] += shrink * q[x] - pull * p[x]
            if share[other] > zero:
                to_r = item_gradient[other]
                for x in range(d):
                    to_r[x] += shrink * r[x] + pull * p[x]
        for s in range(start, end):
            user, item, other = user_ids[s], clicks[s], negatives[s]
            if user < n_users:
                _take_step(moved[user], moved_gradient[user], rate)
            else:
                _take_step(fakes[user - n_users], fake_gradient[user - n_users], rate)
                if share[item] > zero:
                    _take_step(items[item], item_gradient[item], rate * share[item])
            if share[other] > zero:
                _take_step(items[other], item_gradient[other], rate * share[other])


@compiled
def _take_step(row: NDArray[np.float32], gradient: NDArray[np.float32], rate: np.float32) -> None:
    """Move against the gradient and clear it: a row that comes again in a batch has none left."""
    for x in range(len(row)):
        row[x] -= rate * gradient[x]
        gradient[x] = np.float32(0.0)
