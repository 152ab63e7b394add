"""The objective by hand."""

import math

import pytest
import torch

from agents.poisonrec.ppo import clipped_surrogate, mean_log_p, normalise_rewards
from recattack_gym.core import ArgumentError


def surrogate(ratio: float, advantage: float) -> float:
    log_p = torch.tensor([[math.log(ratio)]])
    value = clipped_surrogate(
        log_p,
        torch.zeros(1, 1),
        torch.ones(1, 1, dtype=torch.bool),
        torch.tensor([advantage]),
        clip_range=0.1,
    )
    return value.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.2, 1.0, 1.1), (0.8, 1.0, 0.8), (1.2, -1.0, -1.2), (0.8, -1.0, -0.9)],
)
def test_the_clip_takes_the_pessimistic_side(
    ratio: float, advantage: float, expected: float
) -> None:
    assert surrogate(ratio, advantage) == pytest.approx(expected, rel=1e-6)


def test_rewards_are_normalised_by_the_populations_deviation() -> None:
    normal = normalise_rewards(torch.tensor([10.0, 20.0, 30.0, 40.0]))
    assert normal.tolist() == pytest.approx([-1.341641, -0.447214, 0.447214, 1.341641], abs=1e-6)


@pytest.mark.parametrize("rewards", [[7.0], [0.0, 0.0], [5e4] * 32])
def test_equal_rewards_give_no_advantage_and_no_nan(rewards: list[float]) -> None:
    assert normalise_rewards(torch.tensor(rewards)).tolist() == [0.0] * len(rewards)


def test_every_decision_has_a_ratio_and_a_clip_of_its_own() -> None:
    # Two clicks; the first took two decisions, of which one has left the trust region, the second one.
    log_p = torch.tensor([[math.log(1.05), math.log(1.5)], [math.log(0.5), 0.0]])
    mask = torch.tensor([[True, True], [True, False]])
    value = clipped_surrogate(
        log_p, torch.zeros(2, 2), mask, torch.tensor([2.0, -1.0]), clip_range=0.1
    )
    # min(1.05 * 2, ...) = 2.1; min(1.5 * 2, 1.1 * 2) = 2.2; min(-0.5, -0.9) = -0.9; mean of three
    assert value.item() == pytest.approx((2.1 + 2.2 - 0.9) / 3, rel=1e-6)


def test_per_path_a_whole_click_has_one_ratio() -> None:
    log_p = torch.tensor([[math.log(1.05), math.log(1.02)], [math.log(0.5), 9.0]])
    mask = torch.tensor([[True, True], [True, False]])
    value = clipped_surrogate(
        log_p,
        torch.zeros(2, 2),
        mask,
        torch.tensor([2.0, -1.0]),
        clip_range=0.1,
        per_path=True,
    )
    # 1.05 * 1.02 = 1.071 is inside the region: 2.142; -0.9 as above; mean of two
    assert value.item() == pytest.approx((2.142 - 0.9) / 2, rel=1e-6)


def test_the_gradient_is_that_of_reinforce_at_first_and_zero_where_the_clip_is_active() -> None:
    log_p = torch.tensor([[0.0, 0.3]], requires_grad=True)
    clipped_surrogate(
        log_p,
        torch.zeros(1, 2),
        torch.ones(1, 2, dtype=torch.bool),
        torch.tensor([1.5]),
        clip_range=0.1,
    ).backward()  # type: ignore[no-untyped-call]  # torch
    assert log_p.grad is not None
    assert log_p.grad.tolist() == [[pytest.approx(1.5 / 2), 0.0]]


def test_what_is_masked_does_not_count_whatever_it_holds() -> None:
    mask = torch.tensor([[True, False]])
    for junk in (0.0, 50.0, -math.inf):
        log_p = torch.tensor([[0.05, junk]])
        old = torch.tensor([[0.0, 0.0]])
        value = clipped_surrogate(log_p, old, mask, torch.tensor([1.0]), clip_range=0.1)
        assert value.item() == pytest.approx(math.exp(0.05))
    assert (
        mean_log_p(torch.tensor([[-2.0, 5.0], [-4.0, -6.0]]), torch.tensor([[1, 0], [1, 1]])) == -4
    )


def test_shapes_that_do_not_fit_are_refused() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ArgumentError, match="must have equal shapes"):
        clipped_surrogate(
            torch.zeros(2, 3), torch.zeros(2, 2), mask, torch.zeros(2), clip_range=0.1
        )
    with pytest.raises(ArgumentError, match=r"advantages must have shape \(2,\), got \(3,\)"):
        clipped_surrogate(
            torch.zeros(2, 3), torch.zeros(2, 3), mask, torch.zeros(3), clip_range=0.1
        )
