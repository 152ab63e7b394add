"""MF-BCE-APR and -PamaCF: steps by hand, the limit that is MF-BCE, and the engine against the plain path."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.datasets import Split, load
from recattack_gym.metrics import hr_at_k, ndcg_at_k
from recattack_gym.simulator import PlatformSimulator
from recattack_gym.victims import (
    MFBCE,
    MFBCEAPR,
    CandidateLists,
    MFBCEPamaCF,
    PlainEngine,
    Retrain,
    Victim,
)
from recattack_gym.victims.adversarial import Adversary, Coefficient, coefficients, normalised_rows
from recattack_gym.victims.base import State
from recattack_gym.victims.epochs import NEGATIVES, visit_order
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.kernels import draw_negatives
from recattack_gym.victims.mf_bce_apr_engine import (
    AdversarialLogisticEngine,
    first_adversarial_batch,
    usual_sizes,
)
from recattack_gym.victims.mf_bce_apr_kernel import fit_adversarial_logits
from recattack_gym.victims.mf_bce_engine import LogisticEngine
from recattack_gym.victims.mf_bce_schedule import CleanRun

N_NEW = 3
TARGETS = [24, 25, 26]
LIVELY: dict[str, object] = {
    "embedding_size": 6,
    "epochs": 6,
    "learning_rate": 0.1,
    "initial_scale": 0.5,
    "finetune_epochs": 6,
    "finetune_batch_size": 8,
    "n_negatives": 2,
}
KINDS = [MFBCEAPR, MFBCEPamaCF]
KINDS_OF_COEFFICIENTS = ["uniform", "squared", "relative", "absolute"]

MakeLists = Callable[..., CandidateLists]


def attacks(log: Interactions, n: int, t: int) -> NDArray[np.int64]:
    """Return random clicks with targets among them, one target, a target beside the most popular item."""
    rng = np.random.default_rng(0)
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


class Slow:
    """The parameters in double precision, and a step on one pair as autograd has it."""

    def __init__(self, factors: Factors) -> None:
        self.tensors = [torch.tensor(x, dtype=torch.float64) for x in factors.as_state().values()]

    def step(
        self,
        user: int,
        item: int,
        label: float,
        eps: float,
        adv_reg: float,
        rate: float,
        reg: float,
    ) -> None:
        rows = [
            table[place].clone().requires_grad_()
            for table, place in zip(self.tensors, (user, item, item), strict=True)
        ]
        p, q, b = rows
        target = torch.tensor(label, dtype=torch.float64)
        loss = torch.nn.functional.binary_cross_entropy_with_logits
        clean = loss(p @ q + b, target)
        to_p, to_q, _ = torch.autograd.grad(clean, rows, retain_graph=True)
        total = clean
        if eps > 0.0:
            to_p, to_q = (eps * x / x.norm() for x in (to_p, to_q))
            moved = loss((p + to_p) @ (q + to_q) + b, target)
            total = (clean + adv_reg * moved) / (1.0 + adv_reg)
        total = total + 0.5 * reg * ((p**2).sum() + (q**2).sum() + b**2)
        slopes = torch.autograd.grad(total, rows)
        for table, place, slope in zip(self.tensors, (user, item, item), slopes, strict=True):
            table[place] -= rate * slope


@pytest.mark.parametrize("coefficient", KINDS_OF_COEFFICIENTS)
def test_clean_training_is_autograds_step_on_the_epochs_own_draws(
    coefficient: Coefficient, small_log: Interactions
) -> None:
    below, n_negatives, epochs = small_log.n_items - N_NEW, 3, 4
    start = Factors.draw(small_log, 5, 0.5, np.random.default_rng(0))
    slow, snapshots = Slow(start), []
    rate, reg, adversary = 0.05, 0.02, Adversary(0.3, 3.0, 0.5, coefficient)
    for epoch in range(epochs):
        snapshots.append([x.numpy().copy() for x in slow.tensors])
        norms = slow.tensors[0].norm(dim=1).numpy()
        mean = float(np.mean(norms**2 if coefficient == "squared" else norms))
        order = visit_order(9, epoch, len(small_log))
        popular, uniform = (np.empty((len(order), n_negatives), dtype=np.int32) for _ in range(2))
        for share, drawn in ((0.7, popular), (0.0, uniform)):
            draw_negatives(
                order,
                small_log.user_ids,
                small_log.item_ids,
                *small_log.seen,
                9,
                NEGATIVES + epoch,
                below,
                share,
                drawn,
            )
        for place, event in enumerate(order.tolist()):
            user, click = int(small_log.user_ids[event]), int(small_log.item_ids[event])
            others = [int(popular[place, 0]), *uniform[place, 1:].tolist()]
            for item, label in ((click, 1.0), *((other, 0.0) for other in others)):
                eps = 0.0
                if epoch >= 2:
                    norm = slow.tensors[0][user].norm().numpy()[None]
                    eps = 0.3 * float(coefficients(norm, coefficient, mean=mean)[0])
                slow.step(user, item, label, eps, 3.0, rate, reg)
    run = fit_adversarial_logits(
        start,
        small_log,
        adversary,
        n_negative_items=below,
        n_negatives=n_negatives,
        popular_negatives=0.7,
        epochs=epochs,
        learning_rate=rate,
        reg=reg,
        seed=9,
        n_waypoints=2,
    )
    assert CleanRun.epochs(2, epochs) == [1, 3]
    for name, tensor in zip(("users", "items", "bias"), slow.tensors, strict=True):
        np.testing.assert_allclose(getattr(start, name), tensor.numpy(), rtol=0, atol=1e-5)
    for place, epoch in enumerate((1, 3)):
        for name, wanted in zip(("users", "items", "bias"), snapshots[epoch], strict=True):
            kept = getattr(run, name)[:, place]
            np.testing.assert_allclose(kept, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "idle",
    [{"eps": 0.0}, {"eps": 0.0, "adv_reg": 2.0}, {"adv_reg": 0.0}, {"plain_share": 1.0}],
    ids=str,
)
def test_without_an_adversary_the_victim_is_mf_bce_bit_for_bit(
    kind: type[Victim], idle: dict[str, object], small_log: Interactions, make_lists: MakeLists
) -> None:
    robust, plain = fitted(kind, small_log, **idle), fitted(MFBCE, small_log)
    assert_same(robust, plain)
    profiles = attacks(small_log, 3, 5)
    retrains: tuple[Retrain, ...] = ("finetune", "full")
    for retrain in retrains:
        first, second = (victim.poisoned(profiles[0], 4, retrain) for victim in (robust, plain))
        if "plain_share" not in idle or retrain == "full":
            assert_same(first, second)
    lists = make_lists(small_log, TARGETS)
    if "plain_share" not in idle:
        assert type(robust.engine(lists)) is LogisticEngine
    np.testing.assert_array_equal(
        robust.engine(lists).exposure(profiles, 4), plain.engine(lists).exposure(profiles, 4)
    )


def test_uniform_coefficients_make_pamacf_apr_bit_for_bit(small_log: Interactions) -> None:
    apr, uniform = (
        fitted(MFBCEAPR, small_log),
        fitted(MFBCEPamaCF, small_log, coefficient="uniform"),
    )
    assert_same(uniform, apr)
    profile = attacks(small_log, 3, 5)[0]
    assert_same(uniform.poisoned(profile, 1, "finetune"), apr.poisoned(profile, 1, "finetune"))
    squared = fitted(MFBCEPamaCF, small_log)
    assert np.abs(squared.state["users"] - apr.state["users"]).max() > 1e-4


def test_a_vanishing_perturbation_leaves_mf_bce_as_losses_have_weights_that_sum_to_one(
    small_log: Interactions,
) -> None:
    nearly, plain = fitted(MFBCEAPR, small_log, eps=1e-7, adv_reg=2.0), fitted(MFBCE, small_log)
    for name, array in nearly.state.items():
        np.testing.assert_allclose(array, plain.state[name], atol=1e-5, err_msg=name)


def test_rows_of_zeros_are_trained_without_a_perturbation_that_has_no_direction() -> None:
    log = Interactions(np.array([0, 1]), np.array([0, 1]), n_users=2, n_items=3)
    factors = Factors(*(np.zeros(shape, np.float32) for shape in ((2, 4), (3, 4), (3,))))
    fit_adversarial_logits(
        factors,
        log,
        Adversary(0.5, 1.0, 0.0, "squared"),
        n_negative_items=3,
        n_negatives=2,
        popular_negatives=0.5,
        epochs=2,
        learning_rate=0.1,
        reg=0.0,
        seed=1,
        n_waypoints=1,
    )
    assert all(np.isfinite(x).all() for x in factors.as_state().values())
    assert not factors.users.any()
    assert factors.bias.any()


# -- what it is for --------------------------------------------------------------------------------


def pushed_down(split: Split, state: State, eps: float) -> dict[str, float]:
    """What FGSM on the log loss of clicks and as many unseen items does to loss and NDCG@100."""
    log = split.train
    users, items, bias = (state[name].astype(np.float64) for name in ("users", "items", "bias"))
    drawn = np.random.default_rng(1).integers(0, log.n_items, len(log))
    unseen = ~log.has(log.user_ids, drawn)
    u = np.concatenate([log.user_ids, log.user_ids[unseen]])
    i = np.concatenate([log.item_ids, drawn[unseen]])
    y = np.arange(len(u)) < len(log)

    def scores(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.einsum("sd,sd->s", p[u], q[i]) + bias[i]
        return found

    slope = 1.0 / (1.0 + np.exp(-scores(users, items))) - y
    to_users, to_items = np.zeros_like(users), np.zeros_like(items)
    np.add.at(to_users, u, slope[:, None] * items[i])
    np.add.at(to_items, i, slope[:, None] * users[u])
    found = {}
    for name, length in (("clean", 0.0), ("pushed", eps)):
        p = users + normalised_rows(to_users, length)
        q = items + normalised_rows(to_items, length)
        x = scores(p, q)
        found[f"{name} loss"] = float((np.logaddexp(0.0, x) - y * x).mean())
        every = p @ q.T + bias
        every[log.user_ids, log.item_ids] = -np.inf
        shown = np.argsort(-every, axis=1, kind="stable")[:, :100]
        found[f"{name} ndcg"] = ndcg_at_k(shown, split.validation_items)
    found["drop"] = 1.0 - found["pushed ndcg"] / found["clean ndcg"]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_it_loses_less_than_mf_bce_under_a_push_at_its_embeddings(kind: type[Victim]) -> None:
    split = load("synthetic").split
    plain, robust = (
        pushed_down(split, each().fit(split.train, np.random.default_rng(0)).state, 0.5)
        for each in (MFBCE, kind)
    )
    assert robust["clean ndcg"] > 0.95 * plain["clean ndcg"]
    assert robust["drop"] < 0.9 * plain["drop"]
    raised = [x["pushed loss"] - x["clean loss"] for x in (plain, robust)]
    assert raised[1] < raised[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_robust_victim_recommends_about_as_well_as_mf_bce(kind: type[Victim]) -> None:
    split = load("synthetic").split
    users = np.arange(split.train.n_users)
    plain, robust = (
        each().fit(split.train, np.random.default_rng(0)).recommend(users, 10)
        for each in (MFBCE, kind)
    )
    for measure in (hr_at_k, ndcg_at_k):
        expected = measure(plain, split.validation_items)
        assert measure(robust, split.validation_items) > 0.9 * expected


# -- poison --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"eps": 0.4, "finetune_batch_size": 3, "embedding_size": 5, "adv_reg": 4.0},
        {"finetune_replay": 4.0, "plain_share": 0.0},
        {"new_items_as_negatives": False, "reg": 0.1, "popular_negatives": 0.0},
        {"plain_share": 1.0},
        {"finetune_epochs": 0},
        {"finetune_epochs": 1},
        {"finetune_waypoints": 4, "finetune_epochs": 9, "n_negatives": 1},
    ],
    ids=str,
)
def test_compiled_fine_tuning_equals_the_plain_path(
    kind: type[Victim], settings: dict[str, object], small_log: Interactions, make_lists: MakeLists
) -> None:
    victim = fitted(kind, small_log, **settings)
    engine = victim.engine(make_lists(small_log, TARGETS))
    assert isinstance(engine, AdversarialLogisticEngine)
    for profile in attacks(small_log, 3, 4):
        fast = engine.factors_after(profile, 5).as_state()
        slow = victim.poisoned(profile, 5, "finetune").state
        for name, found in fast.items():
            np.testing.assert_allclose(found, slow[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("coefficient", ["relative", "absolute"])
def test_compiled_fine_tuning_has_the_papers_coefficients(
    coefficient: Coefficient, small_log: Interactions, make_lists: MakeLists
) -> None:
    victim = fitted(MFBCEPamaCF, small_log, eps=0.4, coefficient=coefficient)
    engine = victim.engine(make_lists(small_log, TARGETS))
    assert isinstance(engine, AdversarialLogisticEngine)
    profile = attacks(small_log, 3, 4)[0]
    fast, slow = engine.factors_after(profile, 5), victim.poisoned(profile, 5, "finetune").state
    np.testing.assert_allclose(fast.items, slow["items"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(fast.users, slow["users"], rtol=0, atol=1e-5)


def finetuned_by_hand(
    victim: MFBCEAPR, log: Interactions, profile: NDArray[np.int64], seed: int
) -> dict[str, NDArray[np.float64]]:
    """Fake users who click fresh items alone, without genuine users: one example at a time in doubles."""
    from recattack_gym.core.random import counter_normal
    from recattack_gym.victims.mf_bce_schedule import first_item_rows
    from recattack_gym.victims.schedule import INITIAL

    config, adversary = victim.config, victim._adversary
    schedule = victim._schedule(log, (len(profile), profile.shape[1]), seed)
    assert (np.diff(schedule.waypoints) >= 0).all()
    n_plain = round(0.5 * len(schedule.waypoints))
    drawn = counter_normal(seed, INITIAL, (len(profile), config.embedding_size))
    users = drawn.astype(np.float64) * config.initial_scale
    fresh = first_item_rows(seed, N_NEW, config.embedding_size, config.initial_scale)
    items, bias = victim._run.items.astype(np.float64), victim._run.bias.astype(np.float64)
    clicked = np.unique(profile)
    items[clicked], bias[clicked] = fresh[clicked - log.n_items + N_NEW][:, None], 0.0
    of, what, labels = schedule.examples(log, profile)
    for batch, place in enumerate(schedule.waypoints):
        slopes = []
        for s in range(*schedule.batch_indptr[batch : batch + 2]):
            user, item, y = of[s], what[s], float(labels[s])
            if item < 0:
                continue
            genuine = user < log.n_users
            p = victim._run.users[user, place] if genuine else users[user - log.n_users]
            q, b = items[item, place], bias[item, place]
            error = y - 1.0 / (1.0 + np.exp(-(p @ q + b)))
            to_p, to_q, to_b = error * q, error * p, error
            if batch >= n_plain:
                towards = config.eps * (1.0 - 2.0 * y)
                if isinstance(victim, MFBCEPamaCF):
                    everyone = np.linalg.norm(victim._run.users[:, place], axis=1)
                    mean = float(np.mean(everyone**2))
                    norm = np.array([np.linalg.norm(p)])
                    towards *= float(coefficients(norm, adversary.coefficient, mean=mean)[0])
                p2 = p + towards * q / np.linalg.norm(q)
                q2 = q + towards * p / np.linalg.norm(p)
                pushed = y - 1.0 / (1.0 + np.exp(-(p2 @ q2 + b)))
                to_p = (to_p + config.adv_reg * pushed * q2) / (1.0 + config.adv_reg)
                to_q = (to_q + config.adv_reg * pushed * p2) / (1.0 + config.adv_reg)
                to_b = (to_b + config.adv_reg * pushed) / (1.0 + config.adv_reg)
            decayed = (to_p - config.reg * p, to_q - config.reg * q, to_b - config.reg * b)
            slopes.append((user, item, *decayed))
        for user, item, to_p, to_q, to_b in slopes:
            if user >= log.n_users:
                users[user - log.n_users] += config.finetune_learning_rate * to_p
            if item in clicked:  # fresh: no genuine click holds it back
                items[item] += config.finetune_learning_rate * to_q
                bias[item] += config.finetune_learning_rate * to_b
    return {"users": users, "items": items[:, -1], "bias": bias[:, -1]}


@pytest.mark.parametrize("kind", KINDS)
def test_finetuning_takes_the_steps_that_loops_take(
    kind: type[MFBCEAPR], small_log: Interactions
) -> None:
    victim = fitted(kind, small_log, eps=0.3, adv_reg=2.0, finetune_learning_rate=0.1)
    assert isinstance(victim, MFBCEAPR)
    profile = np.random.default_rng(1).choice([24, 26], (3, 4))
    poisoned = victim.poisoned(profile, 4, "finetune").state
    wanted = finetuned_by_hand(victim, small_log, profile, 4)
    np.testing.assert_allclose(poisoned["users"][-3:], wanted["users"], rtol=0, atol=1e-5)
    for name in ("items", "bias"):
        found, expected = poisoned[name][[24, 26]], wanted[name][[24, 26]]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    plain = fitted(MFBCE, small_log, finetune_learning_rate=0.1).poisoned(profile, 4, "finetune")
    assert np.abs(poisoned["items"] - plain.state["items"])[[24, 26]].max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_fine_tuning_is_repeatable_and_leaves_the_clean_state(
    kind: type[Victim], small_log: Interactions, make_lists: MakeLists
) -> None:
    victim = fitted(kind, small_log)
    before, profiles = victim.state, attacks(small_log, 3, 5)
    lists = make_lists(small_log, TARGETS)
    engine = victim.engine(lists)
    counts = engine.exposure(profiles, 4)
    first, second = (victim.poisoned(profiles[0], 4, "finetune") for _ in range(2))
    assert_same(first, second)
    np.testing.assert_array_equal(engine.exposure(profiles[::-1], 4), counts[::-1])
    plain = victim.engine(lists, backend="plain")
    assert isinstance(plain, PlainEngine)
    np.testing.assert_array_equal(plain.exposure(profiles, 4), counts)
    for name, array in victim.state.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    other = victim.poisoned(profiles[0], 5, "finetune").state["items"]
    assert (other != first.state["items"]).any()


def test_norms_are_compared_with_those_of_the_waypoint_that_a_batch_meets(
    small_log: Interactions,
) -> None:
    victim = fitted(MFBCEPamaCF, small_log, epochs=20)
    assert isinstance(victim, MFBCEPamaCF)
    squares = (victim._run.users.astype(np.float64) ** 2).sum(axis=2).mean(axis=0)
    sizes = usual_sizes(victim._adversary, victim._run)
    np.testing.assert_allclose(sizes, squares)
    assert sizes[1] > 1.2 * sizes[0]
    norms = np.sqrt((victim._run.users.astype(np.float64) ** 2).sum(axis=2)).mean(axis=0)
    np.testing.assert_allclose(usual_sizes(Adversary(1, 1, 0, "relative"), victim._run), norms)


def test_the_adversary_comes_in_after_its_share_of_the_batches() -> None:
    adversary = Adversary(0.1, 1.0, 0.5)
    assert [first_adversarial_batch(adversary, n, 6) for n in (0, 6, 12, 13, 18)] == [0, 3, 6, 6, 9]
    assert first_adversarial_batch(adversary, 0, 0) == 0
    for n_batches, n_passes in ((40, 8), (7, 7)):
        assert first_adversarial_batch(adversary, n_batches, n_passes) == (
            adversary.n_plain_batches(n_batches, n_passes)
        )
    assert first_adversarial_batch(Adversary(0.0, 1.0, 0.5), 13, 6) == 13


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ({"eps": -0.1}, r"eps must be a finite number >= 0\.0, got -0\.1"),
        ({"eps": float("nan")}, r"eps must be a finite number >= 0\.0, got nan"),
        ({"adv_reg": -1}, r"adv_reg must be a finite number >= 0\.0, got -1"),
        (
            {"plain_share": 1.1},
            r"plain_share must be a finite number >= 0\.0 and <= 1\.0, got 1\.1",
        ),
        ({"n_negatives": 0}, r"n_negatives must be a whole number >= 1, got 0"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(
    kind: type[Victim], setting: dict[str, object], wanted: str
) -> None:
    with pytest.raises(ArgumentError, match=wanted):
        kind(setting)


def test_a_coefficient_that_there_is_not_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"coefficient must be one of .*squared.*'cubed'"):
        MFBCEPamaCF({"coefficient": "cubed"})
    with pytest.raises(ArgumentError, match="coefficient"):
        MFBCEAPR({"coefficient": "squared"})


@pytest.mark.parametrize("defense", ["apr", "pamacf"])
def test_an_attack_helps_under_both_retrainings_on_a_generated_platform(defense: str) -> None:
    name = {"apr": "MF-BCE-APR", "pamacf": "MF-BCE-PamaCF"}[defense]
    platform = PlatformSimulator(load("synthetic"), name, targets=2, seed=1)
    targets, popular = platform.target_items, np.argsort(-platform.item_popularity)[:200]
    beside = np.where(np.arange(200) % 2 == 0, np.resize(targets, 200), popular)
    profiles = np.stack([beside.reshape(20, 10), popular.reshape(20, 10)])
    retrains: tuple[Retrain, ...] = ("finetune", "full")
    for retrain in retrains:
        attacked, idle = platform.rec_num(profiles, retrain=retrain)
        assert attacked > idle
