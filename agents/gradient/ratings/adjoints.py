"""How an attacker's utility changes with each fake rating: through the victim's optimality conditions.

Li, Wang, Singh & Vorobeychik, "Data Poisoning Attacks on Factorization-Based Collaborative Filtering",
NIPS 2016, sections 4.1 and 4.2, appendices A and B. Every function takes a solution of the victim and returns
`dR / dM_ij` for the fake ratings.

Notation: genuine users' predictions `P = U V^T` `(m, n)`; `G = dR / dP`; fake user i has factors `u_i`,
item j has `v_j`; `A_j = reg I + sum u u^T` over all raters of j, genuine and fake.

Differs from the paper: "exact" solves the linear system that the paper approximates; "paper" is its
approximation with the slips corrected: `dv_j / dM_ij` has the fake user's factors, not a genuine one's, and
`d sigma_k / dM_ij = u_ik v_jk`, the first-order change of a singular value, where appendix B prints the
reciprocal.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.errors import ArgumentError
from recattack_gym.simulator.ratings import RatingGoal, RatingPlatform
from recattack_gym.victims.least_squares import Linearised
from recattack_gym.victims.least_squares_kernel import solve_all_factored, take_products
from recattack_gym.victims.lts_mf import LTSMF
from recattack_gym.victims.nuclear import singular

Gradient = Literal["exact", "paper"]
GRADIENTS: tuple[Gradient, ...] = ("exact", "paper")

RIDGE = 1e-6
"""The smoothing tau of appendix B, which gives no value."""


@dataclass(frozen=True, slots=True)
class UtilityGradient:
    """`G = dR / dP` in the two products that everything needs; the matrix itself is never made."""

    to_users: NDArray[np.float64]
    """`G V`, shape `(m, k)`: the gradient in the genuine users' factors."""
    to_items: NDArray[np.float64]
    """`G^T U`, shape `(n, k)`: the gradient in the items' factors."""


def utility_gradient(
    platform: RatingPlatform, point: Linearised, goal: RatingGoal
) -> UtilityGradient:
    """Differentiate R in the factors (appendix A): `G = mu_1 2 (P - P_clean) [unseen] + mu_2 w [targets]`.

    Args:
        platform: Whose clean predictions are the reference.
        point: A solution of the victim whose first users are the platform's genuine ones.
        goal: What R is.
    """
    found = platform.prediction(point)
    return UtilityGradient(*_products(platform, point, goal, found.users, found.items))


