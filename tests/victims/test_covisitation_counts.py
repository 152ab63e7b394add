"""CoVisitation by raw counts: a loop as oracle, and the compiled engine against the plain path."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from recattack_gym.core import Interactions
from recattack_gym.datasets import load
from recattack_gym.victims import CandidateLists, CoVisitation, CoVisitationCounts
from recattack_gym.victims.covisitation_counts_kernel import CoVisitationCountsEngine
from recattack_gym.victims.ranking import seen_mask
from tests.victims.test_covisitation import N_TARGETS, log, varied_profiles

__all__ = ["log"]  # a fixture

MakeLists = Callable[..., CandidateLists]


def fitted(log: Interactions) -> CoVisitationCounts:
    return CoVisitationCounts().fit(log, np.random.default_rng(0), n_new_items=N_TARGETS)


def score_by_definition(log: Interactions, user: int, item: int) -> int:
    """Count, one click after another, how often the item stands next to one that the user has clicked."""
    own = set(log.items_of(user).tolist())
    total = 0
    for someone in range(log.n_users):
        clicks = log.items_of(someone).tolist()
        for before, after in pairwise(clicks):
            if before != after:
                total += (before in own and after == item) + (after in own and before == item)
    return total


def test_every_score_equals_its_definition(log: Interactions) -> None:
    users = np.arange(0, log.n_users, 7)
    items = np.tile(np.arange(log.n_items), (len(users), 1))
    for victim in (
        fitted(log),
        fitted(log).poisoned(varied_profiles(log.n_items, 1, 3, 6, seed=4)[0], 0, "finetune"),
    ):
        expected = [
            [score_by_definition(victim.log, u, i) for i in items[0]] for u in users.tolist()
        ]
        np.testing.assert_array_equal(victim.score(users, items), expected)


def test_it_differs_from_shares_where_the_users_items_are_popular() -> None:
    # Of two visits of item 0 one was next to item 2, of one visit of item 1 one next to item 3.
    users, items = np.array([0, 0, 1, 1, 2, 2, 3]), np.array([0, 2, 0, 2, 1, 3, 0])
    log = Interactions(users, items, n_users=5, n_items=4)
    everything = np.arange(4)[None]
    counts, shares = (
        each().fit(log, np.random.default_rng(0)).score(np.array([0]), everything)[0]
        for each in (CoVisitationCounts, CoVisitation)
    )
    assert counts.tolist() == [2, 0, 2, 0]
    np.testing.assert_allclose(shares, [1, 0, 2 / 3, 0], rtol=1e-6)


@pytest.mark.parametrize("n_candidates", [20, 3, 0, None])
@pytest.mark.parametrize(
    "targets", [[40, 41, 42, 43, 44], [44], [0, 1, 2], [7, 44, 0, 41, 20, 13, 2, 30, 35, 6, 43]]
)
@pytest.mark.parametrize("k", [1, 4, 10])
def test_the_engine_is_exact_for_hundreds_of_sets(
    log: Interactions, make_lists: MakeLists, n_candidates: int | None, targets: list[int], k: int
) -> None:
    victim = fitted(log)
    lists = make_lists(log, targets, k=k, n_candidates=n_candidates, seed=k)
    engine = victim.engine(lists)
    assert isinstance(engine, CoVisitationCountsEngine)
    plain = victim.engine(lists, backend="plain")
    for shape, seed in (((12, 4, 5), 1), ((6, 1, 1), 2), ((8, 15, 8), 3), ((6, 2, 2), 4)):
        profiles = varied_profiles(log.n_items, *shape, seed=seed)
        np.testing.assert_array_equal(engine.exposure(profiles, 0), plain.exposure(profiles, 0))


def test_counts_beyond_single_precision_keep_the_engine_exact(
    log: Interactions, make_lists: MakeLists
) -> None:
    victim = fitted(log)
    state = victim.state
    state["covisits"] = state["covisits"] * 2**22 + 1
    victim._set_state(state)
    profiles = varied_profiles(log.n_items, 25, 6, 6, seed=9)
    for n_candidates in (20, None):
        lists = make_lists(log, [44, 3, 0, 41], k=4, n_candidates=n_candidates)
        plain = victim.engine(lists, backend="plain").exposure(profiles, 0)
        np.testing.assert_array_equal(victim.engine(lists).exposure(profiles, 0), plain)


@pytest.mark.real_data
@pytest.mark.parametrize("n_candidates", [92, None])
def test_the_engine_is_exact_on_steam(n_candidates: int | None) -> None:
    log = load("steam", protocol="poisonrec").split.train
    log = log.with_catalogue(log.n_items + 8)
    victim = CoVisitationCounts().fit(log, np.random.default_rng(0), n_new_items=8)
    first_new = victim.n_original_items
    popular = np.argsort(-log.item_popularity)
    rng = np.random.default_rng(2)
    reach = np.array([20, 500, first_new, 5])[:, None, None]
    fillers = popular[rng.integers(0, reach, (4, 20, 20))]
    profiles = np.where(
        np.arange(20) % 2 == 0, first_new + rng.integers(0, 8, (4, 20, 20)), fillers
    )
    draws = rng.random((log.n_users, first_new))
    draws[seen_mask(log, np.arange(log.n_users))[:, :first_new]] = 2.0
    items = None
    if n_candidates is not None:
        items = np.argpartition(draws, n_candidates, axis=1)[:, :n_candidates]
    lists = CandidateLists(log, items, np.arange(first_new, first_new + 8), 10)
    plain = victim.engine(lists, backend="plain").exposure(profiles, 0)
    np.testing.assert_array_equal(victim.engine(lists).exposure(profiles, 0), plain)
    assert plain.any()
