"""The detector that is retrained: what it sees, from whom it learns, and that nobody is judged in-sample."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions, StateError, UnknownNameError
from recattack_gym.datasets import SyntheticConfig, generate
from recattack_gym.defenses import DETECTORS
from recattack_gym.defenses.features import popularity
from recattack_gym.defenses.held_out import (
    N_FOLDS,
    RETRAINABLE,
    HeldOutDetector,
    Snapshot,
    fold_of,
    quick_features,
    shares_below,
)
from recattack_gym.defenses.pairs import UserItems
from recattack_gym.defenses.svm import click_features
from recattack_gym.metrics import detection_auc

SETTINGS: dict[str, dict[str, Any]] = {
    "svm-quick": {"c_grid": (1.0,), "gamma_grid": (0.1,)},
    "svm-clicks": {"c_grid": (1.0,), "gamma_grid": (0.1,)},
    "pop-sad": {},
    "degree-sad": {},
}


def small_log() -> Interactions:
    made = generate(
        SyntheticConfig(n_users=120, n_items=80, n_events=2000), np.random.default_rng(3)
    )
    return made.log.with_catalogue(84)


def attack(seed: int, targets: tuple[int, ...] = (80, 81)) -> NDArray[np.int64]:
    """Return six fake users who click targets and the rarest items in turn, shape `(6, 8)`."""
    rng = np.random.default_rng(seed)
    rare = np.argsort(small_log().item_popularity[:80], kind="stable")[:30]
    clicks = rng.choice(rare, (6, 8))
    clicks[:, ::2] = rng.choice(targets, (6, 4))
    return clicks.astype(np.int64)


def known(*attacks: NDArray[np.int64]) -> list[Snapshot]:
    return [Snapshot(each, np.ones(len(each), dtype=np.bool_)) for each in attacks]


def test_quick_features_by_hand() -> None:
    # Item 0 has users 0, 1 and 2 (shares 3/4), item 1 user 0 alone, item 2 user 3, twice.
    log = Interactions(np.array([0, 0, 1, 2, 3, 3]), np.array([0, 1, 0, 0, 2, 2]), 4, 3)
    rows = quick_features(log)
    high, low = np.log(0.75), np.log(0.25)
    half = (high - low) / 2
    expected = [
        [np.log(2), (high + low) / 2, half, 0, 3 / 5, 0],
        [0, high, 0, 0, 3 / 5, 0],
        [0, high, 0, 0, 3 / 5, 0],
        [0, low, 0, 0, 1 / 5, 0.5],
    ]
    np.testing.assert_allclose(rows, expected, atol=1e-12)


def test_an_item_is_rare_up_to_its_share() -> None:
    users = np.arange(400)
    items = np.full(400, 2)
    items[:2], items[2:5] = 0, 1  # 0.5 % and 0.75 % of the users
    assert quick_features(Interactions(users, items, 400, 3))[:6, 3].tolist() == [1, 1, 0, 0, 0, 0]


def test_rows_are_those_of_the_registered_detectors() -> None:
    log = small_log().with_fake_users(attack(0))
    pairs = UserItems.of(log)
    learners = {name: parts(small_log(), config()) for name, (config, parts) in RETRAINABLE.items()}
    np.testing.assert_array_equal(learners["svm-clicks"].rows(log), click_features(log))
    kinds = [popularity(pairs, kind) for kind in ("mean", "range", "quartile")]
    np.testing.assert_array_equal(
        learners["degree-sad"].rows(log), np.stack(kinds, axis=1) / log.n_users
    )
    is_fake = np.arange(log.n_users) >= 120
    for name in ("pop-sad", "degree-sad", "svm-clicks"):
        registered = DETECTORS[name](SETTINGS[name])
        registered.fit(log, is_fake, np.random.default_rng(0))  # type: ignore[attr-defined]  # supervised
        config, parts = RETRAINABLE[name]
        own = parts(log.select(~is_fake[log.user_ids]), config(**SETTINGS[name]))
        rows = own.rows(log)
        if name == "pop-sad":  # its bins are those of the log with the fake users
            own._edges = registered._edges  # type: ignore[attr-defined]  # to compare the rest
            rows = own.rows(log)
        machine = own.learn(rows, is_fake, np.random.default_rng(0))
        np.testing.assert_array_equal(own.decide(machine, rows), registered.scores(log))


def test_the_part_of_an_account_is_a_matter_of_its_clicks_alone() -> None:
    log = small_log()
    folds = fold_of(log)
    poisoned = fold_of(log.with_fake_users(attack(0)))
    assert folds.tolist() == poisoned[:120].tolist()
    assert 40 < folds.sum() < 80
    assert set(np.unique(folds)) == set(range(N_FOLDS))
    backwards = log.select(log.user_ids >= 60)  # users 0 to 59 have no clicks
    assert fold_of(backwards)[60:].tolist() == folds[60:].tolist()
    one_two = Interactions(np.array([0, 0, 1, 1]), np.array([1, 2, 2, 1]), 2, 3)
    many = [fold_of(Interactions(one_two.user_ids, one_two.item_ids + i, 2, 99)) for i in range(32)]
    assert any(pair[0] != pair[1] for pair in many)  # the order of clicks counts


@pytest.mark.parametrize("kind", list(RETRAINABLE))
def test_no_genuine_account_is_judged_by_what_was_learnt_from_it(kind: str) -> None:
    """The slow twin: for each part, learn from the others by hand, then rank the part."""
    log, snapshots = small_log(), known(attack(0), attack(1))
    detector = HeldOutDetector(kind, SETTINGS[kind]).learn(log, snapshots, np.random.default_rng(5))
    judged = log.with_fake_users(attack(2))
    config, parts = RETRAINABLE[kind]
    learner, rng = parts(log, config(**SETTINGS[kind])), np.random.default_rng(5)
    fake = [learner.rows(log.with_fake_users(s.profiles))[120:] for s in snapshots]
    expected = np.zeros(judged.n_users)
    for fold in range(N_FOLDS):
        users = [u for u in range(120) if fold_of(log)[u] != fold]
        rows = np.concatenate([learner.rows(log)[users], *fake])
        machine = learner.learn(rows, np.arange(len(rows)) >= len(users), rng)
        own = np.flatnonzero(fold_of(judged) == fold)
        values = learner.decide(machine, learner.rows(judged)[own])
        for user, value in zip(own, values, strict=True):
            expected[user] = ((values < value).sum() + 0.5 * (values == value).sum()) / len(own)
    np.testing.assert_allclose(detector.scores(judged), expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["svm-quick", "svm-clicks", "degree-sad"])
def test_it_finds_accounts_like_those_it_has_learnt_from(kind: str) -> None:
    log = small_log()
    learnt = known(*(attack(seed) for seed in range(4)))
    detector = HeldOutDetector(kind, SETTINGS[kind]).learn(log, learnt, np.random.default_rng(0))
    judged = log.with_fake_users(attack(9, targets=(82, 83)))  # other clicks, other targets
    assert detection_auc(detector.scores(judged), np.arange(126) >= 120) > 0.9


def test_an_attack_is_looked_at_alone_however_many_there_were() -> None:
    """Thirty attacks on two targets do not make these thirty times as popular."""
    log, judged = small_log(), small_log().with_fake_users(attack(0))
    detectors = [
        HeldOutDetector("degree-sad", {"min_leaf": 1}).learn(
            log, known(*([attack(0)] * n)), np.random.default_rng(0)
        )
        for n in (1, 30)
    ]
    for machine in detectors[1]._machines:
        assert machine["share"][machine["left"] < 0].tolist()[0] in (0.0, 1.0)
    scores = [detector.scores(judged)[120:] for detector in detectors]
    assert scores[0].min() > 0.9
    assert scores[1].min() > 0.9


def test_fake_users_that_are_not_known_teach_nothing_but_stand_in_their_log() -> None:
    log, clicks = small_log(), attack(0)
    some = np.array([True, True, True, False, False, False])
    learner = HeldOutDetector("degree-sad")
    learner.learn(log, [Snapshot(clicks, some)], np.random.default_rng(0))
    rows = learner._fake_rows(log, Snapshot(clicks, some))
    everyone = learner._fake_rows(log, Snapshot(clicks, np.ones(6, dtype=np.bool_)))
    np.testing.assert_array_equal(rows, everyone[:3])
    alone = learner._fake_rows(log, Snapshot(clicks[:3], np.ones(3, dtype=np.bool_)))
    assert rows.tolist() != alone.tolist()  # targets have six users, not three


def test_shares_below_count_ties_half() -> None:
    assert shares_below(np.array([3.0, 1.0, 1.0, 2.0])).tolist() == [0.875, 0.25, 0.25, 0.625]
    assert shares_below(np.zeros(0)).tolist() == []


def test_same_state_same_detector_and_it_survives_pickling() -> None:
    log, learnt = small_log(), known(attack(0))
    one, two = (
        HeldOutDetector(settings=SETTINGS["svm-quick"]).learn(log, learnt, np.random.default_rng(1))
        for _ in range(2)
    )
    judged = log.with_fake_users(attack(1))
    copy = pickle.loads(pickle.dumps(one))  # noqa: S301  # our own
    assert (
        one.scores(judged).tolist() == two.scores(judged).tolist() == copy.scores(judged).tolist()
    )


@pytest.mark.parametrize("kind", list(RETRAINABLE))
def test_users_without_clicks_neither_teach_nor_change_scores(kind: str) -> None:
    log, learnt = small_log(), known(attack(0))
    judged = log.with_fake_users(attack(1))

    def scores(n_idle: int) -> list[float]:
        more = Interactions(log.user_ids, log.item_ids, log.n_users + n_idle, log.n_items)
        detector = HeldOutDetector(kind, SETTINGS[kind])
        found: list[float] = (
            detector.learn(more, learnt, np.random.default_rng(0)).scores(judged).tolist()
        )
        return found

    assert scores(0) == scores(5) == scores(1000)
    wider = Interactions(judged.user_ids, judged.item_ids, judged.n_users + 4, judged.n_items)
    detector = HeldOutDetector(kind, SETTINGS[kind]).learn(log, learnt, np.random.default_rng(0))
    assert detector.scores(wider)[: judged.n_users].tolist() == scores(0)


def test_misuse_is_refused() -> None:
    log = small_log()
    with pytest.raises(UnknownNameError, match="detector that can be retrained 'gru-attention'"):
        HeldOutDetector("gru-attention")
    with pytest.raises(UnknownNameError, match="setting of pop-sad 'min_leav'"):
        HeldOutDetector("pop-sad", {"min_leav": 3})
    with pytest.raises(ArgumentError, match="min_leaf must be"):
        HeldOutDetector("pop-sad", {"min_leaf": 0})
    detector = HeldOutDetector()
    with pytest.raises(StateError, match="has not been fitted"):
        detector.scores(log)
    with pytest.raises(ArgumentError, match="at least one known fake user, got none"):
        detector.learn(
            log, [Snapshot(attack(0), np.zeros(6, dtype=np.bool_))], np.random.default_rng(0)
        )
    lonely = Interactions(np.array([0]), np.array([1]), 3, 84)
    with pytest.raises(
        ArgumentError, match="genuine must have users with events in all 2 parts, got 1"
    ):
        detector.learn(lonely, known(attack(0)), np.random.default_rng(0))


def test_it_cannot_be_saved(tmp_path: Path) -> None:
    detector = HeldOutDetector("pop-sad").learn(
        small_log(), known(attack(0)), np.random.default_rng(0)
    )
    with pytest.raises(StateError, match="it cannot be saved"):
        detector.save(tmp_path / "detector.npz")
    assert not list(tmp_path.iterdir())
