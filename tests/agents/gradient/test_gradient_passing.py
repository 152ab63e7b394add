"""Gradient Passing: published numbers by hand, its algebra, and the compiled path against the plain one."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agents.gradient.gradient_passing import (
    GradientPassing,
    away_scores,
    pass_gradient,
    pass_gradient_plainly,
)
from agents.gradient.graph import InteractionGraph
from recattack_gym.core import ArgumentError, Interactions

INF = math.inf
# Users u0, u1 and items i0, i1, i2; pairs u0-i0, u0-i1, u1-i1, u1-i2.
LOG = Interactions(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 2]), 2, 3)
GRAPH = InteractionGraph.of(LOG)
R = np.array([[1, 0], [0, 1], [1, 1], [0.5, -0.5], [-1, 0]])
G = np.array([[0.1, -0.2], [0.3, 0], [-0.1, 0.1], [0.2, 0.4], [0, -0.3]])

Passed = Callable[
    [NDArray[np.float64], NDArray[np.float64], InteractionGraph, GradientPassing],
    NDArray[np.float64],
]
both_paths = pytest.mark.parametrize("passed", [pass_gradient, pass_gradient_plainly])


def setting(
    threshold_odd: float, threshold_even: float, weight_odd: float, weight_even: float, order: int
) -> GradientPassing:
    return GradientPassing(
        threshold_odd=threshold_odd,
        threshold_even=threshold_even,
        weight_odd=weight_odd,
        weight_even=weight_even,
        order=order,
    )


def random_case(
    seed: int, n_users: int = 7, n_items: int = 9, n_events: int = 30, size: int = 5
) -> tuple[InteractionGraph, NDArray[np.float64], NDArray[np.float64]]:
    """Return a graph in which some rows have no pair, representations and a gradient."""
    rng = np.random.default_rng(seed)
    log = Interactions(
        rng.integers(n_users - 1, size=n_events),
        rng.integers(n_items - 1, size=n_events),
        n_users,
        n_items,
    )
    graph = InteractionGraph.of(log, [np.array([1, 2, 2]), np.array([0])])
    return graph, rng.normal(size=(graph.n_rows, size)), rng.normal(size=(graph.n_rows, size))


@both_paths
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            setting(0, -INF, 1, 10, 2),
            [3.5, -2.65, 5.2, -0.95, 0.439214, 3.428427, 1.792893, 2.835786, 1.289214, 0.028427],
        ),
        (
            setting(-INF, -INF, 1, 10, 1),
            [1.629289, -1.429289, 2.9, -0.512132, 0.177817, 1.872792, 1.046447, 1.592893, 0.919239,
             -0.385786],
        ),
        (setting(0, -INF, 1, 0, 1), [0.2, 0, 0.4, 0.2, -0.1, 0.1, 0.4, 0.3, 0, -0.3]),
        (
            setting(INF, -INF, 1, 1, 1),
            [0.25, -0.35, 0.55, -0.05, -0.079289, 0.291421, 0.264645, 0.529289, 0.070711, -0.308579],
        ),
        (setting(INF, INF, 1, 10, 2), G.ravel().tolist()),
    ],
)  # fmt: skip
def test_the_numbers_of_the_fixture(
    passed: Passed, config: GradientPassing, expected: list[float]
) -> None:
    # specs/algorithms.md, F1
    assert passed(G, R, GRAPH, config).ravel() == pytest.approx(expected, abs=1e-6)


def test_the_graph_of_the_fixture_and_its_away_scores() -> None:
    assert GRAPH.degrees.tolist() == [2, 2, 1, 2, 1]
    assert pytest.approx([0.5**0.5, 0.5, 0.5, 0.5**0.5]) == GRAPH.weights
    assert away_scores(G, R, GRAPH) == pytest.approx([-0.2, 0.35, 0.55, -0.6])


def test_a_pair_moves_apart_by_its_away_score() -> None:
    # d/d eta of (r_u - eta g_u) . (r_i - eta g_i) at 0
    eta = 1e-6
    before = (R[[0, 0, 1, 1]] * R[[2, 3, 3, 4]]).sum(axis=1)
    moved = R - eta * G
    after = (moved[[0, 0, 1, 1]] * moved[[2, 3, 3, 4]]).sum(axis=1)
    assert (before - after) / eta == pytest.approx(away_scores(G, R, GRAPH), abs=1e-5)


CONFIGS = [
    GradientPassing(),
    setting(0.1, -0.2, 1, 3, 3),
    setting(-INF, -INF, 0.5, 2, 2),
    setting(0.0, 0.0, 0.5, 2, 2),
    setting(INF, 0.0, 1, 1, 1),
    setting(-INF, INF, 1, 1, 2),
    setting(0.3, -INF, 0, 7, 4),
]


@pytest.mark.parametrize("config", CONFIGS)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 9))
@settings(max_examples=10, deadline=None)
def test_the_compiled_path_is_the_plain_one(config: GradientPassing, seed: int, size: int) -> None:
    graph, r, g = random_case(seed, size=size)
    exact = pass_gradient_plainly(g, r, graph, config)
    assert np.abs(pass_gradient(g, r, graph, config) - exact).max() < 1e-10
    single = pass_gradient(g.astype(np.float32), r.astype(np.float32), graph, config)
    assert single.dtype == np.float32
    if not math.isfinite(config.threshold_odd) and not math.isfinite(config.threshold_even):
        assert (
            np.abs(single - exact).max() < 1e-3
        )  # a pair at the threshold may fall on either side


@both_paths
def test_a_pair_whose_away_score_is_the_threshold_does_not_pass(passed: Passed) -> None:
    # Only u0 moves, and u1's items have no gradient: its pairs have the score 0, which is not above 0.
    one_row = np.zeros_like(G)
    one_row[0] = [1.0, 1.0]
    assert away_scores(one_row, R, GRAPH).tolist() == [2.0, 0.0, 0.0, 0.0]
    result = passed(one_row, R, GRAPH, setting(0, INF, 1, 0, 1)) - one_row
    assert result[2] == pytest.approx(0.5**0.5 * one_row[0])
    assert not result[[0, 1, 3, 4]].any()


def test_nothing_changes_bit_for_bit_where_nothing_is_passed() -> None:
    graph, r, g = random_case(0)
    for config in (setting(INF, INF, 1, 10, 2), setting(0, -INF, 0, 0, 2)):
        assert np.array_equal(pass_gradient(g, r, graph, config), g)


def test_it_is_linear_in_the_gradient_if_all_pairs_pass_and_only_then() -> None:
    graph, r, g = random_case(1)
    h = np.random.default_rng(2).normal(size=g.shape)

    def defect(config: GradientPassing) -> float:
        both = pass_gradient(2 * g - 3 * h, r, graph, config)
        apart = 2 * pass_gradient(g, r, graph, config) - 3 * pass_gradient(h, r, graph, config)
        return float(np.abs(both - apart).max())

    assert defect(setting(-INF, -INF, 1, 10, 2)) < 1e-9
    assert defect(GradientPassing()) > 0.1


def test_at_threshold_zero_it_is_positively_homogeneous_and_not_odd() -> None:
    graph, r, g = random_case(3)
    config = setting(0, 0, 1, 10, 2)
    passed = pass_gradient(g, r, graph, config)
    assert pass_gradient(2.5 * g, r, graph, config) == pytest.approx(2.5 * passed)
    assert np.abs(pass_gradient(-g, r, graph, config) + passed).max() > 0.1


def test_one_hop_reaches_a_users_items_and_two_hops_its_neighbours() -> None:
    graph, r, _ = random_case(4)
    one_hot = np.zeros_like(r)
    one_hot[0] = 1.0
    user_items = graph.n_users + graph.items[graph.indptr[0] : graph.indptr[1]]
    odd = pass_gradient(one_hot, r, graph, setting(-INF, -INF, 1, 0, 1)) - one_hot
    assert set(np.flatnonzero(odd.any(axis=1))) == set(user_items)
    even = pass_gradient(one_hot, r, graph, setting(-INF, -INF, 0, 1, 1)) - one_hot
    users = np.repeat(np.arange(graph.n_users), np.diff(graph.indptr))
    raters = set(users[np.isin(graph.n_users + graph.items, user_items)])
    assert set(np.flatnonzero(even.any(axis=1))) == raters


@given(seed=st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_it_lengthens_a_gradient_by_at_most_its_weights(seed: int) -> None:
    graph, r, g = random_case(seed)
    norm = np.linalg.norm(np.linalg.eigvalsh(graph.adjacency().toarray()), ord=INF)
    assert norm <= 1 + 1e-12
    passed = pass_gradient(g, r, graph, setting(-INF, -INF, 1, 10, 2))
    assert np.linalg.norm(passed) <= (1 + 1 * 2 + 10 * 2) * np.linalg.norm(g)


def test_arguments_are_not_changed() -> None:
    graph, r, g = random_case(5)
    r_before, g_before = r.copy(), g.copy()
    pass_gradient(g, r, graph, GradientPassing())
    assert np.array_equal(g, g_before)
    assert np.array_equal(r, r_before)


def test_shapes_and_settings_are_checked() -> None:
    with pytest.raises(ArgumentError, match=r"gradient must have shape \(5, d\).*got \(4, 2\)"):
        pass_gradient(G[:4], R, GRAPH, GradientPassing())
    with pytest.raises(ArgumentError, match=r"representations must have shape \(5, d\)"):
        pass_gradient(G, R[:, :1], GRAPH, GradientPassing())
    with pytest.raises(ArgumentError, match="threshold_odd must be"):
        GradientPassing(threshold_odd=math.nan)
    with pytest.raises(ArgumentError, match="order must be"):
        GradientPassing(order=0)
    with pytest.raises(ArgumentError, match="indptr must rise"):
        InteractionGraph(np.array([0, 3]), np.array([0, 1]), 3, 1)
    with pytest.raises(ArgumentError, match="n_genuine must lie"):
        InteractionGraph(np.array([0, 2]), np.array([0, 1]), 3, 2)
