"""Random: targets among random company."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.base import Attacker, AttackerConfig
from agents.heuristic.clicks import NO_NUKE, alternate, other_items
from recattack_gym.core.view import AttackerView


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomConfig(AttackerConfig):
    """Random has nothing to set."""


class Random(Attacker):
    """Alternate a random target item and a random other item.

    PoisonRec (Song et al., "PoisonRec: An Adaptive Data Poisoning Framework for Attacking Black-box
    Recommender Systems", ICDE 2020), §V, baseline "Random"; after Lam and Riedl, WWW 2004.

    Differs from the paper: none known; it does not say which click comes first, here the target.
    """

    name = "random"
    config_class = RandomConfig
    why_not = NO_NUKE

    def _plan(self, view: AttackerView, rng: np.random.Generator) -> NDArray[np.int64]:
        targets = np.array(view.goal.target_items, dtype=np.int64)
        return alternate(view.budget, targets, other_items(view), rng)
