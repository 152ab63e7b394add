"""NuclearNorm's solution against soft-impute on dense matrices and the conditions of optimality."""

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.victims import NuclearNorm, nuclear
from recattack_gym.victims.least_squares import Linearised, RatingMatrix

REG = 2.0


def low_rank_matrix(n_users: int, n_items: int, seed: int = 0) -> RatingMatrix:
    rng = np.random.default_rng(seed)
    users, items = np.nonzero(rng.random((n_users, n_items)) < 0.4)
    truth = rng.standard_normal((n_users, 3)) @ rng.standard_normal((3, n_items)) / np.sqrt(3)
    noisy = truth[users, items] + 0.3 * rng.standard_normal(len(users))
    return RatingMatrix(users, items, np.clip(noisy, -2, 2), n_users, n_items)


def threshold(z: NDArray[np.float64], reg: float) -> NDArray[np.float64]:
    left, s, right = np.linalg.svd(z, full_matrices=False)
    shrunk: NDArray[np.float64] = (left * np.maximum(s - reg, 0.0)) @ right
    return shrunk


def soft_impute(matrix: RatingMatrix, reg: float) -> NDArray[np.float64]:
    known = matrix.sparse(np.ones(len(matrix.ratings))).toarray() > 0
    given = matrix.sparse(matrix.ratings).toarray()
    x: NDArray[np.float64] = np.zeros_like(given)
    for _ in range(20_000):
        moved = threshold(np.where(known, given, x), reg)
        change, x = np.abs(moved - x).max(), moved
        if change < 1e-12:
            break
    return x


def solved(matrix: RatingMatrix, reg: float = REG, **settings: object) -> NDArray[np.float64]:
    victim = NuclearNorm({"reg": reg, "tolerance": 1e-10, **settings})
    point = victim.solve(matrix, np.zeros((matrix.n_items, 0)))
    predicted: NDArray[np.float64] = point.users @ point.items.T
    return predicted


def test_the_solution_is_soft_imputes() -> None:
    matrix = low_rank_matrix(30, 22)
    np.testing.assert_allclose(solved(matrix), soft_impute(matrix, REG), atol=1e-8)


@pytest.mark.parametrize("dense_up_to", [120, 0])
def test_the_conditions_of_optimality_hold(
    dense_up_to: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nuclear, "_DENSE", dense_up_to)  # 0: decompositions are truncated
    matrix = low_rank_matrix(60, 45)
    x = solved(matrix)
    residual = matrix.sparse(matrix.ratings - x[matrix.user_ids, matrix.item_ids]).toarray()
    assert np.abs(threshold(residual + x, REG) - x).max() < 1e-6
    rank = np.linalg.matrix_rank(x, tol=1e-6)
    left, _, right = np.linalg.svd(x)
    u, v = left[:, :rank], right[:rank].T
    rest = residual / REG - u @ v.T
    assert 1 < rank < 40
    assert np.abs(u.T @ rest).max() < 1e-6
    assert np.abs(rest @ v).max() < 1e-6
    assert np.linalg.norm(rest, 2) <= 1.0 + 1e-6


def test_a_new_direction_starts_at_its_own_best_length() -> None:
    """For `c l r^T` alone: the derivative of `1/2 sum (a_ij - c l_i r_j)^2 + reg c` in c is zero."""
    matrix = low_rank_matrix(30, 22)
    point = Linearised.at(matrix, np.zeros((22, 0)), REG)
    added = nuclear._missing_directions(point, 2)
    left, s, right = np.linalg.svd(matrix.sparse(matrix.ratings).toarray())
    for k in range(2):
        length = added[:, k] @ added[:, k]
        assert abs(right[k] @ added[:, k]) == pytest.approx(np.sqrt(length))
        by_pair = left[matrix.user_ids, k] * right[k, matrix.item_ids]
        slope = REG - ((matrix.ratings - length * by_pair) * by_pair).sum()
        assert abs(slope) < 1e-8 * s[0]
        assert length > 1.3 * (s[k] - REG)  # soft-impute's step is far shorter


def test_where_training_starts_does_not_matter() -> None:
    matrix = low_rank_matrix(30, 22)
    start = np.random.default_rng(3).standard_normal((22, 5))
    victim = NuclearNorm({"reg": REG, "tolerance": 1e-10})
    point = victim.solve(matrix, start)
    np.testing.assert_allclose(point.users @ point.items.T, solved(matrix), atol=1e-8)
    np.testing.assert_allclose(point.users.T @ point.users, point.items.T @ point.items, atol=1e-7)


def test_a_penalty_above_the_largest_singular_value_leaves_nothing() -> None:
    matrix = low_rank_matrix(30, 22)
    largest = float(np.linalg.norm(matrix.sparse(matrix.ratings).toarray(), 2))
    assert not solved(matrix, reg=1.01 * largest).any()
    assert np.linalg.matrix_rank(solved(matrix, reg=0.99 * largest)) == 1


def test_the_rank_is_bounded_on_request() -> None:
    matrix = low_rank_matrix(30, 22)
    assert np.linalg.matrix_rank(solved(matrix), tol=1e-8) > 2
    assert np.linalg.matrix_rank(solved(matrix, max_rank=2), tol=1e-8) == 2
