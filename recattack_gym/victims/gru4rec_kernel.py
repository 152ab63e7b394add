"""Compiled fine-tuning and evaluation of GRU4Rec; the fast twin of `GRU4Rec._finetune` + ranking.

Only the rows of few items move, and only where they are sampled or in fake sessions, so most of a step's
work is skipped; the recurrent weights are written where there are fake sessions, and what happens to them
in between is one multiplication (`Rerun.fades`). Users' states are those of the clean victim, computed
once, unless an item moves that is in somebody's history. Then item vectors are multiplied by the input
weights once per item instead of once per click, and histories with the same beginning share its states, and
none is padded. Candidates are compared in the order of their clean scores until `k` of them beat the best
target.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.parallel import over_sets
from recattack_gym.victims.gru4rec_run import RECURRENT, CleanRun, Rerun, moved_items
from recattack_gym.victims.kernels import check_finite, compiled, is_better
from recattack_gym.victims.ranking import CandidateLists

BETA1, BETA2 = 0.9, 0.999
"""Those of `gru4rec_run`, here because the cache of compiled code only knows this file."""

_USERS_AT_ONCE = 256
"""Users whose states advance together in evaluation."""


class Recurrent(NamedTuple):
    """The recurrent weights, gates in the order reset, update, new; float32, C order.

    Where there is one set of weights per waypoint, all shapes have W in front.
    """

    w_in: NDArray[np.float32]
    """Shape `(3 d, d)`."""
    w_state: NDArray[np.float32]
    """Shape `(3 d, d)`."""
    b_in: NDArray[np.float32]
    """Shape `(3 d,)`."""
    b_state: NDArray[np.float32]
    """Shape `(3 d,)`."""


class Course(NamedTuple):
    """What all poison sets of a shape have in common: `Rerun` and `CleanRun` as arrays."""

    epochs: NDArray[np.int64]
    """Shape `(S,)`."""
    anchors: NDArray[np.int64]
    """Shape `(S,)`; from here on see `Rerun`."""
    waypoints: NDArray[np.int64]
    n_clicks: NDArray[np.int64]
    n_genuine: NDArray[np.int64]
    session_indptr: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    masks: NDArray[np.float32]
    fades: NDArray[np.float64]
    states: NDArray[np.float32]
    """Shape `(steps of the clean run, K, d)`; see `CleanRun`."""
    log_totals: NDArray[np.float32]
    """Shape `(steps of the clean run, K)`."""
    vectors: NDArray[np.float32]
    """Shape `(W, n_items, d)`."""
    bias: NDArray[np.float32]
    """Shape `(W, n_items)`."""
    weights: Recurrent
    """At the waypoints."""
    roots: Recurrent
    """At the waypoints."""


class Moving(NamedTuple):
    """The R items that one poison set moves, a row having the vector and the bias, and what it samples."""

    rows: NDArray[np.float32]
    """Shape `(R, d + 1)`: trained; the next four likewise."""
    slope: NDArray[np.float32]
    held: NDArray[np.float32]
    """What to add to the slope to have the whole gradient; the clean run has that part."""
    first: NDArray[np.float32]
    second: NDArray[np.float32]
    clean: NDArray[np.float32]
    """Shape `(W, R, d + 1)`: rows of the clean run, 0 for fresh items."""
    is_fresh: NDArray[np.bool_]
    """Shape `(R,)`."""
    share: NDArray[np.float32]
    """Shape `(R,)`."""
    items: NDArray[np.int64]
    """Shape `(R,)`."""
    place_of: NDArray[np.int32]
    """Shape `(n_items,)`: which row an item has, or -1."""
    scores: NDArray[np.float32]
    """Shape `(R, K)`, scratch."""
    counts: NDArray[np.int64]
    """Shape `(R,)`, scratch: how often each item is sampled in a step."""
    negatives: NDArray[np.int32]
    """Shape `(S, n_negatives)`."""
    log_weight: NDArray[np.float32]
    """Shape `(n_items,)`: added to the scores of sampled items."""
    clicks: NDArray[np.int64]
    """Shape `(N * T,)`: the profile."""


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
    """What one training step remembers of its S fake clicks, by place in the session, longest first."""

    items: NDArray[np.int64]
    """Shape `(S,)`: which item each click is on."""
    places: NDArray[np.int64]
    """Shape `(S,)`: which click of the profile it is."""
    offset: NDArray[np.int64]
    """Shape `(longest session + 1,)`: the clicks at place `t` are `offset[t]:offset[t + 1]`."""
    clicks: NDArray[np.float32]
    """Shape `(S, d)`: their vectors."""
    inputs: NDArray[np.float32]
    """Shape `(S, d)`: what is left of them after dropout."""
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
    scores: NDArray[np.float32]
    """Shape `(S, n_negatives)`."""
    others: NDArray[np.float32]
    """Shape `(n_negatives, d)`: vectors of the sampled items."""
    other_bias: NDArray[np.float32]
    """Shape `(n_negatives,)`: bias and weight of the sampled items."""


class Workspace(NamedTuple):
    """Buffers of one thread."""

    weights: Recurrent
    """Of the clean run, as far as fake sessions have changed them."""
    slope: Recurrent
    changed: Recurrent
    """What fake sessions have changed."""
    moments: Recurrent
    """Adam's first moments of their gradient."""
    tape: Tape


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
def train(
    course: Course, moving: Moving, work: Workspace, learning_rate: float, reg: float
) -> None:
    """Take all steps of full retraining for the items that move.

    Args:
        course: The steps.
        moving: Rows as they start; `moving.rows` is trained and ends at the last waypoint.
        work: `changed` and `moments` zero.
        learning_rate: Adam's.
        reg: L2 penalty on the vectors of a batch's clicks.
    """
    n_rows, width = moving.rows.shape
    waypoint = course.waypoints[0]
    for s in range(len(course.waypoints)):
        after = course.waypoints[s]
        if after != waypoint:
            for r in range(n_rows):
                for x in range(width):
                    moving.rows[r, x] += moving.clean[after, r, x] - moving.clean[waypoint, r, x]
            waypoint = after
        _push_down(course, moving, s)
        if course.session_indptr[s + 1] > course.session_indptr[s]:
            _read_sessions(course, moving, work, s, reg)
        for r in range(n_rows):
            rate = learning_rate * moving.share[r]
            _adam(moving, r, rate, s + 1)


