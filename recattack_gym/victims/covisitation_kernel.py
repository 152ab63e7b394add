"""CoVisitation's compiled path: poison changes the shares of clicked items, for users who have them.

Scores are whole numbers (shares in fixed point), held as float64 below `2**53`, so adding changes is
exact and an updated score has the very bits of a recomputed one. A poison set changes the rows of
the items that it clicks, and only users who have clicked one of those can notice. A target that one of
them could now be shown must beat the `k`-th best candidate, whose score is known within bounds:
without new neighbours it has not risen, and no share has fallen by more than the visits have grown.
Only where the bounds leave it open is the user rescored, share by share.

Over the whole catalogue a user's candidates are the best items of the clean ranking. They decide nearly
every case: fake clicks lower the shares of an item except towards its new neighbours, so what was
below the list stays below. Where that is not certain the user's whole row is computed.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.parallel import over_sets
from recattack_gym.victims.covisitation import SHARE_BITS
from recattack_gym.victims.kernels import compiled_exactly
from recattack_gym.victims.ranking import CandidateLists

CATALOGUE_DEPTH = 32
"""Candidates beyond `k` that stand for the whole catalogue: more cost more, fewer decide less."""

_SLACK = 1.0 - 2.0**-40
"""Makes up for the rounding of a bound."""

_MAX_EXACT = 1 << (53 - SHARE_BITS)
"""Below this many co-visits a float64 division, rounded down, is exact."""


class Graph(NamedTuple):
    """Clean co-visits in CSR form; row `n_items` is empty and stands for no item."""

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
    scores: NDArray[np.float64]
    """Shape `(U, C)`: clean scores of the candidates, `-inf` for no item."""
    thresholds: NDArray[np.float64]
    """Shape `(U, min(k, n_targets))`: the k-th best clean score of a candidate, the one before, ..."""
    bounds: NDArray[np.float32]
    """Shape `(U,)`: nothing outside the candidates has a higher clean score; -1 if nothing is outside."""
    targets: NDArray[np.int64]
    """Shape `(n_targets,)`."""
    target_places: NDArray[np.int64]
    """Shape `(n_items,)`: position in `targets`, or -1."""
    target_pairs: NDArray[np.int64]
    """Shape `(n_items, n_targets)`: where the graph has the pair of an item and a target, or -1."""
    target_scores: NDArray[np.float64]
    """Shape `(U, n_targets)`: clean scores of the targets."""
    eligible: NDArray[np.bool_]
    """Shape `(U, n_targets)`."""
    n_before: NDArray[np.int32]
    """Shape `(U, n_targets)`: how many candidates win a tie with the target."""
    shown: NDArray[np.bool_]
    """Shape `(U, n_targets)`: what the clean victim shows."""
    k: int
    """Length of the lists."""
    seen_indptr: NDArray[np.int64]
    """Shape `(U + 1,)`."""
    seen: NDArray[np.int32]
    """Shape `(n_seen,)`: distinct items of each user."""
    term_indptr: NDArray[np.int64]
    """Shape `(n_seen + 1,)`: the terms that each seen item adds to the scores of its user."""
    term_slots: NDArray[np.int32]
    """Shape `(n_terms,)`: to which candidate."""
    term_pairs: NDArray[np.int32]
    """Shape `(n_terms,)`: the share of which pair of the graph."""
    fan_indptr: NDArray[np.int64]
    """Shape `(n_items + 1,)`."""
    fans: NDArray[np.int32]
    """Users who have clicked each item."""


class Change(NamedTuple):
    """What one poison set changes in the graph; scratch of one thread."""

    is_clicked: NDArray[np.bool_]
    """Shape `(n_items,)`: the rest holds for these items only."""
    differences: NDArray[np.float64]
    """Shape `(n_pairs,)`: of the shares of pairs that the clean graph has."""
    starts: NDArray[np.int64]
    """Shape `(n_items,)`: where each item's new pairs start, in the next two arrays."""
    stops: NDArray[np.int64]
    """Shape `(n_items,)`: where they stop."""
    new_neighbours: NDArray[np.int64]
    """Shape `(2 * N * (T - 1),)`."""
    new_shares: NDArray[np.float64]
    """Shape `(2 * N * (T - 1),)`."""
    is_raised: NDArray[np.bool_]
    """Shape `(U,)`: an item that is no target may have risen."""
    ratios: NDArray[np.float64]
    """Shape `(U,)`: no share of the user has fallen further than to this part of it."""


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
            scores = self._platform.target_scores.copy()
            change = _no_change(self._graph, len(scores), n_pairs)
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


