"""Regularised least-squares factorisation of ratings: what ALS and NuclearNorm minimise, and how.

`f(U, V) = 1/2 sum (r_ij - u_i . v_j)^2 + reg / 2 (|U|^2 + |V|^2)` over the rated pairs. Its stationary points
satisfy the conditions that Li, Wang, Singh & Vorobeychik, "Data Poisoning Attacks on Factorization-Based
Collaborative Filtering", NIPS 2016, differentiate (section 4.1). (Their equations (2) and (4) print twice the
penalty.) Given V, the best U is one small solve per user, so everything below is about V:
`phi(V) = min_U f(U, V)`, whose Hessian is that of f with the users' block eliminated.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_integers
from recattack_gym.victims.least_squares_kernel import (
    couple_to_items,
    prediction_errors,
    reduced_product,
    solve_all_factored,
    solve_rows,
)
from recattack_gym.victims.schedule import NEGATIVE

if TYPE_CHECKING:
    from scipy.sparse import csr_array

TOP = 2.0
"""Largest shifted rating: victims see ratings on [-TOP, TOP] (section 5 of the paper)."""


class RatingMatrix:
    """One rating per (user, item) pair, by user and by item; immutable.

    Args:
        user_ids: Shape `(n_entries,)`, sorted.
        item_ids: Shape `(n_entries,)`; no pair occurs twice.
        ratings: Shape `(n_entries,)`, shifted.
        n_users: Rows.
        n_items: Columns.
    """

    def __init__(
        self,
        user_ids: NDArray[np.int64],
        item_ids: NDArray[np.int64],
        ratings: NDArray[np.float64],
        n_users: int,
        n_items: int,
    ) -> None:
        self.user_ids, self.item_ids, self.ratings = user_ids, item_ids, ratings
        self.n_users, self.n_items = n_users, n_items
        self.indptr = np.searchsorted(user_ids, np.arange(n_users + 1)).astype(np.int64)
        self.by_item = np.argsort(item_ids, kind="stable")
        self.item_indptr = np.concatenate(
            [[0], np.cumsum(np.bincount(item_ids, minlength=n_items))]
        ).astype(np.int64)
        self.raters = user_ids[self.by_item]

    @classmethod
    def from_log(cls, log: Interactions, negatives: "Negatives | None" = None) -> "RatingMatrix":
        """Read a log: the last event of a (user, item) pair counts, a click is the top rating.

        Ratings are shifted linearly so that the smallest of the log becomes -2 and the largest +2. A log
        without ratings, or with one value only, is all +2.

        Args:
            log: What to read.
            negatives: Pairs to add at -2 to a log without ratings; one with ratings stays as it is.
        """
        users, items, ratings = log.user_ids, log.item_ids, shifted(log)
        if negatives is not None and log.ratings is None:
            others, unclicked = negatives.of(log)
            users, items = np.concatenate([users, others]), np.concatenate([items, unclicked])
            ratings = np.concatenate([ratings, np.full(len(others), -TOP)])
        triples = _last_of_each_pair(users, items, ratings, log.n_items)
        return cls(*triples, log.n_users, log.n_items)

    def with_fake_users(
        self, item_ids: NDArray[np.int64], ratings: NDArray[np.float64]
    ) -> "RatingMatrix":
        """Append fake users, the last rating of an item counting.

        Args:
            item_ids: Shape `(n_fake_users, profile_size)`.
            ratings: Shifted, same shape.
        """
        n_fake_users, profile_size = item_ids.shape
        owners = np.repeat(np.arange(n_fake_users), profile_size)
        users, items, values = _last_of_each_pair(
            owners, item_ids.ravel(), ratings.ravel(), self.n_items
        )
        return RatingMatrix(
            np.concatenate([self.user_ids, users + self.n_users]),
            np.concatenate([self.item_ids, items]),
            np.concatenate([self.ratings, values]),
            self.n_users + n_fake_users,
            self.n_items,
        )

    @cached_property
    def ratings_by_item(self) -> NDArray[np.float64]:
        """The ratings in the order of `raters`, shape `(n_entries,)`."""
        return self.ratings[self.by_item]

    def sparse(self, values: NDArray[np.float64]) -> "csr_array":
        """Return a matrix `(n_users, n_items)` with `values` at the rated pairs."""
        from scipy.sparse import csr_array

        return csr_array((values, self.item_ids, self.indptr), shape=(self.n_users, self.n_items))


@dataclass(frozen=True, slots=True)
class Negatives:
    """What users of a log without ratings did not click, drawn event by event.

    Draws depend on the seed and on the number of the event alone, so that those of genuine users stay what
    they are when fake users follow.
    """

    seed: int
    """In `[0, 2**63)`."""
    per_click: int
    """Draws per event; those that fall on an item that the user clicked are left out."""
    below: int
    """Items that may be drawn are `[0, below)`."""
    first_event: int = 0
    """The number of the log's first event, of fake users that of all events before them."""

    def of(self, log: Interactions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return users and items, each of shape `(n_pairs,)`; a pair may occur twice."""
        draws = np.arange(len(log) * self.per_click) + self.first_event * self.per_click
        items = counter_integers(self.seed, NEGATIVE, draws, self.below)
        users = np.repeat(log.user_ids, self.per_click)
        is_unclicked = ~log.has(users, items)
        return users[is_unclicked], items[is_unclicked]


_matrices: "WeakKeyDictionary[Interactions, dict[Negatives | None, RatingMatrix]]" = (
    WeakKeyDictionary()
)


def matrix_of(log: Interactions, negatives: Negatives | None = None) -> RatingMatrix:
    """Return `RatingMatrix.from_log(log, negatives)`, made once per log object and its last negatives."""
    made = _matrices.setdefault(log, {})
    if negatives not in made:
        made.clear()
        made[negatives] = RatingMatrix.from_log(log, negatives)
    return made[negatives]


def _last_of_each_pair(
    user_ids: NDArray[np.int64],
    item_ids: NDArray[np.int64],
    ratings: NDArray[np.float64],
    n_items: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return users, items and the last rating of each distinct pair, by user, then item."""
    keys = user_ids * np.int64(n_items) + item_ids
    pairs, from_end = np.unique(keys[::-1], return_index=True)
    users, items = np.divmod(pairs, n_items)
    return users, items, ratings[len(keys) - 1 - from_end]


def shifted(log: Interactions) -> NDArray[np.float64]:
    """Return each event's rating on [-2, 2], shape `(n_events,)`; see `RatingMatrix.from_log`."""
    if log.ratings is None:
        return np.full(len(log), TOP)
    low, high = rating_scale(log)
    if low == high:
        return np.full(len(log), TOP)
    return 2.0 * TOP * (log.ratings - low) / (high - low) - TOP


def rating_scale(log: Interactions) -> tuple[float, float]:
    """Return the ends of a rated log's scale: its smallest and its largest rating."""
    assert log.ratings is not None, "the caller has looked"  # noqa: S101  # cannot happen
    return float(log.ratings.min()), float(log.ratings.max())


@dataclass(frozen=True, slots=True)
class Linearised:
    """A point (U, V) with U minimised out, and the Hessian there; all of one rating matrix."""

    matrix: RatingMatrix
    reg: float
    users: NDArray[np.float64]
    """Shape `(n_users, k)`: the minimiser given `items`."""
    items: NDArray[np.float64]
    """Shape `(n_items, k)`."""
    errors: NDArray[np.float64]
    """Rating minus prediction, shape `(n_entries,)`."""
    user_lower: NDArray[np.float64]
    """Cholesky factors of `reg I + sum v v^T`, shape `(n_users, k, k)`."""
    value: float
    """`phi(V)`."""
    nearby_blocks: NDArray[np.float64] | None = None
    """Cholesky factors `(n_items, k, k)` of the items' blocks at the last point that training passed, or
    `None`: good enough to precondition with, and free."""

    @classmethod
    def at(cls, matrix: RatingMatrix, items: NDArray[np.float64], reg: float) -> "Linearised":
        """Minimise over the users given `items` `(n_items, k)`."""
        k = items.shape[1]
        users = np.empty((matrix.n_users, k))
        lower = np.empty((matrix.n_users, k, k))
        solve_rows(
            np.arange(matrix.n_users), matrix.indptr, matrix.item_ids, matrix.ratings,
            items, reg, lower, users,
        )  # fmt: skip
        errors = np.empty(len(matrix.ratings))
        prediction_errors(matrix.indptr, matrix.item_ids, matrix.ratings, users, items, errors)
        value = 0.5 * float(errors @ errors + reg * ((users**2).sum() + (items**2).sum()))
        return cls(matrix, reg, users, items, errors, lower, value)

    def gradient(self) -> NDArray[np.float64]:
        """Return the derivative of `phi` in V, shape `(n_items, k)`; zero at a solution."""
        pull: NDArray[np.float64] = self.matrix.sparse(self.errors).T @ self.users
        return self.reg * self.items - pull

    def item_systems(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the Cholesky factors `(n_items, k, k)` of the item blocks and what ALS moves V to."""
        matrix, k = self.matrix, self.items.shape[1]
        lower, moved = np.empty((matrix.n_items, k, k)), np.empty((matrix.n_items, k))
        solve_rows(
            np.arange(matrix.n_items), matrix.item_indptr, matrix.raters, matrix.ratings_by_item,
            self.users, self.reg, lower, moved,
        )  # fmt: skip
        return lower, moved

    def product(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        """Multiply the Hessian of `phi` with `z`, both `(n_items, k)`, in `O(n_entries k)`."""
        out = np.empty_like(z)
        reduced_product(
            self.matrix.indptr, self.matrix.item_ids, self.errors, self.users, self.items,
            self.reg, self.user_lower, z, out,
        )  # fmt: skip
        return out

    def push(self, w: NDArray[np.float64]) -> NDArray[np.float64]:
        """Multiply the Hessian's block from users to items with `w` `(n_users, k)`; `(n_items, k)`."""
        out = np.zeros_like(self.items)
        couple_to_items(
            self.matrix.indptr, self.matrix.item_ids, self.errors, self.users, self.items, w, out
        )
        return out

    def solve_users(self, right: NDArray[np.float64]) -> NDArray[np.float64]:
        """Solve with the users' blocks of the Hessian; `(n_users, k)` both."""
        out = np.empty_like(right)
        solve_all_factored(self.user_lower, right, out)
        return out

    @property
    def kkt_residual(self) -> float:
        """The largest entry of the gradient of `f`: zero where the paper's conditions hold."""
        return float(np.abs(self.gradient()).max(initial=0.0))

    def solve(
        self,
        right: NDArray[np.float64],
        blocks: NDArray[np.float64],
        *,
        tolerance: float,
        max_iterations: int,
        start: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """Solve `H z = right` for the Hessian of `phi` by preconditioned conjugate gradients.

        The preconditioner is the item blocks, so one iteration from zero is a (scaled) step of ALS. The
        Hessian is singular along rotations of the factors; a right-hand side orthogonal to these, such as
        the gradient of anything that depends on predictions alone, gets a finite answer from zero.

        Args:
            right: Shape `(n_items, k)`.
            blocks: Cholesky factors of the item blocks, here (`item_systems`) or nearby, `(n_items, k, k)`.
            tolerance: Of the residual relative to `right`, both in the preconditioner's norm.
            max_iterations: The most products.
            start: A guess of z, of which the best multiple is taken; that is the first product.

        Returns:
            Shape `(n_items, k)`; where curvature is not positive, the best found before.
        """
        turned = _Rotations(self.items)

        def preconditioned(residual: NDArray[np.float64]) -> NDArray[np.float64]:
            scaled = np.empty_like(residual)
            solve_all_factored(blocks, residual, scaled)
            return turned.without(scaled)

        z, residual = np.zeros_like(right), right.copy()
        scaled = preconditioned(residual)
        size = first = float((residual * scaled).sum())
        if start is not None and first > 0.0:
            guess = turned.without(start)
            product = self.product(guess)
            curvature = float((guess * product).sum())
            if curvature > 0.0:
                length = float((guess * right).sum()) / curvature
                z, residual = length * guess, right - length * product
                scaled = preconditioned(residual)
                size = float((residual * scaled).sum())
            max_iterations -= 1
        direction = scaled
        for _ in range(max_iterations):
            if size <= tolerance**2 * first or first == 0.0:
                break
            product = self.product(direction)
            curvature = float((direction * product).sum())
            if curvature <= 0.0:
                return z if z.any() else direction
            step = size / curvature
            z += step * direction
            residual -= step * product
            scaled = preconditioned(residual)
            before, size = size, float((residual * scaled).sum())
            direction = scaled + (size / before) * direction
        return z


class _Rotations:
    """Movements `V S`, S skew: they change no prediction, and rounding would feed them to the solver.

    Args:
        items: V, shape `(n_items, k)`.
    """

    def __init__(self, items: NDArray[np.float64]) -> None:
        self._items = items
        self._sizes, self._basis = np.linalg.eigh(items.T @ items)

    def without(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return `z` less its nearest rotation, the least-squares S; `(n_items, k)` both."""
        pull = self._items.T @ z
        skew = self._basis.T @ (pull - pull.T) @ self._basis
        sums = self._sizes[:, None] + self._sizes
        turn = np.divide(
            skew, sums, out=np.zeros_like(skew), where=sums > 1e-12 * sums.max(initial=0.0)
        )
        nearest: NDArray[np.float64] = self._items @ (self._basis @ turn @ self._basis.T)
        return z - nearest


def minimise(
    matrix: RatingMatrix,
    items: NDArray[np.float64],
    reg: float,
    *,
    sweeps: int,
    tolerance: float,
    max_steps: int,
) -> Linearised:
    """Find a stationary point of `f`: sweeps of ALS, then Newton steps on `phi`.

    Alternating least squares converges linearly, slowly near a solution; Newton's method, whose systems
    conjugate gradients solve no more exactly than the step deserves, finishes in a few steps of a few
    products, each cheaper than a sweep.

    Args:
        matrix: The ratings.
        items: Where to start, shape `(n_items, k)`.
        reg: Positive.
        sweeps: Of ALS, first.
        tolerance: Stop when no entry of the gradient is larger.
        max_steps: The most Newton steps.

    Returns:
        The point, with its Hessian; its gradient tells whether the steps were enough.
    """
    point, lower = Linearised.at(matrix, items, reg), None
    for _ in range(sweeps):
        point = Linearised.at(matrix, point.item_systems()[1], reg)
    for _ in range(max_steps):
        gradient = point.gradient()
        largest = float(np.abs(gradient).max(initial=0.0))
        if largest <= tolerance:
            break
        lower, moved = point.item_systems()
        forcing = min(0.1, np.sqrt(largest))
        step = point.solve(-gradient, lower, tolerance=forcing, max_iterations=200)
        slope = float((step * gradient).sum())
        point = _descend(point, step, slope) or Linearised.at(matrix, moved, reg)
    return replace(point, nearby_blocks=lower)


def _descend(point: Linearised, step: NDArray[np.float64], slope: float) -> Linearised | None:
    """Return the first of halved steps that lowers `phi` enough, or `None`."""
    slack = 1e-13 * abs(point.value)  # what rounding can do
    for halvings in range(6):
        length = 0.5**halvings
        trial = Linearised.at(point.matrix, point.items + length * step, point.reg)
        if trial.value <= point.value + 1e-4 * length * slope + slack:
            return trial
    return None