@compiled
def _adam(moving: Moving, r: int, learning_rate: float, step: int) -> None:
    """Take a step with one row, in the form of `adam_rows`; clears its gradients."""
    row, slope, held = moving.rows[r], moving.slope[r], moving.held[r]
    first, second = moving.first[r], moving.second[r]
    beta1, beta2 = np.float32(BETA1), np.float32(BETA2)
    rest1, rest2 = np.float32(1.0 - BETA1), np.float32(1.0 - BETA2)
    rate = np.float32(learning_rate / (1.0 - BETA1**step))
    unbias = np.float32(1.0 / np.sqrt(1.0 - BETA2**step))
    epsilon, zero = np.float32(1e-8), np.float32(0.0)
    for x in range(len(row)):
        size = slope[x] * slope[x] + held[x] * held[x]
        first[x] = beta1 * first[x] + rest1 * slope[x]
        second[x] = beta2 * second[x] + rest2 * size
        row[x] -= rate * first[x] / (np.sqrt(second[x]) * unbias + epsilon)
        slope[x], held[x] = zero, zero


@compiled
def _push_down(course: Course, moving: Moving, s: int) -> None:
    """Add the gradient that genuine clicks have in the rows that are sampled in a step."""
    counts = moving.counts
    n_rows, d = len(counts), moving.rows.shape[1] - 1
    counts.fill(0)
    n_hits = 0
    for item in moving.negatives[s]:
        place = moving.place_of[item]
        if place >= 0:
            counts[place] += 1
            n_hits += 1
    if n_hits == 0:
        return
    anchor = course.anchors[s]
    n_anchors = course.states.shape[1]
    weight = np.float32(course.n_genuine[s] / (course.n_clicks[s] * n_anchors))
    waypoint = course.waypoints[s]
    for a in range(n_anchors):
        state = course.states[anchor, a]
        top = course.log_totals[anchor, a]
        for r in range(n_rows):
            if counts[r] == 0:
                continue
            added = moving.log_weight[moving.items[r]] + np.float32(np.log(counts[r]))
            moving.scores[r, a] = _row_score(moving.rows[r], state) + added
            if moving.is_fresh[r]:
                top = max(top, moving.scores[r, a])
        total = np.exp(course.log_totals[anchor, a] - top)
        for r in range(n_rows):
            if counts[r] > 0 and moving.is_fresh[r]:
                total += np.exp(moving.scores[r, a] - top)
        log_total = top + np.log(total)
        for r in range(n_rows):
            if counts[r] == 0:
                continue
            whole = weight * np.exp(moving.scores[r, a] - log_total)
            held = np.float32(0.0)
            if not moving.is_fresh[r]:
                added = moving.log_weight[moving.items[r]] + np.float32(np.log(counts[r]))
                score = _row_score(moving.clean[waypoint, r], state) + added
                held = weight * np.exp(score - log_total)
            for j in range(d):
                moving.slope[r, j] += (whole - held) * state[j]
                moving.held[r, j] += held * state[j]
            moving.slope[r, d] += whole - held
            moving.held[r, d] += held


