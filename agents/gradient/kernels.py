"""Compiled pieces of surrogates: pairs that are drawn, gradients of losses, sparse products, Adam.

All kernels are of one thread and release the GIL. They compute in the precision of the arrays that they are
given. Everything is in this one file, because numba compiles again only when a kernel's own file changes.
"""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.victims.kernels import compiled, draw_below, has_item, stream_key

Real = np.float32 | np.float64
"""What parameters are made of."""

MAX_TRIES = 32
"""How often a negative is drawn again before an item that the user has is taken after all."""


# -- the graph -------------------------------------------------------------------------------------


@compiled
def add_hop(
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    columns: NDArray[np.int32],
    source: NDArray[Real],
    scale: NDArray[Real],
    weight: float,
    carried: NDArray[Real],
    total: NDArray[Real],
) -> None:
    """Go one hop along one side of the graph.

    The normalised adjacency is `S B S`, with `B` of zeros and ones and `S` the diagonal of `scale`. Of `S x`
    this adds `weight S B S x` to `total` and leaves `S S B S x`, from which the next hop goes on: no pair
    needs a weight. Eight rows are summed at a time, so that a sum is loaded and stored once for eight.

    Args:
        starts: Row `r` has `columns[starts[r]:ends[r]]`; shape `(n,)`.
        ends: Shape `(n,)`.
        columns: Rows of `source`, shape `(n_edges,)`.
        source: Of the other side, shape `(m, d)`.
        scale: Of this side, shape `(n,)`.
        weight: Of this hop; with 0 `total` is left alone.
        carried: Written, shape `(n, d)`.
        total: Added to, shape `(n, d)`.
    """
    size = source.shape[1]
    for row in range(len(starts)):
        found = carried[row]
        for x in range(size):
            found[x] = 0
        entry, end = starts[row], ends[row]
        while entry + 8 <= end:
            a, b = source[columns[entry]], source[columns[entry + 1]]
            c, d = source[columns[entry + 2]], source[columns[entry + 3]]
            e, f = source[columns[entry + 4]], source[columns[entry + 5]]
            g, h = source[columns[entry + 6]], source[columns[entry + 7]]
            for x in range(size):
                found[x] += ((a[x] + b[x]) + (c[x] + d[x])) + ((e[x] + f[x]) + (g[x] + h[x]))
            entry += 8
        while entry < end:
            a = source[columns[entry]]
            for x in range(size):
                found[x] += a[x]
            entry += 1
        own = scale[row]
        share, keep = source.dtype.type(weight) * own, own * own
        if weight != 0:
            added = total[row]
            for x in range(size):
                added[x] += share * found[x]
        for x in range(size):
            found[x] *= keep


@compiled
def pair_products(
    users: NDArray[np.int64],
    indptr: NDArray[np.int64],
    items: NDArray[np.int32],
    left: NDArray[Real],
    right: NDArray[Real],
    found: NDArray[Real],
) -> None:
    """Write `left_u . right_i + right_u . left_i` of all pairs of some users.

    Args:
        users: Whose pairs, shape `(B,)`.
        indptr: Of the users' items.
        items: Shape `(n_edges,)`.
        left: Shape `(n_rows, d)`.
        right: Shape `(n_rows, d)`.
        found: Written at these pairs, shape `(n_edges,)`.
    """
    n_users, size = len(indptr) - 1, left.shape[1]
    for user in users:
        left_user, right_user = left[user], right[user]
        for edge in range(indptr[user], indptr[user + 1]):
            row = n_users + items[edge]
            left_item, right_item = left[row], right[row]
            total = left.dtype.type(0)
            for x in range(size):
                total += left_user[x] * right_item[x] + right_user[x] * left_item[x]
            found[edge] = total


@compiled
def add_to_pairs(
    users: NDArray[np.int64],
    indptr: NDArray[np.int64],
    items: NDArray[np.int32],
    values: NDArray[Real],
    source: NDArray[Real],
    target: NDArray[Real],
) -> None:
    """Add to both ends of all pairs of some users the pair's value times the other end's row.

    Args:
        users: Whose pairs, shape `(B,)`.
        indptr: Of the users' items.
        items: Shape `(n_edges,)`.
        values: Shape `(n_edges,)`.
        source: Shape `(n_rows, d)`.
        target: Added to, shape `(n_rows, d)`.
    """
    n_users, size = len(indptr) - 1, source.shape[1]
    for user in users:
        s_user, t_user = source[user], target[user]
        for edge in range(indptr[user], indptr[user + 1]):
            value, row = values[edge], n_users + items[edge]
            s_item, t_item = source[row], target[row]
            for x in range(size):
                t_user[x] += value * s_item[x]
                t_item[x] += value * s_user[x]


