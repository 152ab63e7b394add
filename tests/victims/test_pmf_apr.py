"""PMF-APR and -PamaCF: steps by hand, the limit that is PMF, and the engine against the plain path."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.datasets import load
from recattack_gym.metrics import hr_at_k, ndcg_at_k
from recattack_gym.victims import PMF, PMFAPR, CandidateLists, PMFPamaCF, Victim
from recattack_gym.victims.adversarial import Adversary, Coefficient, coefficients
from recattack_gym.victims.adversarial_points import perturb_points
from recattack_gym.victims.base import Retrain
from recattack_gym.victims.epochs import NEGATIVES, visit_order
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.kernels import compiled, draw_negative, stream_key
from recattack_gym.victims.mf_engine import FactorEngine
from recattack_gym.victims.mf_kernel import fit_pmf
from recattack_gym.victims.pmf_apr_engine import AdversarialPointsEngine
from recattack_gym.victims.pmf_apr_kernel import fit_adversarial_points

N_NEW = 3
LIVELY: dict[str, object] = {
    "embedding_size": 6,
    "epochs": 6,
    "finetune_epochs": 6,
    "finetune_batch_size": 8,
    "n_negatives": 2,
    "initial_scale": 0.5,
}
KINDS = [PMFAPR, PMFPamaCF]


def fitted(kind: type[Victim], log: Interactions, **settings: object) -> Victim:
    return kind({**LIVELY, **settings}).fit(log, np.random.default_rng(3), n_new_items=N_NEW)


def attacks(log: Interactions, n: int, t: int) -> NDArray[np.int64]:
    """Return random clicks with targets among them, one target, a target beside the most popular item."""
    rng = np.random.default_rng(0)
    new = rng.integers(log.n_items - N_NEW, log.n_items, (2, n, t))
    mixed = np.where(rng.random((2, n, t)) < 0.5, new, rng.integers(0, log.n_items, (2, n, t)))
    popular = int(log.item_popularity.argmax())
    beside = np.where(np.arange(n * t).reshape(n, t) % 2 == 0, log.n_items - 1, popular)
    return np.concatenate([mixed, np.full((1, n, t), log.n_items - 1), beside[None]])


def assert_same(first: Victim, second: Victim) -> None:
    for name, array in first.state.items():
        np.testing.assert_array_equal(array, second.state[name], err_msg=name)


def share_of(
    norm: np.floating[Any], coefficient: Coefficient, norms: NDArray[np.floating[Any]]
) -> float:
    """A user's share of eps, whose embedding has this norm, among users with those."""
    mean = float(np.mean(norms**2 if coefficient == "squared" else norms))
    return float(coefficients(np.array([norm]), coefficient, mean=mean)[0])


