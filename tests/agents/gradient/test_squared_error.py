"""The squared error's gradient and derivatives, against finite differences in double precision."""

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.gradient.graph import InteractionGraph
from agents.gradient.squared_error import (
    squared_error_by_clicks,
    squared_error_gradient,
    squared_error_hessian_product,
)
from tests.agents.stub_view import random_log

WEIGHT, REG = 4.0, 0.3
GRAPH = InteractionGraph.of(random_log(6, 7, 20), [np.array([1, 5]), np.array([0, 2, 6])])
USERS = np.array([5, 1, 7, 2, 6])


def rows(seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(GRAPH.n_rows, 3))


def dense_loss(r: NDArray[np.float64], y: NDArray[np.float64], w: NDArray[np.float64]) -> float:
    """Return the formula, cell by cell; shapes of `y` and `w` `(n_users, n_items)`."""
    total = 0.0
    for user in USERS:
        for item in range(GRAPH.n_items):
            r_u, r_i = r[user], r[GRAPH.n_users + item]
            total += w[user, item] * (y[user, item] - r_u @ r_i) ** 2
            total += REG * (r_u @ r_u + r_i @ r_i)
    return total / (len(USERS) * GRAPH.n_items)


def cells() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y = np.zeros((GRAPH.n_users, GRAPH.n_items))
    y[np.repeat(np.arange(GRAPH.n_users), np.diff(GRAPH.indptr)), GRAPH.items] = 1
    return y, np.where(y > 0, WEIGHT, 1.0)


def test_loss_and_gradient_are_those_of_the_formula() -> None:
    r, (y, w) = rows(0), cells()
    loss, gradient = squared_error_gradient(USERS, r, GRAPH, WEIGHT, REG)
    assert loss == pytest.approx(dense_loss(r, y, w))
    for place in np.ndindex(r.shape):
        change = np.zeros_like(r)
        change[place] = 1e-5
        slope = (dense_loss(r + change, y, w) - dense_loss(r - change, y, w)) / 2e-5
        assert gradient[place] == pytest.approx(slope, abs=1e-8)


def test_the_hessian_product_is_how_the_gradient_changes() -> None:
    r, direction = rows(1), rows(2)
    product = squared_error_hessian_product(direction, USERS, r, GRAPH, WEIGHT, REG)
    ahead, behind = (
        squared_error_gradient(USERS, r + sign * 1e-5 * direction, GRAPH, WEIGHT, REG)[1]
        for sign in (1, -1)
    )
    assert product == pytest.approx((ahead - behind) / 2e-5, abs=1e-8)


def test_the_derivative_by_clicks_is_how_the_gradient_changes_with_a_cell() -> None:
    r, direction, (y, w) = rows(3), rows(4), cells()
    found = squared_error_by_clicks(direction, USERS, r, GRAPH, WEIGHT)
    assert found.shape == (2, GRAPH.n_items)

    def slope_along(y_changed: NDArray[np.float64]) -> float:
        ahead, behind = (dense_loss(r + sign * 1e-5 * direction, y_changed, w) for sign in (1, -1))
        return (ahead - behind) / 2e-5

    for fake, item in np.ndindex(found.shape):
        change = np.zeros_like(y)
        change[GRAPH.n_genuine + fake, item] = 1e-3
        expected = (slope_along(y + change) - slope_along(y - change)) / 2e-3
        assert found[fake, item] == pytest.approx(expected, abs=1e-6)


def test_fake_users_outside_the_batch_have_no_part() -> None:
    found = squared_error_by_clicks(rows(5), np.array([0, 6]), rows(6), GRAPH, WEIGHT)
    assert found[0].any()
    assert not found[1].any()
