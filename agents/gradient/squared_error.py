"""The weighted squared error of all cells of a profile matrix: its gradient, and the gradient's derivatives.

No cell that nobody clicked is ever visited: their part is a product of two `(d, d)` matrices. Pure functions.

`L = mean_{u in batch, i} w_ui (y_ui - s_ui)^2 + reg mean_{u, i} (|r_u|^2 + |r_i|^2)`, with `w_ui` the weight
of clicked cells where `y_ui = 1`, else 1 (the surrogate WRMF of Tang, Wen and Wang, "Revisiting adversarially
learned injection attacks against recommender systems", RecSys 2020).
"""

import numpy as np
from numpy.typing import NDArray

from agents.gradient.graph import InteractionGraph
from agents.gradient.kernels import Real, add_to_pairs, pair_products


def squared_error_gradient(
    users: NDArray[np.int64],
    representations: NDArray[Real],
    graph: InteractionGraph,
    weight: float,
    reg: float,
) -> tuple[float, NDArray[Real]]:
    """Return the loss of a batch of users and its gradient.

    Args:
        users: Distinct, shape `(B,)`.
        representations: Shape `(n_rows, d)`.
        graph: Who clicked what.
        weight: Of clicked cells.
        reg: Weight of the squared norms.

    Returns:
        The loss, and its gradient, shape `(n_rows, d)`.
    """
    n = graph.n_users
    gradient = np.zeros_like(representations)
    scores = _pair_scores(users, representations, representations, graph)
    scores *= scores.dtype.type(0.5)
    errors = _clicked_errors(scores, weight)
    add_to_pairs(users, graph.indptr, graph.items, errors, representations, gradient)
    of_clicked = _clicked_losses(users, scores, graph, weight)
    rows, items = representations[users], representations[n:]
    user_gram, item_gram = rows.T @ rows, items.T @ items
    n_cells = len(users) * graph.n_items
    loss = float((user_gram * item_gram).sum() + of_clicked) / n_cells
    gradient[users] += rows @ item_gram
    gradient[n:] += items @ user_gram
    gradient *= gradient.dtype.type(2.0 / n_cells)
    gradient[users] += gradient.dtype.type(2.0 * reg / len(users)) * rows
    gradient[n:] += gradient.dtype.type(2.0 * reg / graph.n_items) * items
    norms = float(np.trace(user_gram)) / len(users) + float(np.trace(item_gram)) / graph.n_items
    return loss + reg * norms, gradient


def squared_error_hessian_product(
    direction: NDArray[Real],
    users: NDArray[np.int64],
    representations: NDArray[Real],
    graph: InteractionGraph,
    weight: float,
    reg: float,
) -> NDArray[Real]:
    """Return the Hessian of a batch's loss times a direction: how its gradient changes along it.

    Args:
        direction: Shape `(n_rows, d)`.
        users: As in `squared_error_gradient`, like the others.
        representations: Shape `(n_rows, d)`.
        graph: Who clicked what.
        weight: Of clicked cells.
        reg: Weight of the squared norms.

    Returns:
        Shape `(n_rows, d)`.
    """
    n = graph.n_users
    product = np.zeros_like(representations)
    scores = _pair_scores(users, representations, representations, graph)
    scores *= scores.dtype.type(0.5)
    errors = _clicked_errors(scores, weight)
    slopes = _pair_scores(users, direction, representations, graph)
    slopes *= slopes.dtype.type(weight - 1.0)
    add_to_pairs(users, graph.indptr, graph.items, errors, direction, product)
    add_to_pairs(users, graph.indptr, graph.items, slopes, representations, product)
    rows, items = representations[users], representations[n:]
    d_rows, d_items = direction[users], direction[n:]
    user_gram, item_gram = rows.T @ rows, items.T @ items
    d_user_gram = d_rows.T @ rows + rows.T @ d_rows
    d_item_gram = d_items.T @ items + items.T @ d_items
    product[users] += d_rows @ item_gram + rows @ d_item_gram
    product[n:] += d_items @ user_gram + items @ d_user_gram
    product *= product.dtype.type(2.0 / (len(users) * graph.n_items))
    product[users] += product.dtype.type(2.0 * reg / len(users)) * d_rows
    product[n:] += product.dtype.type(2.0 * reg / graph.n_items) * d_items
    return product


def squared_error_by_clicks(
    direction: NDArray[Real],
    users: NDArray[np.int64],
    representations: NDArray[Real],
    graph: InteractionGraph,
    weight: float,
) -> NDArray[Real]:
    """Return how much the gradient along a direction changes with each cell `y_fi` of the fake users.

    Weights count as constants, as in public code of the paper: only the error depends on `y`.

    Args:
        direction: Shape `(n_rows, d)`.
        users: The batch, as in `squared_error_gradient`, like the others.
        representations: Shape `(n_rows, d)`.
        graph: Who clicked what; its fake users are meant.
        weight: Of clicked cells.

    Returns:
        Shape `(n_fake_users, n_items)`; zero for fake users who are not in the batch.
    """
    n, n_genuine = graph.n_users, graph.n_genuine
    fakes = users[users >= n_genuine]
    change = np.zeros((n - n_genuine, graph.n_items), dtype=representations.dtype)
    change[fakes - n_genuine] = (
        direction[fakes] @ representations[n:].T + representations[fakes] @ direction[n:].T
    )
    for fake in fakes:
        own = graph.items[graph.indptr[fake] : graph.indptr[fake + 1]]
        change[fake - n_genuine, own] *= weight
    change *= change.dtype.type(-2.0 / (len(users) * graph.n_items))
    return change


def _pair_scores(
    users: NDArray[np.int64],
    left: NDArray[Real],
    right: NDArray[Real],
    graph: InteractionGraph,
) -> NDArray[Real]:
    """Return `left_u . right_i + right_u . left_i` of the pairs of a batch, 0 elsewhere; `(n_edges,)`."""
    found = np.zeros(graph.n_edges, dtype=left.dtype)
    pair_products(users, graph.indptr, graph.items, left, right, found)
    return found


def _clicked_errors(scores: NDArray[Real], weight: float) -> NDArray[Real]:
    """Return how much larger half the slope of a clicked pair's loss is than if it were not clicked.

    `w (s - 1) - s`, shape `(n_edges,)`.
    """
    real = scores.dtype.type
    errors: NDArray[Real] = real(weight - 1.0) * scores - real(weight)
    return errors


def _clicked_losses(
    users: NDArray[np.int64], scores: NDArray[Real], graph: InteractionGraph, weight: float
) -> float:
    """Return how much larger the loss of a batch is for its clicks: `w (s - 1)^2 - s^2`, summed.

    Pairs of other users have the score 0 and the loss `w`, which is taken off.
    """
    n_others = graph.n_edges - int((graph.indptr[users + 1] - graph.indptr[users]).sum())
    errors = scores - scores.dtype.type(1)
    squares = float(errors @ errors), float(scores @ scores)
    return weight * (squares[0] - n_others) - squares[1]
