"""What a platform can do about fake users. A new detector is one file here and its line in `DETECTORS`.

Detectors score accounts; dropping or weighing down suspicious ones is the platform's business.
"""

from collections.abc import Mapping
from types import MappingProxyType

from recattack_gym.defenses.base import Detector, DetectorConfig
from recattack_gym.defenses.degree_sad import DegreeSAD, PopSAD
from recattack_gym.defenses.fap import FAP
from recattack_gym.defenses.pairs import UserItems
from recattack_gym.defenses.pca import PCAVarSelect
from recattack_gym.defenses.popularity import Popularity
from recattack_gym.defenses.screening import Screening

DETECTORS: Mapping[str, type[Detector]] = MappingProxyType(
    {
        "popularity": Popularity,
        "pca-varselect": PCAVarSelect,
        "degree-sad": DegreeSAD,
        "pop-sad": PopSAD,
        "fap": FAP,
    }
)
"""Detector classes by the name used on the command line."""

__all__ = [
    "DETECTORS",
    "FAP",
    "DegreeSAD",
    "Detector",
    "DetectorConfig",
    "PCAVarSelect",
    "PopSAD",
    "Popularity",
    "Screening",
    "UserItems",
]
