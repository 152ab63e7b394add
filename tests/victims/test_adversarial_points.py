"""Perturbations of pairs that are scored one by one: against autograd, differences and brute force."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from recattack_gym.victims.adversarial import Adversary, Coefficient, coefficients
from recattack_gym.victims.adversarial_points import own_lengths, perturb_points

Loss = Callable[[NDArray[np.float64], float], NDArray[np.float64]]

LOG_LOSS: Loss = lambda x, y: np.logaddexp(0.0, x) - y * x  # noqa: E731
SQUARED: Loss = lambda x, y: 0.5 * np.square(y - x)  # noqa: E731


def sign_of(loss: Loss, score: float, label: float) -> float:
    """The sign of the derivative by the score, by the formula of each loss."""
    return 1.0 - 2.0 * label if loss is LOG_LOSS else float(np.sign(score - label))


def rows(seed: int, d: int) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    rng = np.random.default_rng(seed)
    p, q, b = rng.standard_normal(d), rng.standard_normal(d), rng.standard_normal()
    return p, q, float(b)


def perturbed(
    p: NDArray[np.float64], q: NDArray[np.float64], sign: float, eps: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    user, item, of_loss = (torch.tensor(x, dtype=torch.float64) for x in (p, q, sign))
    to_p, to_q = perturb_points(user, item, of_loss, eps)
    return to_p.numpy(), to_q.numpy()


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("loss", [LOG_LOSS, SQUARED], ids=["log", "squared"])
@pytest.mark.parametrize("seed", range(5))
def test_perturbations_are_the_normalised_gradients(loss: Loss, label: float, seed: int) -> None:
    p, q, b = rows(seed, 4)
    score, eps, step = float(p @ q + b), 0.3, 1e-6
    sign = sign_of(loss, score, label)
    to_p, to_q = perturbed(p, q, sign, eps)
    moves = step * np.eye(4)
    of_p = [(p + z) @ q + b for z in (moves, -moves)]
    of_q = [(q + z) @ p + b for z in (moves, -moves)]
    for moved, (up, down) in ((to_p, of_p), (to_q, of_q)):
        slope = (loss(up, label) - loss(down, label)) / (2.0 * step)
        np.testing.assert_allclose(moved, eps * slope / np.linalg.norm(slope), atol=1e-7)
    tensors = [torch.tensor(x, requires_grad=True) for x in (p, q)]
    logit = (tensors[0] * tensors[1]).sum() + b
    if loss is LOG_LOSS:
        target = torch.tensor(label, dtype=torch.float64)
        torch.nn.functional.binary_cross_entropy_with_logits(logit, target).backward()  # type: ignore[no-untyped-call]  # torch has no annotation
    else:
        (0.5 * (label - logit) ** 2).backward()  # type: ignore[no-untyped-call]  # torch has no annotation
    for moved, tensor in zip((to_p, to_q), tensors, strict=True):
        assert tensor.grad is not None
        gradient = tensor.grad.numpy()
        np.testing.assert_allclose(moved, eps * gradient / np.linalg.norm(gradient), rtol=1e-12)
    cosine = p @ q / (np.linalg.norm(p) * np.linalg.norm(q))
    closed = score + sign * eps * (np.linalg.norm(p) + np.linalg.norm(q)) + eps**2 * cosine
    np.testing.assert_allclose((p + to_p) @ (q + to_q) + b, closed, rtol=1e-12)


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("loss", [LOG_LOSS, SQUARED], ids=["log", "squared"])
@pytest.mark.parametrize("eps", [0.05, 0.8])
def test_no_move_of_one_row_does_more_and_none_of_both_rows_much_more(
    loss: Loss, label: float, eps: float
) -> None:
    """Every direction of the plane, a thousand per row; a loss is largest on the rim of its ball."""
    angles = np.linspace(0.0, 2.0 * np.pi, 1000, endpoint=False)
    rim = eps * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for seed in range(5):
        p, q, b = rows(seed, 2)
        score = float(p @ q + b)
        sign = sign_of(loss, score, label)
        to_p, to_q = perturbed(p, q, sign, eps)
        for found, tried in (
            (loss((p + to_p) @ q + b, label), loss((p + rim) @ q + b, label)),
            (loss(p @ (q + to_q) + b, label), loss((q + rim) @ p + b, label)),
        ):
            assert tried.max() <= found + 1e-12
            assert tried.max() > found - 1e-3 * eps
        everywhere = (p + rim) @ (q + rim).T + b  # (1000, 1000)
        missed = (sign * everywhere).max() - sign * ((p + to_p) @ (q + to_q) + b)
        cosine = p @ q / (np.linalg.norm(p) * np.linalg.norm(q))
        assert missed <= eps**2 * (1.0 - sign * cosine) + 1e-12
        assert missed > -1e-3 * eps


@pytest.mark.parametrize("coefficient", ["uniform", "squared", "relative", "absolute"])
def test_lengths_are_those_of_each_users_coefficient(coefficient: Coefficient) -> None:
    rng = np.random.default_rng(0)
    user, item = (torch.tensor(rng.standard_normal(shape)) for shape in ((6, 1, 3), (6, 2, 3)))
    adversary = Adversary(0.4, 1.0, 0.5, coefficient)
    usual = adversary.usual_size(user[:, 0].numpy())
    lengths = own_lengths(user, adversary, usual)
    sign = torch.tensor(rng.choice([-1.0, 1.0], (6, 2)))
    own = coefficients(np.linalg.norm(user[:, 0].numpy(), axis=1), coefficient)
    for moved in perturb_points(user, item, sign, lengths):
        assert moved.shape == (6, 2, 3)
        np.testing.assert_allclose(moved.norm(dim=2), np.tile(0.4 * own[:, None], 2), rtol=1e-6)


def test_rows_of_zeros_move_nobody() -> None:
    zero, one = torch.zeros(1, 3), torch.ones(1, 3)
    to_user, to_item = perturb_points(zero, one, torch.ones(1), 0.5)
    torch.testing.assert_close(to_user.norm(), torch.tensor(0.5))
    assert not to_item.any()
