"""Quality of recommendation lists against one held-out item per user."""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.errors import ArgumentError


def hr_at_k(shown: NDArray[np.int64], held_out: NDArray[np.int64]) -> float:
    """Return the hit rate: the share of users whose held-out item is in their list.

    Args:
        shown: Top-k lists, shape `(U, k)`, -1 for an empty place.
        held_out: Shape `(U,)`; users with -1 have no held-out item and do not count.

    Returns:
        In `[0, 1]`; `nan` if nobody has a held-out item.
    """
    return _mean_over_users((shown == held_out[:, None]).any(axis=1).astype(np.float64), held_out)


def ndcg_at_k(shown: NDArray[np.int64], held_out: NDArray[np.int64]) -> float:
    """Return the normalised discounted cumulative gain with one relevant item per user.

    The gain of a hit at place p = 1, 2, ... is `1 / log2(p + 1)`, and the best possible is 1.

    Args:
        shown: Top-k lists, shape `(U, k)`, best first, -1 for an empty place.
        held_out: Shape `(U,)`; users with -1 have no held-out item and do not count.

    Returns:
        In `[0, 1]`; `nan` if nobody has a held-out item.
    """
    discount = 1.0 / np.log2(np.arange(shown.shape[1]) + 2.0)
    return _mean_over_users((shown == held_out[:, None]) @ discount, held_out)


def _mean_over_users(values: NDArray[np.float64], held_out: NDArray[np.int64]) -> float:
    if values.shape != held_out.shape:
        raise ArgumentError(f"held_out must have shape {values.shape}, got {held_out.shape}")
    counts = held_out >= 0
    return float(values[counts].mean()) if counts.any() else float("nan")
