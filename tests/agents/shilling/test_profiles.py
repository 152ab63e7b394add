"""Rated profiles: budgets, ratings and items of every composition, by hand and by Hypothesis."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agents.shilling import COMPOSITIONS, Known, ShillingConfig, probe_profiles, rating_profiles
from agents.shilling.known import FACTS, Fact
from recattack_gym.core import (
    ArgumentError,
    AttackBudget,
    AttackGoal,
    FakeProfiles,
    Interactions,
    KnowledgeError,
    UnknownNameError,
)
from recattack_gym.core.attack import Direction
from tests.defenses.cases import SIX_BY_FIVE, log_of, random_matrix

PAIRS = [(kind, direction) for kind, c in COMPOSITIONS.items() for direction in c.directions]
SIX = log_of(SIX_BY_FIVE)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def plan(
    kind: str,
    log: Interactions,
    *,
    targets: tuple[int, ...],
    size: int,
    direction: Direction = "push",
    n: int = 4,
    seed: int = 0,
    config: ShillingConfig | None = None,
) -> FakeProfiles:
    return rating_profiles(
        kind,
        Known.of(log),
        AttackGoal(target_items=targets, direction=direction),
        AttackBudget(n_fake_users=n, profile_size=size),
        rng(seed),
        config,
    )


def given_to(profiles: FakeProfiles, item: int) -> list[float]:
    """Return what each fake user gives an item, in order; fake users without it are left out."""
    assert profiles.ratings is not None
    return [float(rating) for rating in profiles.ratings[profiles.item_ids == item]]


@pytest.mark.parametrize(("kind", "direction"), PAIRS)
@given(
    n_fake_users=st.integers(1, 5),
    n_targets=st.integers(1, 3),
    n_filler=st.integers(0, 4),
    n_selected=st.integers(0, 2),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=12, deadline=None)
def test_spends_exactly_the_budget_on_distinct_items_and_the_target(
    kind: str,
    direction: Direction,
    n_fake_users: int,
    n_targets: int,
    n_filler: int,
    n_selected: int,
    seed: int,
) -> None:
    log = log_of(random_matrix(5)[2:])
    targets = tuple(range(2, 2 + n_targets))
    has_selected = COMPOSITIONS[kind].selected is not None
    size = n_targets + n_filler + n_selected * has_selected
    config = ShillingConfig(n_selected=n_selected, min_raters=2)
    profiles = plan(
        kind, log, targets=targets, size=size, direction=direction, n=n_fake_users, seed=seed,
        config=config,
    )  # fmt: skip
    assert profiles.item_ids.shape == (n_fake_users, size)
    assert profiles.ratings is not None
    assert set(np.unique(profiles.ratings)) <= {1, 2, 3, 4, 5}
    for row in profiles.item_ids:
        assert len(set(row.tolist())) == size
        assert set(targets) <= set(row.tolist())
    for target in targets:
        assert given_to(profiles, target) == [5.0 if direction == "push" else 1.0] * n_fake_users
    again = plan(
        kind, log, targets=targets, size=size, direction=direction, n=n_fake_users, seed=seed,
        config=config,
    )  # fmt: skip
    assert again.content_hash == profiles.content_hash
    poisoned = log.with_fake_users(profiles.item_ids, profiles.ratings)
    assert np.array_equal(poisoned.item_ids[: len(log)], log.item_ids)
    assert poisoned.ratings is not None
    assert log.ratings is not None
    assert np.array_equal(poisoned.ratings[: len(log)], log.ratings)


@pytest.mark.parametrize(("kind", "direction"), PAIRS)
def test_another_seed_gives_other_profiles(kind: str, direction: Direction) -> None:
    log = log_of(random_matrix(5)[2:])
    config = ShillingConfig(n_selected=1, min_raters=2)
    first, other = (
        plan(kind, log, targets=(0,), size=6, direction=direction, seed=seed, config=config)
        for seed in (0, 1)
    )
    assert first.content_hash != other.content_hash


# -- the six by five matrix: shared/specs/tutorial_systems.md, A.5 ------------------------------------
# Items 0 to 4 have 5, 4, 4, 3, 3 ratings with means 4.2, 3, 3, 4/3, 8/3; the overall mean is 3.


def selected(
    kind: str, n: int, direction: Direction = "push", *, target: int = 4
) -> dict[int, float]:
    """Return the selected items of all profiles and their ratings, without target and filler items."""
    config = ShillingConfig(n_selected=n, min_raters=3)
    profiles = plan(
        kind,
        SIX.with_catalogue(9),
        targets=(target,),
        size=n + 1,
        direction=direction,
        config=config,
    )
    rows = {i: set(given_to(profiles, i)) for i in np.unique(profiles.item_ids) if i != target}
    assert all(len(values) == 1 for values in rows.values())
    return {int(i): values.pop() for i, values in rows.items()}


def test_bandwagon_selects_the_most_rated_items_with_the_highest_rating() -> None:
    assert selected("bandwagon", 2) == {0: 5, 1: 5}
    assert selected("bandwagon-average", 3) == {0: 5, 1: 5, 2: 5}


def test_reverse_bandwagon_selects_what_many_dislike_with_the_lowest_rating() -> None:
    assert selected("reverse-bandwagon", 1, "nuke") == {3: 1}


def test_popular_hides_its_selected_items_beside_the_target() -> None:
    assert selected("popular", 3) == {0: 2, 1: 2, 2: 2}
    assert selected("popular", 5, target=8) == {0: 2, 1: 2, 2: 2, 3: 1, 4: 1}
    assert selected("popular", 5, "nuke", target=8) == {0: 5, 1: 5, 2: 5, 3: 4, 4: 4}


def test_segment_likes_what_the_raters_of_the_target_rated_and_hates_the_rest() -> None:
    # Item 3 is rated by users 0, 1, 4, all of whom rated item 0: cosine 3 / sqrt(3 * 5), the largest
    profiles = plan("segment", SIX, targets=(3,), size=4, config=ShillingConfig(n_selected=1), n=9)
    assert given_to(profiles, 0) == [5.0] * 9
    assert {r for i in (1, 2, 4) for r in given_to(profiles, i)} == {1.0}
    named = ShillingConfig(n_selected=2, segment_items=(2, 3, 1))
    profiles = plan("segment", SIX, targets=(3,), size=3, config=named)
    assert set(profiles.item_ids[0].tolist()) == {1, 2, 3}
    with pytest.raises(ArgumentError, match="segment_items must name"):
        plan("segment", SIX.with_catalogue(7), targets=(6,), size=5)


def test_love_hate_gives_fillers_the_opposite_of_the_target() -> None:
    fillers: dict[Direction, float] = {"push": 1.0, "nuke": 5.0}
    for direction, filler in fillers.items():
        profiles = plan("love-hate", SIX, targets=(4,), size=4, direction=direction)
        assert {r for i in range(4) for r in given_to(profiles, i)} == {filler}


def test_average_over_popular_takes_popular_items_only() -> None:
    config = ShillingConfig(popular_rate=0.5)
    profiles = plan("average-over-popular", SIX, targets=(4,), size=3, n=20, config=config)
    assert set(profiles.item_ids.ravel().tolist()) == {0, 1, 4}


def test_copies_have_the_ratings_of_one_genuine_user() -> None:
    profiles = plan("copy", SIX, targets=(3,), size=4, n=20)
    assert profiles.ratings is not None
    for items, ratings in zip(profiles.item_ids, profiles.ratings, strict=True):
        own = {int(i): r for i, r in zip(items, ratings, strict=True) if i != 3}
        assert any(all(row[i] == r for i, r in own.items()) for row in SIX_BY_FIVE)


def expected_rating(mean: float, spread: float) -> float:
    """Return E[clip(round(N(mean, spread)))] on 1 to 5, from the distribution function."""

    def below(x: float) -> float:
        return 0.5 * (1.0 + math.erf((x - mean) / (spread * math.sqrt(2.0))))

    edges = [0.0, *(below(x) for x in (1.5, 2.5, 3.5, 4.5)), 1.0]
    return sum(r * (edges[r] - edges[r - 1]) for r in range(1, 6))


@pytest.mark.parametrize("kind", ["random", "average"])
def test_filler_ratings_have_the_mean_of_rounded_and_clipped_normal_draws(kind: str) -> None:
    profiles = plan(kind, SIX, targets=(4,), size=5, n=4000)
    for item in range(4):
        own = SIX_BY_FIVE[:, item][SIX_BY_FIVE[:, item] > 0]
        mean, spread = (own.mean(), own.std()) if kind == "average" else (3.0, 1.297771)
        found = np.array(given_to(profiles, item))
        error = found.std() / math.sqrt(len(found))
        assert abs(found.mean() - expected_rating(mean, spread)) < 5 * error


def test_halves_are_rounded_up_to_a_rating_that_exists() -> None:
    half_stars = replace(SIX, ratings=np.where(SIX.user_ids == 0, 0.5, 4.0))
    assert Known.of(half_stars).nearest_level(np.array([-3, 2.24, 2.25, 9])).tolist() == [
        0.5,
        0.5,
        4,
        4,
    ]
    values = np.array([0.2, 1.49, 1.5, 2.5, 4.5, 7])
    assert Known.of(SIX).nearest_level(values).tolist() == [1, 1, 2, 3, 5, 5]


def test_items_with_one_rating_vary_as_all_do_and_those_without_any_are_as_all() -> None:
    log = Interactions(
        np.array([0, 0, 1]), np.array([0, 1, 1]), 2, 3, ratings=np.array([5.0, 1, 3])
    )
    known = Known.of(log)
    assert known.item_means is not None
    means, spreads = known.item_means
    assert means.tolist() == [5, 2, 3]
    assert spreads.tolist() == pytest.approx([math.sqrt(8 / 3), 1, math.sqrt(8 / 3)])


@pytest.mark.parametrize("kind", COMPOSITIONS)
def test_what_is_not_known_cannot_be_used(kind: str) -> None:
    composition = COMPOSITIONS[kind]
    goal = AttackGoal(target_items=(4,), direction=composition.directions[0])
    budget = AttackBudget(n_fake_users=2, profile_size=3)
    config = ShillingConfig(n_selected=1, min_raters=1, popular_rate=1.0)
    enough = Known.of(SIX, composition.needs)
    rating_profiles(kind, enough, goal, budget, rng(), config)
    for missing in composition.needs:
        facts: list[Fact] = [fact for fact in FACTS if fact != missing]
        with pytest.raises(KnowledgeError, match=f"'{kind}' needs to know '{missing}'"):
            rating_profiles(kind, Known.of(SIX, facts), goal, budget, rng(), config)


def test_mistakes_are_named() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown shilling attack 'averages'.*'average'"):
        plan("averages", SIX, targets=(4,), size=3)
    with pytest.raises(ArgumentError, match="direction must be 'push' for shilling attack 'bandw"):
        plan("bandwagon", SIX, targets=(4,), size=3, direction="nuke")
    with pytest.raises(
        ArgumentError, match="profile_size must be at least the number of targets, 2"
    ):
        plan("random", SIX, targets=(3, 4), size=1)
    with pytest.raises(
        ArgumentError, match=r"profile_size must leave at most 4 filler items.*got 5"
    ):
        plan("random", SIX, targets=(4,), size=6)
    with pytest.raises(ArgumentError, match="n_selected must be at most 2"):
        plan("bandwagon", SIX, targets=(4,), size=3)
    with pytest.raises(ArgumentError, match=r"there must be 3 items to select.*got 0"):
        plan("reverse-bandwagon", SIX, targets=(4,), size=5, direction="nuke")
    with pytest.raises(ArgumentError, match="no more items than a genuine profile has, 3, got 4"):
        plan("copy", SIX, targets=(4,), size=5)
    with pytest.raises(ArgumentError, match=r"target_items must lie in \[0, 5\), got 5"):
        plan("random", SIX, targets=(5,), size=3)
    with pytest.raises(ArgumentError, match="log must have ratings, got clicks"):
        Known.of(log_of(SIX_BY_FIVE, clicks=True))
    with pytest.raises(ArgumentError, match="facts must be one of"):
        Known.of(SIX, ["means"])  # type: ignore[list-item]  # the subject of the test
    for setting in ({"n_selected": -1}, {"popular_rate": 0.0}, {"min_raters": 0}):
        with pytest.raises(ArgumentError, match=next(iter(setting))):
            ShillingConfig(**setting)


# -- probing ------------------------------------------------------------------------------------------


class Oracle:
    """Recommends unrated items in order of id, each with rating 2.4; runs dry after item 6."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(
        self, item_ids: NDArray[np.int64], ratings: NDArray[np.float64], n: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        assert len(item_ids) == len(ratings)
        self.asked.append(len(item_ids))
        shown = np.setdiff1d(np.arange(7), item_ids)[:n]
        return shown, np.full(len(shown), 2.4)


