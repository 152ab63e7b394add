"""Compiled pieces of MF-BCE under adversarial training: clean training and fine-tuning.

With `x = p . q + b`, `t = 1` for a click and `t = -1` for another item, `a = -t eps / |p|` and `c = -t eps /
|q|`, the perturbed embeddings of a pair are `p + c q` and `q + a p` (see `adversarial_points`), and its score
is `x' = x + a |p|^2 + c |q|^2 + a c p . q`. With the weights `m = 1 / (1 + adv_reg)` and `m' = adv_reg m`,
and `e = y - sigmoid(x)`, `e' = y - sigmoid(x')`, the loss `m l(x) + m' l(x')` has the gradients `-(g q + m'
e' a p)` by the user, `-(g p + m' e' c q)` by the item and `-g` by its bias, where `g = m e + m' e'`: the
perturbations are constants, as in the paper, and cost three numbers and one more exponential.
"""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.victims.adversarial import Adversary
from recattack_gym.victims.epochs import NEGATIVES, visit_order
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.kernels import compiled, draw_negative, stream_key
from recattack_gym.victims.mf_bce_schedule import CleanRun

CLICK = 0
"""As in `mf_bce_schedule`, which is no shared source (`kernels.SHARED_SOURCES`) of other machine code."""


def fit_adversarial_logits(
    factors: Factors,
    log: Interactions,
    adversary: Adversary,
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
    """Train factors in place: some plain epochs of MF-BCE, then adversarial ones, with the same draws.

    Where the adversary is idle, all epochs are MF-BCE's: factors and waypoints are those of `fit_bce`, bit
    for bit.

    Args:
        factors: Untrained.
        log: What to train on.
        adversary: From when on, and how strong. Users' coefficients compare them with their mean at the
            beginning of an epoch.
        n_negative_items: See `fit_bce`, like all that follow.
        n_negatives: Negatives per click.
        popular_negatives: Share of clicks' first negatives that are drawn by popularity.
        epochs: Passes over the log, plain ones included.
        learning_rate: Step size.
        reg: L2 penalty on the rows of an example.
        seed: What order and negatives are drawn from.
        n_waypoints: How many states to keep, at `CleanRun.epochs`.

    Returns:
        The states that were kept.
    """
    from recattack_gym.victims.mf_bce_kernel import bce_epoch

    indptr, seen = log.seen
    n_plain, kept = adversary.n_plain(epochs), CleanRun.epochs(n_waypoints, epochs)
    states: list[Factors] = []
    for epoch in range(epochs + 1):  # the last turn keeps, and trains no more
        if epoch in kept:
            now = Factors(factors.users.copy(), factors.items.copy(), factors.bias.copy())
            states.extend([now] * kept.count(epoch))
        if epoch == epochs:
            break
        arguments = (
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
        if epoch < n_plain:
            bce_epoch(*arguments)
        else:
            usual_size = adversary.usual_size(factors.users)
            _adversarial_epoch(
                *arguments, adversary.eps, adversary.weight, adversary.kind, usual_size
            )
    return CleanRun.of(states)


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
def _sigmoid(x: np.float32) -> np.float32:
    """Return the logistic function, for any finite number; as in `mf_bce_kernel`, no shared source either."""
    one, bound = np.float32(1.0), np.float32(80.0)  # exp(89) is not a float32
    return np.float32(one / (one + np.exp(-min(max(x, -bound), bound))))


@compiled
def _pulls(
    p: NDArray[np.float32],
    q: NDArray[np.float32],
    bias: np.float32,
    label: np.float32,
    eps: float,
    weight: float,
    kind: int,
    usual_size: float,
) -> tuple[np.float32, np.float32, np.float32]:
    """Return the numbers `g`, `m' e' a` and `m' e' c` of the module's docstring.

    Args:
        p: The user's embedding.
        q: The item's.
        bias: The item's.
        label: 1 for a click, 0 for another item.
        eps: Length of perturbations, before the user's coefficient; 0 where there is no adversary.
        weight: Of the perturbed loss.
        kind: Place of the coefficient in `COEFFICIENTS`.
        usual_size: What users' norms are compared with.
    """
    zero, one = np.float32(0.0), np.float32(1.0)
    product = square_user = square_item = zero
    for x in range(len(p)):
        product += p[x] * q[x]
        square_user += p[x] * p[x]
        square_item += q[x] * q[x]
    error = label - _sigmoid(product + bias)
    if eps == 0.0:
        return error, zero, zero
    length = np.float32(eps) * _share_of_eps(kind, square_user, usual_size)
    towards = one - label - label
    a = towards * length / np.sqrt(square_user) if square_user > zero else zero
    c = towards * length / np.sqrt(square_item) if square_item > zero else zero
    moved = product + bias + a * square_user + c * square_item + a * c * product
    pushed = np.float32(weight) * (label - _sigmoid(moved))
    return (one - np.float32(weight)) * error + pushed, pushed * a, pushed * c


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
    n_negatives: int,
    popular_negatives: float,
    seed: int,
    stream: int,
    learning_rate: float,
    reg: float,
    eps: float,
    weight: float,
    kind: int,
    usual_size: float,
) -> None:
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
            pull, to_user, to_item = _pulls(p, q, bias[item], label, eps, weight, kind, usual_size)
            for d in range(len(p)):
                x, y = p[d], q[d]
                p[d] = x + rate * (pull * y + to_user * x - shrink * x)
                q[d] = y + rate * (pull * x + to_item * y - shrink * y)
            bias[item] += rate * (pull - shrink * bias[item])


@compiled
def train_adversarial_logits(
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
    n_plain: int,
    eps: float,
    weight: float,
    kind: int,
    usual_sizes: NDArray[np.float64],
    fake_gradient: NDArray[np.float32],
    item_gradient: NDArray[np.float32],
    bias_gradient: NDArray[np.float32],
) -> None:
    """Minimise the loss of `MFBCEAPR._trained`, batch by batch.

    Args:
        fakes: See `mf_bce_kernel.train_logits`, like all up to `reg`.
        items: Shape `(n_items, d)`.
        bias: Shape `(n_items,)`.
        share: What an item's steps are scaled by, shape `(n_items,)`.
        follows: Clicked items that move with the clean run.
        past_users: Of `CleanRun`, as the next two.
        past_items: Shape `(n_items, W, d)`.
        past_bias: Shape `(n_items, W)`.
        user_ids: Of each example, shape `(S,)`, as the next two.
        kinds: See `LogisticSchedule`.
        item_ids: From `fill_logits`.
        batch_indptr: Shape `(n_batches + 1,)`.
        waypoints: Shape `(n_batches,)`, at least one.
        learning_rate: Step size.
        reg: L2 penalty.
        n_plain: Batches before the adversary comes in.
        eps: Length of perturbations, before a user's coefficient.
        weight: Of the perturbed loss.
        kind: Place of the coefficient in `COEFFICIENTS`.
        usual_sizes: What users' norms are compared with at each waypoint, shape `(W,)`.
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
        length = 0.0 if batch < n_plain else eps
        for s in range(start, end):
            item, user = item_ids[s], user_ids[s]
            if item < 0 or (user < n_users and share[item] == zero):
                continue
            rests = share[item] == zero
            p = past_users[user, place] if user < n_users else fakes[user - n_users]
            q = past_items[item, place] if rests else items[item]
            of_item = past_bias[item, place] if rests else bias[item]
            label = one if kinds[s] == CLICK else zero
            pull, to_user, to_item = _pulls(
                p, q, of_item, label, length, weight, kind, usual_sizes[place]
            )
            if user >= n_users:
                to_p = fake_gradient[user - n_users]
                for x in range(d):
                    to_p[x] += (shrink - to_user) * p[x] - pull * q[x]
            if not rests:
                to_q = item_gradient[item]
                for x in range(d):
                    to_q[x] += (shrink - to_item) * q[x] - pull * p[x]
                bias_gradient[item] += shrink * bias[item] - pull
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
