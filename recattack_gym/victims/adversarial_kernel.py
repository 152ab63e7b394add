"""Compiled pieces of adversarial training: clean training, fine-tuning, and LightGCN's gradients.

All rest on one identity. With `w = q - r`, `a = eps / |w|` and `b = eps / |p|`, the perturbed embeddings of
a triple are `p - a w`, `q - b p` and `r + b p`. With the weights `m = 1 / (1 + adv_reg)` and `m' = adv_reg
m`, the loss `m softplus(-x) + m' softplus(-x')` has the gradients `-(g w - h p)` by the user, `-(g p - f w)`
by the click and `g p - f w` by the other item, where `g = m sigmoid(-x) + m' sigmoid(-x')`, `h = 2 b m'
sigmoid(-x')` and `f = a m' sigmoid(-x')`: the perturbations are constants, as in the paper, and cost nothing
but three numbers.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.victims.adversarial import Adversary
from recattack_gym.victims.epochs import NEGATIVES, visit_order
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.kernels import compiled, draw_negative, stream_key
from recattack_gym.victims.mf_kernel import fit_bpr


class Opponent(NamedTuple):
    """An `Adversary` as compiled code takes it."""

    eps: float
    weight: float
    """Of the perturbed loss; that of the clean one is the rest to 1."""
    kind: int
    """Place of the coefficient in `COEFFICIENTS`."""
    usual_size: float
    """What users' norms are compared with."""

    @classmethod
    def of(cls, adversary: Adversary, users: NDArray[np.float32]) -> "Opponent":
        """Make one that compares users with those given, shape `(n, d)`."""
        return cls(adversary.eps, adversary.weight, adversary.kind, adversary.usual_size(users))


def fit_adversarial(
    factors: Factors,
    log: Interactions,
    adversary: Adversary,
    *,
    n_negative_items: int,
    popular_negatives: float,
    epochs: int,
    learning_rate: float,
    reg: float,
    seed: int,
) -> None:
    """Train factors in place: some plain epochs of BPR, then adversarial ones.

    Draws do not depend on the adversary. Where it is idle, all epochs are BPR's and the factors those of
    `fit_bpr`, bit for bit.

    Args:
        factors: Untrained.
        log: What to train on.
        adversary: From when on, and how strong. Users' coefficients compare them with their mean at the
            beginning of an epoch.
        n_negative_items: See `fit_bpr`, like all that follow.
        popular_negatives: Share of negatives that are drawn by popularity.
        epochs: Passes over the log, plain ones included.
        learning_rate: Step size.
        reg: L2 penalty on the rows of an example.
        seed: What order and negatives are drawn from.
    """
    n_plain = adversary.n_plain(epochs)
    fit_bpr(
        factors,
        log,
        n_negative_items=n_negative_items,
        popular_negatives=popular_negatives,
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
            Opponent.of(adversary, factors.users),
        )


@compiled
def _share_of_eps(kind: int, square: np.float32, usual_size: float) -> np.float32:
    """Return `adversarial.coefficients` of a user whose squared norm is given."""
    one = np.float32(1.0)
    usual = np.float32(usual_size)
    share: np.float32 = one
    if kind == 1:
        share = np.float32(2.0) / (one + np.exp(one - square / (usual + np.float32(1e-9))))
    elif kind == 2:
        share = one / (one + np.exp(one - np.sqrt(square) / (usual + np.float32(1e-9))))
    elif kind == 3:
        share = one / (one + np.exp(usual - np.sqrt(square)))
    return share


@compiled
def _pulls(
    p: NDArray[np.float32],
    q: NDArray[np.float32],
    r: NDArray[np.float32],
    size: int,
    above: np.float32,
    opponent: Opponent,
    is_plain: bool,  # noqa: FBT001  # kernels take no keywords
) -> tuple[np.float32, np.float32, np.float32]:
    """Return the numbers g, h and f of the module's docstring; h and f are zero without an adversary.

    Args:
        p: The user's embedding, of which the first `size` numbers count, as of the next two.
        q: The click's.
        r: The other item's.
        size: What follows in the rows is not perturbed.
        above: What the click's bias is above the other's.
        opponent: How strong the adversary is.
        is_plain: Whether it is left out.
    """
    zero, one, two = np.float32(0.0), np.float32(1.0), np.float32(2.0)
    along = square_user = square_apart = zero
    for x in range(size):
        apart = q[x] - r[x]
        along += p[x] * apart
        square_user += p[x] * p[x]
        square_apart += apart * apart
    if is_plain:
        return one / (one + np.exp(along + above)), zero, zero
    eps = np.float32(opponent.eps) * _share_of_eps(opponent.kind, square_user, opponent.usual_size)
    a = eps / np.sqrt(square_apart) if square_apart > zero else zero
    b = eps / np.sqrt(square_user) if square_user > zero else zero
    perturbed = along + above - two * b * square_user - a * square_apart + two * a * b * along
    weight = np.float32(opponent.weight)
    pull = weight / (one + np.exp(perturbed))
    clean = (one - weight) / (one + np.exp(along + above))
    return clean + pull, two * b * pull, a * pull


