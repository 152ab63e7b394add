"""ItemKNN: cosines by hand, a loop as oracle, and the compiled engine against the plain path."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, ArtifactError, Interactions
from recattack_gym.datasets import load
from recattack_gym.victims import CandidateLists, ItemKNN, itemknn_kernel
from recattack_gym.victims.itemknn import SIMILARITY_BITS
from recattack_gym.victims.ranking import seen_mask

N_ITEMS, N_TARGETS = 40, 5
MakeLists = Callable[..., CandidateLists]


@pytest.fixture(scope="module")
def log() -> Interactions:
    """60 users with repeats, a popular head, five new items, and one user without clicks."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 14, 60)
    lengths[17] = 0
    weights = 1.0 / np.arange(1, N_ITEMS + 1)
    items = rng.choice(N_ITEMS, lengths.sum(), p=weights / weights.sum())
    users = np.repeat(np.arange(60), lengths)
    return Interactions(users, items, n_users=60, n_items=N_ITEMS + N_TARGETS)


def fitted(log: Interactions, shrinkage: float = 0.0) -> ItemKNN:
    victim = ItemKNN({"shrinkage": shrinkage})
    return victim.fit(log, np.random.default_rng(0), n_new_items=N_TARGETS)


def score_by_definition(log: Interactions, shrinkage: float, user: int, item: int) -> float:
    """Sum cosines of sets of users, one item after another."""
    fans: dict[int, set[int]] = {j: set() for j in range(log.n_items)}
    for u, j in zip(log.user_ids.tolist(), log.item_ids.tolist(), strict=True):
        fans[j].add(u)
    total = 0
    for j in set(log.items_of(user).tolist()) - {item}:
        common = len(fans[j] & fans[item])
        if common:
            norm = math.sqrt(len(fans[j]) * len(fans[item])) + shrinkage
            total += math.floor(common * 2.0**SIMILARITY_BITS / norm)
    return float(np.float32(total / 2.0**SIMILARITY_BITS))


def varied_profiles(n_items: int, m: int, n: int, t: int, seed: int) -> NDArray[np.int64]:
    """Sets of very different kinds: spread or piled up, on few or many items, with repeats."""
    rng = np.random.default_rng(seed)
    width = rng.integers(1, n_items + 1, (m, 1, 1))
    base = rng.integers(0, n_items, (m, 1, 1))
    clicks = (base + rng.integers(0, 10**6, (m, n, t)) % width) % n_items
    target = rng.integers(n_items - N_TARGETS, n_items, (m, 1, 1))
    alternate = (np.arange(t) % 2 == 0) & (rng.random((m, 1, 1)) < 0.5)
    return np.where(alternate, target, clicks)


def test_cosines_by_hand() -> None:
    # users 0: {0, 1, 2} with item 0 twice, 1: {0, 1}, 2: {0}. Sizes 3 2 1; common 0-1: 2, 0-2: 1, 1-2: 1.
    users, items = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([0, 1, 0, 2, 0, 1, 0])
    log = Interactions(users, items, n_users=3, n_items=4)
    everything = np.tile(np.arange(4), (3, 1))
    a, b, c = 2 / math.sqrt(6), 1 / math.sqrt(3), 1 / math.sqrt(2)
    scores = ItemKNN().fit(log, np.random.default_rng(0)).score(np.arange(3), everything)
    expected = [[a + b, a + c, b + c, 0], [a, a, b + c, 0], [0, a, b, 0]]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    shrunk = ItemKNN({"shrinkage": 2}).fit(log, np.random.default_rng(0))
    np.testing.assert_allclose(
        shrunk.score(np.array([2]), everything[:1]),
        [[0, 2 / (math.sqrt(6) + 2), 1 / (math.sqrt(3) + 2), 0]],
        rtol=1e-6,
    )


def test_a_fake_user_makes_a_target_similar_and_its_other_items_less_so() -> None:
    users, items = np.array([0, 0, 1]), np.array([0, 1, 0])
    log = Interactions(users, items, n_users=2, n_items=3)
    victim = ItemKNN().fit(log, np.random.default_rng(0), n_new_items=1)
    # sizes 3, 1, 1 with the fake user {0, 2}: 0-1 has 1 / sqrt(3) instead of 1 / sqrt(2), 0-2 the same.
    poisoned = victim.poisoned(np.array([[2, 0, 2, 0]]), 0, "finetune")
    scores = poisoned.score(np.array([1]), np.array([[1, 2]]))
    np.testing.assert_allclose(scores, [[1 / math.sqrt(3), 1 / math.sqrt(3)]], rtol=1e-6)


@pytest.mark.parametrize("shrinkage", [0.0, 3.5])
def test_every_score_equals_its_definition(log: Interactions, shrinkage: float) -> None:
    users = np.arange(0, log.n_users, 7)
    items = np.tile(np.arange(log.n_items), (len(users), 1))
    clean = fitted(log, shrinkage)
    profile = varied_profiles(log.n_items, 1, 3, 6, seed=4)[0]
    for victim in (clean, clean.poisoned(profile, 0, "finetune")):
        expected = [
            [score_by_definition(victim.log, shrinkage, u, i) for i in items[0].tolist()]
            for u in users.tolist()
        ]
        np.testing.assert_array_equal(victim.score(users, items), np.array(expected, np.float32))


