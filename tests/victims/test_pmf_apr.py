"""PMF-APR: perturbations against autograd, steps by hand, and the limit that is PMF."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.victims import PMF, PMFAPR, CandidateLists, Victim
from recattack_gym.victims.adversarial import Adversary
from recattack_gym.victims.base import PlainEngine, Retrain
from recattack_gym.victims.epochs import visit_order
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.pmf_apr import perturb_pairs
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


def fitted(kind: type[Victim], log: Interactions, **settings: object) -> Victim:
    return kind({**LIVELY, **settings}).fit(log, np.random.default_rng(3), n_new_items=N_NEW)


def assert_same(first: Victim, second: Victim) -> None:
    for name, array in first.state.items():
        np.testing.assert_array_equal(array, second.state[name], err_msg=name)


def test_perturbations_are_the_normalised_gradients_and_raise_the_loss() -> None:
    rng = np.random.default_rng(0)
    user, item = (torch.tensor(rng.standard_normal(shape)) for shape in ((5, 1, 4), (5, 3, 4)))
    target, eps = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), 0.3
    to_user, to_item = perturb_pairs(user, item, target, eps)
    p = user.expand(5, 3, 4).clone().requires_grad_()
    q = item.clone().requires_grad_()
    loss = 0.5 * (target - (p * q).sum(dim=2)) ** 2
    loss.sum().backward()  # type: ignore[no-untyped-call]  # torch has no annotation
    for rows, moved in ((p, to_user), (q, to_item)):
        assert rows.grad is not None
        wanted = eps * rows.grad / rows.grad.norm(dim=2, keepdim=True)
        torch.testing.assert_close(moved, wanted)
    error = target - (user * item).sum(dim=2)
    pushed = target - ((user + to_user) * (item + to_item)).sum(dim=2)
    norms = user.norm(dim=2) + item.norm(dim=2)
    cosine = (user * item).sum(dim=2) / (user.norm(dim=2) * item.norm(dim=2))
    torch.testing.assert_close(pushed, error + error.sign() * eps * norms - eps**2 * cosine)


def test_clean_training_is_the_update_visited_pair_by_pair() -> None:
    # Every user has seen two of three items: the negatives are known without repeating the draws
    log = Interactions(
        np.array([0, 0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 1, 2, 2, 0]), n_users=3, n_items=5
    )
    unseen = [2, 0, 1]
    factors = Factors.draw(log, 4, 0.5, np.random.default_rng(0))
    users, items = factors.users.astype(np.float64), factors.items.astype(np.float64)
    rate, reg, eps, adv_reg = 0.1, 0.02, 0.2, 3.0
    for epoch in range(4):
        for event in visit_order(7, epoch, len(log)):
            user = log.user_ids[event]
            for item, target in ((log.item_ids[event], 1.0), *[(unseen[user], 0.0)] * 2):
                p, q = users[user].copy(), items[item].copy()
                error = target - p @ q
                to_p, to_q = error * q, error * p
                if epoch >= 2:
                    p2 = p - eps * np.sign(error) * q / np.linalg.norm(q)
                    q2 = q - eps * np.sign(error) * p / np.linalg.norm(p)
                    pushed = target - p2 @ q2
                    to_p = (to_p + adv_reg * pushed * q2) / (1.0 + adv_reg)
                    to_q = (to_q + adv_reg * pushed * p2) / (1.0 + adv_reg)
                users[user] += rate * (to_p - reg * p)
                items[item] += rate * (to_q - reg * q)
    fit_adversarial_points(
        factors,
        log,
        Adversary(eps, adv_reg, 0.5),
        n_negative_items=3,
        n_negatives=2,
        epochs=4,
        learning_rate=rate,
        reg=reg,
        seed=7,
    )
    np.testing.assert_allclose(factors.users, users, rtol=0, atol=2e-5)
    np.testing.assert_allclose(factors.items, items, rtol=0, atol=2e-5)


@pytest.mark.parametrize("idle", [{"eps": 0.0}, {"adv_reg": 0.0}], ids=str)
def test_without_an_adversary_the_victim_is_pmf_bit_for_bit(
    idle: dict[str, object], small_log: Interactions, make_lists: Callable[..., CandidateLists]
) -> None:
    robust, plain = fitted(PMFAPR, small_log, **idle), fitted(PMF, small_log)
    assert_same(robust, plain)
    profile = np.random.default_rng(2).integers(0, small_log.n_items, (3, 5))
    retrains: tuple[Retrain, ...] = ("finetune", "full")
    for retrain in retrains:
        assert_same(robust.poisoned(profile, 4, retrain), plain.poisoned(profile, 4, retrain))
    lists = make_lists(small_log, [24, 25, 26])
    assert type(robust.engine(lists)) is type(plain.engine(lists)) is not PlainEngine
    assert type(fitted(PMFAPR, small_log).engine(lists)) is PlainEngine


def finetuned_by_hand(
    victim: PMFAPR, log: Interactions, profile: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One example, one pair at a time: gradients of a batch are summed, then items scaled by their share."""
    from recattack_gym.victims.schedule import fake_share

    config = victim.config
    schedule = victim._schedule(log, (len(profile), profile.shape[1]), seed)
    indptr = schedule.updates.batch_indptr
    start = Factors(*(victim.state[name].astype(np.float32) for name in ("users", "items", "bias")))
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
                    p2 = p - config.eps * np.sign(error) * q / np.linalg.norm(q)
                    q2 = q - config.eps * np.sign(error) * p / np.linalg.norm(p)
                    pushed = target - p2 @ q2
                    down_p = (down_p - config.adv_reg * pushed * q2) / (1.0 + config.adv_reg)
                    down_q = (down_q - config.adv_reg * pushed * p2) / (1.0 + config.adv_reg)
                to_users[user_ids[s]] += down_p + config.reg * p
                to_items[item] += down_q + config.reg * q
        users -= config.finetune_learning_rate * to_users
        items -= config.finetune_learning_rate * share[:, None] * to_items
    return users, items


