"""Surrogates: the compiled training against autograd, what is drawn, and that they learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.gradient.gradient_passing import GradientPassing, pass_gradient
from agents.gradient.graph import InteractionGraph
from agents.gradient.surrogates import (
    LOSSES,
    MODELS,
    Loss,
    Model,
    Surrogate,
    SurrogateConfig,
    embeddings_of,
)
from agents.gradient.torch_twin import TorchTwin, passing_identity
from recattack_gym.core import ArgumentError, Interactions, StateError
from tests.agents.stub_view import random_log

SMALL = SurrogateConfig(embedding_size=6, batch_size=32, positive_weight=3.0)


def small_graph(seed: int = 0) -> InteractionGraph:
    return InteractionGraph.of(
        random_log(25, 15, 150, seed), [np.array([3, 14, 16]), np.array([17, 0])], n_items=18
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("passing", [None, GradientPassing()])
def test_compiled_training_is_that_of_autograd(
    model: Model, loss: Loss, passing: GradientPassing | None
) -> None:
    config = replace(SMALL, model=model, loss=loss, passing=passing)
    surrogate = Surrogate(small_graph(), config, seed=5, dtype=np.float64)
    twin = TorchTwin(surrogate)
    for _ in range(3):
        assert twin.train_epoch() == pytest.approx(surrogate.train_epoch(), rel=1e-9)
    assert twin.representations().detach().numpy() == pytest.approx(
        surrogate.representations(), abs=1e-8
    )
    single = Surrogate(small_graph(), config, seed=5)
    single.train(3)
    assert single.embeddings.dtype == np.float32
    if passing is None:  # a threshold turns rounding into jumps
        assert np.abs(single.embeddings - surrogate.embeddings).max() < 2e-3


def test_the_identity_of_torch_passes_gradients_and_leaves_scores_alone() -> None:
    graph = small_graph()
    rng = np.random.default_rng(0)
    rows = torch.tensor(rng.normal(size=(graph.n_rows, 4)), requires_grad=True)
    weights = torch.tensor(rng.normal(size=(graph.n_rows, 4)))
    passed = passing_identity(rows, graph, GradientPassing())
    assert torch.equal(passed, rows)
    (passed * weights).sum().backward()  # type: ignore[no-untyped-call]
    expected = pass_gradient(weights.numpy(), rows.detach().numpy(), graph, GradientPassing())
    assert rows.grad is not None
    assert rows.grad.numpy() == pytest.approx(expected)


def test_draws_are_uniform_over_users_with_items_and_negatives_are_not_theirs() -> None:
    graph = small_graph()
    surrogate = Surrogate(graph, SMALL, seed=1)
    users, positives, negatives = surrogate.draw(0, 40_000)
    has = np.zeros((graph.n_users, graph.n_items), dtype=np.bool_)
    has[np.repeat(np.arange(graph.n_users), np.diff(graph.indptr)), graph.items] = True
    assert has[users, positives].all()
    assert not has[users[:, None], negatives].any()
    active = np.flatnonzero(has.any(axis=1))
    counts = np.bincount(users, minlength=graph.n_users)[active]
    assert np.abs(counts / 40_000 - 1 / len(active)).max() < 5 * (1 / len(active) / 40_000) ** 0.5
    one = users == active[0]
    own = np.bincount(positives[one], minlength=graph.n_items)[has[active[0]]]
    assert own.min() > 0.7 * own.mean()
    others = np.bincount(negatives[one].ravel(), minlength=graph.n_items)[~has[active[0]]]
    assert others.min() > 0.7 * others.mean()


def test_draws_depend_on_seed_and_epoch_and_not_on_the_batch() -> None:
    surrogate = Surrogate(small_graph(), SMALL, seed=1)
    users, positives, negatives = surrogate.draw(0, 100)
    part = surrogate.draw(60, 40)
    for whole, some in zip((users, positives, negatives), part, strict=True):
        assert np.array_equal(whole[60:], some)
    assert not np.array_equal(users, Surrogate(small_graph(), SMALL, seed=2).draw(0, 100)[0])
    surrogate.train_epoch()
    assert not np.array_equal(users, surrogate.draw(0, 100)[0])


def test_an_epoch_has_as_many_draws_as_the_graph_has_pairs() -> None:
    graph = small_graph()
    assert Surrogate(graph, SMALL).epoch_draws()[0] == graph.n_edges


def test_the_sampling_strategy_draws_fewer_genuine_users() -> None:
    graph = small_graph()
    surrogate = Surrogate(graph, replace(SMALL, genuine_rate=0.1), seed=3)
    n_clicks = int(graph.indptr[graph.n_genuine])
    n_genuine = int((np.diff(graph.indptr[: graph.n_genuine + 1]) > 0).sum())
    n_draws, share = surrogate.epoch_draws()
    assert n_draws == 5 + int(0.1 * n_clicks)
    assert share == pytest.approx(0.1 * n_genuine / (0.1 * n_genuine + 2))
    users, _, _ = surrogate.draw(0, 20_000)
    assert (users < graph.n_genuine).mean() == pytest.approx(share, abs=0.02)


def test_equal_seeds_train_equally_and_others_differ() -> None:
    a, b, c = (Surrogate(small_graph(), SMALL, seed=seed) for seed in (7, 7, 8))
    for surrogate in (a, b, c):
        surrogate.train(2)
    assert np.array_equal(a.embeddings, b.embeddings)
    assert np.abs(a.embeddings - c.embeddings).max() > 0.01


def checkerboard() -> InteractionGraph:
    """Users and items of two colours; who has one item fewer than its colour has is to be shown that one."""
    users, items = np.divmod(np.arange(16 * 16), 16)
    keep = (users % 2 == items % 2) & (users != items)
    return InteractionGraph.of(Interactions(users[keep], items[keep], 16, 16))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("passing", [None, GradientPassing()])
def test_they_learn_the_checkerboard(
    model: Model, loss: Loss, passing: GradientPassing | None
) -> None:
    graph = checkerboard()
    config = SurrogateConfig(
        model=model,
        loss=loss,
        embedding_size=4,
        batch_size=16,
        reg=1e-4,
        passing=passing,
        learning_rate=0.02,
    )
    surrogate = Surrogate(graph, config)
    before = surrogate.train(1)
    assert surrogate.train(60) < before
    shown = surrogate.lists(np.arange(16), 1, hidden=graph)[:, 0]
    assert (shown % 2 == np.arange(16) % 2).mean() > 0.9


def test_a_first_epoch_with_passing_is_nearer_to_the_trained_lists() -> None:
    # the paper's claim (JS@50 after an epoch), on the checkerboard's larger brother
    rng = np.random.default_rng(0)
    taste = rng.integers(4, size=200)
    users = np.repeat(np.arange(200), 10)
    items = taste[users] * 15 + rng.integers(15, size=2000)
    graph = InteractionGraph.of(Interactions(users, items, 200, 60))

    def share_of_own_taste(passing: GradientPassing | None) -> float:
        surrogate = Surrogate(graph, SurrogateConfig(passing=passing, batch_size=256))
        surrogate.train_epoch()
        shown = surrogate.lists(np.arange(200), 5, hidden=graph)
        return float((shown // 15 == taste[:, None]).mean())

    assert share_of_own_taste(GradientPassing()) > share_of_own_taste(None) + 0.1


def test_lists_are_those_of_sorting_and_hide_what_is_hidden() -> None:
    graph = small_graph()
    surrogate = Surrogate(graph, SMALL)
    users = np.arange(graph.n_users)
    scores = surrogate.scores(users)
    assert np.array_equal(surrogate.lists(users, 4), np.argsort(-scores, kind="stable")[:, :4])
    shown = surrogate.lists(users, graph.n_items, hidden=graph)
    for user in users:
        own = graph.items[graph.indptr[user] : graph.indptr[user + 1]]
        assert not set(own) & set(shown[user])
        assert (shown[user] == -1).sum() == len(own)


def test_passing_at_a_rate_is_between_never_and_always() -> None:
    def passed(rate: float) -> float:
        config = replace(SMALL, passing=GradientPassing(), passing_rate=rate)
        surrogate = Surrogate(small_graph(), config, dtype=np.float64)
        n_changed = 0
        for step in range(400):
            surrogate.n_steps = step
            gradient = np.ones_like(surrogate.embeddings)
            n_changed += bool((surrogate.passed(gradient, surrogate.embeddings) != 1.0).any())
        return n_changed / 400

    assert passed(0.0) == 0.0
    assert passed(1.0) == 1.0
    assert passed(0.25) == pytest.approx(0.25, abs=0.08)


def test_pretrained_rows_are_taken_over_and_those_of_fake_users_are_random() -> None:
    log = random_log(25, 15, 150)
    clean = Surrogate(InteractionGraph.of(log), SMALL, seed=1)
    clean.train(2)
    graph = InteractionGraph.of(log, [np.array([1]), np.array([2])])
    initial = embeddings_of(clean, graph, seed=9)
    assert np.array_equal(initial[:25], clean.embeddings[:25])
    assert np.array_equal(initial[27:], clean.embeddings[25:])
    assert np.array_equal(initial[25:27], Surrogate(graph, SMALL, seed=9).embeddings[25:27])
    with pytest.raises(ArgumentError, match="graph must have the 25 users and 15 items"):
        embeddings_of(clean, small_graph(), seed=9)


def test_divergence_is_said() -> None:
    surrogate = Surrogate(small_graph(), replace(SMALL, learning_rate=1e30))
    with pytest.raises(StateError, match="the surrogate diverged"):
        surrogate.train(20)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("model", "neumf"), ("loss", "hinge"), ("embedding_size", 0), ("learning_rate", 0.0), ("reg", -1.0),
        ("genuine_rate", 0.0), ("passing_rate", 1.5), ("n_layers", -1),
    ],
)  # fmt: skip
def test_settings_are_checked(setting: str, value: object) -> None:
    with pytest.raises(ArgumentError, match=f"{setting} must be"):
        SurrogateConfig(**{setting: value})  # type: ignore[arg-type]  # the subject of the test


def test_arguments_are_checked() -> None:
    with pytest.raises(ArgumentError, match="initial must have shape"):
        Surrogate(small_graph(), SMALL, initial=np.zeros((2, 6), dtype=np.float32))
    with pytest.raises(ArgumentError, match="k must be at most the 18 items, got 19"):
        Surrogate(small_graph(), SMALL).lists(np.arange(3), 19)
