"""How well scores of users tell fake users from genuine ones; pure functions.

Scores are higher where a user is more suspicious. Where a number is not defined, because nobody is fake or
everybody is, it is `nan`. All are about ranks, but `Flagged`, which is about who was flagged.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count, as_numbers, as_real
from recattack_gym.core.errors import ArgumentError


def detection_auc(scores: NDArray[np.float64], is_fake: NDArray[np.bool_]) -> float:
    """Return the probability that a fake user scores higher than a genuine one; ties count half.

    Args:
        scores: Shape `(n_users,)`.
        is_fake: Shape `(n_users,)`.

    Returns:
        In [0, 1]; 0.5 is what chance gives.
    """
    values, labels = _checked(scores, is_fake)
    n_fake, n_genuine = int(labels.sum()), int((~labels).sum())
    if n_fake == 0 or n_genuine == 0:
        return float("nan")
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2.0  # of equal scores, from 1
    rank_sum = float(mean_rank[place[labels]].sum())
    return (rank_sum - n_fake * (n_fake + 1) / 2.0) / (n_fake * n_genuine)


def average_precision(scores: NDArray[np.float64], is_fake: NDArray[np.bool_]) -> float:
    """Return the mean, over fake users, of the precision down to and including their score.

    Users with equal scores are flagged together. Chance gives the share of fake users, so report it beside.

    Args:
        scores: Shape `(n_users,)`.
        is_fake: Shape `(n_users,)`.

    Returns:
        In (0, 1]; `nan` without fake users.
    """
    values, labels = _checked(scores, is_fake)
    if not labels.any():
        return float("nan")
    found, flagged = _flagged_from_the_top(values, labels)
    gained = np.diff(found, prepend=0.0)
    return float((gained * found / flagged).sum() / found[-1])


def recall_at_fpr(
    scores: NDArray[np.float64], is_fake: NDArray[np.bool_], fpr: float = 0.01
) -> float:
    """Return the largest share of fake users that can be flagged with at most so many genuine ones.

    A threshold flags all users with a score at or above it, so that ties are flagged together.

    Args:
        scores: Shape `(n_users,)`.
        is_fake: Shape `(n_users,)`.
        fpr: Largest share of genuine users that may be flagged, in [0, 1].

    Returns:
        In [0, 1]; `nan` without fake or without genuine users.
    """
    as_real("fpr", fpr, at_least=0.0, at_most=1.0)
    values, labels = _checked(scores, is_fake)
    n_genuine = int((~labels).sum())
    if not labels.any() or n_genuine == 0:
        return float("nan")
    found, flagged = _flagged_from_the_top(values, labels)
    allowed = flagged - found <= fpr * n_genuine + 1e-9
    return float(found[allowed].max() / found[-1]) if allowed.any() else 0.0


def precision_at_n(scores: NDArray[np.float64], is_fake: NDArray[np.bool_], n: int) -> float:
    """Return the share of fake users among the `n` highest scores; of equals the smaller id comes first.

    With `n` = number of fake users this is also the share of them that is found.

    Args:
        scores: Shape `(n_users,)`.
        is_fake: Shape `(n_users,)`.
        n: At least 1; all users where there are fewer.
    """
    values, labels = _checked(scores, is_fake)
    flagged = np.argsort(-values, kind="stable")[: as_count("n", n)]
    return float(labels[flagged].mean()) if len(flagged) else float("nan")


def recall_at_n(scores: NDArray[np.float64], is_fake: NDArray[np.bool_], n: int) -> float:
    """Return the share of all fake users that the `n` highest scores hold; see `precision_at_n`."""
    values, labels = _checked(scores, is_fake)
    flagged = np.argsort(-values, kind="stable")[: as_count("n", n)]
    return float(labels[flagged].sum() / labels.sum()) if labels.any() else float("nan")


@dataclass(frozen=True, kw_only=True, slots=True)
class Flagged:
    """Right and wrong decisions, and the usual ratios of them; `nan` where a ratio has nothing below."""

    true_positives: int
    """Fake users that were flagged."""
    false_positives: int
    """Genuine users that were."""
    false_negatives: int
    """Fake users that were not."""
    true_negatives: int
    """Genuine users that were not."""

    @classmethod
    def of(cls, is_flagged: NDArray[np.bool_], is_fake: NDArray[np.bool_]) -> "Flagged":
        """Count; both bool, of shape `(n_users,)`.

        Raises:
            ArgumentError: If they are not.
        """
        flags = np.asarray(is_flagged)
        if flags.dtype != np.bool_:
            raise ArgumentError(f"is_flagged must be a bool array, got {flags.dtype}")
        _checked(flags.astype(np.float64), is_fake)
        return cls(
            true_positives=int((is_flagged & is_fake).sum()),
            false_positives=int((is_flagged & ~is_fake).sum()),
            false_negatives=int((~is_flagged & is_fake).sum()),
            true_negatives=int((~is_flagged & ~is_fake).sum()),
        )

    @property
    def precision(self) -> float:
        """Share of fake users among the flagged."""
        return _share(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of fake users that were flagged."""
        return _share(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def fpr(self) -> float:
        """Share of genuine users that were flagged."""
        return _share(self.false_positives, self.false_positives + self.true_negatives)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        both = self.false_positives + self.false_negatives
        return _share(2 * self.true_positives, 2 * self.true_positives + both)

    @property
    def balanced_accuracy(self) -> float:
        """Mean of recall and of the share of genuine users that were not flagged."""
        return (self.recall + 1.0 - self.fpr) / 2.0

    @property
    def mcc(self) -> float:
        """Matthews correlation coefficient of flags and truth."""
        tp, fp = self.true_positives, self.false_positives
        fn, tn = self.false_negatives, self.true_negatives
        product = float(tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        return (tp * tn - fp * fn) / product**0.5 if product else float("nan")


def precision_at_prevalence(recall: float, fpr: float, prevalence: float) -> float:
    """Return the precision of a detector where another share of users is fake than where it was measured.

    Args:
        recall: Share of fake users that it flags.
        fpr: Share of genuine users that it flags.
        prevalence: Share of fake users among all.
    """
    for name, value in (("recall", recall), ("fpr", fpr), ("prevalence", prevalence)):
        as_real(name, value, at_least=0.0, at_most=1.0)
    right = recall * prevalence
    flagged = right + fpr * (1.0 - prevalence)
    return right / flagged if flagged else float("nan")


def _checked(
    scores: NDArray[np.float64], is_fake: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values, labels = as_numbers("scores", scores), np.asarray(is_fake)
    if values.ndim != 1 or labels.shape != values.shape or labels.dtype != np.bool_:
        raise ArgumentError(
            "scores and is_fake must be one number and one bool per user, "
            f"got {values.shape} and {labels.dtype} {labels.shape}"
        )
    return values, labels


def _flagged_from_the_top(
    values: NDArray[np.float64], labels: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how many fake users, and how many users, have each score or a higher one; highest first."""
    order = np.argsort(-values, kind="stable")
    is_last = np.append(np.diff(values[order]) != 0, True)  # a value, not an option
    found = np.cumsum(labels[order])[is_last].astype(np.float64)
    return found, (np.flatnonzero(is_last) + 1).astype(np.float64)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
