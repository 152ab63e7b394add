"""Rewards are formulas: golden values and limit cases."""

import numpy as np
import pytest

from recattack_gym.core import ArgumentError, UnknownNameError
from recattack_gym.core.attack import Direction
from recattack_gym.envs.rewards import REWARDS, as_reward


@pytest.mark.parametrize(
    ("name", "direction", "clean", "expected"),
    [
        ("rec_num", "push", 20, [0.0, 20.0, 60.0, 100.0]),
        ("rec_num", "nuke", 20, [100.0, 80.0, 40.0, 0.0]),
        ("normalized", "push", 20, [-0.25, 0.0, 0.5, 1.0]),
        ("normalized", "nuke", 20, [1.0, 0.0, -2.0, -4.0]),
        ("normalized", "push", 100, [0.0, 0.0, 0.0, 0.0]),
        ("normalized", "nuke", 0, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_golden_values(name: str, direction: Direction, clean: int, expected: list[float]) -> None:
    paid = REWARDS[name](
        np.array([0, 20, 60, 100]), clean_rec_num=clean, max_rec_num=100, direction=direction
    )
    assert paid.dtype == np.float64
    assert paid.tolist() == expected


def test_push_and_nuke_by_rec_num_add_up_to_the_maximum() -> None:
    rec_num = np.arange(7)
    both = [
        REWARDS["rec_num"](rec_num, clean_rec_num=3, max_rec_num=6, direction=direction)
        for direction in ("push", "nuke")
    ]
    assert (both[0] + both[1] == 6).all()


def test_a_function_is_taken_as_it_is() -> None:
    assert as_reward(REWARDS["normalized"]) is REWARDS["normalized"]


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(
        UnknownNameError, match="unknown reward 'normalised'; did you mean 'normalized'"
    ):
        as_reward("normalised")


def test_anything_else_is_refused() -> None:
    with pytest.raises(ArgumentError, match="reward must be a name or a Reward function, got 3"):
        as_reward(3)
