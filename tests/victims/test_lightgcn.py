"""LightGCN: the formula by hand, gradients against autograd, the compiled engine against the plain one."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.datasets import load
from recattack_gym.victims import CandidateLists, LightGCN
from recattack_gym.victims.base import PlainEngine
from recattack_gym.victims.graph import InteractionGraph
from recattack_gym.victims.lightgcn import propagate, solve_layer0
from recattack_gym.victims.lightgcn_engine import LightGCNEngine
from recattack_gym.victims.lightgcn_kernel import mean_of_layers

N_NEW = 3
TARGETS = [24, 25, 26]
MakeLists = Callable[..., CandidateLists]

SMALL: dict[str, object] = {
    "embedding_size": 8,
    "warm_start_epochs": 10,
    "epochs": 5,
    "learning_rate": 0.02,
    "batch_size": 64,
    "finetune_epochs": 10,
    "finetune_batch_size": 8,
}


@pytest.fixture(scope="module")
def victim(small_log: Interactions) -> LightGCN:
    """Return a victim that has learnt something, with large steps so that attacks matter."""
    return LightGCN(SMALL).fit(small_log, np.random.default_rng(3), n_new_items=N_NEW)


def attacks(log: Interactions, n: int, t: int, seed: int = 0) -> NDArray[np.int64]:
    """Return random clicks with targets among them, one target, a target beside the most popular item."""
    rng = np.random.default_rng(seed)
    new = rng.integers(log.n_items - N_NEW, log.n_items, (2, n, t))
    mixed = np.where(rng.random((2, n, t)) < 0.5, new, rng.integers(0, log.n_items, (2, n, t)))
    popular = int(log.item_popularity.argmax())
    beside = np.where(np.arange(n * t).reshape(n, t) % 2 == 0, log.n_items - 1, popular)
    return np.concatenate([mixed, np.full((1, n, t), log.n_items - 1), beside[None]])


def dense_mean(log: Interactions, n_layers: int) -> NDArray[np.float64]:
    """Return the mean of the powers of `D^-1/2 A D^-1/2`, from its definition."""
    n_nodes = log.n_items + log.n_users
    adjacency = np.zeros((n_nodes, n_nodes))
    for user, item in zip(log.user_ids.tolist(), log.item_ids.tolist(), strict=True):
        adjacency[item, log.n_items + user] = adjacency[log.n_items + user, item] = 1.0
    degree = adjacency.sum(axis=0)
    root = np.sqrt(np.maximum(degree, 1.0))
    normalised = adjacency / root[:, None] / root
    powers = [np.linalg.matrix_power(normalised, layer) for layer in range(n_layers + 1)]
    mean: NDArray[np.float64] = np.mean(powers, axis=0)
    return mean


# -- the model -----------------------------------------------------------------------------------


def test_two_layers_by_hand() -> None:
    # Nodes: items 0 and 1, users 2 and 3. Edges 0-2, 1-2, 1-3; degrees 1 2 2 1, and d = 1.
    # With e = (4, 0, 0, 0): layer 1 gives node 2 the share 1/sqrt(1 * 2) of 4; layer 2 gives node 0
    # 1/sqrt(2) of that, 2, and node 1 the share 1/2 of it, sqrt(2). The mean divides by three.
    log = Interactions(np.array([0, 0, 1]), np.array([0, 1, 1]), n_users=2, n_items=2)
    rows = np.array([[4], [0], [0], [0]], dtype=np.float32)
    expected = np.array([[4 + 2], [np.sqrt(2)], [4 / np.sqrt(2)], [0]]) / 3
    mean = mean_of_layers(InteractionGraph.from_log(log), 2, rows)
    np.testing.assert_allclose(mean, expected, rtol=1e-6)


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4])
def test_both_ways_of_averaging_equal_the_powers_of_the_matrix(
    small_log: Interactions, n_layers: int
) -> None:
    rng = np.random.default_rng(0)
    n_nodes = small_log.n_items + small_log.n_users
    rows = rng.standard_normal((n_nodes, 5)).astype(np.float32)
    dense = dense_mean(small_log, n_layers)
    compiled = mean_of_layers(InteractionGraph.from_log(small_log), n_layers, rows)
    np.testing.assert_allclose(compiled, dense @ rows, atol=1e-5)
    graph = InteractionGraph.from_log(small_log)
    sources = np.repeat(np.arange(n_nodes), np.diff(graph.indptr))
    adjacency = torch.zeros(n_nodes, n_nodes)
    adjacency[sources, graph.neighbours.astype(np.int64)] = torch.from_numpy(graph.normalised)
    plain = propagate(adjacency, torch.from_numpy(rows), n_layers)
    np.testing.assert_allclose(plain, dense @ rows, atol=1e-5)


def test_a_score_is_the_product_of_two_means(victim: LightGCN) -> None:
    log = victim.log
    final = dense_mean(log, victim.config.n_layers) @ victim.state["embeddings"]
    users = np.arange(log.n_users)
    scores = victim.score(users, np.tile(np.arange(log.n_items), (len(users), 1)))
    expected = final[log.n_items :] @ final[: log.n_items].T
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


def test_the_number_of_layers_must_be_positive() -> None:
    with pytest.raises(ArgumentError, match="n_layers"):
        LightGCN({"n_layers": 0})


# -- clean training ------------------------------------------------------------------------------


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_both_ways_of_clean_training_give_the_same_victim(
    small_log: Interactions, n_layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SMALL, "n_layers": n_layers, "batch_size": 32, "reg": 0.05}
    compiled = LightGCN(settings).fit(small_log, np.random.default_rng(1), n_new_items=N_NEW)
    monkeypatch.setattr(LightGCN, "_train_compiled", LightGCN._train)  # autograd
    plain = LightGCN(settings).fit(small_log, np.random.default_rng(1), n_new_items=N_NEW)
    start = LightGCN({**settings, "epochs": 0}).fit(
        small_log, np.random.default_rng(1), n_new_items=N_NEW
    )
    moved = np.abs(plain.state["embeddings"] - start.state["embeddings"]).max()
    assert moved > 0.05
    np.testing.assert_allclose(
        compiled.state["embeddings"], plain.state["embeddings"], atol=2e-3 * moved
    )


@pytest.mark.parametrize("popular", [0.0, 1.0])
def test_clean_training_visits_every_click_with_falling_steps_and_unseen_negatives(
    small_log: Interactions, popular: float
) -> None:
    settings = {"warm_start_epochs": 0, "epochs": 4, "learning_rate": 0.4, "batch_size": 50}
    victim = LightGCN({**settings, "popular_negatives": popular})
    victim.fit(small_log, np.random.default_rng(0), n_new_items=N_NEW)
    parts = list(victim._clean_epochs(small_log, 3))
    np.testing.assert_allclose([part.learning_rate for part in parts], [0.4, 0.3, 0.2, 0.1])
    events = sorted(zip(small_log.user_ids.tolist(), small_log.item_ids.tolist(), strict=True))
    for part in parts:
        assert sorted(zip(part.users.tolist(), part.items.tolist(), strict=True)) == events
        assert not small_log.has(part.users.astype(np.int64), part.negatives.astype(np.int64)).any()
        assert part.batch_indptr[-1] == len(events)
    drawn = np.concatenate([part.negatives for part in parts])
    assert drawn.max() < small_log.n_items - N_NEW
    hits = np.bincount(drawn, minlength=small_log.n_items)[: small_log.n_items - N_NEW]
    rarest, likeliest = np.argsort(small_log.item_popularity[: len(hits)])[[0, -1]]
    assert (hits[rarest] < 0.2 * hits.max()) == (popular == 1.0)
    assert hits[likeliest] > 0


def test_conjugate_gradients_solve_an_equation_in_as_many_steps_as_it_has_unknowns() -> None:
    # [[2, 1], [1, 3]] x = (1, 2) has the solution (1/5, 3/5).
    matrix = np.array([[2, 1], [1, 3]], dtype=np.float32)
    wanted = np.array([[1], [2]], dtype=np.float32)
    solution = solve_layer0(lambda rows: matrix @ rows, wanted, 2)
    np.testing.assert_allclose(solution, [[0.2], [0.6]], atol=1e-5)
    assert not solve_layer0(lambda rows: matrix @ rows, np.zeros_like(wanted), 2).any()
    start = np.array([[5], [-3]], dtype=np.float32)
    solution = solve_layer0(lambda rows: matrix @ rows, wanted, 2, start=start)
    np.testing.assert_allclose(solution, [[0.2], [0.6]], atol=1e-5)
    np.testing.assert_array_equal(start, [[5], [-3]])


def test_more_steps_bring_the_start_nearer_to_bpr(small_log: Interactions) -> None:
    # With two layers the mean has no eigenvalue below 1/4, so that the equation has a solution.
    settings = {**SMALL, "epochs": 0, "n_layers": 2}
    distances = []
    for steps in (0, 2, 30):
        fitted = LightGCN({**settings, "warm_start_steps": steps})
        fitted.fit(small_log, np.random.default_rng(5), n_new_items=N_NEW)
        final = fitted._propagated()
        distances.append(np.abs(final[small_log.n_items :, -1] - 1.0).mean())  # users' constant
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 1e-3


# -- poison --------------------------------------------------------------------------------------


def test_fake_edges_alone_change_nobody_since_layer_0_is_learnt_for_the_graph_that_there_is(
    small_log: Interactions,
) -> None:
    idle = LightGCN({**SMALL, "finetune_epochs": 0})
    idle.fit(small_log, np.random.default_rng(0), n_new_items=N_NEW)
    profile = np.array([[25, 3, 25], [3, 0, 25]])
    poisoned = idle.poisoned(profile, 1, "finetune")
    users = np.arange(small_log.n_users)
    items = np.tile(np.arange(small_log.n_items), (len(users), 1))
    np.testing.assert_allclose(poisoned.score(users, items), idle.score(users, items), atol=1e-4)
    clean = idle.state["embeddings"]
    assert np.abs(poisoned.state["embeddings"][: len(clean)] - clean).max() > 0.01
    np.testing.assert_allclose(
        poisoned._propagated()[len(clean) :], idle._first_fakes(1, 2), atol=1e-5
    )


def test_of_the_items_only_clicked_ones_get_other_embeddings_and_popular_ones_less(
    victim: LightGCN,
) -> None:
    popular, n_items = int(victim.log.item_popularity.argmax()), victim.log.n_items
    profile = np.array([[25, popular, 25], [popular, 25, 7]])
    poisoned = victim.poisoned(profile, 1, "finetune")
    clean, after = (x._propagated() for x in (victim, poisoned))
    moves = np.abs(after[:n_items] - clean[:n_items]).max(axis=1)
    assert np.flatnonzero(moves > 1e-4).tolist() == sorted({popular, 7, 25})
    assert moves[popular] < 0.5 * moves[25]
    assert (np.abs(after[len(clean) :] - victim._first_fakes(1, 2)).max(axis=1) > 0.01).all()


def test_a_poisoned_victim_scores_by_propagating_over_the_graph_with_the_fake_edges(
    victim: LightGCN,
) -> None:
    profile = attacks(victim.log, 3, 4)[0]
    poisoned = victim.poisoned(profile, 1, "finetune")
    dense = dense_mean(victim.log.with_fake_users(profile), victim.config.n_layers)
    final = dense @ poisoned.state["embeddings"]
    np.testing.assert_allclose(poisoned._propagated(), final, atol=1e-5)


@pytest.mark.parametrize("n_layers", [2, 4])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"finetune_batch_size": 3, "embedding_size": 5},
        {"finetune_replay": 4.0},
        {"new_items_as_negatives": True},
        {"finetune_epochs": 0},
    ],
    ids=str,
)
def test_compiled_fine_tuning_equals_the_plain_path(
    small_log: Interactions, make_lists: MakeLists, n_layers: int, settings: dict[str, object]
) -> None:
    victim = LightGCN({**SMALL, "n_layers": n_layers, **settings})
    victim.fit(small_log, np.random.default_rng(3), n_new_items=N_NEW)
    engine = victim.engine(make_lists(small_log, TARGETS))
    assert isinstance(engine, LightGCNEngine)
    for profile in attacks(small_log, 3, 4):
        fast = engine.factors_after(profile, 5)
        final = victim.poisoned(profile, 5, "finetune")._propagated()
        np.testing.assert_allclose(np.concatenate([fast.items, fast.users]), final, atol=1e-4)
        assert not fast.bias.any()


def test_an_odd_number_of_layers_has_the_plain_engine_alone(
    small_log: Interactions, make_lists: MakeLists
) -> None:
    # With an odd number the mean has the eigenvalue 0, so final embeddings are not free.
    victim = LightGCN({**SMALL, "n_layers": 3})
    victim.fit(small_log, np.random.default_rng(3), n_new_items=N_NEW)
    engine = victim.engine(make_lists(small_log, TARGETS))
    assert isinstance(engine, PlainEngine)
    assert engine.exposure(attacks(small_log, 3, 4), 1).any()


@pytest.mark.parametrize(("n", "t"), [(1, 1), (1, 6), (4, 1), (3, 5)])
@pytest.mark.parametrize("k", [1, 20])
@pytest.mark.parametrize("n_candidates", [8, None])
def test_the_engine_counts_what_the_plain_engine_counts_for_any_budget(
    victim: LightGCN,
    small_log: Interactions,
    make_lists: MakeLists,
    n: int,
    t: int,
    k: int,
    n_candidates: int | None,
) -> None:
    popular = int(small_log.item_popularity.argmax())
    lists = make_lists(small_log, [26, 24, popular], k=k, n_candidates=n_candidates)
    engine, plain = victim.engine(lists), victim.engine(lists, backend="plain")
    for seed in (1, 7):
        batch = attacks(small_log, n, t, seed=n + t)
        np.testing.assert_array_equal(engine.exposure(batch, seed), plain.exposure(batch, seed))


@pytest.mark.slow
@pytest.mark.real_data
def test_the_engine_counts_what_the_plain_engine_counts_on_real_data() -> None:
    # Final embeddings are solved for to six digits, so lists may differ where scores nearly tie: at
    # most one list in a thousand.
    original = load("ml-100k").log
    log = original.with_catalogue(original.n_items + N_NEW)
    settings = {"warm_start_epochs": 10, "epochs": 1, "finetune_epochs": 10}
    victim = LightGCN(settings).fit(log, np.random.default_rng(0), n_new_items=N_NEW)
    rng = np.random.default_rng(4)
    items = np.stack([rng.choice(original.n_items, 150, replace=False) for _ in range(log.n_users)])
    seen = log.has(np.arange(log.n_users)[:, None], items)
    width = min(92, int((~seen).sum(axis=1).min()))
    items = np.take_along_axis(items, np.argsort(seen, axis=1, kind="stable")[:, :width], axis=1)
    lists = CandidateLists(log, items, np.arange(original.n_items, log.n_items), 10)
    batch = attacks(log, 20, 20)
    fast = victim.engine(lists).exposure(batch, 7)
    plain = victim.engine(lists, backend="plain").exposure(batch, 7)
    assert np.abs(fast - plain).max() <= max(1, log.n_users // 1000)
    assert fast.sum() > 0
