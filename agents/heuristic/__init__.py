"""Attacks by rule of thumb. A new one is one file here and one line in `ATTACKERS`.

They promote targets; see `clicks.NO_NUKE` for why none demotes them.
"""

from collections.abc import Mapping
from types import MappingProxyType

from agents.base import Attacker
from agents.heuristic.middle import Middle, MiddleConfig
from agents.heuristic.popular import Popular, PopularConfig
from agents.heuristic.power_item import PowerItem, PowerItemConfig
from agents.heuristic.random_items import Random, RandomConfig

ATTACKERS: Mapping[str, type[Attacker]] = MappingProxyType(
    {
        "random": Random,
        "popular": Popular,
        "middle": Middle,
        "power-item": PowerItem,
    }
)
"""Attacker classes by the name used on the command line."""

__all__ = [
    "ATTACKERS",
    "Middle",
    "MiddleConfig",
    "Popular",
    "PopularConfig",
    "PowerItem",
    "PowerItemConfig",
    "Random",
    "RandomConfig",
]
