"""Semi-SAD: naive Bayes from a few known users that also learns from those it has to judge."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count, as_real
from recattack_gym.core.interactions import Interactions
from recattack_gym.defenses import features
from recattack_gym.defenses.base import DetectorConfig, State, SupervisedDetector
from recattack_gym.defenses.pairs import UserItems

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class SemiSADConfig(DetectorConfig):
    """Settings of `SemiSAD`."""

    weight: float = 0.3
    """Lambda: how much a user to be judged weighs beside a known one; 0 learns from known ones alone."""
    max_iterations: int = 100
    """Most rounds of expectation and maximisation."""
    smoothing: float = 0.01
    """Added to every variance of the standardised features.

    1e-9 is the formula's. Simulated fake users often have all the same length, and with so little the
    classifier takes anybody with another length for genuine, with certainty.
    """

    def __post_init__(self) -> None:
        as_real("weight", self.weight, at_least=0.0, at_most=1.0)
        as_count("max_iterations", self.max_iterations)
        as_real("smoothing", self.smoothing, above=0.0)


class SemiSAD(SupervisedDetector):
    """Suspect users by a naive Bayes classifier that is retrained on the users to be judged.

    Cao, Wu, Mao and Zhang, "Shilling attack detection utilizing semi-supervised learning method for
    collaborative recommender system", World Wide Web 2013: entropy, DegSim, LengthVar, RDMA and FMTD;
    Gaussian naive Bayes with equal priors; EM in which users without label weigh lambda. The score is the
    logarithm of the odds.

    Differs from the paper: features are standardised by the known users' mean and deviation, lest the
    constant added to variances drown the small ones; that constant, and lambda, are ours.
    """

    name = "semi-sad"
    needs_ratings = True
    config: SemiSADConfig
    config_class = SemiSADConfig

    def _fit(self, log: Interactions, is_fake: NDArray[np.bool_], rng: np.random.Generator) -> None:
        del rng  # nothing is random
        self._known, self._is_fake = _features(log), is_fake

    def _scores(self, log: Interactions) -> Vector:
        mean, spread = self._known.mean(axis=0), self._known.std(axis=0)
        scale = np.where(spread > 0, spread, 1.0)
        known, judged = (self._known - mean) / scale, (_features(log) - mean) / scale
        mixture = expectation_maximisation(
            known,
            self._is_fake,
            judged,
            self.config.weight,
            self.config.max_iterations,
            smoothing=self.config.smoothing,
        )
        return mixture.log_odds(judged)

    def _state(self) -> State:
        return {"known": self._known, "is_fake": self._is_fake}

    def _restore(self, state: State) -> None:
        self._known, self._is_fake = state["known"], state["is_fake"]


def _features(log: Interactions) -> Matrix:
    pairs = UserItems.of(log)
    return np.stack(
        [
            features.entropy(pairs),
            features.deg_sim(pairs),
            features.length_var(pairs),
            features.rdma(pairs),
            features.fmtd(pairs, "push"),
        ],
        axis=1,
    )


@dataclass(frozen=True, eq=False)
class Mixture:
    """Independent normal features of genuine and of fake users.

    Args:
        means: Shape `(2, n_features)`: genuine, fake.
        variances: Shape `(2, n_features)`.
    """

    means: Matrix
    variances: Matrix

    def log_odds(self, rows: Matrix) -> Vector:
        """Return log p(fake) - log p(genuine) under equal priors; shape `(n_users,)`."""
        genuine, fake = (
            (-0.5 * (rows - mean) ** 2 / variance - 0.5 * np.log(variance)).sum(axis=1)
            for mean, variance in zip(self.means, self.variances, strict=True)
        )
        odds: Vector = fake - genuine
        return odds

    @classmethod
    def of(cls, rows: Matrix, weights: Matrix, smoothing: float) -> "Mixture":
        """Return the best mixture for some rows; `weights` `(n_rows, 2)`."""
        total = weights.sum(axis=0)[:, None]
        means = weights.T @ rows / total
        squares = [w @ (rows - mean) ** 2 for w, mean in zip(weights.T, means, strict=True)]
        return cls(means, np.stack(squares) / total + smoothing)


def expectation_maximisation(
    known: Matrix,
    is_fake: NDArray[np.bool_],
    judged: Matrix,
    weight: float,
    max_iterations: int,
    *,
    smoothing: float = 1e-9,
) -> Mixture:
    """Return the mixture of known and judged users.

    Args:
        known: Features of known users.
        is_fake: Which of them are fake.
        judged: Features of the others.
        weight: Lambda, of each of the others beside a known one.
        max_iterations: Rounds, unless no mean, deviation or probability changes by 1e-6 any more.
        smoothing: Added to every variance.
    """
    from scipy.special import expit

    fixed = np.stack([~is_fake, is_fake], axis=1).astype(np.float64)
    rows = np.concatenate([known, judged])
    mixture = Mixture.of(known, fixed, smoothing)
    if weight == 0 or not len(judged):
        return mixture
    before: Vector = np.full(len(judged), np.inf)
    for _ in range(max_iterations):
        probability: Vector = expit(mixture.log_odds(judged))
        soft = weight * np.stack([1.0 - probability, probability], axis=1)
        moved = Mixture.of(rows, np.concatenate([fixed, soft]), smoothing)
        change = max(
            float(np.abs(moved.means - mixture.means).max()),
            float(np.abs(np.sqrt(moved.variances) - np.sqrt(mixture.variances)).max()),
            float(np.abs(probability - before).max()),
        )
        mixture, before = moved, probability
        if change < 1e-6:
            break
    return mixture
