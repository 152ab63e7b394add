"""Compiled pieces of the tree policy: the walk, the scores of decisions, their gradient, and Adam on rows.

Every kernel works on a block of rows, or of columns where it sums over rows, releases the GIL and allocates
nothing. What it computes does not depend on how the blocks are cut, so results do not depend on the
number of threads. Everything is in this one file, because numba compiles again only when a kernel's own
file changes.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])  # Any: arguments of many types

_TINY = np.float32(1e-30)


def compiled(function: F) -> F:
    """Compile with numba: nogil, cached, vectorisable float arithmetic, NumPy division."""
    return cast(F, numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")(function))


@compiled
def walk_down(
    start: int,
    stop: int,
    query: NDArray[np.float32],
    features: NDArray[np.float32],
    left: NDArray[np.int32],
    right: NDArray[np.int32],
    uniform: NDArray[np.float32],
    items: NDArray[np.int64],
    log_p: NDArray[np.float32],
) -> None:
    """Walk from the root to a leaf for the rows `start <= r < stop`.

    At a node the walk turns left with probability `sigmoid(q . (f_left - f_right))`, which is the softmax
    over the two children.

    Args:
        start: First row.
        stop: One after the last row.
        query: Shape `(B, D)`.
        features: One row per node, shape `(n_nodes, D)`.
        left: Shape `(n_inner,)`.
        right: Shape `(n_inner,)`.
        uniform: Random numbers in `[0, 1)`, shape `(B, depth)`.
        items: Written: the item of the leaf, shape `(B,)`.
        log_p: Written: log-probability of each decision, 0 after the last, shape `(B, depth)`.
    """
    n_inner = len(left)
    for r in range(start, stop):
        node = np.int32(0)
        level = 0
        while node < n_inner:
            first, second = left[node], right[node]
            x = np.float32(0)
            for d in range(query.shape[1]):
                x += query[r, d] * (features[first, d] - features[second, d])
            goes_left = uniform[r, level] * (np.float32(1) + np.exp(-x)) < np.float32(1)
            signed = x if goes_left else -x
            tail = np.log1p(np.exp(-abs(signed)))
            log_p[r, level] = -tail if signed >= 0 else signed - tail
            node = first if goes_left else second
            level += 1
        items[r] = node - n_inner
        log_p[r, level:] = np.float32(0)


@compiled
def number_visited(
    nodes: NDArray[np.int32], number: NDArray[np.int32], visited: NDArray[np.int32]
) -> int:
    """Number the distinct nodes in the order in which they are met.

    Args:
        nodes: Walks, shape `(R, depth)`, -1 after the last node; replaced by the numbers.
        number: Scratch of -1, shape `(n_inner,)`; -1 again at the end.
        visited: Written: the node of every number, shape `(n_inner,)`.

    Returns:
        How many there are.
    """
    n_visited = 0
    for r in range(nodes.shape[0]):
        for level in range(nodes.shape[1]):
            node = nodes[r, level]
            if node < 0:
                break
            if number[node] < 0:
                number[node] = n_visited
                visited[n_visited] = node
                n_visited += 1
            nodes[r, level] = number[node]
    for i in range(n_visited):
        number[visited[i]] = -1
    return n_visited


@compiled
def score_decisions(
    start: int,
    stop: int,
    query: NDArray[np.float32],
    difference: NDArray[np.float32],
    pairs: NDArray[np.int32],
    scores: NDArray[np.float32],
) -> None:
    """Write `query[r] . difference[pairs[r, level]]` for the rows `start <= r < stop`.

    Args:
        start: First row.
        stop: One after the last row.
        query: Shape `(R, D)`.
        difference: Left child's feature minus right child's, shape `(n_pairs, D)`.
        pairs: Shape `(R, depth)`, -1 after the last decision.
        scores: Written, shape `(R, depth)`; 0 after the last decision.
    """
    for r in range(start, stop):
        for level in range(pairs.shape[1]):
            pair = pairs[r, level]
            x = np.float32(0)
            if pair >= 0:
                for d in range(query.shape[1]):
                    x += query[r, d] * difference[pair, d]
            scores[r, level] = x


@compiled
def push_back_scores(
    start: int,
    stop: int,
    gradient: NDArray[np.float32],
    query: NDArray[np.float32],
    difference: NDArray[np.float32],
    pairs: NDArray[np.int32],
    query_gradient: NDArray[np.float32],
    difference_gradient: NDArray[np.float32],
) -> None:
    """Add up the gradients of `score_decisions` in the columns `start <= d < stop`.

    Columns, not rows, because many rows add to one pair.

    Args:
        start: First column.
        stop: One after the last column.
        gradient: With respect to the scores, shape `(R, depth)`.
        query: Shape `(R, D)`.
        difference: Shape `(n_pairs, D)`.
        pairs: Shape `(R, depth)`.
        query_gradient: Written, shape `(R, D)`.
        difference_gradient: Added to, shape `(n_pairs, D)`.
    """
    for r in range(len(pairs)):
        for d in range(start, stop):
            query_gradient[r, d] = np.float32(0)
        for level in range(pairs.shape[1]):
            pair = pairs[r, level]
            if pair < 0:
                break
            g = gradient[r, level]
            for d in range(start, stop):
                query_gradient[r, d] += g * difference[pair, d]
            for d in range(start, stop):
                difference_gradient[pair, d] += g * query[r, d]


@compiled
def adam_rows(
    start: int,
    stop: int,
    rows: NDArray[np.int64],
    place: NDArray[np.int32],
    gradient: NDArray[np.float32],
    values: NDArray[np.float32],
    first_moment: NDArray[np.float32],
    second_moment: NDArray[np.float32],
    step_size: float,
    beta1: float,
    beta2: float,
    root_correction: float,
    epsilon: float,
) -> None:
    """Take one step of Adam on `rows[start:stop]`.

    Args:
        start: First position in `rows`.
        stop: One after the last position.
        rows: Rows to update, shape `(n_active,)`.
        place: Where in `gradient` the gradient of each of them is, -1 where it is zero, shape `(n_active,)`.
        gradient: Shape `(n_touched, D)`.
        values: Parameters, shape `(n_rows, D)`.
        first_moment: Shape `(n_rows, D)`.
        second_moment: Shape `(n_rows, D)`.
        step_size: Learning rate over `1 - beta1 ** step`.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        root_correction: `sqrt(1 - beta2 ** step)`.
        epsilon: Added to the root of the corrected second moment.
    """
    b1, b2 = np.float32(beta1), np.float32(beta2)
    c1, c2 = np.float32(1 - beta1), np.float32(1 - beta2)
    size, root, eps = np.float32(step_size), np.float32(1 / root_correction), np.float32(epsilon)
    for i in range(start, stop):
        row, at = rows[i], place[i]
        for d in range(values.shape[1]):
            g = gradient[at, d] if at >= 0 else np.float32(0)
            m = b1 * first_moment[row, d] + c1 * g
            v = b2 * second_moment[row, d] + c2 * g * g
            m = m if abs(m) > _TINY else np.float32(0)  # numbers below the normal range are slow
            first_moment[row, d] = m
            second_moment[row, d] = v if v > _TINY else np.float32(0)
            values[row, d] -= size * m / (np.sqrt(v) * root + eps)
