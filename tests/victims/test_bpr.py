"""BPR: its formulas by hand, its clean training, and what it learns."""

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.core.random import counter_normal
from recattack_gym.datasets import load
from recattack_gym.metrics import hr_at_k, ndcg_at_k
from recattack_gym.simulator import PlatformSimulator
from recattack_gym.victims import BPR, ItemPop, Victim
from recattack_gym.victims.base import Retrain
from recattack_gym.victims.epochs import visit_order
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.mf_kernel import fit_bpr
from recattack_gym.victims.schedule import INITIAL

Array = NDArray[np.float64]


def tiny_log() -> Interactions:
    """Return 6 users who have clicked 3 of 9 items, which leaves negatives to draw; 2 new items."""
    rng = np.random.default_rng(1)
    items = np.concatenate([rng.permutation(9)[:3] for _ in range(6)])
    return Interactions(np.repeat(np.arange(6), 3), items, n_users=6, n_items=11)


def negative_gradient(
    p: Array, q: Array, r: Array, b: float, c: float, reg: float
) -> tuple[Array, Array, Array, float, float]:
    """Return minus the gradient of `-log sigmoid(x) + reg / 2 |.|^2`, `x = p.q + b - p.r - c`."""
    pull = 1.0 / (1.0 + float(np.exp(p @ q + b - p @ r - c)))  # = 1 - sigmoid(x)
    return (
        pull * (q - r) - reg * p,
        pull * p - reg * q,
        -pull * p - reg * r,
        pull - reg * b,
        -pull - reg * c,
    )


def test_clean_training_is_the_papers_update_visited_event_by_event() -> None:
    # the user has seen two of three items: the negative is known without repeating the draws
    lone = Interactions(np.zeros(4, np.int64), np.array([0, 1, 0, 0]), n_users=6, n_items=11)
    factors = Factors.draw(lone, 4, 0.5, np.random.default_rng(0))
    users, items = factors.users.astype(np.float64), factors.items.astype(np.float64)
    bias = factors.bias.astype(np.float64)
    rate, reg = 0.1, 0.02
    for epoch in range(3):
        for event in visit_order(7, epoch, len(lone)):
            item = lone.item_ids[event]
            p, q, r = users[0].copy(), items[item].copy(), items[2].copy()
            step = negative_gradient(p, q, r, bias[item], bias[2], reg)
            users[0] += rate * step[0]
            items[item] += rate * step[1]
            items[2] += rate * step[2]
            bias[item] += rate * step[3]
            bias[2] += rate * step[4]
    fit_bpr(
        factors,
        lone,
        n_negative_items=3,
        popular_negatives=0.0,
        epochs=3,
        learning_rate=rate,
        reg=reg,
        seed=7,
    )
    np.testing.assert_allclose(factors.users, users, rtol=0, atol=1e-5)
    np.testing.assert_allclose(factors.items, items, rtol=0, atol=1e-5)
    np.testing.assert_allclose(factors.bias, bias, rtol=0, atol=1e-5)


def test_a_finetuning_step_moves_fakes_and_clicked_items_against_the_papers_gradient() -> None:
    rate, reg = 0.01, 0.05
    settings: dict[str, object] = {
        "embedding_size": 3,
        "epochs": 2,
        "reg": reg,
        "popular_negatives": 0.5,
        "new_items_as_negatives": True,
        "finetune_epochs": 1,
        "finetune_learning_rate": rate,
        "finetune_batch_size": 10_000,
    }
    log = tiny_log()
    victim = BPR(settings).fit(log, np.random.default_rng(0), n_new_items=2)
    profile = np.array([[9, 2], [10, 9]])
    clean, after = victim.state, victim.poisoned(profile, 4, "finetune").state
    users, items, bias = (clean[name].astype(np.float64) for name in ("users", "items", "bias"))
    users = np.concatenate([users, counter_normal(4, INITIAL, (2, 3)) * 0.1])
    to_users, to_items, to_bias = np.zeros_like(users), np.zeros_like(items), np.zeros_like(bias)
    schedule = victim._schedule(log, (2, 2), 4)
    for user, item, (negative,) in zip(*schedule.examples(log, profile), strict=True):
        rows = users[user], items[item], items[negative]
        gradient = negative_gradient(*rows, bias[item], bias[negative], reg)
        to_users[user] += gradient[0]
        to_items[item] += gradient[1]
        to_items[negative] += gradient[2]
        to_bias[item] += gradient[3]
        to_bias[negative] += gradient[4]
    share = np.zeros(11)
    share[[2, 9, 10]] = 1 / (1 + log.item_popularity[2]), 1.0, 1.0
    expected = {
        "users": users + rate * to_users,
        "items": items + rate * share[:, None] * to_items,
        "bias": bias + rate * share * to_bias,
    }
    for name, array in expected.items():
        np.testing.assert_allclose(after[name], array, rtol=0, atol=1e-6, err_msg=name)
    assert (after["items"][:9] == clean["items"][:9]).all(axis=1).sum() == 8