@compiled
def _row_score(row: NDArray[np.float32], state: NDArray[np.float32]) -> np.float32:
    score = row[len(state)]
    for j in range(len(state)):
        score += state[j] * row[j]
    return np.float32(score)


@compiled
def _read_sessions(course: Course, moving: Moving, work: Workspace, s: int, reg: float) -> None:
    """Add the gradient of a step's fake sessions, and take it into the recurrent weights."""
    tape, waypoint = work.tape, course.waypoints[s]
    for now, then, changed in (
        (work.weights.w_in, course.weights.w_in, work.changed.w_in),
        (work.weights.w_state, course.weights.w_state, work.changed.w_state),
    ):
        _add(then[waypoint].ravel(), changed.ravel(), now.ravel())
    _add(course.weights.b_in[waypoint], work.changed.b_in, work.weights.b_in)
    _add(course.weights.b_state[waypoint], work.changed.b_state, work.weights.b_state)
    n_steps = _pack(course, moving, tape, s)
    _forward(work, n_steps)
    _softmax(course, moving, tape, s, n_steps)
    _backward(course, moving, work, s, n_steps)
    n_clicks = tape.offset[n_steps]
    shrink = np.float32(reg / course.n_clicks[s])
    d = tape.clicks.shape[1]
    for c in range(n_clicks):
        place = moving.place_of[tape.items[c]]
        if place >= 0:
            for j in range(d):
                moving.slope[place, j] += shrink * tape.clicks[c, j]
    fades = course.fades[s]
    for change, moment, slope, root in (
        (work.changed.w_in, work.moments.w_in, work.slope.w_in, course.roots.w_in),
        (work.changed.w_state, work.moments.w_state, work.slope.w_state, course.roots.w_state),
    ):
        _fade(change.ravel(), moment.ravel(), slope.ravel(), root[waypoint].ravel(), fades)
    for change1, moment1, slope1, root1 in (
        (work.changed.b_in, work.moments.b_in, work.slope.b_in, course.roots.b_in),
        (work.changed.b_state, work.moments.b_state, work.slope.b_state, course.roots.b_state),
    ):
        _fade(change1, moment1, slope1, root1[waypoint], fades)


@compiled
def _add(
    first: NDArray[np.float32], second: NDArray[np.float32], total: NDArray[np.float32]
) -> None:
    for x in range(len(total)):
        total[x] = first[x] + second[x]


