"""The examples of MF-BCE's fine-tuning come as often as in full retraining, whose own draws are counted."""

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import Interactions
from recattack_gym.victims import mf_bce_kernel, mf_bce_schedule
from recattack_gym.victims.epochs import NEGATIVES
from recattack_gym.victims.factors import make_factor_schedule
from recattack_gym.victims.kernels import draw_negatives
from recattack_gym.victims.mf_bce import MFBCEConfig
from recattack_gym.victims.mf_bce_kernel import fill_logits
from recattack_gym.victims.mf_bce_schedule import (
    CLICK,
    FIRST,
    FRESH,
    OTHER,
    PUSHED,
    LogisticSchedule,
    make_logistic_schedule,
    negative_rates,
)

N_NEW, N_NEGATIVES, POPULAR = 3, 3, 0.6
EPOCHS = 1500


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


def schedule_of(log: Interactions, **settings: object) -> LogisticSchedule:
    arguments = {
        "seed": 7,
        "epochs": EPOCHS,
        "replay": 1.0,
        "batch_size": 8,
        "n_negatives": N_NEGATIVES,
        "popular_negatives": POPULAR,
        "n_new_items": N_NEW,
        "below": log.n_items,
        "n_waypoints": 2,
        **settings,
    }
    return make_logistic_schedule(log, (2, 5), **arguments)  # type: ignore[arg-type]  # a mixture of types


def met_in_full_retraining(
    log: Interactions, profile: NDArray[np.int64], below: int, n_epochs: int
) -> NDArray[np.float64]:
    """Count how often each user of the poisoned log meets each item as a negative, per epoch."""
    poisoned = log.with_fake_users(profile)
    met = np.zeros((poisoned.n_users, log.n_items))
    order = np.arange(len(poisoned))
    drawn = np.empty((len(order), N_NEGATIVES), dtype=np.int32)
    ids = (order, poisoned.user_ids, poisoned.item_ids, *poisoned.seen, 3)
    for epoch in range(n_epochs):
        for share, columns in ((POPULAR, slice(0, 1)), (0.0, slice(1, None))):
            draw_negatives(*ids, NEGATIVES + epoch, below, share, drawn)
            np.add.at(met, (poisoned.user_ids[:, None], drawn[:, columns]), 1.0)
    return met / n_epochs


