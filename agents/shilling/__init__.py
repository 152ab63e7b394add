"""The shilling attacks: profiles put together by hand, as ratings and as clicks.

`rating_profiles` writes rated profiles from what an attacker knows of a log; the attackers in `clicks` do
what is left of the same compositions without ratings, against a view. Every profile has an item once.
"""

from agents.shilling.clicks import (
    ShillingAverageOverPopular,
    ShillingBandwagon,
    ShillingCopy,
    ShillingPopular,
    ShillingRandom,
    ShillingSegment,
)
from agents.shilling.compositions import COMPOSITIONS
from agents.shilling.known import Known
from agents.shilling.probe import probe_profiles
from agents.shilling.profiles import ShillingConfig, rating_profiles

__all__ = [
    "COMPOSITIONS",
    "Known",
    "ShillingAverageOverPopular",
    "ShillingBandwagon",
    "ShillingConfig",
    "ShillingCopy",
    "ShillingPopular",
    "ShillingRandom",
    "ShillingSegment",
    "probe_profiles",
    "rating_profiles",
]
