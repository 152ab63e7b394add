"""Poison sets of simple structure really differ in what they say they differ in."""

import numpy as np
import pytest

from agents.structured import structured_sets
from recattack_gym.core import ArgumentError, AttackGoal
from tests.agents.stub_view import make_view


def test_sets_differ_in_share_targets_popularity_and_order() -> None:
    view = make_view(n_items=300, n_targets=8, n_fake_users=20, profile_size=20)
    sets = structured_sets(view, 400, np.random.default_rng(0))
    is_target = sets >= 300
    shares = is_target.mean(axis=(1, 2))
    for share in (0.25, 0.5, 0.75, 1.0):
        assert (np.abs(shares - share) < 0.1).sum() > 40
    promoted = np.array([len(set(each[each >= 300].tolist())) for each in sets])
    assert set(promoted.tolist()) == set(range(1, 9))
    n_others = np.array([len(set(each[each < 300].tolist())) for each in sets])
    assert (n_others == 1).any()
    assert (n_others > 100).any()
    alternates = (is_target[:, :, ::2].all(axis=(1, 2))) & (~is_target[:, :, 1::2]).all(axis=(1, 2))
    assert 20 < alternates.sum() < 120
    ranks = np.argsort(np.argsort(-view.item_popularity, kind="stable"), kind="stable")
    best = np.array([ranks[each[each < 300]].min(initial=300) for each in sets])
    assert (best == 0).mean() > 0.4
    assert (best > 20).any()


def test_the_budget_is_spent_where_every_item_is_a_target() -> None:
    view = make_view(n_items=3, n_targets=2, n_fake_users=2, profile_size=3)
    view.goal = AttackGoal(target_items=(0, 1, 2, 3, 4))
    sets = structured_sets(view, 5, np.random.default_rng(0))
    assert sets.shape == (5, 2, 3)
    with pytest.raises(ArgumentError, match="n_sets must be"):
        structured_sets(view, 0, np.random.default_rng(0))
