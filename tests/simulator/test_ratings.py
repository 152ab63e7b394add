"""The platform of explicit ratings."""

import math
from dataclasses import replace

import numpy as np
import pytest

from recattack_gym.core import ArgumentError, FakeProfiles, Interactions
from recattack_gym.datasets import SyntheticConfig, generate, with_generated_ratings
from recattack_gym.simulator import RatingGoal, RatingPlatform
from recattack_gym.victims import ALS, VICTIMS

CONFIG = {"ALS": {"embedding_size": 3, "reg": 1.0}, "NuclearNorm": {"reg": 3.0}}


def rated_log() -> Interactions:
    rng = np.random.default_rng(0)
    size = SyntheticConfig(n_users=40, n_items=30, n_events=400, n_topics=3)
    return with_generated_ratings(generate(size, rng).log, rng)


LOG = rated_log()
PUSH = RatingGoal(availability=0.0, integrity=1.0, target_items=(3,))


@pytest.fixture(scope="module", params=["ALS", "NuclearNorm"])
def platform(request: pytest.FixtureRequest) -> RatingPlatform:
    return RatingPlatform(LOG, request.param, victim_config=CONFIG[request.param])


def test_without_fake_users_nothing_moves(platform: RatingPlatform) -> None:
    outcome = platform.outcome(None, PUSH)
    assert outcome.rmse < 1e-5
    assert outcome.kkt_residual < 1e-6
    assert outcome.average_rating == pytest.approx(platform.clean_averages[3], abs=1e-5)


def test_top_ratings_raise_a_target_and_bottom_ratings_lower_it(platform: RatingPlatform) -> None:
    items = np.stack([[3, 4 + i, 15 + i] for i in range(8)])
    up, down = (
        platform.outcome(
            FakeProfiles(items, np.column_stack([np.full(8, rating), np.full((8, 2), 4.0)])), PUSH
        )
        for rating in (5.0, 1.0)
    )
    assert up.average_rating > platform.clean_averages[3] > down.average_rating
    assert up.utility == pytest.approx(2.0 * 40 * up.average_rating)
    assert up.kkt_residual < 1e-6


def test_profiles_without_ratings_are_top_ratings(platform: RatingPlatform) -> None:
    items = np.stack([[3, 4 + i, 15 + i] for i in range(3)])
    clicks = platform.outcome(FakeProfiles(items), PUSH)
    assert clicks == platform.outcome(FakeProfiles(items, np.full(items.shape, 5.0)), PUSH)


def test_profiles_keep_their_ratings_there_and_back(platform: RatingPlatform) -> None:
    shifted = np.array([[-2.0, 0.3, 2.0]])
    profiles = platform.profiles(np.array([[1, 2, 3]]), shifted, {"attacker": "test"})
    assert profiles.ratings is not None
    np.testing.assert_allclose(profiles.ratings, [[1.0, 3.3, 5.0]])
    np.testing.assert_allclose(platform.shifted(profiles), shifted)


def test_retraining_is_training_on_the_poisoned_log(platform: RatingPlatform) -> None:
    items, ratings = np.array([[3, 7, 9], [2, 3, 4]]), np.array([[5.0, 1.0, 2.0], [4.0, 5.0, 3.0]])
    point = platform.retrain(items, ratings - 3.0, tolerance=1e-9)
    whole = LOG.with_fake_users(items, ratings)
    again = platform.victim.solve(
        type(platform.matrix).from_log(whole), platform.clean.items, tolerance=1e-9
    )
    np.testing.assert_allclose(point.users @ point.items.T, again.users @ again.items.T, atol=1e-8)


def test_normalised_utilities_are_means(platform: RatingPlatform) -> None:
    items, ratings = np.array([[3, 7, 9]]), np.array([[2.0, -2.0, 1.0]])
    found = platform.prediction(platform.retrain(items, ratings))
    goal = RatingGoal(availability=0.5, integrity=-1.0, target_items=(3, 4))
    part = [
        platform.utility(found, replace(goal, availability=a, integrity=b))
        for a, b in ((0.5, 0.0), (0.0, -1.0))
    ]
    assert platform.utility(found, goal) == pytest.approx(sum(part))
    means = part[0] / platform.n_unseen + part[1] / (40 * 2)
    assert platform.utility(found, replace(goal, normalized=True)) == pytest.approx(means)


def test_a_target_is_drawn_among_the_items_nearest_to_an_average(platform: RatingPlatform) -> None:
    drawn = {platform.item_near(0.8, np.random.default_rng(s), n_nearest=3) for s in range(40)}
    distance = np.abs(platform.clean_averages - 0.8)
    assert drawn == set(np.argsort(distance)[:3].tolist())


def test_without_targets_there_is_no_average(platform: RatingPlatform) -> None:
    assert math.isnan(platform.outcome(None, RatingGoal()).average_rating)


def test_wrong_platforms_goals_and_ratings_are_refused(platform: RatingPlatform) -> None:
    with pytest.raises(ArgumentError, match="log must be Interactions with ratings"):
        RatingPlatform(replace(LOG, ratings=None))
    with pytest.raises(ArgumentError, match="more than one rating, got only 4"):
        RatingPlatform(replace(LOG, ratings=np.full(len(LOG), 4.0)))
    with pytest.raises(
        ArgumentError, match=r"must predict ratings \(ALS, NuclearNorm\), got 'BPR'"
    ):
        RatingPlatform(LOG, VICTIMS["BPR"])
    with pytest.raises(ArgumentError, match="target_items must name an item"):
        RatingGoal(integrity=1.0)
    with pytest.raises(ArgumentError, match="target_items must be distinct"):
        RatingGoal(target_items=(1, 1))
    with pytest.raises(ArgumentError, match="availability must be a finite number"):
        RatingGoal(availability=float("nan"))
    with pytest.raises(ArgumentError, match="target_items must lie in"):
        platform.outcome(None, RatingGoal(target_items=(30,)))
    with pytest.raises(ArgumentError, match="on the log's scale"):
        platform.outcome(FakeProfiles(np.array([[1]]), np.array([[5.5]])), PUSH)
    with pytest.raises(ArgumentError, match=r"shifted must have shape \(1, 1\)"):
        platform.retrain(np.array([[1]]), np.array([1.0]))


def test_the_same_seed_gives_the_same_platform() -> None:
    first, again, other = (RatingPlatform(LOG, ALS, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.clean.items, again.clean.items)
    assert not np.array_equal(first.clean.items, other.clean.items)
