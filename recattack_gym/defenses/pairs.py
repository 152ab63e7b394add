"""Who has what: the distinct (user, item) pairs of a log, which is what profile detectors look at."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.interactions import Interactions

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


@dataclass(frozen=True, eq=False)
class UserItems:
    """Distinct pairs in order of user, then item; where a user rates an item twice the last counts.

    Args:
        user_ids: Shape `(n_pairs,)`.
        item_ids: Shape `(n_pairs,)`.
        ratings: Shape `(n_pairs,)`, or `None` for clicks.
        n_users: Rows of the matrix.
        n_items: Columns of the matrix.
    """

    user_ids: NDArray[np.int64]
    item_ids: NDArray[np.int64]
    ratings: NDArray[np.float64] | None
    n_users: int
    n_items: int

    @classmethod
    def of(cls, log: Interactions) -> "UserItems":
        """Return the pairs of a log."""
        keys = log.user_ids * np.int64(log.n_items) + log.item_ids
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        is_last = np.ones(len(ordered), dtype=np.bool_)
        is_last[:-1] = ordered[1:] != ordered[:-1]
        kept = order[is_last]
        ratings = None if log.ratings is None else log.ratings[kept]
        return cls(log.user_ids[kept], log.item_ids[kept], ratings, log.n_users, log.n_items)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Items of each user, n_u; shape `(n_users,)`."""
        return np.bincount(self.user_ids, minlength=self.n_users)

    @cached_property
    def n_raters(self) -> NDArray[np.int64]:
        """Users of each item, NR_i; shape `(n_items,)`."""
        return np.bincount(self.item_ids, minlength=self.n_items)

    @cached_property
    def popularity(self) -> NDArray[np.int64]:
        """NR_i of each pair; shape `(n_pairs,)`."""
        return self.n_raters[self.item_ids]

    @property
    def given(self) -> NDArray[np.float64]:
        """The ratings, shape `(n_pairs,)`.

        Raises:
            ArgumentError: If these are clicks.
        """
        if self.ratings is None:
            raise ArgumentError("pairs must have ratings, got clicks")
        return self.ratings

    @cached_property
    def item_means(self) -> NDArray[np.float64]:
        """Mean rating of each item over all its raters; 0 without any. Shape `(n_items,)`."""
        sums = sums_by(self.item_ids, self.given, self.n_items)
        return sums / np.maximum(self.n_raters, 1)

    @cached_property
    def deviations(self) -> NDArray[np.float64]:
        """|r_ui - mean of the item| of each pair; shape `(n_pairs,)`."""
        return np.abs(self.given - self.item_means[self.item_ids])

    @property
    def scale(self) -> tuple[float, float]:
        """The smallest and the largest rating that anybody gives."""
        return float(self.given.min()), float(self.given.max())

    def user_sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return sums over each user's pairs, shape `(n_users,)`."""
        return sums_by(self.user_ids, values, self.n_users)

    def user_means(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return means over each user's pairs, 0 without any; shape `(n_users,)`."""
        return self.user_sums(values) / np.maximum(self.lengths, 1)

    def matrix(self, values: NDArray[np.float64] | None = None) -> "csr_matrix":
        """Return pairs as a sparse matrix `(n_users, n_items)` of some values, by default ones."""
        from scipy.sparse import csr_matrix

        data = np.ones(len(self.user_ids)) if values is None else np.asarray(values, dtype=float)
        indptr = np.concatenate([[0], np.cumsum(self.lengths)])
        return csr_matrix((data, self.item_ids, indptr), shape=(self.n_users, self.n_items))


def sums_by(ids: NDArray[np.int64], values: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Return the sum of the values of each id, shape `(n,)`."""
    return np.bincount(ids, values, n).astype(np.float64, copy=False)