@compiled
def _add_pair(
    p: NDArray[np.float32],
    q: NDArray[np.float32],
    r: NDArray[np.float32],
    size: int,
    pulls: tuple[np.float32, np.float32, np.float32],
    shrink: np.float32,
    to_p: NDArray[np.float32],
    to_q: NDArray[np.float32],
    to_r: NDArray[np.float32],
    moves_item: np.bool_,
    moves_other: np.bool_,
) -> None:
    """Add the gradients of the module's docstring, and the penalty's, to those of a triple's rows.

    Args:
        p: See `_pulls`, like the next three.
        q: The click's embedding.
        r: The other item's.
        size: How many numbers of a row have a gradient here.
        pulls: From `_pulls`.
        shrink: L2 penalty.
        to_p: Added to, shape of `p`; likewise the next two.
        to_q: Of the click.
        to_r: Of the other item.
        moves_item: Whether the click's embedding is trained.
        moves_other: Whether that of the other item is.
    """
    pull, to_user, to_apart = pulls
    for x in range(size):
        to_p[x] += (shrink + to_user) * p[x] - pull * (q[x] - r[x])
    if moves_item:
        for x in range(size):
            to_q[x] += shrink * q[x] - pull * p[x] + to_apart * (q[x] - r[x])
    if moves_other:
        for x in range(size):
            to_r[x] += shrink * r[x] + pull * p[x] - to_apart * (q[x] - r[x])


@compiled
def _adversarial_epoch(
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
    opponent: Opponent,
) -> None:
    rate, shrink = np.float32(learning_rate), np.float32(reg)
    key = stream_key(seed, stream)
    for event in order:
        user, item = user_ids[event], item_ids[event]
        negative = draw_negative(
            indptr, seen, user, event, key, n_negative_items, item_ids, popular_negatives
        )
        p, q, r = users[user], items[item], items[negative]
        above = bias[item] - bias[negative]
        pull, to_user, to_apart = _pulls(p, q, r, len(p), above, opponent, False)  # noqa: FBT003
        for d in range(len(p)):
            x, y, z = p[d], q[d], r[d]
            step = pull * x - to_apart * (y - z)
            p[d] = x + rate * (pull * (y - z) - to_user * x - shrink * x)
            q[d] = y + rate * (step - shrink * y)
            r[d] = z - rate * (step + shrink * z)
        bias[item] += rate * (pull - shrink * bias[item])
        bias[negative] -= rate * (pull + shrink * bias[negative])


@compiled
def train_adversarial_pairs(
    users: NDArray[np.float32],
    items: NDArray[np.float32],
    bias: NDArray[np.float32],
    share: NDArray[np.float32],
    user_rows: NDArray[np.int32],
    item_rows: NDArray[np.int32],
    batch_indptr: NDArray[np.int64],
    n_plain: int,
    learning_rate: float,
    reg: float,
    opponent: Opponent,
    user_gradient: NDArray[np.float32],
    item_gradient: NDArray[np.float32],
    bias_gradient: NDArray[np.float32],
) -> None:
    """Minimise the loss of `APR._finetune`, batch by batch.

    Args:
        users: Shape `(n, d)`; changed, like the next two.
        items: Shape `(n_items, d)`.
        bias: Shape `(n_items,)`.
        share: What an item's steps are scaled by, shape `(n_items,)`.
        user_rows: Shape `(S,)`: the row of each example's user.
        item_rows: Shape `(S, 2)`: click, negative.
        batch_indptr: Shape `(n_batches + 1,)`.
        n_plain: Batches before the adversary comes in.
        learning_rate: Step size.
        reg: L2 penalty.
        opponent: The adversary.
        user_gradient: Zero, shape of `users`; zero again afterwards, like the next two.
        item_gradient: Shape of `items`.
        bias_gradient: Shape of `bias`.
    """
    d = users.shape[1]
    zero, rate, shrink = np.float32(0.0), np.float32(learning_rate), np.float32(reg)
    for batch in range(len(batch_indptr) - 1):
        start, end = batch_indptr[batch], batch_indptr[batch + 1]
        for s in range(start, end):
            user, item, other = user_rows[s], item_rows[s, 0], item_rows[s, 1]
            p, q, r = users[user], items[item], items[other]
            above = bias[item] - bias[other]
            pull, to_user, to_apart = _pulls(p, q, r, d, above, opponent, batch < n_plain)
            _add_pair(
                p,
                q,
                r,
                d,
                (pull, to_user, to_apart),
                shrink,
                user_gradient[user],
                item_gradient[item],
                item_gradient[other],
                share[item] > zero,
                share[other] > zero,
            )
            if share[item] > zero:
                bias_gradient[item] += shrink * bias[item] - pull
            if share[other] > zero:
                bias_gradient[other] += shrink * bias[other] + pull
        for s in range(start, end):
            _take_step(users[user_rows[s]], user_gradient[user_rows[s]], rate)
            for item in item_rows[s]:
                if share[item] > zero:
                    _take_step(items[item], item_gradient[item], rate * share[item])
                    bias[item] -= rate * share[item] * bias_gradient[item]
                    bias_gradient[item] = zero


