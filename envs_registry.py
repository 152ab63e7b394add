"""The one table of environment ids: strings only, so that registering costs nothing.

Gymnasium 1.x has no plug-in entry point, so ids are registered when `recattack_gym` is imported;
`"recattack_gym:RecPoison-BPR-v0"` imports it by itself, in worker processes too.
"""

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
)
"""Keys of `recattack_gym.victims.VICTIMS`, written out so that no victim is imported; tested equal."""

ENV_IDS = tuple(f"RecPoison-{name}-v0" for name in VICTIM_NAMES)
"""Every registered id. The version rises whenever results would change."""


def register_envs() -> None:
    """Register every id with Gymnasium; calling it again does nothing."""
    for env_id, victim in zip(ENV_IDS, VICTIM_NAMES, strict=True):
        if env_id not in registry:
            register(
                env_id,
                entry_point="recattack_gym.envs:PoisonEnv",
                vector_entry_point="recattack_gym.envs:PoisonVectorEnv",
                kwargs={"victim": victim},
            )
