"""The compiled engine of BPR and PMF against the plain path, where the contract tests do not reach."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import Interactions
from recattack_gym.datasets import load
from recattack_gym.victims import BPR, PMF, CandidateLists, Victim, mf_engine
from recattack_gym.victims.mf_engine import FactorEngine
from recattack_gym.victims.mf_kernel import count_rows

FACTORISATIONS: dict[str, type[BPR] | type[PMF]] = {"BPR": BPR, "PMF": PMF}
N_NEW = 4
LIVELY: dict[str, object] = {"epochs": 3, "finetune_epochs": 3, "finetune_learning_rate": 0.03}

MakeLists = Callable[..., CandidateLists]

every_factorisation = pytest.mark.parametrize("name", sorted(FACTORISATIONS))


@pytest.fixture(scope="module")
def wide_log() -> Interactions:
    """Return 70 users and 400 items, more than the engine keeps in clean order, and new items."""
    rng = np.random.default_rng(2)
    users = np.repeat(np.arange(70), rng.integers(1, 30, 70))
    weights = 1.0 / np.arange(1, 401)
    items = rng.choice(400, len(users), p=weights / weights.sum())
    return Interactions(users, items, n_users=70, n_items=400 + N_NEW)


def fitted(name: str, log: Interactions, **settings: object) -> Victim:
    victim = FACTORISATIONS[name]({**LIVELY, **settings})
    return victim.fit(log, np.random.default_rng(0), n_new_items=N_NEW)


def attacks(log: Interactions, n: int, t: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Return random clicks, popular items, one target, all targets, and mixtures; `(7, n, t)`."""
    rng = np.random.default_rng(seed)
    shape = (n, t)
    targets = np.arange(log.n_items - N_NEW, log.n_items)
    popular = np.argsort(-log.item_popularity, kind="stable")[:20]
    alternating = rng.choice(popular, shape)
    alternating[:, ::2] = targets[0]
    mixed = np.where(
        rng.random(shape) < 0.5, rng.choice(targets, shape), rng.choice(popular, shape)
    )
    return np.stack(
        [
            rng.integers(0, log.n_items - N_NEW, shape),
            rng.choice(popular, shape),
            np.full(shape, targets[1]),
            rng.choice(targets, shape),
            alternating,
            mixed,
            np.full(shape, popular[0]),
        ]
    )


def assert_same_factors(victim: Victim, engine: FactorEngine, profile: NDArray[np.int64]) -> None:
    fast = engine.factors_after(profile, 5).as_state()
    slow = victim.poisoned(profile, 5, "finetune").state
    assert sorted(fast) == sorted(slow)
    for array, expected in slow.items():
        np.testing.assert_allclose(fast[array], expected, rtol=0, atol=1e-4, err_msg=array)


@every_factorisation
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"embedding_size": 5, "finetune_batch_size": 7},
        {"embedding_size": 1, "finetune_epochs": 1},
        {"finetune_replay": 0.0},
        {"finetune_replay": 3.0, "reg": 0.2},
        {"finetune_replay": 1e9},
        {"new_items_as_negatives": True},
        {"new_items_as_negatives": True, "finetune_replay": 1e9},
        {"finetune_epochs": 0},
    ],
    ids=str,
)
def test_the_engine_trains_the_factors_that_the_plain_path_trains(
    name: str, settings: dict[str, object], wide_log: Interactions, make_lists: MakeLists
) -> None:
    victim = fitted(name, wide_log, **settings)
    engine = victim.engine(make_lists(wide_log, [400, 403]))
    assert isinstance(engine, FactorEngine)
    for profile in attacks(wide_log, 3, 6):
        assert_same_factors(victim, engine, profile)


@every_factorisation
@pytest.mark.parametrize("n_candidates", [30, None], ids=["lists", "catalogue"])
@pytest.mark.parametrize(
    ("targets", "k"), [([400, 401, 402, 403], 60), ([403, 5, 0], 2), ([401], 500)], ids=str
)
def test_exposure_equals_the_plain_path_for_any_budget_on_a_long_catalogue(
    name: str,
    n_candidates: int | None,
    targets: list[int],
    k: int,
    wide_log: Interactions,
    make_lists: MakeLists,
) -> None:
    victim = fitted(name, wide_log)
    lists = make_lists(wide_log, targets, k=k, n_candidates=n_candidates)
    engine, plain = victim.engine(lists), victim.engine(lists, backend="plain")
    some_are_shown = False
    for n, t in ((1, 1), (4, 1), (1, 9), (5, 12)):
        profiles = attacks(wide_log, n, t)
        counted = engine.exposure(profiles, 3)
        np.testing.assert_array_equal(counted, plain.exposure(profiles, 3))
        some_are_shown |= bool(counted.any())
    assert some_are_shown


