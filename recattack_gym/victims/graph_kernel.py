"""Compiled pieces that graph victims share: injecting edges, summing neighbours, counting exposure.

The adjacency stays binary; its symmetric normalisation `D^-1/2 A D^-1/2` is applied as two row scalings
around a plain sum over neighbours, so a poison set costs one merged copy of the adjacency per thread and
no values at all. As in `kernels`, everything works on one poison set and releases the GIL.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recattack_gym.victims.graph import InteractionGraph
from recattack_gym.victims.kernels import compiled, dot, is_better
from recattack_gym.victims.ranking import CandidateLists, seen_mask

Score = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]
"""Scores items `(U, C)` for users `(U,)`."""

SHORTLIST = 48
"""Items per user that are tried first where the whole catalogue competes."""


class GraphArrays(NamedTuple):
    """A graph as kernels see it; see `InteractionGraph`."""

    indptr: NDArray[np.int64]
    neighbours: NDArray[np.int32]
    scale: NDArray[np.float32]


class Contest(NamedTuple):
    """What counting exposure needs to know about a platform's lists.

    Attributes:
        shortlist: Shape `(U, S)`: competitors of the targets, best first by clean score.
        n_rest: How many items compete beyond the shortlist: items `[0, n_rest)` that the user has not
            seen and that are no target; 0 where the shortlist is everything.
        seen_indptr: Shape `(U + 1,)`.
        seen_items: Ascending within each user.
        targets: Shape `(n_targets,)`.
        eligible: Shape `(U, n_targets)`.
        k: Length of a shown list.
    """

    shortlist: NDArray[np.int32]
    n_rest: int
    seen_indptr: NDArray[np.int64]
    seen_items: NDArray[np.int32]
    targets: NDArray[np.int64]
    eligible: NDArray[np.bool_]
    k: int


def make_contest(lists: CandidateLists, clean_score: Score) -> Contest:
    """Lay out what `count_exposure` visits, in the order of the clean victim's scores.

    Args:
        lists: What the platform ranks.
        clean_score: The clean victim's scores; they decide how fast counting is, never its result.
    """
    n_items, blocks = lists.log.n_items, []
    width = n_items if lists.item_ids is None else lists.item_ids.shape[1]
    step = max(1, 4_000_000 // max(width, 1))
    for start in range(0, lists.n_users, step):
        users = np.arange(start, min(start + step, lists.n_users))
        if lists.item_ids is None:
            items = np.broadcast_to(np.arange(n_items), (len(users), n_items))
            excluded = seen_mask(lists.log, users)
            excluded[:, lists.target_items] = True
        else:
            items = lists.item_ids[users]
            excluded = np.zeros(items.shape, dtype=np.bool_)
        loss = np.where(excluded, np.float32(np.inf), -clean_score(users, items))
        if lists.item_ids is None and n_items > SHORTLIST:
            best = np.argpartition(loss, SHORTLIST, axis=1)[:, :SHORTLIST]
        else:
            best = np.broadcast_to(np.arange(width), loss.shape)
        loss = np.take_along_axis(loss, best, axis=1)
        order = np.take_along_axis(best, np.argsort(loss, axis=1, kind="stable"), axis=1)
        places = np.arange(order.shape[1]) < np.isfinite(loss).sum(axis=1, keepdims=True)
        chosen = np.where(places, np.take_along_axis(items, order, axis=1), -1)
        blocks.append(chosen.astype(np.int32))
    seen_indptr, seen_items = lists.log.seen
    return Contest(
        shortlist=np.concatenate(blocks),
        n_rest=n_items if lists.item_ids is None else 0,
        seen_indptr=seen_indptr,
        seen_items=seen_items,
        targets=lists.target_items,
        eligible=lists.eligible,
        k=lists.k,
    )


def graph_arrays(graph: InteractionGraph) -> GraphArrays:
    """Return a graph's arrays for the kernels."""
    return GraphArrays(graph.indptr, graph.neighbours, graph.scale)