@compiled
def keep_edges(
    indptr: NDArray[np.int64],
    columns: NDArray[np.int32],
    edges: NDArray[np.int64],
    is_kept: NDArray[np.bool_],
    kept_columns: NDArray[np.int32],
    kept_ends: NDArray[np.int64],
) -> None:
    """Write the entries of every row that are marked at the beginning of the row's place.

    Args:
        indptr: Shape `(n + 1,)`.
        columns: Shape `(n_edges,)`.
        edges: Number of the pair of each entry, shape `(n_edges,)`.
        is_kept: Of each pair.
        kept_columns: Written, shape `(n_edges,)`; what follows a row's kept entries means nothing.
        kept_ends: Written, where the kept entries of each row end, shape `(n,)`.
    """
    for row in range(len(indptr) - 1):
        place = indptr[row]
        for entry in range(indptr[row], indptr[row + 1]):
            kept_columns[place] = columns[
                entry
            ]  # written over unless it is kept: no branch to guess
            place += is_kept[edges[entry]]
        kept_ends[row] = place


# -- what a step learns from -----------------------------------------------------------------------


@compiled
def draw_examples(
    seed: int,
    epoch: int,
    first: int,
    genuine: NDArray[np.int64],
    fake: NDArray[np.int64],
    genuine_below: int,
    indptr: NDArray[np.int64],
    items: NDArray[np.int32],
    n_items: int,
    users: NDArray[np.int32],
    positives: NDArray[np.int32],
    negatives: NDArray[np.int32],
) -> None:
    """Draw users, one item that each has, and items that it has not.

    Args:
        seed: What everything is drawn from.
        epoch: Its number; each has draws of its own.
        first: Number of the first draw within the epoch.
        genuine: Genuine users with items.
        fake: Fake users with items.
        genuine_below: Of `2 ** 30` draws so many are of genuine users, the others of fake ones.
        indptr: Of the users' items.
        items: Ascending within each user.
        n_items: Negatives are drawn from `[0, n_items)`.
        users: Written, shape `(B,)`.
        positives: Written, shape `(B,)`.
        negatives: Written, shape `(B, n_negatives)`.
    """
    key = stream_key(seed, epoch)
    n_negatives = negatives.shape[1]
    stride = 3 + n_negatives * MAX_TRIES
    for b in range(len(users)):
        place = (first + b) * stride
        if draw_below(key, place, 1 << 30) < genuine_below:
            user = genuine[draw_below(key, place + 1, len(genuine))]
        else:
            user = fake[draw_below(key, place + 1, len(fake))]
        start = indptr[user]
        users[b] = user
        positives[b] = items[start + draw_below(key, place + 2, indptr[user + 1] - start)]
        for j in range(n_negatives):
            drawn = np.int64(0)
            for attempt in range(MAX_TRIES):
                drawn = draw_below(key, place + 3 + j * MAX_TRIES + attempt, n_items)
                if not has_item(indptr, items, user, drawn):
                    break
            negatives[b, j] = drawn


@compiled
def add_bpr_gradient(
    n_users: int,
    users: NDArray[np.int32],
    positives: NDArray[np.int32],
    negatives: NDArray[np.int32],
    representations: NDArray[Real],
    reg: float,
    gradient: NDArray[Real],
) -> Real:
    """Add the gradient of the BPR loss of a batch; returns the loss.

    `mean softplus(s_uj - s_ui) + reg mean(|r_u|^2 + |r_i|^2 + |r_j|^2)`; arguments as in `add_bce_gradient`.
    """
    one, total = representations.dtype.type(1), np.float64(0.0)
    share = representations.dtype.type(1.0 / (len(users) * negatives.shape[1]))
    shrink = representations.dtype.type(2.0 * reg) * share
    size = representations.shape[1]
    for b in range(len(users)):
        r_user, g_user = representations[users[b]], gradient[users[b]]
        r_item, g_item = representations[n_users + positives[b]], gradient[n_users + positives[b]]
        for j in range(negatives.shape[1]):
            other = n_users + negatives[b, j]
            r_other, g_other = representations[other], gradient[other]
            margin, norms = one - one, one - one
            for x in range(size):
                u, p, n = r_user[x], r_item[x], r_other[x]
                margin += u * (p - n)
                norms += u * u + p * p + n * n
            pull = share / (one + np.exp(margin))
            total += softplus(-margin) + reg * norms
            for x in range(size):
                u, p, n = r_user[x], r_item[x], r_other[x]
                g_user[x] += shrink * u - pull * (p - n)
                g_item[x] += shrink * p - pull * u
                g_other[x] += shrink * n + pull * u
    return total * share