def _no_change(graph: Graph, n_users: int, n_pairs: int) -> Change:
    n_items = len(graph.visits)
    return Change(
        is_clicked=np.zeros(n_items, dtype=np.bool_),
        differences=np.empty(len(graph.shares), dtype=np.float64),
        starts=np.empty(n_items, dtype=np.int64),
        stops=np.empty(n_items, dtype=np.int64),
        new_neighbours=np.empty(n_pairs, dtype=np.int64),
        new_shares=np.empty(n_pairs, dtype=np.float64),
        is_raised=np.zeros(n_users, dtype=np.bool_),
        ratios=np.ones(n_users, dtype=np.float64),
    )


def _as_platform(graph: Graph, lists: CandidateLists) -> Platform:
    n_items, n_users = len(graph.visits), lists.n_users
    targets, n_targets = lists.target_items, len(lists.target_items)
    seen_indptr, seen = lists.log.seen
    target_places = np.full(n_items, -1, dtype=np.int64)
    target_places[targets] = np.arange(n_targets)
    bounds = np.full(n_users, -1.0, dtype=np.float32)
    if lists.item_ids is None:
        depth = min(lists.k + CATALOGUE_DEPTH, n_items)
        candidates = np.full((n_users, depth), n_items, dtype=np.int32)
        _find_best(graph, seen_indptr, seen, target_places, candidates, bounds)
        candidates.sort(axis=1)
    else:
        candidates = np.sort(lists.item_ids, axis=1).astype(np.int32)
    reverse = _reverse_pairs(graph)
    scores = np.where(candidates == n_items, -np.inf, 0.0)
    term_indptr = np.zeros(len(seen) + 1, dtype=np.int64)
    _count_terms(graph, reverse, candidates, seen_indptr, seen, scores, term_indptr[1:])
    np.cumsum(term_indptr, out=term_indptr)
    term_slots = np.empty(term_indptr[-1], dtype=np.int32)
    term_pairs = np.empty(term_indptr[-1], dtype=np.int32)
    cursor = term_indptr[:-1].copy()
    _fill_terms(graph, reverse, candidates, seen_indptr, seen, cursor, term_slots, term_pairs)
    target_pairs = np.full((n_items, n_targets), -1, dtype=np.int64)
    for z, target in enumerate(targets):
        row = slice(graph.indptr[target], graph.indptr[target + 1])
        target_pairs[graph.neighbours[row], z] = reverse[row]
    target_shares = np.where(target_pairs < 0, 0.0, np.append(graph.shares, 0.0)[target_pairs])
    owners = np.repeat(np.arange(n_users, dtype=np.int32), np.diff(seen_indptr))
    target_scores = np.zeros((n_users, n_targets))
    np.add.at(target_scores, owners, target_shares[seen])
    fan_indptr = np.zeros(n_items + 1, dtype=np.int64)
    np.cumsum(np.bincount(seen, minlength=n_items), out=fan_indptr[1:])
    n_before = np.stack([(candidates < target).sum(axis=1) for target in targets], axis=1)
    platform = Platform(
        candidates=candidates,
        scores=scores,
        thresholds=_thresholds(scores, lists.k, min(lists.k, n_targets)),
        bounds=bounds,
        targets=targets,
        target_places=target_places,
        target_pairs=target_pairs,
        target_scores=target_scores,
        eligible=lists.eligible,
        n_before=n_before.astype(np.int32),
        shown=np.zeros((n_users, n_targets), dtype=np.bool_),
        k=lists.k,
        seen_indptr=seen_indptr,
        seen=seen,
        term_indptr=term_indptr,
        term_slots=term_slots,
        term_pairs=term_pairs,
        fan_indptr=fan_indptr,
        fans=owners[np.argsort(seen, kind="stable")],
    )
    change = _no_change(graph, n_users, 0)
    _show(np.arange(n_users), graph, platform, change, target_scores, platform.shown)
    return platform


