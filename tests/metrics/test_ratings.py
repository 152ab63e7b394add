"""What poison does to predicted ratings, against whole matrices."""

import math

import numpy as np
import pytest

from recattack_gym.core import ArgumentError
from recattack_gym.metrics import Prediction, availability, average_rating, integrity, rmse

rng = np.random.default_rng(0)
FOUND = Prediction(rng.standard_normal((6, 3)), rng.standard_normal((5, 3)))
CLEAN = Prediction(rng.standard_normal((6, 2)), rng.standard_normal((5, 2)))
SEEN = (np.array([0, 0, 3, 5]), np.array([1, 4, 2, 0]))


def test_availability_and_rmse_are_about_unseen_pairs() -> None:
    change = FOUND.users @ FOUND.items.T - CLEAN.users @ CLEAN.items.T
    unseen = np.ones((6, 5), dtype=np.bool_)
    unseen[SEEN] = False
    assert availability(FOUND, CLEAN, *SEEN) == pytest.approx((change[unseen] ** 2).sum())
    assert rmse(FOUND, CLEAN, *SEEN) == pytest.approx(np.sqrt((change[unseen] ** 2).mean()))


def test_integrity_weighs_targets_and_sums_users() -> None:
    whole = FOUND.users @ FOUND.items.T
    targets, weights = np.array([4, 1]), np.array([2.0, -1.0])
    wanted = (2.0 * whole[:, 4] - whole[:, 1]).sum()
    assert integrity(FOUND, targets, weights) == pytest.approx(wanted)
    assert average_rating(FOUND, targets) == pytest.approx(whole[:, [4, 1]].mean())


def test_the_same_prediction_in_other_factors_has_not_moved() -> None:
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    turned = Prediction(CLEAN.users @ turn, CLEAN.items @ turn)
    assert rmse(turned, CLEAN, *SEEN) < 1e-7
    assert availability(CLEAN, CLEAN, *SEEN) >= 0.0


def test_where_everything_is_rated_there_is_no_rmse() -> None:
    users, items = np.divmod(np.arange(30), 5)
    assert math.isnan(rmse(FOUND, CLEAN, users, items))


def test_factors_of_different_width_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"\(m, k\) and \(n, k\), got \(6, 3\) and \(5, 2\)"):
        Prediction(FOUND.users, CLEAN.items)
