"""PMF: its formulas by hand, its clean training, and what it learns."""

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.core.random import counter_normal
from recattack_gym.datasets import load
from recattack_gym.metrics import hr_at_k, ndcg_at_k
from recattack_gym.victims import PMF, ItemPop, Victim
from recattack_gym.victims.epochs import visit_order
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.mf_kernel import fit_pmf
from recattack_gym.victims.schedule import INITIAL


def test_clean_training_is_the_papers_update_visited_event_by_event() -> None:
    # the user has seen two of three items: the negatives are known without repeating the draws
    log = Interactions(np.zeros(4, np.int64), np.array([0, 1, 0, 0]), n_users=2, n_items=11)
    factors = Factors.draw(log, 4, 0.5, np.random.default_rng(0))
    users, items = factors.users.astype(np.float64), factors.items.astype(np.float64)
    rate, reg = 0.1, 0.02
    for epoch in range(3):
        for event in visit_order(7, epoch, len(log)):
            for item, clicked in ((log.item_ids[event], 1.0), (2, 0.0), (2, 0.0)):
                p, q = users[0].copy(), items[item].copy()
                error = clicked - p @ q
                users[0] += rate * (error * q - reg * p)
                items[item] += rate * (error * p - reg * q)
    fit_pmf(
        factors,
        log,
        n_negative_items=3,
        n_negatives=2,
        epochs=3,
        learning_rate=rate,
        reg=reg,
        seed=7,
    )
    np.testing.assert_allclose(factors.users, users, rtol=0, atol=1e-5)
    np.testing.assert_allclose(factors.items, items, rtol=0, atol=1e-5)
    assert not factors.bias.any()


def test_a_finetuning_step_moves_fakes_and_clicked_items_against_the_gradient() -> None:
    rate, reg, n_negatives = 0.01, 0.05, 3
    rng = np.random.default_rng(1)
    clicks = np.concatenate([rng.permutation(9)[:3] for _ in range(6)])
    log = Interactions(np.repeat(np.arange(6), 3), clicks, n_users=6, n_items=11)
    settings: dict[str, object] = {
        "embedding_size": 3,
        "epochs": 2,
        "reg": reg,
        "n_negatives": n_negatives,
        "finetune_epochs": 1,
        "finetune_learning_rate": rate,
        "finetune_batch_size": 10_000,
        "new_items_as_negatives": True,
    }
    victim = PMF(settings).fit(log, np.random.default_rng(0), n_new_items=2)
    profile = np.array([[9, 2], [10, 9]])
    clean, after = victim.state, victim.poisoned(profile, 4, "finetune").state
    users, items = clean["users"].astype(np.float64), clean["items"].astype(np.float64)
    users = np.concatenate([users, counter_normal(4, INITIAL, (2, 3)) * 0.1])
    to_users, to_items = np.zeros_like(users), np.zeros_like(items)
    examples = victim._schedule(log, (2, 2), 4).examples(log, profile)
    assert (examples[0] < log.n_users).any()
    for user, item, negatives in zip(*examples, strict=True):
        p = users[user]
        for other, clicked in ((item, 1.0), *((negative, 0.0) for negative in negatives)):
            q = items[other]
            to_users[user] += (clicked - p @ q) * q - reg * p
            to_items[other] += (clicked - p @ q) * p - reg * q
    share = np.zeros(11)
    share[[2, 9, 10]] = 1 / (1 + log.item_popularity[2]), 1.0, 1.0
    np.testing.assert_allclose(after["users"], users + rate * to_users, rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        after["items"], items + rate * share[:, None] * to_items, rtol=0, atol=1e-6
    )
    assert (after["items"][9:] != clean["items"][9:]).all()


@pytest.mark.parametrize("allowed", [False, True])
def test_a_new_item_is_a_negative_only_where_the_config_says_so(allowed: bool) -> None:
    log = Interactions(np.repeat(np.arange(6), 3), np.arange(18) % 9, n_users=6, n_items=11)
    settings: dict[str, object] = {"epochs": 3, "new_items_as_negatives": allowed}
    victim = PMF(settings).fit(log, np.random.default_rng(0), n_new_items=2)
    untrained = PMF({**settings, "epochs": 0}).fit(log, np.random.default_rng(0), n_new_items=2)
    moved = (victim.state["items"] != untrained.state["items"]).any(axis=1)
    assert moved[:9].all()
    assert moved[9:].any() == allowed


def quality(victim: Victim, held_out: NDArray[np.int64]) -> tuple[float, float]:
    shown = victim.recommend(np.flatnonzero(held_out >= 0), 10)
    answers = held_out[held_out >= 0]
    return hr_at_k(shown, answers), ndcg_at_k(shown, answers)


@pytest.mark.real_data
def test_pmf_is_clearly_better_than_itempop_on_ml_100k() -> None:
    split = load("ml-100k").split
    held_out = np.where(split.evaluable("test"), split.test_items, -1)
    hr, ndcg = quality(PMF().fit(split.train, np.random.default_rng(0)), held_out)
    pop_hr, pop_ndcg = quality(ItemPop().fit(split.train, np.random.default_rng(0)), held_out)
    assert hr > 1.3 * pop_hr
    assert ndcg > 1.3 * pop_ndcg


@pytest.mark.parametrize("setting", ["n_negatives", "initial_scale"])
def test_a_setting_must_be_positive(setting: str) -> None:
    with pytest.raises(ArgumentError, match=setting):
        PMF({setting: 0})