def test_clicked_items_become_negatives_as_often_as_in_full_retraining() -> None:
    rng = np.random.default_rng(0)
    items = rng.choice(50, 4_000, p=np.arange(50, 0, -1) / 1_275)
    log = Interactions(np.repeat(np.arange(400), 10), items, n_users=400, n_items=60)
    profile = rng.integers(40, 60, (20, 10))
    poisoned = log.with_fake_users(profile)
    epochs, popular = 40, 0.25
    for allowed in (False, True):
        config = {"new_items_as_negatives": allowed, "popular_negatives": popular}
        victim = BPR({**config, "epochs": 0, "finetune_epochs": epochs})
        victim.fit(log, np.random.default_rng(0), n_new_items=10)
        schedule = victim._schedule(log, (20, 10), 3)
        users, _, negatives = schedule.examples(log, profile)
        genuine = users < 400
        assert not log.has(users[genuine], negatives[genuine, 0]).any()
        found = np.bincount(negatives[genuine, 0], minlength=60)[50:] / epochs
        per_click = popular * len(log) / len(poisoned)
        by_chance = (1 - popular) * len(log) / log.n_items if allowed else 0.0
        wanted = per_click * np.bincount(profile.ravel(), minlength=60)[50:] + by_chance
        np.testing.assert_allclose(found.sum(), wanted.sum(), rtol=0.08)
        np.testing.assert_allclose(found, wanted, rtol=0.5)
        by_fakes = negatives[~genuine, 0]
        assert (by_fakes < 50).all() or allowed
        own = profile[users[~genuine] - 400]
        assert not (own == by_fakes[:, None]).any()
        head = np.bincount(by_fakes, minlength=60)[:10].mean() / len(by_fakes)
        uniform = (1 - popular) / (60 if allowed else 50)
        assert (
            1.1 * uniform
            < head
            < uniform + 1.3 * popular * log.item_popularity[:10].mean() / len(log)
        )


@pytest.mark.parametrize("popular", [0.0, 0.5, 1.0])
def test_a_new_item_is_a_negative_only_where_the_config_says_so(popular: float) -> None:
    log = tiny_log()
    settings: dict[str, object] = {"epochs": 20, "popular_negatives": popular}
    for allowed in (False, True):
        config = {**settings, "new_items_as_negatives": allowed}
        victim = BPR(config).fit(log, np.random.default_rng(0), n_new_items=2)
        sinks = bool((victim.state["bias"][9:] < 0.0).any())
        assert sinks == (allowed and popular < 1.0)


def test_popular_negatives_push_popular_items_down() -> None:
    rng = np.random.default_rng(0)
    items = rng.choice(40, 1_500, p=np.arange(40, 0, -1) / 820)
    log = Interactions(np.repeat(np.arange(100), 15), items, n_users=100, n_items=40)
    head = [
        BPR({"epochs": 5, "popular_negatives": share})
        .fit(log, np.random.default_rng(0))
        .state["bias"][:5]
        .mean()
        for share in (0.0, 1.0)
    ]
    assert head[1] < head[0]


def quality(victim: Victim, held_out: NDArray[np.int64]) -> tuple[float, float]:
    shown = victim.recommend(np.flatnonzero(held_out >= 0), 10)
    answers = held_out[held_out >= 0]
    return hr_at_k(shown, answers), ndcg_at_k(shown, answers)


@pytest.mark.real_data
@pytest.mark.slow
def test_bpr_is_as_good_as_the_tuned_bpr_of_implicit_on_ml_100k() -> None:
    import scipy.sparse as sp
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    split = load("ml-100k").split
    held_out = np.where(split.evaluable("test"), split.test_items, -1)
    log = split.train
    bpr = BPR().fit(log, np.random.default_rng(0))
    # the best of 36 settings by HR@10 + NDCG@10 of the validation items (docs: bench quality)
    reference = BayesianPersonalizedRanking(
        factors=64,
        learning_rate=0.01,
        regularization=0.003,
        iterations=60,
        num_threads=1,
        random_state=0,
    )
    clicks = sp.csr_matrix((np.ones(len(log), np.float32), (log.user_ids, log.item_ids)))
    reference.fit(clicks, show_progress=False)
    theirs = BPR().fit(log, np.random.default_rng(0))
    theirs._factors = Factors(
        np.asarray(reference.user_factors),
        np.asarray(reference.item_factors),
        np.zeros(log.n_items, np.float32),
    )
    ours_hr, ours_ndcg = quality(bpr, held_out)
    hr, ndcg = quality(theirs, held_out)
    pop_hr, pop_ndcg = quality(ItemPop().fit(log, np.random.default_rng(0)), held_out)
    assert ours_hr > 0.97 * hr > 1.2 * pop_hr
    assert ours_ndcg > 0.97 * ndcg > 1.2 * pop_ndcg


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_share_outside_zero_to_one_is_refused(value: float) -> None:
    with pytest.raises(ArgumentError, match="popular_negatives"):
        BPR({"popular_negatives": value})


def test_more_clicks_than_the_platform_digests_backfire_as_in_full_retraining() -> None:
    # a clicked item becomes a popular negative, so half the clicks on targets reach fewer and fewer users
    platform = PlatformSimulator("synthetic", "BPR")
    rng = np.random.default_rng(0)
    reached: dict[Retrain, list[int]] = {"finetune": [], "full": []}
    for shape in ((5, 20), (20, 20), (50, 50), (200, 50)):
        targets = rng.choice(platform.target_items, shape)
        fillers = rng.integers(platform.n_original_items, size=shape)
        profile = np.where(rng.random(shape) < 0.5, targets, fillers)
        for mode, so_far in reached.items():
            so_far.append(int(platform.rec_num(profile, retrain=mode)[0]))
    for so_far in reached.values():
        assert so_far[0] > 1.5 * platform.clean_rec_num > 1.5 * so_far[-1]
        assert so_far == sorted(so_far, reverse=True)
