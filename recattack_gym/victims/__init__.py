"""The victims. A new one is one file here and one line in `VICTIMS`."""

from collections.abc import Mapping
from types import MappingProxyType

from recattack_gym.victims.base import (
    ExposureEngine,
    GradientConfig,
    PlainEngine,
    PoisonedBatch,
    Retrain,
    Victim,
    VictimConfig,
)
from recattack_gym.victims.itempop import ItemPop
from recattack_gym.victims.ngcf import NGCF
from recattack_gym.victims.ranking import CandidateLists

VICTIMS: Mapping[str, type[Victim]] = MappingProxyType(
    {
        "ItemPop": ItemPop,
        "NGCF": NGCF,
    }
)
"""Victim classes by the name used in environment ids and on the command line."""

__all__ = [
    "NGCF",
    "VICTIMS",
    "CandidateLists",
    "ExposureEngine",
    "GradientConfig",
    "ItemPop",
    "PlainEngine",
    "PoisonedBatch",
    "Retrain",
    "Victim",
    "VictimConfig",
]
