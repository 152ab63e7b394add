"""The attacker's view: counted queries, enforced budget, and nothing beyond its knowledge level."""

import numpy as np
import pytest

from recattack_gym.core import ArgumentError, AttackBudget, Interactions, Knowledge, KnowledgeError
from recattack_gym.simulator import PlatformSimulator, PlatformView

LOG = Interactions(np.repeat(np.arange(6), 4), np.arange(24) % 9, 6, 9)


def view(knowledge: Knowledge = Knowledge.BLACK_BOX) -> PlatformView:
    platform = PlatformSimulator(LOG, "ItemPop", targets=2, k=2, n_candidates=None)
    return PlatformView(platform, AttackBudget(n_fake_users=2, profile_size=3), knowledge)


def test_every_poison_set_is_a_query() -> None:
    black_box = view()
    assert black_box.n_queries == 0
    assert black_box.query(np.full((5, 2, 3), 9)).shape == (5,)
    black_box.query(np.full((1, 2, 3), 10))
    assert black_box.n_queries == 6


def test_a_refused_query_does_not_count() -> None:
    black_box = view()
    for wrong in (np.full((1, 3, 3), 9), np.full((1, 2, 2), 9), np.full((1, 2, 3), 11)):
        with pytest.raises(ArgumentError):
            black_box.query(wrong)
    assert black_box.n_queries == 0


def test_black_box_sees_popularity_and_nothing_more() -> None:
    black_box = view()
    assert black_box.item_popularity.tolist() == [*LOG.item_popularity.tolist(), 0, 0]
    assert black_box.n_items == 11
    assert black_box.goal.target_items == (9, 10)
    for secret in ("log", "victim_name", "victim_config"):
        with pytest.raises(KnowledgeError, match=r"needs? knowledge"):
            getattr(black_box, secret)


def test_each_level_adds_to_the_one_before() -> None:
    gray, white = view(Knowledge.GRAY_BOX), view(Knowledge.WHITE_BOX)
    assert gray.log is LOG
    with pytest.raises(KnowledgeError):
        _ = gray.victim_name
    assert white.log is LOG
    assert (white.victim_name, dict(white.victim_config)) == ("ItemPop", {})


def test_no_attribute_leads_to_the_platform() -> None:
    seen = [getattr(view(Knowledge.WHITE_BOX), name) for name in vars(view())]
    assert not any(isinstance(value, PlatformSimulator) for value in seen)


def test_popularity_cannot_be_changed_through_the_view() -> None:
    with pytest.raises(ValueError, match="read-only"):
        view().item_popularity[0] = 5
