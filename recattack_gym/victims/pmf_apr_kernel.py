"""Compiled pieces of PMF under adversarial training: clean training and fine-tuning.

With `e = r - p . q`, `s = sign(e)`, `a = s eps / |p|` and `b = s eps / |q|`, the perturbed embeddings of a
pair are `p - b q` and `q - a p`, and its error is `e' = e + s eps (|p| + |q|) - eps^2 cos(p, q)`.
"""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.victims.adversarial import Adversary
from recattack_gym.victims.epochs import NEGATIVES, visit_order
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.kernels import compiled, draw_negative, stream_key
from recattack_gym.victims.mf_kernel import fit_pmf


def fit_adversarial_points(
    factors: Factors,
    log: Interactions,
    adversary: Adversary,
    *,
    n_negative_items: int,
    n_negatives: int,
    epochs: int,
    learning_rate: float,
    reg: float,
    seed: int,
) -> None:
    """Train factors in place: some plain epochs of PMF, then adversarial ones, with the same draws.

    Args:
        factors: Untrained.
        log: What to train on.
        adversary: From when on, and how strong. Users' coefficients compare them with their mean at the
            beginning of an epoch.
        n_negative_items: See `fit_pmf`, like all that follow.
        n_negatives: Negatives per click.
        epochs: Passes over the log, plain ones included.
        learning_rate: Step size.
        reg: L2 penalty on the rows of an example.
        seed: What order and negatives are drawn from.
    """
    n_plain = adversary.n_plain(epochs)
    fit_pmf(
        factors,
        log,
        n_negative_items=n_negative_items,
        n_negatives=n_negatives,
        epochs=n_plain,
        learning_rate=learning_rate,
        reg=reg,
        seed=seed,
    )
    indptr, seen = log.seen
    for epoch in range(n_plain, epochs):
        _adversarial_epoch(
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
            adversary.eps,
            adversary.weight,
            adversary.kind,
            adversary.usual_size(factors.users),
        )


@compiled
def _share_of_eps(kind: int, square: np.float32, usual_size: float) -> np.float32:
    """Return `adversarial.coefficients` of a user whose squared norm is given.

    As in `adversarial_kernel`, which is no shared source (`kernels.SHARED_SOURCES`) of other machine code.
    """
    one, usual = np.float32(1.0), np.float32(usual_size)
    share: np.float32 = one
    if kind == 1:
        share = np.float32(2.0) / (one + np.exp(one - square / (usual + np.float32(1e-9))))
    elif kind == 2:
        share = one / (one + np.exp(one - np.sqrt(square) / (usual + np.float32(1e-9))))
    elif kind == 3:
        share = one / (one + np.exp(usual - np.sqrt(square)))
    return share


@compiled
def _adversarial_epoch(
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
    eps: float,
    weight: float,
    kind: int,
    usual_size: float,
) -> None:
    zero, tiny = np.float32(0.0), np.float32(1e-30)
    rate, shrink, length = np.float32(learning_rate), np.float32(reg), np.float32(eps)
    pushed = np.float32(weight)
    clean = np.float32(1.0) - pushed
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
                target = zero
            q = items[item]
            product, of_p, of_q = zero, tiny, tiny
            for d in range(len(p)):
                product += p[d] * q[d]
                of_p += p[d] * p[d]
                of_q += q[d] * q[d]
            error = target - product
            sign = np.float32(np.sign(error))
            if kind > 0:
                length = np.float32(eps) * _share_of_eps(kind, of_p, usual_size)
            a, b = sign * length / np.sqrt(of_p), sign * length / np.sqrt(of_q)
            moved = error + a * of_p + b * of_q - a * b * product
            both = clean * error + pushed * moved
            for d in range(len(p)):
                x, y = p[d], q[d]
                p[d] = x + rate * (both * y - pushed * moved * a * x - shrink * x)
                q[d] = y + rate * (both * x - pushed * moved * b * y - shrink * y)


@compiled
def train_adversarial_points(
    users: NDArray[np.float32],
    items: NDArray[np.float32],
    share: NDArray[np.float32],
    user_rows: NDArray[np.int32],
    item_rows: NDArray[np.int32],
    batch_indptr: NDArray[np.int64],
    n_plain: int,
    learning_rate: float,
    reg: float,
    eps: float,
    weight: float,
    kind: int,
    usual_size: float,
    user_gradient: NDArray[np.float32],
    item_gradient: NDArray[np.float32],
) -> None:
    """Minimise the loss of `PMFAPR._finetune`, batch by batch.

    Args:
        users: Shape `(n, d)`; changed, like the next one.
        items: Shape `(n_items, d)`.
        share: What an item's steps are scaled by, shape `(n_items,)`.
        user_rows: Shape `(S,)`: the row of each example's user.
        item_rows: Shape `(S, 1 + n_negatives)`: click, negatives.
        batch_indptr: Shape `(n_batches + 1,)`.
        n_plain: Batches before the adversary comes in.
        learning_rate: Step size.
        reg: L2 penalty.
        eps: Length of perturbations, before a user's coefficient.
        weight: Of the perturbed loss.
        kind: Place of the coefficient in `COEFFICIENTS`.
        usual_size: What users' norms are compared with.
        user_gradient: Zero, shape of `users`; zero again afterwards, like the next one.
        item_gradient: Shape of `items`.
    """
    d = users.shape[1]
    zero, one, tiny = np.float32(0.0), np.float32(1.0), np.float32(1e-30)
    rate, shrink = np.float32(learning_rate), np.float32(reg)
    for batch in range(len(batch_indptr) - 1):
        start, end = batch_indptr[batch], batch_indptr[batch + 1]
        pushed = zero if batch < n_plain else np.float32(weight)
        for s in range(start, end):
            user = user_rows[s]
            p, to_p = users[user], user_gradient[user]
            of_p = tiny
            for x in range(d):
                of_p += p[x] * p[x]
            length = np.float32(eps) * _share_of_eps(kind, of_p, usual_size)
            for j in range(item_rows.shape[1]):
                item = item_rows[s, j]
                q = items[item]
                product, of_q = zero, tiny
                for x in range(d):
                    product += p[x] * q[x]
                    of_q += q[x] * q[x]
                error = (one if j == 0 else zero) - product
                sign = np.float32(np.sign(error))
                a, b = sign * length / np.sqrt(of_p), sign * length / np.sqrt(of_q)
                moved = pushed * (error + a * of_p + b * of_q - a * b * product)
                both = (one - pushed) * error + moved
                for x in range(d):
                    to_p[x] += (shrink + moved * a) * p[x] - both * q[x]
                if share[item] > zero:
                    to_q = item_gradient[item]
                    for x in range(d):
                        to_q[x] += (shrink + moved * b) * q[x] - both * p[x]
        for s in range(start, end):
            row, slope = users[user_rows[s]], user_gradient[user_rows[s]]
            for x in range(d):
                row[x] -= rate * slope[x]
                slope[x] = zero
            for item in item_rows[s]:
                if share[item] > zero:
                    row, slope, step = items[item], item_gradient[item], rate * share[item]
                    for x in range(d):
                        row[x] -= step * slope[x]
                        slope[x] = zero
