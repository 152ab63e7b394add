"""APR and PamaCF: steps by hand, limits that are BPR, and the compiled engine against the plain path."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.datasets import load
from recattack_gym.metrics import hr_at_k
from recattack_gym.simulator import PlatformSimulator
from recattack_gym.victims import APR, BPR, CandidateLists, PamaCF, Victim
from recattack_gym.victims.adversarial import (
    Adversary,
    Coefficient,
    Triples,
    bpr_loss,
    coefficients,
    perturb_rows,
    perturb_samples,
    triple_margins,
)
from recattack_gym.victims.adversarial_kernel import fit_adversarial
from recattack_gym.victims.apr_engine import AdversarialEngine
from recattack_gym.victims.base import Retrain
from recattack_gym.victims.epochs import visit_order
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.mf_engine import FactorEngine

N_NEW = 3
TARGETS = [24, 25, 26]
LIVELY: dict[str, object] = {
    "embedding_size": 6,
    "epochs": 6,
    "eps": 0.2,
    "finetune_epochs": 6,
    "finetune_batch_size": 8,
}

MakeLists = Callable[..., CandidateLists]


def attacks(log: Interactions, n: int, t: int, seed: int = 0) -> NDArray[np.int64]:
    """Return random clicks with targets among them, one target, a target beside the most popular item."""
    rng = np.random.default_rng(seed)
    new = rng.integers(log.n_items - N_NEW, log.n_items, (2, n, t))
    mixed = np.where(rng.random((2, n, t)) < 0.5, new, rng.integers(0, log.n_items, (2, n, t)))
    popular = int(log.item_popularity.argmax())
    beside = np.where(np.arange(n * t).reshape(n, t) % 2 == 0, log.n_items - 1, popular)
    return np.concatenate([mixed, np.full((1, n, t), log.n_items - 1), beside[None]])


def fitted(kind: type[Victim], log: Interactions, **settings: object) -> Victim:
    return kind({**LIVELY, **settings}).fit(log, np.random.default_rng(3), n_new_items=N_NEW)


def assert_same(first: Victim, second: Victim) -> None:
    expected = second.state
    for name, array in first.state.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


# -- clean training ------------------------------------------------------------------------------


@pytest.mark.parametrize("coefficient", ["uniform", "squared", "relative", "absolute"])
def test_clean_training_is_the_papers_update_visited_event_by_event(
    coefficient: Coefficient,
) -> None:
    # Every user has seen two of three items: the negative is known without repeating the draws.
    log = Interactions(
        np.array([0, 0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 1, 2, 2, 0]), n_users=3, n_items=5
    )
    unseen = np.array([2, 0, 1])
    factors = Factors.draw(log, 4, 0.5, np.random.default_rng(0))
    users, items = factors.users.astype(np.float64), factors.items.astype(np.float64)
    bias = factors.bias.astype(np.float64)
    rate, reg, eps, adv_reg = 0.1, 0.02, 0.4, 3.0
    for epoch in range(4):
        norms = np.linalg.norm(users, axis=1)
        mean = float(np.mean(norms**2 if coefficient == "squared" else norms))
        for event in visit_order(7, epoch, len(log)):
            user, item = log.user_ids[event], log.item_ids[event]
            other = unseen[user]
            p, q, r = users[user].copy(), items[item].copy(), items[other].copy()
            above = bias[item] - bias[other]
            pull = 1.0 / (1.0 + np.exp(p @ (q - r) + above))
            steps = [pull * (q - r), pull * p, -pull * p, pull]
            if epoch >= 2:
                own = coefficients(np.array([np.linalg.norm(p)]), coefficient, mean=mean)
                to_p, to_q, to_r = (
                    x[0] for x in perturb_samples(p[None], q[None], r[None], eps * own)
                )
                p2, q2, r2 = p + to_p, q + to_q, r + to_r
                pull2 = 1.0 / (1.0 + np.exp(p2 @ (q2 - r2) + above))
                pushed = [pull2 * (q2 - r2), pull2 * p2, -pull2 * p2, pull2]
                steps = [
                    (x + adv_reg * y) / (1.0 + adv_reg) for x, y in zip(steps, pushed, strict=True)
                ]
            users[user] += rate * (steps[0] - reg * p)
            items[item] += rate * (steps[1] - reg * q)
            items[other] += rate * (steps[2] - reg * r)
            bias[item] += rate * (steps[3] - reg * bias[item])
            bias[other] -= rate * (steps[3] + reg * bias[other])
    fit_adversarial(
        factors,
        log,
        Adversary(eps, adv_reg, 0.5, coefficient),
        n_negative_items=3,
        popular_negatives=0.0,
        epochs=4,
        learning_rate=rate,
        reg=reg,
        seed=7,
    )
    np.testing.assert_allclose(factors.users, users, rtol=0, atol=2e-5)
    np.testing.assert_allclose(factors.items, items, rtol=0, atol=2e-5)
    np.testing.assert_allclose(factors.bias, bias, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", [APR, PamaCF])
@pytest.mark.parametrize("idle", [{"eps": 0.0}, {"adv_reg": 0.0}, {"plain_share": 1.0}], ids=str)
def test_without_an_adversary_the_victim_is_bpr_bit_for_bit(
    kind: type[Victim], idle: dict[str, object], small_log: Interactions, make_lists: MakeLists
) -> None:
    robust = fitted(kind, small_log, reg=0.02, finetune_replay=1.5, **idle)
    settings = {**LIVELY, "reg": 0.02, "finetune_replay": 1.5}
    del settings["eps"]
    plain = BPR(settings).fit(small_log, np.random.default_rng(3), n_new_items=N_NEW)
    assert_same(robust, plain)
    profiles = attacks(small_log, 3, 5)
    retrains: tuple[Retrain, ...] = ("finetune", "full")
    for retrain in retrains:
        first, second = (victim.poisoned(profiles[0], 4, retrain) for victim in (robust, plain))
        if "plain_share" not in idle or retrain == "full":
            assert_same(first, second)
    lists = make_lists(small_log, TARGETS)
    np.testing.assert_array_equal(
        robust.engine(lists).exposure(profiles, 4), plain.engine(lists).exposure(profiles, 4)
    )


def test_uniform_coefficients_make_pamacf_apr_bit_for_bit(small_log: Interactions) -> None:
    apr = fitted(APR, small_log, reg=0.02)
    uniform = fitted(PamaCF, small_log, reg=0.02, coefficient="uniform")
    assert_same(uniform, apr)
    profile = attacks(small_log, 3, 5)[0]
    assert_same(uniform.poisoned(profile, 1, "finetune"), apr.poisoned(profile, 1, "finetune"))
    squared = fitted(PamaCF, small_log, reg=0.02)
    assert np.abs(squared.state["users"] - apr.state["users"]).max() > 1e-4


def test_a_vanishing_perturbation_leaves_bpr_as_losses_have_weights_that_sum_to_one(
    small_log: Interactions,
) -> None:
    nearly = fitted(APR, small_log, eps=1e-7, adv_reg=2.0, reg=0.02)
    plain = BPR({"embedding_size": 6, "epochs": 6, "reg": 0.02})
    plain.fit(small_log, np.random.default_rng(3), n_new_items=N_NEW)
    for name, array in nearly.state.items():
        np.testing.assert_allclose(array, plain.state[name], atol=1e-5, err_msg=name)


def test_rows_of_zeros_are_trained_without_a_perturbation_that_has_no_direction() -> None:
    log = Interactions(np.array([0, 1]), np.array([0, 1]), n_users=2, n_items=3)
    zeros = [np.zeros(shape, np.float32) for shape in ((2, 4), (3, 4), (3,))]
    factors = Factors(*zeros)
    fit_adversarial(
        factors,
        log,
        Adversary(0.5, 1.0, 0.0, "squared"),
        n_negative_items=3,
        popular_negatives=0.0,
        epochs=2,
        learning_rate=0.1,
        reg=0.0,
        seed=1,
    )
    assert all(np.isfinite(x).all() for x in factors.as_state().values())
    assert not factors.users.any()
    assert factors.bias.any()


@pytest.mark.parametrize("kind", [APR, PamaCF])
def test_the_loss_of_a_robust_victim_stays_lower_under_perturbation(kind: type[APR]) -> None:
    log = load("synthetic").split.train
    drawn = np.random.default_rng(1).integers(0, log.n_items, len(log))
    unseen = ~log.has(log.user_ids, drawn)
    triples = Triples(log.user_ids[unseen], log.item_ids[unseen], drawn[unseen])
    losses = []
    for each in (BPR, kind):
        state = each().fit(log, np.random.default_rng(0)).state
        users, items, bias = (state[name].astype(np.float64) for name in ("users", "items", "bias"))
        to_users, to_items = perturb_rows(users, items, triples, 0.5, bias=bias)
        margin = triple_margins(users + to_users, items + to_items, triples, bias=bias)
        losses.append(bpr_loss(margin).mean())
    assert losses[1] < 0.8 * losses[0]  # 0.16 of BPR; 0.10 and 0.12


@pytest.mark.parametrize("kind", [APR, PamaCF])
def test_a_robust_victim_recommends_about_as_well_as_bpr(kind: type[APR]) -> None:
    split = load("synthetic").split
    users = np.arange(split.train.n_users)
    plain, robust = (
        hr_at_k(
            each().fit(split.train, np.random.default_rng(0)).recommend(users, 10),
            split.validation_items,
        )
        for each in (BPR, kind)
    )
    assert robust > 0.85 * plain


# -- poison --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [APR, PamaCF])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"finetune_batch_size": 3, "embedding_size": 5, "adv_reg": 4.0},
        {"finetune_replay": 4.0, "plain_share": 0.0},
        {"new_items_as_negatives": True, "reg": 0.1},
        {"plain_share": 1.0},
        {"finetune_epochs": 0},
        {"finetune_epochs": 1},
    ],
    ids=str,
)
def test_compiled_fine_tuning_equals_the_plain_path(
    kind: type[Victim], settings: dict[str, object], small_log: Interactions, make_lists: MakeLists
) -> None:
    victim = fitted(kind, small_log, **settings)
    engine = victim.engine(make_lists(small_log, TARGETS))
    assert isinstance(engine, AdversarialEngine)
    for profile in attacks(small_log, 3, 4):
        fast = engine.factors_after(profile, 5).as_state()
        slow = victim.poisoned(profile, 5, "finetune").state
        for name, expected in slow.items():
            np.testing.assert_allclose(fast[name], expected, rtol=0, atol=1e-4, err_msg=name)


def test_the_adversary_takes_part_in_fine_tuning(
    small_log: Interactions, make_lists: MakeLists
) -> None:
    robust = APR({**LIVELY, "eps": 0.4}).fit(small_log, np.random.default_rng(3), n_new_items=N_NEW)
    profile = attacks(small_log, 3, 5)[2]
    lists = make_lists(small_log, TARGETS)
    engine = robust.engine(lists)
    plain = FactorEngine(robust._factors, lists, "pairs", robust.config, robust._schedule)
    assert isinstance(engine, AdversarialEngine)
    with_it, without = (x.factors_after(profile, 1).users[-3:] for x in (engine, plain))
    assert np.abs(with_it - without).max() > 0.01


def test_a_setting_of_the_adversary_is_checked() -> None:
    for settings in ({"eps": -1.0}, {"adv_reg": -1.0}, {"plain_share": 2.0}):
        (name,) = settings
        for kind in (APR, PamaCF):
            with pytest.raises(ArgumentError, match=name):
                kind(settings)
    with pytest.raises(ArgumentError, match="coefficient must be one of"):
        PamaCF({"coefficient": "cubed"})


def test_an_attack_helps_under_both_retrainings_on_a_generated_platform() -> None:
    platform = PlatformSimulator(load("synthetic"), "APR", targets=2, seed=1)
    targets, popular = platform.target_items, np.argsort(-platform.item_popularity)[:200]
    beside = np.where(np.arange(200) % 2 == 0, np.resize(targets, 200), popular)
    profiles = np.stack([beside.reshape(20, 10), popular.reshape(20, 10)])
    retrains: tuple[Retrain, ...] = ("finetune", "full")
    for retrain in retrains:
        attacked, idle = platform.rec_num(profiles, retrain=retrain)
        assert attacked > idle
