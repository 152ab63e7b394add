"""The catalogue as a table of groups, for environments that are clicked by group and for attackers alike."""

import math

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count
from recattack_gym.core.errors import ArgumentError


def group_items(
    item_popularity: NDArray[np.int64], target_items: NDArray[np.int64], n_bands: int | None = None
) -> NDArray[np.int64]:
    """Arrange the catalogue as a table of groups: the target items, then bands of popularity.

    Group 0 holds the target items; groups 1, 2, ... hold the other items in bands of equal size (up to
    one), most popular first, ties by item id. A group that is shorter than the longest repeats its
    items, each equally often (up to one), so that every cell is a valid action and every item has one.

    Args:
        item_popularity: Clicks of each item, shape `(n_items,)`.
        target_items: Distinct item ids, shape `(n_targets,)`.
        n_bands: How many bands; `None` makes about as many as a band has items.

    Returns:
        Item ids, shape `(1 + n_bands, size of the longest group)`.

    Raises:
        ArgumentError: If there are fewer items than bands.
    """
    others = np.setdiff1d(np.arange(len(item_popularity)), target_items)
    count = max(1, math.isqrt(len(others))) if n_bands is None else as_count("n_bands", n_bands)
    if count > len(others):
        raise ArgumentError(
            f"n_bands must be at most {len(others)}, the items that are no targets, got {count}"
        )
    ranked = others[np.argsort(-item_popularity[others], kind="stable")]
    groups = [target_items, *np.array_split(ranked, count)]
    size = max(len(group) for group in groups)
    return np.stack([group[np.arange(size) * len(group) // size] for group in groups])
