"""ItemPop: counts by hand, and the compiled engine against the plain path at its edges."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import Interactions
from recattack_gym.victims import CandidateLists, ItemPop
from recattack_gym.victims.itempop_kernel import ItemPopCandidates, ItemPopCatalogue

N_ITEMS, N_TARGETS = 40, 5


@pytest.fixture(scope="module")
def log() -> Interactions:
    """60 users, Zipf popularity, many equal counts, five new items."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 12, 60)
    weights = 1.0 / np.arange(1, N_ITEMS + 1)
    items = rng.choice(N_ITEMS, lengths.sum(), p=weights / weights.sum())
    users = np.repeat(np.arange(60), lengths)
    return Interactions(users, items, n_users=60, n_items=N_ITEMS + N_TARGETS)


def fitted(log: Interactions) -> ItemPop:
    return ItemPop().fit(log, np.random.default_rng(0), n_new_items=N_TARGETS)


def varied_profiles(n_items: int, m: int, n: int, t: int, seed: int) -> NDArray[np.int64]:
    """Sets of very different kinds: spread or piled up, on few or many items."""
    rng = np.random.default_rng(seed)
    width = rng.integers(1, n_items + 1, (m, 1, 1))
    return (
        rng.integers(0, n_items, (m, 1, 1)) + rng.integers(0, 10**6, (m, n, t)) % width
    ) % n_items


def test_scores_are_clicks_with_repeats() -> None:
    log = Interactions(np.array([0, 0, 0, 1]), np.array([2, 2, 1, 2]), n_users=2, n_items=4)
    victim = ItemPop().fit(log, np.random.default_rng(0))
    assert victim.score(np.array([1]), np.array([[0, 1, 2, 3]])).tolist() == [[0, 1, 3, 0]]
    poisoned = victim.poisoned(np.array([[3, 3], [1, 3]]), 0, "finetune")
    assert poisoned.score(np.array([1]), np.array([[0, 1, 2, 3]])).tolist() == [[0, 2, 3, 3]]


def test_one_target_with_all_clicks_is_shown_to_all_who_have_not_seen_it(
    log: Interactions, make_lists: Callable[..., CandidateLists]
) -> None:
    target = int(np.argsort(-log.item_popularity)[10])
    lists = make_lists(log, [target, N_ITEMS], k=1, n_candidates=10)
    exposure = fitted(log).engine(lists).exposure(np.full((1, 20, 20), target), 0)
    assert exposure.tolist() == [[int(lists.eligible[:, 0].sum()), 0]]


@pytest.mark.parametrize("n_candidates", [20, 3, 0, None])
@pytest.mark.parametrize(
    "targets", [[40, 41, 42, 43, 44], [44], [0, 1, 2], [7, 44, 0, 41, 20, 13, 2, 30, 35, 6, 43]]
)
@pytest.mark.parametrize("k", [1, 4, 10])
def test_the_engine_is_exact_for_hundreds_of_sets(
    log: Interactions,
    make_lists: Callable[..., CandidateLists],
    n_candidates: int | None,
    targets: list[int],
    k: int,
) -> None:
    victim = fitted(log)
    lists = make_lists(log, targets, k=k, n_candidates=n_candidates, seed=k)
    engine = victim.engine(lists)
    assert isinstance(engine, ItemPopCatalogue if n_candidates is None else ItemPopCandidates)
    plain = victim.engine(lists, backend="plain")
    for shape, seed in (((12, 4, 5), 1), ((8, 1, 1), 2), ((8, 15, 8), 3)):
        profiles = varied_profiles(log.n_items, *shape, seed=seed)
        np.testing.assert_array_equal(engine.exposure(profiles, 0), plain.exposure(profiles, 0))


@pytest.mark.parametrize("n_candidates", [20, None])
def test_counts_that_float32_cannot_tell_apart_tie(
    log: Interactions, make_lists: Callable[..., CandidateLists], n_candidates: int | None
) -> None:
    # 2**24 and 2**24 + 1 are one float32, so the lower id wins although it has a click less.
    victim = fitted(log)
    clicks = victim.state["clicks"].copy()
    clicks[[3, 44]] = 2**24
    victim._set_state({"clicks": clicks})
    lists = replace(make_lists(log, [44], k=1, n_candidates=n_candidates), item_ids=None)
    if n_candidates is not None:
        items = np.full((log.n_users, 1), 3)
        lists = replace(lists, item_ids=items)
    one, three = np.full((1, 1, 1), 44), np.full((1, 1, 3), 44)
    for profiles in (one, three):
        exposure = victim.engine(lists).exposure(profiles, 0)
        plain = victim.engine(lists, backend="plain").exposure(profiles, 0)
        np.testing.assert_array_equal(exposure, plain)
    has_three = int(log.has(np.arange(log.n_users), 3).sum())
    expected = 0 if n_candidates is not None else has_three
    assert victim.engine(lists).exposure(one, 0).tolist() == [[expected]]
    assert victim.engine(lists).exposure(three, 0).tolist() == [[log.n_users]]
