"""NGCF's fine-tuning by BPR beside the clean run: its examples, its waypoints, and a step by hand."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, ArtifactError, Interactions
from recattack_gym.core.files import read_arrays, write_arrays
from recattack_gym.victims import NGCF, CandidateLists, mf_bce_schedule, ngcf_warm_kernel
from recattack_gym.victims.base import RETRAINS
from recattack_gym.victims.bpr import BPRConfig
from recattack_gym.victims.epochs import NEGATIVES
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.kernels import draw_negatives
from recattack_gym.victims.mf_bce_kernel import fill_logits
from recattack_gym.victims.mf_bce_schedule import CleanRun
from recattack_gym.victims.mf_kernel import fit_bpr
from recattack_gym.victims.ngcf_warm import (
    PairSchedule,
    WarmRun,
    fit_warm,
    layer_zero,
    make_pair_schedule,
)
from recattack_gym.victims.ngcf_warm_kernel import fill_triples, train_beside

N_NEW, POPULAR, EPOCHS = 3, 0.4, 1500
MakeLists = Callable[..., CandidateLists]


@pytest.fixture(scope="module")
def log() -> Interactions:
    """Return 12 users who have seen much of 20 items, popular ones above all, and new items."""
    rng = np.random.default_rng(4)
    users = np.repeat(np.arange(12), rng.integers(4, 16, 12))
    weights = 1.0 / np.arange(1, 21)
    items = rng.choice(20, len(users), p=weights / weights.sum())
    return Interactions(users, items, n_users=12, n_items=20 + N_NEW)


@pytest.fixture(scope="module")
def profile() -> NDArray[np.int64]:
    """Return clicks on two of the new items, one of them more often, and on popular and rare ones."""
    return np.array([[20, 20, 0, 19, 1], [20, 21, 0, 20, 2]])


def schedule_of(log: Interactions, **settings: object) -> PairSchedule:
    arguments = {
        "seed": 7,
        "epochs": EPOCHS,
        "replay": 1.0,
        "batch_size": 8,
        "popular_negatives": POPULAR,
        "below": log.n_items,
        "n_waypoints": 2,
        **settings,
    }
    return make_pair_schedule(log, (2, 5), **arguments)  # type: ignore[arg-type]  # a mixture of types


def clicked(log: Interactions, profile: NDArray[np.int64]) -> NDArray[np.bool_]:
    is_clicked: NDArray[np.bool_] = np.isin(np.arange(log.n_items), profile)
    return is_clicked


# -- examples ------------------------------------------------------------------------------------


@pytest.mark.parametrize("new_items_are_negatives", [True, False])
def test_new_items_are_negatives_as_often_as_in_full_retraining(
    new_items_are_negatives: bool, log: Interactions, profile: NDArray[np.int64]
) -> None:
    below = log.n_items if new_items_are_negatives else log.n_items - N_NEW
    poisoned = log.with_fake_users(profile)
    full, found = np.zeros((2, poisoned.n_users, log.n_items))
    order, drawn = np.arange(len(poisoned)), np.empty((len(poisoned), 1), dtype=np.int32)
    events = (poisoned.user_ids, poisoned.item_ids, *poisoned.seen, 3)
    for epoch in range(EPOCHS):
        draw_negatives(order, *events, NEGATIVES + epoch, below, POPULAR, drawn)
        np.add.at(full, (poisoned.user_ids, drawn[:, 0]), 1 / EPOCHS)
    triples = schedule_of(log, below=below).examples(log, profile, clicked(log, profile))
    np.add.at(found, (triples.users, triples.negatives), 1 / EPOCHS)
    genuine = slice(0, log.n_users)
    for item in (20, 21):
        expected = full[genuine, item].sum()
        assert expected > 0.3
        assert found[genuine, item].sum() == pytest.approx(expected, rel=0.06)
        np.testing.assert_allclose(found[genuine, item], full[genuine, item], atol=0.2)
    np.testing.assert_allclose(found[12:], full[12:], atol=0.1, rtol=0.04)
    assert found[genuine, 22].sum() == 0  # nobody has clicked it, so nobody needs to meet it


def test_a_genuine_example_is_a_user_a_click_of_that_user_and_an_item_that_was_pushed(
    log: Interactions, profile: NDArray[np.int64]
) -> None:
    triples = schedule_of(log, epochs=400).examples(log, profile, clicked(log, profile))
    genuine = triples.users < log.n_users
    users, items, negatives = (ids[genuine] for ids in triples[:3])
    assert log.has(users, items).all()
    assert not log.has(users, negatives).any()
    met = np.unique(negatives).tolist()
    assert {20, 21} <= set(met) <= set(np.unique(profile).tolist())
    # A click that its user repeated comes as often as it was repeated.
    user = int(np.bincount(users).argmax())
    found = np.bincount(items[users == user], minlength=log.n_items)
    share = np.bincount(log.item_ids[log.user_ids == user], minlength=log.n_items)
    np.testing.assert_allclose(found / found.sum(), share / share.sum(), atol=0.1)
    assert share.max() > 1
    fake = ~genuine
    own = profile[triples.users[fake] - log.n_users]
    assert (own == triples.items[fake, None]).any(axis=1).all()
    assert not (own == triples.negatives[fake, None]).any()
    assert fake.sum() == 400 * profile.size


def test_negatives_that_are_not_learnt_are_left_out_and_batches_keep_their_clicks(
    log: Interactions, profile: NDArray[np.int64]
) -> None:
    schedule = schedule_of(log, epochs=6, batch_size=4)
    everything = schedule.examples(log, profile, clicked(log, profile))
    nothing = schedule.examples(log, profile, np.zeros(log.n_items, dtype=np.bool_))
    assert (everything.users < log.n_users).any()
    assert (nothing.users >= log.n_users).all()
    assert len(nothing.users) == 60
    for triples in (everything, nothing):
        assert triples.batch_indptr[-1] == len(triples.users)
        assert len(triples.batch_indptr) == len(schedule.rows.batch_indptr)
        assert len(schedule.rows.waypoints) == len(triples.batch_indptr) - 1
    batches = [np.split(t.items, t.batch_indptr[1:-1]) for t in (everything, nothing)]
    users = np.split(everything.users, everything.batch_indptr[1:-1])
    for all_items, owners, fake_items in zip(batches[0], users, batches[1], strict=True):
        np.testing.assert_array_equal(all_items[owners >= log.n_users], fake_items)


def test_existing_items_that_nobody_has_clicked_meet_uniform_negatives_too() -> None:
    log = Interactions(np.array([0, 0, 1]), np.array([0, 5, 1]), n_users=3, n_items=7)
    schedule = schedule_of(log, epochs=300, popular_negatives=0.0, below=6)
    profile = np.full((2, 5), 3)
    triples = schedule.examples(log, profile, clicked(log, profile))
    n_met = (triples.negatives[triples.users < 3] == 3).sum()
    # Users 0 and 1 have two events and one, and 4 and 5 items below 6 that they have not seen.
    assert n_met / 300 == pytest.approx(2 / 4 + 1 / 5, rel=0.15)


@pytest.mark.parametrize(
    "settings", [{}, {"popular_negatives": 0.0}, {"below": 20}, {"replay": 0.0}], ids=str
)
def test_the_kernel_puts_together_what_the_plain_schedule_does(
    settings: dict[str, object], log: Interactions, profile: NDArray[np.int64]
) -> None:
    schedule = schedule_of(log, epochs=30, **settings)
    rows = schedule.rows
    for clicks in (profile, np.full((2, 5), 20), np.arange(10).reshape(2, 5)):
        is_learnt = clicked(log, clicks) & (np.arange(log.n_items) != 0)
        filled, users, items, negatives = (
            np.empty(len(rows.kinds), dtype=np.int32) for _ in range(4)
        )
        bounds = np.empty_like(rows.batch_indptr)
        fill_logits(
            rows.user_ids,
            rows.kinds,
            rows.clicks,
            rows.item_ids,
            rows.seed,
            rows.below,
            rows.popular_negatives,
            *log.seen,
            clicks,
            np.concatenate([log.item_ids, clicks.ravel()]),
            filled,
        )
        fill_triples(
            rows.user_ids,
            rows.kinds,
            filled,
            schedule.positives,
            rows.batch_indptr,
            is_learnt,
            users,
            items,
            negatives,
            bounds,
        )
        expected = schedule.examples(log, clicks, is_learnt)
        np.testing.assert_array_equal(bounds, expected.batch_indptr)
        for ids, wanted in zip((users, items, negatives), expected[:3], strict=True):
            np.testing.assert_array_equal(ids[: bounds[-1]], wanted)


def test_kernel_and_schedule_mean_the_same_by_their_constants() -> None:
    for name in ("CLICK", "FIRST"):
        assert getattr(ngcf_warm_kernel, name) == getattr(mf_bce_schedule, name)


# -- the clean run -------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "kept"), [(5, [0, 2, 4]), (0, [0, 0, 0])], ids=str)
def test_the_run_is_what_shorter_trainings_by_bpr_end_with(
    epochs: int, kept: list[int], log: Interactions
) -> None:
    def start() -> Factors:
        return Factors.draw(log, 3, 0.5, np.random.default_rng(3))

    settings = {
        "n_negative_items": 20,
        "popular_negatives": 0.5,
        "learning_rate": 0.1,
        "reg": 0.1,
        "seed": 9,
    }
    factors = start()
    run = fit_warm(factors, log, epochs=epochs, n_waypoints=3, **settings)  # type: ignore[arg-type]  # mixed
    assert CleanRun.epochs(3, epochs) == kept
    for place, n_epochs in enumerate([*kept, epochs]):
        expected = start()
        fit_bpr(expected, log, epochs=n_epochs, **settings)  # type: ignore[arg-type]  # mixed
        found = run.past[:, place] if place < 3 else layer_zero(factors)
        np.testing.assert_array_equal(found, layer_zero(expected))
    np.testing.assert_array_equal(run.first, layer_zero(start())[: log.n_items])


def fitted(log: Interactions, **settings: object) -> NGCF:
    lively = {"embedding_size": 6, "epochs": 4, "batch_size": 64, "warm_start_epochs": 8}
    return NGCF({**lively, **settings}).fit(log, np.random.default_rng(3), n_new_items=N_NEW)


def test_the_run_survives_saving_and_decides_what_fine_tuning_gives(
    log: Interactions, profile: NDArray[np.int64], tmp_path: Path
) -> None:
    victim = fitted(log)
    victim.save(tmp_path / "victim.npz")
    loaded = NGCF.load(tmp_path / "victim.npz", log)
    for name in ("past", "first"):
        np.testing.assert_array_equal(loaded.state[name], victim.state[name])
    before, after = (v.poisoned(profile, 2, "finetune").state for v in (victim, loaded))
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    loaded._run.past[:, 1] += 0.5
    changed = loaded.poisoned(profile, 2, "finetune").state["embeddings"]
    assert np.abs(changed[20] - before["embeddings"][20]).max() > 1e-3


@pytest.mark.parametrize(("name", "cut"), [("past", np.s_[:, :3]), ("first", np.s_[:5])])
def test_a_run_that_does_not_fit_is_refused_by_name(
    name: str, cut: tuple[slice, ...] | slice, log: Interactions, tmp_path: Path
) -> None:
    path = tmp_path / "victim.npz"
    fitted(log).save(path)
    header, state = read_arrays(path, "victim")
    write_arrays(path, header, {**state, name: state[name][cut]})
    with pytest.raises(ArtifactError, match=f"'{name}'"):
        NGCF.load(path, log)


def test_a_poisoned_victim_can_be_poisoned_again(
    log: Interactions, profile: NDArray[np.int64], make_lists: MakeLists
) -> None:
    poisoned = fitted(log).poisoned(profile, 5, "finetune")
    rows, past = poisoned._embeddings, poisoned._run.past
    for place in range(past.shape[1]):
        np.testing.assert_array_equal(past[-2:, place], rows[-2:])
        np.testing.assert_array_equal(past[np.unique(profile), place], rows[np.unique(profile)])
    lists = make_lists(poisoned.log, [20, 22])
    second = np.array([[[22, 22, 20, 3]]])
    fast = poisoned.engine(lists).exposure(second, 6)
    np.testing.assert_array_equal(fast, poisoned.engine(lists, backend="plain").exposure(second, 6))


def test_clicked_items_start_afresh_or_end_where_the_clean_run_does(log: Interactions) -> None:
    # Item 20 has no genuine click: what became of it does not matter. Item 0 has many, so it ends near its
    # clean row wherever the waypoints are; a shift of its whole run cancels.
    victim = fitted(log, finetune_epochs=0, new_items_as_negatives=True)
    profile = np.array([[20, 0, 20], [20, 20, 20]])
    before = victim.poisoned(profile, 1, "finetune")._embeddings
    clean = victim._embeddings
    assert 0.0 < np.abs(before[0] - clean[0]).max() < 0.5 * np.abs(clean[0]).max()
    victim._embeddings = clean.copy()
    victim._embeddings[[0, 20, 22]] += 2.0
    after = victim.poisoned(profile, 1, "finetune")._embeddings
    np.testing.assert_allclose(after[0], before[0] + 2.0, atol=1e-5)
    np.testing.assert_array_equal(after[20], before[20])
    np.testing.assert_array_equal(after[22], before[22] + np.float32(2.0))


def test_attacks_are_ordered_as_full_retraining_orders_them() -> None:
    # even users click even items, odd users odd ones, the first of 60 ones most
    rng = np.random.default_rng(0)
    weights = 1.0 / np.arange(1, 61)
    users = np.repeat(np.arange(800), 10)
    items = 2 * rng.choice(60, 8_000, p=weights / weights.sum()) + users % 2
    log = Interactions(users, items, n_users=800, n_items=122)
    victim = NGCF({"embedding_size": 16, "batch_size": 1024})
    victim.fit(log, np.random.default_rng(1), n_new_items=2)
    everything = np.tile(np.arange(122), (800, 1))

    def gain(model: NGCF) -> NDArray[np.float64]:
        scores = model.score(np.arange(800), everything).astype(np.float64)
        gained: NDArray[np.float64] = scores[:, 120] - scores[:, :120].mean(axis=1)
        return gained

    attacks = (  # strongest first
        np.array([[120, 1, 3, 5, 7, 9, 11, 13]] * 8),
        np.array([[120, 0, 2, 120, 4, 0, 120, 2]] * 8),
        np.array([[120, 0, 2, 120, 4, 0, 120, 2]] * 30),
        np.full((8, 8), 120),
    )
    cheap, full = (
        np.stack([gain(victim.poisoned(attack, 0, how)) for attack in attacks]) - gain(victim)
        for how in RETRAINS
    )
    assert (np.diff(full.mean(axis=1)) < 0).all()
    assert (np.diff(cheap.mean(axis=1)) < 0).all()
    np.testing.assert_allclose(cheap.mean(axis=1), full.mean(axis=1), atol=0.5)
    assert np.corrcoef(cheap.ravel(), full.ravel())[0, 1] > 0.75


def test_fine_tuning_is_laid_out_by_the_settings_of_the_stage_that_it_stands_for(
    log: Interactions,
) -> None:
    settings = {"warm_start_epochs": 30, "finetune_epochs": 5, "popular_negatives": 0.7}
    victim = fitted(log, **settings, initial_scale=0.3, new_items_as_negatives=True)
    plan = victim._plan(log, (40, 50), 3)
    stages = (plan.warm.rows, 30, BPRConfig().popular_negatives), (plan.last.rows, 5, 0.7)
    for rows, n_epochs, popular in stages:
        assert (rows.kinds == mf_bce_schedule.CLICK).sum() == n_epochs * 40 * 50
        assert rows.popular_negatives == popular
        assert rows.below == log.n_items
    assert plan.warm.rows.seed != plan.last.rows.seed  # or both stages would draw the same
    assert len(plan.last.rows.batch_indptr) == 5 + 1
    assert len(np.unique(plan.warm.rows.waypoints)) == victim.config.finetune_waypoints
    assert plan.fakes[:, :-1].std() == pytest.approx(0.3, rel=0.15)
    assert (plan.fakes[:, -1] == 1.0).all()
    twice = fitted(log, **settings, finetune_replay=2.0, new_items_as_negatives=True)
    other = twice._plan(log, (40, 50), 3)
    for stage, often in ((plan.warm, other.warm), (plan.last, other.last)):
        n_met, n_often = ((s.rows.user_ids < log.n_users).sum() for s in (stage, often))
        assert n_often == pytest.approx(2 * n_met, abs=3)
        assert n_met > 10


# -- a step --------------------------------------------------------------------------------------


def test_a_fake_click_and_a_genuine_negative_by_hand() -> None:
    # d = 1 and the bias. Fake user (1, 1) clicks item 0 = (2, 0), its negative is item 1, which rests at
    # (-1, 1); genuine user 0 stands at (3, 1), has clicked item 1 and meets item 0. Rate 0.1, penalty 0.5.
    past = np.array([[[9, 9]], [[-1, 1]], [[3, 1]]], dtype=np.float32)  # items 0 and 1, user 0
    fakes, items, moved = (
        np.array(rows, dtype=np.float32) for rows in ([[1, 1]], [[2, 0], [9, 9]], [[0, 0]])
    )
    gradients = [np.zeros_like(rows) for rows in (fakes, items, moved)]
    train_beside(
        fakes,
        items,
        moved,
        np.array([0.5, 0.0], dtype=np.float32),  # half of the clicks on item 0 are fake
        np.zeros(0, dtype=np.int64),
        past,
        np.array([1, 0], dtype=np.int32),
        np.array([0, 1], dtype=np.int32),
        np.array([1, 0], dtype=np.int32),
        np.array([0, 2]),
        np.array([0]),
        0.1,
        0.5,
        *gradients,
    )
    fake_pull = 1 / (1 + math.exp((2 + 0) - (-1 + 1)))
    genuine_pull = 1 / (1 + math.exp((-3 + 1) - (6 + 0)))
    to_factor = fake_pull * 1 - genuine_pull * 3 - 0.5 * 2 * 2
    to_bias = fake_pull * 1 - genuine_pull * 1
    np.testing.assert_allclose(fakes, np.array([[1 + 0.1 * (fake_pull * 3 - 0.5), 1]]), rtol=1e-5)
    expected = np.array([[2 + 0.05 * to_factor, 0.05 * to_bias], [9, 9]])
    np.testing.assert_allclose(items, expected, rtol=1e-5)
    np.testing.assert_allclose(moved, np.array([[-0.1 * genuine_pull * 2, 0]]), rtol=1e-5)
    assert not any(gradient.any() for gradient in gradients)


def test_waypoints_must_be_some() -> None:
    with pytest.raises(ArgumentError, match="finetune_waypoints"):
        NGCF({"finetune_waypoints": 0})


def test_the_run_of_a_poisoned_model_keeps_genuine_users_where_they_were() -> None:
    rng = np.random.default_rng(0)
    past = rng.standard_normal((5, 2, 3)).astype(np.float32)  # two items, three users
    end = rng.standard_normal((6, 3)).astype(np.float32)
    run = WarmRun(past, past[:2, 0].copy()).after(end, np.array([1]))
    np.testing.assert_array_equal(run.past[[0, 2, 3, 4]], past[[0, 2, 3, 4]])
    for place in range(2):
        np.testing.assert_array_equal(run.past[[1, 5], place], end[[1, 5]])
    assert (past[1] != end[1]).all()
