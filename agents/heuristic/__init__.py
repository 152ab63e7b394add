"""Attacks by rule of thumb. A new one is one file here, a line in `HEURISTICS` and in `agents.attackers`.

They promote targets; see `clicks.NO_NUKE` for why none demotes them.
"""

from collections.abc import Mapping
from types import MappingProxyType

from agents.base import Attacker
from agents.heuristic.middle import Middle, MiddleConfig
from agents.heuristic.popular import Popular, PopularConfig
from agents.heuristic.power_item import PowerItem, PowerItemConfig
from agents.heuristic.random_items import Random, RandomConfig

HEURISTICS: Mapping[str, type[Attacker]] = MappingProxyType(
    {
        "random": Random,
        "popular": Popular,
        "middle": Middle,
        "power-item": PowerItem,
    }
)
"""Attacks by rule of thumb, by their names; `agents.attackers` has all attackers."""

__all__ = [
    "HEURISTICS",
    "Middle",
    "MiddleConfig",
    "Popular",
    "PopularConfig",
    "PowerItem",
    "PowerItemConfig",
    "Random",
    "RandomConfig",
]