def _thresholds(scores: NDArray[np.float64], k: int, n_levels: int) -> NDArray[np.float64]:
    """Return the `(k - a)`-th best of each row for `a < n_levels`, `-inf` if there are fewer."""
    best = np.full((len(scores), max(k, scores.shape[1])), -np.inf)
    best[:, : scores.shape[1]] = -np.sort(-scores, axis=1)
    return best[:, k - 1 - np.arange(n_levels)]


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
def _count_terms(
    graph: Graph,
    reverse: NDArray[np.int64],
    candidates: NDArray[np.int32],
    seen_indptr: NDArray[np.int64],
    seen: NDArray[np.int32],
    scores: NDArray[np.float64],
    counts: NDArray[np.int64],
) -> None:
    """Add up the clean scores and count the terms of each seen item.

    A candidate's neighbours are walked rather than a user's history: most candidates have few.
    """
    places = np.full(len(graph.visits), -1, dtype=np.int64)
    for user in range(len(candidates)):
        start, stop = seen_indptr[user], seen_indptr[user + 1]
        places[seen[start:stop]] = np.arange(start, stop)
        for slot in range(candidates.shape[1]):
            item = candidates[user, slot]
            for pair in range(graph.indptr[item], graph.indptr[item + 1]):
                place = places[graph.neighbours[pair]]
                if place >= 0:
                    counts[place] += 1
                    scores[user, slot] += graph.shares[reverse[pair]]
        places[seen[start:stop]] = -1


@compiled_exactly
def _fill_terms(
    graph: Graph,
    reverse: NDArray[np.int64],
    candidates: NDArray[np.int32],
    seen_indptr: NDArray[np.int64],
    seen: NDArray[np.int32],
    cursor: NDArray[np.int64],
    slots: NDArray[np.int32],
    pairs: NDArray[np.int32],
) -> None:
    """Write the terms of each seen item; `cursor` holds where they begin."""
    places = np.full(len(graph.visits), -1, dtype=np.int64)
    for user in range(len(candidates)):
        start, stop = seen_indptr[user], seen_indptr[user + 1]
        places[seen[start:stop]] = np.arange(start, stop)
        for slot in range(candidates.shape[1]):
            item = candidates[user, slot]
            for pair in range(graph.indptr[item], graph.indptr[item + 1]):
                place = places[graph.neighbours[pair]]
                if place >= 0:
                    slots[cursor[place]] = slot
                    pairs[cursor[place]] = reverse[pair]
                    cursor[place] += 1
        places[seen[start:stop]] = -1


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


@compiled_exactly
def _fill_row(
    user: int, graph: Graph, platform: Platform, change: Change, row: NDArray[np.float64]
) -> None:
    """Score the whole catalogue for one user; `-inf` for seen items and targets."""
    history = platform.seen[platform.seen_indptr[user] : platform.seen_indptr[user + 1]]
    row[:] = 0.0
    for item in history:
        for pair in range(graph.indptr[item], graph.indptr[item + 1]):
            row[graph.neighbours[pair]] += graph.shares[pair]
            if change.is_clicked[item]:
                row[graph.neighbours[pair]] += change.differences[pair]
        if change.is_clicked[item]:
            for new in range(change.starts[item], change.stops[item]):
                row[change.new_neighbours[new]] += change.new_shares[new]
    row[history] = -np.inf
    row[platform.targets] = -np.inf


