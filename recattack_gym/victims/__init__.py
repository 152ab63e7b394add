"""The victims. A new one is one file here and one line in `VICTIMS`."""

from collections.abc import Mapping
from types import MappingProxyType

from recattack_gym.victims.als import ALS
from recattack_gym.victims.apr import APR
from recattack_gym.victims.autorec import AutoRec
from recattack_gym.victims.base import (
    ExposureEngine,
    GradientConfig,
    PlainEngine,
    PoisonedBatch,
    Retrain,
    Victim,
    VictimConfig,
)
from recattack_gym.victims.bpr import BPR
from recattack_gym.victims.covisitation import CoVisitation
from recattack_gym.victims.covisitation_counts import CoVisitationCounts
from recattack_gym.victims.gru4rec import GRU4Rec
from recattack_gym.victims.itemknn import ItemKNN
from recattack_gym.victims.itempop import ItemPop
from recattack_gym.victims.lightgcn import LightGCN
from recattack_gym.victims.lightgcn_apr import LightGCNAPR, LightGCNPamaCF
from recattack_gym.victims.lts_mf import LTSMF
from recattack_gym.victims.mf_bce import MFBCE
from recattack_gym.victims.mf_bce_apr import MFBCEAPR, MFBCEPamaCF
from recattack_gym.victims.multivae import MultiVAE
from recattack_gym.victims.neumf import NeuMF
from recattack_gym.victims.ngcf import NGCF
from recattack_gym.victims.nuclear_norm import NuclearNorm
from recattack_gym.victims.pamacf import PamaCF
from recattack_gym.victims.pmf import PMF
from recattack_gym.victims.pmf_apr import PMFAPR, PMFPamaCF
from recattack_gym.victims.ranking import CandidateLists

VICTIMS: Mapping[str, type[Victim]] = MappingProxyType(
    {
        "ItemPop": ItemPop,
        "CoVisitation": CoVisitation,
        "PMF": PMF,
        "BPR": BPR,
        "GRU4Rec": GRU4Rec,
        "NGCF": NGCF,
        "AutoRec": AutoRec,
        "NeuMF": NeuMF,
        "ALS": ALS,
        "NuclearNorm": NuclearNorm,
        "CoVisitation-Counts": CoVisitationCounts,
        "ItemKNN": ItemKNN,
        "LightGCN": LightGCN,
        "MF-BCE": MFBCE,
        "MultiVAE": MultiVAE,
        "APR": APR,
        "PamaCF": PamaCF,
        "LightGCN-APR": LightGCNAPR,
        "LightGCN-PamaCF": LightGCNPamaCF,
        "LTS-MF": LTSMF,
        "PMF-APR": PMFAPR,
        "MF-BCE-APR": MFBCEAPR,
        "MF-BCE-PamaCF": MFBCEPamaCF,
        "PMF-PamaCF": PMFPamaCF,
    }
)
"""Victim classes by the name used in environment ids and on the command line."""

__all__ = [
    "ALS",
    "APR",
    "BPR",
    "LTSMF",
    "MFBCE",
    "MFBCEAPR",
    "NGCF",
    "PMF",
    "PMFAPR",
    "VICTIMS",
    "AutoRec",
    "CandidateLists",
    "CoVisitation",
    "CoVisitationCounts",
    "ExposureEngine",
    "GRU4Rec",
    "GradientConfig",
    "ItemKNN",
    "ItemPop",
    "LightGCN",
    "LightGCNAPR",
    "LightGCNPamaCF",
    "MFBCEPamaCF",
    "MultiVAE",
    "NeuMF",
    "NuclearNorm",
    "PMFPamaCF",
    "PamaCF",
    "PlainEngine",
    "PoisonedBatch",
    "Retrain",
    "Victim",
    "VictimConfig",
]
