"""MF-BCE: a step by hand, kernels against autograd, and the compiled engine against the plain path."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.datasets import load
from recattack_gym.victims import MFBCE, CandidateLists
from recattack_gym.victims.epochs import NEGATIVES, visit_order
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.kernels import draw_negatives
from recattack_gym.victims.mf_bce_engine import LogisticEngine
from recattack_gym.victims.mf_bce_kernel import fit_bce, train_logits
from recattack_gym.victims.mf_bce_schedule import CLICK, FIRST, FRESH, OTHER, PUSHED, CleanRun

N_NEW = 4
LIVELY: dict[str, object] = {"epochs": 3, "finetune_epochs": 3, "finetune_learning_rate": 0.03}

MakeLists = Callable[..., CandidateLists]


@pytest.fixture(scope="module")
def wide_log() -> Interactions:
    """Return 70 users and 400 items, more than the engine keeps in clean order, and new items."""
    rng = np.random.default_rng(2)
    users = np.repeat(np.arange(70), rng.integers(1, 30, 70))
    weights = 1.0 / np.arange(1, 401)
    items = rng.choice(400, len(users), p=weights / weights.sum())
    return Interactions(users, items, n_users=70, n_items=400 + N_NEW)


def fitted(log: Interactions, **settings: object) -> MFBCE:
    victim = MFBCE({**LIVELY, **settings})
    return victim.fit(log, np.random.default_rng(0), n_new_items=N_NEW)


def attacks(log: Interactions, n: int, t: int) -> NDArray[np.int64]:
    """Return random clicks, popular items, one target, all targets, and mixtures; `(6, n, t)`."""
    rng = np.random.default_rng(0)
    shape = (n, t)
    targets = np.arange(log.n_items - N_NEW, log.n_items)
    popular = np.argsort(-log.item_popularity, kind="stable")[:20]
    mixed = np.where(
        rng.random(shape) < 0.5, rng.choice(targets, shape), rng.choice(popular, shape)
    )
    return np.stack(
        [
            rng.integers(0, log.n_items - N_NEW, shape),
            rng.choice(popular, shape),
            np.full(shape, targets[1]),
            rng.choice(targets, shape),
            mixed,
            np.full(shape, popular[0]),
        ]
    )


def test_one_click_and_its_negative_by_hand() -> None:
    # User 0 has clicked item 0 of two, d = 1: p = 1, q = (2, -1), b = (0, 1), rate 0.1, penalty 0.5.
    # Click: error 1 - s(2); p = 1 + .1 (error 2 - .5), q0 = 2 + .1 (error - 1), b0 = .1 error.
    # Negative, with that p: error -s(1 - p); p, q1 and b1 likewise.
    log = Interactions(np.array([0]), np.array([0]), n_users=1, n_items=2)
    factors = Factors(
        np.array([[1]], dtype=np.float32),
        np.array([[2], [-1]], dtype=np.float32),
        np.array([0, 1], dtype=np.float32),
    )
    fit_bce(
        factors,
        log,
        n_negative_items=2,
        n_negatives=1,
        popular_negatives=0.0,
        epochs=1,
        learning_rate=0.1,
        reg=0.5,
        seed=0,
        n_waypoints=1,
    )
    error = 1 - 1 / (1 + math.exp(-2))
    p, q0, b0 = 1 + 0.1 * (error * 2 - 0.5), 2 + 0.1 * (error - 1), 0.1 * error
    error = -1 / (1 + math.exp(-(1 - p)))
    q1, b1 = -1 + 0.1 * (error * p + 0.5), 1 + 0.1 * (error - 0.5)
    p += 0.1 * (-error - 0.5 * p)
    np.testing.assert_allclose(factors.users, [[p]], rtol=1e-5)
    np.testing.assert_allclose(factors.items, [[q0], [q1]], rtol=1e-5)
    np.testing.assert_allclose(factors.bias, [b0, b1], rtol=1e-5)


def test_clean_training_equals_a_loop_over_the_epochs_own_draws(wide_log: Interactions) -> None:
    # The first negative of a click may be popular, the others are uniform; each epoch draws anew.
    below = wide_log.n_items - N_NEW
    rng = np.random.default_rng(3)
    start = Factors.draw(wide_log, 3, 0.5, rng)
    p, q, b = (x.astype(np.float64) for x in (start.users, start.items, start.bias))
    for epoch in range(2):
        order = visit_order(9, epoch, len(wide_log))
        of_epoch = (9, NEGATIVES + epoch, below)
        popular, uniform = (np.empty((len(order), 3), dtype=np.int32) for _ in range(2))
        for share, drawn in ((0.7, popular), (0.0, uniform)):
            draw_negatives(
                order, wide_log.user_ids, wide_log.item_ids, *wide_log.seen, *of_epoch, share, drawn
            )
        assert (popular[:, 0] != uniform[:, 0]).mean() > 0.3
        for place, event in enumerate(order.tolist()):
            user = int(wide_log.user_ids[event])
            click = int(wide_log.item_ids[event])
            negatives = [int(popular[place, 0]), *uniform[place, 1:].tolist()]
            for item, label in ((click, 1.0), *((negative, 0.0) for negative in negatives)):
                error = label - 1 / (1 + math.exp(-(p[user] @ q[item] + b[item])))
                to_p, to_q = error * q[item] - 0.1 * p[user], error * p[user] - 0.1 * q[item]
                p[user] += 0.05 * to_p
                q[item] += 0.05 * to_q
                b[item] += 0.05 * (error - 0.1 * b[item])
    fit_bce(
        start,
        wide_log,
        n_negative_items=below,
        n_negatives=3,
        popular_negatives=0.7,
        epochs=2,
        learning_rate=0.05,
        reg=0.1,
        seed=9,
        n_waypoints=1,
    )
    for found, wanted in zip((start.users, start.items, start.bias), (p, q, b), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("epochs", "kept"), [(5, [0, 2, 4]), (1, [0, 0, 0]), (0, [0, 0, 0])], ids=str
)
def test_the_clean_run_is_what_shorter_trainings_end_with(
    epochs: int, kept: list[int], wide_log: Interactions
) -> None:
    def trained(n_epochs: int) -> tuple[Factors, CleanRun]:
        factors = Factors.draw(wide_log, 3, 0.5, np.random.default_rng(3))
        run = fit_bce(
            factors,
            wide_log,
            n_negative_items=wide_log.n_items,
            n_negatives=2,
            popular_negatives=0.5,
            epochs=n_epochs,
            learning_rate=0.1,
            reg=0.1,
            seed=9,
            n_waypoints=3,
        )
        return factors, run

    _, run = trained(epochs)
    assert CleanRun.epochs(3, epochs) == kept
    for place, n_epochs in enumerate(kept):
        expected, _ = trained(n_epochs)
        for found, name in ((run.users, "users"), (run.items, "items"), (run.bias, "bias")):
            np.testing.assert_array_equal(found[:, place], getattr(expected, name))


def test_a_step_of_fine_tuning_follows_the_gradient_of_the_log_loss() -> None:
    # Genuine users 0 to 2 and item 2 rest where the waypoint is; one example is no example (item -1).
    rng = np.random.default_rng(1)
    past_users, past_items = (rng.standard_normal((n, 2, 6)).astype(np.float32) for n in (3, 7))
    past_bias = rng.standard_normal((7, 2)).astype(np.float32)
    fakes, items = (rng.standard_normal((n, 6)).astype(np.float32) for n in (2, 7))
    bias = rng.standard_normal(7).astype(np.float32)
    share = rng.random(7).astype(np.float32)
    share[2] = 0.0
    user_ids = np.array([0, 3, 4, 1, 2, 3, 4, 0, 3, 4], dtype=np.int32)
    item_ids = np.array([1, 2, 3, 2, 6, 1, 2, -1, 0, 3], dtype=np.int32)
    kinds = np.array([FRESH, CLICK, OTHER, FRESH, PUSHED, FIRST, CLICK, PUSHED, OTHER, CLICK])
    rests = share == 0
    now = np.where(rests[:, None], past_items[:, 1], items), np.where(rests, past_bias[:, 1], bias)
    together = np.concatenate([past_users[:, 1], fakes])
    tensors = [torch.tensor(x, requires_grad=True) for x in (together, *now)]
    is_one = item_ids >= 0
    p = tensors[0][user_ids[is_one].astype(np.int64)]
    q, b = (x[item_ids[is_one].astype(np.int64)] for x in tensors[1:])
    logit = (p * q).sum(dim=1) + b
    sign = torch.tensor(np.where(kinds[is_one] == CLICK, 1.0, -1.0))
    penalty = (p**2).sum() + (q**2).sum() + (b**2).sum()
    loss = 0.15 * penalty - torch.nn.functional.logsigmoid(sign * logit).sum()
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation
    moves = np.array([[0.0], [0.0], [0.0], [1.0], [1.0]], dtype=np.float32)
    stepped: list[NDArray[np.float32]] = []
    for tensor, scale in zip(tensors, (moves, share[:, None], share), strict=True):
        assert tensor.grad is not None
        stepped.append(tensor.detach().numpy() - np.float32(0.05) * scale * tensor.grad.numpy())
    expected = (
        stepped[0][3:],
        np.where(rests[:, None], items, stepped[1]),
        np.where(rests, bias, stepped[2]),
    )
    gradients = [np.zeros_like(x) for x in (fakes, items, bias)]
    train_logits(
        fakes,
        items,
        bias,
        share,
        np.zeros(0, dtype=np.int64),
        past_users,
        past_items,
        past_bias,
        user_ids,
        kinds.astype(np.int8),
        item_ids,
        np.array([0, 10]),
        np.array([1]),
        0.05,
        0.3,
        *gradients,
    )
    for found, wanted in zip((fakes, items, bias), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"embedding_size": 5, "finetune_batch_size": 7, "n_negatives": 1},
        {"embedding_size": 1, "finetune_epochs": 1},
        {"finetune_replay": 0.0},
        {"finetune_replay": 3.0, "reg": 0.2},
        {"new_items_as_negatives": False},
        {"popular_negatives": 0.0},
        {"finetune_epochs": 0},
        {"finetune_waypoints": 1},
        {"finetune_waypoints": 5, "finetune_epochs": 7},
        {"epochs": 0},
    ],
    ids=str,
)
def test_the_engine_trains_the_factors_that_the_plain_path_trains(
    settings: dict[str, object], wide_log: Interactions, make_lists: MakeLists
) -> None:
    victim = fitted(wide_log, **settings)
    engine = victim.engine(make_lists(wide_log, [400, 403]))
    assert isinstance(engine, LogisticEngine)
    for profile in attacks(wide_log, 3, 6):
        fast = engine.factors_after(profile, 5).as_state()
        slow = victim.poisoned(profile, 5, "finetune").state
        assert sorted(fast) == ["bias", "items", "users"]
        for array, found in fast.items():
            np.testing.assert_allclose(found, slow[array], rtol=0, atol=1e-4, err_msg=array)


def test_what_the_poison_does_not_decide_rests_and_clicked_new_items_start_afresh(
    wide_log: Interactions,
) -> None:
    victim = fitted(wide_log)
    profile = np.array([[400, 5, 5, 7], [400, 9, 5, 403]])
    clicked = np.unique(profile)
    before, after = victim.state, victim.poisoned(profile, 5, "finetune").state
    others = np.setdiff1d(np.arange(wide_log.n_items), clicked)
    np.testing.assert_array_equal(after["users"][: wide_log.n_users], before["users"])
    for name in ("items", "bias"):
        np.testing.assert_array_equal(after[name][others], before[name][others])
        assert (np.abs(after[name][clicked] - before[name][clicked]).max() > 1e-3).all()
    victim._factors.items[400:] += 3.0
    victim._run.items[400:] -= 2.0
    moved = victim.poisoned(profile, 5, "finetune").state
    np.testing.assert_array_equal(moved["items"][402], after["items"][402] + 3.0)
    for item in (
        400,
        403,
    ):  # nobody else has met the other new items: 401 and 402 are negatives, at times
        assert np.abs(moved["items"][item] - after["items"][item]).max() < 0.5


def test_clicked_items_move_with_the_clean_run_to_its_end(wide_log: Interactions) -> None:
    # With steps that do nothing a clicked item ends where the clean one does, whatever the waypoints are.
    victim = fitted(wide_log, finetune_learning_rate=1e-9, finetune_waypoints=3)
    assert np.abs(np.diff(victim._run.items[5], axis=0)).max() > 0.01
    after = victim.poisoned(np.array([[5, 7], [5, 400]]), 5, "finetune").state
    for name in ("items", "bias"):
        np.testing.assert_allclose(after[name][[5, 7]], victim.state[name][[5, 7]], atol=1e-6)


def test_a_poisoned_victim_can_be_poisoned_again(
    wide_log: Interactions, make_lists: MakeLists
) -> None:
    first, second = attacks(wide_log, 3, 6)[[3, 4]]
    poisoned = fitted(wide_log).poisoned(first, 5, "finetune")
    again = poisoned.poisoned(second, 6, "finetune")
    assert again._run.users.shape == (wide_log.n_users + 6, 2, 64)
    clicked = np.unique(first)
    for place in range(2):
        np.testing.assert_array_equal(poisoned._run.users[-3:, place], poisoned._factors.users[-3:])
        np.testing.assert_array_equal(
            poisoned._run.items[clicked, place], poisoned._factors.items[clicked]
        )
    lists = make_lists(poisoned.log, [400, 403])
    fast = poisoned.engine(lists).exposure(second[None], 6)
    slow = poisoned.engine(lists, backend="plain").exposure(second[None], 6)
    np.testing.assert_array_equal(fast, slow)


def test_new_items_are_not_shown_before_anyone_has_clicked_them(
    wide_log: Interactions, make_lists: MakeLists
) -> None:
    lists = make_lists(wide_log, [400, 401, 402, 403], k=5, n_candidates=40)
    shown = [
        fitted(wide_log, epochs=20, new_items_as_negatives=are_negatives).exposure(lists).sum()
        for are_negatives in (True, False)
    ]
    assert shown[0] < 0.1 * shown[1]


@pytest.mark.parametrize("n_candidates", [30, None], ids=["lists", "catalogue"])
@pytest.mark.parametrize(("targets", "k"), [([400, 401, 402, 403], 60), ([403, 5, 0], 2)], ids=str)
def test_exposure_equals_the_plain_path_for_any_budget_on_a_long_catalogue(
    n_candidates: int | None,
    targets: list[int],
    k: int,
    wide_log: Interactions,
    make_lists: MakeLists,
) -> None:
    victim = fitted(wide_log)
    lists = make_lists(wide_log, targets, k=k, n_candidates=n_candidates)
    engine, plain = victim.engine(lists), victim.engine(lists, backend="plain")
    some_are_shown = False
    for n, t in ((1, 1), (1, 9), (5, 12)):
        profiles = attacks(wide_log, n, t)
        counted = engine.exposure(profiles, 3)
        np.testing.assert_array_equal(counted, plain.exposure(profiles, 3))
        some_are_shown |= bool(counted.any())
    assert some_are_shown


@pytest.mark.parametrize(
    ("setting", "value"),
    [("n_negatives", 0), ("popular_negatives", 1.5), ("finetune_waypoints", 0)],
    ids=str,
)
def test_settings_out_of_range_are_refused(setting: str, value: object) -> None:
    with pytest.raises(ArgumentError, match=setting):
        MFBCE({setting: value})


@pytest.mark.slow
@pytest.mark.real_data
def test_the_engine_equals_the_plain_path_on_real_data() -> None:
    original = load("ml-100k").log
    log = original.with_catalogue(original.n_items + N_NEW)
    victim = MFBCE({"epochs": 5, "finetune_epochs": 5})
    victim.fit(log, np.random.default_rng(0), n_new_items=N_NEW)
    rng = np.random.default_rng(4)
    items = np.stack([rng.choice(original.n_items, 150, replace=False) for _ in range(log.n_users)])
    seen = log.has(np.arange(log.n_users)[:, None], items)
    width = min(92, int((~seen).sum(axis=1).min()))
    items = np.take_along_axis(items, np.argsort(seen, axis=1, kind="stable")[:, :width], axis=1)
    lists = CandidateLists(log, items, np.arange(original.n_items, log.n_items), 10)
    engine, plain = victim.engine(lists), victim.engine(lists, backend="plain")
    profiles = attacks(log, 20, 20)
    np.testing.assert_array_equal(engine.exposure(profiles, 8), plain.exposure(profiles, 8))