@every_factorisation
def test_users_whom_the_clean_order_does_not_decide_are_ranked_in_full(
    name: str, wide_log: Interactions, make_lists: MakeLists, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranked_in_full: list[int] = []

    def recorded(scores: NDArray[np.float32], *rest: object) -> None:
        ranked_in_full.append(len(scores))
        count_rows(scores, *rest)  # type: ignore[arg-type]  # the arguments as they came

    monkeypatch.setattr(mf_engine, "count_rows", recorded)
    monkeypatch.setattr(mf_engine, "_PREFIX", 0)
    monkeypatch.setattr(mf_engine, "_BLOCK_CELLS", 2_000)  # five users at a time
    victim = fitted(name, wide_log)
    lists = make_lists(wide_log, [402, 7, 0], k=10, n_candidates=None)
    profiles = attacks(wide_log, 6, 10)
    counted = victim.engine(lists).exposure(profiles, 1)
    assert max(ranked_in_full) > 1
    plain = victim.engine(lists, backend="plain").exposure(profiles, 1)
    np.testing.assert_array_equal(counted, plain)


@every_factorisation
@pytest.mark.parametrize("n_candidates", [30, None], ids=["lists", "catalogue"])
def test_equal_scores_rank_by_item_id_in_the_engine_too(
    name: str, n_candidates: int | None, wide_log: Interactions, make_lists: MakeLists
) -> None:
    victim = fitted(name, wide_log, finetune_replay=0.0, finetune_learning_rate=1e-6)
    for array in victim._state().values():
        array[:] = 0.0
    victim._state()["bias"][::2] = 1.0  # two classes of equal scores
    lists = make_lists(wide_log, [2, 14, 18, 24], k=9, n_candidates=n_candidates)
    profiles = np.full((1, 1, 1), 6)  # moves no genuine user, hence no score of a zero vector
    engine, plain = victim.engine(lists), victim.engine(lists, backend="plain")
    expected = plain.exposure(profiles, 2)
    assert expected.any()
    np.testing.assert_array_equal(engine.exposure(profiles, 2), expected)


@every_factorisation
def test_seeds_and_shapes_may_alternate_on_one_engine(
    name: str, wide_log: Interactions, make_lists: MakeLists
) -> None:
    victim = fitted(name, wide_log)
    lists = make_lists(wide_log, [400, 401])
    engine = victim.engine(lists)
    for n, t, seed in ((2, 3, 1), (3, 2, 1), (2, 3, 2), (2, 3, 1)):
        profiles = attacks(wide_log, n, t)
        fresh = victim.engine(lists).exposure(profiles, seed)
        np.testing.assert_array_equal(engine.exposure(profiles, seed), fresh)


@pytest.mark.real_data
@every_factorisation
@pytest.mark.parametrize("dataset", ["steam", "ml-100k"])
def test_the_engine_equals_the_plain_path_on_real_data(name: str, dataset: str) -> None:
    original = load(dataset).log
    log = original.with_catalogue(original.n_items + N_NEW)
    # the default recipe but for the epochs, which cost the plain path seconds
    victim = FACTORISATIONS[name]({"epochs": 10, "finetune_epochs": 10})
    victim.fit(log, np.random.default_rng(0), n_new_items=N_NEW)
    rng = np.random.default_rng(4)
    users = np.arange(log.n_users)
    items = np.stack([rng.choice(original.n_items, 150, replace=False) for _ in users])
    unseen = np.argsort(log.has(users[:, None], items), axis=1, kind="stable")[:, :92]
    items = np.take_along_axis(items, unseen, axis=1)
    items = items[:, : int((~log.has(users[:, None], items)).sum(axis=1).min())]
    lists = CandidateLists(log, items, np.arange(original.n_items, log.n_items), 10)
    engine, plain = victim.engine(lists), victim.engine(lists, backend="plain")
    assert isinstance(engine, FactorEngine)
    profiles = attacks(log, 20, 20)
    np.testing.assert_array_equal(engine.exposure(profiles, 8), plain.exposure(profiles, 8))
    assert_same_factors(victim, engine, profiles[5])
