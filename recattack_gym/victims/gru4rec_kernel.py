"""Compiled fine-tuning and evaluation of GRU4Rec; the fast twin of `GRU4Rec._finetune` + ranking.

A poisoned set moves the recurrent weights, so every user's state has to be computed again, and nothing
of it can be shared by sets. What is saved: item vectors are multiplied by the input weights once per item
instead of once per click; histories with the same beginning share its states, and none is padded; the
first click needs no product, since the state before it is zero; the gates are one vectorised pass;
candidates are compared in the order of their clean scores until `k` of them beat the best target.
Training moves the recurrent weights and the rows of clicked and sampled items only, which is what a
dense Adam would do.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.parallel import over_sets
from recattack_gym.victims.kernels import adam_rows, check_finite, compiled, is_better
from recattack_gym.victims.ranking import CandidateLists

if TYPE_CHECKING:
    from recattack_gym.victims.gru4rec import SessionSchedule

_USERS_AT_ONCE = 256
"""Users whose states advance together in evaluation."""


class Recurrent(NamedTuple):
    """The recurrent weights, gates in the order reset, update, new; float32, C order."""

    w_in: NDArray[np.float32]
    """Shape `(3 d, d)`."""
    w_state: NDArray[np.float32]
    """Shape `(3 d, d)`."""
    b_in: NDArray[np.float32]
    """Shape `(3 d,)`."""
    b_state: NDArray[np.float32]
    """Shape `(3 d,)`."""


class Rows(NamedTuple):
    """Touched items' parameters, numbered by first touch."""

    vectors: NDArray[np.float32]
    """Shape `(R, d)`."""
    bias: NDArray[np.float32]
    """Shape `(R,)`."""


class Parameters(NamedTuple):
    """What is trained, or arrays of the same shapes (gradient, moments)."""

    recurrent: Recurrent
    rows: Rows


class Sessions(NamedTuple):
    """A `SessionSchedule` in compact types."""

    clicks: NDArray[np.int32]
    indptr: NDArray[np.int64]
    batch_indptr: NDArray[np.int64]
    uniform: NDArray[np.float64]


class Forest(NamedTuple):
    """The histories of all users, grouped in blocks; equal beginnings within a block are one node.

    Level `block * max_length + t` holds the nodes for the first `t + 1` clicks of a block's histories.
    """

    max_length: int
    items: NDArray[np.int32]
    """Shape `(n_nodes,)`: the last click of each node, level by level."""
    parents: NDArray[np.int32]
    """Shape `(n_nodes,)`: place of the node without that click in the level before."""
    indptr: NDArray[np.int64]
    """Shape `(n_levels + 1,)`: level `v` is the nodes `indptr[v]:indptr[v + 1]`."""
    n_parents: NDArray[np.int64]
    """Shape `(n_levels,)`: how many nodes of a level, the first ones, have children."""


class Contest(NamedTuple):
    """What is ranked; users in the order of the level where their history ends, empty ones first."""

    forest: Forest
    n_empty: int
    """Users without history."""
    user_indptr: NDArray[np.int64]
    """Shape `(n_levels + 1,)`: the users of level `v` are `user_indptr[v]:user_indptr[v + 1]`."""
    user_nodes: NDArray[np.int32]
    """Shape `(U,)`: place of the user's node in its level."""
    candidates: NDArray[np.int32]
    """Shape `(U, C)`: best first by the clean victim."""
    eligible: NDArray[np.bool_]
    """Shape `(U, n_targets)`."""
    targets: NDArray[np.int64]
    """Shape `(n_targets,)`."""
    k: int


class Tape(NamedTuple):
    """What one training step remembers of its S clicks, packed step by step, longest session first."""

    rows: NDArray[np.int64]
    """Shape `(S,)`: which touched item each click is on."""
    offset: NDArray[np.int64]
    """Shape `(longest session + 1,)`: the clicks at step `t` are `offset[t]:offset[t + 1]`."""
    clicks: NDArray[np.float32]
    """Shape `(S, d)`: their vectors."""
    states: NDArray[np.float32]
    """Shape `(S, d)`: the state before each click."""
    from_click: NDArray[np.float32]
    """Shape `(S, 3 d)`: input part of the gates; on the way back, its gradient."""
    from_state: NDArray[np.float32]
    """Shape `(S, 3 d)`: recurrent part of the gates; on the way back, its gradient."""
    gates: NDArray[np.float32]
    """Shape `(S, 3 d)`: reset, update and new."""
    product: NDArray[np.float32]
    """Shape `(S, d)`: what a product is written to before it is added."""
    d_states: NDArray[np.float32]
    """Shape `(S, d)`."""
    d_clicks: NDArray[np.float32]
    """Shape `(S, d)`."""
    d_own: NDArray[np.float32]
    """Shape `(S,)`: gradient in the score of the clicked item."""
    scores: NDArray[np.float32]
    """Shape `(S, n_negatives)`."""
    others: NDArray[np.float32]
    """Shape `(n_negatives, d)`: vectors of the sampled items."""
    d_others: NDArray[np.float32]
    """Shape `(n_negatives, d)`."""
    other_bias: NDArray[np.float32]
    """Shape `(n_negatives,)`: bias and weight of the sampled items; on the way back, a gradient."""