def test_probe_rates_what_is_recommended_as_it_is_predicted_and_counts_its_questions() -> None:
    oracle, known = Oracle(), Known.of(log_of(random_matrix(5)[2:]))
    goal, budget = AttackGoal(target_items=(5,)), AttackBudget(n_fake_users=3, profile_size=9)
    profiles, n_lists = probe_profiles(oracle, known, goal, budget, rng(), n_seeds=2, list_length=4)
    assert n_lists == len(oracle.asked) == profiles.header["n_lists"]
    assert profiles.ratings is not None
    assert (profiles.item_ids[:, -1] == 5).all()
    assert (profiles.ratings[:, -1] == 5).all()
    for items, ratings in zip(profiles.item_ids, profiles.ratings, strict=True):
        assert len(set(items.tolist())) == 9
        shown = np.setdiff1d(np.arange(7), [*items[:2], 5])
        assert set(shown.tolist()) <= set(items.tolist())
        assert (ratings[np.isin(items, shown)] == 2).all()
    with pytest.raises(KnowledgeError, match="'probe' needs to know 'item_means'"):
        probe_profiles(oracle, Known.of(SIX, ()), goal, budget, rng())
    with pytest.raises(ArgumentError, match=r"profile_size must lie in \[1, 5\], got 9"):
        probe_profiles(oracle, Known.of(SIX), AttackGoal(target_items=(4,)), budget, rng())
