"""The compiled path of CoVisitation by raw counts: poison adds co-visits, and no score ever falls.

Scores are whole numbers, so adding changes is exact and an updated score has the very bits of a
recomputed one. Only users who have clicked an item of the poison set can notice it. On candidate lists
their clean scores are kept, and the co-visits of the set are added; over the whole catalogue a user's
scores are counted anew, unless even the clean k-th best beats all targets.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.parallel import over_sets
from recattack_gym.victims.covisitation import pair_keys
from recattack_gym.victims.kernels import compiled_exactly
from recattack_gym.victims.ranking import CandidateLists

_NOT_RANKED = -1
"""Score of what may not be shown; co-visits are never negative."""


class Platform(NamedTuple):
    """The clean graph and what is ranked, prepared once per candidate draw."""

    indptr: NDArray[np.int64]
    """Shape `(n_items + 1,)`: the clean graph in CSR form."""
    neighbours: NDArray[np.int64]
    """Shape `(n_pairs,)`."""
    covisits: NDArray[np.int64]
    """Shape `(n_pairs,)`."""
    pool: NDArray[np.int64]
    """Shape `(U, C)`: candidates that are no targets, ascending; or `(1, n_items)`, for everybody."""
    pool_scores: NDArray[np.int64]
    """Shape `(U, C)`: their clean scores; `(1, 0)` over the whole catalogue."""
    target_scores: NDArray[np.int64]
    """Shape `(U, n_targets)`: clean ones."""
    thresholds: NDArray[np.int64]
    """Shape `(U,)`: the clean k-th best score of what is no target; -1 if there are fewer."""
    targets: NDArray[np.int64]
    """Shape `(n_targets,)`."""
    target_places: NDArray[np.int64]
    """Shape `(n_items,)`: position in `targets`, or -1."""
    eligible: NDArray[np.bool_]
    """Shape `(U, n_targets)`."""
    shown: NDArray[np.bool_]
    """Shape `(U, n_targets)`: what the clean victim shows."""
    k: int
    """Length of the lists."""
    is_catalogue: bool
    """Whether the whole catalogue is ranked."""
    seen_indptr: NDArray[np.int64]
    """Shape `(U + 1,)`."""
    seen: NDArray[np.int64]
    """Shape `(n_seen,)`: distinct items of each user."""
    fan_indptr: NDArray[np.int64]
    """Shape `(n_items + 1,)`."""
    fans: NDArray[np.int64]
    """Users who have clicked each item."""


class CoVisitationCountsEngine:
    """Exact exposure on candidate lists or the whole catalogue; see `ExposureEngine`.

    Args:
        pairs: Directed pairs of the clean graph as `pair_keys` numbers them, ascending.
        covisits: How often each was seen, same shape.
        lists: What is ranked.
    """

    def __init__(
        self, pairs: NDArray[np.int64], covisits: NDArray[np.int64], lists: CandidateLists
    ) -> None:
        self._platform = _as_platform(pairs, covisits, lists)
        self._clean = self._platform.shown.sum(axis=0)

    def exposure(self, profiles: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """See `ExposureEngine.exposure`."""
        del seed  # counts draw nothing
        platform = self._platform
        n_items = len(platform.target_places)
        counts = np.tile(self._clean, (len(profiles), 1))

        def work(thread: int, sets: range) -> None:
            del thread
            for m in sets:
                keys = pair_keys(profiles[m, :, :-1].ravel(), profiles[m, :, 1:].ravel(), n_items)
                keys.sort()
                rows, added = np.divmod(keys, n_items)
                starts = np.searchsorted(rows, np.arange(n_items + 1))
                _expose(starts, added, platform, counts[m])

        over_sets(len(profiles), work)
        return counts


def _as_platform(
    pairs: NDArray[np.int64], covisits: NDArray[np.int64], lists: CandidateLists
) -> Platform:
    n_items, n_users = lists.log.n_items, lists.n_users
    targets = lists.target_items
    rows, neighbours = np.divmod(pairs, n_items)
    seen_indptr, seen = lists.log.seen
    owners = np.repeat(np.arange(n_users), np.diff(seen_indptr))
    fan_indptr = np.zeros(n_items + 1, dtype=np.int64)
    np.cumsum(np.bincount(seen, minlength=n_items), out=fan_indptr[1:])
    target_places = np.full(n_items, -1, dtype=np.int64)
    target_places[targets] = np.arange(len(targets))
    is_catalogue = lists.item_ids is None
    pool = np.arange(n_items)[None] if lists.item_ids is None else np.sort(lists.item_ids, axis=1)
    platform = Platform(
        indptr=np.searchsorted(rows, np.arange(n_items + 1)).astype(np.int64),
        neighbours=neighbours,
        covisits=covisits.astype(np.int64),
        pool=pool,
        pool_scores=np.zeros((1, 0) if is_catalogue else pool.shape, dtype=np.int64),
        target_scores=np.zeros((n_users, len(targets)), dtype=np.int64),
        thresholds=np.full(n_users, _NOT_RANKED, dtype=np.int64),
        targets=targets,
        target_places=target_places,
        eligible=lists.eligible,
        shown=np.zeros((n_users, len(targets)), dtype=np.bool_),
        k=lists.k,
        is_catalogue=is_catalogue,
        seen_indptr=seen_indptr,
        seen=seen.astype(np.int64),
        fan_indptr=fan_indptr,
        fans=owners[np.argsort(seen, kind="stable")],
    )
    _rank_clean(platform)
    return platform


@compiled_exactly
def _count_row(
    user: int,
    starts: NDArray[np.int64],
    added: NDArray[np.int64],
    platform: Platform,
    row: NDArray[np.int64],
) -> None:
    """Write a user's scores of all items; those of seen items and of targets are not ranked."""
    row[:] = 0
    history = platform.seen[platform.seen_indptr[user] : platform.seen_indptr[user + 1]]
    for item in history:
        for pair in range(platform.indptr[item], platform.indptr[item + 1]):
            row[platform.neighbours[pair]] += platform.covisits[pair]
        for at in range(starts[item], starts[item + 1]):
            row[added[at]] += 1
    row[history] = _NOT_RANKED
    row[platform.targets] = _NOT_RANKED


