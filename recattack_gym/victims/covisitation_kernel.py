"""CoVisitation's compiled path: poison changes the shares of clicked items, for users who have them.

Scores are whole numbers (shares in fixed point), held as float64 below `2**53`, so adding and
subtracting changes is exact and an updated score has the very bits of a recomputed one. Per candidate
draw, every pair of items `(j, c)` knows the cells (user, candidate `c`) of users who have clicked `j`.
A poison set changes the rows of the items it clicks; only their cells move, and only users who have
clicked one of them are ranked anew.

Over the whole catalogue a user's candidates are the best items of the clean ranking. They decide nearly
every case: fake clicks lower the shares of an item except towards its new neighbours, so what was
below the list stays below. Where that is not certain the user's whole row is computed.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recattack_gym.victims.covisitation import SHARE_BITS
from recattack_gym.victims.kernels import compiled_exactly
from recattack_gym.victims.parallel import over_sets
from recattack_gym.victims.ranking import CandidateLists

CATALOGUE_DEPTH = 32
"""Candidates beyond `k` that stand for the whole catalogue: more cost more, fewer decide less."""

_MAX_EXACT = 1 << (53 - SHARE_BITS)
"""Below this many co-visits a float64 division, rounded down, is exact."""


class Graph(NamedTuple):
    """Co-visits in CSR form; row `n_items` is empty and stands for no item."""

    indptr: NDArray[np.int64]
    """Shape `(n_items + 2,)`."""
    neighbours: NDArray[np.int32]
    """Shape `(n_pairs,)`, ascending within each row."""
    covisits: NDArray[np.int64]
    """Shape `(n_pairs,)`."""
    visits: NDArray[np.int64]
    """Shape `(n_items,)`."""
    shares: NDArray[np.float64]
    """Shape `(n_pairs,)`: whole numbers of `2**-SHARE_BITS`."""


class Platform(NamedTuple):
    """Candidates, clean scores, and who is affected by what; prepared once per candidate draw."""

    candidates: NDArray[np.int32]
    """Shape `(U, C)`, ascending within each row; `n_items` stands for no item."""
    targets: NDArray[np.int64]
    """Shape `(n_targets,)`."""
    target_places: NDArray[np.int64]
    """Shape `(n_items,)`: position in `targets`, or -1."""
    eligible: NDArray[np.bool_]
    """Shape `(U, n_targets)`."""
    n_before: NDArray[np.int32]
    """Shape `(U, n_targets)`: how many candidates win a tie with the target."""
    bounds: NDArray[np.float32]
    """Shape `(U,)`: nothing outside the candidates has a higher clean score; -1 if nothing is outside."""
    k: int
    """Length of the lists."""
    scores: NDArray[np.float64]
    """Shape `(U, C + n_targets)`: clean scores of the candidates and then the targets."""
    shown: NDArray[np.bool_]
    """Shape `(U, n_targets)`: what the clean victim shows."""
    cell_indptr: NDArray[np.int64]
    """Shape `(n_pairs + 1,)`."""
    cells: NDArray[np.uint32]
    """Cells of `scores` that hold the share of each pair, as flat positions."""
    holder_indptr: NDArray[np.int64]
    """Shape `(n_items + 2,)`."""
    holders: NDArray[np.int32]
    """Users who have each item among their candidates."""
    holder_cells: NDArray[np.uint32]
    """The cells of those, as flat positions."""
    seen_indptr: NDArray[np.int64]
    """Shape `(U + 1,)`."""
    seen: NDArray[np.int32]
    """Distinct items of each user."""
    fan_indptr: NDArray[np.int64]
    """Shape `(n_items + 1,)`."""
    fans: NDArray[np.int32]
    """Users who have clicked each item."""


class CoVisitationEngine:
    """Exact exposure on candidate lists or the whole catalogue; see `ExposureEngine`."""

    def __init__(
        self,
        pairs: NDArray[np.int64],
        covisits: NDArray[np.int64],
        visits: NDArray[np.int64],
        lists: CandidateLists,
    ) -> None:
        self._graph = _as_graph(pairs, covisits, visits)
        self._platform = _as_platform(self._graph, lists)
        self._clean = self._platform.shown.sum(axis=0)

    def exposure(self, profiles: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """See `ExposureEngine.exposure`."""
        del seed  # counts draw nothing
        counts = np.tile(self._clean, (len(profiles), 1))
        n_pairs = 2 * profiles.shape[1] * (profiles.shape[2] - 1)

        def work(thread: int, sets: range) -> None:
            del thread
            which = np.arange(sets.start, sets.stop, sets.step)
            change = _no_change(self._graph, len(self._platform.shown), n_pairs)
            scores = self._platform.scores.copy()
            _expose(profiles, which, self._graph, self._platform, change, scores, counts)

        over_sets(len(profiles), work)
        return counts


def _as_graph(
    pairs: NDArray[np.int64], covisits: NDArray[np.int64], visits: NDArray[np.int64]
) -> Graph:
    n_items = len(visits)
    rows, neighbours = np.divmod(pairs, n_items)
    indptr = np.searchsorted(rows, np.arange(n_items + 2)).astype(np.int64)
    shares = ((covisits << SHARE_BITS) // visits[rows]).astype(np.float64)
    return Graph(indptr, neighbours.astype(np.int32), covisits, visits, shares)


def _as_platform(graph: Graph, lists: CandidateLists) -> Platform:
    n_items, n_users, n_targets = len(graph.visits), lists.n_users, len(lists.target_items)
    seen_indptr, seen = lists.log.seen
    fan_indptr, order = _group(seen, n_items)
    owners = np.repeat(np.arange(n_users, dtype=np.int32), np.diff(seen_indptr))
    target_places = np.full(n_items, -1, dtype=np.int64)
    target_places[lists.target_items] = np.arange(n_targets)
    bounds = np.full(n_users, -1.0, dtype=np.float32)
    if lists.item_ids is None:
        depth = min(lists.k + CATALOGUE_DEPTH, n_items)
        candidates = np.full((n_users, depth), n_items, dtype=np.int32)
        _find_best(graph, seen_indptr, seen, target_places, candidates, bounds)
        candidates.sort(axis=1)
    else:
        candidates = np.sort(lists.item_ids, axis=1).astype(np.int32)
    holder_indptr, places = _group(candidates.ravel(), n_items + 1)
    holders = places // max(candidates.shape[1], 1)
    scores = np.zeros((n_users, candidates.shape[1] + n_targets))
    scores[:, : candidates.shape[1]][candidates == n_items] = -np.inf
    cell_indptr = np.zeros(len(graph.shares) + 1, dtype=np.int64)
    reverse = _reverse_pairs(graph)
    offered = (graph, reverse, candidates, lists.target_items, seen_indptr, seen)
    _count_cells(*offered, cell_indptr[1:], scores)
    np.cumsum(cell_indptr, out=cell_indptr)
    cells = np.empty(cell_indptr[-1], dtype=np.uint32)
    _fill_cells(*offered, cell_indptr[:-1].copy(), cells)
    n_before = np.stack(
        [(candidates < target).sum(axis=1) for target in lists.target_items], axis=1
    ).astype(np.int32)
    shown = np.zeros((n_users, n_targets), dtype=np.bool_)
    platform = Platform(
        candidates,
        lists.target_items,
        target_places,
        lists.eligible,
        n_before,
        bounds,
        lists.k,
        scores,
        shown,
        cell_indptr,
        cells,
        holder_indptr,
        holders.astype(np.int32),
        (places + holders * n_targets).astype(np.uint32),
        seen_indptr,
        seen,
        fan_indptr,
        owners[order],
    )
    _show_all(graph, platform, _no_change(graph, n_users, 0))
    return platform


def _group(ids: NDArray[np.int32], n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, in CSR form, the positions of each id."""
    indptr = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.bincount(ids, minlength=n), out=indptr[1:])
    return indptr, np.argsort(ids, kind="stable")


