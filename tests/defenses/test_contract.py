"""What holds for every detector in the registry."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import (
    ArgumentError,
    ArtifactError,
    Interactions,
    StateError,
    UnknownNameError,
)
from recattack_gym.defenses import DETECTORS, Detector, SupervisedDetector
from tests.defenses.cases import attacked

QUICK: dict[str, dict[str, object]] = {
    "svm": {"c_grid": (1.0,), "gamma_grid": (0.1,)},
    "svm-tia": {"c_grid": (1.0,), "gamma_grid": (0.1,)},
    "svm-clicks": {"c_grid": (1.0,), "gamma_grid": (0.1,)},
    "gru-attention": {"embedding_size": 8, "hidden_size": 8, "epochs": 12},
}
"""Settings with which a detector is done soon."""
ON_CLICKS = [name for name, kind in DETECTORS.items() if not kind.needs_ratings]
ON_BOTH = [
    (name, clicks)
    for name in DETECTORS
    for clicks in (False, True)
    if name in ON_CLICKS or not clicks
]

each_detector = pytest.mark.parametrize("name", DETECTORS)
each_kind_of_log = pytest.mark.parametrize(("name", "clicks"), ON_BOTH)


def fitted(name: str, *, clicks: bool, seed: int = 0) -> Detector:
    """Return a detector that may score; a supervised one has learnt from another log."""
    detector = DETECTORS[name](QUICK.get(name))
    if isinstance(detector, SupervisedDetector):
        log, is_fake = attacked(clicks=clicks, seed=77)
        detector.fit(log, is_fake, np.random.default_rng(seed))
    return detector


def renumbered(log: Interactions, order: NDArray[np.int64]) -> Interactions:
    """Return the log in which user `order[u]` is called `u`."""
    return dataclasses.replace(log, user_ids=np.argsort(order)[log.user_ids])


@each_kind_of_log
def test_scores_are_finite_one_per_user_and_the_same_every_time(name: str, clicks: bool) -> None:
    log, _ = attacked(clicks=clicks)
    first, again = (fitted(name, clicks=clicks).scores(log) for _ in range(2))
    assert first.shape == (log.n_users,)
    assert first.dtype == np.float64
    assert np.isfinite(first).all()
    assert np.array_equal(first, again)
    assert len(np.unique(first)) > 1


@each_kind_of_log
def test_finds_uniform_filler_items(name: str, clicks: bool) -> None:
    log, is_fake = attacked(clicks=clicks)
    scores = fitted(name, clicks=clicks).scores(log)
    above = scores[is_fake][:, None] > scores[~is_fake]
    assert (above + 0.5 * (scores[is_fake][:, None] == scores[~is_fake])).mean() > 0.75


@each_kind_of_log
def test_the_order_of_the_users_does_not_matter(name: str, clicks: bool) -> None:
    log, _ = attacked(clicks=clicks)
    order = np.random.default_rng(3).permutation(log.n_users)
    detector = fitted(name, clicks=clicks)
    np.testing.assert_allclose(
        detector.scores(renumbered(log, order)), detector.scores(log)[order], atol=1e-6
    )


@each_kind_of_log
def test_users_without_events_have_the_lowest_score_and_change_nothing(
    name: str, clicks: bool
) -> None:
    log, _ = attacked(clicks=clicks)
    detector = fitted(name, clicks=clicks)
    more = dataclasses.replace(log, user_ids=log.user_ids + 2, n_users=log.n_users + 5)
    scores = detector.scores(more)
    plain = detector.scores(log)
    assert np.array_equal(scores[2:-3], plain)
    assert (scores[[0, 1, -3, -2, -1]] == plain.min()).all()


@each_kind_of_log
@pytest.mark.parametrize("n_users", [0, 1, 2])
def test_a_log_of_hardly_any_user_is_scored(name: str, clicks: bool, n_users: int) -> None:
    n_events = 3 * n_users
    log = Interactions(
        np.repeat(np.arange(n_users), 3),
        np.arange(n_events) % 4,
        3,
        60,
        ratings=None if clicks else np.full(n_events, 3.0),
    )
    scores = fitted(name, clicks=clicks).scores(log)
    assert np.isfinite(scores).all()
    assert scores.shape == (3,)


@each_detector
def test_saved_and_pickled_detectors_score_as_before(name: str, tmp_path: Path) -> None:
    clicks = name in ON_CLICKS
    log, _ = attacked(clicks=clicks)
    detector = fitted(name, clicks=clicks)
    expected = detector.scores(log)
    detector.save(tmp_path / "detector.npz")
    loaded = DETECTORS[name].load(tmp_path / "detector.npz")
    assert loaded.config == detector.config
    assert np.array_equal(loaded.scores(log), expected)
    assert np.array_equal(pickle.loads(pickle.dumps(detector)).scores(log), expected)  # noqa: S301  # ours
    (other,) = [kind for kind in list(DETECTORS)[:2] if kind != name][:1]
    with pytest.raises(ArtifactError, match=f"must hold a '{other}' detector .*, got '{name}'"):
        DETECTORS[other].load(tmp_path / "detector.npz")


@each_detector
def test_fit_starts_from_scratch_and_only_supervised_ones_have_it(name: str) -> None:
    clicks = name in ON_CLICKS
    log, is_fake = attacked(clicks=clicks)
    detector, rng = DETECTORS[name](QUICK.get(name)), np.random.default_rng
    assert detector.is_supervised == isinstance(detector, SupervisedDetector)
    if not isinstance(detector, SupervisedDetector):
        assert not hasattr(detector, "fit")
        return
    with pytest.raises(StateError, match=f"'{name}' has not been fitted: call fit"):
        detector.scores(log)
    with pytest.raises(StateError, match=f"'{name}' has not been fitted: nothing to save"):
        detector.save("nowhere.npz")
    other, other_fake = attacked(clicks=clicks, seed=5)
    once = detector.fit(log, is_fake, rng(0)).scores(other)
    detector.fit(other, other_fake, rng(1))
    assert np.array_equal(detector.fit(log, is_fake, rng(0)).scores(other), once)


@each_detector
def test_mistakes_are_named(name: str) -> None:
    kind = DETECTORS[name]
    assert kind.name == name
    with pytest.raises(UnknownNameError, match=f"unknown setting of {name} 'no_such'"):
        kind({"no_such": 1})
    with pytest.raises(ArgumentError, match=f"config must be a {kind.config_class.__name__}"):
        kind(5)  # type: ignore[arg-type]  # the subject of the test
    assert kind(dataclasses.asdict(kind().config)).config == kind().config
    clicks = name in ON_CLICKS
    log, is_fake = attacked(clicks=clicks)
    detector = fitted(name, clicks=clicks)
    with pytest.raises(ArgumentError, match="log must be Interactions, got list"):
        detector.scores([1, 2])  # type: ignore[arg-type]  # the subject of the test
    if kind.needs_ratings:
        with pytest.raises(ArgumentError, match=f"log must have ratings for detector '{name}'"):
            detector.scores(attacked(clicks=True)[0])
    if not isinstance(detector, SupervisedDetector):
        return
    rng = np.random.default_rng(0)
    with pytest.raises(ArgumentError, match=r"is_fake must be a bool array of shape \(132,\)"):
        detector.fit(log, is_fake[:-1], rng)
    with pytest.raises(ArgumentError, match=r"is_fake must be a bool array .*, got int64"):
        detector.fit(log, is_fake.astype(np.int64), rng)
    for all_same in (np.zeros(132, dtype=np.bool_), np.ones(132, dtype=np.bool_)):
        with pytest.raises(ArgumentError, match="is_fake must mark at least one user"):
            detector.fit(log, all_same, rng)
    with pytest.raises(ArgumentError, match="rng must be a numpy"):
        detector.fit(log, is_fake, 0)  # type: ignore[arg-type]  # as above


@each_detector
def test_its_docstring_says_how_it_differs_from_the_paper(name: str) -> None:
    assert "Differs from the paper:" in str(DETECTORS[name].__doc__)


class Forgetful(SupervisedDetector):
    """Learns the first time only."""

    name = "forgetful"
    has_learnt = False

    def _fit(self, log: Interactions, is_fake: NDArray[np.bool_], rng: np.random.Generator) -> None:
        del log, is_fake, rng
        if self.has_learnt:
            raise ZeroDivisionError
        self.has_learnt = True

    def _scores(self, log: Interactions) -> NDArray[np.float64]:
        return np.zeros(log.n_users)


def test_a_detector_that_failed_to_learn_again_does_not_score() -> None:
    log, is_fake = attacked(clicks=True)
    detector = Forgetful().fit(log, is_fake, np.random.default_rng(0))
    assert not detector.scores(log).any()
    with pytest.raises(ZeroDivisionError):
        detector.fit(log, is_fake, np.random.default_rng(0))
    with pytest.raises(StateError, match="'forgetful' has not been fitted: call fit"):
        detector.scores(log)


def test_a_supervised_detector_has_to_say_how_it_learns() -> None:
    class Half(SupervisedDetector):
        name = "half"

        def _scores(self, log: Interactions) -> NDArray[np.float64]:
            return np.zeros(log.n_users)

    with pytest.raises(TypeError, match=r"abstract method .*_fit"):
        Half()  # type: ignore[abstract]  # the subject of the test


class Broken(Detector):
    """Gives what no detector may give."""

    name = "broken"

    def _scores(self, log: Interactions) -> NDArray[np.float64]:
        return np.full(log.n_users, np.nan)


def test_scores_that_are_not_finite_are_an_error_of_the_detector() -> None:
    with pytest.raises(StateError, match=r"'broken' must give one finite score .* 132 that"):
        Broken().scores(attacked(clicks=True)[0])
