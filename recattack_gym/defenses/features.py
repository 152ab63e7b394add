"""Numbers about each profile that fake ones are said to stand out by; pure functions.

Each takes the distinct pairs of a log and returns shape `(n_users,)`, 0 for a user without items. Means over
items run over *all* users, fake ones too, since a detector does not know them. Sources: Chirita, Nejdl and
Zamfir, "Preventing shilling attacks in online recommender systems", WIDM 2005 (RDMA, DegSim); Burke,
Mobasher, Williams and Bhaumik, "Classification features for attack detection in collaborative recommender
systems", KDD 2006 (WDMA, WDA, LengthVar, FMTD, MeanVar, TMF and relatives); Bryan, O'Mahony and Cunningham,
RecSys 2008 (UnRAP); Li et al., "Shilling attack detection in recommender systems via selecting patterns
analysis", IEICE Trans. 2016 (Pop-SAD). Which direction is suspicious depends on the attack.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.attack import DIRECTIONS, Direction
from recattack_gym.core.checks import as_choice, as_count, as_real
from recattack_gym.defenses.pairs import UserItems, sums_by

Vector = NDArray[np.float64]

_BLOCK_CELLS = 4_000_000
"""Pairs of users whose similarity is held at once, so that memory does not grow with the users."""

Popularity = Literal["mean", "range", "quartile"]


# -- how ratings deviate from the items' means -----------------------------------------------------


def rdma(pairs: UserItems) -> Vector:
    """Return rating deviation from mean agreement: mean over items of |r_ui - mean_i| / NR_i."""
    return pairs.user_means(pairs.deviations / pairs.popularity)


def wdma(pairs: UserItems) -> Vector:
    """Return weighted deviation from mean agreement: mean over items of |r_ui - mean_i| / NR_i^2."""
    return pairs.user_means(pairs.deviations / pairs.popularity.astype(np.float64) ** 2)


def wda(pairs: UserItems) -> Vector:
    """Return weighted degree of agreement: sum over items of |r_ui - mean_i| / NR_i."""
    return pairs.user_sums(pairs.deviations / pairs.popularity)


def unrap(pairs: UserItems) -> Vector:
    """Return UnRAP's H_v: squared residuals after user and item means, over those after the user's mean.

    `sum_i (r_ui - mean_i - mean_u + mean)^2 / sum_i (r_ui - mean_u)^2`; 0 where a user rates all alike.
    """
    ratings = pairs.given
    around: Vector = ratings - pairs.user_means(ratings)[pairs.user_ids]
    residual = around - pairs.item_means[pairs.item_ids] + (ratings.mean() if len(ratings) else 0.0)
    return _ratio(pairs.user_sums(residual**2), pairs.user_sums(around**2))


def entropy(pairs: UserItems) -> Vector:
    """Return the entropy, in bits, of the shares of a user's rating values."""
    values, place = np.unique(pairs.given, return_inverse=True)
    counts = np.bincount(
        pairs.user_ids * len(values) + place, minlength=pairs.n_users * len(values)
    )
    counts = counts.reshape(pairs.n_users, len(values))
    shares = counts / np.maximum(pairs.lengths, 1)[:, None]
    bits: Vector = -(shares * np.log2(np.where(shares > 0, shares, 1.0))).sum(axis=1)
    return bits


# -- the part of a profile that would be about targets ----------------------------------------------


def is_target_part(pairs: UserItems, direction: Direction) -> NDArray[np.bool_]:
    """Return which pairs an attack of that direction would be about: rated highest (push) or lowest (nuke).

    Of clicks every pair may be; there is no nuke then. Shape `(n_pairs,)`.
    """
    as_choice("direction", direction, DIRECTIONS)
    if pairs.ratings is None:
        return np.full(len(pairs.user_ids), direction == "push")
    low, high = pairs.scale if len(pairs.ratings) else (0.0, 0.0)
    extreme = high if direction == "push" else low
    return np.equal(pairs.ratings, extreme)


def fmtd(pairs: UserItems, direction: Direction) -> Vector:
    """Return filler mean target difference: |mean of the target part - mean of the rest|; 0 without both."""
    is_target = is_target_part(pairs, direction)
    target, filler = _parts(pairs, is_target, pairs.given)
    has_both = (target[1] > 0) & (filler[1] > 0)
    return np.where(has_both, np.abs(_ratio(*target) - _ratio(*filler)), 0.0)


