"""LightGCN-APR and LightGCN-PamaCF: gradients against autograd, limits, the engine against the plain path."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import softplus

from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.victims import (
    APR,
    CandidateLists,
    LightGCN,
    LightGCNAPR,
    LightGCNPamaCF,
    PamaCF,
    Victim,
)
from recattack_gym.victims.adversarial import COEFFICIENTS, Adversary, Coefficient, perturb_tensors
from recattack_gym.victims.adversarial_kernel import (
    Opponent,
    add_adversarial_pairs,
    fit_adversarial,
)
from recattack_gym.victims.apr_engine import LightGCNAdversarialEngine
from recattack_gym.victims.base import PlainEngine, Retrain
from recattack_gym.victims.factors import Factors

N_NEW = 3
TARGETS = [24, 25, 26]
SMALL: dict[str, object] = {
    "embedding_size": 8,
    "warm_start_epochs": 10,
    "epochs": 5,
    "learning_rate": 0.02,
    "batch_size": 64,
    "finetune_epochs": 10,
    "finetune_batch_size": 8,
}
MakeLists = Callable[..., CandidateLists]

both_kinds = pytest.mark.parametrize("kind", [LightGCNAPR, LightGCNPamaCF])


def attacks(log: Interactions, n: int, t: int, seed: int = 0) -> NDArray[np.int64]:
    """Return random clicks with targets among them, one target, a target beside the most popular item."""
    rng = np.random.default_rng(seed)
    new = rng.integers(log.n_items - N_NEW, log.n_items, (2, n, t))
    mixed = np.where(rng.random((2, n, t)) < 0.5, new, rng.integers(0, log.n_items, (2, n, t)))
    popular = int(log.item_popularity.argmax())
    beside = np.where(np.arange(n * t).reshape(n, t) % 2 == 0, log.n_items - 1, popular)
    return np.concatenate([mixed, np.full((1, n, t), log.n_items - 1), beside[None]])


def fitted(kind: type[Victim], log: Interactions, **settings: object) -> Victim:
    return kind({**SMALL, **settings}).fit(log, np.random.default_rng(3), n_new_items=N_NEW)


@pytest.mark.parametrize("coefficient", COEFFICIENTS)
def test_the_gradient_of_a_batch_equals_autograd(coefficient: Coefficient) -> None:
    rng = np.random.default_rng(0)
    n_users, n_items = 5, 7
    final = rng.standard_normal((n_items + n_users, 6)).astype(np.float32)
    users, items, others = (
        rng.integers(0, n, 12).astype(np.int32) for n in (n_users, n_items, n_items)
    )
    others = np.where(others == items, (items + 1) % n_items, others).astype(np.int32)
    adversary = Adversary(0.6, 2.0, 0.0, coefficient)
    usual = adversary.usual_size(final[n_items + users, :-1])
    table = torch.tensor(final.astype(np.float64), requires_grad=True)
    rows = [
        table[torch.from_numpy(ids.astype(np.int64))] for ids in (n_items + users, items, others)
    ]
    above = rows[0][:, -1] * (rows[1][:, -1] - rows[2][:, -1])
    p, q, r = (x[:, :-1] for x in rows)
    to_p, to_q, to_r = perturb_tensors(p, q, r, adversary, usual)
    clean = softplus(-(p * (q - r)).sum(dim=1) - above)
    pushed = softplus(-((p + to_p) * (q + to_q - r - to_r)).sum(dim=1) - above)
    ((clean + 2.0 * pushed) / 3.0).mean().backward()  # type: ignore[no-untyped-call]  # torch
    gradient = np.zeros_like(final)
    opponent = Opponent.of(adversary, final[n_items + users, :-1])
    add_adversarial_pairs(final, users, items, others, n_items, opponent, gradient)
    assert table.grad is not None
    np.testing.assert_allclose(gradient, table.grad.numpy(), atol=1e-6)


@both_kinds
@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_both_ways_of_clean_training_give_the_same_victim(
    kind: type[LightGCNAPR],
    n_layers: int,
    small_log: Interactions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"n_layers": n_layers, "batch_size": 32, "reg": 0.05}
    compiled = fitted(kind, small_log, **settings)
    monkeypatch.setattr(kind, "_train_compiled", kind._train)  # autograd
    plain = fitted(kind, small_log, **settings)
    start = fitted(kind, small_log, **settings, epochs=0)
    moved = np.abs(plain.state["embeddings"] - start.state["embeddings"]).max()
    assert moved > 0.05
    np.testing.assert_allclose(
        compiled.state["embeddings"], plain.state["embeddings"], atol=2e-3 * moved
    )


@both_kinds
@pytest.mark.parametrize("idle", [{"eps": 0.0}, {"adv_reg": 0.0}], ids=str)
def test_without_an_adversary_the_victim_is_lightgcn_bit_for_bit(
    kind: type[Victim], idle: dict[str, object], small_log: Interactions, make_lists: MakeLists
) -> None:
    robust, plain = fitted(kind, small_log, **idle), fitted(LightGCN, small_log)
    np.testing.assert_array_equal(robust.state["embeddings"], plain.state["embeddings"])
    profiles = attacks(small_log, 3, 4)
    retrains: tuple[Retrain, ...] = ("finetune", "full")
    for retrain in retrains:
        first, second = (v.poisoned(profiles[0], 2, retrain).state for v in (robust, plain))
        np.testing.assert_array_equal(first["embeddings"], second["embeddings"])
    lists = make_lists(small_log, TARGETS)
    engine = robust.engine(lists)
    assert not isinstance(engine, LightGCNAdversarialEngine)
    np.testing.assert_array_equal(
        engine.exposure(profiles, 4), plain.engine(lists).exposure(profiles, 4)
    )


def test_uniform_coefficients_make_pamacf_apr_bit_for_bit_on_the_graph(
    small_log: Interactions,
) -> None:
    # The warm starts differ in their penalty.
    graph: dict[str, object] = {"warm_start_epochs": 0, "eps": 0.3}
    apr = fitted(LightGCNAPR, small_log, **graph).state["embeddings"]
    uniform = fitted(LightGCNPamaCF, small_log, **graph, coefficient="uniform")
    np.testing.assert_array_equal(uniform.state["embeddings"], apr)
    squared = fitted(LightGCNPamaCF, small_log, **graph)
    plain = fitted(LightGCN, small_log, warm_start_epochs=0)
    for other in (squared, plain):
        assert np.abs(other.state["embeddings"] - apr).max() > 1e-3


@both_kinds
def test_each_part_of_training_meets_the_adversary(
    kind: type[Victim], small_log: Interactions
) -> None:
    start, graph = ({"epochs": 0}, {"warm_start_epochs": 0})
    for settings in (start, graph):
        with_it = fitted(kind, small_log, **settings).state["embeddings"]
        stronger = fitted(kind, small_log, **settings, eps=0.6).state["embeddings"]
        assert np.abs(with_it - stronger).max() > 1e-3


@pytest.mark.parametrize(("kind", "of_factors"), [(LightGCNAPR, APR), (LightGCNPamaCF, PamaCF)])
def test_the_warm_start_and_fine_tuning_have_the_factor_victims_settings(
    kind: type[LightGCNAPR], of_factors: type[APR], small_log: Interactions
) -> None:
    victim, config = kind(SMALL), of_factors().config
    victim.fit(small_log, np.random.default_rng(3), n_new_items=N_NEW)
    found, expected = (Factors.draw(small_log, 7, 0.1, np.random.default_rng(0)) for _ in range(2))
    victim._fit_factors(found, small_log, 5)
    fit_adversarial(
        expected,
        small_log,
        Adversary(config.eps, config.adv_reg, config.plain_share, victim._coefficient),
        n_negative_items=small_log.n_items - N_NEW,
        popular_negatives=config.popular_negatives,
        epochs=10,
        learning_rate=config.learning_rate,
        reg=config.reg,
        seed=5,
    )
    for name, array in expected.as_state().items():
        np.testing.assert_array_equal(found.as_state()[name], array, err_msg=name)
    assert victim._bpr_config.reg == config.reg


@both_kinds
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"finetune_batch_size": 3, "embedding_size": 5, "adv_reg": 4.0, "n_layers": 4},
        {"finetune_replay": 4.0, "plain_share": 0.0},
        {"plain_share": 1.0, "new_items_as_negatives": True},
        {"finetune_epochs": 0},
    ],
    ids=str,
)
def test_compiled_fine_tuning_equals_the_plain_path(
    kind: type[LightGCNAPR],
    settings: dict[str, object],
    small_log: Interactions,
    make_lists: MakeLists,
) -> None:
    victim = kind({**SMALL, **settings})
    victim.fit(small_log, np.random.default_rng(3), n_new_items=N_NEW)
    engine = victim.engine(make_lists(small_log, TARGETS))
    assert isinstance(engine, LightGCNAdversarialEngine)
    for profile in attacks(small_log, 3, 4):
        fast = engine.factors_after(profile, 5)
        final = victim.poisoned(profile, 5, "finetune")._propagated()
        np.testing.assert_allclose(np.concatenate([fast.items, fast.users]), final, atol=2e-4)


def test_the_adversary_takes_part_in_fine_tuning(
    small_log: Interactions, make_lists: MakeLists
) -> None:
    victim = fitted(LightGCNAPR, small_log)
    strong = LightGCNAPR({**SMALL, "eps": 1.0})
    profile = attacks(small_log, 3, 5)[2]
    lists = make_lists(small_log, TARGETS)
    engine = victim.engine(lists)
    assert isinstance(engine, LightGCNAdversarialEngine)
    weak_fakes = engine.factors_after(profile, 1).users[-3:]
    engine._opponent = Opponent.of(strong._adversary, engine._factors.users)
    assert np.abs(engine.factors_after(profile, 1).users[-3:] - weak_fakes).max() > 0.01


def test_an_odd_number_of_layers_has_the_plain_engine_alone(
    small_log: Interactions, make_lists: MakeLists
) -> None:
    victim = fitted(LightGCNAPR, small_log, n_layers=3)
    assert isinstance(victim.engine(make_lists(small_log, TARGETS)), PlainEngine)


def test_a_setting_of_the_adversary_is_checked() -> None:
    for settings in ({"eps": -1.0}, {"adv_reg": -1.0}, {"plain_share": 2.0}):
        (name,) = settings
        with pytest.raises(ArgumentError, match=name):
            LightGCNPamaCF(settings)
    with pytest.raises(ArgumentError, match="coefficient must be one of"):
        LightGCNPamaCF({"coefficient": "cubed"})