def test_finetuning_takes_the_steps_that_loops_take(small_log: Interactions) -> None:
    victim = fitted(PMFAPR, small_log, eps=0.1, adv_reg=2.0, reg=0.05)
    assert isinstance(victim, PMFAPR)
    profile = np.random.default_rng(2).integers(0, small_log.n_items, (3, 5))
    poisoned = victim.poisoned(profile, 4, "finetune")
    users, items = finetuned_by_hand(victim, small_log, profile, 4)
    np.testing.assert_allclose(poisoned.state["users"], users, rtol=0, atol=1e-5)
    np.testing.assert_allclose(poisoned.state["items"], items, rtol=0, atol=1e-5)
    plain = fitted(PMF, small_log, reg=0.05).poisoned(profile, 4, "finetune")
    assert np.abs(poisoned.state["items"] - plain.state["items"]).max() > 1e-3


def test_a_perturbation_costs_it_less_than_pmf(small_log: Interactions) -> None:
    """What the adversary is for: the squared error after the worst perturbation of its length."""
    after = {}
    for kind, more in ((PMF, {}), (PMFAPR, {"eps": 0.15})):
        victim = fitted(kind, small_log, epochs=120, **more)
        users, items = (torch.tensor(victim.state[name]) for name in ("users", "items"))
        p = users[torch.tensor(small_log.user_ids)][:, None]
        q = items[torch.tensor(small_log.item_ids)][:, None]
        to_p, to_q = perturb_pairs(p, q, torch.ones(1), 0.15)
        clean, pushed = (
            float(((1.0 - (x * y).sum(dim=2)) ** 2).mean())
            for x, y in ((p, q), (p + to_p, q + to_q))
        )
        after[kind] = pushed - clean
    assert after[PMFAPR] < after[PMF]


@pytest.mark.parametrize("setting", [{"eps": -0.1}, {"adv_reg": -1}, {"plain_share": 1.1}], ids=str)
def test_settings_out_of_range_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(setting))):
        PMFAPR(setting)
