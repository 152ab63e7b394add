"""Nuclear-norm completion through factors: an active set of directions, Newton steps, and a certificate.

`min_X 1/2 |P_W(A - X)|_F^2 + reg |X|_*` is convex, and `X = U V^T` of rank at most k solves it exactly if
(U, V) minimises `least_squares`'s f for that k (both penalties `reg`) and the residual `P_W(A - X)` has no
singular value above `reg` outside (U, V) (Mazumder, Hastie & Tibshirani, "Spectral Regularization Algorithms
for Learning Large Incomplete Matrices", JMLR 2010, section 8). So rank is found by adding the singular
vectors of the residual, as one step of soft-impute would, until none is left.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recattack_gym.victims.least_squares import Linearised, RatingMatrix, minimise

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_SLACK = 1e-7
"""How far above `reg`, relatively, a singular value of the residual may be for rounding's sake."""
_DENSE = 120
"""Residuals with a side up to this are decomposed densely."""
_ROUNDS = 60
"""Most times that directions are added."""
_AT_ONCE = 8
"""Directions that are added at once, or half as many as there are if that is more."""
_LOOSE = 1e-2
"""Tolerance while directions are still missing."""


def complete(
    matrix: RatingMatrix,
    items: NDArray[np.float64],
    reg: float,
    *,
    max_rank: int,
    tolerance: float,
    max_steps: int,
) -> Linearised:
    """Solve nuclear-norm completion.

    Args:
        matrix: The ratings A on W.
        items: Where to start, shape `(n_items, k)`; `k` may be 0.
        reg: Positive.
        max_rank: The most directions; reaching it means that X is the best of this rank only.
        tolerance: Of the largest entry of the factored problem's gradient.
        max_steps: The most Newton steps per set of directions.

    Returns:
        The solution, in balanced factors (`U^T U = V^T V`).
    """
    point, is_settled = Linearised.at(matrix, items, reg), False
    if items.shape[1]:
        # An earlier solution, which has most directions: no need to approach it twice
        point = _settled(matrix, items, reg, tolerance=tolerance, max_steps=max_steps)
        is_settled = True
    for _ in range(_ROUNDS):
        rank = point.items.shape[1]
        added = _missing_directions(point, min(max(_AT_ONCE, rank // 2), max_rank - rank))
        if added.shape[1]:
            start, is_settled = np.hstack([point.items, added]), False
            point = _settled(matrix, start, reg, tolerance=_LOOSE, max_steps=max_steps)
        elif is_settled or rank == 0:
            break
        else:
            point = _settled(matrix, point.items, reg, tolerance=tolerance, max_steps=max_steps)
            is_settled = True
    return point


def _settled(
    matrix: RatingMatrix,
    items: NDArray[np.float64],
    reg: float,
    *,
    tolerance: float,
    max_steps: int,
) -> Linearised:
    """Minimise, drop directions that have died, and balance."""
    point = minimise(matrix, items, reg, sweeps=1, tolerance=tolerance, max_steps=max_steps)
    _, values, right = singular(point.users, point.items)
    alive = values > 1e-6 * reg
    balanced = right[:, alive] * np.sqrt(values[alive])
    if alive.all():
        return Linearised.at(matrix, balanced, reg)
    return minimise(matrix, balanced, reg, sweeps=0, tolerance=tolerance, max_steps=max_steps)


def singular(
    users: NDArray[np.float64], items: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return left vectors `(n_users, k)`, values `(k,)`, right vectors `(n_items, k)` of `U V^T`."""
    q_users, r_users = np.linalg.qr(users)
    q_items, r_items = np.linalg.qr(items)
    left, values, right = np.linalg.svd(r_users @ r_items.T)
    return q_users @ left, values, q_items @ right.T


def _missing_directions(point: Linearised, n_most: int) -> NDArray[np.float64]:
    """Return item sides of the residual's largest directions above `reg` outside the solution.

    Args:
        point: The solution so far.
        n_most: The most directions, may be negative.

    Returns:
        Shape `(n_items, n)`, each scaled to the c that is best for `X + c l r^T` alone: `(s - reg) / sum
        (l_i r_j)^2` over the rated pairs. (Soft-impute's step has 1 for the sum, far too short where few
        pairs are rated; training then takes dozens of steps to leave the saddle.)
    """
    matrix = point.matrix
    if n_most <= 0:
        return np.zeros((matrix.n_items, 0))
    left, _, right = singular(point.users, point.items)
    residual = matrix.sparse(point.errors)
    values, vectors = _top_outside(residual, left, right, n_most)
    above = values > point.reg * (1.0 + _SLACK)
    values, vectors = values[above], vectors[:, above]
    partners = residual @ vectors
    partners = (partners - left @ (left.T @ partners)) / values
    rated = matrix.sparse(np.ones(len(point.errors)))
    weights = (partners**2 * (rated @ vectors**2)).sum(axis=0)
    scaled: NDArray[np.float64] = vectors * np.sqrt((values - point.reg) / weights)
    return scaled


def _top_outside(
    residual: "csr_array", left: NDArray[np.float64], right: NDArray[np.float64], n: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the n largest singular values of `(I - L L^T) R (I - V V^T)` and right vectors `(q, n)`."""
    if min(residual.shape) <= max(_DENSE, 2 * n + 2):
        dense = residual.toarray()
        dense -= left @ (left.T @ dense)
        dense -= (dense @ right) @ right.T
        _, values, vectors = np.linalg.svd(dense, full_matrices=False)
        return values[:n], vectors[:n].T
    from scipy.sparse.linalg import LinearOperator, svds

    def forward(x: NDArray[np.float64]) -> NDArray[np.float64]:
        y: NDArray[np.float64] = residual @ (x.ravel() - right @ (right.T @ x.ravel()))
        return y - left @ (left.T @ y)

    def backward(y: NDArray[np.float64]) -> NDArray[np.float64]:
        x: NDArray[np.float64] = residual.T @ (y.ravel() - left @ (left.T @ y.ravel()))
        return x - right @ (right.T @ x)

    operator = LinearOperator(residual.shape, matvec=forward, rmatvec=backward, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(min(residual.shape))  # ARPACK's own is global
    _, values, vectors = svds(operator, k=n, v0=start, tol=1e-9)
    order = np.argsort(-values)
    return values[order], vectors[order].T
