"""Trimmed learning: fit, leave out what fits worst, fit again, until the same things are left out."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


def n_kept(n: int, trim_share: float) -> int:
    """Return how many of `n` things are kept: `ceil((1 - trim_share) n)`."""
    return math.ceil(round((1.0 - trim_share) * n, 9))


def smallest(losses: NDArray[np.float64], n: int) -> NDArray[np.bool_]:
    """Mark the `n` smallest of losses, of equal ones those that come first; same shape, `(n_losses,)`."""
    kept = np.zeros(len(losses), dtype=np.bool_)
    kept[np.argsort(losses, kind="stable")[:n]] = True
    return kept


def least_trimmed(
    fit: Callable[[NDArray[np.bool_]], NDArray[np.float64]],
    n: int,
    n_left: int,
    max_rounds: int,
) -> tuple[NDArray[np.bool_], int]:
    """Minimise the sum of the `n_left` smallest losses by alternation, from a fit to everything.

    The iteration of least trimmed squares (Rousseeuw, "Least median of squares regression", JASA 1984), and
    of TRIM (Jagielski et al., S&P 2018). If `fit` minimises the sum of losses that it is told to keep, from
    where it stood, that sum never rises, so the kept set comes to rest.

    Args:
        fit: Fits what is marked and returns everybody's losses, shape `(n,)` both.
        n: How many losses there are.
        n_left: How many are kept.
        max_rounds: The most fits after the first.

    Returns:
        What the last fit kept, and how many fits there were. If these are fewer than `max_rounds + 1`, the
        kept are the `n_left` smallest losses of that fit.
    """
    kept = np.ones(n, dtype=np.bool_)
    for n_fits in range(1, max_rounds + 1):
        best = smallest(fit(kept), n_left)
        if (best == kept).all():
            return kept, n_fits
        kept = best
    fit(kept)
    return kept, max_rounds + 1