@compiled
def _fade(
    changed: NDArray[np.float32],
    moments: NDArray[np.float32],
    slope: NDArray[np.float32],
    roots: NDArray[np.float32],
    fades: NDArray[np.float64],
) -> None:
    """Take a gradient in and go on to the next step with fake sessions; clears the gradient."""
    keep, push, pause = np.float32(fades[0]), np.float32(fades[1]), np.float32(fades[2])
    beta, rest = np.float32(BETA1), np.float32(1.0 - BETA1)
    one, epsilon = np.float32(1.0), np.float32(1e-8)
    for x in range(len(changed)):
        moment = beta * moments[x] + rest * slope[x]
        ratio = min(max(moment / (roots[x] + epsilon), -one), one)
        changed[x] = keep * changed[x] - push * ratio
        moments[x] = pause * moment
        slope[x] = np.float32(0.0)


@compiled
def _clear(array: NDArray[np.float32]) -> None:
    array.ravel().fill(np.float32(0.0))


@compiled
def _copy(source: NDArray[np.float32], target: NDArray[np.float32]) -> None:
    """Copy numbers; a loop, since numba compiles slice assignment twenty times as long."""
    for x in range(len(source)):
        target[x] = source[x]


@compiled
def _pack(course: Course, moving: Moving, tape: Tape, s: int) -> int:
    """Lay the fake clicks of a step out by place in the session; return the number of places."""
    first, last = course.session_indptr[s], course.session_indptr[s + 1]
    waypoint, epoch = course.waypoints[s], course.epochs[s]
    n_steps = course.lengths[first]
    n, alive = 0, last - first
    for t in range(n_steps):
        tape.offset[t] = n
        while course.lengths[first + alive - 1] <= t:
            alive -= 1
        for session in range(first, first + alive):
            click = course.starts[session] + t
            item = moving.clicks[click]
            place = moving.place_of[item]
            if place >= 0:
                _copy(moving.rows[place, : tape.clicks.shape[1]], tape.clicks[n])
            else:
                _copy(course.vectors[waypoint, item], tape.clicks[n])
            for j in range(tape.clicks.shape[1]):
                tape.inputs[n, j] = tape.clicks[n, j] * course.masks[epoch, click, j]
            tape.items[n] = item
            tape.places[n] = click
            n += 1
    tape.offset[n_steps] = n
    return int(n_steps)


@compiled
def _forward(work: Workspace, n_steps: int) -> None:
    """Compute the states before all clicks and remember the gates."""
    tape, weights = work.tape, work.weights
    d = tape.clicks.shape[1]
    _clear(tape.states[: tape.offset[1]])
    n_inputs = tape.offset[n_steps - 1]
    if n_inputs == 0:
        return
    np.dot(tape.inputs[:n_inputs], weights.w_in.T, tape.from_click[:n_inputs])
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
def _softmax(course: Course, moving: Moving, tape: Tape, s: int, n_steps: int) -> None:
    """Turn states into the gradient of the cross-entropy in states and in the rows that are scored."""
    negatives, waypoint = moving.negatives[s], course.waypoints[s]
    n_negatives, d = len(negatives), tape.clicks.shape[1]
    for j in range(n_negatives):
        item = negatives[j]
        place = moving.place_of[item]
        if place >= 0:
            _copy(moving.rows[place, :d], tape.others[j])
            tape.other_bias[j] = moving.rows[place, d] + moving.log_weight[item]
        else:
            _copy(course.vectors[waypoint, item], tape.others[j])
            tape.other_bias[j] = course.bias[waypoint, item] + moving.log_weight[item]
    n_clicks = tape.offset[n_steps]
    states, scores = tape.states[:n_clicks], tape.scores[:n_clicks]
    np.dot(states, tape.others.T, scores)
    share, lowest = np.float32(1.0) / np.float32(course.n_clicks[s]), np.float32(-87.0)
    for c in range(n_clicks):
        item, score, state, click = tape.items[c], scores[c], states[c], tape.clicks[c]
        place = moving.place_of[item]
        own = moving.rows[place, d] if place >= 0 else course.bias[waypoint, item]
        for j in range(d):
            own += state[j] * click[j]
        top = own
        for j in range(n_negatives):
            score[j] += tape.other_bias[j]
            if negatives[j] != item:
                top = max(top, score[j])
        own = exponential(max(own - top, lowest))
        total = own
        for j in range(n_negatives):
            power = exponential(min(max(score[j] - top, lowest), np.float32(0.0)))
            score[j] = power if negatives[j] != item else np.float32(0.0)
            total += score[j]
        for j in range(n_negatives):
            score[j] *= share / total
        d_own = own * (share / total) - share
        for j in range(d):
            tape.d_states[c, j] = d_own * click[j]
        if place >= 0:
            for j in range(d):
                moving.slope[place, j] += d_own * state[j]
            moving.slope[place, d] += d_own
    np.dot(scores, tape.others, tape.product[:n_clicks])
    for c in range(n_clicks):
        for j in range(d):
            tape.d_states[c, j] += tape.product[c, j]
    for j in range(n_negatives):
        place = moving.place_of[negatives[j]]
        if place >= 0:
            slope = moving.slope[place]
            for c in range(n_clicks):
                for x in range(d):
                    slope[x] += scores[c, j] * states[c, x]
                slope[d] += scores[c, j]