@pytest.mark.parametrize("coefficient", ["uniform", "squared", "relative", "absolute"])
def test_clean_training_is_the_update_visited_pair_by_pair(coefficient: Coefficient) -> None:
    # Every user has seen two of three items: the negatives are known without repeating the draws
    log = Interactions(
        np.array([0, 0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 1, 2, 2, 0]), n_users=3, n_items=5
    )
    unseen = [2, 0, 1]
    factors = Factors.draw(log, 4, 0.5, np.random.default_rng(0))
    users, items = factors.users.astype(np.float64), factors.items.astype(np.float64)
    rate, reg, eps, adv_reg = 0.1, 0.02, 0.2, 3.0
    for epoch in range(4):
        everyone = np.linalg.norm(users, axis=1)
        for event in visit_order(7, epoch, len(log)):
            user = log.user_ids[event]
            for item, target in ((log.item_ids[event], 1.0), *[(unseen[user], 0.0)] * 2):
                p, q = users[user].copy(), items[item].copy()
                error = target - p @ q
                to_p, to_q = error * q, error * p
                if epoch >= 2:
                    own = eps * share_of(np.linalg.norm(p), coefficient, everyone)
                    p2 = p - own * np.sign(error) * q / np.linalg.norm(q)
                    q2 = q - own * np.sign(error) * p / np.linalg.norm(p)
                    pushed = target - p2 @ q2
                    to_p = (to_p + adv_reg * pushed * q2) / (1.0 + adv_reg)
                    to_q = (to_q + adv_reg * pushed * p2) / (1.0 + adv_reg)
                users[user] += rate * (to_p - reg * p)
                items[item] += rate * (to_q - reg * q)
    fit_adversarial_points(
        factors,
        log,
        Adversary(eps, adv_reg, 0.5, coefficient),
        n_negative_items=3,
        n_negatives=2,
        epochs=4,
        learning_rate=rate,
        reg=reg,
        seed=7,
    )
    np.testing.assert_allclose(factors.users, users, rtol=0, atol=2e-5)
    np.testing.assert_allclose(factors.items, items, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("idle", [{"eps": 0.0}, {"adv_reg": 0.0}, {"plain_share": 1.0}], ids=str)
def test_without_an_adversary_the_victim_is_pmf_bit_for_bit(
    kind: type[Victim],
    idle: dict[str, object],
    small_log: Interactions,
    make_lists: Callable[..., CandidateLists],
) -> None:
    robust, plain = fitted(kind, small_log, **idle), fitted(PMF, small_log)
    assert_same(robust, plain)
    if "plain_share" in idle:
        return
    profile = np.random.default_rng(2).integers(0, small_log.n_items, (3, 5))
    retrains: tuple[Retrain, ...] = ("finetune", "full")
    for retrain in retrains:
        assert_same(robust.poisoned(profile, 4, retrain), plain.poisoned(profile, 4, retrain))
    lists = make_lists(small_log, [24, 25, 26])
    assert type(robust.engine(lists)) is type(plain.engine(lists)) is FactorEngine
    assert type(fitted(kind, small_log).engine(lists)) is AdversarialPointsEngine


def test_uniform_coefficients_make_pamacf_apr_bit_for_bit(small_log: Interactions) -> None:
    apr, uniform = fitted(PMFAPR, small_log), fitted(PMFPamaCF, small_log, coefficient="uniform")
    assert_same(uniform, apr)
    profile = attacks(small_log, 3, 5)[0]
    assert_same(uniform.poisoned(profile, 1, "finetune"), apr.poisoned(profile, 1, "finetune"))
    squared = fitted(PMFPamaCF, small_log)
    assert np.abs(squared.state["users"] - apr.state["users"]).max() > 1e-4


def finetuned_by_hand(
    victim: PMFAPR, log: Interactions, profile: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One example, one pair at a time: gradients of a batch are summed, then items scaled by their share."""
    from recattack_gym.victims.schedule import fake_share

    config = victim.config
    schedule = victim._schedule(log, (len(profile), profile.shape[1]), seed)
    indptr = schedule.updates.batch_indptr
    start = Factors(*(victim.state[name].astype(np.float32) for name in ("users", "items", "bias")))
    clean_norms = np.linalg.norm(start.users.astype(np.float64), axis=1)
    start.add_fake_users(len(profile), seed, config.initial_scale)
    users, items = start.users.astype(np.float64), start.items.astype(np.float64)
    share = fake_share(log, profile).astype(np.float64)
    user_ids, item_ids, negatives = schedule.examples(log, profile)
    n_plain = round(0.5 * config.finetune_epochs) * ((len(indptr) - 1) // config.finetune_epochs)
    for batch, (first, last) in enumerate(pairwise(indptr)):
        to_users, to_items = np.zeros_like(users), np.zeros_like(items)
        for s in range(first, last):
            pairs = [(item_ids[s], 1.0), *((other, 0.0) for other in negatives[s])]
            for item, target in pairs:
                p, q = users[user_ids[s]], items[item]
                error = target - p @ q
                down_p, down_q = -error * q, -error * p
                if batch >= n_plain:
                    kind = victim._adversary.coefficient
                    own = config.eps * share_of(np.linalg.norm(p), kind, clean_norms)
                    p2 = p - own * np.sign(error) * q / np.linalg.norm(q)
                    q2 = q - own * np.sign(error) * p / np.linalg.norm(p)
                    pushed = target - p2 @ q2
                    down_p = (down_p - config.adv_reg * pushed * q2) / (1.0 + config.adv_reg)
                    down_q = (down_q - config.adv_reg * pushed * p2) / (1.0 + config.adv_reg)
                to_users[user_ids[s]] += down_p + config.reg * p
                to_items[item] += down_q + config.reg * q
        users -= config.finetune_learning_rate * to_users
        items -= config.finetune_learning_rate * share[:, None] * to_items
    return users, items


@pytest.mark.parametrize("kind", KINDS)
def test_finetuning_takes_the_steps_that_loops_take(
    kind: type[Victim], small_log: Interactions
) -> None:
    victim = fitted(kind, small_log, eps=0.1, adv_reg=2.0, reg=0.05)
    assert isinstance(victim, PMFAPR)
    profile = np.random.default_rng(2).integers(0, small_log.n_items, (3, 5))
    poisoned = victim.poisoned(profile, 4, "finetune")
    users, items = finetuned_by_hand(victim, small_log, profile, 4)
    np.testing.assert_allclose(poisoned.state["users"], users, rtol=0, atol=1e-5)
    np.testing.assert_allclose(poisoned.state["items"], items, rtol=0, atol=1e-5)
    plain = fitted(PMF, small_log, reg=0.05).poisoned(profile, 4, "finetune")
    assert np.abs(poisoned.state["items"] - plain.state["items"]).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"eps": 0.4, "finetune_batch_size": 3, "embedding_size": 5, "adv_reg": 4.0},
        {"plain_share": 0.0, "reg": 0.1},
        {"new_items_as_negatives": True, "finetune_replay": 3.0, "n_negatives": 1},
        {"plain_share": 1.0},
        {"finetune_epochs": 0},
        {"finetune_epochs": 1},
    ],
    ids=str,
)
def test_compiled_fine_tuning_equals_the_plain_path(
    kind: type[Victim],
    settings: dict[str, object],
    small_log: Interactions,
    make_lists: Callable[..., CandidateLists],
) -> None:
    victim = fitted(kind, small_log, **settings)
    engine = victim.engine(make_lists(small_log, [24, 25, 26]))
    assert isinstance(engine, AdversarialPointsEngine)
    for profile in attacks(small_log, 3, 4):
        fast = engine.factors_after(profile, 5).as_state()
        slow = victim.poisoned(profile, 5, "finetune").state
        for name, expected in slow.items():
            np.testing.assert_allclose(fast[name], expected, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("coefficient", ["relative", "absolute"])
def test_compiled_fine_tuning_has_the_papers_coefficients(
    coefficient: Coefficient, small_log: Interactions, make_lists: Callable[..., CandidateLists]
) -> None:
    victim = fitted(PMFPamaCF, small_log, eps=0.4, coefficient=coefficient)
    engine = victim.engine(make_lists(small_log, [24, 25, 26]))
    assert isinstance(engine, AdversarialPointsEngine)
    profile = attacks(small_log, 3, 4)[0]
    fast, slow = engine.factors_after(profile, 5), victim.poisoned(profile, 5, "finetune").state
    np.testing.assert_allclose(fast.items, slow["items"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(fast.users, slow["users"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_fine_tuning_is_repeatable_and_leaves_the_clean_state(
    kind: type[Victim], small_log: Interactions, make_lists: Callable[..., CandidateLists]
) -> None:
    victim = fitted(kind, small_log)
    before, profiles = victim.state, attacks(small_log, 3, 5)
    lists = make_lists(small_log, [24, 25, 26])
    engine = victim.engine(lists)
    counts = engine.exposure(profiles, 4)
    first, second = (victim.poisoned(profiles[0], 4, "finetune") for _ in range(2))
    assert_same(first, second)
    np.testing.assert_array_equal(engine.exposure(profiles[::-1], 4), counts[::-1])
    plain = victim.engine(lists, backend="plain")
    np.testing.assert_array_equal(plain.exposure(profiles, 4), counts)
    for name, array in victim.state.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


@compiled
def epoch_without_coefficients(
    users: NDArray[np.float32],
    items: NDArray[np.float32],
    user_ids: NDArray[np.int64],
    item_ids: NDArray[np.int64],
    order: NDArray[np.int64],
    indptr: NDArray[np.int64],
    seen: NDArray[np.int32],
    n_negatives: int,
    seed: int,
    stream: int,
    numbers: NDArray[np.float32],
) -> None:
    """PMF-APR's epoch of before there was PMF-PamaCF; `numbers` are rate, penalty, eps and weight."""
    zero, tiny = np.float32(0.0), np.float32(1e-30)
    rate, shrink, length, pushed = numbers[0], numbers[1], numbers[2], numbers[3]
    clean = np.float32(1.0) - pushed
    key = stream_key(seed, stream)
    for event in order:
        user = user_ids[event]
        p = users[user]
        for j in range(n_negatives + 1):
            item = item_ids[event]
            target = np.float32(1.0)
            if j > 0:
                place = event * n_negatives + j - 1
                item = draw_negative(indptr, seen, user, place, key, len(items), item_ids, 0.0)
                target = zero
            q = items[item]
            product, of_p, of_q = zero, tiny, tiny
            for d in range(len(p)):
                product += p[d] * q[d]
                of_p += p[d] * p[d]
                of_q += q[d] * q[d]
            error = target - product
            sign = np.float32(np.sign(error))
            a, b = sign * length / np.sqrt(of_p), sign * length / np.sqrt(of_q)
            moved = error + a * of_p + b * of_q - a * b * product
            both = clean * error + pushed * moved
            for d in range(len(p)):
                x, y = p[d], q[d]
                p[d] = x + rate * (both * y - pushed * moved * a * x - shrink * x)
                q[d] = y + rate * (both * x - pushed * moved * b * y - shrink * y)


def test_coefficients_have_not_changed_a_bit_of_pmf_apr(small_log: Interactions) -> None:
    old, new = (Factors.draw(small_log, 64, 0.3, np.random.default_rng(0)) for _ in range(2))
    rate, reg, adversary = 0.02, 0.015, Adversary(0.05, 1.0, 0.5)
    options = {"n_negative_items": small_log.n_items, "n_negatives": 4, "seed": 9}
    fit_pmf(old, small_log, epochs=10, learning_rate=rate, reg=reg, **options)
    for epoch in range(10, 20):
        epoch_without_coefficients(
            old.users,
            old.items,
            small_log.user_ids,
            small_log.item_ids,
            visit_order(9, epoch, len(small_log)),
            *small_log.seen,
            4,
            9,
            NEGATIVES + epoch,
            np.array([rate, reg, adversary.eps, adversary.weight], dtype=np.float32),
        )
    fit_adversarial_points(
        new, small_log, adversary, epochs=20, learning_rate=rate, reg=reg, **options
    )
    np.testing.assert_array_equal(new.users, old.users)
    np.testing.assert_array_equal(new.items, old.items)


@pytest.mark.parametrize("kind", KINDS)
def test_a_robust_victim_recommends_about_as_well_as_pmf(kind: type[Victim]) -> None:
    split = load("synthetic").split
    users = np.arange(split.train.n_users)
    plain, robust = (
        each().fit(split.train, np.random.default_rng(0)).recommend(users, 10)
        for each in (PMF, kind)
    )
    for measure in (hr_at_k, ndcg_at_k):
        expected = measure(plain, split.validation_items)
        assert measure(robust, split.validation_items) > 0.9 * expected


@pytest.mark.parametrize("robust", KINDS)
def test_a_perturbation_costs_it_less_than_pmf(
    robust: type[Victim], small_log: Interactions
) -> None:
    """What the adversary is for: the squared error after the worst perturbation of its length."""
    after = {}
    for kind, more in ((PMF, {}), (robust, {"eps": 0.15})):
        victim = fitted(kind, small_log, epochs=120, **more)
        users, items = (torch.tensor(victim.state[name]) for name in ("users", "items"))
        p = users[torch.tensor(small_log.user_ids)][:, None]
        q = items[torch.tensor(small_log.item_ids)][:, None]
        to_p, to_q = perturb_points(p, q, -torch.sign(1.0 - (p * q).sum(dim=2)), 0.15)
        clean, pushed = (
            float(((1.0 - (x * y).sum(dim=2)) ** 2).mean())
            for x, y in ((p, q), (p + to_p, q + to_q))
        )
        after[kind] = pushed - clean
    assert after[robust] < after[PMF]


@pytest.mark.parametrize("setting", [{"eps": -0.1}, {"adv_reg": -1}, {"plain_share": 1.1}], ids=str)
def test_settings_out_of_range_are_refused(setting: dict[str, object]) -> None:
    for kind in KINDS:
        with pytest.raises(ArgumentError, match=f"{next(iter(setting))} must be a finite number"):
            kind(setting)
    with pytest.raises(ArgumentError, match=r"coefficient must be one of .*squared.*'cubed'"):
        PMFPamaCF({"coefficient": "cubed"})
