"""Middle: targets, popular and unpopular items in equal shares."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.base import Attacker, AttackerConfig
from agents.heuristic.clicks import NO_NUKE, other_items, top_share
from recattack_gym.core.checks import as_real
from recattack_gym.core.view import AttackerView


@dataclass(frozen=True, kw_only=True, slots=True)
class MiddleConfig(AttackerConfig):
    """Settings of `Middle`."""

    popular_rate: float = 0.1
    """Share of the other items, the most clicked ones, that count as popular; 0.1, PoisonRec §V."""

    def __post_init__(self) -> None:
        as_real("popular_rate", self.popular_rate, above=0.0, at_most=1.0)


class Middle(Attacker):
    """Choose for every click one of three sets at random (targets, popular, the rest), then an item.

    Several targets may follow each other, and about a third of the clicks are on targets. PoisonRec
    (Song et al., ICDE 2020), §V, baseline "Middle".

    Differs from the paper: none known; a set that is empty (`popular_rate=1`) is never chosen.
    """

    name = "middle"
    config: MiddleConfig
    config_class = MiddleConfig
    why_not = NO_NUKE

    def _plan(self, view: AttackerView, rng: np.random.Generator) -> NDArray[np.int64]:
        targets = np.array(view.goal.target_items, dtype=np.int64)
        others = other_items(view)
        popular = top_share(others, view.item_popularity[others], self.config.popular_rate)
        rest = np.setdiff1d(others, popular, assume_unique=True)
        sets = [items for items in (targets, popular, rest) if len(items)]
        shape = (view.budget.n_fake_users, view.budget.profile_size)
        chosen = rng.integers(len(sets), size=shape)
        clicks = np.empty(shape, dtype=np.int64)
        for number, items in enumerate(sets):
            here = chosen == number
            clicks[here] = rng.choice(items, size=int(here.sum()))
        return clicks