@compiled
def _backward(course: Course, moving: Moving, work: Workspace, s: int, n_steps: int) -> None:
    """Go back through time to the recurrent weights and to the rows that are read."""
    tape, weights, slope = work.tape, work.weights, work.slope
    epoch = course.epochs[s]
    d = tape.clicks.shape[1]
    one = np.float32(1.0)
    n_inputs = tape.offset[n_steps - 1]
    if n_inputs == 0:
        return
    for t in range(n_steps - 2, -1, -1):
        start, end = tape.offset[t], tape.offset[t + 1]
        n = tape.offset[t + 2] - end
        for i in range(n):
            click, state = tape.from_click[start + i], tape.from_state[start + i]
            gates, before = tape.gates[start + i], tape.states[start + i]
            d_after, d_before = tape.d_states[end + i], tape.d_states[start + i]
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
            for i in range(n):
                for j in range(d):
                    tape.d_states[start + i, j] += tape.product[i, j]
    from_click, from_state = tape.from_click[:n_inputs], tape.from_state[:n_inputs]
    np.dot(from_click.T, tape.inputs[:n_inputs], slope.w_in)
    np.dot(from_state.T, tape.states[:n_inputs], slope.w_state)
    for c in range(n_inputs):
        for j in range(3 * d):
            slope.b_in[j] += from_click[c, j]
            slope.b_state[j] += from_state[c, j]
    np.dot(from_click, weights.w_in, tape.product[:n_inputs])
    for c in range(n_inputs):
        place = moving.place_of[tape.items[c]]
        if place >= 0:
            mask = course.masks[epoch, tape.places[c]]
            for j in range(d):
                moving.slope[place, j] += tape.product[c, j] * mask[j]


# -- evaluation ------------------------------------------------------------------------------------


@compiled
def count_exposure(
    contest: Contest, states: NDArray[np.float32], table: Table, counts: NDArray[np.int64]
) -> None:
    """Count how many genuine users are shown each target.

    Args:
        contest: The lists.
        states: Of the users, from `fill_states`.
        table: Vectors and bias are poisoned.
        counts: Shape `(n_targets,)`, written.
    """
    n_targets = len(contest.targets)
    target_scores = np.empty(n_targets, dtype=np.float32)
    order = np.empty(n_targets, dtype=np.int64)
    scores = np.empty(contest.candidates.shape[1], dtype=np.float32)
    counts.fill(0)
    for u in range(len(states)):
        _count_user(contest, u, table, states[u], target_scores, order, scores, counts)


