"""Each target metric by hand on three users, and against its obvious loop."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError
from recattack_gym.metrics import (
    hit_one_at_k,
    list_jaccard,
    target_hit_rate_of_test_users_at_k,
    target_hr_at_k,
    target_ndcg_at_k,
    target_recall_at_k,
    target_recall_at_k_unmasked,
)

TARGETS = np.array([7, 8])
# u0 is shown 7 at place 2; u1 owns 7 and is shown 8 at place 1; u2 owns both.
SHOWN = np.array([[1, 7, 2], [8, 3, -1], [4, 5, 6]])
OWNS = np.array([[False, False], [True, False], [True, True]])
NOBODY = np.zeros_like(OWNS)


def test_six_names_have_six_values() -> None:
    assert target_recall_at_k(SHOWN, TARGETS, OWNS) == pytest.approx((1 / 2 + 1) / 2)
    assert target_recall_at_k_unmasked(SHOWN, TARGETS) == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert hit_one_at_k(SHOWN, TARGETS, OWNS) == 1.0
    assert target_hit_rate_of_test_users_at_k(
        SHOWN, TARGETS, np.array([True, False, True])
    ) == pytest.approx(1 / 2)
    # 7 is open to u0 (shown); 8 to u0 (not shown) and u1 (shown)
    assert target_hr_at_k(SHOWN, TARGETS, OWNS) == pytest.approx((1 + 1 / 2) / 2)
    second = 1 / math.log2(3)
    assert target_ndcg_at_k(SHOWN, TARGETS, OWNS) == pytest.approx((second / (1 + second) + 1) / 2)


def test_an_owned_target_that_is_shown_does_not_count() -> None:
    shown = np.array([[7, 1, 2]])
    owns = np.array([[True, False]])
    for metric in (target_recall_at_k, hit_one_at_k, target_hr_at_k, target_ndcg_at_k):
        assert metric(shown, TARGETS, owns) == 0.0
        assert metric(shown, TARGETS, np.zeros_like(owns)) > 0.0


def test_nobody_to_count_is_not_a_number() -> None:
    everybody = np.ones_like(OWNS)
    for metric in (target_recall_at_k, hit_one_at_k, target_hr_at_k, target_ndcg_at_k):
        assert math.isnan(metric(SHOWN, TARGETS, everybody))
    assert math.isnan(
        target_hit_rate_of_test_users_at_k(SHOWN, TARGETS, np.zeros(3, dtype=np.bool_))
    )


def recall_by_loop(
    shown: NDArray[np.int64], targets: NDArray[np.int64], owns: NDArray[np.bool_]
) -> float:
    shares = []
    for user, own in zip(shown, owns, strict=True):
        wanted = {int(t) for t, o in zip(targets, own, strict=True) if not o}
        if wanted:
            shares.append(len(wanted & set(user.tolist())) / len(wanted))
    return float(np.mean(shares)) if shares else math.nan


def hr_by_loop(
    shown: NDArray[np.int64], targets: NDArray[np.int64], owns: NDArray[np.bool_]
) -> float:
    rates = []
    for number, target in enumerate(targets):
        eligible = [
            target in user for user, own in zip(shown, owns, strict=True) if not own[number]
        ]
        if eligible:
            rates.append(np.mean(eligible))
    return float(np.mean(rates)) if rates else math.nan


@given(seed=st.integers(0, 2**32), n_users=st.integers(1, 8), k=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_they_are_their_loops(seed: int, n_users: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    shown = np.stack([rng.permutation(8)[:k] for _ in range(n_users)])
    targets = rng.permutation(8)[: rng.integers(1, 5)]
    owns = rng.random((n_users, len(targets))) < 0.4
    for metric, loop in ((target_recall_at_k, recall_by_loop), (target_hr_at_k, hr_by_loop)):
        assert metric(shown, targets, owns) == pytest.approx(
            loop(shown, targets, owns), nan_ok=True
        )
    recall, one = target_recall_at_k(shown, targets, owns), hit_one_at_k(shown, targets, owns)
    assert math.isnan(recall) or recall <= one
    nobody = np.zeros_like(owns)
    assert target_recall_at_k(shown, targets, nobody) == pytest.approx(
        target_recall_at_k_unmasked(shown, targets)
    )
    ideal = np.pad(targets, (0, 6), constant_values=-1)[None]
    assert target_ndcg_at_k(ideal, targets, nobody[:1]) == pytest.approx(1.0)


def test_lists_that_share_half_are_a_third_alike() -> None:
    first = np.array([[1, 2, -1], [1, 2, 3]])
    second = np.array([[2, 3], [1, 2]])
    assert list_jaccard(first, second) == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert list_jaccard(first, first) == 1.0
    assert list_jaccard(second, first) == list_jaccard(first, second)
    assert list_jaccard(np.array([[-1]]), np.array([[-1]])) == 1.0


def test_shapes_are_checked() -> None:
    with pytest.raises(ArgumentError, match=r"owns must be a bool array of shape \(3, 2\)"):
        target_recall_at_k(SHOWN, TARGETS, OWNS.T)
    with pytest.raises(ArgumentError, match=r"shown must have shape \(U, k\)"):
        hit_one_at_k(SHOWN[0], TARGETS, OWNS)
    with pytest.raises(ArgumentError, match=r"second must have shape \(3, k\)"):
        list_jaccard(SHOWN, SHOWN[:2])
    with pytest.raises(ArgumentError, match=r"has_test_item must have shape \(3,\)"):
        target_hit_rate_of_test_users_at_k(SHOWN, TARGETS, NOBODY[0])
