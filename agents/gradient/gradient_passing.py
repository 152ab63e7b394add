"""Gradient Passing: a step of training that also moves the neighbours of what it moves.

All functions are pure. `pass_gradient_plainly` reads like the formula, `pass_gradient` is compiled.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.gradient.graph import InteractionGraph
from agents.gradient.kernels import Real, keep_edges, mark_edges, propagate
from recattack_gym.core.checks import as_count, as_real
from recattack_gym.core.errors import ArgumentError


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientPassing:
    """Settings of Gradient Passing; the defaults are those published for DPA2DL and RAPU-R on Gowalla."""

    threshold_odd: float = 0.0
    """xi_odd: odd hops use pairs whose away score is above; `-inf` all, `inf` none."""
    threshold_even: float = -math.inf
    """xi_even: likewise for even hops."""
    weight_odd: float = 1.0
    """alpha_odd: weight of what odd hops bring, from items to users and back."""
    weight_even: float = 10.0
    """alpha_even: weight of what even hops bring, between users, and between items."""
    order: int = 2
    """K: gradients travel `2 K` hops."""

    def __post_init__(self) -> None:
        for name in ("threshold_odd", "threshold_even"):
            value = getattr(self, name)
            if not isinstance(value, float | int) or math.isnan(value):
                raise ArgumentError(f"{name} must be a number or an infinity, got {value!r}")
        as_real("weight_odd", self.weight_odd, at_least=0.0)
        as_real("weight_even", self.weight_even, at_least=0.0)
        as_count("order", self.order)


def away_scores(
    gradient: NDArray[Real], representations: NDArray[Real], graph: InteractionGraph
) -> NDArray[Real]:
    """Return how much a step against the gradient pushes each pair apart: `r_u . g_i + r_i . g_u`.

    A step `R - eta G` changes the score of a pair by `-eta` times this, up to terms in `eta ** 2`.

    Args:
        gradient: Of a loss with respect to `representations`, shape `(n_rows, d)`.
        representations: Shape `(n_rows, d)`.
        graph: The pairs.

    Returns:
        Shape `(n_edges,)`.
    """
    users = np.repeat(np.arange(graph.n_users), np.diff(graph.indptr))
    items = graph.n_users + graph.items.astype(np.int64)
    away: NDArray[Real] = (
        representations[users] * gradient[items] + representations[items] * gradient[users]
    ).sum(axis=1)
    return away


def pass_gradient_plainly(
    gradient: NDArray[Real],
    representations: NDArray[Real],
    graph: InteractionGraph,
    config: GradientPassing,
) -> NDArray[np.float64]:
    """Return what `pass_gradient` does, in double precision and hop by hop; the oracle of the tests."""
    away = away_scores(gradient, representations, graph)
    passed = gradient.astype(np.float64)
    for parity, threshold, weight in (
        (1, config.threshold_odd, config.weight_odd),
        (0, config.threshold_even, config.weight_even),
    ):
        adjacency = graph.adjacency()
        is_kept = np.concatenate([away > threshold] * 2)
        rows, columns, weights = _entries(graph)
        adjacency = type(adjacency)(
            (np.where(is_kept, weights, 0.0), (rows, columns)), shape=adjacency.shape
        )
        hop = gradient.astype(np.float64)
        for number in range(1, 2 * config.order + 1):
            hop = adjacency @ hop
            if number % 2 == parity:
                passed += weight * hop
    return passed


def _entries(
    graph: InteractionGraph,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return rows, columns and weights of all pairs from their users' side, then from their items'."""
    users = np.repeat(np.arange(graph.n_users), np.diff(graph.indptr))
    items = graph.n_users + graph.items.astype(np.int64)
    return (
        np.concatenate([users, items]),
        np.concatenate([items, users]),
        np.concatenate([graph.weights, graph.weights]),
    )


