"""Gradients with respect to fake ratings, against finite differences and formulas spelled out."""

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.gradient.ratings.adjoints import (
    RatingGradient,
    carried,
    paper_nuclear_gradient,
    rating_gradient,
    svt_adjoint,
    utility_gradient,
)
from agents.gradient.ratings.base import random_items
from recattack_gym.core import AttackBudget
from recattack_gym.datasets import SyntheticConfig, generate, with_generated_ratings
from recattack_gym.simulator import RatingGoal, RatingPlatform
from recattack_gym.victims.least_squares import Linearised

CONFIG: dict[str, dict[str, object]] = {
    "ALS": {"embedding_size": 3, "reg": 1.0, "tolerance": 1e-11},
    "NuclearNorm": {"reg": 3.0, "tolerance": 1e-11},
}
TARGETS = (3, 8)
GOALS = [
    RatingGoal(),
    RatingGoal(availability=0.0, integrity=1.0, target_items=TARGETS),
    RatingGoal(availability=-1.0, integrity=1.0, target_items=TARGETS),
    RatingGoal(availability=1.0, integrity=-1.0, target_items=TARGETS, normalized=True),
]


class Case:
    """A platform, fake ratings, and the victim retrained on both."""

    def __init__(self, victim: str, **config: object) -> None:
        rng = np.random.default_rng(0)
        size = SyntheticConfig(n_users=40, n_items=30, n_events=400, n_topics=3)
        log = with_generated_ratings(generate(size, rng).log, rng)
        self.platform = RatingPlatform(log, victim, victim_config={**CONFIG[victim], **config})
        self.items = random_items(30, AttackBudget(n_fake_users=4, profile_size=6), (3,), rng)
        self.ratings = rng.uniform(-2, 2, self.items.shape)
        self.point = self.platform.retrain(self.items, self.ratings)

    def gradient(self, goal: RatingGoal, kind: str = "exact") -> NDArray[np.float64]:
        return rating_gradient(
            self.platform,
            self.point,
            goal,
            kind,  # type: ignore[arg-type]  # parametrised text
            tolerance=1e-13,
        ).reshape(self.items.shape)

    def utility(self, ratings: NDArray[np.float64], goal: RatingGoal) -> float:
        again = self.platform.retrain(self.items, ratings, start=self.point.items)
        return self.platform.utility(self.platform.prediction(again), goal)

    def differences(self, goal: RatingGoal, step: float = 1e-3) -> NDArray[np.float64]:
        """Central differences of fourth order, from converged fits."""
        slopes = np.zeros_like(self.ratings)
        for place in np.ndindex(slopes.shape):
            values = []
            for times in (-2, -1, 1, 2):
                moved = self.ratings.copy()
                moved[place] += times * step
                values.append(self.utility(moved, goal))
            slopes[place] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
        return slopes

    def outer(self, goal: RatingGoal) -> NDArray[np.float64]:
        """G as a matrix, by its formula, with zero rows for fake users."""
        platform = self.platform
        first, second = goal.coefficients(platform.n_users, platform.n_unseen)
        users, items = self.point.users[:40], self.point.items
        change = users @ items.T - platform.clean.users @ platform.clean.items.T
        change[platform.matrix.user_ids, platform.matrix.item_ids] = 0.0
        whole = np.zeros((44, 30))
        whole[:40] = 2.0 * first * change
        whole[:40, list(goal.target_items)] += second
        return whole


@pytest.fixture(scope="module", params=["ALS", "NuclearNorm"])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.mark.parametrize("goal", GOALS, ids=str)
def test_the_exact_gradient_is_that_of_finite_differences(case: Case, goal: RatingGoal) -> None:
    exact, slopes = case.gradient(goal), case.differences(goal)
    assert case.point.kkt_residual < 1e-10
    assert np.linalg.norm(exact - slopes) < 1e-6 * np.linalg.norm(slopes)


@pytest.mark.parametrize("goal", GOALS, ids=str)
def test_the_products_with_the_utilitys_gradient_are_those_of_the_matrix(
    case: Case, goal: RatingGoal
) -> None:
    whole, got = case.outer(goal)[:40], utility_gradient(case.platform, case.point, goal)
    size = np.abs(whole).max()
    np.testing.assert_allclose(got.to_users, whole @ case.point.items, atol=1e-9 * size)
    np.testing.assert_allclose(got.to_items, whole.T @ case.point.users[:40], atol=1e-9 * size)


@pytest.mark.parametrize("goal", GOALS, ids=str)
def test_the_adjoint_of_soft_imputes_fixed_point_agrees(goal: RatingGoal) -> None:
    case = Case("NuclearNorm")
    matrix, point = case.point.matrix, case.point
    known = matrix.sparse(np.ones(len(matrix.ratings))).toarray() > 0
    x = point.users @ point.items.T
    z = np.where(known, matrix.sparse(matrix.ratings).toarray(), x)
    dense = svt_adjoint(known, z, case.outer(goal), point.reg)
    assert not dense[~known].any()
    exact = case.gradient(goal)
    by_fixed_point = np.take_along_axis(dense[40:], case.items, axis=1)
    np.testing.assert_allclose(by_fixed_point, exact, atol=1e-8 * np.abs(exact).max())
    flipped = svt_adjoint(known.T, z.T, case.outer(goal).T, point.reg)
    np.testing.assert_allclose(flipped.T, dense, atol=1e-9 * np.abs(dense).max())


