"""Compiled pieces of regularised least-squares factorisation: small solves per row, and its Hessian."""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.victims.kernels import compiled


@compiled
def solve_factored(
    lower: NDArray[np.float64], right: NDArray[np.float64], out: NDArray[np.float64]
) -> None:
    """Solve `L L^T x = b` for one row; `lower` `(k, k)`, `right` and `out` `(k,)`, which may be one array."""
    k = len(right)
    for a in range(k):
        total = right[a]
        for c in range(a):
            total -= lower[a, c] * out[c]
        out[a] = total / lower[a, a]
    for a in range(k - 1, -1, -1):
        total = out[a]
        for c in range(a + 1, k):
            total -= lower[c, a] * out[c]
        out[a] = total / lower[a, a]


@compiled
def solve_rows(
    rows: NDArray[np.int64],
    indptr: NDArray[np.int64],
    columns: NDArray[np.int64],
    ratings: NDArray[np.float64],
    factors: NDArray[np.float64],
    reg: float,
    lower: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    """Minimise over each of `rows` alone: `(reg I + sum f f^T) x = sum r f` over its entries.

    Args:
        rows: Which rows to solve, shape `(R,)`.
        indptr: Shape `(n_rows + 1,)`, with `columns` and `ratings` a matrix in CSR form.
        columns: Shape `(n_entries,)`.
        ratings: Shape `(n_entries,)`.
        factors: The other side, shape `(n_columns, k)`.
        reg: Positive.
        lower: Filled with the Cholesky factors of the systems, shape `(n_rows, k, k)`.
        out: Filled with the solutions, shape `(n_rows, k)`; zero for a row without entries.
    """
    k = factors.shape[1]
    for place in range(len(rows)):
        row = rows[place]
        system, right = lower[row], out[row]
        for a in range(k):
            right[a] = 0.0
            for c in range(k):
                system[a, c] = 0.0
            system[a, a] = reg
        for entry in range(indptr[row], indptr[row + 1]):
            f = factors[columns[entry]]
            for a in range(k):
                f_a = f[a]
                right[a] += ratings[entry] * f_a
                for c in range(a + 1):
                    system[a, c] += f_a * f[c]
        for a in range(k):
            for c in range(a + 1):
                total = system[a, c]
                for b in range(c):
                    total -= system[a, b] * system[c, b]
                system[a, c] = np.sqrt(total) if a == c else total / system[c, c]
        solve_factored(system, right, right)


@compiled
def prediction_errors(
    indptr: NDArray[np.int64],
    columns: NDArray[np.int64],
    ratings: NDArray[np.float64],
    users: NDArray[np.float64],
    items: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    """Fill `out` `(n_entries,)` with rating minus prediction of each entry."""
    k = users.shape[1]
    for user in range(len(users)):
        u = users[user]
        for entry in range(indptr[user], indptr[user + 1]):
            v = items[columns[entry]]
            total = 0.0
            for a in range(k):
                total += u[a] * v[a]
            out[entry] = ratings[entry] - total


@compiled
def reduced_product(
    indptr: NDArray[np.int64],
    columns: NDArray[np.int64],
    errors: NDArray[np.float64],
    users: NDArray[np.float64],
    items: NDArray[np.float64],
    reg: float,
    user_lower: NDArray[np.float64],
    z: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    """Multiply the Hessian, reduced to items (users minimised out), with `z`; `(n_items, k)` both.

    `out_j = A_j z_j - sum_i H_ji w_i`, `w_i = B_i^{-1} sum_l H_il z_l`, where over the entries
    `H_ij z = v_j (u_i . z) - e_ij z`, `A_j = reg I + sum_i u_i u_i^T`, and B_i is the block of user i, given
    as its Cholesky factor. An entry adds `u_i (u_i . z_j - v_j . w_i) + e_ij w_i`: the item blocks, which are
    larger than everything else together, are never read.
    """
    k = users.shape[1]
    for item in range(len(items)):
        for a in range(k):
            out[item, a] = reg * z[item, a]
    w, through = np.empty(k), np.empty(len(items))  # a user has no item twice
    for user in range(len(users)):
        u, start, end = users[user], indptr[user], indptr[user + 1]
        for a in range(k):
            w[a] = 0.0
        for entry in range(start, end):
            v, v_z, e = items[columns[entry]], z[columns[entry]], errors[entry]
            total = 0.0
            for a in range(k):
                total += u[a] * v_z[a]
            through[entry - start] = total
            for a in range(k):
                w[a] += v[a] * total - e * v_z[a]
        solve_factored(user_lower[user], w, w)
        for entry in range(start, end):
            v, y, e = items[columns[entry]], out[columns[entry]], errors[entry]
            total = through[entry - start]
            for a in range(k):
                total -= v[a] * w[a]
            for a in range(k):
                y[a] += u[a] * total + e * w[a]


@compiled
def take_products(
    indptr: NDArray[np.int64],
    columns: NDArray[np.int64],
    values: NDArray[np.float64],
    left: NDArray[np.float64],
    right: NDArray[np.float64],
    to_users: NDArray[np.float64],
    to_items: NDArray[np.float64],
) -> None:
    """Take `S right` off `to_users` `(m, k)`, `S^T left` off `to_items` `(n, k)`, S sparse with `values`."""
    k = left.shape[1]
    for user in range(len(left)):
        u, y = left[user], to_users[user]
        for entry in range(indptr[user], indptr[user + 1]):
            v, x, value = right[columns[entry]], to_items[columns[entry]], values[entry]
            for a in range(k):
                y[a] -= value * v[a]
                x[a] -= value * u[a]


@compiled
def couple_to_items(
    indptr: NDArray[np.int64],
    columns: NDArray[np.int64],
    errors: NDArray[np.float64],
    users: NDArray[np.float64],
    items: NDArray[np.float64],
    w: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    """Add `sum_i u_i (v_j . w_i) - e_ij w_i` over the raters of each item j to `out` `(n_items, k)`."""
    k = users.shape[1]
    for user in range(len(users)):
        u, w_u = users[user], w[user]
        for entry in range(indptr[user], indptr[user + 1]):
            v, y, e = items[columns[entry]], out[columns[entry]], errors[entry]
            total = 0.0
            for a in range(k):
                total += v[a] * w_u[a]
            for a in range(k):
                y[a] += u[a] * total - e * w_u[a]


@compiled
def solve_all_factored(
    lower: NDArray[np.float64], right: NDArray[np.float64], out: NDArray[np.float64]
) -> None:
    """Solve one system per row, `lower` `(n, k, k)`, `right` and `out` `(n, k)`."""
    for row in range(len(right)):
        solve_factored(lower[row], right[row], out[row])