@compiled_exactly
def _rank_clean(platform: Platform) -> None:
    """Fill in what depends on the clean scores."""
    n_items, n_users = len(platform.target_places), len(platform.shown)
    nothing, none = np.zeros(n_items + 1, dtype=np.int64), np.zeros(0, dtype=np.int64)
    row = np.empty(n_items, dtype=np.int64)
    for user in range(n_users):
        for item in platform.seen[platform.seen_indptr[user] : platform.seen_indptr[user + 1]]:
            for pair in range(platform.indptr[item], platform.indptr[item + 1]):
                z = platform.target_places[platform.neighbours[pair]]
                if z >= 0:
                    platform.target_scores[user, z] += platform.covisits[pair]
        _count_row(user, nothing, none, platform, row)
        scores = row
        if not platform.is_catalogue:
            scores = row[platform.pool[user]]
            platform.pool_scores[user] = scores
        if len(scores) >= platform.k:
            platform.thresholds[user] = np.sort(scores)[len(scores) - platform.k]
        pool = platform.pool[0 if platform.is_catalogue else user]
        target_scores, shown = platform.target_scores[user], platform.shown[user]
        _show(user, pool, scores, target_scores, platform, shown)


@compiled_exactly
def _show(
    user: int,
    pool: NDArray[np.int64],
    scores: NDArray[np.int64],
    target_scores: NDArray[np.int64],
    platform: Platform,
    shown: NDArray[np.bool_],
) -> None:
    """Write which targets a user is shown, the best first, until one is not.

    Scores are compared as the plain path holds them, in single precision.
    """
    targets, eligible = platform.targets, platform.eligible[user]
    shown[:] = False
    for places in range(platform.k, 0, -1):
        best = -1
        for z in range(len(targets)):
            if not eligible[z] or shown[z]:
                continue
            if best >= 0:
                x, y = np.float32(target_scores[z]), np.float32(target_scores[best])
                if x < y or (x == y and targets[z] > targets[best]):
                    continue
            best = z
        if best < 0:
            return
        own, n_winning = np.float32(target_scores[best]), 0
        for at in range(len(pool)):
            if scores[at] == _NOT_RANKED:
                continue
            x = np.float32(scores[at])
            if x > own or (x == own and pool[at] < targets[best]):
                n_winning += 1
                if n_winning >= places:
                    return
        shown[best] = True


@compiled_exactly
def _expose(
    starts: NDArray[np.int64],
    added: NDArray[np.int64],
    platform: Platform,
    counts: NDArray[np.int64],
) -> None:
    """Change `counts` from the clean exposure to that under one poison set.

    Args:
        starts: Shape `(n_items + 1,)`: where the new co-visits of each item start in `added`.
        added: Neighbours, one entry for each new co-visit.
        platform: What is ranked.
        counts: Shape `(n_targets,)`.
    """
    n_items, (n_users, n_targets) = len(starts) - 1, platform.shown.shape
    is_moved = np.zeros(n_users, dtype=np.bool_)
    target_scores = np.empty(n_targets, dtype=np.int64)
    shown = np.empty(n_targets, dtype=np.bool_)
    row = np.empty(n_items, dtype=np.int64)
    for item in range(n_items):
        if starts[item] < starts[item + 1]:
            is_moved[platform.fans[platform.fan_indptr[item] : platform.fan_indptr[item + 1]]] = (
                True
            )
    for user in range(n_users):
        if not is_moved[user]:
            continue
        pool = platform.pool[0 if platform.is_catalogue else user]
        scores = row[: len(pool)]
        target_scores[:] = platform.target_scores[user]
        if not platform.is_catalogue:
            scores[:] = platform.pool_scores[user]
        for item in platform.seen[platform.seen_indptr[user] : platform.seen_indptr[user + 1]]:
            for at in range(starts[item], starts[item + 1]):
                z = platform.target_places[added[at]]
                if z >= 0:
                    target_scores[z] += 1
                elif not platform.is_catalogue:
                    slot = np.searchsorted(pool, added[at])
                    if slot < len(pool) and pool[slot] == added[at]:
                        scores[slot] += 1
        # what is no target only rises, so below the clean k-th best there is no place
        if np.float32(target_scores.max()) < np.float32(platform.thresholds[user]):
            shown[:] = False
        else:
            if platform.is_catalogue:
                _count_row(user, starts, added, platform, row)
            _show(user, pool, scores, target_scores, platform, shown)
        for z in range(n_targets):
            counts[z] += np.int64(shown[z]) - np.int64(platform.shown[user, z])
