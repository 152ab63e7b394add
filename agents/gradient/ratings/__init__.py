"""Attacks on predicted ratings through the victim's optimality conditions (Li et al., NIPS 2016)."""

from collections.abc import Mapping
from types import MappingProxyType

from agents.gradient.ratings.base import RatingAttack
from agents.gradient.ratings.mimicry import Mimicry, mimicry
from agents.gradient.ratings.pga import PGA, PGAConfig
from agents.gradient.ratings.sgld import SGLD, SGLDConfig
from agents.gradient.ratings.uniform import Uniform, UniformConfig

RATING_ATTACKS: Mapping[str, type[RatingAttack]] = MappingProxyType(
    {"uniform": Uniform, "pga": PGA, "sgld": SGLD}
)
"""Attacks on predicted ratings by name."""

__all__ = [
    "PGA",
    "RATING_ATTACKS",
    "SGLD",
    "Mimicry",
    "PGAConfig",
    "RatingAttack",
    "SGLDConfig",
    "Uniform",
    "UniformConfig",
    "mimicry",
]
