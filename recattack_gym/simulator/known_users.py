"""Users whose clicks the platform knows but does not learn from: what they are shown.

A victim knows nothing about a user whom a screening keeps out of training: one that factorises has a row of
random numbers for them, one that reads histories an empty history. Whatever it makes of that is no
recommendation. They are shown **the most clicked items that they have not clicked**, counted in what is
learnt from: what `ItemPop` would show them. What they clicked is still known, and hidden.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.victims.base import Victim
from recattack_gym.victims.ranking import CandidateLists, count_exposure, seen_mask, top_k

_AT_ONCE = 512
"""Users whose whole catalogue is ranked together."""


@dataclass(frozen=True, eq=False)
class ListsOfKnownUsers(CandidateLists):
    """Candidate lists of users of whom only some are learnt from.

    For a victim and its engines, who rank for those it was trained on, nothing may be shown to the others;
    `exposure_by_popularity` counts in their lists.

    Args:
        known: Everybody's clicks over the whole catalogue; `log` has those that the victim is trained on.
    """

    known: Interactions

    @cached_property
    def kept_out(self) -> NDArray[np.bool_]:
        """Users who are not learnt from, shape `(U,)`."""
        return kept_out(self.log, self.known)

    @cached_property
    def eligible(self) -> NDArray[np.bool_]:
        """Shape `(U, n_targets)`: false where the user has clicked the target, or is not learnt from."""
        return self._of_everyone.eligible & ~self.kept_out[:, None]

    def block(self, user_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return what is ranked for some users; nothing may be shown to those who are not learnt from."""
        items, allowed = self._of_everyone.block(user_ids)
        return items, allowed & ~self.kept_out[user_ids, None]

    def exposure_by_popularity(self, clicks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count how many of those who are not learnt from are shown each target.

        Args:
            clicks: Clicks on each item that are learnt from, shape `(n_items,)`.

        Returns:
            Shape `(n_targets,)`.
        """
        items, allowed = self._of_kept_out
        if len(items) == 0:
            return np.zeros(len(self.target_items), dtype=np.int64)
        shown = top_k(clicks[items].astype(np.float32), items, allowed, self.k)
        return count_exposure(shown, self.target_items)

    @cached_property
    def _of_everyone(self) -> CandidateLists:
        return CandidateLists(self.known, self.item_ids, self.target_items, self.k)

    @cached_property
    def _of_kept_out(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """What is ranked for those who are not learnt from; see `block`."""
        return self._of_everyone.block(np.flatnonzero(self.kept_out))


def kept_out(trained: Interactions, known: Interactions) -> NDArray[np.bool_]:
    """Tell who has clicks of which none is learnt from.

    Args:
        trained: What is learnt from; there may be more users behind those of `known`.
        known: Everybody's clicks.

    Returns:
        Shape `(known.n_users,)`. False for users without any click: no screening has kept them out.
    """
    has_clicks: NDArray[np.bool_] = np.diff(known.indptr) > 0
    is_learnt_from: NDArray[np.bool_] = np.diff(trained.indptr)[: known.n_users] > 0
    return has_clicks & ~is_learnt_from


def recommend_unseen(
    victim: Victim, user_ids: NDArray[np.int64], known: Interactions, k: int
) -> NDArray[np.int64]:
    """Return the `k` best items of the whole catalogue that users have not clicked, learnt from or not.

    `Victim.recommend`, where the victim's own log has all of their clicks. Users with clicks of which it has
    none are shown what is clicked most in that log.

    Args:
        victim: Trained on the log of these users or a part of it, and maybe of others behind them.
        user_ids: Shape `(B,)`.
        known: Their clicks, over the victim's catalogue.
        k: Length of each list.

    Returns:
        Shape `(B, k)`, best first; -1 where a user has fewer than `k` unseen items.
    """
    shown = np.empty((len(user_ids), k), dtype=np.int64)
    is_out = kept_out(victim.log, known)
    clicks = victim.log.item_popularity.astype(np.float32)
    for start in range(0, len(user_ids), _AT_ONCE):
        users = user_ids[start : start + _AT_ONCE]
        items = np.broadcast_to(np.arange(known.n_items), (len(users), known.n_items))
        allowed = ~seen_mask(known, users)
        scores = np.where(is_out[users, None], clicks, victim.score(users, items))
        shown[start : start + len(users)] = top_k(scores, items, allowed, k)
    return shown
