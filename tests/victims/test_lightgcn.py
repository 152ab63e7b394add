"""LightGCN: the formula by hand, gradients against autograd, the compiled engine against the plain one."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.datasets import load
from recattack_gym.victims import CandidateLists, LightGCN
from recattack_gym.victims.graph import InteractionGraph, touched_nodes
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
    "batch_size": 64,
    "finetune_epochs": 4,
    "finetune_batch_size": 32,
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


def test_conjugate_gradients_solve_an_equation_in_as_many_steps_as_it_has_unknowns() -> None:
    # [[2, 1], [1, 3]] x = (1, 2) has the solution (1/5, 3/5).
    matrix = np.array([[2, 1], [1, 3]], dtype=np.float32)
    wanted = np.array([[1], [2]], dtype=np.float32)
    solution = solve_layer0(lambda rows: matrix @ rows, wanted, 2)
    np.testing.assert_allclose(solution, [[0.2], [0.6]], atol=1e-5)
    assert not solve_layer0(lambda rows: matrix @ rows, np.zeros_like(wanted), 2).any()


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


def test_fake_edges_act_without_any_training(small_log: Interactions) -> None:
    idle = LightGCN({**SMALL, "finetune_epochs": 0})
    idle.fit(small_log, np.random.default_rng(0), n_new_items=N_NEW)
    poisoned = idle.poisoned(np.full((2, 3), 25), 1, "finetune")
    users, item = np.arange(small_log.n_users), np.full((small_log.n_users, 1), 25)
    assert (poisoned.score(users, item) != idle.score(users, item)).any()
    clean = idle.state["embeddings"]
    np.testing.assert_array_equal(poisoned.state["embeddings"][: len(clean)], clean)


def test_fine_tuning_moves_the_fake_users_and_their_items_alone_and_popular_items_less(
    victim: LightGCN,
) -> None:
    popular = int(victim.log.item_popularity.argmax())
    profile = np.array([[25, popular, 25], [popular, 25, 7]])
    clean, poisoned = (
        x.state["embeddings"] for x in (victim, victim.poisoned(profile, 1, "finetune"))
    )
    moves = np.abs(poisoned[: len(clean)] - clean).max(axis=1)
    assert np.flatnonzero(moves).tolist() == sorted({popular, 7, 25})
    assert moves[popular] < 0.5 * moves[25]
    assert (poisoned[len(clean) :] != victim._first_fakes(1, 2)).any(axis=1).all()


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4])
@pytest.mark.parametrize("settings", [{}, {"reg": 0.2}, {"new_items_as_negatives": True}], ids=str)
def test_compiled_fine_tuning_equals_the_plain_path(
    small_log: Interactions, make_lists: MakeLists, n_layers: int, settings: dict[str, object]
) -> None:
    victim = LightGCN({**SMALL, "n_layers": n_layers, "finetune_batch_size": 10, **settings})
    victim.fit(small_log, np.random.default_rng(3), n_new_items=N_NEW)
    engine = victim.engine(make_lists(small_log, TARGETS))
    assert isinstance(engine, LightGCNEngine)
    for profile in attacks(small_log, 3, 4):
        poisoned = victim.poisoned(profile, 5, "finetune").state["embeddings"]
        np.testing.assert_allclose(engine.embeddings_after(profile, 5), poisoned, atol=1e-3)


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


def test_the_columns_are_those_of_the_averaging_matrix(
    victim: LightGCN, small_log: Interactions, make_lists: MakeLists
) -> None:
    engine = victim.engine(make_lists(small_log, TARGETS))
    assert isinstance(engine, LightGCNEngine)
    profile = attacks(small_log, 4, 5)[0]
    prepared = engine._prepare((4, 5), 2)
    own = engine._room(prepared, 5)
    engine._update(profile, prepared, own)  # writes the graph
    nodes = touched_nodes(profile, small_log.n_items + small_log.n_users)
    looked_at = np.array([0, 3, 26, 30, 58], dtype=np.int32)
    dense = dense_mean(small_log.with_fake_users(profile), victim.config.n_layers)
    for _ in range(2):  # the scratch is as it was
        columns = engine._columns(own, looked_at, nodes)
        np.testing.assert_allclose(columns, dense[np.ix_(looked_at, nodes)], atol=1e-6)


@pytest.mark.slow
@pytest.mark.real_data
def test_the_engine_counts_what_the_plain_engine_counts_on_real_data() -> None:
    # Adam turns gradients that are zero up to rounding into whole steps, so lists may differ where
    # scores nearly tie: at most one list in a thousand.
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
