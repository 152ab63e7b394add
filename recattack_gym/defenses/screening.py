"""What a platform does with a detector's scores: accounts that look worst are kept out of training."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_real
from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_words
from recattack_gym.defenses.base import Detector

_TIES = 40
"""Stream of the counter-based generator that orders equal scores."""


@dataclass(frozen=True)
class Screening:
    """Flag a fixed share of all accounts, the most suspicious ones, before every training.

    A platform does not know how many accounts are fake, so the share is a price that it has decided to
    pay: without an attack, all of the flagged users are genuine.

    Args:
        detector: Scores the accounts of a log; a supervised one must be fitted.
        share: Of all accounts, in `(0, 1)`; the number is rounded up.

    Raises:
        ArgumentError: If an argument is wrong.
    """

    detector: Detector
    share: float = 0.01

    def __post_init__(self) -> None:
        if not isinstance(self.detector, Detector):
            raise ArgumentError(f"detector must be a Detector, got {self.detector!r}")
        share = as_real("share", self.share, above=0.0, at_most=1.0)
        if share == 1.0:
            raise ArgumentError("share must be below 1, got 1.0: all accounts would be flagged")

    def n_flagged(self, n_users: int) -> int:
        """Return how many of `n_users` accounts are flagged."""
        return math.ceil(round(self.share * n_users, 9))

    def flags(self, log: Interactions) -> NDArray[np.bool_]:
        """Tell which accounts of a log are flagged, shape `(n_users,)`.

        Equal scores are ordered by a hash of the account's number, so that neither early accounts nor
        late ones (fake users come last) have an advantage.
        """
        flagged = np.zeros(log.n_users, dtype=np.bool_)
        flagged[most_suspicious(self.detector.scores(log), self.n_flagged(log.n_users))] = True
        return flagged


def most_suspicious(scores: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Return the `n` accounts with the highest scores, the highest first; ties by a hash of the account.

    Args:
        scores: Shape `(n_users,)`, finite.
        n: In `[0, n_users]`.
    """
    order = np.lexsort((counter_words(0, _TIES, np.arange(len(scores))), -scores))
    first: NDArray[np.int64] = order[:n].astype(np.int64)
    return first
