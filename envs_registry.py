"""The one table of environment ids: strings only, so that registering costs nothing.

Gymnasium 1.x has no plug-in entry point, so ids are registered when `recattack_gym` is imported;
`"recattack_gym:RecPoison-BPR-v0"` imports it by itself, in worker processes too.
"""

from collections.abc import Mapping
from types import MappingProxyType

from gymnasium.envs.registration import register, registry

VICTIM_NAMES = (
    "ItemPop",
    "CoVisitation",
    "PMF",
    "BPR",
    "NeuMF",
    "AutoRec",
    "GRU4Rec",
    "NGCF",
    "ALS",
    "NuclearNorm",
    "CoVisitation-Counts",
    "ItemKNN",
    "LightGCN",
    "MF-BCE",
    "MultiVAE",
    "APR",
    "PamaCF",
    "LightGCN-APR",
    "LightGCN-PamaCF",
    "LTS-MF",
    "PMF-APR",
    "MF-BCE-APR",
    "MF-BCE-PamaCF",
    "PMF-PamaCF",
)
"""Keys of `recattack_gym.victims.VICTIMS`, written out so that no victim is imported; tested equal."""

DEFENDED: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "BPR-Popularity": {"victim": "BPR", "defense": "popularity"},
        "BPR-PCAVarSelect": {"victim": "BPR", "defense": "pca-varselect"},
        "AutoRec-PCAVarSelect": {"victim": "AutoRec", "defense": "pca-varselect"},
        "LightGCN-PCAVarSelect": {"victim": "LightGCN", "defense": "pca-varselect"},
        "PamaCF-PCAVarSelect": {"victim": "PamaCF", "defense": "pca-varselect"},
        "LightGCN-PamaCF-PCAVarSelect": {
            "victim": "LightGCN-PamaCF",
            "defense": "pca-varselect",
        },
    }
)
"""Presets of defended platforms: the middle of the id -> arguments. PamaCF is BPR's robust training, so the
last two have a detector and robust training together. Any other defence is an argument of any id."""

ENVIRONMENTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        **{f"RecPoison-{name}-v0": {"victim": name} for name in VICTIM_NAMES},
        **{f"RecPoison-{name}-v0": arguments for name, arguments in DEFENDED.items()},
    }
)
"""Every registered id and its arguments. The version rises whenever results would change."""

ENV_IDS = tuple(ENVIRONMENTS)
"""Every registered id."""


def register_envs() -> None:
    """Register every id with Gymnasium; calling it again does nothing."""
    for env_id, arguments in ENVIRONMENTS.items():
        if env_id not in registry:
            register(
                env_id,
                entry_point="recattack_gym.envs:PoisonEnv",
                vector_entry_point="recattack_gym.envs:PoisonVectorEnv",
                kwargs=dict(arguments),
            )