def test_a_loose_tolerance_is_close() -> None:
    case = Case("ALS")
    loose = rating_gradient(case.platform, case.point, GOALS[0], "exact", tolerance=1e-3)
    exact = case.gradient(GOALS[0]).ravel()
    assert np.linalg.norm(loose - exact) < 0.01 * np.linalg.norm(exact)


@pytest.mark.parametrize("goal", GOALS, ids=str)
def test_the_papers_als_gradient_is_its_formula(goal: RatingGoal) -> None:
    case = Case("ALS")
    point, outer = case.point, case.outer(goal)
    wanted = np.zeros_like(case.ratings)
    for i, t in np.ndindex(case.items.shape):
        j = case.items[i, t]
        raters = point.users[point.matrix.user_ids[point.matrix.item_ids == j]]
        system = point.reg * np.eye(3) + raters.T @ raters
        wanted[i, t] = point.users[40 + i] @ np.linalg.solve(system, point.users.T @ outer[:, j])
    np.testing.assert_allclose(case.gradient(goal, "paper"), wanted, atol=1e-10)


@pytest.mark.parametrize("goal", GOALS, ids=str)
def test_the_papers_nuclear_gradient_is_its_formula(goal: RatingGoal) -> None:
    case = Case("NuclearNorm")
    point, outer, ridge = case.point, case.outer(goal), 0.1
    left, s, right = np.linalg.svd(point.users @ point.items.T, full_matrices=False)
    rank = point.items.shape[1]
    left, s, v = left[:, :rank], s[:rank], right[:rank].T
    shift = np.diag(s + point.reg)
    wanted = np.zeros_like(case.ratings)
    for i, t in np.ndindex(case.items.shape):
        j, u = case.items[i, t], left[40 + i]
        rows = left[point.matrix.user_ids[point.matrix.item_ids == j]] @ shift
        moved = np.linalg.solve(rows.T @ rows + ridge * np.eye(rank), shift @ u)
        wanted[i, t] = (np.diag(s) @ left.T @ outer[:, j]) @ moved
        wanted[i, t] += sum(left[:, k] @ outer @ v[:, k] * u[k] * v[j, k] for k in range(rank))
    got = paper_nuclear_gradient(case.platform, point, goal, ridge=ridge).reshape(wanted.shape)
    np.testing.assert_allclose(got, wanted, atol=1e-8 * np.abs(wanted).max())


@pytest.mark.parametrize("goal", GOALS, ids=str)
def test_gradients_along_a_path_are_those_of_single_points(case: Case, goal: RatingGoal) -> None:
    along = RatingGradient(case.platform, goal, tolerance=1e-11)
    hasty = RatingGradient(case.platform, goal, tolerance=1e-11, max_iterations=3)
    ratings, start, errors = case.ratings, None, []
    for _ in range(4):
        point = case.platform.retrain(case.items, ratings, start=start)
        alone = rating_gradient(case.platform, point, goal, "exact", tolerance=1e-11)
        size = np.linalg.norm(alone)
        assert np.linalg.norm(along.at(point) - alone) < 1e-7 * size
        errors.append(np.linalg.norm(hasty.at(point) - alone) / size)
        ratings = np.clip(ratings + 0.005 * np.sign(alone).reshape(ratings.shape), -2, 2)
        start = point.items
    assert errors[-1] < 0.5 * errors[0]  # it goes on where it was


def test_an_adjoint_is_carried_through_turns_flips_and_lost_columns() -> None:
    rng = np.random.default_rng(0)
    before, z = rng.standard_normal((30, 4)), rng.standard_normal((30, 4))
    turn, _ = np.linalg.qr(rng.standard_normal((4, 4)))
    turn[:, 0] *= -1.0
    np.testing.assert_allclose(carried(before, z, before @ turn), z @ turn)
    np.testing.assert_allclose(carried(before, z, before[:, [2, 0]]), z[:, [2, 0]], atol=1e-12)


def test_the_papers_gradient_points_roughly_where_the_exact_one_does(case: Case) -> None:
    exact, paper = (case.gradient(GOALS[0], kind).ravel() for kind in ("exact", "paper"))
    assert exact @ paper > 0.2 * np.linalg.norm(exact) * np.linalg.norm(paper)


def test_with_an_integrity_goal_only_targets_have_a_paper_gradient_but_all_have_an_exact_one() -> (
    None
):
    case = Case("ALS")
    paper, exact = (case.gradient(GOALS[1], kind) for kind in ("paper", "exact"))
    is_target = np.isin(case.items, TARGETS)
    assert paper[is_target].all()
    assert not paper[~is_target].any()
    assert (np.abs(exact) > 1e-6).all()


def test_a_heavy_penalty_leaves_no_gradient() -> None:
    sizes = [np.abs(Case("ALS", reg=reg).gradient(GOALS[1])).max() for reg in (1.0, 10.0, 1e4)]
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[2] < 1e-6


def test_a_rotation_of_the_factors_changes_nothing() -> None:
    case = Case("ALS")
    turn, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))
    turned = Linearised.at(case.point.matrix, case.point.items @ turn, case.point.reg)
    exact = case.gradient(GOALS[2])
    case.point = turned
    np.testing.assert_allclose(case.gradient(GOALS[2]), exact, atol=1e-8 * np.abs(exact).max())
