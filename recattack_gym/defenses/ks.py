"""A statistical test as detector: does a user choose items as the others do?"""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.defenses.base import Detector
from recattack_gym.defenses.pairs import UserItems


class KSPopularity(Detector):
    """Suspect users whose items are distributed over popularity unlike those of all users.

    The statistic of Kolmogorov and Smirnov, times the root of the number of items: the largest distance
    between the share of a user's items, and the share of all users', that have at most so many users. It
    needs no training and sees items that are too popular as well as too rare ones, but tastes for the rare
    too.

    Differs from the paper: Li, Wang, Singh and Vorobeychik, NIPS 2016, section 5, ask with a paired t-test
    over items whether fake profiles look genuine. Over shares of users who rate an item its t depends on
    how long profiles are, and on nothing else, so that as a detector it would find long and short profiles.
    """

    name = "ks-popularity"

    def _scores(self, log: Interactions) -> NDArray[np.float64]:
        return ks_statistic(UserItems.of(log))


def ks_statistic(pairs: UserItems) -> NDArray[np.float64]:
    """Return `sqrt(n_u) * max |F_u - F|` of item popularity, of users against all pairs; `(n_users,)`."""
    values, place, counts = np.unique(pairs.popularity, return_inverse=True, return_counts=True)
    up_to = np.cumsum(counts) / max(len(place), 1)  # share of all pairs at or below each value
    below = up_to - counts / max(len(place), 1)
    order = np.lexsort((place, pairs.user_ids))
    users, place = pairs.user_ids[order], place[order]
    lengths = np.maximum(pairs.lengths, 1)
    rank = np.arange(len(users)) - (np.cumsum(pairs.lengths) - pairs.lengths)[users]
    key = users * len(values) + place
    first = np.searchsorted(key, key, side="left") - np.arange(len(users)) + rank
    last = np.searchsorted(key, key, side="right") - np.arange(len(users)) + rank
    distance = np.maximum(
        np.abs(last / lengths[users] - up_to[place]), np.abs(first / lengths[users] - below[place])
    )
    largest = np.zeros(pairs.n_users)
    np.maximum.at(largest, users, distance)
    return largest * np.sqrt(pairs.lengths)