def test_scoring_in_blocks_equals_scoring_at_once(
    log: Interactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = np.arange(log.n_users)
    items = np.tile(np.arange(log.n_items), (len(users), 1))
    whole = fitted(log).score(users, items)
    monkeypatch.setattr("recattack_gym.victims.itemknn._BLOCK_CELLS", 7 * log.n_items)
    np.testing.assert_array_equal(fitted(log).score(users, items), whole)


@pytest.mark.parametrize("n_candidates", [20, 3, 0, None])
@pytest.mark.parametrize(
    "targets", [[40, 41, 42, 43, 44], [44], [0, 1, 2], [7, 44, 0, 41, 20, 13, 2, 30, 35, 6, 43]]
)
@pytest.mark.parametrize("k", [1, 4, 10])
def test_the_engine_is_exact_for_hundreds_of_sets(
    log: Interactions, make_lists: MakeLists, n_candidates: int | None, targets: list[int], k: int
) -> None:
    victim = fitted(log, float(k - 1))
    lists = make_lists(log, targets, k=k, n_candidates=n_candidates, seed=k)
    engine = victim.engine(lists)
    assert isinstance(engine, itemknn_kernel.ItemKNNEngine)
    plain = victim.engine(lists, backend="plain")
    for shape, seed in (((12, 4, 5), 1), ((6, 1, 1), 2), ((8, 15, 8), 3), ((6, 2, 2), 4)):
        profiles = varied_profiles(log.n_items, *shape, seed=seed)
        np.testing.assert_array_equal(engine.exposure(profiles, 0), plain.exposure(profiles, 0))


@pytest.mark.parametrize("depth", [0, 1, 1000])
def test_how_deep_the_catalogue_is_prepared_changes_nothing(
    log: Interactions, make_lists: MakeLists, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = fitted(log)
    lists = make_lists(log, [44, 3, 0, 41], k=4, n_candidates=None)
    # Clicking one item again and again lowers what it recommends and raises nothing.
    lowering = np.random.default_rng(0).integers(0, 12, (25, 6, 1)).repeat(6, axis=2)
    profiles = np.concatenate([varied_profiles(log.n_items, 25, 6, 6, seed=9), lowering])
    expected = victim.engine(lists, backend="plain").exposure(profiles, 0)
    monkeypatch.setattr(itemknn_kernel, "CATALOGUE_DEPTH", depth)
    monkeypatch.setattr(itemknn_kernel, "_BLOCK_CELLS", 7 * log.n_items)
    np.testing.assert_array_equal(victim.engine(lists).exposure(profiles, 0), expected)


def test_the_kernel_counts_in_the_units_of_the_plain_path() -> None:
    assert itemknn_kernel.UNIT == 2.0**SIMILARITY_BITS


@pytest.mark.parametrize(
    ("array", "value"),
    [
        ("pairs", lambda a: a[::-1]),
        ("pairs", lambda a: a + 1),
        ("pairs", lambda a: -a - 1),
        ("pairs", lambda a: a + 45 * 45),
        ("common", lambda a: a * 0),
        ("common", lambda a: a + np.arange(len(a)) % 2),
    ],
)
def test_a_state_that_is_no_count_is_refused(
    log: Interactions, array: str, value: Callable[[NDArray[np.int64]], NDArray[np.int64]]
) -> None:
    victim = fitted(log)
    state = victim.state
    state[array] = value(state[array].astype(np.int64))
    with pytest.raises(ArtifactError, match=r"'(pairs|common)'"):
        victim._set_state(state)


@pytest.mark.parametrize("shrinkage", [-1.0, float("nan"), "5", True])
def test_a_shrinkage_that_is_no_number_of_users_is_refused(shrinkage: object) -> None:
    with pytest.raises(ArgumentError, match=r"shrinkage must be .* got"):
        ItemKNN({"shrinkage": shrinkage})


@pytest.mark.real_data
@pytest.mark.parametrize("n_candidates", [92, None])
def test_the_engine_is_exact_on_steam(n_candidates: int | None) -> None:
    log = load("steam", protocol="poisonrec").split.train
    log = log.with_catalogue(log.n_items + 8)
    victim = ItemKNN().fit(log, np.random.default_rng(0), n_new_items=8)
    popular = np.argsort(-log.item_popularity)
    first_new = victim.n_original_items
    rng = np.random.default_rng(2)
    new = first_new + rng.integers(0, 8, (3, 20, 20))
    reach = np.array([20, 500, first_new])[:, None, None]
    fillers = popular[rng.integers(0, reach, (3, 20, 20))]
    profiles = np.where(np.arange(20) % 2 == 0, new, fillers)
    targets = [first_new, first_new + 3, *popular[[0, 300]]]
    draws = rng.random((log.n_users, first_new))
    draws[seen_mask(log, np.arange(log.n_users))[:, :first_new]] = 2.0
    draws[:, popular[[0, 300]]] = 3.0
    items = None
    if n_candidates is not None:
        items = np.argpartition(draws, n_candidates, axis=1)[:, :n_candidates]
    lists = CandidateLists(log, items, np.array(targets), 10)
    plain = victim.engine(lists, backend="plain").exposure(profiles, 0)
    np.testing.assert_array_equal(victim.engine(lists).exposure(profiles, 0), plain)
    assert plain.any()
