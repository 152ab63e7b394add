"""Attacks on predicted ratings: budget, progress, and what SGLD samples from."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from agents.gradient.ratings import RATING_ATTACKS, mimicry
from agents.gradient.ratings.base import RatingAttack
from agents.gradient.ratings.mimicry import popularity_groups
from agents.gradient.ratings.pga import PGAConfig, ascend
from agents.gradient.ratings.sgld import SGLD, langevin_step, largest, rating_prior
from recattack_gym.core import ArgumentError, AttackBudget, FakeProfiles, UnknownNameError
from recattack_gym.datasets import SyntheticConfig, generate, with_generated_ratings
from recattack_gym.simulator import RatingGoal, RatingPlatform
from recattack_gym.victims.least_squares import Linearised

CONFIG = {"ALS": {"embedding_size": 3, "reg": 1.0}, "NuclearNorm": {"reg": 3.0}}
BUDGET = AttackBudget(n_fake_users=5, profile_size=6)
AVAILABILITY = RatingGoal()
HYBRID = RatingGoal(availability=-1.0, integrity=1.0, target_items=(3,))
QUICK = {"uniform": {}, "pga": {"n_steps": 3}, "sgld": {"n_steps": 3}}


@pytest.fixture(scope="module", params=["ALS", "NuclearNorm"])
def platform(request: pytest.FixtureRequest) -> RatingPlatform:
    rng = np.random.default_rng(0)
    size = SyntheticConfig(n_users=40, n_items=30, n_events=400, n_topics=3)
    log = with_generated_ratings(generate(size, rng).log, rng)
    return RatingPlatform(log, request.param, victim_config=CONFIG[request.param])


def planned(attack: RatingAttack, platform: RatingPlatform, seed: int = 0) -> FakeProfiles:
    return attack.attack(platform, HYBRID, BUDGET, np.random.default_rng(seed))


@pytest.mark.parametrize("name", sorted(RATING_ATTACKS))
def test_the_budget_is_spent_on_distinct_items_and_the_seed_decides(
    name: str, platform: RatingPlatform
) -> None:
    attack = RATING_ATTACKS[name](QUICK[name])
    first, again, other = (planned(attack, platform, seed) for seed in (1, 1, 2))
    assert first.item_ids.shape == (5, 6)
    assert all(len(set(row)) == 6 for row in first.item_ids.tolist())
    assert first.ratings is not None
    assert first.ratings.min() >= 1.0
    assert first.ratings.max() <= 5.0
    assert first.content_hash == again.content_hash != other.content_hash
    assert first.header["attacker"] == name
    assert first.header["log_hash"] == platform.log.content_hash


@pytest.mark.parametrize("name", sorted(RATING_ATTACKS))
def test_targets_can_be_forced_into_every_profile(name: str, platform: RatingPlatform) -> None:
    attack = RATING_ATTACKS[name]({**QUICK[name], "force_targets": True})
    assert (planned(attack, platform).item_ids == 3).any(axis=1).all()
    free = planned(RATING_ATTACKS[name](QUICK[name]), platform)
    assert not (free.item_ids == 3).any(axis=1).all()


@pytest.mark.parametrize("goal", [AVAILABILITY, HYBRID], ids=["availability", "hybrid"])
def test_small_exact_steps_raise_the_utility_every_time(
    platform: RatingPlatform, goal: RatingGoal
) -> None:
    rng = np.random.default_rng(0)
    items = np.sort(np.stack([rng.permutation(30)[:6] for _ in range(5)]), axis=1)
    config = PGAConfig(n_steps=8, step_size=0.02, tolerance=1e-7)
    path = ascend(platform, goal, items, rng.uniform(-1, 1, items.shape), config)
    values = [value for value, _ in path]
    assert len(values) == 9
    assert (np.diff(values) > 0).all()


def test_attacks_help_and_random_ratings_are_the_floor(platform: RatingPlatform) -> None:
    rmse = {
        name: np.mean(
            [
                platform.outcome(
                    RATING_ATTACKS[name](settings).attack(
                        platform, AVAILABILITY, BUDGET, np.random.default_rng(seed)
                    ),
                    AVAILABILITY,
                ).rmse
                for seed in range(3)
            ]
        )
        for name, settings in (("uniform", {}), ("pga", {"n_steps": 8}))
    }
    assert rmse["pga"] > 1.2 * rmse["uniform"] > 0


def test_pga_returns_the_best_point_of_its_way(platform: RatingPlatform) -> None:
    goal = replace(HYBRID, availability=-10.0)
    config = {"n_steps": 6, "step_size": 2.0, "tolerance": 1e-6}  # so large that it overshoots
    attack = RATING_ATTACKS["pga"](config)
    found = attack.attack(platform, goal, BUDGET, np.random.default_rng(0))
    start = RATING_ATTACKS["uniform"]().attack(platform, goal, BUDGET, np.random.default_rng(0))
    np.testing.assert_array_equal(found.item_ids, start.item_ids)
    before, after = (platform.outcome(p, goal).utility for p in (start, found))
    assert after >= before


def test_beta_pulls_samples_towards_the_goal(platform: RatingPlatform) -> None:
    goal = RatingGoal(availability=1.0)
    rmse = [
        platform.outcome(
            SGLD({"beta": beta, "n_steps": 8}).attack(
                platform,
                goal,
                AttackBudget(n_fake_users=8, profile_size=6),
                np.random.default_rng(1),
            ),
            goal,
        ).rmse
        for beta in (0.0, 5.0)
    ]
    assert rmse[1] > rmse[0]


def test_beta_multiplies_the_goals_gradient(platform: RatingPlatform) -> None:
    """A target of twice the weight is worth twice the beta."""
    goal = RatingGoal(availability=0.0, integrity=1.0, target_items=(3,))
    once, weighty, eager = (
        SGLD({"n_steps": 3, "beta": beta}).attack(
            platform, replace(goal, weight=weight), BUDGET, np.random.default_rng(0)
        )
        for beta, weight in ((1.0, 1.0), (1.0, 2.0), (2.0, 1.0))
    )
    np.testing.assert_array_equal(weighty.item_ids, eager.item_ids)
    given = [platform.shifted(profiles) for profiles in (once, weighty, eager)]
    np.testing.assert_allclose(given[1], given[2], atol=1e-6)
    assert not np.allclose(given[0], given[2], atol=1e-4)


def test_sgld_sees_forced_targets_while_it_samples(
    platform: RatingPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, retrain = [], RatingPlatform.retrain

    def watched(
        self: RatingPlatform,
        items: NDArray[np.int64],
        ratings: NDArray[np.float64],
        *,
        start: NDArray[np.float64] | None,
        tolerance: float,
    ) -> Linearised:
        seen.append(bool((items == 3).any(axis=1).all()))
        return retrain(self, items, ratings, start=start, tolerance=tolerance)

    monkeypatch.setattr(RatingPlatform, "retrain", watched)
    planned(SGLD({"n_steps": 2, "force_targets": True}), platform)
    assert seen == [True, True]


@pytest.mark.parametrize("support", ["top", "dense"])
def test_both_supports_give_feasible_profiles(support: str, platform: RatingPlatform) -> None:
    profiles = planned(SGLD({"n_steps": 2, "support": support}), platform)
    assert profiles.item_ids.shape == (5, 6)


@pytest.mark.parametrize("scaling", ["item", "none"])
def test_without_beta_samples_have_the_priors_mean_and_a_known_variance(scaling: str) -> None:
    """Stationary variance of the discretised diffusion: sigma^2 / (1 - s / (4 sigma^2))."""
    mean, deviation = np.array([0.5, -1.0, 0.0]), np.array([0.4, 0.8, 1.5])
    attack = SGLD({"scaling": scaling, "step_size": 0.4, "decay": 0.0})
    sizes = attack.step_sizes(7, deviation)
    expected = [0.4, 0.4, 0.4] if scaling == "none" else 0.4 * deviation**2
    np.testing.assert_allclose(sizes, expected)
    rng = np.random.default_rng(0)
    state = np.tile(mean, (40_000, 1))
    for _ in range(60):
        state = langevin_step(state, np.zeros_like(state), mean, deviation, sizes, rng)
    variance = deviation**2 / (1.0 - sizes / (4.0 * deviation**2))
    np.testing.assert_allclose(state.mean(axis=0), mean, atol=0.03)
    np.testing.assert_allclose(state.var(axis=0), variance, rtol=0.04)


def test_step_sizes_fall() -> None:
    attack, one = SGLD({"decay": 0.5, "step_size": 1.0, "scaling": "none"}), np.ones(1)
    assert [float(attack.step_sizes(t, one)[0]) for t in (0, 3)] == [1.0, 0.5]


def test_the_prior_counts_a_missing_rating_as_zero(platform: RatingPlatform) -> None:
    mean, deviation = rating_prior(platform.matrix, 40, 1e-3)
    whole = platform.matrix.sparse(platform.matrix.ratings).toarray()
    np.testing.assert_allclose(mean, whole.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(deviation, np.maximum(whole.std(axis=0), 1e-3), atol=1e-9)


def test_the_projection_keeps_the_largest_and_clips_them() -> None:
    items, ratings = largest(np.array([[0.5, -3.0, 1.0, 0.2], [2.5, 0.0, -0.1, 0.3]]), 2)
    assert items.tolist() == [[1, 2], [0, 3]]
    assert ratings.tolist() == [[-2.0, 1.0], [2.0, 0.3]]
    items, ratings = largest(np.array([[0.5, -3.0, 1.0, 0.2]]), 2, (3,))
    assert items.tolist() == [[1, 3]]
    assert ratings.tolist() == [[-2.0, 0.2]]


# -- mimicry -----------------------------------------------------------------------------------


def test_copies_of_genuine_users_pass_and_lovers_of_one_rare_item_do_not(
    platform: RatingPlatform,
) -> None:
    log, matrix = platform.log, platform.matrix
    rng = np.random.default_rng(0)
    lengths = np.diff(matrix.indptr)
    size = int(np.median(lengths))
    rows = [
        rng.choice(np.arange(matrix.indptr[u], matrix.indptr[u + 1]), size, replace=False)
        for u in np.flatnonzero(lengths >= size)
    ]
    copies = platform.profiles(
        np.stack([matrix.item_ids[row] for row in rows]),
        np.stack([matrix.ratings[row] for row in rows]),
        {},
    )
    rare = np.argsort(log.item_popularity)[:6]
    odd = platform.profiles(np.tile(rare, (20, 1)), np.full((20, 6), 2.0), {})
    genuine, strange = mimicry(platform, copies, rng), mimicry(platform, odd, rng)
    assert min(genuine.ks, genuine.chi_square) > 0.05
    assert max(strange.ks, strange.chi_square) < 1e-3
    assert min(genuine.calibrated_t, genuine.calibrated_ks) > 0.05
    assert strange.calibrated_ks == 1 / 200


def test_t_tests_are_those_of_the_differences_item_by_item(platform: RatingPlatform) -> None:
    matrix = platform.matrix
    profiles = planned(RATING_ATTACKS["uniform"](), platform)
    fake = np.zeros((5, 30))
    np.put_along_axis(fake, profiles.item_ids, platform.shifted(profiles), axis=1)
    genuine = matrix.sparse(matrix.ratings).toarray()
    rated = matrix.sparse(np.ones(len(matrix.ratings))).toarray()
    found = mimicry(platform, profiles, np.random.default_rng(0))
    thinned = 6 / (len(matrix.ratings) / 40)
    for p_value, difference in (
        (found.t_matched, thinned * genuine.mean(axis=0) - fake.mean(axis=0)),
        (found.t_rating, genuine.mean(axis=0) - fake.mean(axis=0)),
        (found.t_rate, rated.mean(axis=0) - (fake != 0).mean(axis=0)),
    ):
        t = difference.mean() / (difference.std(ddof=1) / np.sqrt(30))
        assert p_value == pytest.approx(2.0 * stats.t.sf(abs(t), 29))


def test_genuine_users_pass_calibrated_tests_as_often_as_p_says(platform: RatingPlatform) -> None:
    """Others reject profiles that were cut from genuine ones for their length alone."""
    matrix, rng = platform.matrix, np.random.default_rng(0)
    lengths = np.diff(matrix.indptr)
    able, found = np.flatnonzero(lengths >= 6), []
    for _ in range(30):
        rows = [
            matrix.indptr[u] + rng.choice(lengths[u], 6, replace=False)
            for u in rng.choice(able, 8, replace=False)
        ]
        items, ratings = (
            np.stack([of[row] for row in rows]) for of in (matrix.item_ids, matrix.ratings)
        )
        found.append(mimicry(platform, platform.profiles(items, ratings, {}), rng))
    assert np.median([looks.t_rate for looks in found]) < 0.05
    for test in ("calibrated_t", "calibrated_ks"):
        p = np.array([getattr(looks, test) for looks in found])
        assert (p < 0.5).mean() == pytest.approx(0.5, abs=0.3)
        assert (p < 0.05).mean() < 0.25


def test_without_genuine_profiles_as_long_nothing_is_calibrated(platform: RatingPlatform) -> None:
    items = np.tile(np.arange(30), (2, 1))
    looks = mimicry(
        platform, platform.profiles(items, np.ones(items.shape), {}), np.random.default_rng(0)
    )
    assert np.isnan([looks.calibrated_t, looks.calibrated_ks]).all()


def test_groups_by_popularity_hold_equal_shares_of_ratings() -> None:
    groups = popularity_groups(np.array([1, 40, 9, 50]))
    assert groups.tolist() == [9, 5, 9, 0]
    assert np.bincount(popularity_groups(np.full(20, 3))).tolist() == [2] * 10


# -- wrong use ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("pga", {"gradient": "true"}, "gradient must be one of 'exact', 'paper'"),
        ("pga", {"step_size": 0.0}, "step_size must be"),
        ("pga", {"n_steps": -1}, "n_steps must be"),
        ("pga", {"force_targets": 1}, "force_targets must be True or False, got 1"),
        ("sgld", {"scaling": "all"}, "scaling must be one of"),
        ("sgld", {"support": "all"}, "support must be one of"),
        ("sgld", {"beta": -0.1}, "beta must be"),
        ("sgld", {"sigma_floor": 0.0}, "sigma_floor must be"),
    ],
)
def test_wrong_settings_are_refused(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        RATING_ATTACKS[name](settings)


def test_unknown_settings_and_impossible_budgets_are_refused(platform: RatingPlatform) -> None:
    with pytest.raises(UnknownNameError, match="setting of pga 'step_sise'"):
        RATING_ATTACKS["pga"]({"step_sise": 1.0})
    with pytest.raises(ArgumentError, match="config must be a PGAConfig"):
        RATING_ATTACKS["pga"](3)  # type: ignore[arg-type]  # wrong on purpose
    attack, rng = RATING_ATTACKS["uniform"]({"force_targets": True}), np.random.default_rng(0)
    with pytest.raises(ArgumentError, match="profile_size must be <= n_items = 30, got 31"):
        attack.attack(platform, HYBRID, AttackBudget(n_fake_users=1, profile_size=31), rng)
    goal = replace(HYBRID, target_items=(1, 2))
    with pytest.raises(ArgumentError, match="profile_size must be >= 2, the number of forced"):
        attack.attack(platform, goal, AttackBudget(n_fake_users=1, profile_size=1), rng)
    with pytest.raises(ArgumentError, match="target_items must lie in"):
        attack.attack(platform, replace(HYBRID, target_items=(30,)), BUDGET, rng)
