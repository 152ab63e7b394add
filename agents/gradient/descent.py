"""Gradient descent on the fake users' profiles themselves: what PGA and RevAdv have in common."""

import time
from abc import abstractmethod
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agents.gradient.attack import AttackRun, SurrogateAttacker, SurrogateAttackerConfig
from agents.gradient.kernels import Real
from agents.gradient.profiles import Task, as_clicks, project
from agents.gradient.surrogates import Surrogate, SurrogateConfig
from agents.interruption import raise_if_interrupted
from recattack_gym.core.checks import as_count, as_real
from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.random import draw_seed


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileDescentConfig(SurrogateAttackerConfig):
    """Settings of attackers that descend along a gradient with respect to clicks."""

    epochs: int = 50
    """Epochs of each retraining."""
    batch_size: int = 2048
    """Users per step of the surrogate."""
    positive_weight: float = 1.0
    """Weight of clicked cells in the surrogate's squared error."""
    attack_epochs: int = 30
    """Retrainings, each followed by a step on the profiles."""
    attack_learning_rate: float = 1.0
    """Length of a step: each fake user's gradient is normalised."""
    attack_momentum: float = 0.95
    """Of the steps, in `[0, 1)`; it lives on across projections."""
    list_length: int = 50
    """K of the hit rate by which the best profiles are chosen."""
    click_targets: bool = True
    """Whether every fake user clicks the targets in any case (an option in RevAdv's code, never in GP-lab).

    New targets have no clicks of which a surrogate could learn anything, so they need it.
    """

    def __post_init__(self) -> None:
        SurrogateAttackerConfig.__post_init__(self)
        for name in ("attack_epochs", "list_length"):
            as_count(name, getattr(self, name))
        as_real("attack_learning_rate", self.attack_learning_rate, above=0.0)
        if not 0.0 <= as_real("attack_momentum", self.attack_momentum) < 1.0:
            raise ArgumentError(f"attack_momentum must lie in [0, 1), got {self.attack_momentum}")
        if not isinstance(self.click_targets, bool):
            raise ArgumentError(f"click_targets must be true or false, got {self.click_targets!r}")

    def surrogate_config(self) -> SurrogateConfig:
        """Return the settings of the surrogate: matrix factorisation with a squared error."""
        common = SurrogateAttackerConfig.surrogate_config(self)
        return replace(common, loss="mse", positive_weight=self.positive_weight)


class ProfileDescent(SurrogateAttacker):
    """Retrain a surrogate on the present profiles, and move the profiles so that its loss on targets falls.

    Profiles are rows of a matrix X of zeros and ones. They begin as copies of genuine users with at most
    `profile_size` items. Each epoch trains a new surrogate, always from the same seed, so that X alone
    decides what comes of it; then `X <- X - rate * momentum(gradient)`, each row's gradient normalised, and
    the largest `profile_size` entries of a row become ones again. The X with the best hit rate of the
    surrogate is planned; equal rates (often zero) are decided by the loss.

    With fewer clicks than targets, and `click_targets`, fake users take turns on the targets and nothing is
    left to descend on. In a catalogue with too few items a profile repeats its items.
    """

    config: ProfileDescentConfig
    config_class = ProfileDescentConfig

    def attack(self, task: Task, rng: np.random.Generator) -> AttackRun:
        """See `SurrogateAttacker.attack`."""
        start, config = time.process_time(), self.config
        seed = draw_seed(rng)
        nothing = np.empty(0, dtype=np.int64)
        forced = [
            task.targets_of(fake) if config.click_targets else nothing
            for fake in range(task.n_fake_users)
        ]
        present = initial_profiles(task, forced, rng)
        is_done = all(len(own) == len(each) for own, each in zip(forced, present, strict=True))
        best, best_key = present, (-1.0, 0.0)
        velocity = np.zeros((task.n_fake_users, task.log.n_items), dtype=np.float32)
        training_seconds, curve = 0.0, list[float]()
        for _ in range(0 if is_done else config.attack_epochs):
            raise_if_interrupted()
            surrogate = Surrogate(task.graph(present), config.surrogate_config(), seed=seed)
            loss, hit_rate, gradient = self._step(surrogate, task)
            training_seconds += surrogate.training_seconds
            curve.append(hit_rate)
            if (hit_rate, -loss) > best_key or len(curve) == 1:
                best, best_key = present, (hit_rate, -loss)
            velocity *= np.float32(config.attack_momentum)
            velocity += unit_rows(gradient, forced)
            values = -np.float32(config.attack_learning_rate) * velocity
            for row, own in zip(values, present, strict=True):
                row[own] += 1
            present = project(values, task.profile_size, forced)
        return AttackRun(
            item_ids=as_clicks(best, task.profile_size, rng),
            n_retrainings=len(curve),
            training_seconds=training_seconds,
            total_seconds=time.process_time() - start,
            curve=tuple(curve),
        )

    @abstractmethod
    def _step(self, surrogate: Surrogate, task: Task) -> tuple[float, float, NDArray[Real]]:
        """Train a surrogate; return loss, hit rate, and the gradient by clicks, `(n_fake_users, n_items)`."""


def initial_profiles(
    task: Task, forced: list[NDArray[np.int64]], rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Return sets of items to begin with: those of random genuine users with at most T items.

    Rows are drawn with replacement; where nobody has so few items, from all users with items. What is too
    much is left out at random, what is missing to T is filled up with random items.

    Args:
        task: What the attack is about.
        forced: Items that each fake user has in any case.
        rng: Source of randomness.

    Returns:
        Ascending and distinct items, `min(T, n_items)` for each fake user.
    """
    indptr, items = task.log.seen
    sizes = np.diff(indptr)
    donors = np.flatnonzero((sizes > 0) & (sizes <= task.profile_size))
    donors = donors if len(donors) else np.flatnonzero(sizes > 0)
    values = rng.random((task.n_fake_users, task.log.n_items), dtype=np.float32)
    if len(donors):
        for row, donor in zip(values, rng.choice(donors, size=task.n_fake_users), strict=True):
            row[items[indptr[donor] : indptr[donor + 1]]] += 1
    return project(values, task.profile_size, forced)


def unit_rows(gradient: NDArray[Real], forced: list[NDArray[np.int64]]) -> NDArray[np.float32]:
    """Return rows of length 1, zero at forced items; rows that are zero stay zero."""
    rows = gradient.astype(np.float64)
    for row, own in zip(rows, forced, strict=True):
        row[own] = 0.0
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (rows / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
    return unit
