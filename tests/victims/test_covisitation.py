"""CoVisitation: shares by hand, a loop as oracle, and the compiled engine against the plain path."""

from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import ArtifactError, Interactions
from recattack_gym.datasets import load
from recattack_gym.victims import VICTIMS, CandidateLists, CoVisitation, covisitation_kernel
from recattack_gym.victims.covisitation import SHARE_BITS
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


def fitted(log: Interactions) -> CoVisitation:
    return CoVisitation().fit(log, np.random.default_rng(0), n_new_items=N_TARGETS)


def score_by_definition(log: Interactions, user: int, item: int) -> float:
    """Sum the shares `w_jc / w_j` with exact fractions, one click after another."""
    visits: dict[int, int] = defaultdict(int)
    covisits: dict[tuple[int, int], int] = defaultdict(int)
    for someone in range(log.n_users):
        clicks = log.items_of(someone).tolist()
        for t, clicked in enumerate(clicks):
            visits[clicked] += 1
            if t > 0 and clicks[t - 1] != clicked:
                covisits[clicks[t - 1], clicked] += 1
                covisits[clicked, clicks[t - 1]] += 1
    one = 1 << SHARE_BITS
    total = sum(
        int(Fraction(covisits[j, item] * one, visits[j]))
        for j in set(log.items_of(user).tolist())
        if (j, item) in covisits
    )
    return float(np.float32(total / one))


def varied_profiles(n_items: int, m: int, n: int, t: int, seed: int) -> NDArray[np.int64]:
    """Sets of very different kinds: spread or piled up, on few or many items, with repeats."""
    rng = np.random.default_rng(seed)
    width = rng.integers(1, n_items + 1, (m, 1, 1))
    base = rng.integers(0, n_items, (m, 1, 1))
    clicks = (base + rng.integers(0, 10**6, (m, n, t)) % width) % n_items
    target = rng.integers(n_items - N_TARGETS, n_items, (m, 1, 1))
    alternate = (np.arange(t) % 2 == 0) & (rng.random((m, 1, 1)) < 0.5)
    return np.where(alternate, target, clicks)