@compiled
def train_adversarial_factors(
    users: NDArray[np.float32],
    items: NDArray[np.float32],
    share: NDArray[np.float32],
    user_rows: NDArray[np.int32],
    item_rows: NDArray[np.int32],
    batch_indptr: NDArray[np.int64],
    n_plain: int,
    learning_rate: float,
    reg: float,
    opponent: Opponent,
    user_gradient: NDArray[np.float32],
    item_gradient: NDArray[np.float32],
) -> None:
    """Minimise the loss of `LightGCNAPR._train_final`, batch by batch; the last coordinate is the item bias.

    Arguments are those of `train_adversarial_pairs`.
    """
    last = users.shape[1] - 1
    zero, rate, shrink = np.float32(0.0), np.float32(learning_rate), np.float32(reg)
    for batch in range(len(batch_indptr) - 1):
        start, end = batch_indptr[batch], batch_indptr[batch + 1]
        for s in range(start, end):
            i, j = item_rows[s, 0], item_rows[s, 1]
            p, q, r = users[user_rows[s]], items[i], items[j]
            above = p[last] * (q[last] - r[last])
            pull, to_user, to_apart = _pulls(p, q, r, last, above, opponent, batch < n_plain)
            to_q, to_r = item_gradient[i], item_gradient[j]
            _add_pair(
                p,
                q,
                r,
                last,
                (pull, to_user, to_apart),
                shrink,
                user_gradient[user_rows[s]],
                to_q,
                to_r,
                share[i] > zero,
                share[j] > zero,
            )
            if share[i] > zero:
                to_q[last] += shrink * q[last] - pull * p[last]
            if share[j] > zero:
                to_r[last] += shrink * r[last] + pull * p[last]
        for s in range(start, end):
            _take_step(users[user_rows[s]], user_gradient[user_rows[s]], rate)
            for item in item_rows[s]:
                if share[item] > zero:
                    _take_step(items[item], item_gradient[item], rate * share[item])


@compiled
def add_adversarial_pairs(
    final: NDArray[np.float32],
    users: NDArray[np.int32],
    items: NDArray[np.int32],
    negatives: NDArray[np.int32],
    n_items: int,
    opponent: Opponent,
    gradient: NDArray[np.float32],
) -> None:
    """Add the gradient of a batch's mean loss by final embeddings; the last coordinate is the item bias.

    Args:
        final: Shape `(n_nodes, d)`; user `u` is node `n_items + u`.
        users: Shape `(B,)`.
        items: Clicked, shape `(B,)`.
        negatives: Not clicked, shape `(B,)`.
        n_items: Nodes that are items.
        opponent: The adversary.
        gradient: Added to, shape `(n_nodes, d)`.
    """
    last = final.shape[1] - 1
    share = np.float32(1.0 / len(users))
    for s in range(len(users)):
        p, q, r = final[n_items + users[s]], final[items[s]], final[negatives[s]]
        above = p[last] * (q[last] - r[last])
        pull, to_user, to_apart = _pulls(p, q, r, last, above, opponent, False)  # noqa: FBT003
        pull, to_user, to_apart = share * pull, share * to_user, share * to_apart
        to_p, to_q, to_r = (
            gradient[n_items + users[s]],
            gradient[items[s]],
            gradient[negatives[s]],
        )
        for x in range(last):
            to_p[x] += to_user * p[x] - pull * (q[x] - r[x])
        to_p[last] -= pull * (q[last] - r[last])
        for x in range(last):
            step = pull * p[x] - to_apart * (q[x] - r[x])
            to_q[x] -= step
            to_r[x] += step
        to_q[last] -= pull * p[last]
        to_r[last] += pull * p[last]


@compiled
def add_decay(
    embeddings: NDArray[np.float32],
    users: NDArray[np.int32],
    items: NDArray[np.int32],
    negatives: NDArray[np.int32],
    n_items: int,
    reg: float,
    gradient: NDArray[np.float32],
) -> None:
    """Add the gradient of `reg / 2` times the mean squared norm of a batch's three embeddings.

    Args:
        embeddings: Layer 0, shape `(n_nodes, d)`; the others as in `add_adversarial_pairs`.
        users: Shape `(B,)`.
        items: Shape `(B,)`.
        negatives: Shape `(B,)`.
        n_items: Nodes that are items.
        reg: L2 penalty.
        gradient: Added to, shape `(n_nodes, d)`.
    """
    decay = np.float32(reg / len(users))
    for s in range(len(users)):
        for node in (np.int64(n_items + users[s]), np.int64(items[s]), np.int64(negatives[s])):
            row, slope = embeddings[node], gradient[node]
            for x in range(len(row)):
                slope[x] += decay * row[x]


@compiled
def _take_step(row: NDArray[np.float32], gradient: NDArray[np.float32], rate: np.float32) -> None:
    """Move against the gradient and clear it: a row that comes again in a batch has none left.

    As in `mf_kernel`, which is no shared source (`kernels.SHARED_SOURCES`) of other files' machine code.
    """
    for x in range(len(row)):
        row[x] -= rate * gradient[x]
    gradient[:] = np.float32(0.0)