def mean_var(pairs: UserItems, direction: Direction) -> Vector:
    """Return filler mean variance: mean over the rest of (r_ui - mean_i)^2; 0 without a rest."""
    return _ratio(*_parts(pairs, is_target_part(pairs, direction), pairs.deviations**2)[1])


def fmd(pairs: UserItems, direction: Direction) -> Vector:
    """Return filler mean difference: mean over the rest of |r_ui - mean_i|; 0 without a rest."""
    return _ratio(*_parts(pairs, is_target_part(pairs, direction), pairs.deviations)[1])


def fac(pairs: UserItems, direction: Direction) -> Vector:
    """Return filler average correlation: Pearson's, of the rest's ratings with the items' means.

    0 where either does not vary.
    """
    keep = ~is_target_part(pairs, direction)
    users, ratings = pairs.user_ids[keep], pairs.given[keep]
    means = pairs.item_means[pairs.item_ids[keep]]
    n = np.maximum(np.bincount(users, minlength=pairs.n_users), 1)

    def centred(values: Vector) -> Vector:
        average = sums_by(users, values, pairs.n_users) / n
        return values - average[users]

    x, y = centred(ratings), centred(means)
    products = (sums_by(users, v, pairs.n_users) for v in (x * y, x * x, y * y))
    xy, xx, yy = products
    return np.clip(_ratio(xy, np.sqrt(xx * yy), least=1e-12), -1.0, 1.0)


def tmf(pairs: UserItems, direction: Direction) -> Vector:
    """Return target model focus: largest share that an item of a user's target part has in all of them."""
    is_target = is_target_part(pairs, direction)
    users, items = pairs.user_ids[is_target], pairs.item_ids[is_target]
    focus = np.bincount(items, minlength=pairs.n_items) / max(len(items), 1)
    result = np.zeros(pairs.n_users)
    np.maximum.at(result, users, focus[items])
    return result


# -- which items ------------------------------------------------------------------------------------


def length_var(pairs: UserItems) -> Vector:
    """Return |n_u - mean| over the sum of squared deviations of all users; 0 where all are equal."""
    off = pairs.lengths - pairs.lengths.mean()
    total = float((off**2).sum())
    return np.abs(off) / total if total > 0 else np.zeros(pairs.n_users)