def met_in_fine_tuning(
    schedule: LogisticSchedule, log: Interactions, profile: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Count the same in a schedule."""
    users, items, labels = schedule.examples(log, profile)
    met = np.zeros((log.n_users + len(profile), log.n_items))
    is_negative = (labels == 0) & (items >= 0)
    np.add.at(met, (users[is_negative], items[is_negative]), 1.0)
    return met / EPOCHS


@pytest.mark.parametrize("new_items_are_negatives", [True, False])
def test_negatives_come_as_often_as_in_full_retraining(
    new_items_are_negatives: bool, log: Interactions, profile: NDArray[np.int64]
) -> None:
    below = log.n_items if new_items_are_negatives else log.n_items - N_NEW
    full = met_in_full_retraining(log, profile, below, EPOCHS)
    found = met_in_fine_tuning(schedule_of(log, below=below), log, profile)
    genuine, fake = slice(0, log.n_users), slice(log.n_users, None)
    for item in (20, 21):  # new items that fake users have clicked: uniform and popular negatives
        expected = full[genuine, item].sum()
        assert expected > 0.4
        assert found[genuine, item].sum() == pytest.approx(expected, rel=0.06)
        np.testing.assert_allclose(found[genuine, item], full[genuine, item], atol=0.2)
    if new_items_are_negatives:
        assert found[genuine, 22].sum() == pytest.approx(full[genuine, 22].sum(), rel=0.06)
    else:
        assert found[genuine, 22].sum() == full[genuine, 22].sum() == 0
    np.testing.assert_allclose(found[fake], full[fake], atol=0.1, rtol=0.04)
    assert (found[fake, :20].sum(axis=1) > 5.0).all()
    own = np.array([np.isin(np.arange(log.n_items), row) for row in profile])
    assert found[fake][own].sum() == full[fake][own].sum() == 0


def test_existing_items_are_pushed_as_often_as_full_retraining_draws_the_fake_clicks_of_them(
    log: Interactions, profile: NDArray[np.int64]
) -> None:
    # The draws of full retraining, with a record of which event a popular negative was taken from.
    rng = np.random.default_rng(0)
    events = np.concatenate([log.item_ids, profile.ravel()])
    met = np.zeros(log.n_items)
    n_epochs = 300
    for _ in range(n_epochs):
        for user in log.user_ids:
            seen = log.items_of(user)
            while True:
                event = rng.integers(len(events)) if rng.random() < POPULAR else -1
                item = events[event] if event >= 0 else rng.integers(log.n_items)
                if item not in seen:
                    break
            met[item] += event >= len(log)
    schedule = schedule_of(log)
    users, items, _ = schedule.examples(log, profile)
    pushed = items[schedule.kinds == PUSHED]
    found = np.bincount(pushed[pushed >= 0], minlength=log.n_items) / EPOCHS
    np.testing.assert_allclose(found, met / n_epochs, rtol=0.1, atol=0.06)
    assert not log.has(users, np.maximum(items, 0))[(schedule.kinds == PUSHED) & (items >= 0)].any()
    assert found[[0, 19, 1, 2]].sum() > 0.2
    assert np.flatnonzero(found).tolist() == [i for i in np.unique(profile) if met[i] > 0]


def test_every_epoch_has_every_fake_click_once_with_its_negatives_behind_it(
    log: Interactions, profile: NDArray[np.int64]
) -> None:
    schedule = schedule_of(log, epochs=6, batch_size=5)
    users, items, labels = schedule.examples(log, profile)
    clicks = np.flatnonzero(schedule.kinds == CLICK)
    per_epoch = schedule.clicks[clicks].reshape(6, 10)
    np.testing.assert_array_equal(np.sort(per_epoch, axis=1), np.tile(np.arange(10), (6, 1)))
    assert not (per_epoch[1:] == per_epoch[:-1]).all()
    np.testing.assert_array_equal(items[clicks], profile.ravel()[schedule.clicks[clicks]])
    np.testing.assert_array_equal(np.flatnonzero(labels == 1), clicks)
    for behind, kind in ((1, FIRST), (2, OTHER), (3, OTHER)):
        assert (schedule.kinds[clicks + behind] == kind).all()
        np.testing.assert_array_equal(users[clicks + behind], users[clicks])
    np.testing.assert_array_equal(users[clicks], log.n_users + schedule.clicks[clicks] // 5)
    # A batch is five clicks (of four examples each) and genuine negatives; none crosses an epoch.
    is_unit = ~np.isin(schedule.kinds, (FIRST, OTHER))
    bounds = schedule.batch_indptr
    assert (bounds[0], bounds[-1]) == (0, len(users))
    assert is_unit[bounds[:-1]].all()
    sizes = np.add.reduceat(is_unit, bounds[:-1])
    n_clicks = np.add.reduceat(schedule.kinds == CLICK, bounds[:-1])
    last = np.flatnonzero(np.cumsum(n_clicks) % 10 == 0)
    assert sizes.max() == 5
    assert (np.flatnonzero(sizes < 5)[:, None] == last).any(axis=1).all()
    assert np.unique(schedule.waypoints).tolist() == [0, 1]
    assert (np.diff(schedule.waypoints) >= 0).all()
    assert n_clicks[schedule.waypoints == 0].sum() == 30


@pytest.mark.parametrize(
    "settings",
    [{}, {"n_negatives": 1}, {"popular_negatives": 0.0}, {"popular_negatives": 1.0}, {"below": 20}],
    ids=str,
)
def test_the_kernel_fills_in_what_the_plain_schedule_fills_in(
    settings: dict[str, object], log: Interactions, profile: NDArray[np.int64]
) -> None:
    schedule = schedule_of(log, epochs=30, **settings)
    everything = np.arange(log.n_items).reshape(1, -1)  # a fake user who leaves no negatives
    for clicks in (profile, np.full((2, 5), 20), np.tile(everything, 2)[:, :10].reshape(2, 5)):
        found = np.empty(len(schedule.kinds), dtype=np.int32)
        fill_logits(
            schedule.user_ids,
            schedule.kinds,
            schedule.clicks,
            schedule.item_ids,
            schedule.seed,
            schedule.below,
            schedule.popular_negatives,
            *log.seen,
            clicks,
            np.concatenate([log.item_ids, clicks.ravel()]),
            found,
        )
        np.testing.assert_array_equal(found, schedule.examples(log, clicks)[1])


def test_kernel_and_schedule_mean_the_same_by_their_constants() -> None:
    for name in ("CLICK", "FIRST", "OTHER", "FRESH", "PUSHED", "COINS"):
        assert getattr(mf_bce_kernel, name) == getattr(mf_bce_schedule, name)


def test_a_fake_user_with_every_item_gets_some_negative_all_the_same(log: Interactions) -> None:
    schedule = make_logistic_schedule(
        log, (1, log.n_items), seed=1, epochs=2, replay=0.0, batch_size=8, n_negatives=2,
        popular_negatives=0.5, n_new_items=N_NEW, below=log.n_items, n_waypoints=1,
    )  # fmt: skip
    _, items, _ = schedule.examples(log, np.arange(log.n_items)[None])
    assert len(items) == 2 * 3 * log.n_items
    assert ((items >= 0) & (items < log.n_items)).all()


@pytest.mark.parametrize("replay", [0.0, 0.5, 2.0])
def test_replay_scales_the_number_of_genuine_negatives(replay: float, log: Interactions) -> None:
    uniform, popular = negative_rates(
        log, n_negatives=N_NEGATIVES, popular_negatives=POPULAR, below=log.n_items, n_clicks=10
    )
    kinds = schedule_of(log, epochs=11, replay=replay).kinds
    assert (kinds == FRESH).sum() == int(11 * replay * N_NEW * uniform.sum())
    assert (kinds == PUSHED).sum() == int(11 * replay * 10 * popular.sum())


def test_a_new_item_that_somebody_has_clicked_is_not_fresh() -> None:
    log = Interactions(np.array([0, 0, 1]), np.array([0, 5, 1]), n_users=3, n_items=7)
    schedule = schedule_of(log, epochs=50)
    assert np.unique(schedule.item_ids[schedule.kinds == FRESH]).tolist() == [4, 6]


def test_a_user_who_has_seen_everything_does_not_spoil_the_rates() -> None:
    users, items = np.repeat([0, 1], [4, 1]), np.array([0, 1, 2, 3, 0])
    log = Interactions(users, items, n_users=3, n_items=4)
    for below in (4, 0):
        for rates in negative_rates(
            log, n_negatives=2, popular_negatives=0.5, below=below, n_clicks=1
        ):
            assert np.isfinite(rates).all()
            assert rates[2] == 0
            assert (rates[:2] > 0).all()


def test_the_shared_schedule_draws_new_items_too_seldom_for_several_negatives(
    profile: NDArray[np.int64],
) -> None:
    # Why MF-BCE has a schedule of its own. One negative per click, as in BPR, is what the shared one is for:
    # of four, one uniform draw in two and three more, it has 0.5 * 4 where 0.5 + 3 are right.
    rng = np.random.default_rng(0)
    log = Interactions(
        np.repeat(np.arange(300), 10), rng.integers(0, 500, 3000), n_users=300, n_items=503
    )
    config = MFBCEConfig(finetune_epochs=400)
    for n_negatives, share in ((1, 1.0), (4, 2.0 / 3.5)):
        uniform, _ = negative_rates(
            log,
            n_negatives=n_negatives,
            popular_negatives=0.5,
            below=log.n_items,
            n_clicks=profile.size,
        )
        shared = make_factor_schedule(
            log,
            (2, 5),
            config,
            seed=1,
            n_negatives=n_negatives,
            popular_negatives=0.5,
            n_new_items=N_NEW,
        )
        users, _, negatives = shared.examples(log, profile)
        found = (negatives[users < log.n_users] == 502).sum() / 400 / uniform.sum()
        assert found == pytest.approx(share, rel=0.1)
