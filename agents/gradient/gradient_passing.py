"""Gradient Passing: a step of training that also moves the neighbours of what it moves.

All functions are pure. `pass_gradient_plainly` reads like the formula, `pass_gradient` is compiled.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.gradient.graph import InteractionGraph
from agents.gradient.kernels import Real, add_hop, keep_edges, pair_products
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
    """The normalised adjacency of a graph in one precision, and sums over hops along it.

    It keeps arrays to work in, so it is of one thread.

    Args:
        graph: The pairs.
        dtype: Precision of all products.
    """

    def __init__(self, graph: InteractionGraph, dtype: type[Real] = np.float32) -> None:
        self.graph, self._dtype = graph, dtype
        indptr, users, edges = graph.transposed
        self._scale: NDArray[Real] = (1.0 / np.sqrt(np.maximum(graph.degrees, 1))).astype(dtype)
        self._all_users = np.arange(graph.n_users)
        self._edges = (np.arange(graph.n_edges, dtype=np.int64), edges)
        self._indptrs, self._columns = (graph.indptr, indptr), (graph.items, users)
        whole = [
            (pointers[:-1], pointers[1:], columns)
            for pointers, columns in zip(self._indptrs, self._columns, strict=True)
        ]
        self._whole: _Sides = (whole[0], whole[1])
        self._work: list[NDArray[Real]] = []

    def add_hops(
        self,
        total: NDArray[Real],
        values: NDArray[Real],
        weights: tuple[float, float],
        n_hops: int,
        is_kept: NDArray[np.bool_] | None = None,
    ) -> None:
        """Add `sum_l weights[l % 2] A^l values` over hops `l = 1 ... n_hops`.

        Args:
            total: Added to, shape `(n_rows, d)`; may be `values` itself.
            values: Shape `(n_rows, d)`.
            weights: Of hops of even and of odd number.
            n_hops: How many.
            is_kept: Which pairs there are, shape `(n_edges,)`; `None` for all. Degrees are of all.
        """
        n, scale = self.graph.n_users, self._scale
        by_user, by_item = self._whole if is_kept is None else self._kept(is_kept)
        source, carried = self._buffers(values)
        np.multiply(values, scale[:, None], out=source)
        for number in range(1, n_hops + 1):
            weight = weights[number % 2]
            add_hop(*by_user, source[n:], scale[:n], weight, carried[:n], total[:n])
            add_hop(*by_item, source[:n], scale[n:], weight, carried[n:], total[n:])
            source, carried = carried, source

    def pass_on(
        self, gradient: NDArray[Real], representations: NDArray[Real], config: GradientPassing
    ) -> None:
        """Change a gradient to what is passed of it along the graph; see `pass_gradient`."""
        thresholds = (config.threshold_even, config.threshold_odd)
        weights = (config.weight_even, config.weight_odd)
        used = [p for p in (0, 1) if thresholds[p] < math.inf and weights[p] > 0]
        masks: dict[float, NDArray[np.bool_] | None] = {-math.inf: None}
        if any(math.isfinite(thresholds[parity]) for parity in used):
            away = np.empty(self.graph.n_edges, dtype=self._dtype)
            indptr, items = self.graph.indptr, self.graph.items
            pair_products(self._all_users, indptr, items, representations, gradient, away)
            masks |= {t: away > t for t in thresholds if math.isfinite(t)}
        n_hops = 2 * config.order
        if len(used) == 2 and thresholds[0] == thresholds[1]:
            self.add_hops(gradient, gradient, weights, n_hops, masks[thresholds[0]])
            return
        given = gradient.copy() if len(used) == 2 else gradient
        for parity in used:
            own = (weights[0], 0.0) if parity == 0 else (0.0, weights[1])
            self.add_hops(gradient, given, own, n_hops - parity, masks[thresholds[parity]])

    def _kept(self, is_kept: NDArray[np.bool_]) -> "_Sides":
        """Return both sides of the pairs that are marked."""
        sides: list[_Side] = []
        for indptr, columns, edges in zip(self._indptrs, self._columns, self._edges, strict=True):
            kept, ends = np.empty_like(columns), np.empty_like(indptr[1:])
            keep_edges(indptr, columns, edges, is_kept, kept, ends)
            sides.append((indptr[:-1], ends, kept))
        return sides[0], sides[1]

    def _buffers(self, values: NDArray[Real]) -> tuple[NDArray[Real], NDArray[Real]]:
        if not self._work or self._work[0].shape != values.shape:
            self._work = [np.empty(values.shape, dtype=self._dtype) for _ in range(2)]
        return self._work[0], self._work[1]


_Side = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]
_Sides = tuple[_Side, _Side]


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
    passed = np.array(gradient, order="C")
    Adjacency(graph, passed.dtype.type).pass_on(
        passed, np.ascontiguousarray(representations, dtype=passed.dtype), config
    )
    return passed
