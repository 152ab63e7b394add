"""Nuclear-norm completion through factors: an active set of directions, Newton steps, and a certificate.

`min_X 1/2 |P_W(A - X)|_F^2 + reg |X|_*` is convex, and `X = U V^T` of rank at most k solves it exactly if
(U, V) minimises `least_squares`'s f for that k (both penalties `reg`) and the residual `P_W(A - X)` has no
singular value above `reg` outside (U, V) (Mazumder, Hastie & Tibshirani, "Spectral Regularization Algorithms
for Learning Large Incomplete Matrices", JMLR 2010, section 8). So rank is found by adding the singular
vectors of the residual, as one step of soft-impute would, until none is left.
"""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.victims.least_squares import Linearised, RatingMatrix, minimise

_SLACK = 1e-7
"""How far above `reg`, relatively, a singular value of the residual may be for rounding's sake."""
_DENSE = 120
"""Residuals with a side up to this are decomposed densely."""
_ROUNDS = 40


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
        The solution with balanced factors: `U = S^(1/2)` left singular vectors, V likewise.
    """
    point: Linearised | None = None
    if items.shape[1]:
        point = _settled(matrix, items, reg, tolerance=1e-2, max_steps=max_steps)
    for _ in range(_ROUNDS):
        rank = 0 if point is None else point.items.shape[1]
        wanted = min(max_rank - rank, max(8, rank // 2))
        added = _missing_directions(matrix, point, reg, wanted) if wanted > 0 else None
        if added is None:
            if point is None or point.items.shape[1] == 0:
                break
            point = _settled(matrix, point.items, reg, tolerance=tolerance, max_steps=max_steps)
            if _missing_directions(matrix, point, reg, min(max_rank - point.items.shape[1], 1)) is None:
                break
            continue
        old = np.zeros((matrix.n_items, 0)) if point is None else point.items
        point = _settled(
            matrix, np.hstack([old, added]), reg, tolerance=1e-2, max_steps=max_steps
        )
    return Linearised.at(matrix, np.zeros((matrix.n_items, 0)), reg) if point is None else point


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
    left, values, right = singular(point.users, point.items)
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


def _missing_directions(
    matrix: RatingMatrix, point: Linearised | None, reg: float, n_most: int
) -> NDArray[np.float64] | None:
    """Return item sides of the residual's directions above `reg`, shape `(n_items, n)`, or `None`."""
    if n_most <= 0:
        return None
    errors = matrix.ratings if point is None else point.errors
    residual = matrix.sparse(errors)
    k = 0 if point is None else point.items.shape[1]
    basis = None
    if point is not None and k:
        left, values, right = singular(point.users, point.items)
        basis = (left[:, values > 0], right[:, values > 0])
    values, right = _top_outside(residual, basis, n_most)
    above = values > reg * (1.0 + _SLACK)
    if not above.any():
        return None
    return right[:, above] * np.sqrt(values[above] - reg)


def _top_outside(residual, basis, n):
    """Return the largest singular values, and right vectors, of the residual outside the basis."""
    if min(residual.shape) <= max(_DENSE, 2 * n + 2):
        dense = residual.toarray()
        if basis is not None:
            left, right = basis
            dense -= left @ (left.T @ dense)
            dense -= (dense @ right) @ right.T
        _, values, vectors = np.linalg.svd(dense, full_matrices=False)
        return values[:n], vectors[:n].T
    from scipy.sparse.linalg import LinearOperator, svds
    if basis is None:
        op = residual
    else:
        left, right = basis
        def mv(x):
            x = x.ravel()
            y = residual @ (x - right @ (right.T @ x))
            return y - left @ (left.T @ y)
        def rmv(y):
            y = y.ravel()
            x = residual.T @ (y - left @ (left.T @ y))
            return x - right @ (right.T @ x)
        op = LinearOperator(residual.shape, matvec=mv, rmatvec=rmv, dtype=np.float64)
    start = np.ones(min(residual.shape))
    _, values, vectors = svds(op, k=n, v0=start, tol=1e-9)
    order = np.argsort(-values)
    return values[order], vectors[order].T
