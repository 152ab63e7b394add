"""What a platform does with a detector's scores: accounts that look worst are kept out of training."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_choice, as_real
from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_words
from recattack_gym.defenses.base import Detector

_TIES, _LOTTERY = 40, 41
"""Streams of the counter-based generator: the order of equal scores, and who of the weighted takes part."""

Action = Literal["drop", "weight"]
ACTIONS: tuple[Action, ...] = ("drop", "weight")


@dataclass(frozen=True)
class Screening:
    """Flag a fixed share of all accounts, the most suspicious ones, before every training.

    A platform does not know how many accounts are fake, so the share is a price that it has decided to
    pay: without an attack, all of the flagged users are genuine.

    What happens to the flagged is `action`. `"drop"` keeps them out of training. `"weight"` gives each a
    weight by its rank, and an account takes part in training with that probability, whole or not at all. In
    expectation every sum over accounts that a victim trains on is then the weighted sum, and no victim has to
    know of weights; a fraction of each account's *clicks* would not do that for victims that learn from
    sequences or from pairs of clicks, which thin out with the square of the fraction.

    The draw is a hash of the account's number and of the platform's seed, like the buckets of an experiment:
    the same at every training, with and without an attack. A larger weight lets in whom a smaller one does.
    With weights of 1 nothing is kept out, with weights of 0 the platform is that of `"drop"`, bit for bit.

    Args:
        detector: Scores the accounts of a log; a supervised one must be fitted.
        share: Of all accounts, in `(0, 1)`; the number is rounded up.
        action: `"drop"` or `"weight"`.
        weights: Of `"weight"`: what the most suspicious account and the last that is flagged tend to, each in
            `[0, 1]` and the first not the larger. Of n flagged accounts, the one of rank r from 0 has
            `weights[0] + (weights[1] - weights[0]) * (r + 1/2) / n`, whose mean is the middle. So `(0, 1)`
            with twice the share costs as much as `"drop"`.

    Raises:
        ArgumentError: If an argument is wrong.
    """

    detector: Detector
    share: float = 0.01
    action: Action = "drop"
    weights: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not isinstance(self.detector, Detector):
            raise ArgumentError(f"detector must be a Detector, got {self.detector!r}")
        share = as_real("share", self.share, above=0.0, at_most=1.0)
        if share == 1.0:
            raise ArgumentError("share must be below 1, got 1.0: all accounts would be flagged")
        as_choice("action", self.action, ACTIONS)
        if not isinstance(self.weights, tuple) or len(self.weights) != 2:
            raise ArgumentError(f"weights must be a tuple of two numbers, got {self.weights!r}")
        low, high = (as_real("weights", each, at_least=0.0, at_most=1.0) for each in self.weights)
        if low > high:
            raise ArgumentError(
                f"weights must not give the most suspicious account the larger one, got {self.weights!r}"
            )

    def n_flagged(self, n_users: int) -> int:
        """Return how many of `n_users` accounts are flagged."""
        return math.ceil(round(self.share * n_users, 9))

    def flags(self, log: Interactions) -> NDArray[np.bool_]:
        """Tell which accounts of a log are flagged, shape `(n_users,)`.

        Equal scores are ordered by a hash of the account's number, so that neither early accounts nor
        late ones (fake users come last) have an advantage.
        """
        return self.flags_and_drops(log, 0)[0]

    def drops(self, log: Interactions, seed: int) -> NDArray[np.bool_]:
        """Tell which accounts of a log are kept out of training, shape `(n_users,)`: some of the flagged.

        Args:
            log: What would be trained on.
            seed: The platform's, which decides who of the weighted takes part; in `[0, 2**63)`.
        """
        return self.flags_and_drops(log, seed)[1]

    def flags_and_drops(
        self, log: Interactions, seed: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return `flags(log)` and `drops(log, seed)`; the detector looks once."""
        worst = most_suspicious(self.detector.scores(log), self.n_flagged(log.n_users))
        flagged, dropped = np.zeros((2, log.n_users), dtype=np.bool_)
        flagged[worst] = True
        dropped[worst] = self.action == "drop" or ~_is_drawn(worst, self._weights(worst), seed)
        return flagged, dropped

    def account_weights(self, log: Interactions) -> NDArray[np.float64]:
        """Return with which probability each account takes part in training, shape `(n_users,)`."""
        weights = np.ones(log.n_users)
        worst = most_suspicious(self.detector.scores(log), self.n_flagged(log.n_users))
        weights[worst] = 0.0 if self.action == "drop" else self._weights(worst)
        return weights

    def _weights(self, worst: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the weights of flagged accounts `(n,)`, the most suspicious first; shape `(n,)`."""
        low, high = self.weights
        weights: NDArray[np.float64] = low + (high - low) * (np.arange(len(worst)) + 0.5) / len(
            worst
        )
        return weights


def _is_drawn(
    accounts: NDArray[np.int64], weights: NDArray[np.float64], seed: int
) -> NDArray[np.bool_]:
    """Tell which accounts `(n,)` take part in training, each with its probability; shape `(n,)`."""
    uniform = (counter_words(seed, _LOTTERY, accounts) >> np.uint64(11)).astype(
        np.float64
    ) * 2.0**-53
    drawn: NDArray[np.bool_] = uniform < weights
    return drawn


def most_suspicious(scores: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Return the `n` accounts with the highest scores, the highest first; ties by a hash of the account.

    Args:
        scores: Shape `(n_users,)`, finite.
        n: In `[0, n_users]`.
    """
    order = np.lexsort((counter_words(0, _TIES, np.arange(len(scores))), -scores))
    first: NDArray[np.int64] = order[:n].astype(np.int64)
    return first