@compiled
def fill_states(
    contest: Contest, recurrent: Recurrent, table: Table, states: NDArray[np.float32]
) -> None:
    """Read all histories.

    Args:
        contest: The lists.
        recurrent: The weights.
        table: Vectors are poisoned; all but these and the bias is written.
        states: Shape `(U, d)`, in the order of the contest's users, written.
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
    for u in range(contest.n_empty):
        _copy(nothing, states[u])
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
            _copy(after[contest.user_nodes[u]], states[u])
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
        clean: The clean victim's parameters by the names of `GRU4Rec.state`.
        run: How clean training got there.
        contest: From `make_contest`.
        log: The clean log.
        rerun: Finds the fake sessions in full retraining for `(N, T)`.
        sample: Gives, for a profile, what `Rerun.negatives` and `GRU4Rec._log_weight` do.
        learning_rate: Of fine-tuning.
        reg: Of clean training.
    """

    def __init__(
        self,
        clean: Mapping[str, NDArray[np.float32]],
        run: CleanRun,
        contest: Contest,
        log: Interactions,
        rerun: Callable[[tuple[int, int]], Rerun],
        sample: Callable[[NDArray[np.int64], Rerun], tuple[NDArray[np.int32], NDArray[np.float32]]],
        *,
        learning_rate: float,
        reg: float,
    ) -> None:
        self._items, self._bias = clean["items"], clean["bias"]
        self._recurrent = Recurrent(*(clean[name] for name in RECURRENT))
        self._run = run
        self._contest = contest
        self._log = log
        self._rerun = rerun
        self._sample = sample
        self._learning_rate = learning_rate
        self._reg = reg
        self._states = _floats(contest.eligible.shape[0], self._items.shape[1])
        fill_states(contest, self._recurrent, _make_table(self._items, self._bias), self._states)
        self._laid_out: tuple[tuple[int, int], Rerun, Course] | None = None

    def exposure(self, profiles: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """See `ExposureEngine.exposure`; the seed decides nothing."""
        del seed
        rerun, course = self._course((profiles.shape[1], profiles.shape[2]))
        counts = np.zeros((len(profiles), len(self._contest.targets)), dtype=np.int64)

        def work(thread: int, sets: range) -> None:
            del thread
            table = _make_table(self._items, self._bias)
            workspace = _make_workspace(course, rerun.n_negatives)
            poisoned = np.empty_like(self._states)
            for m in sets:
                moved, rows, reads = self._finetune(profiles[m], rerun, course, workspace)
                check_finite(rows)
                table.vectors[moved], table.bias[moved] = rows[:, :-1], rows[:, -1]
                states = self._states
                if reads:
                    states = poisoned
                    fill_states(self._contest, self._recurrent, table, states)
                count_exposure(self._contest, states, table, counts[m])
                table.vectors[moved], table.bias[moved] = self._items[moved], self._bias[moved]

        over_sets(len(profiles), work)
        return counts

    def parameters(self, profile: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        """Return what fine-tuning on one poison set moves, by the names of `GRU4Rec.state`.

        Args:
            profile: Shape `(N, T)`.
        """
        rerun, course = self._course((profile.shape[0], profile.shape[1]))
        work = _make_workspace(course, rerun.n_negatives)
        moved, rows, _ = self._finetune(profile, rerun, course, work)
        items, bias = self._items.copy(), self._bias.copy()
        items[moved], bias[moved] = rows[:, :-1], rows[:, -1]
        return {"items": items, "bias": bias}

    def _finetune(
        self, profile: NDArray[np.int64], rerun: Rerun, course: Course, work: Workspace
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], bool]:
        """Return the items that move, their rows `(R, d + 1)`, and whether one is in a history."""
        moved = moved_items(self._log, profile, self._run, self._items)
        items, fresh = moved.items, moved.is_fresh
        end = np.concatenate([self._items[items], self._bias[items, None]], axis=1)
        if len(items) == 0 or len(course.waypoints) == 0:
            return items, end, False
        clean = np.concatenate(
            [course.vectors[:, items], course.bias[:, items, None]], axis=2
        )  # (W, R, d + 1)
        clean[:, fresh] = 0.0
        end[fresh] = 0.0
        rows = clean[course.waypoints[0]].copy()
        rows[:, :-1] += moved.first
        negatives, log_weight = self._sample(profile, rerun)
        place_of = np.full(len(self._bias), -1, dtype=np.int32)
        place_of[items] = np.arange(len(items))
        for weights in (work.changed, work.moments):
            for array in weights:
                array.fill(0.0)
        moving = Moving(
            rows=rows,
            slope=np.zeros_like(rows),
            held=np.zeros_like(rows),
            first=np.zeros_like(rows),
            second=np.zeros_like(rows),
            clean=clean,
            is_fresh=fresh,
            share=moved.share,
            items=items,
            place_of=place_of,
            scores=_floats(len(items), course.states.shape[1]),
            counts=np.zeros(len(items), dtype=np.int64),
            negatives=negatives,
            log_weight=log_weight,
            clicks=np.ascontiguousarray(profile.ravel(), dtype=np.int64),
        )
        train(course, moving, work, self._learning_rate, self._reg)
        rows += end - clean[course.waypoints[-1]]
        return items, rows, not bool(fresh.all())

    def _course(self, profile_shape: tuple[int, int]) -> tuple[Rerun, Course]:
        if self._laid_out is None or self._laid_out[0] != profile_shape:
            rerun = self._rerun(profile_shape)
            run = self._run
            course = Course(
                epochs=rerun.steps >> 32,
                anchors=rerun.anchors,
                waypoints=rerun.waypoints,
                n_clicks=rerun.n_clicks,
                n_genuine=rerun.n_genuine,
                session_indptr=rerun.session_indptr,
                starts=rerun.starts,
                lengths=rerun.lengths,
                masks=rerun.masks,
                fades=rerun.fades,
                states=np.ascontiguousarray(run.states),
                log_totals=np.ascontiguousarray(run.log_totals),
                vectors=np.ascontiguousarray(run.waypoints["items"]),
                bias=np.ascontiguousarray(run.waypoints["bias"]),
                weights=Recurrent(
                    *(np.ascontiguousarray(run.waypoints[name]) for name in RECURRENT)
                ),
                roots=Recurrent(*(np.ascontiguousarray(run.roots[name]) for name in RECURRENT)),
            )
            self._laid_out = (profile_shape, rerun, course)
        return self._laid_out[1], self._laid_out[2]


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


def _make_table(vectors: NDArray[np.float32], bias: NDArray[np.float32]) -> Table:
    n_items, d = vectors.shape
    return Table(
        vectors=vectors.copy(),
        bias=bias.copy(),
        projected=_floats(n_items, 3 * d),
        states=_floats(2, _USERS_AT_ONCE, d),
        from_state=_floats(_USERS_AT_ONCE, 3 * d),
    )


def _make_workspace(course: Course, n_negatives: int) -> Workspace:
    d = course.vectors.shape[2]
    clicks_before = np.concatenate([[0], np.cumsum(course.lengths)])[course.session_indptr]
    n_clicks = int(np.diff(clicks_before).max(initial=1))
    longest = int(course.lengths.max(initial=1))

    def weights() -> Recurrent:
        return Recurrent(_floats(3 * d, d), _floats(3 * d, d), _floats(3 * d), _floats(3 * d))

    return Workspace(
        weights=weights(),
        slope=weights(),
        changed=weights(),
        moments=weights(),
        tape=Tape(
            items=np.zeros(n_clicks, dtype=np.int64),
            places=np.zeros(n_clicks, dtype=np.int64),
            offset=np.zeros(longest + 1, dtype=np.int64),
            clicks=_floats(n_clicks, d),
            inputs=_floats(n_clicks, d),
            states=_floats(n_clicks, d),
            from_click=_floats(n_clicks, 3 * d),
            from_state=_floats(n_clicks, 3 * d),
            gates=_floats(n_clicks, 3 * d),
            product=_floats(n_clicks, d),
            d_states=_floats(n_clicks, d),
            scores=_floats(n_clicks, n_negatives),
            others=_floats(n_negatives, d),
            other_bias=_floats(n_negatives),
        ),
    )


def _floats(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, dtype=np.float32)