class Workspace(NamedTuple):
    """Buffers of one thread."""

    current: Parameters
    gradient: Parameters
    """Zero between steps."""
    first: Parameters
    second: Parameters
    tape: Tape
    touched: NDArray[np.int64]
    """Shape `(R,)`: item ids by row number."""
    row_of: NDArray[np.int32]
    """Shape `(n_items,)`: the inverse while rows are numbered, else -1."""
    click_rows: NDArray[np.int32]
    """Shape of `Sessions.clicks`."""
    negative_rows: NDArray[np.int32]
    """Shape of `Sessions.uniform`."""
    log_weight: NDArray[np.float32]
    """Shape of `Sessions.uniform`: what is added to the scores of the sampled items."""
    n_rows: NDArray[np.int64]
    """Shape `(n_batches,)`: rows touched by the end of each batch."""


class Table(NamedTuple):
    """All items of one thread's poisoned victim; equal to the clean ones between sets."""

    vectors: NDArray[np.float32]
    """Shape `(n_items, d)`."""
    bias: NDArray[np.float32]
    """Shape `(n_items,)`."""
    projected: NDArray[np.float32]
    """Shape `(n_items, 3 d)`: vectors times the input weights, with the biases that may be added early."""
    states: NDArray[np.float32]
    """Shape `(2, users at once, d)`: of this level and the one before."""
    from_state: NDArray[np.float32]
    """Shape `(users at once, 3 d)`: states times the recurrent weights."""


@compiled
def exponential(x: np.float32) -> np.float32:
    """Return e to the `x`, up to rounding, for `x` in [-87, 87]; unlike `np.exp`, loops over it vectorise.

    `x = k ln 2 + r` with whole `k`; e to the `r` by its series, 2 to the `k` by writing the exponent.
    """
    k = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    r = x - k * np.float32(0.693145751953125)
    r -= k * np.float32(1.4286068203094172e-06)
    y = np.float32(1.0 / 5040.0)
    y = y * r + np.float32(1.0 / 720.0)
    y = y * r + np.float32(1.0 / 120.0)
    y = y * r + np.float32(1.0 / 24.0)
    y = y * r + np.float32(1.0 / 6.0)
    y = y * r + np.float32(0.5)
    y = y * r + np.float32(1.0)
    y = y * r + np.float32(1.0)
    power = np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(np.float32)
    return np.float32(y * power)


@compiled
def _sigmoid(x: np.float32) -> np.float32:
    bound = np.float32(87.0)
    return np.float32(1.0) / (np.float32(1.0) + exponential(min(max(-x, -bound), bound)))


@compiled
def _tanh(x: np.float32) -> np.float32:
    return np.float32(2.0) * _sigmoid(np.float32(2.0) * x) - np.float32(1.0)


@compiled
def _advance(
    from_click: NDArray[np.float32],
    from_state: NDArray[np.float32],
    b_new: NDArray[np.float32],
    before: NDArray[np.float32],
    after: NDArray[np.float32],
) -> None:
    """Advance one state by one click.

    Args:
        from_click: Input part of the gates with all biases but `b_new`, shape `(3 d,)`.
        from_state: Recurrent part without biases, shape `(3 d,)`.
        b_new: Recurrent bias of the new gate, shape `(d,)`, which the reset gate scales.
        before: State before the click, shape `(d,)`.
        after: Written, shape `(d,)`.
    """
    d = len(after)
    for j in range(d):
        reset = _sigmoid(from_click[j] + from_state[j])
        update = _sigmoid(from_click[d + j] + from_state[d + j])
        new = _tanh(from_click[2 * d + j] + reset * (from_state[2 * d + j] + b_new[j]))
        after[j] = new + update * (before[j] - new)


