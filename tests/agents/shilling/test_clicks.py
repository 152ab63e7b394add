"""Shilling attacks in clicks; what holds for every attacker is in `test_attackers_contract`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.attackers import ATTACKERS
from recattack_gym.core import AttackBudget, AttackGoal, Interactions
from tests.agents.stub_view import StubView, make_view

NAMES = [name for name in ATTACKERS if name.startswith("shilling-")]


def plan(name: str, view: StubView, seed: int = 0, **settings: object) -> list[list[int]]:
    clicks = ATTACKERS[name](settings).plan(view, np.random.default_rng(seed)).item_ids
    return [[int(item) for item in row] for row in clicks]


@pytest.mark.parametrize("name", NAMES)
@given(n_targets=st.integers(1, 5), n_others=st.integers(0, 30), seed=st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_every_profile_has_all_targets_and_nothing_twice(
    name: str, n_targets: int, n_others: int, seed: int
) -> None:
    view = make_view(n_targets=n_targets, profile_size=n_targets + n_others)
    for row in plan(name, view, seed):
        assert len(set(row)) == n_targets + n_others
        assert set(view.goal.target_items) <= set(row)


@pytest.mark.parametrize("name", NAMES)
def test_with_more_targets_than_clicks_fake_users_take_turns(name: str) -> None:
    view = make_view(n_targets=5, n_fake_users=5, profile_size=2)
    clicks = [item for row in plan(name, view) for item in row]
    assert sorted(clicks) == sorted(2 * [40, 41, 42, 43, 44])


def popular_view(size: int) -> StubView:
    """Return a view in which item i has 9 - i clicks, and item 9, the target, none."""
    items = np.repeat(np.arange(10), 9 - np.arange(10))
    log = Interactions(np.arange(len(items)) % 7, items, 7, 10)
    budget = AttackBudget(n_fake_users=30, profile_size=size)
    return StubView(log, AttackGoal(target_items=(9,)), budget)


def test_which_items_are_clicked() -> None:
    view = popular_view(size=5)
    assert {frozenset(row) for row in plan("shilling-popular", view)} == {
        frozenset({9, 0, 1, 2, 3})
    }
    for row in plan("shilling-bandwagon", view):
        assert {9, 0, 1} <= set(row)
    assert {item for row in plan("shilling-bandwagon", view) for item in row} == set(range(10))
    assert {i for row in plan("shilling-aop", view, popular_rate=0.5) for i in row} == {
        9,
        0,
        1,
        2,
        3,
    }
    assert {item for row in plan("shilling-random", view) for item in row} == set(range(10))


def test_a_segment_is_what_the_targets_audience_clicks() -> None:
    # Users 0 and 1 click the target 5 and items 3, 4; users 2 to 6 click 0, 1, 2
    pairs = [(u, i) for u in (0, 1) for i in (3, 4, 5)] + [
        (u, i) for u in range(2, 7) for i in (0, 1, 2)
    ]
    users, items = np.array(pairs).T
    budget = AttackBudget(n_fake_users=3, profile_size=5)
    view = StubView(Interactions(users, items, 7, 6), AttackGoal(target_items=(5,)), budget)
    for row in plan("shilling-segment", view):
        assert {3, 4, 5} <= set(row)
    view.goal = AttackGoal(
        target_items=(6,)
    )  # that nobody has clicked: the most popular item, 0, is asked
    for row in plan("shilling-segment", view):
        assert {0, 1, 6} <= set(row) or {0, 2, 6} <= set(row)


def test_a_copy_is_part_of_one_genuine_profile() -> None:
    view = make_view(profile_size=6, n_fake_users=9)
    profiles = [set(view.clean_log.items_of(u).tolist()) for u in range(30)]
    lengths = [len(profile) for profile in profiles]
    assert max(lengths) >= 3
    for row in plan("shilling-copy", view):
        copied = set(row) - set(view.goal.target_items)
        assert any(copied <= profile for profile in profiles)


def test_copied_are_profiles_that_are_long_enough_without_their_targets() -> None:
    items = np.array([7, 9, 0, 1, 2, 3])  # user 0 has one item, user 1 the target 9 and four others
    log = Interactions(np.array([0, 1, 1, 1, 1, 1]), items, 2, 10)
    budget = AttackBudget(n_fake_users=20, profile_size=5)
    for row in plan("shilling-copy", StubView(log, AttackGoal(target_items=(9,)), budget)):
        assert sorted(row) == [0, 1, 2, 3, 9]


def test_a_segment_is_not_what_everybody_clicks() -> None:
    # Users 0 and 1 have the target 5, item 3 and item 0, which all seven have: cosines 1 and 2 / sqrt(14)
    users = np.array([0, 1, 0, 1, *range(7)])
    items = np.array([5, 5, 3, 3, *[0] * 7])
    budget = AttackBudget(n_fake_users=20, profile_size=3)
    view = StubView(Interactions(users, items, 7, 6), AttackGoal(target_items=(5,)), budget)
    assert all({3, 5} <= set(row) for row in plan("shilling-segment", view))


def test_items_are_in_random_order() -> None:
    rows = plan("shilling-popular", popular_view(size=5))
    assert len({row.index(9) for row in rows}) == 5
