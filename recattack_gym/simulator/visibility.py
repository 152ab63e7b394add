"""How visible fake users are: what a detector makes of them in the log that they were injected into.

Nothing is trained and nobody is recommended anything, so this takes milliseconds and does not depend on the
victim.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recattack_gym.core.checks import as_real
from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.profiles import FakeProfiles, as_profile_batch
from recattack_gym.defenses import Detector
from recattack_gym.metrics import average_precision, detection_auc, recall_at_fpr


@dataclass(frozen=True, kw_only=True, slots=True)
class Visibility:
    """How well a detector's scores tell M sets of fake users from the genuine ones; each of shape `(M,)`."""

    auc: NDArray[np.float64]
    """Probability that a fake user scores higher than a genuine one; 0.5 is chance."""
    average_precision: NDArray[np.float64]
    """Mean precision over fake users; the share of fake users is chance."""
    recall: NDArray[np.float64]
    """Share of fake users that are found when `fpr` of the genuine ones may be flagged."""


def visibility(
    log: Interactions,
    profiles: FakeProfiles | ArrayLike,
    detector: Detector,
    *,
    fpr: float = 0.01,
) -> Visibility:
    """Inject poison sets into a log, each alone, and see how far the fake users stand out.

    Args:
        log: Genuine events, over a catalogue that has the target items.
        profiles: Item ids, shape `(M, N, T)`, or `(N, T)` for one set.
        detector: A supervised one must be fitted, on other attacks than these.
        fpr: Share of genuine users that may be flagged for `recall`, in [0, 1].

    Raises:
        ArgumentError: If shape or an item id is wrong, or `fpr` or the detector is.
        StateError: If a supervised detector has not been fitted.
    """
    if not isinstance(detector, Detector):
        raise ArgumentError(f"detector must be a Detector, got {detector!r}")
    as_real("fpr", fpr, at_least=0.0, at_most=1.0)
    batch = as_profile_batch(profiles, log.n_items)
    is_fake = np.arange(log.n_users + batch.shape[1]) >= log.n_users
    scores = [detector.scores(log.with_fake_users(profile)) for profile in batch]
    return Visibility(
        auc=np.array([detection_auc(each, is_fake) for each in scores]),
        average_precision=np.array([average_precision(each, is_fake) for each in scores]),
        recall=np.array([recall_at_fpr(each, is_fake, fpr) for each in scores]),
    )
