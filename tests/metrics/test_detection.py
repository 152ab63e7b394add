"""Detection metrics: numbers worked out by hand, scikit-learn as oracle, and what is not defined."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from recattack_gym.core import ArgumentError
from recattack_gym.metrics import (
    Flagged,
    average_precision,
    detection_auc,
    precision_at_n,
    precision_at_prevalence,
    recall_at_fpr,
    recall_at_n,
)

SCORES = np.array([0.9, 0.8, 0.7, 0.3, 0.1])
IS_FAKE = np.array([True, False, True, False, False])
users = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40)


def test_numbers_of_five_users() -> None:
    """shared/specs/tutorial_systems.md, B.15; AP by hand: (1 + 2/3) / 2."""
    assert detection_auc(SCORES, IS_FAKE) == pytest.approx(0.833333, abs=1e-6)
    assert average_precision(SCORES, IS_FAKE) == pytest.approx(5 / 6)
    assert recall_at_fpr(SCORES, IS_FAKE) == 0.5
    assert recall_at_fpr(SCORES, IS_FAKE, 0.33) == 0.5
    assert recall_at_fpr(SCORES, IS_FAKE, 1 / 3) == 1.0
    assert [precision_at_n(SCORES, IS_FAKE, n) for n in (1, 2, 3, 9)] == [1, 0.5, 2 / 3, 0.4]
    assert [recall_at_n(SCORES, IS_FAKE, n) for n in (1, 2, 3)] == [0.5, 0.5, 1]


def test_ratios_of_a_confusion_table() -> None:
    found = Flagged(true_positives=3, false_positives=1, false_negatives=2, true_negatives=94)
    assert (found.precision, found.recall) == (0.75, 0.6)
    assert found.f1 == pytest.approx(0.666667, abs=1e-6)
    assert found.fpr == pytest.approx(0.010526, abs=1e-6)
    assert found.mcc == pytest.approx(0.655610, abs=1e-6)
    assert found.balanced_accuracy == pytest.approx(0.794737, abs=1e-6)
    is_flagged = np.array([True, True, False, False, False])
    again = Flagged.of(is_flagged, IS_FAKE)
    counts = (
        again.true_positives,
        again.false_positives,
        again.false_negatives,
        again.true_negatives,
    )
    assert counts == (1, 1, 1, 2)


def test_where_fake_users_are_rare_a_good_detector_is_mostly_wrong() -> None:
    assert precision_at_prevalence(0.95, 0.05, 0.01) == pytest.approx(0.161017, abs=1e-6)
    assert math.isnan(precision_at_prevalence(0.0, 0.0, 0.5))


@given(users)
@settings(max_examples=60, deadline=None)
def test_auc_average_precision_and_recall_equal_scikit_learns(
    given_users: list[tuple[int, bool]],
) -> None:
    scores = np.array([float(score) for score, _ in given_users])
    is_fake = np.array([fake for _, fake in given_users])
    if is_fake.all() or not is_fake.any():
        return
    assert detection_auc(scores, is_fake) == pytest.approx(oracle.roc_auc_score(is_fake, scores))
    expected = oracle.average_precision_score(is_fake, scores)
    assert average_precision(scores, is_fake) == pytest.approx(expected)
    fprs, tprs, _ = oracle.roc_curve(is_fake, scores, drop_intermediate=False)
    for fpr in (0.0, 0.01, 0.2, 1.0):
        best = tprs[fprs <= fpr + 1e-9].max()
        assert recall_at_fpr(scores, is_fake, fpr) == pytest.approx(best)
    is_flagged = scores >= 3
    found = Flagged.of(is_flagged, is_fake)
    if is_flagged.any() and not is_flagged.all():
        assert found.mcc == pytest.approx(oracle.matthews_corrcoef(is_fake, is_flagged))
    assert found.balanced_accuracy == pytest.approx(
        oracle.balanced_accuracy_score(is_fake, is_flagged)
    )


def test_what_is_not_defined_is_nan() -> None:
    nobody, everybody = np.zeros(5, dtype=np.bool_), np.ones(5, dtype=np.bool_)
    for function in (detection_auc, recall_at_fpr):
        assert math.isnan(function(SCORES, nobody))
        assert math.isnan(function(SCORES, everybody))
    assert math.isnan(average_precision(SCORES, nobody))
    assert average_precision(SCORES, everybody) == 1.0
    assert math.isnan(recall_at_n(SCORES, nobody, 2))
    assert precision_at_n(SCORES, nobody, 2) == 0.0
    assert math.isnan(precision_at_n(np.zeros(0), np.zeros(0, dtype=np.bool_), 2))
    nothing = Flagged.of(nobody, everybody)
    assert math.isnan(nothing.precision)
    assert math.isnan(nothing.fpr)
    assert math.isnan(nothing.mcc)


def test_equal_scores_are_flagged_together_by_a_threshold_and_by_id_in_a_top_list() -> None:
    flat = np.ones(5)
    assert detection_auc(flat, IS_FAKE) == 0.5
    assert average_precision(flat, IS_FAKE) == 0.4
    assert recall_at_fpr(flat, IS_FAKE, 0.9) == 0.0
    assert precision_at_n(flat, IS_FAKE, 1) == 1.0


def test_a_share_of_users_is_not_lost_to_rounding() -> None:
    # 0.29 * 100 is 28.999999999999996; the fake user stands below 29 of 100 genuine ones
    scores = np.append(np.arange(100.0), 70.5)
    assert recall_at_fpr(scores, np.arange(101) == 100, 0.29) == 1.0
    assert recall_at_fpr(scores, np.arange(101) == 100, 0.28) == 0.0


def test_mistakes_are_named() -> None:
    with pytest.raises(ArgumentError, match="scores must be finite, got nan"):
        detection_auc(np.array([np.nan, 1.0]), IS_FAKE[:2])
    with pytest.raises(ArgumentError, match=r"one bool per user, got \(5,\) and bool \(4,\)"):
        average_precision(SCORES, IS_FAKE[:4])
    with pytest.raises(ArgumentError, match="int64"):
        recall_at_fpr(SCORES, IS_FAKE.astype(np.int64))
    with pytest.raises(ArgumentError, match="fpr must be"):
        recall_at_fpr(SCORES, IS_FAKE, 1.5)
    with pytest.raises(ArgumentError, match="n must be a whole number >= 1, got 0"):
        precision_at_n(SCORES, IS_FAKE, 0)
    with pytest.raises(ArgumentError, match=r"one bool per user, got \(5, 1\) and bool \(5,\)"):
        Flagged.of(IS_FAKE[:, None], IS_FAKE)
    with pytest.raises(ArgumentError, match="is_flagged must be a bool array, got int64"):
        Flagged.of(np.array([0, 1]), IS_FAKE[:2])  # ids, not flags
    with pytest.raises(ArgumentError, match="prevalence must be"):
        precision_at_prevalence(0.5, 0.5, 2.0)
