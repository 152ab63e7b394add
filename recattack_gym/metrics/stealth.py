"""Whether a group of profiles looks like another: distances between histograms, and tests; pure functions.

A test says how surprising the fake profiles would be if they were genuine ones; a small p-value gives them
away. None of the tests is told which item is the target.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count, as_generator, as_numbers
from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.interactions import Interactions

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


def total_variation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return half the sum of absolute differences of two histograms, each of which is made to sum to one.

    Returns:
        In [0, 1]; `nan` if one has nothing in it.
    """
    p, q = _shares(first, second)
    return float(0.5 * np.abs(p - q).sum())


def jensen_shannon(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the Jensen-Shannon divergence of two histograms in nats; divide by `log(2)` for bits.

    Returns:
        In [0, log(2)]; `nan` if one has nothing in it.
    """
    p, q = _shares(first, second)
    if np.isnan(p).any() or np.isnan(q).any():
        return float("nan")
    middle = 0.5 * (p + q)
    return float(0.5 * (_divergence(p, middle) + _divergence(q, middle)))


def _shares(
    first: NDArray[np.float64], second: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p, q = as_numbers("first", first), as_numbers("second", second)
    if p.ndim != 1 or p.shape != q.shape or (p < 0).any() or (q < 0).any():
        raise ArgumentError(
            f"first and second must be histograms over the same bins, got shapes {p.shape}, {q.shape}"
        )
    if p.sum() == 0 or q.sum() == 0:
        return np.full(p.shape, np.nan), np.full(q.shape, np.nan)
    return p / p.sum(), q / q.sum()


def _divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    some = p > 0
    return float((p[some] * np.log(p[some] / q[some])).sum())


def paired_t(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the two-sided p-value of the paired t-test: 1 for equal pairs, 0 if all differ alike.

    Args:
        first: Shape `(n,)`, at least two.
        second: Shape `(n,)`.

    Raises:
        ArgumentError: If they are no pairs, or fewer than two.
    """
    from scipy import stats

    one, other = as_numbers("first", first), as_numbers("second", second)
    if one.ndim != 1 or len(one) < 2 or one.shape != other.shape:
        raise ArgumentError(
            "first and second must be pairs, at least two numbers each, "
            f"got shapes {one.shape}, {other.shape}"
        )
    difference = one - other
    spread = difference.std(ddof=1)
    if spread <= 1e-12 * max(1.0, float(np.abs(difference).max())):
        return 1.0 if np.abs(difference).max() <= 1e-12 else 0.0
    t = difference.mean() * np.sqrt(len(difference)) / spread
    return float(2.0 * stats.t.sf(abs(t), len(difference) - 1))


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p-values corrected for there being several (Holm, 1979), in the order given; `nan` stays."""
    values = np.asarray(p_values, dtype=np.float64)
    result = values.copy()
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    result[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return result


@dataclass(frozen=True, kw_only=True, slots=True)
class StealthTests:
    """p-values of tests whether fake users are like genuine ones; `nan` where a test does not apply."""

    t_frequency: float
    """Paired t over items, share of genuine and of fake users who have the item: Li et al. 2016, section 5.

    The mean difference is that of the mean lengths over the number of items, so that it sees nothing else.
    """
    t_rating: float
    """Paired t over items that both groups rate, mean rating."""
    welch_popularity: float
    """Welch's t, mean popularity of a user's items."""
    ks_popularity: float
    """Kolmogorov-Smirnov, the same."""
    chi_square: float
    """Chi-square of item counts, by permuting users."""
    ks_length: float
    """Kolmogorov-Smirnov, distinct items of a user."""
    ks_rating: float
    """Kolmogorov-Smirnov, mean rating of a user."""

    def corrected(self) -> "StealthTests":
        """Return Holm's correction of all."""
        names = list(asdict(self))
        values = holm(np.array([getattr(self, name) for name in names]))
        return StealthTests(**{name: float(p) for name, p in zip(names, values, strict=True)})


def stealth_tests(
    log: Interactions,
    is_fake: NDArray[np.bool_],
    rng: np.random.Generator,
    *,
    n_permutations: int = 199,
) -> StealthTests:
    """Test whether the fake users of a log are like its genuine ones.

    Popularity is how many *other* genuine users have an item: with themselves among them, genuine users would
    have the more popular items whoever the fake ones are. Repeated items count once; ratings are means of a
    user's.

    Args:
        log: With genuine and fake users.
        is_fake: Shape `(n_users,)`.
        rng: Of the permutations.
        n_permutations: Of the chi-square test; no p-value is below 1 / (n_permutations + 1).

    Raises:
        ArgumentError: If one of the two kinds of user has fewer than two with events.
    """
    from scipy import stats
    from scipy.sparse import csr_matrix

    as_generator("rng", rng)
    as_count("n_permutations", n_permutations)
    labels = np.asarray(is_fake)
    if labels.shape != (log.n_users,) or labels.dtype != np.bool_:
        raise ArgumentError(
            f"is_fake must be a bool array of shape ({log.n_users},), got {labels.dtype} {labels.shape}"
        )
    indptr, items = log.seen
    has_any = np.diff(indptr) > 0
    matrix = csr_matrix((np.ones(len(items)), items, indptr), shape=(log.n_users, log.n_items))
    matrix, fake = matrix[has_any], labels[has_any]
    if fake.sum() < 2 or (~fake).sum() < 2:
        raise ArgumentError(
            "is_fake must mark at least two users with events and leave out two, "
            f"got {int(fake.sum())} of {len(fake)}"
        )
    counts = [_column_sums(matrix[part]) for part in (~fake, fake)]
    lengths = np.asarray(matrix.sum(axis=1)).ravel()
    # Whole numbers before the division, so that equal means are equal; a genuine user is no other to itself
    mean_popularity = (np.asarray(matrix @ counts[0]).ravel() - lengths * ~fake) / lengths
    statistic = _chi_square(*counts)
    n_larger = 0
    for _ in range(n_permutations):
        chosen = np.zeros(len(fake), dtype=np.bool_)
        chosen[rng.permutation(len(fake))[: int(fake.sum())]] = True
        of_fake = _column_sums(matrix[chosen])
        n_larger += _chi_square(counts[0] + counts[1] - of_fake, of_fake) >= statistic - 1e-9
    t_rating, ks_rating = _rating_tests(log, labels)
    return StealthTests(
        t_frequency=paired_t(counts[0] / (~fake).sum(), counts[1] / fake.sum()),
        t_rating=t_rating,
        welch_popularity=_welch(mean_popularity[~fake], mean_popularity[fake]),
        ks_popularity=float(stats.ks_2samp(mean_popularity[~fake], mean_popularity[fake]).pvalue),
        chi_square=(1 + n_larger) / (1 + n_permutations),
        ks_length=float(stats.ks_2samp(lengths[~fake], lengths[fake]).pvalue),
        ks_rating=ks_rating,
    )


def _column_sums(matrix: "csr_matrix") -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.asarray(matrix.sum(axis=0)).ravel()
    return total


def _chi_square(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the statistic of a table of two rows; columns without counts are left out."""
    both = first + second
    some = both > 0
    result = 0.0
    for row in (first, second):
        expected = both[some] * row.sum() / both.sum()
        result += float(((row[some] - expected) ** 2 / expected).sum())
    return result


def _welch(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    from scipy import stats

    if np.ptp(first) == 0 and np.ptp(second) == 0:
        return 1.0 if first[0] == second[0] else 0.0
    return float(stats.ttest_ind(first, second, equal_var=False).pvalue)


def _rating_tests(log: Interactions, is_fake: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the p-values of the tests of ratings, `nan` of clicks or with fewer than two items in common."""
    from scipy import stats

    if log.ratings is None:
        return float("nan"), float("nan")
    of_fake = is_fake[log.user_ids]
    sums, counts = (
        [np.bincount(log.item_ids[part], w[part], log.n_items) for part in (~of_fake, of_fake)]
        for w in (log.ratings, np.ones(len(log)))
    )
    both = (counts[0] > 0) & (counts[1] > 0)
    t_rating = float("nan")
    if both.sum() >= 2:
        t_rating = paired_t(sums[0][both] / counts[0][both], sums[1][both] / counts[1][both])
    lengths = np.diff(log.indptr)
    means = np.bincount(log.user_ids, log.ratings, log.n_users) / np.maximum(lengths, 1)
    fake, genuine = means[is_fake & (lengths > 0)], means[~is_fake & (lengths > 0)]
    return t_rating, float(stats.ks_2samp(genuine, fake).pvalue)