def test_shares_by_hand() -> None:
    # user 0: 0 1 0 2, user 1: 1 1 2.  visits 2 3 2; co-visits 0-1: 2, 0-2: 1, 1-2: 1.
    users, items = np.array([0, 0, 0, 0, 1, 1, 1]), np.array([0, 1, 0, 2, 1, 1, 2])
    victim = CoVisitation().fit(
        Interactions(users, items, n_users=2, n_items=4), np.random.default_rng(0)
    )
    scores = victim.score(np.array([0, 1]), np.tile(np.arange(4), (2, 1)))
    expected = [
        [2 / 3 + 1 / 2, 2 / 2 + 1 / 2, 1 / 2 + 1 / 3, 0],
        [2 / 3 + 1 / 2, 0 + 1 / 2, 1 / 3, 0],
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_a_fake_user_lifts_the_neighbours_of_what_genuine_users_have() -> None:
    users, items = np.array([0, 0, 1]), np.array([0, 1, 0])
    victim = CoVisitation().fit(
        Interactions(users, items, n_users=2, n_items=3), np.random.default_rng(0), n_new_items=1
    )
    # item 0 is visited 2 + 2 times and next to item 2 in 3 places: 2-0, 0-2, 2-0.
    poisoned = victim.poisoned(np.array([[2, 0, 2, 0]]), 0, "finetune")
    assert poisoned.score(np.array([1]), np.array([[1, 2]])).tolist() == [[0.25, 0.75]]


def test_clicks_on_one_item_are_no_covisits_but_count_as_visits() -> None:
    users, items = np.array([0, 0, 1]), np.array([0, 1, 0])
    victim = CoVisitation().fit(
        Interactions(users, items, n_users=2, n_items=2), np.random.default_rng(0)
    )
    poisoned = victim.poisoned(np.array([[0, 0]]), 0, "finetune")
    assert victim.score(np.array([1]), np.array([[1]])).tolist() == [[0.5]]
    assert poisoned.score(np.array([1]), np.array([[1]])).tolist() == [[0.25]]


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
        np.testing.assert_array_equal(victim.score(users, items), np.array(expected, np.float32))


def test_scoring_in_blocks_equals_scoring_at_once(
    log: Interactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = np.arange(log.n_users)
    items = np.tile(np.arange(log.n_items), (len(users), 1))
    whole = fitted(log).score(users, items)
    monkeypatch.setattr("recattack_gym.victims.covisitation._BLOCK_CELLS", 7 * log.n_items)
    np.testing.assert_array_equal(fitted(log).score(users, items), whole)


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
    assert isinstance(engine, covisitation_kernel.CoVisitationEngine)
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
    monkeypatch.setattr(covisitation_kernel, "CATALOGUE_DEPTH", depth)
    np.testing.assert_array_equal(victim.engine(lists).exposure(profiles, 0), expected)


def test_a_share_is_rounded_down_exactly_for_any_count() -> None:
    # The quotient of the first pair is so close below a whole number that float64 rounds it up.
    rng = np.random.default_rng(0)
    some = (2.0 ** rng.uniform(0, 30, 2000)).astype(np.int64).tolist()
    random = [(int(rng.integers(1, 2 * visits + 1)), visits) for visits in some]
    for covisits, visits in [(364_017_146, 1_716_296), *random]:
        expected = (covisits << SHARE_BITS) // visits
        assert int(covisitation_kernel._share(covisits, visits)) == expected


def test_counts_beyond_exact_division_keep_the_engine_exact(
    log: Interactions, make_lists: MakeLists
) -> None:
    victim = fitted(log)
    state = victim.state
    rng = np.random.default_rng(1)
    n_items = log.n_items
    rows, columns = np.divmod(state["pairs"], n_items)
    low, high = np.minimum(rows, columns), np.maximum(rows, columns)
    noise = rng.integers(1, 2**26, n_items * n_items)
    state["covisits"] = noise[low * n_items + high]
    state["visits"] = rng.integers(2**27, 2**30, n_items)
    victim._set_state(state)
    lists = make_lists(log, [44, 3, 0, 41], k=4)
    profiles = varied_profiles(n_items, 25, 6, 6, seed=9)
    plain = victim.engine(lists, backend="plain").exposure(profiles, 0)
    np.testing.assert_array_equal(victim.engine(lists).exposure(profiles, 0), plain)


@pytest.mark.parametrize(
    ("array", "value"),
    [
        ("pairs", lambda a: a[::-1]),
        ("pairs", lambda a: a + 1),
        ("pairs", lambda a: -a - 1),
        ("pairs", lambda a: a + 45 * 45),
        ("covisits", lambda a: a * 0),
        ("visits", lambda a: a * 0),
    ],
)
def test_a_state_that_is_no_graph_is_refused(
    log: Interactions, array: str, value: Callable[[NDArray[np.int64]], NDArray[np.int64]]
) -> None:
    victim = fitted(log)
    state = victim.state
    state[array] = value(state[array].astype(np.int64))
    with pytest.raises(ArtifactError, match=array):
        victim._set_state(state)


@pytest.fixture(scope="module")
def steam_log() -> Interactions:
    """The training part of Steam with eight new items."""
    log = load("steam", protocol="poisonrec").split.train
    return log.with_catalogue(log.n_items + 8)


@pytest.mark.real_data
@pytest.mark.parametrize("n_candidates", [92, None])
@pytest.mark.parametrize("victim_name", ["ItemPop", "CoVisitation"])
def test_the_engine_is_exact_on_steam(
    victim_name: str, n_candidates: int | None, steam_log: Interactions
) -> None:
    victim = VICTIMS[victim_name]().fit(steam_log, np.random.default_rng(0), n_new_items=8)
    popular = np.argsort(-steam_log.item_popularity)
    first_new = victim.n_original_items
    rng = np.random.default_rng(2)
    new = first_new + rng.integers(0, 8, (5, 20, 20))
    reach = np.array([20, 500, first_new, 1, 5])[:, None, None]
    fillers = popular[rng.integers(0, reach, (5, 20, 20))]
    profiles = np.where(np.arange(20) % 2 == 0, new, fillers)
    profiles[2:4] = fillers[2], np.full((20, 20), first_new)
    draws = rng.random((steam_log.n_users, first_new))
    draws[seen_mask(steam_log, np.arange(steam_log.n_users))[:, :first_new]] = 2.0
    for targets in ([*range(first_new, first_new + 8)], [first_new, *popular[[0, 9, 300]]]):
        draws[:, [target for target in targets if target < first_new]] = 3.0
        items = None
        if n_candidates is not None:
            items = np.argpartition(draws, n_candidates, axis=1)[:, :n_candidates]
        lists = CandidateLists(steam_log, items, np.array(targets), 10)
        plain = victim.engine(lists, backend="plain").exposure(profiles, 0)
        np.testing.assert_array_equal(victim.engine(lists).exposure(profiles, 0), plain)
        assert plain.any()
