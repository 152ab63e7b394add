"""How visible fake users are to detectors, against a count of pairs and thresholds one by one."""

import numpy as np
import pytest

from recattack_gym.core import ArgumentError, Interactions, StateError
from recattack_gym.defenses import DETECTORS, Popularity
from recattack_gym.simulator.visibility import visibility

RNG = np.random.default_rng(5)
N_USERS, N_ITEMS = 60, 40
# item 0 is everybody's favourite, the last ten are nobody's
ITEMS = np.minimum(RNG.geometric(0.1, 600) - 1, N_ITEMS - 11)
LOG = Interactions(RNG.integers(0, N_USERS, 600), ITEMS, N_USERS, N_ITEMS)
PROFILES = np.stack(
    [
        np.tile(np.arange(30, 40), (5, 1)),  # nobody else has these
        np.tile(np.arange(10), (5, 1)),  # everybody has these
        np.tile([30, 0, 1, 2, 31, 3, 4, 10, 11, 12], (5, 1)),
    ]
)


def test_numbers_are_those_counted_by_hand_over_the_poisoned_log() -> None:
    fpr = 0.1
    found = visibility(LOG, PROFILES, Popularity(), fpr=fpr)
    for number, profile in enumerate(PROFILES):
        scores = Popularity().scores(LOG.with_fake_users(profile))
        genuine, fake = scores[:N_USERS], scores[N_USERS:]
        pairs = [(f > g) + 0.5 * (f == g) for f in fake for g in genuine]
        assert found.auc[number] == pytest.approx(np.mean(pairs))
        allowed = [(fake >= t).mean() for t in scores if (genuine >= t).mean() <= fpr]
        assert found.recall[number] == pytest.approx(max(allowed, default=0.0))
        precisions = [(fake >= f).sum() / (scores >= f).sum() for f in fake]
        assert found.average_precision[number] == pytest.approx(np.mean(precisions))
    assert found.auc[0] == found.recall[0] == 1.0
    assert found.auc[1] < 0.2
    assert found.auc[1] < found.auc[2] < found.auc[0]


def test_sets_are_injected_alone_and_the_log_is_as_it_was() -> None:
    before = LOG.content_hash
    together = visibility(LOG, PROFILES, DETECTORS["ks-popularity"]())
    for number, profile in enumerate(PROFILES):
        alone = visibility(LOG, profile, DETECTORS["ks-popularity"]())
        assert alone.auc[0] == together.auc[number]
        assert alone.recall[0] == together.recall[number]
    assert LOG.content_hash == before


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ArgumentError, match="detector must be a Detector, got 'popularity'"):
        visibility(LOG, PROFILES, "popularity")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="fpr must be"):
        visibility(LOG, PROFILES, Popularity(), fpr=1.5)
    with pytest.raises(ArgumentError):
        visibility(LOG, np.full((2, 3), N_ITEMS), Popularity())
    with pytest.raises(StateError, match="has not been fitted"):
        visibility(LOG, PROFILES, DETECTORS["pop-sad"]())
