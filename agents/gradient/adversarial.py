"""The adversarial loss of PGA and RevAdv: how unlikely targets are among all items."""

import numpy as np
from numpy.typing import NDArray

from agents.gradient.kernels import Real, largest

_AT_ONCE = 512
"""Users whose scores are in memory at once."""


def adversarial_gradient(
    users: NDArray[np.int64],
    representations: NDArray[Real],
    n_users: int,
    target_items: NDArray[np.int64],
    list_length: int,
) -> tuple[float, float, NDArray[Real]]:
    """Return the loss of an attack, its target hit rate, and the loss's gradient.

    The loss is the mean over users and targets of `-log softmax_i(s_u)_t`, over all items, nothing hidden
    (Tang, Wen and Wang, RecSys 2020, §3). The hit rate is `metrics.target_recall_at_k_unmasked`.

    Args:
        users: Genuine users, shape `(U,)`.
        representations: Final ones, shape `(n_rows, d)`.
        n_users: Where the rows of items begin.
        target_items: Shape `(n_targets,)`.
        list_length: Length of the lists; all items where there are fewer.

    Returns:
        Loss, hit rate, and gradient of shape `(n_rows, d)`.
    """
    gradient = np.zeros_like(representations)
    items, of_items = representations[n_users:], gradient[n_users:]
    n_terms, loss, n_hits = len(users) * len(target_items), 0.0, 0
    k = min(list_length, len(items))
    for start in range(0, len(users), _AT_ONCE):
        some = users[start : start + _AT_ONCE]
        rows = representations[some]
        scores = rows @ items.T
        shown = np.empty((len(some), k), dtype=np.int64)
        largest(scores, k, shown)
        n_hits += int(np.isin(shown, target_items).sum())
        scores -= scores.max(axis=1, keepdims=True)
        at_targets = scores[:, target_items].astype(np.float64)
        np.exp(scores, out=scores)
        totals = scores.sum(axis=1, keepdims=True)
        loss += float((np.log(totals.astype(np.float64)) - at_targets).sum())
        scores *= len(target_items) / totals
        scores[:, target_items] -= 1
        scores /= n_terms
        gradient[some] += scores @ items
        of_items += scores.T @ rows
    return loss / n_terms, n_hits / n_terms, gradient
