"""ItemKNN's compiled path: poison changes the similarities of clicked items, and nothing else.

Similarities and scores are whole numbers (fixed point), so adding changes is exact and an updated score
has the very bits of a recomputed one. A poison set is turned into one row of changes per clicked item.
A score then changes by the entries of the user's clicked items, or, where the scored item is itself
clicked, by the entries of all the user's items in its row. An item that is not clicked never gains: so
a user's candidates, visited in clean order, need a new score only where the clean one beats the target.

Over the whole catalogue the candidates are the best items of the clean ranking; where these leave a
target shown, the user's whole row is computed.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.parallel import over_sets
from recattack_gym.victims.itemknn import cosines, neighbour_lists, set_sizes
from recattack_gym.victims.kernels import compiled_exactly, is_better
from recattack_gym.victims.ranking import CandidateLists, best_first, seen_mask, top_k

UNIT = 2.0**30
"""What similarities are whole numbers of, inverted; as in `itemknn`."""

CATALOGUE_DEPTH = 32
"""Candidates beyond `k` that stand for the whole catalogue: more cost more, fewer decide less."""

_BLOCK_CELLS = 4_000_000
"""Clean scores that are held at once."""


class Neighbours(NamedTuple):
    """Clean similarities in CSR form."""

    indptr: NDArray[np.int64]
    """Shape `(n_items + 1,)`."""
    items: NDArray[np.int64]
    """Shape `(n_pairs,)`, ascending within each row."""
    common: NDArray[np.int64]
    """Shape `(n_pairs,)`: users of both items."""
    similarities: NDArray[np.float64]
    """Shape `(n_pairs,)`: whole numbers of `1 / UNIT`."""
    sizes: NDArray[np.int64]
    """Shape `(n_items,)`: users of each item."""
    shrinkage: float
    """See `ItemKNNConfig`."""


class Platform(NamedTuple):
    """What is ranked, prepared once per candidate draw."""

    candidates: NDArray[np.int32]
    """Shape `(U, L)`: targets aside, best first by clean score."""
    lengths: NDArray[np.int64]
    """Shape `(U,)`: how many of them there are."""
    scores: NDArray[np.float64]
    """Shape `(U, L)`: their clean scores."""
    is_complete: NDArray[np.bool_]
    """Shape `(U,)`: whether nothing else competes."""
    targets: NDArray[np.int64]
    """Shape `(n_targets,)`."""
    target_scores: NDArray[np.float64]
    """Shape `(U, n_targets)`: their clean scores."""
    eligible: NDArray[np.bool_]
    """Shape `(U, n_targets)`."""
    k: int
    """Length of the lists."""
    seen_indptr: NDArray[np.int64]
    """Shape `(U + 1,)`."""
    seen: NDArray[np.int32]
    """Shape `(n_seen,)`: distinct items of each user."""


class Change(NamedTuple):
    """What one poison set changes; scratch of one thread for at most K clicked items."""

    clicked: NDArray[np.int64]
    """Shape `(K,)`: which items, ascending, the first ones only."""
    places: NDArray[np.int64]
    """Shape `(n_items,)`: where an item is in `clicked`, or -1."""
    added: NDArray[np.int64]
    """Shape `(n_items,)`: fake users of each item."""
    together: NDArray[np.int32]
    """Shape `(K, K)`: fake users of both of two clicked items."""
    differences: NDArray[np.int32]
    """Shape `(K, n_items)`: of the similarities of clicked items."""


class ItemKNNEngine:
    """Exact exposure on candidate lists or the whole catalogue; see `ExposureEngine`.

    A thread holds `4 * n_clicked_items * n_items` bytes of changes.

    Args:
        pairs: Of `common_users`, like the next one.
        common: Users of each pair.
        lists: What is ranked.
        shrinkage: See `ItemKNNConfig`.
    """

    def __init__(
        self,
        pairs: NDArray[np.int64],
        common: NDArray[np.int64],
        lists: CandidateLists,
        shrinkage: float,
    ) -> None:
        n_items = lists.log.n_items
        indptr, items, counts = neighbour_lists(pairs, common, n_items)
        sizes = set_sizes(pairs, common, n_items)
        rows = np.repeat(np.arange(n_items), np.diff(indptr))
        similarities = cosines(counts, sizes[rows], sizes[items], shrinkage)
        self._neighbours = Neighbours(indptr, items, counts, similarities, sizes, float(shrinkage))
        self._platform = _as_platform(self._neighbours, lists)

    def exposure(self, profiles: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """See `ExposureEngine.exposure`."""
        del seed  # counts draw nothing
        n_items = len(self._neighbours.sizes)
        n_clicked = min(profiles[0].size, n_items)
        counts = np.zeros((len(profiles), len(self._platform.targets)), dtype=np.int64)

        def work(thread: int, sets: range) -> None:
            del thread
            change = Change(
                clicked=np.empty(n_clicked, dtype=np.int64),
                places=np.full(n_items, -1, dtype=np.int64),
                added=np.zeros(n_items, dtype=np.int64),
                together=np.zeros((n_clicked, n_clicked), dtype=np.int32),
                differences=np.zeros((n_clicked, n_items), dtype=np.int32),
            )
            which = np.arange(sets.start, sets.stop, sets.step)
            _expose(profiles, which, self._neighbours, self._platform, change, counts)

        over_sets(len(profiles), work)
        return counts


def _as_platform(neighbours: Neighbours, lists: CandidateLists) -> Platform:
    from scipy.sparse import csr_array

    n_users, n_items = lists.n_users, lists.log.n_items
    indptr, seen = lists.log.seen
    history = csr_array((np.ones(len(seen)), seen, indptr), shape=(n_users, n_items))
    clean = csr_array(
        (neighbours.similarities, neighbours.items, neighbours.indptr), shape=(n_items, n_items)
    )
    width = lists.k + CATALOGUE_DEPTH if lists.item_ids is None else lists.item_ids.shape[1]
    candidates = np.empty((n_users, width), dtype=np.int32)
    scores = np.empty((n_users, width), dtype=np.float64)
    target_scores = np.empty((n_users, len(lists.target_items)), dtype=np.float64)
    step = max(1, _BLOCK_CELLS // n_items)
    for start in range(0, n_users, step):
        users = np.arange(start, min(start + step, n_users))
        sums = (history[users] @ clean).toarray()
        target_scores[users] = sums[:, lists.target_items]
        if lists.item_ids is None:
            allowed = ~seen_mask(lists.log, users)
            allowed[:, lists.target_items] = False
            everything = np.broadcast_to(np.arange(n_items), sums.shape)
            candidates[users] = top_k(sums.astype(np.float32), everything, allowed, width)
        else:
            own = np.take_along_axis(sums, lists.item_ids[users], axis=1)
            candidates[users] = best_first(own.astype(np.float32), lists.item_ids[users])
        scores[users] = np.take_along_axis(sums, candidates[users], axis=1)
    lengths = (candidates >= 0).sum(axis=1)
    return Platform(
        candidates=candidates,
        lengths=lengths,
        scores=scores,
        is_complete=(lengths < width) | (lists.item_ids is not None),
        targets=lists.target_items,
        target_scores=target_scores,
        eligible=lists.eligible,
        k=lists.k,
        seen_indptr=indptr,
        seen=seen,
    )


@compiled_exactly
def _expose(
    profiles: NDArray[np.int64],
    sets: NDArray[np.int64],
    neighbours: Neighbours,
    platform: Platform,
    change: Change,
    counts: NDArray[np.int64],
) -> None:
    """Count the exposure of some sets.

    Args:
        profiles: Shape `(M, N, T)`.
        sets: Which of them.
        neighbours: The clean similarities.
        platform: What is ranked.
        change: Empty, and empty again afterwards but for `differences`.
        counts: Shape `(M, n_targets)`, zero; the rows `sets` are written.
    """
    n_targets, n_items = len(platform.targets), len(neighbours.sizes)
    n_listed = platform.candidates.shape[1]
    own_places = np.empty(n_items, dtype=np.int64)
    target_scores = np.empty(n_targets, dtype=np.float32)
    order = np.empty(n_targets, dtype=np.int64)
    scores = np.empty(n_listed, dtype=np.float32)
    is_known = np.empty(n_listed, dtype=np.bool_)
    row = np.empty(n_items, dtype=np.float64)
    for m in sets:
        n_clicked = _apply(profiles[m], neighbours, change)
        for user in range(len(platform.eligible)):
            seen = platform.seen[platform.seen_indptr[user] : platform.seen_indptr[user + 1]]
            n_own = 0
            for item in seen:
                if change.places[item] >= 0:
                    own_places[n_own] = change.places[item]
                    n_own += 1
            own = own_places[:n_own]
            n_eligible = _sort_targets(
                user, seen, own, neighbours, platform, change, target_scores, order
            )
            is_known[:] = False
            is_filled = False
            for rank in range(min(n_eligible, platform.k)):
                target, score = platform.targets[order[rank]], target_scores[order[rank]]
                n_above = rank
                for c in range(platform.lengths[user]):
                    item, clean = platform.candidates[user, c], platform.scores[user, c]
                    if not is_known[c]:
                        if change.places[item] < 0 and not is_better(
                            np.float32(clean), item, score, target
                        ):
                            continue  # it only loses
                        is_known[c] = True
                        scores[c] = clean + _difference(item, seen, own, change)
                    n_above += int(is_better(scores[c], item, score, target))
                    if n_above >= platform.k:
                        break
                if n_above < platform.k and not platform.is_complete[user]:
                    if not is_filled:
                        is_filled = True
                        _fill_row(seen, own, n_clicked, neighbours, platform, change, row)
                    n_above = rank
                    for item in range(n_items):
                        if row[item] >= 0.0:
                            above = is_better(np.float32(row[item]), item, score, target)
                            n_above += int(above)
                if n_above >= platform.k:
                    break
                counts[m, order[rank]] += 1
        for place in range(n_clicked):
            change.places[change.clicked[place]] = -1
            change.added[change.clicked[place]] = 0


@compiled_exactly
def _apply(profile: NDArray[np.int64], neighbours: Neighbours, change: Change) -> int:
    """Write what one set changes; returns how many items it clicks."""
    clicked, places, added, together, differences = change
    n_clicked = 0
    for item in np.unique(profile):
        clicked[n_clicked] = item
        places[item] = n_clicked
        n_clicked += 1
    together[:n_clicked, :n_clicked] = 0
    differences[:n_clicked] = 0
    for clicks in profile:
        items = np.unique(clicks)
        for item in items:
            added[item] += 1
            for other in items:
                together[places[item], places[other]] += 1
    for place in range(n_clicked):
        item, row = clicked[place], differences[place]
        size = neighbours.sizes[item] + added[item]
        for other in range(n_clicked):
            if together[place, other] > 0 and other != place:
                j = clicked[other]
                other_size = neighbours.sizes[j] + added[j]
                row[j] = _cosine(together[place, other], size, other_size, neighbours.shrinkage)
        for pair in range(neighbours.indptr[item], neighbours.indptr[item + 1]):
            j, common = neighbours.items[pair], neighbours.common[pair]
            if places[j] >= 0:
                common += together[place, places[j]]
            new = _cosine(common, size, neighbours.sizes[j] + added[j], neighbours.shrinkage)
            row[j] = np.int32(new - neighbours.similarities[pair])
    return n_clicked


@compiled_exactly
def _cosine(common: int, size: int, other_size: int, shrinkage: float) -> np.float64:
    """Return one of `itemknn.cosines`."""
    norm = np.sqrt(np.float64(size * other_size)) + shrinkage
    return np.float64(np.floor(np.float64(common) * UNIT / norm))


@compiled_exactly
def _difference(
    item: int, seen: NDArray[np.int32], own: NDArray[np.int64], change: Change
) -> np.float64:
    """Return how a score changes; `own` are the places of clicked items among those seen."""
    total, place = np.int64(0), change.places[item]
    if place >= 0:
        row = change.differences[place]
        for j in seen:
            total += row[j]
    else:
        for p in own:
            total += change.differences[p, item]
    return np.float64(total)


@compiled_exactly
def _sort_targets(
    user: int,
    seen: NDArray[np.int32],
    own: NDArray[np.int64],
    neighbours: Neighbours,
    platform: Platform,
    change: Change,
    target_scores: NDArray[np.float32],
    order: NDArray[np.int64],
) -> int:
    """Write the targets' scores for a user and the order of those who may be shown; return their number."""
    n = 0
    for z in range(len(platform.targets)):
        if not platform.eligible[user, z]:
            continue
        target = platform.targets[z]
        total = platform.target_scores[user, z]
        if neighbours.sizes[target] > 0:
            total += _difference(target, seen, own, change)
        else:  # only similar to what was clicked with it
            for p in own:
                total += change.differences[p, target]
        target_scores[z] = total
        place = n
        while place > 0 and is_better(
            target_scores[z],
            target,
            target_scores[order[place - 1]],
            platform.targets[order[place - 1]],
        ):
            order[place] = order[place - 1]
            place -= 1
        order[place] = z
        n += 1
    return n


@compiled_exactly
def _fill_row(
    seen: NDArray[np.int32],
    own: NDArray[np.int64],
    n_clicked: int,
    neighbours: Neighbours,
    platform: Platform,
    change: Change,
    row: NDArray[np.float64],
) -> None:
    """Score the whole catalogue for one user; -1 for seen items and targets."""
    row[:] = 0.0
    for j in seen:
        for pair in range(neighbours.indptr[j], neighbours.indptr[j + 1]):
            row[neighbours.items[pair]] += neighbours.similarities[pair]
    for p in own:
        differences = change.differences[p]
        for item in range(len(row)):
            if change.places[item] < 0:
                row[item] += differences[item]
    for item in change.clicked[:n_clicked]:
        row[item] += _difference(item, seen, own, change)
    for j in seen:
        row[j] = -1.0
    for target in platform.targets:
        row[target] = -1.0
