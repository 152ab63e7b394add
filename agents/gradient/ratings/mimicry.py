"""Do fake profiles look genuine? Tests of what is rated, as a defender without labels could run them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core import FakeProfiles
from recattack_gym.simulator import RatingPlatform

N_BINS = 10
"""Groups of items by popularity, of equal shares of the genuine ratings, in the chi-square test."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mimicry:
    """p-values: small ones tell fake profiles from genuine ones."""

    t_rating: float
    """Paired t-test over items, mean rating of genuine and of fake users, missing ones 0."""
    t_rate: float
    """Paired t-test over items, share of genuine and of fake users who rate the item."""
    ks: float
    """Kolmogorov-Smirnov, two samples: popularity of the items that genuine and fake users rate."""
    chi_square: float
    """Chi-square, how ratings spread over groups of items by popularity."""


def mimicry(platform: RatingPlatform, profiles: FakeProfiles) -> Mimicry:
    """Compare fake with genuine users.

    Li, Wang, Singh & Vorobeychik, NIPS 2016, section 5: "a paired t-test to compare the distributions of
    rated items between normal and malicious users".

    Differs from the paper: it does not say what is paired. Shares that sum to one would have a mean
    difference of exactly zero, whoever the users are, so the vectors here are per item and not
    normalised, two-sided; and as they also compare *how many* items genuine and fake users rate, two
    tests of *which* items stand beside them.

    Args:
        platform: With the genuine ratings.
        profiles: What is injected.
    """
    from scipy import stats

    matrix, n_items = platform.matrix, platform.n_items
    fakes = platform.shifted(profiles)
    items, n_fakes = profiles.item_ids, len(profiles.item_ids)
    popularity = np.diff(matrix.item_indptr)
    genuine_mean = np.bincount(matrix.item_ids, matrix.ratings, n_items) / platform.n_users
    fake_mean = np.bincount(items.ravel(), fakes.ravel(), n_items) / n_fakes
    fake_count = np.bincount(items.ravel(), minlength=n_items)
    groups = popularity_groups(popularity)
    counts = np.stack(
        [np.bincount(groups, weights, N_BINS) for weights in (popularity, fake_count)]
    )
    return Mimicry(
        t_rating=float(stats.ttest_rel(genuine_mean, fake_mean).pvalue),
        t_rate=float(stats.ttest_rel(popularity / platform.n_users, fake_count / n_fakes).pvalue),
        ks=float(
            stats.ks_2samp(
                popularity[matrix.item_ids], popularity[items.ravel()], method="asymp"
            ).pvalue
        ),
        chi_square=float(stats.chi2_contingency(counts[:, counts.any(axis=0)]).pvalue),
    )


def popularity_groups(popularity: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number items from 0 to 9, the most popular first, each group with about a tenth of all ratings."""
    order = np.argsort(-popularity, kind="stable")
    before = np.cumsum(popularity[order]) - popularity[order]
    groups = np.empty(len(popularity), dtype=np.int64)
    groups[order] = np.minimum(N_BINS * before // max(int(popularity.sum()), 1), N_BINS - 1)
    return groups
