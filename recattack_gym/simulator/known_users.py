"""Users whose clicks the platform knows but does not learn from: what they are shown.

A victim hides what is in the log that it was trained on. Behind a screening that log lacks the clicks of
flagged users, so that a victim on its own would show them what they have.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.victims.base import Victim
from recattack_gym.victims.ranking import CandidateLists, seen_mask, top_k

_AT_ONCE = 512
"""Users whose whole catalogue is ranked together."""


@dataclass(frozen=True, eq=False)
class ListsOfKnownUsers(CandidateLists):
    """Candidate lists that were drawn from more clicks than the victim is trained on.

    Args:
        known: Everybody's clicks over the whole catalogue; `log` has those that the victim is trained on.
    """

    known: Interactions

    @cached_property
    def eligible(self) -> NDArray[np.bool_]:
        """Shape `(U, n_targets)`: false where the user has clicked the target, learnt from or not."""
        return CandidateLists(self.known, None, self.target_items, self.k).eligible


def recommend_unseen(
    victim: Victim, user_ids: NDArray[np.int64], known: Interactions, k: int
) -> NDArray[np.int64]:
    """Return the `k` best items of the whole catalogue that users have not clicked, learnt from or not.

    `Victim.recommend`, where the victim's own log has all of their clicks.

    Args:
        victim: Trained on the log of these users or a part of it, and maybe of others behind them.
        user_ids: Shape `(B,)`.
        known: Their clicks, over the victim's catalogue.
        k: Length of each list.

    Returns:
        Shape `(B, k)`, best first; -1 where a user has fewer than `k` unseen items.
    """
    shown = np.empty((len(user_ids), k), dtype=np.int64)
    for start in range(0, len(user_ids), _AT_ONCE):
        users = user_ids[start : start + _AT_ONCE]
        items = np.broadcast_to(np.arange(known.n_items), (len(users), known.n_items))
        allowed = ~seen_mask(known, users)
        shown[start : start + len(users)] = top_k(victim.score(users, items), items, allowed, k)
    return shown