# -- fine-tuning -----------------------------------------------------------------------------------


@compiled
def train(sessions: Sessions, work: Workspace, learning_rate: float, reg: float) -> None:
    """Run the schedule on a workspace that `start` has made ready.

    Args:
        sessions: The schedule.
        work: Numbered and filled by `GRU4RecEngine._finetune`; `work.current` is trained.
        learning_rate: Adam's.
        reg: L2 penalty on the vectors of a batch's clicks.
    """
    tape, slope = work.tape, work.gradient.rows.vectors
    for batch in range(len(sessions.batch_indptr) - 1):
        n_steps = _pack(sessions, batch, work)
        _forward(work, n_steps)
        _softmax(batch, work, n_steps)
        _backward(work, n_steps)
        n_clicks = tape.offset[n_steps]
        shrink = np.float32(reg) / np.float32(n_clicks)
        for c in range(n_clicks):
            row = tape.rows[c]
            for j in range(slope.shape[1]):
                slope[row, j] += tape.d_clicks[c, j] + shrink * tape.clicks[c, j]
        _adam(work, work.n_rows[batch], learning_rate, batch + 1)


@compiled
def number_rows(
    sessions: Sessions, profile: NDArray[np.int64], negatives: NDArray[np.int64], work: Workspace
) -> int:
    """Number the items that one poison set touches, by first touch.

    Args:
        sessions: The schedule.
        profile: Shape `(N, T)`.
        negatives: The sampled items, shape of `Sessions.uniform`.
        work: `touched`, `n_rows` and the rows of clicks and negatives are written.

    Returns:
        How many there are.
    """
    profile_size = profile.shape[1]
    n = 0
    for batch in range(len(sessions.batch_indptr) - 1):
        start = sessions.indptr[sessions.batch_indptr[batch]]
        for c in range(start, sessions.indptr[sessions.batch_indptr[batch + 1]]):
            item = np.int64(sessions.clicks[c])
            if item < 0:
                item = profile[(-1 - item) // profile_size, (-1 - item) % profile_size]
            n = _touch(item, n, work)
            work.click_rows[c] = work.row_of[item]
        for j in range(negatives.shape[1]):
            item = negatives[batch, j]
            n = _touch(item, n, work)
            work.negative_rows[batch, j] = work.row_of[item]
        work.n_rows[batch] = n
    for row in range(n):
        work.row_of[work.touched[row]] = -1
    return n


@compiled
def _touch(item: np.int64, n: int, work: Workspace) -> int:
    if work.row_of[item] >= 0:
        return n
    work.row_of[item] = n
    work.touched[n] = item
    return n + 1


@compiled
def _clear(array: NDArray[np.float32]) -> None:
    array.ravel().fill(np.float32(0.0))


@compiled
def _copy(source: NDArray[np.float32], target: NDArray[np.float32]) -> None:
    """Copy numbers; a loop, since numba compiles slice assignment twenty times as long."""
    for x in range(len(source)):
        target[x] = source[x]


@compiled
def _adam(work: Workspace, n_rows: int, learning_rate: float, step: int) -> None:
    now, slope, first, second = work.current, work.gradient, work.first, work.second
    for w, g, m, v in (
        (now.recurrent.w_in, slope.recurrent.w_in, first.recurrent.w_in, second.recurrent.w_in),
        (
            now.recurrent.w_state,
            slope.recurrent.w_state,
            first.recurrent.w_state,
            second.recurrent.w_state,
        ),
        (now.rows.vectors[:n_rows], slope.rows.vectors, first.rows.vectors, second.rows.vectors),
    ):
        adam_rows(w.ravel(), g.ravel(), m.ravel(), v.ravel(), w.size, learning_rate, step)
    for w1, g1, m1, v1 in (
        (now.recurrent.b_in, slope.recurrent.b_in, first.recurrent.b_in, second.recurrent.b_in),
        (
            now.recurrent.b_state,
            slope.recurrent.b_state,
            first.recurrent.b_state,
            second.recurrent.b_state,
        ),
        (now.rows.bias[:n_rows], slope.rows.bias, first.rows.bias, second.rows.bias),
    ):
        adam_rows(w1, g1, m1, v1, len(w1), learning_rate, step)


@compiled
def _pack(sessions: Sessions, batch: int, work: Workspace) -> int:
    """Lay the batch's clicks out step by step; return the number of steps."""
    tape, vectors = work.tape, work.current.rows.vectors
    first, last = sessions.batch_indptr[batch], sessions.batch_indptr[batch + 1]
    n_steps = sessions.indptr[first + 1] - sessions.indptr[first]
    n, alive = 0, last - first
    for t in range(n_steps):
        tape.offset[t] = n
        while sessions.indptr[first + alive] - sessions.indptr[first + alive - 1] <= t:
            alive -= 1
        for s in range(alive):
            row = work.click_rows[sessions.indptr[first + s] + t]
            tape.rows[n] = row
            _copy(vectors[row], tape.clicks[n])
            n += 1
    tape.offset[n_steps] = n
    return int(n_steps)


@compiled
def _forward(work: Workspace, n_steps: int) -> None:
    """Compute the states before all clicks and remember the gates."""
    tape, weights = work.tape, work.current.recurrent
    d = tape.clicks.shape[1]
    _clear(tape.states[: tape.offset[1]])
    n_inputs = tape.offset[n_steps - 1]
    if n_inputs == 0:
        return
    np.dot(tape.clicks[:n_inputs], weights.w_in.T, tape.from_click[:n_inputs])
    for t in range(n_steps - 1):
        start, n = tape.offset[t], tape.offset[t + 2] - tape.offset[t + 1]
        if t == 0:
            _clear(tape.from_state[:n])
        else:
            states = tape.states[start : start + n]
            np.dot(states, weights.w_state.T, tape.from_state[start : start + n])
        for s in range(n):
            click, state = tape.from_click[start + s], tape.from_state[start + s]
            gates, before = tape.gates[start + s], tape.states[start + s]
            after = tape.states[tape.offset[t + 1] + s]
            for j in range(d):
                state[2 * d + j] += weights.b_state[2 * d + j]
                reset = _sigmoid(click[j] + weights.b_in[j] + state[j] + weights.b_state[j])
                update = _sigmoid(
                    click[d + j] + weights.b_in[d + j] + state[d + j] + weights.b_state[d + j]
                )
                new = _tanh(click[2 * d + j] + weights.b_in[2 * d + j] + reset * state[2 * d + j])
                gates[j], gates[d + j], gates[2 * d + j] = reset, update, new
                after[j] = new + update * (before[j] - new)


@compiled
def _softmax(batch: int, work: Workspace, n_steps: int) -> None:
    """Turn states into the gradient of the mean cross-entropy in states, clicks and sampled items."""
    tape, rows, slope = work.tape, work.current.rows, work.gradient.rows
    negatives = work.negative_rows[batch]
    n_negatives, d = len(negatives), tape.clicks.shape[1]
    for j in range(n_negatives):
        _copy(rows.vectors[negatives[j]], tape.others[j])
        tape.other_bias[j] = rows.bias[negatives[j]] + work.log_weight[batch, j]
    n_clicks = tape.offset[n_steps]
    states, scores = tape.states[:n_clicks], tape.scores[:n_clicks]
    np.dot(states, tape.others.T, scores)
    share, lowest = np.float32(1.0) / np.float32(n_clicks), np.float32(-87.0)
    for c in range(n_clicks):
        row, score, state, click = tape.rows[c], scores[c], states[c], tape.clicks[c]
        own = rows.bias[row]
        for j in range(d):
            own += state[j] * click[j]
        top = own
        for j in range(n_negatives):
            score[j] += tape.other_bias[j]
            if negatives[j] != row:
                top = max(top, score[j])
        own = exponential(max(own - top, lowest))
        total = own
        for j in range(n_negatives):
            power = exponential(min(max(score[j] - top, lowest), np.float32(0.0)))
            score[j] = power if negatives[j] != row else np.float32(0.0)
            total += score[j]
        for j in range(n_negatives):
            score[j] *= share / total
        tape.d_own[c] = own * (share / total) - share
        slope.bias[row] += tape.d_own[c]
    np.dot(scores, tape.others, tape.d_states[:n_clicks])
    for c in range(n_clicks):
        for j in range(d):
            tape.d_states[c, j] += tape.d_own[c] * tape.clicks[c, j]
            tape.d_clicks[c, j] = tape.d_own[c] * states[c, j]
    tape.other_bias.fill(np.float32(0.0))
    for c in range(n_clicks):
        for j in range(n_negatives):
            tape.other_bias[j] += scores[c, j]
    np.dot(scores.T, states, tape.d_others)
    for j in range(n_negatives):
        slope.bias[negatives[j]] += tape.other_bias[j]
        vector = slope.vectors[negatives[j]]
        for x in range(d):
            vector[x] += tape.d_others[j, x]


@compiled
def _backward(work: Workspace, n_steps: int) -> None:
    """Go back through time (all steps) to the recurrent weights and the clicks."""
    tape, weights, slope = work.tape, work.current.recurrent, work.gradient.recurrent
    d = tape.clicks.shape[1]
    one = np.float32(1.0)
    n_inputs = tape.offset[n_steps - 1]
    if n_inputs == 0:
        return
    for t in range(n_steps - 2, -1, -1):
        start, end = tape.offset[t], tape.offset[t + 1]
        n = tape.offset[t + 2] - end
        for s in range(n):
            click, state = tape.from_click[start + s], tape.from_state[start + s]
            gates, before = tape.gates[start + s], tape.states[start + s]
            d_after, d_before = tape.d_states[end + s], tape.d_states[start + s]
            for j in range(d):
                reset, update, new = gates[j], gates[d + j], gates[2 * d + j]
                d_new = d_after[j] * (one - update) * (one - new * new)
                d_update = d_after[j] * (before[j] - new) * update * (one - update)
                d_reset = d_new * state[2 * d + j] * reset * (one - reset)
                d_before[j] += d_after[j] * update
                click[j], click[d + j], click[2 * d + j] = d_reset, d_update, d_new
                state[j], state[d + j], state[2 * d + j] = d_reset, d_update, d_new * reset
        _clear(tape.from_click[start + n : end])
        _clear(tape.from_state[start + n : end])
        if t > 0:
            np.dot(tape.from_state[start : start + n], weights.w_state, tape.product[:n])
            for s in range(n):
                for j in range(d):
                    tape.d_states[start + s, j] += tape.product[s, j]
    from_click, from_state = tape.from_click[:n_inputs], tape.from_state[:n_inputs]
    np.dot(from_click.T, tape.clicks[:n_inputs], slope.w_in)
    np.dot(from_state.T, tape.states[:n_inputs], slope.w_state)
    for c in range(n_inputs):
        for j in range(3 * d):
            slope.b_in[j] += from_click[c, j]
            slope.b_state[j] += from_state[c, j]
    np.dot(from_click, weights.w_in, tape.product[:n_inputs])
    for c in range(n_inputs):
        for j in range(d):
            tape.d_clicks[c, j] += tape.product[c, j]


# -- evaluation ------------------------------------------------------------------------------------


@compiled
def count_exposure(
    contest: Contest, recurrent: Recurrent, table: Table, counts: NDArray[np.int64]
) -> None:
    """Count how many genuine users are shown each target.

    Args:
        contest: The lists.
        recurrent: Poisoned.
        table: Vectors and bias are poisoned; the rest is written.
        counts: Shape `(n_targets,)`, written.
    """
    d = table.vectors.shape[1]
    np.dot(table.vectors, recurrent.w_in.T, table.projected)
    for i in range(len(table.projected)):
        for j in range(3 * d):
            table.projected[i, j] += recurrent.b_in[j]
        for j in range(2 * d):
            table.projected[i, j] += recurrent.b_state[j]
    b_new = recurrent.b_state[2 * d :]
    nothing, nothing_in = np.zeros(d, dtype=np.float32), np.zeros(3 * d, dtype=np.float32)
    n_targets = len(contest.targets)
    target_scores = np.empty(n_targets, dtype=np.float32)
    order = np.empty(n_targets, dtype=np.int64)
    scores = np.empty(contest.candidates.shape[1], dtype=np.float32)
    counts.fill(0)
    for u in range(contest.n_empty):
        _count_user(contest, u, table, nothing, target_scores, order, scores, counts)
    forest = contest.forest
    for level in range(len(forest.n_parents)):
        t = level % forest.max_length
        start, n = forest.indptr[level], forest.indptr[level + 1] - forest.indptr[level]
        before, after = table.states[(t + 1) % 2], table.states[t % 2]
        for node in range(n):
            click = table.projected[forest.items[start + node]]
            if t == 0:
                _advance(click, nothing_in, b_new, nothing, after[node])
            else:
                parent = forest.parents[start + node]
                _advance(click, table.from_state[parent], b_new, before[parent], after[node])
        for u in range(contest.user_indptr[level], contest.user_indptr[level + 1]):
            state = after[contest.user_nodes[u]]
            _count_user(contest, u, table, state, target_scores, order, scores, counts)
        n_parents = forest.n_parents[level]
        if n_parents:
            np.dot(after[:n_parents], recurrent.w_state.T, table.from_state[:n_parents])


@compiled
def _count_user(
    contest: Contest,
    u: int,
    table: Table,
    state: NDArray[np.float32],
    target_scores: NDArray[np.float32],
    order: NDArray[np.int64],
    scores: NDArray[np.float32],
    counts: NDArray[np.int64],
) -> None:
    """Add the targets that one user is shown to `counts`, without ranking the candidates.

    A target is shown if fewer than `k` items come before it. Where `k` candidates come before the best
    target, none is; those most likely to are tried first.
    """
    targets, k = contest.targets, contest.k
    n_eligible = 0
    for t in range(len(targets)):
        if not contest.eligible[u, t]:
            continue
        score = _score(table, state, targets[t])
        target_scores[t] = score
        place = n_eligible
        while place > 0 and is_better(
            score, targets[t], target_scores[order[place - 1]], targets[order[place - 1]]
        ):
            order[place] = order[place - 1]
            place -= 1
        order[place] = t
        n_eligible += 1
    if n_eligible == 0:
        return
    best = target_scores[order[0]]
    best_item = targets[order[0]]
    candidates = contest.candidates[u]
    n_before = 0
    for c in range(len(candidates)):
        scores[c] = _score(table, state, candidates[c])
        n_before += int(is_better(scores[c], candidates[c], best, best_item))
        if n_before >= k:
            return
    for rank in range(n_eligible):
        t = order[rank]
        n_before = rank
        for c in range(len(candidates)):
            n_before += int(is_better(scores[c], candidates[c], target_scores[t], targets[t]))
        if n_before >= k:
            return
        counts[t] += 1


@compiled
def _score(table: Table, state: NDArray[np.float32], item: int) -> np.float32:
    vector = table.vectors[item]
    score = table.bias[item]
    for j in range(len(state)):
        score += state[j] * vector[j]
    return np.float32(score)


# -- engine ----------------------------------------------------------------------------------------


class GRU4RecEngine:
    """Evaluates poison sets against fixed candidate lists, one set per thread at a time.

    Args:
        clean: All parameters of the clean victim, rows numbered by item.
        contest: From `make_contest`.
        schedule: Lays out fine-tuning for `(N, T)` and a seed.
        sample: Gives, for a profile and places in (0, 1), the sampled items, same shape, and what is
            added to the score of each item of the catalogue when it is sampled.
        learning_rate: Of fine-tuning.
        reg: Of fine-tuning.
    """

    def __init__(
        self,
        clean: Parameters,
        contest: Contest,
        schedule: Callable[[tuple[int, int], int], "SessionSchedule"],
        sample: Callable[
            [NDArray[np.int64], NDArray[np.float64]],
            tuple[NDArray[np.int64], NDArray[np.float32]],
        ],
        *,
        learning_rate: float,
        reg: float,
    ) -> None:
        self._clean = clean
        self._contest = contest
        self._schedule = schedule
        self._sample = sample
        self._learning_rate = learning_rate
        self._reg = reg
        self._laid_out: tuple[tuple[int, int, int], Sessions] | None = None

    def exposure(self, profiles: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """See `ExposureEngine.exposure`."""
        sessions = self._sessions((profiles.shape[1], profiles.shape[2]), seed)
        counts = np.zeros((len(profiles), len(self._contest.targets)), dtype=np.int64)

        def work(thread: int, sets: range) -> None:
            del thread
            table = _make_table(self._clean.rows)
            workspace = _make_workspace(self._clean, sessions)
            for m in sets:
                touched = self._finetune(profiles[m], sessions, workspace)
                now = workspace.current
                check_finite(*now.recurrent, *(array[: len(touched)] for array in now.rows))
                table.vectors[touched] = workspace.current.rows.vectors[: len(touched)]
                table.bias[touched] = workspace.current.rows.bias[: len(touched)]
                count_exposure(self._contest, workspace.current.recurrent, table, counts[m])
                table.vectors[touched] = self._clean.rows.vectors[touched]
                table.bias[touched] = self._clean.rows.bias[touched]

        over_sets(len(profiles), work)
        return counts

    def parameters(self, profile: NDArray[np.int64], seed: int) -> dict[str, NDArray[np.float32]]:
        """Return what fine-tuning on one poison set gives, by the names of `GRU4Rec.state`.

        Args:
            profile: Shape `(N, T)`.
            seed: What retraining draws from.
        """
        sessions = self._sessions((profile.shape[0], profile.shape[1]), seed)
        work = _make_workspace(self._clean, sessions)
        touched = self._finetune(profile, sessions, work)
        items, bias = self._clean.rows.vectors.copy(), self._clean.rows.bias.copy()
        items[touched] = work.current.rows.vectors[: len(touched)]
        bias[touched] = work.current.rows.bias[: len(touched)]
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        recurrent = dict(zip(names, work.current.recurrent, strict=True))
        return {"items": items, "bias": bias, **recurrent}

    def _finetune(
        self, profile: NDArray[np.int64], sessions: Sessions, work: Workspace
    ) -> NDArray[np.int64]:
        """Train `work.current`; return the items that its rows belong to."""
        negatives, log_weight = self._sample(profile, sessions.uniform)
        np.take(log_weight, negatives, out=work.log_weight)
        n = number_rows(sessions, profile, negatives, work)
        touched = work.touched[:n]
        np.take(self._clean.rows.vectors, touched, axis=0, out=work.current.rows.vectors[:n])
        np.take(self._clean.rows.bias, touched, out=work.current.rows.bias[:n])
        for weights, clean_weights in zip(
            work.current.recurrent, self._clean.recurrent, strict=True
        ):
            np.copyto(weights, clean_weights)
        for moments in (work.first, work.second):
            for array in moments.recurrent:
                array.fill(0.0)
            for array in moments.rows:
                array[:n] = 0.0
        train(sessions, work, self._learning_rate, self._reg)
        return touched

    def _sessions(self, profile_shape: tuple[int, int], seed: int) -> Sessions:
        key = (*profile_shape, seed)
        if self._laid_out is None or self._laid_out[0] != key:
            schedule = self._schedule(profile_shape, seed)
            self._laid_out = (
                key,
                Sessions(
                    clicks=schedule.clicks.astype(np.int32),
                    indptr=schedule.indptr,
                    batch_indptr=schedule.batch_indptr,
                    uniform=schedule.uniform,
                ),
            )
        return self._laid_out[1]


def make_contest(
    lists: CandidateLists, clean_scores: NDArray[np.float32], max_length: int
) -> Contest:
    """Arrange users by history and candidates by clean score.

    Args:
        lists: With candidate lists.
        clean_scores: Of `lists.item_ids`, same shape.
        max_length: How many of a user's last clicks are read.
    """
    if lists.item_ids is None:
        raise ArgumentError("lists must have item_ids; the whole catalogue has no compiled path")
    log = lists.log
    lengths = np.minimum(np.diff(log.indptr), max_length)
    steps = np.arange(max_length)
    places = (log.indptr[1:] - lengths)[:, None] + steps
    history = np.where(steps < lengths[:, None], log.item_ids[np.minimum(places, len(log) - 1)], -1)
    forest, users, levels, nodes = plant(history, lengths)
    best_first = np.argsort(-clean_scores, axis=1, kind="stable")
    candidates = np.take_along_axis(lists.item_ids, best_first, axis=1)
    return Contest(
        forest=forest,
        n_empty=int((levels < 0).sum()),
        user_indptr=np.searchsorted(levels, np.arange(len(forest.indptr))),
        user_nodes=nodes.astype(np.int32),
        candidates=candidates[users].astype(np.int32),
        eligible=lists.eligible[users],
        targets=lists.target_items.astype(np.int64),
        k=lists.k,
    )


def plant(
    history: NDArray[np.int64], lengths: NDArray[np.int64]
) -> tuple[Forest, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Join equal beginnings of histories.

    Args:
        history: Shape `(U, max_length)`, oldest first, -1 after the end.
        lengths: Shape `(U,)`.

    Returns:
        The forest, and user ids, levels (-1 for empty histories) and nodes, each of shape `(U,)`, in
        ascending order of level.
    """
    n_users, max_length = history.shape
    users = np.lexsort(history.T[::-1])
    history, lengths = history[users], lengths[users]
    block = np.arange(n_users) // _USERS_AT_ONCE
    is_known = np.zeros(history.shape, dtype=np.bool_)
    is_known[1:] = np.logical_and.accumulate(history[1:] == history[:-1], axis=1)
    is_known[::_USERS_AT_ONCE] = False
    is_node = ~is_known & (np.arange(max_length) < lengths[:, None])
    n_nodes = np.cumsum(is_node, axis=0)
    n_levels = (block[-1] + 1) * max_length
    level_of = block[:, None] * max_length + np.arange(max_length)  # (U, max_length)
    indptr = np.zeros(n_levels + 1, dtype=np.int64)
    np.cumsum(np.bincount(level_of[is_node], minlength=n_levels), out=indptr[1:])
    before_block: NDArray[np.int64] = (n_nodes - is_node)[block * _USERS_AT_ONCE]
    node_of = indptr[level_of] + n_nodes - before_block - 1  # where t < length
    row, step = np.nonzero(is_node)
    nodes, level = node_of[is_node], level_of[is_node]
    has_parent = step > 0
    parents = node_of[row[has_parent], step[has_parent] - 1]
    has_child = np.zeros(indptr[-1], dtype=np.bool_)
    has_child[parents] = True
    by_node = np.argsort(nodes)
    order = np.lexsort((~has_child, level[by_node]))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order)) - indptr[level[by_node]]
    parent_place = np.zeros(len(order), dtype=np.int64)
    parent_place[nodes[has_parent]] = place[parents]
    items = np.zeros(len(order), dtype=np.int64)
    items[nodes] = history[is_node]
    forest = Forest(
        max_length=max_length,
        items=items[order].astype(np.int32),
        parents=parent_place[order].astype(np.int32),
        indptr=indptr,
        n_parents=np.bincount(level[by_node][has_child], minlength=n_levels),
    )
    last = np.maximum(lengths - 1, 0)
    everyone = np.arange(n_users)
    levels = np.where(lengths > 0, level_of[everyone, last], -1)
    ends = np.zeros(n_users, dtype=np.int64)
    ends[lengths > 0] = place[node_of[everyone, last][lengths > 0]]
    by_level = np.argsort(levels, kind="stable")
    return forest, users[by_level], levels[by_level], ends[by_level]


def _make_table(rows: Rows) -> Table:
    n_items, d = rows.vectors.shape
    return Table(
        vectors=rows.vectors.copy(),
        bias=rows.bias.copy(),
        projected=_floats(n_items, 3 * d),
        states=_floats(2, _USERS_AT_ONCE, d),
        from_state=_floats(_USERS_AT_ONCE, 3 * d),
    )


def _make_workspace(clean: Parameters, sessions: Sessions) -> Workspace:
    n_items, d = clean.rows.vectors.shape
    n_batches, n_negatives = sessions.uniform.shape
    n_rows = min(n_items, len(sessions.clicks) + sessions.uniform.size)
    clicks_before = sessions.indptr[sessions.batch_indptr]
    n_clicks = int(np.diff(clicks_before).max(initial=1))
    longest = int(np.diff(sessions.indptr).max(initial=1))

    def parameters() -> Parameters:
        return Parameters(
            Recurrent(_floats(3 * d, d), _floats(3 * d, d), _floats(3 * d), _floats(3 * d)),
            Rows(_floats(n_rows, d), _floats(n_rows)),
        )

    return Workspace(
        current=parameters(),
        gradient=parameters(),
        first=parameters(),
        second=parameters(),
        tape=Tape(
            rows=np.zeros(n_clicks, dtype=np.int64),
            offset=np.zeros(longest + 1, dtype=np.int64),
            clicks=_floats(n_clicks, d),
            states=_floats(n_clicks, d),
            from_click=_floats(n_clicks, 3 * d),
            from_state=_floats(n_clicks, 3 * d),
            gates=_floats(n_clicks, 3 * d),
            product=_floats(n_clicks, d),
            d_states=_floats(n_clicks, d),
            d_clicks=_floats(n_clicks, d),
            d_own=_floats(n_clicks),
            scores=_floats(n_clicks, n_negatives),
            others=_floats(n_negatives, d),
            d_others=_floats(n_negatives, d),
            other_bias=_floats(n_negatives),
        ),
        touched=np.zeros(n_rows, dtype=np.int64),
        row_of=np.full(n_items, -1, dtype=np.int32),
        click_rows=np.zeros(len(sessions.clicks), dtype=np.int32),
        negative_rows=np.zeros((n_batches, n_negatives), dtype=np.int32),
        log_weight=_floats(n_batches, n_negatives),
        n_rows=np.zeros(n_batches, dtype=np.int64),
    )


def _floats(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, dtype=np.float32)
