"""Popular: targets among what everybody clicks."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.base import Attacker, AttackerConfig
from agents.heuristic.clicks import NO_NUKE, alternate, other_items, top_share
from recattack_gym.core.checks import as_real
from recattack_gym.core.view import AttackerView


@dataclass(frozen=True, kw_only=True, slots=True)
class PopularConfig(AttackerConfig):
    """Settings of `Popular`."""

    popular_rate: float = 0.1
    """Share of the other items, the most clicked ones, that count as popular; 0.1, PoisonRec §V."""

    def __post_init__(self) -> None:
        as_real("popular_rate", self.popular_rate, above=0.0, at_most=1.0)


class Popular(Attacker):
    """Alternate a random target item and a random popular item (the bandwagon attack in clicks).

    PoisonRec (Song et al., ICDE 2020), §V, baseline "Popular": the popular items are the top 10 %.

    Differs from the paper: none known; it does not say which click comes first, here the target.
    """

    name = "popular"
    config: PopularConfig
    config_class = PopularConfig
    why_not = NO_NUKE

    def _plan(self, view: AttackerView, rng: np.random.Generator) -> NDArray[np.int64]:
        targets = np.array(view.goal.target_items, dtype=np.int64)
        others = other_items(view)
        popular = top_share(others, view.item_popularity[others], self.config.popular_rate)
        return alternate(view.budget, targets, popular, rng)
