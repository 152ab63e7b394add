"""BPR: its formulas by hand, its clean training, and what it learns."""

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.datasets import load
from recattack_gym.metrics import hr_at_k, ndcg_at_k
from recattack_gym.simulator import PlatformSimulator
from recattack_gym.victims import BPR, ItemPop, Victim
from recattack_gym.victims.factors import Factors, popular_negatives
from recattack_gym.victims.mf_kernel import fit_bpr, visit_order
from recattack_gym.victims.schedule import make_schedule

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


def test_a_finetuning_step_moves_against_the_gradient_of_the_papers_loss() -> None:
    rate, reg = 0.01, 0.05
    settings: dict[str, object] = {
        "embedding_size": 3,
        "epochs": 2,
        "reg": reg,
        "finetune_epochs": 1,
        "finetune_learning_rate": rate,
        "finetune_batch_size": 10_000,
        "finetune_replay": 2.0,
        "finetune_popular_negatives": 0.0,
    }
    log = tiny_log()
    victim = BPR(settings).fit(log, np.random.default_rng(0), n_new_items=2)
    profile = np.array([[9, 2], [10, 9]])
    clean, after = victim.state, victim.poisoned(profile, 4, "finetune").state
    schedule = make_schedule(
        log,
        (2, 2),
        seed=4,
        epochs=1,
        replay=2.0,
        batch_size=10_000,
        n_negatives=1,
        n_genuine_negatives=9,
    )
    users, items, bias = (clean[name].astype(np.float64) for name in ("users", "items", "bias"))
    total = np.zeros_like(users)
    for user, item, (negative,) in zip(*schedule.examples(profile), strict=True):
        if user < log.n_users:
            rows = users[user], items[item], items[negative]
            total[user] += negative_gradient(*rows, bias[item], bias[negative], reg)[0]
    is_replayed = total.any(axis=1)
    assert 0 < is_replayed.sum() < log.n_users
    np.testing.assert_allclose(
        after["users"][: log.n_users], users + rate * total, rtol=0, atol=1e-5
    )
    # both fake users click item 9, so it is nobody's negative: its bias can only rise
    assert after["bias"][9] > bias[9]


def test_popular_negatives_are_items_of_the_log_that_the_user_has_not_clicked() -> None:
    rng = np.random.default_rng(0)
    items = rng.choice(50, 4_000, p=np.arange(50, 0, -1) / 1_275)
    log = Interactions(np.repeat(np.arange(400), 10), items, n_users=400, n_items=60)
    schedule = make_schedule(
        log,
        (20, 10),
        seed=3,
        epochs=10,
        replay=5.0,
        batch_size=100,
        n_negatives=1,
        n_genuine_negatives=60,
    )
    drawn = popular_negatives(log, schedule, 0.5)
    taken, fake = drawn >= 0, schedule.clicks >= 0
    assert 0.47 < taken[fake].mean() < 0.53
    assert taken[~fake].mean() < 0.5  # some have seen what was drawn
    assert not log.has(schedule.user_ids[taken & ~fake], drawn[taken & ~fake]).any()
    share = np.bincount(drawn[taken & fake], minlength=60) / (taken & fake).sum()
    np.testing.assert_allclose(share, log.item_popularity / len(log), atol=0.02)
    assert (popular_negatives(log, schedule, 0.0) == -1).all()


def test_added_clicks_leave_the_order_of_the_others_as_it_was() -> None:
    before, after = visit_order(3, 5, 1_000), visit_order(3, 5, 1_013)
    np.testing.assert_array_equal(np.sort(after), np.arange(1_013))
    np.testing.assert_array_equal(after[after < 1_000], before)
    assert not np.array_equal(visit_order(3, 6, 1_000), before)
    assert not np.array_equal(visit_order(4, 5, 1_000), before)


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
@pytest.mark.parametrize("setting", ["popular_negatives", "finetune_popular_negatives"])
def test_a_share_outside_zero_to_one_is_refused(setting: str, value: float) -> None:
    with pytest.raises(ArgumentError, match=setting):
        BPR({setting: value})


def test_a_larger_attack_on_one_target_neither_overshoots_nor_diverges() -> None:
    # Summed gradients with too large a step made 20 x 20 clicks reach 200 users, 30 x 30 none.
    platform = PlatformSimulator("synthetic", "BPR")
    target = int(platform.target_items[0])
    reached = [
        int(platform.exposure(np.full((1, *shape), target))[0, 0])
        for shape in ((5, 20), (20, 20), (50, 50), (200, 50))
    ]
    clean = int(platform.clean_exposure[0])
    assert min(reached) > 4 * clean
    assert min(reached[1:]) > 0.75 * max(reached[1:])