@compiled_exactly
def _share(covisits: int, visits: int) -> np.float64:
    """Return `covisits / visits` in units of `2**-SHARE_BITS`, rounded down."""
    if covisits < _MAX_EXACT:
        return np.float64(np.floor(np.float64(covisits << SHARE_BITS) / np.float64(visits)))
    return np.float64((covisits << SHARE_BITS) // visits)


@compiled_exactly
def _reverse_pairs(graph: Graph) -> NDArray[np.int64]:
    """Return where the pair `(c, j)` stands, for each pair `(j, c)`."""
    cursor = graph.indptr[:-1].copy()
    reverse = np.empty(len(graph.neighbours), dtype=np.int64)
    for pair in range(len(graph.neighbours)):
        row = graph.neighbours[pair]
        reverse[pair] = cursor[row]
        cursor[row] += 1
    return reverse


@compiled_exactly
def _count_cells(
    graph: Graph,
    reverse: NDArray[np.int64],
    candidates: NDArray[np.int32],
    targets: NDArray[np.int64],
    seen_indptr: NDArray[np.int64],
    seen: NDArray[np.int32],
    counts: NDArray[np.int64],
    scores: NDArray[np.float64],
) -> None:
    """Count the cells of each pair, and add up the clean scores.

    A candidate's neighbours are walked rather than a user's history: most candidates have few.
    """
    n_users, n_candidates = candidates.shape
    has = np.zeros(len(graph.visits), dtype=np.bool_)
    for user in range(n_users):
        history = seen[seen_indptr[user] : seen_indptr[user + 1]]
        has[history] = True
        for slot in range(n_candidates + len(targets)):
            item = candidates[user, slot] if slot < n_candidates else targets[slot - n_candidates]
            for pair in range(graph.indptr[item], graph.indptr[item + 1]):
                if has[graph.neighbours[pair]]:
                    counts[reverse[pair]] += 1
                    scores[user, slot] += graph.shares[reverse[pair]]
        has[history] = False


@compiled_exactly
def _fill_cells(
    graph: Graph,
    reverse: NDArray[np.int64],
    candidates: NDArray[np.int32],
    targets: NDArray[np.int64],
    seen_indptr: NDArray[np.int64],
    seen: NDArray[np.int32],
    cursor: NDArray[np.int64],
    cells: NDArray[np.uint32],
) -> None:
    """Write the cells of each pair; `cursor` holds where each pair's cells begin."""
    n_users, n_candidates = candidates.shape
    width = n_candidates + len(targets)
    has = np.zeros(len(graph.visits), dtype=np.bool_)
    for user in range(n_users):
        history = seen[seen_indptr[user] : seen_indptr[user + 1]]
        has[history] = True
        for slot in range(width):
            item = candidates[user, slot] if slot < n_candidates else targets[slot - n_candidates]
            for pair in range(graph.indptr[item], graph.indptr[item + 1]):
                if has[graph.neighbours[pair]]:
                    cells[cursor[reverse[pair]]] = user * width + slot
                    cursor[reverse[pair]] += 1
        has[history] = False


@compiled_exactly
def _find_best(
    graph: Graph,
    seen_indptr: NDArray[np.int64],
    seen: NDArray[np.int32],
    target_places: NDArray[np.int64],
    best: NDArray[np.int32],
    bounds: NDArray[np.float32],
) -> None:
    """Write each user's best unseen items, targets aside, and the clean score of the last of them."""
    n_users, depth = best.shape
    n_items = len(graph.visits)
    row = np.empty(n_items, dtype=np.float64)
    top = np.empty(depth, dtype=np.float32)
    for user in range(n_users):
        history = seen[seen_indptr[user] : seen_indptr[user + 1]]
        row[:] = 0.0
        for item in history:
            for pair in range(graph.indptr[item], graph.indptr[item + 1]):
                row[graph.neighbours[pair]] += graph.shares[pair]
        row[history] = -1.0
        length = 0
        for item in range(n_items):
            score = np.float32(row[item])
            if score < 0 or target_places[item] >= 0 or (length == depth and score <= top[-1]):
                continue
            length = min(length + 1, depth)
            place = length - 1
            while place > 0 and top[place - 1] < score:
                top[place] = top[place - 1]
                best[user, place] = best[user, place - 1]
                place -= 1
            top[place] = score
            best[user, place] = item
        if length == depth:
            bounds[user] = top[-1]


@compiled_exactly
def _n_winning(scores: NDArray[np.float64], n_before: int, score: np.float32) -> int:
    """Count which scores beat a target's: the first `n_before` also win ties."""
    n = 0
    for x in scores[:n_before]:
        n += int(np.float32(x) >= score)
    for x in scores[n_before:]:
        n += int(np.float32(x) > score)
    return n


class Change(NamedTuple):
    """What one poison set changes in the graph; scratch of one thread."""

    shares: NDArray[np.float64]
    """Shape `(n_pairs,)`: of the pairs that the clean graph has."""
    starts: NDArray[np.int64]
    """Shape `(n_items,)`: where each item's new pairs start, in the next two arrays."""
    stops: NDArray[np.int64]
    """Shape `(n_items,)`: where they stop."""
    new_neighbours: NDArray[np.int64]
    """Shape `(2 * N * (T - 1),)`."""
    new_shares: NDArray[np.float64]
    """Shape `(2 * N * (T - 1),)`."""
    is_raised: NDArray[np.bool_]
    """Shape `(U,)`: the score of an item that is no target may have risen."""


def _no_change(graph: Graph, n_users: int, n_pairs: int) -> Change:
    n_items = len(graph.visits)
    return Change(
        graph.shares.copy(),
        np.zeros(n_items, dtype=np.int64),
        np.zeros(n_items, dtype=np.int64),
        np.empty(n_pairs, dtype=np.int64),
        np.empty(n_pairs, dtype=np.float64),
        np.zeros(n_users, dtype=np.bool_),
    )


@compiled_exactly
def _fill_row(
    user: int, graph: Graph, platform: Platform, change: Change, row: NDArray[np.float64]
) -> None:
    """Score the whole catalogue for one user; `-inf` for seen items and targets."""
    history = platform.seen[platform.seen_indptr[user] : platform.seen_indptr[user + 1]]
    row[:] = 0.0
    for item in history:
        for pair in range(graph.indptr[item], graph.indptr[item + 1]):
            row[graph.neighbours[pair]] += change.shares[pair]
        for new in range(change.starts[item], change.stops[item]):
            row[change.new_neighbours[new]] += change.new_shares[new]
    row[history] = -np.inf
    row[platform.targets] = -np.inf


@compiled_exactly
def _show(
    user: int,
    graph: Graph,
    platform: Platform,
    change: Change,
    scores: NDArray[np.float64],
    row: NDArray[np.float64],
    shown: NDArray[np.bool_],
) -> None:
    """Write which targets one user is shown; `row` is scratch of shape `(n_items,)`."""
    n_candidates = platform.candidates.shape[1]
    targets, eligible = platform.targets, platform.eligible[user]
    bound = platform.bounds[user]
    is_certain = bound < 0
    is_filled = False
    shown[:] = False
    for places in range(platform.k, 0, -1):
        best, score = -1, np.float32(-1.0)
        for z in range(len(targets)):
            if eligible[z] and not shown[z]:
                x = np.float32(scores[n_candidates + z])
                if best < 0 or x > score or (x == score and targets[z] < targets[best]):
                    best, score = z, x
        if best < 0:
            return
        if _n_winning(scores[:n_candidates], platform.n_before[user, best], score) >= places:
            return
        if not is_certain and (score <= bound or change.is_raised[user]):
            if not is_filled:
                _fill_row(user, graph, platform, change, row)
                is_filled = True
            if _n_winning(row, targets[best], score) >= places:
                return
        shown[best] = True


@compiled_exactly
def _show_all(graph: Graph, platform: Platform, change: Change) -> None:
    """Write what the clean victim shows every user."""
    row = np.empty(len(graph.visits), dtype=np.float64)
    for user in range(len(platform.shown)):
        scores = platform.scores[user]
        _show(user, graph, platform, change, scores, row, platform.shown[user])


@compiled_exactly
def _covisited(profile: NDArray[np.int64], n_items: int, keys: NDArray[np.int64]) -> int:
    """Write the directed pairs of one set, ascending, as `j * n_items + c`; returns how many."""
    n = 0
    for clicks in profile:
        for t in range(1, len(clicks)):
            a, b = clicks[t - 1], clicks[t]
            if a != b:
                keys[n] = a * n_items + b
                keys[n + 1] = b * n_items + a
                n += 2
    keys[:n].sort()
    return n


@compiled_exactly
def _expose(
    profiles: NDArray[np.int64],
    sets: NDArray[np.int64],
    graph: Graph,
    platform: Platform,
    change: Change,
    scores: NDArray[np.float64],
    counts: NDArray[np.int64],
) -> None:
    """Change the rows `sets` of `counts` from the clean exposure to that of each set.

    Args:
        profiles: Shape `(M, N, T)`.
        sets: Which of them.
        graph: The clean co-visits.
        platform: What is ranked.
        change: Empty, and empty again afterwards.
        scores: A copy of the clean ones to work on; the same afterwards.
        counts: Shape `(M, n_targets)`.
    """
    n_items, n_users = len(graph.visits), len(platform.shown)
    n_candidates = platform.candidates.shape[1]
    cells = scores.reshape(-1)
    clicked = np.zeros(n_items, dtype=np.int64)
    touched = np.empty(profiles[0].size, dtype=np.int64)
    keys = np.empty(len(change.new_neighbours), dtype=np.int64)
    added = np.zeros(len(graph.shares), dtype=np.int64)
    fan_of = np.full(n_users, -1, dtype=np.int64)
    moved = np.empty(n_users, dtype=np.int64)
    row = np.empty(n_items, dtype=np.float64)
    shown = np.empty(len(platform.targets), dtype=np.bool_)
    for m in sets:
        n_touched, n_moved, n_new, at = 0, 0, 0, 0
        for item in profiles[m].ravel():
            if clicked[item] == 0:
                touched[n_touched] = item
                n_touched += 1
            clicked[item] += 1
        touched[:n_touched].sort()
        n_keys = _covisited(profiles[m], n_items, keys)
        for item in touched[:n_touched]:
            visits = graph.visits[item] + clicked[item]
            fans = platform.fans[platform.fan_indptr[item] : platform.fan_indptr[item + 1]]
            for user in fans:
                if fan_of[user] < 0:
                    moved[n_moved] = user
                    n_moved += 1
                fan_of[user] = item
            start, stop = graph.indptr[item], graph.indptr[item + 1]
            change.starts[item] = n_new
            is_raising = False
            while at < n_keys and keys[at] < (item + 1) * n_items:
                key, first = keys[at], at
                while at < n_keys and keys[at] == key:
                    at += 1
                neighbour = key - item * n_items
                is_raising |= platform.target_places[neighbour] < 0
                pair = start + np.searchsorted(graph.neighbours[start:stop], neighbour)
                if pair < stop and graph.neighbours[pair] == neighbour:
                    added[pair] = at - first
                else:
                    change.new_neighbours[n_new] = neighbour
                    change.new_shares[n_new] = _share(at - first, visits)
                    n_new += 1
            change.stops[item] = n_new
            for pair in range(start, stop):
                share = _share(graph.covisits[pair] + added[pair], visits)
                difference = share - change.shares[pair]
                change.shares[pair] = share
                added[pair] = 0
                for cell in platform.cells[
                    platform.cell_indptr[pair] : platform.cell_indptr[pair + 1]
                ]:
                    cells[cell] += difference
            for new in range(change.starts[item], n_new):
                neighbour, share = change.new_neighbours[new], change.new_shares[new]
                target = platform.target_places[neighbour]
                if target >= 0:
                    for user in fans:
                        scores[user, n_candidates + target] += share
                    continue
                start, stop = (
                    platform.holder_indptr[neighbour],
                    platform.holder_indptr[neighbour + 1],
                )
                for place in range(start, stop):
                    if fan_of[platform.holders[place]] == item:
                        cells[platform.holder_cells[place]] += share
            if is_raising:
                change.is_raised[fans] = True
        for user in moved[:n_moved]:
            _show(user, graph, platform, change, scores[user], row, shown)
            for z in range(len(shown)):
                counts[m, z] += np.int64(shown[z]) - np.int64(platform.shown[user, z])
            scores[user] = platform.scores[user]
            fan_of[user] = -1
            change.is_raised[user] = False
        for item in touched[:n_touched]:
            start, stop = graph.indptr[item], graph.indptr[item + 1]
            change.shares[start:stop] = graph.shares[start:stop]
            change.starts[item] = 0
            change.stops[item] = 0
            clicked[item] = 0
