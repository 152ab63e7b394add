"""Uniform: items and ratings at random, the floor for attacks on predicted ratings."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.gradient.ratings.base import RatingAttack, RatingAttackConfig, random_items
from recattack_gym.core import AttackBudget
from recattack_gym.simulator import RatingGoal, RatingPlatform
from recattack_gym.victims.least_squares import TOP


@dataclass(frozen=True, kw_only=True, slots=True)
class UniformConfig(RatingAttackConfig):
    """Settings of Uniform."""


class Uniform(RatingAttack):
    """Rate random items at random.

    Li, Wang, Singh & Vorobeychik, NIPS 2016, section 5: "uniform attacks".

    Differs from the paper: `force_targets` is ours.
    """

    name = "uniform"
    config_class = UniformConfig
    config: UniformConfig

    def _attack(
        self,
        platform: RatingPlatform,
        goal: RatingGoal,
        budget: AttackBudget,
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        items = random_items(platform.n_items, budget, self._forced(goal), rng)
        return items, rng.uniform(-TOP, TOP, items.shape)