@compiled
def add_bce_gradient(
    n_users: int,
    users: NDArray[np.int32],
    positives: NDArray[np.int32],
    negatives: NDArray[np.int32],
    representations: NDArray[Real],
    reg: float,
    gradient: NDArray[Real],
) -> Real:
    """Add the gradient of the binary cross-entropy of a batch; returns the loss.

    The mean over clicked and drawn pairs of `softplus(-s)` and `softplus(s)`, and of
    `reg (|r_u|^2 + |r_i|^2)`.

    Args:
        n_users: Where the rows of items begin.
        users: Shape `(B,)`.
        positives: Shape `(B,)`.
        negatives: Shape `(B, n_negatives)`.
        representations: Shape `(n_rows, d)`.
        reg: Weight of the squared norms.
        gradient: Added to, shape `(n_rows, d)`.
    """
    one, total = representations.dtype.type(1), np.float64(0.0)
    n_negatives, size = negatives.shape[1], representations.shape[1]
    share = representations.dtype.type(1.0 / (len(users) * (1 + n_negatives)))
    shrink = representations.dtype.type(2.0 * reg) * share
    for b in range(len(users)):
        r_user, g_user = representations[users[b]], gradient[users[b]]
        for j in range(-1, n_negatives):
            row = n_users + (positives[b] if j < 0 else negatives[b, j])
            r_item, g_item = representations[row], gradient[row]
            score, norms = one - one, one - one
            for x in range(size):
                u, p = r_user[x], r_item[x]
                score += u * p
                norms += u * u + p * p
            signed = score if j < 0 else -score
            total += softplus(-signed) + reg * norms
            pull = share / (one + np.exp(signed))
            if j < 0:
                pull = -pull
            for x in range(size):
                u, p = r_user[x], r_item[x]
                g_user[x] += shrink * u + pull * p
                g_item[x] += shrink * p + pull * u
    return total * share


@compiled
def softplus(x: Real) -> Real:
    """Return `log(1 + exp(x))` without overflow."""
    result: Real = max(x, x - x) + np.log1p(np.exp(-np.abs(x)))
    return result


@compiled
def adam_step(
    values: NDArray[Real],
    gradient: NDArray[Real],
    first: NDArray[Real],
    second: NDArray[Real],
    step: int,
    learning_rate: float,
) -> None:
    """Take one step of Adam (Kingma and Ba, ICLR 2015) on all rows, also those with gradient zero.

    As `torch.optim.Adam` with its defaults (0.9, 0.999, 1e-8) does; all arrays have the same shape `(n, d)`
    but `gradient` all change.

    Args:
        values: Parameters.
        gradient: Of the loss; set to zero afterwards.
        first: Mean of the gradients.
        second: Mean of their squares.
        step: Number of this step, from 1.
        learning_rate: Step size.
    """
    real = values.dtype.type
    keep_first, keep_second, eps = real(0.9), real(0.999), real(1e-8)
    add_first, add_second = real(0.1), real(0.001)
    rate = real(learning_rate / (1.0 - 0.9**step))
    scale = real(1.0 / (1.0 - 0.999**step))
    for row in range(len(values)):
        value, g, m, v = values[row], gradient[row], first[row], second[row]
        for x in range(len(value)):
            m[x] = keep_first * m[x] + add_first * g[x]
            v[x] = keep_second * v[x] + add_second * g[x] * g[x]
            value[x] -= rate * m[x] / (np.sqrt(v[x] * scale) + eps)
            g[x] = real(0)


# -- lists -----------------------------------------------------------------------------------------


@compiled
def largest(scores: NDArray[Real], k: int, found: NDArray[np.int64]) -> None:
    """Find the `k` largest scores of each row, best first; of equals the smaller item comes first.

    Args:
        scores: Finite numbers, shape `(B, n)`; what is not to be found has `-3e38`.
        k: At most `n`.
        found: Written, shape `(B, k)`; -1 where nothing is left.
    """
    for row in range(len(scores)):
        own, best = scores[row], found[row]
        n_found = 0
        for item in range(len(own)):
            score = own[item]
            if score <= -2.9e38 or (n_found == k and score <= own[best[k - 1]]):
                continue
            place = n_found if n_found < k else k - 1
            while place > 0 and own[best[place - 1]] < score:
                best[place] = best[place - 1]
                place -= 1
            best[place] = item
            n_found = min(k, n_found + 1)
        for place in range(n_found, k):
            best[place] = -1


@compiled
def hide_items(
    users: NDArray[np.int64],
    indptr: NDArray[np.int64],
    items: NDArray[np.int32],
    scores: NDArray[Real],
) -> None:
    """Set the scores of the users' own items to `-3e38`; `scores` has shape `(len(users), n_items)`."""
    for b in range(len(users)):
        for edge in range(indptr[users[b]], indptr[users[b] + 1]):
            scores[b, items[edge]] = -3e38
