"""Small logs with known answers, and an average attack on ml-100k, for the tests of detectors."""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core import Interactions
from recattack_gym.defenses import UserItems

SIX_BY_FIVE = np.array(
    [
        [5, 3, 0, 1, 0],
        [4, 0, 2, 1, 0],
        [5, 4, 3, 0, 0],
        [0, 2, 4, 0, 2],
        [3, 0, 0, 2, 1],
        [4, 3, 3, 0, 5],  # plays the fake user; its target is the last item
    ]
)
"""0 = not rated."""


def log_of(
    matrix: NDArray[np.int64] | NDArray[np.float64], *, clicks: bool = False
) -> Interactions:
    """Return a dense matrix of ratings, 0 for none, as a log."""
    users, items = np.nonzero(matrix)
    ratings = None if clicks else matrix[users, items].astype(np.float64)
    return Interactions(users, items, len(matrix), matrix.shape[1], ratings=ratings)


def six_by_five() -> UserItems:
    """Return the pairs of the matrix that all features were worked out for by hand."""
    return UserItems.of(log_of(SIX_BY_FIVE))


def random_matrix(seed: int, n_users: int = 23, n_items: int = 17) -> NDArray[np.int64]:
    """Return ratings from 1 to 5, of a popular and an unpopular half of the catalogue, and two odd users."""
    rng = np.random.default_rng(seed)
    density = np.where(np.arange(n_items) % 2, 0.6, 0.2)
    matrix = rng.integers(1, 6, (n_users, n_items)) * (rng.random((n_users, n_items)) < density)
    matrix[0], matrix[1] = 0, 0
    matrix[0, 3], matrix[1, :4] = 4, 2  # one item; all alike
    return matrix


def attacked(
    *, clicks: bool, n_genuine: int = 120, n_fake: int = 12, n_items: int = 60, seed: int = 0
) -> tuple[Interactions, NDArray[np.bool_]]:
    """Return a log in which fake users have uniform items and one target, and who they are.

    Genuine users follow popularity and prefer items with even, or with odd, numbers.
    """
    rng = np.random.default_rng(seed)
    weight = (1.0 + np.arange(n_items)) ** -1.0
    tastes = rng.integers(2, size=(n_genuine, 1)) == np.arange(n_items) % 2
    chances = np.minimum(0.9, 10 * weight / weight.sum()) * np.where(tastes, 1.6, 0.3)
    genuine = rng.integers(2, 6, (n_genuine, n_items)) * (
        rng.random((n_genuine, n_items)) < chances
    )
    genuine[:, 0] = 3
    fake = np.zeros((n_fake, n_items), dtype=np.int64)
    for row in fake:
        row[rng.choice(n_items - 1, 8, replace=False)] = rng.integers(2, 5, 8)
        row[n_items - 1] = 5
    order = rng.permutation(n_genuine + n_fake)
    is_fake = order >= n_genuine
    return log_of(np.concatenate([genuine, fake])[order], clicks=clicks), is_fake