@compiled_exactly
def _show(
    user_ids: NDArray[np.int64],
    graph: Graph,
    platform: Platform,
    change: Change,
    target_scores: NDArray[np.float64],
    shown: NDArray[np.bool_],
) -> None:
    """Write which targets some users are shown.

    Args:
        user_ids: Shape `(n,)`.
        graph: The clean co-visits.
        platform: What is ranked.
        change: What a poison set changes in the graph.
        target_scores: Shape `(U, n_targets)`: those after the change.
        shown: Shape `(U, n_targets)`; the users' rows are written.
    """
    targets, eligible = platform.targets, platform.eligible
    n_candidates = platform.candidates.shape[1]
    scores = np.empty(n_candidates, dtype=np.float64)
    row = np.empty(len(graph.visits), dtype=np.float64)
    for user in user_ids:
        bound = platform.bounds[user]
        is_raised = change.is_raised[user]
        is_rescored, is_filled = False, False
        shown[user] = False
        for places in range(platform.k, 0, -1):
            best, score = -1, np.float32(-1.0)
            for z in range(len(targets)):
                if eligible[user, z] and not shown[user, z]:
                    x = np.float32(target_scores[user, z])
                    if x > score or (x == score and targets[z] < targets[best]):
                        best, score = z, x
            if best < 0:
                break
            n_before = platform.n_before[user, best]
            if score == 0 and n_before >= places:
                break
            threshold = platform.thresholds[user, platform.k - places]
            if score > np.float32(threshold) and not is_raised:
                shown[user, best] = True
                continue
            start, stop = platform.seen_indptr[user], platform.seen_indptr[user + 1]
            if np.float32(threshold * change.ratios[user] * _SLACK - (stop - start + 1)) > score:
                break
            if not is_rescored:
                is_rescored = True
                scores[:] = platform.scores[user]
                for place in range(start, stop):
                    item = platform.seen[place]
                    if not change.is_clicked[item]:
                        continue
                    for term in range(platform.term_indptr[place], platform.term_indptr[place + 1]):
                        difference = change.differences[platform.term_pairs[term]]
                        scores[platform.term_slots[term]] += difference
                    for new in range(change.starts[item], change.stops[item]):
                        neighbour = change.new_neighbours[new]
                        slot = np.searchsorted(platform.candidates[user], neighbour)
                        if slot < n_candidates and platform.candidates[user, slot] == neighbour:
                            scores[slot] += change.new_shares[new]
            if _n_winning(scores, n_before, score) >= places:
                break
            if bound >= 0 and (score <= bound or is_raised):
                if not is_filled:
                    is_filled = True
                    _fill_row(user, graph, platform, change, row)
                if _n_winning(row, targets[best], score) >= places:
                    break
            shown[user, best] = True


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
def _change_item(
    item: int,
    visits: int,
    keys: NDArray[np.int64],
    n_new: int,
    graph: Graph,
    platform: Platform,
    change: Change,
    added: NDArray[np.int64],
    target_differences: NDArray[np.float64],
) -> int:
    """Work out what becomes of one clicked item's row.

    Args:
        item: Which.
        visits: Its visits after the poison.
        keys: Its pairs among those of the set, ascending.
        n_new: How many new pairs other items have.
        graph: The clean co-visits.
        platform: What is ranked.
        change: The item's part is written.
        added: Scratch of shape `(n_pairs,)`, zero before and after.
        target_differences: Written, shape `(n_targets,)`: how much each target gains from the item.

    Returns:
        How many new pairs there are now.
    """
    start, stop = graph.indptr[item], graph.indptr[item + 1]
    change.is_clicked[item] = True
    change.starts[item] = n_new
    target_differences[:] = 0.0
    at = 0
    while at < len(keys):
        first = at
        while at < len(keys) and keys[at] == keys[first]:
            at += 1
        neighbour = keys[first] - item * len(graph.visits)
        target = platform.target_places[neighbour]
        pair = start + np.searchsorted(graph.neighbours[start:stop], neighbour)
        if pair < stop and graph.neighbours[pair] == neighbour:
            added[pair] = at - first
            continue
        share = _share(at - first, visits)
        if target >= 0:
            target_differences[target] = share
        else:
            change.new_neighbours[n_new] = neighbour
            change.new_shares[n_new] = share
            n_new += 1
    for pair in range(start, stop):
        share = _share(graph.covisits[pair] + added[pair], visits)
        change.differences[pair] = share - graph.shares[pair]
        added[pair] = 0
    for z in range(len(target_differences)):
        pair = platform.target_pairs[item, z]
        if pair >= 0:
            target_differences[z] = change.differences[pair]
    change.stops[item] = n_new
    return n_new


