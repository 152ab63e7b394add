"""Recommend to users whom a victim was not trained on, from what they have clicked.

A part of the platform's accounts teaches a model (`defenses.votes`), but everybody is shown its lists. That
needs a victim that reads a user's clicks when it recommends, and learns nothing of the user otherwise.
"""

from typing import TypeVar

from recattack_gym.core.errors import UnknownNameError
from recattack_gym.core.interactions import Interactions
from recattack_gym.victims.base import Victim

V = TypeVar("V", bound=Victim)

READS_CLICKS = (
    "ItemPop",
    "CoVisitation",
    "CoVisitation-Counts",
    "ItemKNN",
    "AutoRec",
    "MultiVAE",
    "GRU4Rec",
)
"""Victims that have no parameters of users: their state is of items, and users are what they clicked."""


def serving(victim: V, log: Interactions) -> V:
    """Return the victim as it recommends to the users of another log.

    Args:
        victim: Fitted, or poisoned.
        log: Over the same catalogue; whose users are recommended to. Nothing is learnt from it.

    Raises:
        UnknownNameError: If the victim has parameters of users, and so none for those that it has not met.
    """
    check_reads_clicks(victim.name)
    other = type(victim)(victim.config, device=victim.device)
    other._fitted_log = log
    other._n_new_items, other._fit_seed = victim.n_new_items, victim._fit_seed
    other._set_state(victim.state)
    return other


def check_reads_clicks(victim: str) -> None:
    """Raise `UnknownNameError` unless a victim of that name can recommend to users whom it has not met."""
    if victim not in READS_CLICKS:
        raise UnknownNameError(
            "victim that recommends to users whom it was not trained on", victim, READS_CLICKS
        )
