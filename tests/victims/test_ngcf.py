"""NGCF: the formula by hand, gradients against autograd, and the compiled engine against the plain one."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.datasets import load
from recattack_gym.victims import NGCF, CandidateLists
from recattack_gym.victims.graph import InteractionGraph
from recattack_gym.victims.graph_kernel import (
    count_exposure,
    graph_arrays,
    inject_edges,
    make_contest,
    room_for_fakes,
)
from recattack_gym.victims.ngcf import Examples, propagate
from recattack_gym.victims.ngcf_engine import NGCFEngine
from recattack_gym.victims.ngcf_kernel import (
    Parameters,
    make_workspace,
    propagate_all,
    train,
)

N_NEW = 3
TARGETS = [24, 25, 26]
MakeLists = Callable[..., CandidateLists]

TINY = Interactions(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), n_users=3, n_items=3)
"""User 0 clicked items 0 and 1, user 1 item 1 twice; user 2 and item 2 have no edge."""


@pytest.fixture(scope="module")
def victim(small_log: Interactions) -> NGCF:
    """Return a victim that has learnt something, with large steps so that attacks matter."""
    settings = {
        "embedding_size": 8,
        "epochs": 20,
        "batch_size": 64,
        "finetune_epochs": 3,
        "finetune_learning_rate": 0.02,
        "finetune_batch_size": 32,
    }
    return NGCF(settings).fit(small_log, np.random.default_rng(3), n_new_items=N_NEW)


def profiles(log: Interactions, m: int, n: int, t: int, seed: int = 0) -> NDArray[np.int64]:
    """Half of the clicks on the new items; shape `(m, n, t)`."""
    rng = np.random.default_rng(seed)
    new = rng.integers(log.n_items - N_NEW, log.n_items, (m, n, t))
    return np.where(rng.random((m, n, t)) < 0.5, new, rng.integers(0, log.n_items, (m, n, t)))


# -- the graph -----------------------------------------------------------------------------------


def test_a_pair_is_one_edge_however_often_it_was_clicked() -> None:
    graph = InteractionGraph.from_log(TINY)
    # nodes: items 0-2, users 3-5; edges 0-3, 1-3, 1-4
    assert graph.indptr.tolist() == [0, 1, 3, 3, 5, 6, 6]
    assert graph.neighbours.tolist() == [3, 3, 4, 0, 1, 1]


def test_edges_are_divided_by_the_roots_of_both_degrees() -> None:
    graph = InteractionGraph.from_log(TINY)
    root = 1 / np.sqrt(2)  # item 1 and user 0 have two edges
    np.testing.assert_allclose(graph.scale, [1, root, 0, root, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(graph.normalised, [root, 0.5, root, root, 0.5, root], rtol=1e-6)


def test_injecting_edges_equals_building_the_graph_from_the_whole_log(
    small_log: Interactions,
) -> None:
    profile = np.array([[26, 0, 26, 5], [5, 5, 5, 5], [0, 25, 24, 1]])
    clean = InteractionGraph.from_log(small_log)
    whole = InteractionGraph.from_log(small_log.with_fake_users(profile))
    merged = room_for_fakes(clean, 3, 4)
    for _ in range(2):  # the second time over old contents
        inject_edges(graph_arrays(clean), profile, merged)
        np.testing.assert_array_equal(merged.indptr, whole.indptr)
        np.testing.assert_array_equal(merged.neighbours[: merged.indptr[-1]], whole.neighbours)
        np.testing.assert_array_equal(merged.scale, whole.scale)


# -- the model -----------------------------------------------------------------------------------


def test_one_layer_follows_the_formula() -> None:
    # Two nodes, one edge, d = 1: s of each is the other's e, and with W1 = 2, W2 = -3, b = 1
    # node 0 gets leaky(2 (5 + 4) - 3 * 20 + 1) = leaky(-41) = -8.2, node 1 the same; the norm
    # leaves the sign.
    adjacency = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    final = propagate(
        adjacency,
        torch.tensor([[4.0], [5.0]]),
        torch.tensor([[[2.0], [-3.0]]]),
        torch.tensor([[1.0]]),
    )
    assert final.tolist() == [[4.0, -1.0], [5.0, -1.0]]


def test_a_node_without_edges_propagates_its_own_embedding(victim: NGCF) -> None:
    state, log = victim.state, victim.log
    item = 25
    own = state["embeddings"][item]
    for weight, bias in zip(state["weights"], state["biases"], strict=True):
        own = own @ weight[: len(own)] + bias  # s = 0, so the product part vanishes
        own = np.where(own > 0, own, 0.2 * own)
    users = np.arange(log.n_users)
    last = victim._propagated()[item, -len(own) :]
    np.testing.assert_allclose(last, own / np.linalg.norm(own), rtol=1e-4, atol=1e-6)
    assert victim.score(users, np.full((log.n_users, 1), item)).shape == (log.n_users, 1)


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [5, 16])
def test_compiled_training_equals_autograd(
    small_log: Interactions, n_layers: int, size: int
) -> None:
    rng = np.random.default_rng(n_layers)
    log, n_items = small_log, small_log.n_items
    victim = NGCF(
        {
            "n_layers": n_layers,
            "embedding_size": size,
            "epochs": 0,
            "warm_start_epochs": 3,
            "reg": 0.05,
        }
    )
    victim.fit(log, rng)
    start = victim.state
    learnt = [start[key].astype(np.float32) for key in ("embeddings", "weights", "biases")]
    users, items = rng.integers(0, log.n_users, 11), rng.integers(0, n_items, 11)
    negatives = rng.integers(0, n_items, 11)
    bounds = np.array([0, 2, 3, 11])  # a batch so small that few nodes are needed, then larger ones
    victim._train(iter([Examples(users, items, negatives, bounds, 0.01)]))
    parameters = Parameters(*learnt)
    graph = graph_arrays(InteractionGraph.from_log(log))
    n_nodes = len(graph.scale)
    work = make_workspace(n_nodes, n_layers, size, n_nodes)
    train(
        parameters,
        graph,
        users.astype(np.int32),
        items.astype(np.int32),
        negatives.astype(np.int32),
        bounds,
        n_items,
        0.01,
        0.05,
        0,
        work,
    )
    for name, found in parameters._asdict().items():
        np.testing.assert_allclose(found, victim.state[name], atol=2e-5)
    propagate_all(parameters, graph, np.arange(n_nodes, dtype=np.int32), work)
    np.testing.assert_allclose(work.final, victim._propagated(), atol=2e-4)


def test_both_ways_of_clean_training_give_the_same_victim(
    small_log: Interactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"embedding_size": 8, "epochs": 3, "batch_size": 32}
    compiled = NGCF(settings).fit(small_log, np.random.default_rng(1), n_new_items=N_NEW)
    monkeypatch.setattr(NGCF, "_train_compiled", NGCF._train)
    plain = NGCF(settings).fit(small_log, np.random.default_rng(1), n_new_items=N_NEW)
    for key, array in plain.state.items():
        np.testing.assert_allclose(compiled.state[key], array, atol=1e-4)


def test_new_items_stay_out_of_clean_training_unless_asked_for(small_log: Interactions) -> None:
    moved = []
    for as_negatives in (False, True):
        settings = {"embedding_size": 4, "reg": 0.0, "new_items_as_negatives": as_negatives}
        victims = [
            NGCF({**settings, "epochs": epochs}).fit(
                small_log, np.random.default_rng(2), n_new_items=N_NEW
            )
            for epochs in (0, 5)
        ]
        rows = [v.state["embeddings"][TARGETS] for v in victims]
        moved.append(bool((rows[0] != rows[1]).any()))
    assert moved == [False, True]


def test_the_number_of_layers_must_be_positive() -> None:
    with pytest.raises(ArgumentError, match="n_layers"):
        NGCF({"n_layers": 0})


# -- poison --------------------------------------------------------------------------------------


def test_fake_edges_act_without_any_training(small_log: Interactions) -> None:
    idle = NGCF({"embedding_size": 8, "warm_start_epochs": 0, "finetune_epochs": 0})
    idle.fit(small_log, np.random.default_rng(0), n_new_items=N_NEW)
    poisoned = idle.poisoned(np.full((2, 3), 25), 1, "finetune")
    users, item = np.arange(small_log.n_users), np.full((small_log.n_users, 1), 25)
    assert (poisoned.score(users, item) != idle.score(users, item)).any()
    np.testing.assert_array_equal(
        poisoned.state["embeddings"][: small_log.n_items], idle.state["embeddings"][:27]
    )


@pytest.mark.parametrize(("n", "t"), [(1, 1), (1, 6), (4, 1), (3, 5)])
@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("n_candidates", [8, None])
def test_the_engine_counts_what_the_plain_engine_counts(
    victim: NGCF,
    small_log: Interactions,
    make_lists: MakeLists,
    n: int,
    t: int,
    k: int,
    n_candidates: int | None,
) -> None:
    lists = make_lists(small_log, TARGETS, k=k, n_candidates=n_candidates)
    batch = profiles(small_log, 3, n, t, seed=n + t)
    fast = victim.engine(lists).exposure(batch, 7)
    np.testing.assert_array_equal(fast, victim.engine(lists, backend="plain").exposure(batch, 7))


def test_the_engine_follows_changes_of_seed_and_budget(
    victim: NGCF, small_log: Interactions, make_lists: MakeLists
) -> None:
    lists = make_lists(small_log, TARGETS)
    engine, plain = victim.engine(lists), victim.engine(lists, backend="plain")
    for n, t, seed in ((2, 3, 1), (3, 2, 1), (2, 3, 2), (2, 3, 1)):
        batch = profiles(small_log, 2, n, t)
        np.testing.assert_array_equal(engine.exposure(batch, seed), plain.exposure(batch, seed))


@pytest.mark.parametrize("n_candidates", [6, None])
def test_targets_that_some_users_have_seen_are_not_counted_for_them(
    victim: NGCF, small_log: Interactions, make_lists: MakeLists, n_candidates: int | None
) -> None:
    popular = np.argsort(-small_log.item_popularity, kind="stable")[:2].tolist()
    lists = make_lists(small_log, [26, *popular], k=4, n_candidates=n_candidates)
    batch = np.stack([np.full((2, 3), item) for item in (26, *popular)])
    fast = victim.engine(lists).exposure(batch, 7)
    np.testing.assert_array_equal(fast, victim.engine(lists, backend="plain").exposure(batch, 7))
    assert (fast <= lists.eligible.sum(axis=0)).all()


@pytest.mark.parametrize("n_candidates", [6, None])
def test_equal_scores_go_to_the_lower_id(
    small_log: Interactions, make_lists: MakeLists, n_candidates: int | None
) -> None:
    lists = make_lists(small_log, [26, 2, 25], k=4, n_candidates=n_candidates)
    contest = make_contest(
        lists, lambda users, items: np.zeros(items.shape, np.float32) + users[:1]
    )
    final = np.ones((small_log.n_items + small_log.n_users, 2), dtype=np.float32)
    counts = np.zeros(3, dtype=np.int64)
    count_exposure(final, small_log.n_items, contest, counts)
    expected = np.zeros(3, dtype=np.int64)
    for user in range(small_log.n_users):
        items, allowed = lists.block(np.array([user]))
        shown = np.sort(items[0][allowed[0]])[:4]
        expected += np.isin(lists.target_items, shown)
    assert counts.tolist() == expected.tolist()


def test_a_shortlist_shorter_than_the_catalogue_changes_nothing(
    victim: NGCF, small_log: Interactions, make_lists: MakeLists, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = make_lists(small_log, TARGETS, k=3, n_candidates=None)
    batch = profiles(small_log, 3, 3, 5)
    expected = victim.engine(lists).exposure(batch, 7)
    monkeypatch.setattr("recattack_gym.victims.graph_kernel.SHORTLIST", 4)
    np.testing.assert_array_equal(victim.engine(lists).exposure(batch, 7), expected)


@pytest.mark.real_data
@pytest.mark.parametrize("dataset", ["steam", "ml-100k"])
def test_the_engine_counts_what_the_plain_engine_counts_on_real_data(dataset: str) -> None:
    # Adam turns gradients that are zero up to rounding into whole steps, so lists may differ where
    # scores nearly tie: at most one list in a thousand.
    original = load(dataset).log
    log = original.with_catalogue(original.n_items + N_NEW)
    settings = {"warm_start_epochs": 10, "epochs": 1}
    victim = NGCF(settings).fit(log, np.random.default_rng(0), n_new_items=N_NEW)
    rng = np.random.default_rng(4)
    items = np.stack([rng.choice(original.n_items, 150, replace=False) for _ in range(log.n_users)])
    seen = log.has(np.arange(log.n_users)[:, None], items)
    width = min(92, int((~seen).sum(axis=1).min()))
    items = np.take_along_axis(items, np.argsort(seen, axis=1, kind="stable")[:, :width], axis=1)
    popular = np.argsort(-log.item_popularity, kind="stable")
    targets = np.array([log.n_items - 3, log.n_items - 1, log.n_items - 2])
    clicks = np.arange(400).reshape(20, 20)
    batch = np.stack(
        [
            profiles(log, 1, 20, 20)[0],
            np.full((20, 20), targets[0]),
            targets[clicks % 3],
            np.where(clicks % 2 == 0, targets[1], popular[clicks % 5]),
            popular[clicks % 30],
        ]
    )
    lists = CandidateLists(log, items, targets, 10)
    fast = victim.engine(lists).exposure(batch, 7)
    plain = victim.engine(lists, backend="plain").exposure(batch, 7)
    assert np.abs(fast - plain).max() <= max(1, log.n_users // 1000)
    assert fast.sum() > 0


def test_layer_zero_starts_from_bpr_with_the_bias_folded_in(small_log: Interactions) -> None:
    settings = {"embedding_size": 6, "epochs": 0, "warm_start_epochs": 4}
    victim = NGCF(settings).fit(small_log, np.random.default_rng(5), n_new_items=N_NEW)
    start = NGCF({**settings, "warm_start_epochs": 0}).fit(
        small_log, np.random.default_rng(5), n_new_items=N_NEW
    )
    rows, first = victim.state["embeddings"], start.state["embeddings"]
    n_items = small_log.n_items
    assert (rows[n_items:, -1] == 1.0).all()
    assert (first[:n_items, -1] == 0.0).all()
    popular = int(small_log.item_popularity.argmax())
    assert rows[popular, -1] == rows[:n_items, -1].max() > 0
    np.testing.assert_array_equal(rows[TARGETS], first[TARGETS])  # untrained


def test_no_event_gets_a_negative_that_its_user_has_seen(small_log: Interactions) -> None:
    victim = NGCF({"embedding_size": 4, "popular_negatives": 0.5, "batch_size": 50})
    victim.fit(small_log, np.random.default_rng(5), n_new_items=N_NEW)
    first, *_, last = victim._clean_epochs(small_log, 3)
    for examples in (first, last):
        assert not small_log.has(examples.users, examples.negatives).any()
        assert examples.negatives.max() < small_log.n_items - N_NEW
    assert first.learning_rate == victim.config.learning_rate
    assert 0.0 < last.learning_rate < 0.1 * first.learning_rate


def test_fine_tuning_moves_what_was_clicked_fake_users_and_genuine_ones_who_met_it(
    victim: NGCF,
) -> None:
    profile = np.array([[25, 0, 25], [3, 0, 7]])
    log, n_items = victim.log, victim.log.n_items
    clean, poisoned = victim.state, victim.poisoned(profile, 1, "finetune").state
    for key in ("weights", "biases"):
        np.testing.assert_array_equal(poisoned[key], clean[key])
    n_clean = len(clean["embeddings"])
    moved = (poisoned["embeddings"][:n_clean] != clean["embeddings"]).any(axis=1)
    assert np.flatnonzero(moved[:n_items]).tolist() == [0, 3, 7, 25]
    plan = victim._plan(log, (2, 3), 1)
    is_clicked = np.isin(np.arange(n_items), profile)
    users = plan.warm.examples(log, profile, is_clicked).users
    met = np.unique(users[users < log.n_users])
    assert np.flatnonzero(moved[n_items:]).tolist() == met.tolist()
    assert 0 < len(met) < log.n_users
    last = poisoned["embeddings"][n_items:n_clean, -1]
    np.testing.assert_array_equal(last, clean["embeddings"][n_items:, -1])
    assert (poisoned["embeddings"][n_clean:] != plan.fakes).any(axis=1).all()


def hostile(log: Interactions, n: int, t: int) -> NDArray[np.int64]:
    """Return mixtures, one target, alternation with a popular item, one popular item, everything."""
    popular = np.argsort(-log.item_popularity, kind="stable")
    clicks = np.arange(n * t).reshape(n, t)
    return np.stack(
        [
            *profiles(log, 2, n, t),
            np.full((n, t), 25),
            np.where(clicks % 2 == 0, 24, popular[0]),
            np.full((n, t), popular[0]),
            clicks % log.n_items,
        ]
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n_layers": 1},
        {"n_layers": 4, "embedding_size": 5},
        {"new_items_as_negatives": True, "finetune_replay": 3.0},
        {"finetune_replay": 0.0},
        {"finetune_epochs": 0},
        {"warm_start_epochs": 0},
        {"warm_start_epochs": 0, "finetune_epochs": 0},
        {"finetune_batch_size": 1, "warm_start_epochs": 3},
        {"finetune_waypoints": 1, "popular_negatives": 0.0},
        {"finetune_waypoints": 9, "warm_start_epochs": 4},
    ],
    ids=str,
)
def test_compiled_fine_tuning_equals_the_plain_path(
    small_log: Interactions, make_lists: MakeLists, settings: dict[str, object]
) -> None:
    lively = {"embedding_size": 6, "epochs": 5, "batch_size": 64, "finetune_batch_size": 10}
    victim = NGCF({**lively, **settings})
    victim.fit(small_log, np.random.default_rng(3), n_new_items=N_NEW)
    engine = victim._compiled_engine(make_lists(small_log, TARGETS))
    assert isinstance(engine, NGCFEngine)
    for profile in hostile(small_log, 3, 4):
        engine.exposure(profile[None], 5)
        (thread,) = engine._threads
        poisoned = victim.poisoned(profile, 5, "finetune")
        np.testing.assert_allclose(thread.embeddings, poisoned.state["embeddings"], atol=1e-4)
        np.testing.assert_allclose(thread.work.final, poisoned._propagated(), atol=1e-3)
        assert not any(gradient.any() for gradient in thread.gradients)
