"""The compiled loop of `candidates.draw_candidates`."""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.victims.kernels import compiled, draw_below, stream_key

CANDIDATES = 5
"""Stream of the counter-based generator (`victims.schedule` has the lower ones)."""


@compiled
def draw_rows(
    indptr: NDArray[np.int64],
    seen: NDArray[np.int32],
    is_target: NDArray[np.bool_],
    n_items: int,
    seed: int,
    drawn: NDArray[np.int64],
) -> None:
    """Fill each row with distinct items that its user has not seen and that are no targets, sorted.

    Uniform without replacement: single draws are repeated while they are taken, or, where little is
    left to draw from, the list of what is left is shuffled from the front.

    Args:
        indptr: Shape `(n_users + 1,)`, of `Interactions.seen`, as the next one.
        seen: Item ids.
        is_target: Shape `(n_items,)`.
        n_items: Size of the catalogue.
        seed: In `[0, 2**63)`.
        drawn: Written, shape `(n_users, n)`; every user must have `n` items to draw.
    """
    key = stream_key(seed, CANDIDATES)
    n_users, n = drawn.shape
    taken_by = np.zeros(n_items, dtype=np.int64)
    left = np.empty(n_items, dtype=np.int64)
    n_targets = is_target.sum()
    per_user = 1 << 32
    for user in range(n_users):
        mark = user + 1
        row = drawn[user]
        for x in range(indptr[user], indptr[user + 1]):
            taken_by[seen[x]] = mark
        counter = user * per_user
        if n_items - n_targets - (indptr[user + 1] - indptr[user]) >= 3 * n:
            for c in range(n):
                while True:
                    item = draw_below(key, counter, n_items)
                    counter += 1
                    if taken_by[item] != mark and not is_target[item]:
                        break
                taken_by[item] = mark
                row[c] = item
        else:
            n_left = 0
            for other in range(n_items):
                if taken_by[other] != mark and not is_target[other]:
                    left[n_left] = other
                    n_left += 1
            for c in range(n):
                pick = c + draw_below(key, counter, n_left - c)
                counter += 1
                left[c], left[pick] = left[pick], left[c]
                row[c] = left[c]
        row.sort()
