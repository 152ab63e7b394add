"""Clean training of PMF-APR: PMF's epochs, then epochs in which every pair is met twice.

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
        adversary: From when on, and how strong.
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
        )


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
            a, b = sign * length / np.sqrt(of_p), sign * length / np.sqrt(of_q)
            moved = error + a * of_p + b * of_q - a * b * product
            both = clean * error + pushed * moved
            for d in range(len(p)):
                x, y = p[d], q[d]
                p[d] = x + rate * (both * y - pushed * moved * a * x - shrink * x)
                q[d] = y + rate * (both * x - pushed * moved * b * y - shrink * y)
