"""From the columns of a file to a log: consecutive ids and events in order of time."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.datasets.tables import Kind, Layout, Table, TextFile, read_table


def read_compact(path: Path, **kinds: Kind) -> Table:
    """Read a compact copy: `interactions.csv.gz` with the header `user,item,...`."""
    return read_table(TextFile.at(path), {"user": "id", "item": "id", **kinds}, Layout())


def to_log(
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    *,
    ratings: NDArray[np.float64] | None = None,
    timestamps: NDArray[np.float64] | None = None,
) -> Interactions:
    """Return the log with ids renumbered in their order, and each user's events in order of time.

    All arrays have shape `(n_events,)`. Equal times, and logs without times, keep the given order.
    """
    if timestamps is not None:
        order = np.lexsort((timestamps, users))
        users, items, timestamps = users[order], items[order], timestamps[order]
        ratings = None if ratings is None else ratings[order]
    old_users, user_ids = np.unique(users, return_inverse=True)
    old_items, item_ids = np.unique(items, return_inverse=True)
    return Interactions(
        user_ids, item_ids, len(old_users), len(old_items), timestamps=timestamps, ratings=ratings
    )
