"""HR@k and NDCG@k: values by hand, a loop as oracle, limits."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recattack_gym.core import ArgumentError
from recattack_gym.metrics import hr_at_k, ndcg_at_k

SHOWN = np.array([[3, 1, 2], [0, 4, 5], [5, 2, -1], [1, -1, -1]])


def test_golden_values() -> None:
    # hits at place 1, none, place 2; the last user has no held-out item.
    held_out = np.array([3, 9, 2, -1])
    assert hr_at_k(SHOWN, held_out) == pytest.approx(2 / 3)
    assert ndcg_at_k(SHOWN, held_out) == pytest.approx((1 + 1 / math.log2(3)) / 3)


def test_the_place_of_the_hit_discounts_the_gain() -> None:
    shown = np.array([[7, 8, 9]])
    gains = [ndcg_at_k(shown, np.array([item])) for item in (7, 8, 9, 1)]
    assert gains == pytest.approx([1, 1 / math.log2(3), 1 / 2, 0])


def test_without_any_held_out_item_there_is_no_mean() -> None:
    nobody = np.full(4, -1)
    assert math.isnan(hr_at_k(SHOWN, nobody))
    assert math.isnan(ndcg_at_k(SHOWN, nobody))


def test_an_empty_place_is_no_hit_for_a_user_without_a_held_out_item() -> None:
    assert hr_at_k(np.array([[-1], [4]]), np.array([-1, 4])) == 1.0
    assert ndcg_at_k(np.array([[-1], [4]]), np.array([-1, 5])) == 0.0


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_both_equal_a_loop_over_users(n_users: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shown = np.stack([rng.permutation(8)[:k] for _ in range(n_users)])
    held_out = rng.integers(0, 8, n_users)
    hits, gains = [], []
    for row, item in zip(shown.tolist(), held_out.tolist(), strict=True):
        hits.append(item in row)
        gains.append(1 / math.log2(row.index(item) + 2) if item in row else 0.0)
    assert hr_at_k(shown, held_out) == pytest.approx(np.mean(hits))
    assert ndcg_at_k(shown, held_out) == pytest.approx(np.mean(gains))
    assert ndcg_at_k(shown, held_out) <= hr_at_k(shown, held_out) + 1e-12


def test_lists_and_held_out_items_must_be_of_the_same_users() -> None:
    for metric in (hr_at_k, ndcg_at_k):
        with pytest.raises(ArgumentError, match=r"held_out must have shape \(4,\), got \(1,\)"):
            metric(SHOWN, np.array([3]))
