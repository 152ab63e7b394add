"""Do fake profiles look genuine? Tests of what is rated, as a defender without labels could run them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core import FakeProfiles
from recattack_gym.simulator import RatingPlatform

N_BINS = 10
"""Groups of items by popularity, of equal shares of the genuine ratings, in the chi-square test."""
N_DRAWS = 199
"""Samples of genuine users that calibrated p-values compare with; none is below 1 / 200."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mimicry:
    """p-values: small ones tell fake profiles from genuine ones."""

    t_rating: float
    """Paired t-test over items, mean rating of genuine and of fake users, missing ones 0."""
    t_matched: float
    """The same with genuine profiles thinned, in expectation, to as many ratings as fake ones have."""
    t_rate: float
    """Paired t-test over items, share of genuine and of fake users who rate the item."""
    ks: float
    """Kolmogorov-Smirnov, two samples: popularity of the items that genuine and fake users rate."""
    chi_square: float
    """Chi-square, how ratings spread over groups of items by popularity."""
    calibrated_t: float
    """Share of samples of genuine users, as many as fake ones and cut to their length, whose t (ratings,
    paired over items, against all genuine users so cut) is as large; `nan` if none has as many ratings."""
    calibrated_ks: float
    """The same for the largest distance between distributions over items by popularity."""


def mimicry(platform: RatingPlatform, profiles: FakeProfiles, rng: np.random.Generator) -> Mimicry:
    """Compare fake with genuine users.

    Li, Wang, Singh & Vorobeychik, NIPS 2016, section 5: "a paired t-test to compare the distributions of
    rated items between normal and malicious users".

    Differs from the paper: it does not say what is paired. Shares that sum to one would have a mean
    difference of exactly zero, whoever the users are, so the vectors here are per item and not
    normalised, two-sided. But then `t_rating` and `t_rate` reject any profiles of another length than the
    genuine average, even ones cut from genuine profiles; `t_matched` does not, and only sees whether ratings
    are high or low on average. `ks` and `chi_square` see *which* items are rated, and like the t-tests take
    the ratings of one user for independent, which they are not: small samples of genuine users fail them
    often. The calibrated ones ask instead how often genuine users look as odd as the fake ones do, and let
    genuine users pass, by construction, 95 times in 100 at p >= 0.05.

    Args:
        platform: With the genuine ratings.
        profiles: What is injected.
        rng: Source of the samples of genuine users.
    """
    from scipy import stats

    matrix, n_items = platform.matrix, platform.n_items
    fakes = platform.shifted(profiles)
    items, n_fakes = profiles.item_ids, len(profiles.item_ids)
    popularity = np.diff(matrix.item_indptr)
    genuine_mean = np.bincount(matrix.item_ids, matrix.ratings, n_items) / platform.n_users
    thinning = items.shape[1] * platform.n_users / len(matrix.ratings)
    fake_mean = np.bincount(items.ravel(), fakes.ravel(), n_items) / n_fakes
    fake_count = np.bincount(items.ravel(), minlength=n_items)
    groups = popularity_groups(popularity)
    counts = np.stack(
        [np.bincount(groups, weights, N_BINS) for weights in (popularity, fake_count)]
    )
    calibrated_t, calibrated_ks = _calibrated(platform, items, fakes, rng)
    return Mimicry(
        t_rating=float(stats.ttest_rel(genuine_mean, fake_mean).pvalue),
        t_matched=float(stats.ttest_rel(thinning * genuine_mean, fake_mean).pvalue),
        t_rate=float(stats.ttest_rel(popularity / platform.n_users, fake_count / n_fakes).pvalue),
        ks=float(
            stats.ks_2samp(
                popularity[matrix.item_ids], popularity[items.ravel()], method="asymp"
            ).pvalue
        ),
        chi_square=float(stats.chi2_contingency(counts[:, counts.any(axis=0)]).pvalue),
        calibrated_t=calibrated_t,
        calibrated_ks=calibrated_ks,
    )


def _calibrated(
    platform: RatingPlatform,
    items: NDArray[np.int64],
    ratings: NDArray[np.float64],
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Return how often samples of genuine users have a t, and a distance, as large as the fake ones do."""
    matrix, (n_fakes, length) = platform.matrix, items.shape
    lengths = np.diff(matrix.indptr)
    able = np.flatnonzero(lengths >= length)
    if not len(able):
        return float("nan"), float("nan")
    # What a genuine user cut to this length does on average: each rating stays with equal probability
    weight = np.where(lengths >= length, length / lengths, 0.0)[matrix.user_ids] / len(able)
    mean_rating = np.bincount(matrix.item_ids, weight * matrix.ratings, matrix.n_items)
    _, place = np.unique(np.diff(matrix.item_indptr), return_inverse=True)
    spread = np.cumsum(np.bincount(place[matrix.item_ids], weight)) / length

    def oddity(own: NDArray[np.int64], given: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return |t| and the distance of `(n, length)` items and ratings; shape `(2,)`."""
        difference = np.bincount(own.ravel(), given.ravel(), matrix.n_items) / len(own)
        difference -= mean_rating
        error = difference.std(ddof=1) / np.sqrt(matrix.n_items)
        found = np.cumsum(np.bincount(place[own.ravel()], minlength=len(spread))) / own.size
        return np.array([abs(difference.mean()) / max(error, 1e-300), np.abs(found - spread).max()])

    fake = oddity(items, ratings)
    n_at_least = np.zeros(2)
    for _ in range(N_DRAWS):
        sample = rng.choice(able, n_fakes, replace=n_fakes > len(able))
        cut = np.stack(
            [matrix.indptr[u] + rng.choice(lengths[u], length, replace=False) for u in sample]
        )
        n_at_least += oddity(matrix.item_ids[cut], matrix.ratings[cut]) >= fake
    of_t, of_distance = (1.0 + n_at_least) / (1.0 + N_DRAWS)
    return float(of_t), float(of_distance)


def popularity_groups(popularity: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number items from 0 to 9, the most popular first, each group with about a tenth of all ratings."""
    order = np.argsort(-popularity, kind="stable")
    before = np.cumsum(popularity[order]) - popularity[order]
    groups = np.empty(len(popularity), dtype=np.int64)
    groups[order] = np.minimum(N_BINS * before // max(int(popularity.sum()), 1), N_BINS - 1)
    return groups