class Adjacency:
    """The normalised adjacency of a graph in one precision, and products with it.

    Args:
        graph: The pairs.
        dtype: Precision of weights and products.
    """

    def __init__(self, graph: InteractionGraph, dtype: type[Real] = np.float32) -> None:
        self.graph = graph
        weights: NDArray[Real] = graph.weights.astype(dtype)
        indptr, users, edges = graph.transposed
        self._by_user = (graph.indptr, graph.items, weights)
        self._by_item = (indptr, users, weights[edges])
        self._edges = (np.arange(graph.n_edges, dtype=np.int64), edges)
        self._masks = np.empty((2, graph.n_edges), dtype=np.bool_)

    def times(self, source: NDArray[Real], result: NDArray[Real] | None = None) -> NDArray[Real]:
        """Return the product with a matrix, shape `(n_rows, d)`, written to `result` if that is given."""
        return _times(self.graph.n_users, (self._by_user, self._by_item), source, result)

    def passed(
        self, gradient: NDArray[Real], representations: NDArray[Real], config: GradientPassing
    ) -> NDArray[Real]:
        """Return the gradient passed along the graph; see `pass_gradient`."""
        thresholds = (config.threshold_odd, config.threshold_even)
        weights = (config.weight_odd, config.weight_even)
        is_used = [t < math.inf and w > 0 for t, w in zip(thresholds, weights, strict=True)]
        whole = (self._by_user, self._by_item)
        sides = [whole, whole]
        if any(u and math.isfinite(t) for u, t in zip(is_used, thresholds, strict=True)):
            odd, even = (t if math.isfinite(t) else 0.0 for t in thresholds)
            mark_edges(
                self.graph.indptr,
                self.graph.items,
                representations,
                gradient,
                odd,
                even,
                self._masks[0],
                self._masks[1],
            )
            for parity, threshold in enumerate(thresholds):
                if is_used[parity] and math.isfinite(threshold):
                    sides[parity] = self._kept(self._masks[parity])
        passed = gradient.copy()
        n_hops = 2 * config.order
        if all(is_used) and thresholds[0] == thresholds[1]:
            self._add_hops(passed, gradient, sides[0], {0: weights[1], 1: weights[0]}, n_hops)
            return passed
        if is_used[0]:
            self._add_hops(passed, gradient, sides[0], {1: weights[0]}, n_hops - 1)
        if is_used[1]:
            self._add_hops(passed, gradient, sides[1], {0: weights[1]}, n_hops)
        return passed

    def _add_hops(
        self,
        passed: NDArray[Real],
        gradient: NDArray[Real],
        sides: "_Sides",
        weights: dict[int, float],
        n_hops: int,
    ) -> None:
        """Add hops to `passed`: those of odd number by `weights[1]`, of even number by `weights[0]`."""
        hop, spare = gradient, np.empty_like(gradient)
        for number in range(1, n_hops + 1):
            reached = _times(self.graph.n_users, sides, hop, spare)
            spare = np.empty_like(gradient) if number == 1 else hop
            hop = reached
            if number % 2 in weights:
                passed += gradient.dtype.type(weights[number % 2]) * hop

    def _kept(self, is_kept: NDArray[np.bool_]) -> "_Sides":
        """Return both sides of the pairs that are marked, with the weights of the whole graph."""
        n_kept = int(is_kept.sum())
        sides = []
        for whole, edges in zip((self._by_user, self._by_item), self._edges, strict=True):
            indptr, columns, weights = whole
            kept = (
                np.empty_like(indptr),
                np.empty(n_kept, dtype=np.int32),
                np.empty(n_kept, dtype=weights.dtype),
            )
            keep_edges(indptr, columns, weights, edges, is_kept, *kept)
            sides.append(kept)
        return sides[0], sides[1]


_Csr = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[Real]]
_Sides = tuple[_Csr, _Csr]


def _times(
    n_users: int, sides: _Sides, source: NDArray[Real], result: NDArray[Real] | None
) -> NDArray[Real]:
    result = np.empty_like(source) if result is None else result
    by_user, by_item = sides
    propagate(*by_user, source[n_users:], result[:n_users])
    propagate(*by_item, source[:n_users], result[n_users:])
    return result


def pass_gradient(
    gradient: NDArray[Real],
    representations: NDArray[Real],
    graph: InteractionGraph,
    config: GradientPassing,
) -> NDArray[Real]:
    """Pass a gradient of final representations along the graph, before it reaches the parameters.

    "Accelerating the Surrogate Retraining for Poisoning Attacks against Recommender Systems", RecSys 2024
    (arXiv:2408.10666), §4: one step of training then does about what several would. With `A` the
    symmetric-normalised adjacency, and `A_odd`, `A_even` its pairs with an away score (`away_scores`) above
    the thresholds, the result is
    `G + weight_odd sum_{l odd <= 2K} A_odd^l G + weight_even sum_{l even <= 2K} A_even^l G`.
    Degrees are those of the whole graph. What comes back may be 51 times as long as what was given at the
    defaults, so it is for optimisers that do not care (Adam); plain gradient descent diverges.

    Args:
        gradient: Shape `(n_rows, d)`, users before items.
        representations: Those that the gradient was computed at, shape `(n_rows, d)`.
        graph: The pairs, those of fake users included.
        config: Thresholds, weights and the number of hops.

    Returns:
        A new array of the same shape and precision.

    Raises:
        ArgumentError: If a shape does not fit the graph.
    """
    for name, array in (("gradient", gradient), ("representations", representations)):
        if array.ndim != 2 or len(array) != graph.n_rows or array.shape != gradient.shape:
            raise ArgumentError(
                f"{name} must have shape ({graph.n_rows}, d), one row per user and item of the graph, "
                f"got {array.shape}"
            )
    gradient = np.ascontiguousarray(gradient)
    adjacency = Adjacency(graph, gradient.dtype.type)
    return adjacency.passed(
        gradient, np.ascontiguousarray(representations, dtype=gradient.dtype), config
    )