def room_for_fakes(graph: InteractionGraph, n_fake_users: int, profile_size: int) -> GraphArrays:
    """Return arrays that hold `graph` and the edges of any poison set of shape `(N, T)`."""
    n_nodes = graph.n_nodes + n_fake_users
    return GraphArrays(
        np.zeros(n_nodes + 1, dtype=np.int64),
        np.zeros(len(graph.neighbours) + 2 * n_fake_users * profile_size, dtype=np.int32),
        np.zeros(n_nodes, dtype=np.float32),
    )


@compiled
def inject_edges(clean: GraphArrays, profile: NDArray[np.int64], merged: GraphArrays) -> None:
    """Write the graph that also has the fake users' distinct clicks.

    Equal to `InteractionGraph.from_log` of the whole log.

    Args:
        clean: The genuine graph.
        profile: Shape `(N, T)`.
        merged: Written; from `room_for_fakes`.
    """
    n_clean, n_fake_users = len(clean.scale), len(profile)
    added = np.zeros(n_clean, dtype=np.int64)
    for f in range(n_fake_users):
        for item in np.unique(profile[f]):
            added[item] += 1
    indptr, neighbours = merged.indptr, merged.neighbours
    end = 0
    for v in range(n_clean):
        indptr[v] = end
        for e in range(clean.indptr[v], clean.indptr[v + 1]):
            neighbours[end] = clean.neighbours[e]
            end += 1
        end += added[v]
        added[v] = end - added[v]  # from here on: where the node's next fake neighbour goes
    for f in range(n_fake_users):
        indptr[n_clean + f] = end
        for item in np.unique(profile[f]):
            neighbours[end] = item
            neighbours[added[item]] = n_clean + f
            added[item] += 1
            end += 1
    indptr[n_clean + n_fake_users] = end
    for v in range(n_clean + n_fake_users):
        degree = indptr[v + 1] - indptr[v]
        merged.scale[v] = np.float32(1.0 / np.sqrt(degree)) if degree > 0 else np.float32(0.0)


@compiled
def add_neighbours(
    graph: GraphArrays,
    nodes: NDArray[np.int32],
    rows: NDArray[np.float32],
    totals: NDArray[np.float32],
) -> None:
    """Add rows of `D^-1/2 A D^-1/2 rows` to `totals`.

    Args:
        graph: `A` and `D^-1/2`.
        nodes: Which rows of the product; distinct.
        rows: Shape `(n_nodes, d)`.
        totals: Shape `(n_nodes, d)`, changed at `nodes`.
    """
    indptr, neighbours, scale = graph.indptr, graph.neighbours, graph.scale
    size = rows.shape[1]
    for node in nodes:
        total, own = totals[node], scale[node]
        e, end = indptr[node], indptr[node + 1]
        while e + 8 <= end:  # eight rows per pass over the accumulator
            v0, v1, v2, v3 = neighbours[e], neighbours[e + 1], neighbours[e + 2], neighbours[e + 3]
            v4, v5 = neighbours[e + 4], neighbours[e + 5]
            v6, v7 = neighbours[e + 6], neighbours[e + 7]
            r0, r1, r2, r3 = rows[v0], rows[v1], rows[v2], rows[v3]
            r4, r5, r6, r7 = rows[v4], rows[v5], rows[v6], rows[v7]
            s0, s1, s2, s3 = own * scale[v0], own * scale[v1], own * scale[v2], own * scale[v3]
            s4, s5, s6, s7 = own * scale[v4], own * scale[v5], own * scale[v6], own * scale[v7]
            for d in range(size):
                total[d] += (s0 * r0[d] + s1 * r1[d] + s2 * r2[d] + s3 * r3[d]) + (
                    s4 * r4[d] + s5 * r5[d] + s6 * r6[d] + s7 * r7[d]
                )
            e += 8
        while e < end:
            row, share = rows[neighbours[e]], own * scale[neighbours[e]]
            for d in range(size):
                total[d] += share * row[d]
            e += 1


@compiled
def push_to_neighbours(
    graph: GraphArrays,
    nodes: NDArray[np.int32],
    rows: NDArray[np.float32],
    totals: NDArray[np.float32],
) -> None:
    """Add all of `D^-1/2 A D^-1/2 rows` to `totals`, where `rows` is zero outside of `nodes`.

    The same as `add_neighbours` for all nodes, and cheaper where `nodes` are few.
    """
    indptr, neighbours, scale = graph.indptr, graph.neighbours, graph.scale
    size = rows.shape[1]
    for node in nodes:
        row = rows[node]
        for e in range(indptr[node], indptr[node + 1]):
            v = neighbours[e]
            total, share = totals[v], scale[node] * scale[v]
            for d in range(size):
                total[d] += share * row[d]