def popularity(pairs: UserItems, kind: Popularity = "mean") -> Vector:
    """Return a statistic of NR_i over a user's items.

    Args:
        pairs: Of a log.
        kind: `"mean"` (MUD), `"range"` (RUD: largest - smallest) or `"quartile"` (QUD: the element at
            `(n_u - 1) // 4` of the ascending list).
    """
    as_choice("kind", kind, ("mean", "range", "quartile"))
    if kind == "mean":
        return pairs.user_means(pairs.popularity.astype(np.float64))
    order = np.lexsort((pairs.popularity, pairs.user_ids))
    ascending = pairs.popularity[order].astype(np.float64)
    ends = np.cumsum(pairs.lengths)
    starts = ends - pairs.lengths
    has_any = pairs.lengths > 0
    result = np.zeros(pairs.n_users)
    if kind == "range":
        result[has_any] = ascending[ends[has_any] - 1] - ascending[starts[has_any]]
    else:
        result[has_any] = ascending[(starts + (pairs.lengths - 1) // 4)[has_any]]
    return result


def popularity_histogram(pairs: UserItems, edges: Vector) -> NDArray[np.float64]:
    """Return shares of a user's items by NR_i: Pop-SAD's feature.

    Args:
        pairs: Of a log.
        edges: Ascending, shape `(n_bins + 1,)`: a bin holds its lower edge, not its upper one. What is
            beyond the last edge, or on it, counts in the last bin.

    Returns:
        Shape `(n_users, n_bins)`; rows sum to one.
    """
    n_bins = len(edges) - 1
    place = np.clip(np.searchsorted(edges, pairs.popularity, side="right") - 1, 0, n_bins - 1)
    counts = np.bincount(pairs.user_ids * n_bins + place, minlength=pairs.n_users * n_bins)
    shares: NDArray[np.float64] = (
        counts.reshape(pairs.n_users, n_bins) / np.maximum(pairs.lengths, 1)[:, None]
    )
    return shares


def pop_sad_edges(width: float, largest: float) -> Vector:
    """Return Pop-SAD's bins: of one width from 0 on; the last edge is the largest NR_i."""
    as_real("largest", largest, at_least=0.0)
    n_bins = max(1, int(np.ceil(largest / as_real("width", width, above=0.0))))
    edges = width * np.arange(n_bins + 1, dtype=np.float64)
    edges[-1] = max(largest, edges[-2])
    return edges


# -- how like other users ----------------------------------------------------------------------------


def deg_sim(
    pairs: UserItems, k: int = 25, *, significance: int | None = None, min_common: int = 2
) -> Vector:
    """Return degree of similarity with the nearest neighbours: mean of the k largest similarities.

    Of ratings: Pearson's correlation over co-rated items, 0 with fewer than `min_common` of them or if either
    user rates them all alike. Of clicks: the cosine of the sets. With fewer than k other users, all count.

    Args:
        pairs: Of a log.
        k: Neighbours; 25 as in Chirita et al.
        significance: Items in common from which a similarity counts in full (DegSim', Mobasher 2007, 50);
            `None` lets every similarity count.
        min_common: Of ratings; over two items a correlation is 1 or -1, which is why nearly half of the users
            of ml-100k have a mean of 1.
    """
    k = min(as_count("k", k), pairs.n_users - 1)
    if significance is not None:
        as_count("significance", significance)
    as_count("min_common", min_common, at_least=2)
    result = np.zeros(pairs.n_users)
    if k == 0:
        return result
    block = max(1, _BLOCK_CELLS // pairs.n_users)
    for start in range(0, pairs.n_users, block):
        rows = slice(start, min(start + block, pairs.n_users))
        found, n_common = _similarities(pairs, rows, min_common)
        if significance is not None:
            found *= np.minimum(n_common, significance) / significance
        own = np.arange(rows.start, rows.stop)
        found[own - rows.start, own] = -np.inf
        result[rows] = np.partition(found, pairs.n_users - k, axis=1)[:, -k:].mean(axis=1)
    return result


def _similarities(
    pairs: UserItems, rows: slice, min_common: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return similarities of some users to all, and how many items they share; `(n_rows, n_users)`."""
    ones = pairs.matrix()
    n_common = (ones[rows] @ ones.T).toarray()
    if pairs.ratings is None:
        lengths = np.maximum(pairs.lengths, 1).astype(np.float64)
        return n_common / np.sqrt(lengths[rows, None] * lengths), n_common
    centre = pairs.given.mean()  # does not change a correlation, and keeps the sums small
    plain = pairs.given - centre
    values, squares = pairs.matrix(plain), pairs.matrix(plain**2)
    x, y = (values[rows] @ ones.T).toarray(), (ones[rows] @ values.T).toarray()
    xx, yy = (squares[rows] @ ones.T).toarray(), (ones[rows] @ squares.T).toarray()
    xy = (values[rows] @ values.T).toarray()
    n = np.maximum(n_common, 1.0)
    spread = np.maximum(xx - x * x / n, 0.0), np.maximum(yy - y * y / n, 0.0)
    least = 1e-9 * float(np.ptp(pairs.given)) ** 2
    varies = (spread[0] > least) & (spread[1] > least) & (n_common >= min_common)
    bottom = np.sqrt(np.where(varies, spread[0] * spread[1], 1.0))
    return np.where(varies, np.clip((xy - x * y / n) / bottom, -1.0, 1.0), 0.0), n_common


# -- helpers -------------------------------------------------------------------------------------------


def _parts(
    pairs: UserItems, is_target: NDArray[np.bool_], values: Vector
) -> tuple[tuple[Vector, Vector], tuple[Vector, Vector]]:
    """Return (sums, counts) per user over the target part, and the same over the rest."""
    target, rest = (
        (
            sums_by(pairs.user_ids[part], values[part], pairs.n_users),
            np.bincount(pairs.user_ids[part], minlength=pairs.n_users).astype(np.float64),
        )
        for part in (is_target, ~is_target)
    )
    return target, rest


def _ratio(top: Vector, bottom: Vector, *, least: float = 0.0) -> Vector:
    """Return quotients, 0 where the divisor is not above `least`."""
    is_some = bottom > least
    return np.where(is_some, top / np.where(is_some, bottom, 1.0), 0.0)
