"""Draw the candidate lists of a platform."""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count
from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.interactions import Interactions
from recattack_gym.victims.ranking import CandidateLists


def draw_candidates(
    log: Interactions,
    target_items: NDArray[np.int64],
    *,
    k: int,
    n_candidates: int | None,
    seed: int,
) -> CandidateLists:
    """Give every genuine user random unseen items to rank beside the targets.

    PoisonRec (Song et al., ICDE 2020) §V: 92 random items and the 8 targets for every user.

    Differs from the paper: it does not say whether a user's candidates may be items that the user has
    clicked; here they are not, because a platform does not recommend those again.

    Args:
        log: The clean log over the whole catalogue, new target items included.
        target_items: Distinct item ids, shape `(n_targets,)`.
        k: Length of a shown list.
        n_candidates: Length of each candidate list, targets included; `None` ranks the catalogue.
        seed: The draw depends on it alone, in `[0, 2**63)`.

    Raises:
        ArgumentError: If lists are no longer than the targets, or a user has too few unseen items.
    """
    if n_candidates is None:
        return CandidateLists(log, None, target_items.copy(), k)
    n_drawn = as_count("n_candidates", n_candidates) - len(target_items)
    if n_drawn < 1:
        raise ArgumentError(
            f"n_candidates must be > {len(target_items)} (the number of targets, which are in every "
            f"list), got {n_candidates}"
        )
    indptr, seen = log.seen
    is_target = np.zeros(log.n_items, dtype=np.bool_)
    is_target[target_items] = True
    targets_before = np.concatenate([[0], np.cumsum(is_target[seen])])
    seen_targets = targets_before[indptr[1:]] - targets_before[indptr[:-1]]
    unseen = log.n_items - len(target_items) - (np.diff(indptr) - seen_targets)
    if int(unseen.min()) < n_drawn:
        user = int(unseen.argmin())
        raise ArgumentError(
            f"n_candidates must be at most {int(unseen.min()) + len(target_items)} on this log, because "
            f"user {user} has only {int(unseen.min())} unseen items beside the targets, got "
            f"{n_candidates}; None ranks the whole catalogue"
        )
    from recattack_gym.simulator.candidates_kernel import draw_rows

    drawn = np.empty((log.n_users, n_drawn), dtype=np.int64)
    draw_rows(indptr, seen, is_target, log.n_items, seed, drawn)
    return CandidateLists(log, drawn, target_items.copy(), k)
