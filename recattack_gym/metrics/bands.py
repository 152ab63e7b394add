"""Who is shown: exposures of items in top-k lists, by how popular the items were; pure functions."""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.errors import ArgumentError

BANDS = ("head", "middle", "tail")
"""Items by clicks, the most clicked first; see `popularity_bands`."""


def popularity_bands(popularity: NDArray[np.int64]) -> NDArray[np.int64]:
    """Divide a catalogue into bands by the clicks of a log.

    Head: the fewest most clicked items that have at least a fifth of all clicks. Tail: the least clicked ones
    that have at most a fifth, those without any click among them. Middle: what is between. Of equally clicked
    items the one with the lower id counts as more popular.

    Args:
        popularity: Clicks of each item, shape `(n_items,)`.

    Returns:
        Each item's place in `BANDS`, shape `(n_items,)`.

    Raises:
        ArgumentError: If it is no array of counts.
    """
    clicks = np.asarray(popularity)
    if clicks.ndim != 1 or not np.issubdtype(clicks.dtype, np.integer) or (clicks < 0).any():
        raise ArgumentError(
            "popularity must be an array of whole numbers >= 0, one per item, "
            f"got shape {clicks.shape} of {clicks.dtype}"
        )
    order = np.argsort(-clicks, kind="stable")
    ranked = clicks[order]
    before = (
        np.cumsum(ranked) - ranked
    )  # clicks of all that are more popular; whole numbers, so exact
    total = int(clicks.sum())
    bands = np.empty(len(clicks), dtype=np.int64)
    bands[order] = np.where(5 * before < total, 0, np.where(5 * before < 4 * total, 1, 2))
    return bands


def exposures(shown: NDArray[np.int64], n_items: int) -> NDArray[np.int64]:
    """Count in how many lists each item is.

    Args:
        shown: Top-k lists, shape `(U, k)`, -1 for an empty place; items are distinct within a list.
        n_items: Size of the catalogue.

    Returns:
        Shape `(n_items,)`; the sum is the number of places that are not empty.

    Raises:
        ArgumentError: If there is an item beyond the catalogue.
    """
    if shown.ndim != 2 or (shown >= n_items).any() or (shown < -1).any():
        raise ArgumentError(
            f"shown must hold lists of item ids below {n_items}, or -1, of shape (U, k), "
            f"got shape {shown.shape} with {shown.min(initial=-1)} to {shown.max(initial=-1)}"
        )
    return np.bincount(shown[shown >= 0], minlength=n_items).astype(np.int64)