@compiled_exactly
def _expose(
    profiles: NDArray[np.int64],
    sets: NDArray[np.int64],
    graph: Graph,
    platform: Platform,
    change: Change,
    target_scores: NDArray[np.float64],
    counts: NDArray[np.int64],
) -> None:
    """Change the rows `sets` of `counts` from the clean exposure to that of each set.

    Args:
        profiles: Shape `(M, N, T)`.
        sets: Which of them.
        graph: The clean co-visits.
        platform: What is ranked.
        change: Empty, and empty again afterwards.
        target_scores: A copy of the clean ones to work on; the same afterwards.
        counts: Shape `(M, n_targets)`.
    """
    n_items, (n_users, n_targets) = len(graph.visits), target_scores.shape
    clicked = np.zeros(n_items, dtype=np.int64)
    touched = np.empty(profiles[0].size, dtype=np.int64)
    keys = np.empty(len(change.new_neighbours), dtype=np.int64)
    added = np.zeros(len(graph.shares), dtype=np.int64)
    differences = np.empty(n_targets, dtype=np.float64)
    is_moved = np.zeros(n_users, dtype=np.bool_)
    moved = np.empty(n_users, dtype=np.int64)
    shown = np.empty((n_users, n_targets), dtype=np.bool_)
    for m in sets:
        n_touched, n_moved, n_new, at = 0, 0, 0, 0
        for clicks in profiles[m]:
            for item in clicks:
                if clicked[item] == 0:
                    touched[n_touched] = item
                    n_touched += 1
                clicked[item] += 1
        touched[:n_touched].sort()
        n_keys = _covisited(profiles[m], n_items, keys)
        for item in touched[:n_touched]:
            first, is_raising = at, False
            while at < n_keys and keys[at] < (item + 1) * n_items:
                is_raising |= platform.target_places[keys[at] - item * n_items] < 0
                at += 1
            fans = platform.fans[platform.fan_indptr[item] : platform.fan_indptr[item + 1]]
            if len(fans) > 0:
                visits = graph.visits[item] + clicked[item]
                own = keys[first:at]
                n_new = _change_item(
                    item, visits, own, n_new, graph, platform, change, added, differences
                )
                ratio = graph.visits[item] / visits
            for user in fans:
                if not is_moved[user]:
                    is_moved[user] = True
                    moved[n_moved] = user
                    n_moved += 1
                change.ratios[user] = min(change.ratios[user], ratio)
                change.is_raised[user] |= is_raising
                for z in range(n_targets):
                    target_scores[user, z] += differences[z]
        _show(moved[:n_moved], graph, platform, change, target_scores, shown)
        for user in moved[:n_moved]:
            is_moved[user] = False
            change.is_raised[user] = False
            change.ratios[user] = 1.0
            for z in range(n_targets):
                counts[m, z] += np.int64(shown[user, z]) - np.int64(platform.shown[user, z])
                target_scores[user, z] = platform.target_scores[user, z]
        for item in touched[:n_touched]:
            clicked[item] = 0
            change.is_clicked[item] = False