@compiled
def with_neighbours(
    graph: GraphArrays,
    nodes: NDArray[np.int32],
    n: int,
    mark: NDArray[np.bool_],
    found: NDArray[np.int32],
) -> int:
    """List the first `n` of `nodes` and their neighbours, ascending.

    Args:
        graph: Where.
        nodes: Distinct.
        n: How many of them.
        mark: Shape `(n_nodes,)`, all false before and after.
        found: Written, shape `(n_nodes,)`.

    Returns:
        How many were found.
    """
    for place in range(n):
        node = nodes[place]
        mark[node] = True
        for e in range(graph.indptr[node], graph.indptr[node + 1]):
            mark[graph.neighbours[e]] = True
    n_found = 0
    for node in range(len(mark)):
        if mark[node]:
            found[n_found] = node
            n_found += 1
            mark[node] = False
    return n_found


@compiled
def count_exposure(
    final: NDArray[np.float32], n_items: int, contest: Contest, counts: NDArray[np.int64]
) -> None:
    """Count how many genuine users are shown each target, without ranking.

    A target is shown if fewer than `k` allowed items come before it. The competitors of a user's best
    target are tried in clean order until `k` of them beat it: then no target is shown.

    Args:
        final: What users and items are scored by, by inner product; shape `(n_nodes, width)`, items
            first.
        n_items: User `u` is row `n_items + u`.
        contest: The lists.
        counts: Shape `(n_targets,)`, written.
    """
    n_targets, k = len(contest.targets), contest.k
    target_scores = np.empty(n_targets, dtype=np.float32)
    order = np.empty(n_targets, dtype=np.int64)
    size = max(contest.shortlist.shape[1], contest.n_rest)
    scores = np.empty(size, dtype=np.float32)
    ids = np.empty(size, dtype=np.int64)
    counts[:] = 0
    for u in range(len(contest.eligible)):
        user = final[n_items + u]
        n_eligible = 0
        for t in range(n_targets):
            if not contest.eligible[u, t]:
                continue
            score = dot(user, final[contest.targets[t]])
            target_scores[t] = score
            place = n_eligible
            while place > 0 and is_better(
                score,
                contest.targets[t],
                target_scores[order[place - 1]],
                contest.targets[order[place - 1]],
            ):
                order[place] = order[place - 1]
                place -= 1
            order[place] = t
            n_eligible += 1
        if n_eligible == 0:
            continue
        best = order[0]
        n_before, n_scored = 0, 0
        while n_scored < contest.shortlist.shape[1] and n_before < k:
            item = contest.shortlist[u, n_scored]
            if item < 0:
                break
            score = dot(user, final[item])
            scores[n_scored], ids[n_scored] = score, item
            n_scored += 1
            n_before += int(is_better(score, item, target_scores[best], contest.targets[best]))
        if n_before >= k:
            continue
        if contest.n_rest:
            n_scored = _score_rest(final, user, u, contest, scores, ids)
        for rank in range(min(n_eligible, k)):
            t = order[rank]
            n_before = rank
            for c in range(n_scored):
                n_before += int(is_better(scores[c], ids[c], target_scores[t], contest.targets[t]))
            if n_before >= k:
                break
            counts[t] += 1


@compiled
def _score_rest(
    final: NDArray[np.float32],
    user: NDArray[np.float32],
    u: int,
    contest: Contest,
    scores: NDArray[np.float32],
    ids: NDArray[np.int64],
) -> int:
    n_scored = 0
    seen, end = contest.seen_indptr[u], contest.seen_indptr[u + 1]
    for item in range(contest.n_rest):
        if seen < end and contest.seen_items[seen] == item:
            seen += 1
            continue
        is_target = False
        for t in range(len(contest.targets)):
            is_target |= contest.targets[t] == item
        if not is_target:
            scores[n_scored], ids[n_scored] = dot(user, final[item]), item
            n_scored += 1
    return n_scored
