"""Named sizes of the synthetic dataset."""

from dataclasses import replace
from types import MappingProxyType

from recattack_gym.datasets.source import Counts, SyntheticSource
from recattack_gym.datasets.synthetic import SyntheticConfig


def _preset(name: str, size: str, config: SyntheticConfig) -> SyntheticSource:
    return SyntheticSource(
        name=name,
        description=f"Generated clicks, {size}.",
        licence="None needed: the log is generated, it describes nobody.",
        citation="recattack-gym, synthetic generator.",
        counts=MappingProxyType({None: Counts(config.n_users, config.n_items, config.n_events)}),
        config=config,
    )


SMALL = SyntheticConfig()
STEAM_LIKE = replace(
    SMALL,
    n_users=6_506,
    n_items=5_134,
    n_events=187_227,
    min_events=3,
    spread=1.8,
    zipf_exponent=2.0,
    zipf_shift=20.0,
    n_topics=40,
)
CLOTHING_LIKE = replace(
    SMALL,
    n_users=39_387,
    n_items=23_033,
    n_events=278_677,
    max_events=136,
    spread=1.0,
    zipf_exponent=0.6,
    n_topics=150,
    explore_rate=0.2,
    follow_rate=0.1,
)
LARGE = replace(SMALL, n_users=200_000, n_items=50_000, n_events=4_000_000, n_topics=300)

PRESETS = (
    _preset("synthetic", "small enough for a laptop's lunch break", SMALL),
    _preset("synthetic-small", "the same as synthetic", SMALL),
    _preset("synthetic-steam", "as many users, items and events as Steam in PoisonRec", STEAM_LIKE),
    _preset("synthetic-clothing", "as many as Amazon Clothing 5-core", CLOTHING_LIKE),
    _preset("synthetic-large", "for measuring how things scale", LARGE),
)
"""The sources, smallest first."""
