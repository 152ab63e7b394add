"""What a platform can do about fake users. A new detector is one file here and its line in `DETECTORS`.

Detectors score accounts; dropping or weighing down suspicious ones is the platform's business.
"""

from collections.abc import Mapping
from types import MappingProxyType

from recattack_gym.defenses.base import Detector, DetectorConfig, SupervisedDetector
from recattack_gym.defenses.degree_sad import DegreeSAD, PopSAD
from recattack_gym.defenses.fap import FAP
from recattack_gym.defenses.ks import KSPopularity
from recattack_gym.defenses.pairs import UserItems
from recattack_gym.defenses.pca import PCAVarSelect
from recattack_gym.defenses.popularity import Popularity
from recattack_gym.defenses.screening import Screening
from recattack_gym.defenses.semi_sad import SemiSAD
from recattack_gym.defenses.sequence import SequenceDetector
from recattack_gym.defenses.svm import SVM, SVMTIA, ClickSVM
from recattack_gym.defenses.votes import Bagging

DETECTORS: Mapping[str, type[Detector]] = MappingProxyType(
    {
        "popularity": Popularity,
        "ks-popularity": KSPopularity,
        "pca-varselect": PCAVarSelect,
        "degree-sad": DegreeSAD,
        "pop-sad": PopSAD,
        "fap": FAP,
        "semi-sad": SemiSAD,
        "svm": SVM,
        "svm-tia": SVMTIA,
        "svm-clicks": ClickSVM,
        "gru-attention": SequenceDetector,
    }
)
"""Detector classes by the name used on the command line."""

__all__ = [
    "DETECTORS",
    "FAP",
    "SVM",
    "SVMTIA",
    "Bagging",
    "ClickSVM",
    "DegreeSAD",
    "Detector",
    "DetectorConfig",
    "KSPopularity",
    "PCAVarSelect",
    "PopSAD",
    "Popularity",
    "Screening",
    "SemiSAD",
    "SequenceDetector",
    "SupervisedDetector",
    "UserItems",
]