def _products(
    platform: RatingPlatform,
    point: Linearised,
    goal: RatingGoal,
    left: NDArray[np.float64],
    right: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return `G right` `(m, k)` and `G^T left` `(n, k)`."""
    first, second = goal.coefficients(platform.n_users, platform.n_unseen)
    to_users, to_items = np.zeros_like(left), np.zeros_like(right)
    if first:
        matrix = platform.matrix
        change = platform.prediction(point).minus(platform.clean)
        to_users += change.users @ (change.items.T @ right)
        to_items += change.items @ (change.users.T @ left)
        # Genuine ratings come first, and what the victim predicts for them it has computed already
        seen = matrix.ratings - point.errors[: len(matrix.ratings)] - platform.clean_at_rated
        take_products(matrix.indptr, matrix.item_ids, seen, left, right, to_users, to_items)
        to_users *= 2.0 * first
        to_items *= 2.0 * first
    if second:
        targets = np.array(goal.target_items, dtype=np.int64)
        to_users += second * right[targets].sum(axis=0)
        to_items[targets] += second * left.sum(axis=0)
    return to_users, to_items


def exact_gradient(
    point: Linearised,
    utility: UtilityGradient,
    *,
    tolerance: float = 1e-3,
    max_iterations: int = 500,
    start: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return `dR / dM` at the fake ratings by the adjoint of the optimality conditions.

    With `g(theta, M) = 0` the gradient of the victim's objective in `theta = (U, V)` and H its Hessian, solve
    `H z = dR / dtheta`; then `dR / dM_ij = z_{u_i} . v_j + z_{v_j} . u_i`. Users are eliminated, the rest is
    solved by preconditioned conjugate gradients without ever making a matrix. Valid for both victims: where
    no singular value of the residual outside the solution equals `reg`, the nuclear norm's solution moves
    within its rank, and there it is that of the factored problem. (`svt_adjoint` is the same from
    soft-impute's fixed point.)

    Args:
        point: A solution; the users after the first `m` are fake.
        utility: The derivative of R there.
        tolerance: Of conjugate gradients, relative.
        max_iterations: The most products with the Hessian.
        start: A guess of the adjoint `z_V`, shape `(n_items, k)`.

    Returns:
        The gradient, shape `(n_fake_ratings,)`, in the order of `point.matrix`'s entries; and `z_V`.
    """
    m = len(utility.to_users)
    right = np.zeros_like(point.users)
    right[:m] = utility.to_users
    blocks = point.item_systems()[0] if point.nearby_blocks is None else point.nearby_blocks
    reduced = utility.to_items - point.push(point.solve_users(right))
    z_items = point.solve(
        reduced, blocks, tolerance=tolerance, max_iterations=max_iterations, start=start
    )
    users, items, errors = _fake_entries(point, m)
    u, v, z_v = point.users[users], point.items[items], z_items[items]
    by_items: NDArray[np.float64] = (u * z_v).sum(axis=1)
    pull = errors[:, None] * z_v - v * by_items[:, None]
    z_users = np.zeros((len(point.users) - m, u.shape[1]))
    np.add.at(z_users, users - m, pull)
    solve_all_factored(point.user_lower[m:], z_users, z_users)
    by_users: NDArray[np.float64] = (z_users[users - m] * v).sum(axis=1)
    return by_users + by_items, z_items


def paper_als_gradient(point: Linearised, utility: UtilityGradient) -> NDArray[np.float64]:
    """Return section 4.1's approximation, `dR / dM_ij ~ u_i^T A_j^{-1} (U^T G)_j`.

    The exact system without its blocks between users and items: a fake rating moves its own item's row, and
    nothing else that R depends on. With an integrity goal alone it is zero for every item but the targets.

    Returns:
        Shape `(n_fake_ratings,)`.
    """
    lower, _ = point.item_systems()
    users, items, _ = _fake_entries(point, len(utility.to_users))
    moved = np.empty_like(point.items)
    solve_all_factored(lower, utility.to_items, moved)
    gradient: NDArray[np.float64] = (point.users[users] * moved[items]).sum(axis=1)
    return gradient


def paper_nuclear_gradient(
    platform: RatingPlatform, point: Linearised, goal: RatingGoal, *, ridge: float = RIDGE
) -> NDArray[np.float64]:
    """Return appendix B's approximation, corrected: one part through `v_j`, one through `sigma`.

    `(S U^T G_j) . (B_j^T B_j + tau I)^{-1} (S + reg I) u_i + sum_k (u_k^T G v_k) u_ik v_jk`, with the
    singular value decomposition `[P; fake] = U S V^T` and the rows `u_l (S + reg I)` of j's raters as `B_j`.

    Args:
        platform: Whose clean predictions are the reference.
        point: A solution of NuclearNorm.
        goal: What R is.
        ridge: The paper's tau.

    Returns:
        Shape `(n_fake_ratings,)`.
    """
    m = platform.n_users
    left, values, right = singular(point.users, point.items)
    to_users, to_items = _products(platform, point, goal, left[:m], right)
    by_sigma: NDArray[np.float64] = (left[:m] * to_users).sum(axis=0)
    scale = values + point.reg
    users, items, _ = _fake_entries(point, m)
    moved = np.empty((point.matrix.n_items, len(values)))
    for item in np.unique(items):
        start, end = point.matrix.item_indptr[item : item + 2]
        rows = left[point.matrix.raters[start:end]] * scale
        system = rows.T @ rows + ridge * np.eye(len(values))
        moved[item] = scale * np.linalg.solve(system, values * to_items[item])
    by_items: NDArray[np.float64] = (moved[items] * left[users]).sum(axis=1)
    through_sigma: NDArray[np.float64] = (left[users] * right[items]) @ by_sigma
    return by_items + through_sigma


def svt_adjoint(
    observed: NDArray[np.bool_],
    filled: NDArray[np.float64],
    outer: NDArray[np.float64],
    reg: float,
    *,
    tolerance: float = 1e-12,
    max_iterations: int = 100_000,
) -> NDArray[np.float64]:
    """Return `dR / dA` from the adjoint of soft-impute's fixed point; dense, for small matrices.

    At `X = S_reg(Z)`, `Z = P_W A + (I - P_W) X`, the derivative J of the thresholding S is self-adjoint, so
    `y = G + (I - P_W) J[y]` and `dR / dA = P_W J[y]`. With `Z = U S V^T` (all of it), `P = U_1^T D V`,
    `Q = U_2^T D V`, `f(s) = max(s - reg, 0)`:
    `J[D] = U_1 (Gs o sym(P) + Ga o skew(P)) V^T + U_2 Q diag(f / s) V^T`, where
    `Gs_ab = (f_a - f_b) / (s_a - s_b)` and `Ga_ab = (f_a + f_b) / (s_a + s_b)`.

    Args:
        observed: W, shape `(p, q)`.
        filled: Z at the solution, same shape.
        outer: `G = dR / dX`, same shape; zero in the rows of fake users.
        reg: The threshold.
        tolerance: Largest change of y at which to stop, relative to the largest entry of G.
        max_iterations: The most steps.

    Returns:
        Shape `(p, q)`, zero outside W.
    """
    if filled.shape[0] < filled.shape[1]:
        flipped = svt_adjoint(
            observed.T, filled.T, outer.T, reg, tolerance=tolerance, max_iterations=max_iterations
        )
        return flipped.T
    left, s, right = np.linalg.svd(filled, full_matrices=True)
    q = len(s)
    first, second, v = left[:, :q], left[:, q:], right.T
    f = np.maximum(s - reg, 0.0)
    gap = s[:, None] - s
    is_equal = np.abs(gap) < 1e-12 * s[0]
    slope = (s > reg).astype(np.float64)
    symmetric = np.where(
        is_equal, np.sqrt(slope[:, None] * slope), (f[:, None] - f) / np.where(is_equal, 1.0, gap)
    )
    skew = (f[:, None] + f) / np.maximum(s[:, None] + s, 1e-300)
    ratio = f / np.maximum(s, 1e-300)

    def derivative(d: NDArray[np.float64]) -> NDArray[np.float64]:
        p, rest = first.T @ d @ v, second.T @ d @ v
        inner = symmetric * (p + p.T) / 2.0 + skew * (p - p.T) / 2.0
        result: NDArray[np.float64] = (first @ inner + second @ (rest * ratio)) @ v.T
        return result

    y = outer.copy()
    size = np.abs(outer).max(initial=0.0)
    for _ in range(max_iterations):
        moved = outer + np.where(observed, 0.0, derivative(y))
        change = np.abs(moved - y).max(initial=0.0)
        y = moved
        if change <= tolerance * size:
            break
    return np.where(observed, derivative(y), 0.0)


class RatingGradient:
    """`dR / dM` at one retrained victim after another, as an attack moves its ratings.

    The exact gradient's linear system starts from the answer of the call before: ratings move little between
    two steps. What is returned is as exact as `tolerance` and `max_iterations` say.

    Args:
        platform: The platform.
        goal: What R is.
        gradient: `"exact"`, or `"paper"` for the paper's approximation as corrected.
        tolerance: Of the exact one's linear system.
        max_iterations: The most products with the Hessian per call; fewer than `tolerance` needs leave an
            approximation, which gets better from call to call.

    Raises:
        ArgumentError: If the victim leaves ratings out of training.
    """

    def __init__(
        self,
        platform: RatingPlatform,
        goal: RatingGoal,
        gradient: Gradient = "exact",
        *,
        tolerance: float = 1e-3,
        max_iterations: int = 500,
    ) -> None:
        if isinstance(platform.victim, LTSMF):
            raise ArgumentError(
                "platform must have a victim that learns from every rating, such as ALS, to have a gradient "
                f"in each, got {platform.victim.name}: plan against ALS and judge the profiles there"
            )
        self._platform, self._goal, self._gradient = platform, goal, gradient
        self._tolerance, self._max_iterations = tolerance, max_iterations
        self._last: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def at(self, point: Linearised) -> NDArray[np.float64]:
        """Return `dR / dM` at what `platform.retrain` returned.

        Returns:
            Shape `(n_fake_ratings,)`: by fake user, then by item id.
        """
        platform, goal = self._platform, self._goal
        if self._gradient == "paper" and platform.victim.name == "NuclearNorm":
            return paper_nuclear_gradient(platform, point, goal)
        utility = utility_gradient(platform, point, goal)
        if self._gradient == "paper":
            return paper_als_gradient(point, utility)
        start = None if self._last is None else carried(*self._last, point.items)
        slope, adjoint = exact_gradient(
            point, utility, tolerance=self._tolerance, max_iterations=self._max_iterations, start=start
        )  # fmt: skip
        self._last = point.items, adjoint
        return slope


def carried(
    before: NDArray[np.float64], z: NDArray[np.float64], now: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return an adjoint of one solution in the coordinates of the next: `z Q`, `before Q ~ now`.

    Factors are free up to a rotation, and a decomposition may flip, swap, add or drop their columns.

    Args:
        before: Item factors that `z` belongs to, shape `(n_items, k)`.
        z: Same shape.
        now: Item factors of the next solution, shape `(n_items, k')`.

    Returns:
        Shape `(n_items, k')`.
    """
    gram = before.T @ before
    turn = np.linalg.lstsq(gram, before.T @ now, rcond=None)[0]
    moved: NDArray[np.float64] = z @ turn
    return moved


def rating_gradient(
    platform: RatingPlatform,
    point: Linearised,
    goal: RatingGoal,
    gradient: Gradient,
    *,
    tolerance: float = 1e-3,
) -> NDArray[np.float64]:
    """Return `dR / dM` at the fake ratings of one retrained victim; see `RatingGradient`."""
    return RatingGradient(platform, goal, gradient, tolerance=tolerance).at(point)


def _fake_entries(
    point: Linearised, m: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return users, items and errors of the fake ratings, which follow the genuine ones."""
    start = int(point.matrix.indptr[m])
    return point.matrix.user_ids[start:], point.matrix.item_ids[start:], point.errors[start:]
