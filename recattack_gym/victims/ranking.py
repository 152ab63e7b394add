"""What a platform shows: candidate lists, the ranking rule, and how often targets are exposed.

One ranking rule holds everywhere, in plain and compiled code: **higher score first, equal scores by
lower item id**. New target items have the highest ids, so a tie never favours the attacker.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.interactions import Interactions


@dataclass(frozen=True, eq=False)
class CandidateLists:
    """What is ranked for every genuine user; shared by all poison sets of a platform.

    Args:
        log: The clean log over the whole catalogue, new target items included.
        item_ids: Candidates that are not targets, shape `(U, C)`: distinct in each row and unseen by
            the user; `None` means that the whole catalogue is ranked.
        target_items: Distinct item ids, shape `(n_targets,)`; candidates of every user.
        k: Length of a shown list.
    """

    log: Interactions
    item_ids: NDArray[np.int64] | None
    target_items: NDArray[np.int64]
    k: int

    def __post_init__(self) -> None:
        for array in (self.item_ids, self.target_items):
            if array is not None:
                array.flags.writeable = False

    @property
    def n_users(self) -> int:
        """Genuine users; a fake user never has a list."""
        return self.log.n_users

    @cached_property
    def eligible(self) -> NDArray[np.bool_]:
        """Shape `(U, n_targets)`: false where the user has seen the target, so it is never shown."""
        users = np.arange(self.n_users)[:, None]
        return ~self.log.has(users, self.target_items[None, :])

    @cached_property
    def all_ids(self) -> NDArray[np.int64] | None:
        """Candidates and then targets, shape `(U, C + n_targets)`; `None` for the whole catalogue."""
        if self.item_ids is None:
            return None
        targets = np.broadcast_to(self.target_items, (self.n_users, len(self.target_items)))
        return np.concatenate([self.item_ids, targets], axis=1)

    def block(self, user_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return what is ranked for some users.

        Args:
            user_ids: Shape `(B,)`.

        Returns:
            Item ids, shape `(B, C')`, and which of them may be shown, same shape (seen ones not).
        """
        if self.all_ids is None:
            n_items = self.log.n_items
            items = np.broadcast_to(np.arange(n_items), (len(user_ids), n_items))
            return items, ~seen_mask(self.log, user_ids)
        items = self.all_ids[user_ids]
        allowed = np.ones(items.shape, dtype=np.bool_)
        allowed[:, -len(self.target_items) :] = self.eligible[user_ids]
        return items, allowed


def seen_mask(log: Interactions, user_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which items each user has in the log; shape `(len(user_ids), n_items)`."""
    indptr, seen = log.seen
    counts = np.diff(indptr)[user_ids]
    rows = np.repeat(np.arange(len(user_ids)), counts)
    starts = np.repeat(indptr[user_ids] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
    mask = np.zeros((len(user_ids), log.n_items), dtype=np.bool_)
    mask[rows, seen[starts + np.arange(len(rows))]] = True
    return mask


def top_k(
    scores: NDArray[np.float32], item_ids: NDArray[np.int64], allowed: NDArray[np.bool_], k: int
) -> NDArray[np.int64]:
    """Rank each row and return the item ids of its first `k`.

    Args:
        scores: Shape `(B, C)`, finite.
        item_ids: Shape `(B, C)`, distinct within each row.
        allowed: Shape `(B, C)`; the rest is never shown.
        k: At least 1.

    Returns:
        Shape `(B, k)`, best first; `-1` where fewer than `k` items may be shown.
    """
    if not scores.shape == item_ids.shape == allowed.shape:
        raise ArgumentError(
            f"scores, item_ids and allowed must have one shape, got {scores.shape}, "
            f"{item_ids.shape} and {allowed.shape}"
        )
    if not (item_ids[:, 1:] > item_ids[:, :-1]).all():
        by_id = np.argsort(item_ids, axis=1)
        scores = np.take_along_axis(scores, by_id, axis=1)
        item_ids = np.take_along_axis(item_ids, by_id, axis=1)
        allowed = np.take_along_axis(allowed, by_id, axis=1)
    loss = np.where(allowed, -scores, np.float32(np.inf))
    length = min(k, loss.shape[1])
    worst = np.partition(loss, length - 1, axis=1)[:, length - 1 : length]
    better, equal = loss < worst, loss == worst
    vacant = length - better.sum(axis=1, keepdims=True)
    chosen = better | (equal & (np.cumsum(equal, axis=1) <= vacant))
    columns = np.nonzero(chosen)[1].reshape(len(loss), length)
    order = np.argsort(np.take_along_axis(loss, columns, axis=1), axis=1, kind="stable")
    columns = np.take_along_axis(columns, order, axis=1)
    shown = np.full((len(loss), k), -1, dtype=np.int64)
    shown[:, :length] = np.where(
        np.take_along_axis(allowed, columns, axis=1),
        np.take_along_axis(item_ids, columns, axis=1),
        -1,
    )
    return shown


def count_exposure(shown: NDArray[np.int64], target_items: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count in how many lists each target occurs.

    Args:
        shown: Top-k lists, shape `(B, k)`.
        target_items: Shape `(n_targets,)`.

    Returns:
        Shape `(n_targets,)`; its sum is the lists' part of RecNum (PoisonRec, ICDE'20, §III).
    """
    counts: NDArray[np.int64] = (shown[:, :, None] == target_items).sum(axis=(0, 1))
    return counts


def best_first(scores: NDArray[np.float32], item_ids: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the items of each row in the order of their scores.

    Args:
        scores: Shape `(B, C)`, finite.
        item_ids: Shape `(B, C)`.

    Returns:
        Shape `(B, C)`, best first, equal scores by lower id.
    """
    order = np.lexsort((item_ids, -scores), axis=1)
    return np.take_along_axis(item_ids, order, axis=1).astype(np.int32)
