"""ItemPop's compiled path: poison moves a few counts, so only users who notice are looked at.

The ranking is the same for everyone, so each item has one *key*, a whole number that orders items as
the ranking rule does: `count * n_items + (n_items - 1 - item)`. The `a`-th best target is shown to a
user if and only if its key exceeds the user's threshold, the `(k - a)`-th best key among the
other candidates. Thresholds are sorted once; a set costs a binary search per target, plus a recount
for the users who have a candidate that the clicks have lifted over a target.
"""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.parallel import over_sets
from recattack_gym.victims.kernels import compiled
from recattack_gym.victims.ranking import CandidateLists

NO_KEY = -1
"""Below every key: the threshold of a user who has fewer candidates than places."""


def item_keys(clicks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return one number per item that orders items as they are ranked; shape `(n_items,)`.

    Counts pass through float32 as scores do, so that huge counts tie in the same way.
    """
    n_items = len(clicks)
    return clicks.astype(np.float32).astype(np.int64) * n_items + np.arange(n_items)[::-1]


class ItemPopCandidates:
    """Exact exposure on candidate lists; see `ExposureEngine`."""

    def __init__(
        self, clicks: NDArray[np.int64], lists: CandidateLists, candidates: NDArray[np.int64]
    ) -> None:
        self._clicks = clicks
        self._keys = item_keys(clicks)
        self._candidates = candidates.astype(np.int32)
        self._targets = lists.target_items
        self._eligible = lists.eligible
        self._k = lists.k
        n_levels = min(lists.k, len(self._targets))
        self._thresholds = _thresholds(self._keys[candidates], lists.k, n_levels)
        is_plain = lists.eligible.all(axis=1)
        self._sorted = np.sort(self._thresholds[:, is_plain], axis=1)
        self._picky = np.flatnonzero(~is_plain)
        self._holder_indptr, self._holders = _holders(self._candidates, len(clicks))

    def exposure(self, profiles: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """See `ExposureEngine.exposure`."""
        del seed  # counts draw nothing
        clicks = profiles.reshape(len(profiles), -1)
        counts = np.zeros((len(profiles), len(self._targets)), dtype=np.int64)

        def work(thread: int, sets: range) -> None:
            del thread
            _expose_candidates(
                clicks,
                np.arange(sets.start, sets.stop, sets.step),
                self._clicks,
                self._keys.copy(),
                self._candidates,
                self._targets,
                self._eligible,
                self._picky,
                self._k,
                self._thresholds,
                self._sorted,
                self._holder_indptr,
                self._holders,
                counts,
            )

        over_sets(len(profiles), work)
        return counts


class ItemPopCatalogue:
    """Exact exposure on the whole catalogue; see `ExposureEngine`."""

    def __init__(self, clicks: NDArray[np.int64], lists: CandidateLists) -> None:
        self._clicks = clicks
        self._keys = item_keys(clicks)
        self._targets = lists.target_items
        self._eligible = lists.eligible
        self._k = lists.k
        self._seen_indptr, self._seen = lists.log.seen
        others = np.setdiff1d(np.arange(len(clicks)), lists.target_items)
        self._others = others[np.argsort(self._keys[others])]

    def exposure(self, profiles: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """See `ExposureEngine.exposure`."""
        del seed  # counts draw nothing
        clicks = profiles.reshape(len(profiles), -1)
        counts = np.zeros((len(profiles), len(self._targets)), dtype=np.int64)

        def work(thread: int, sets: range) -> None:
            del thread
            _expose_catalogue(
                clicks,
                np.arange(sets.start, sets.stop, sets.step),
                self._clicks,
                self._keys.copy(),
                self._others,
                self._targets,
                self._eligible,
                self._k,
                self._seen_indptr,
                self._seen,
                counts,
            )

        over_sets(len(profiles), work)
        return counts


def _thresholds(keys: NDArray[np.int64], k: int, n_levels: int) -> NDArray[np.int64]:
    """Return the `(k - a)`-th best of each row for `a < n_levels`; shape `(n_levels, U)`."""
    n_users, n_candidates = keys.shape
    best = np.full((n_users, k), NO_KEY, dtype=np.int64)
    length = min(k, n_candidates)
    if length:
        top = np.partition(keys, n_candidates - length, axis=1)[:, n_candidates - length :]
        best[:, :length] = np.sort(top, axis=1)[:, ::-1]
    return np.ascontiguousarray(best[:, k - 1 - np.arange(n_levels)].T)


def _holders(
    candidates: NDArray[np.int32], n_items: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return, in CSR form, the users who have each item among their candidates."""
    flat = candidates.ravel()
    indptr = np.zeros(n_items + 1, dtype=np.int64)
    np.cumsum(np.bincount(flat, minlength=n_items), out=indptr[1:])
    users = np.argsort(flat, kind="stable") // max(candidates.shape[1], 1)
    return indptr, users.astype(np.int32)


@compiled
def _click(
    clicks: NDArray[np.int64],
    clean: NDArray[np.int64],
    keys: NDArray[np.int64],
    added: NDArray[np.int64],
    touched: NDArray[np.int64],
    before: NDArray[np.int64],
) -> int:
    """Lift the keys of what one set clicks; writes `touched` and the keys `before`, returns how many."""
    n_items, n_touched = len(keys), 0
    for item in clicks:
        if added[item] == 0:
            touched[n_touched] = item
            before[n_touched] = keys[item]
            n_touched += 1
        added[item] += 1
    for x in range(n_touched):
        item = touched[x]
        count = np.int64(np.float32(clean[item] + added[item]))
        keys[item] = count * n_items + (n_items - 1 - item)
        added[item] = 0
    return n_touched


@compiled
def _rank(items: NDArray[np.int64], keys: NDArray[np.int64], order: NDArray[np.int64]) -> None:
    """Write positions in `items` into `order`, best key first."""
    for i in range(len(items)):
        x = i
        while x > 0 and keys[items[order[x - 1]]] < keys[items[i]]:
            order[x] = order[x - 1]
            x -= 1
        order[x] = i


@compiled
def _show_candidates(
    user: int,
    is_lifted: np.bool_,
    sign: int,
    keys: NDArray[np.int64],
    candidates: NDArray[np.int32],
    targets: NDArray[np.int64],
    order: NDArray[np.int64],
    eligible: NDArray[np.bool_],
    k: int,
    thresholds: NDArray[np.int64],
    counted: NDArray[np.int64],
) -> None:
    """Add `sign` to the count of every target that one user is shown.

    A user who has a lifted candidate is looked at afresh; for the others clean thresholds hold.
    """
    level = 0
    for i in order:
        if level == thresholds.shape[0]:
            break
        if not eligible[user, i]:
            continue
        key = keys[targets[i]]
        if is_lifted:
            n_better = 0
            for item in candidates[user]:
                n_better += keys[item] > key
            if n_better >= k - level:
                break
        elif thresholds[level, user] > key:
            break
        counted[i] += sign
        level += 1


@compiled
def _expose_candidates(
    clicks: NDArray[np.int64],
    sets: NDArray[np.int64],
    clean: NDArray[np.int64],
    keys: NDArray[np.int64],
    candidates: NDArray[np.int32],
    targets: NDArray[np.int64],
    eligible: NDArray[np.bool_],
    picky: NDArray[np.int64],
    k: int,
    thresholds: NDArray[np.int64],
    sorted_thresholds: NDArray[np.int64],
    holder_indptr: NDArray[np.int64],
    holders: NDArray[np.int32],
    counts: NDArray[np.int64],
) -> None:
    """Write the rows `sets` of `counts`.

    Args:
        clicks: Shape `(M, N * T)`.
        sets: Which of them.
        clean: Clean click counts, shape `(n_items,)`.
        keys: Clean keys, a copy to work on; the same afterwards.
        candidates: Shape `(U, C)`.
        targets: Shape `(n_targets,)`.
        eligible: Shape `(U, n_targets)`.
        picky: Users who may not be shown all targets; the others are plain.
        k: Length of the lists.
        thresholds: Shape `(min(k, n_targets), U)`.
        sorted_thresholds: Those of plain users, each row ascending.
        holder_indptr: Users by candidate, CSR.
        holders: The same.
        counts: Shape `(M, n_targets)`, zero.
    """
    n_users, n_targets = eligible.shape
    added = np.zeros(len(keys), dtype=np.int64)
    touched = np.empty(clicks.shape[1], dtype=np.int64)
    before = np.empty(clicks.shape[1], dtype=np.int64)
    order = np.empty(n_targets, dtype=np.int64)
    is_picky = np.zeros(n_users, dtype=np.bool_)
    is_picky[picky] = True
    is_lifted = np.zeros(n_users, dtype=np.bool_)
    lifted = np.empty(n_users, dtype=np.int64)
    for m in sets:
        n_touched = _click(clicks[m], clean, keys, added, touched, before)
        _rank(targets, keys, order)
        counted = counts[m]
        for level in range(thresholds.shape[0]):
            key = keys[targets[order[level]]]
            counted[order[level]] = np.searchsorted(sorted_thresholds[level], key)
        rest = (keys, candidates, targets, order, eligible, k, thresholds, counted)
        n_lifted = 0
        for x in range(n_touched):
            item = touched[x]
            is_passing = False
            for target in targets:
                is_passing |= before[x] < keys[target] < keys[item]
            if is_passing:
                for user in holders[holder_indptr[item] : holder_indptr[item + 1]]:
                    if not is_lifted[user]:
                        if not is_picky[user]:
                            _show_candidates(user, is_lifted[user], -1, *rest)
                        is_lifted[user] = True
                        lifted[n_lifted] = user
                        n_lifted += 1
        for user in picky:
            _show_candidates(user, is_lifted[user], 1, *rest)
        for user in lifted[:n_lifted]:
            if not is_picky[user]:
                _show_candidates(user, is_lifted[user], 1, *rest)
            is_lifted[user] = False
        keys[touched[:n_touched]] = before[:n_touched]


@compiled
def _expose_catalogue(
    clicks: NDArray[np.int64],
    sets: NDArray[np.int64],
    clean: NDArray[np.int64],
    keys: NDArray[np.int64],
    others: NDArray[np.int64],
    targets: NDArray[np.int64],
    eligible: NDArray[np.bool_],
    k: int,
    seen_indptr: NDArray[np.int64],
    seen: NDArray[np.int32],
    counts: NDArray[np.int64],
) -> None:
    """Write the rows `sets` of `counts`.

    A user is shown the `a`-th best target if fewer than `k - a` unseen items are better. How many
    items are better is the same for all; how many of those a user has seen is counted only where
    it can matter.

    Args:
        clicks: Shape `(M, N * T)`.
        sets: Which of them.
        clean: Clean click counts, shape `(n_items,)`.
        keys: Clean keys, a copy to work on; the same afterwards.
        others: All items but the targets, by clean key, ascending.
        targets: Shape `(n_targets,)`.
        eligible: Shape `(U, n_targets)`.
        k: Length of the lists.
        seen_indptr: Distinct items of each user, CSR.
        seen: The same.
        counts: Shape `(M, n_targets)`, zero.
    """
    n_users, n_targets = eligible.shape
    added = np.zeros(len(keys), dtype=np.int64)
    touched = np.empty(clicks.shape[1], dtype=np.int64)
    before = np.empty(clicks.shape[1], dtype=np.int64)
    order = np.empty(n_targets, dtype=np.int64)
    n_better = np.empty(n_targets, dtype=np.int64)
    is_target = np.zeros(len(keys), dtype=np.bool_)
    is_target[targets] = True
    other_keys = keys[others]
    for m in sets:
        n_touched = _click(clicks[m], clean, keys, added, touched, before)
        _rank(targets, keys, order)
        for z, target in enumerate(targets):
            key = keys[target]
            n_better[z] = len(others) - np.searchsorted(other_keys, key)
            for x in range(n_touched):
                if not is_target[touched[x]]:
                    n_better[z] += before[x] < key < keys[touched[x]]
        for user in range(n_users):
            history = seen[seen_indptr[user] : seen_indptr[user + 1]]
            level = 0
            for i in order:
                if level == k:
                    break
                if not eligible[user, i]:
                    continue
                if n_better[i] - len(history) >= k - level:
                    break
                n_seen = 0
                if n_better[i] >= k - level:
                    for item in history:
                        if keys[item] > keys[targets[i]] and not is_target[item]:
                            n_seen += 1
                if n_better[i] - n_seen >= k - level:
                    break
                counts[m, i] += 1
                level += 1
        keys[touched[:n_touched]] = before[:n_touched]
