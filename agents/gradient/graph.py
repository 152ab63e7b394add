"""Who clicked what, as the two-sided graph along which representations and gradients travel."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recattack_gym.core.checks import as_ids
from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.interactions import Interactions


@dataclass(frozen=True, eq=False)
class InteractionGraph:
    """Distinct (user, item) pairs of genuine and fake users; immutable.

    Rows of everything that lives on the graph are users first, genuine before fake ones, then items.

    Args:
        indptr: User `u`'s items are `items[indptr[u]:indptr[u + 1]]`; shape `(n_users + 1,)`.
        items: Ascending and distinct within a user, shape `(n_edges,)`, in `[0, n_items)`.
        n_items: Size of the catalogue.
        n_genuine: Users `[0, n_genuine)` are genuine, those that follow are fake.

    Raises:
        ArgumentError: If the arrays are no such graph.
    """

    indptr: NDArray[np.int64]
    items: NDArray[np.int32]
    n_items: int
    n_genuine: int

    def __post_init__(self) -> None:
        indptr = np.asarray(self.indptr, dtype=np.int64)
        items = as_ids("items", self.items, below=self.n_items, shape=(None,)).astype(np.int32)
        if (
            indptr.ndim != 1
            or indptr[0] != 0
            or indptr[-1] != len(items)
            or np.diff(indptr).min(initial=0) < 0
        ):
            raise ArgumentError(
                f"indptr must rise from 0 to the number of items, {len(items)}, got {indptr}"
            )
        if not 0 <= self.n_genuine < len(indptr):
            raise ArgumentError(
                f"n_genuine must lie in [0, {len(indptr) - 1}], got {self.n_genuine}"
            )
        object.__setattr__(self, "indptr", indptr)
        object.__setattr__(self, "items", items)

    @classmethod
    def of(
        cls,
        log: Interactions,
        profiles: Sequence[NDArray[np.int64]] | NDArray[np.int64] = (),
        *,
        n_items: int | None = None,
    ) -> "InteractionGraph":
        """Return the graph of a log and of the fake users that follow its users.

        Args:
            log: Genuine events; repeats count once.
            profiles: Items of each fake user, of any lengths; repeats count once.
            n_items: Size of the catalogue, `None` for the log's.
        """
        n_items = log.n_items if n_items is None else n_items
        indptr, items = log.seen
        fakes = [
            np.unique(as_ids("profiles", each, below=n_items, shape=(None,))) for each in profiles
        ]
        ends = indptr[-1] + np.cumsum([len(each) for each in fakes], dtype=np.int64)
        return cls(
            np.concatenate([indptr, ends]),
            np.concatenate([items, *fakes]).astype(np.int32),
            n_items,
            log.n_users,
        )

    @property
    def n_users(self) -> int:
        """Genuine and fake users."""
        return len(self.indptr) - 1

    @property
    def n_rows(self) -> int:
        """Users and items."""
        return self.n_users + self.n_items

    @property
    def n_edges(self) -> int:
        """Pairs, each counted once."""
        return len(self.items)

    @cached_property
    def degrees(self) -> NDArray[np.int64]:
        """Pairs of each row, shape `(n_rows,)`."""
        of_items = np.bincount(self.items, minlength=self.n_items)
        return np.concatenate([np.diff(self.indptr), of_items]).astype(np.int64)

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """`1 / sqrt(deg(u) deg(i))` of each pair, shape `(n_edges,)`."""
        users = np.repeat(np.arange(self.n_users), np.diff(self.indptr))
        degrees = self.degrees
        return 1.0 / np.sqrt(degrees[users] * degrees[self.n_users + self.items].astype(np.float64))

    @cached_property
    def transposed(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
        """The same pairs by item: `(indptr (n_items + 1,), users (n_edges,), edges (n_edges,))`.

        `edges` says where each pair is in `items` and `weights`.
        """
        numbers = np.arange(self.n_edges, dtype=np.int64)
        shape = (self.n_users, self.n_items)
        by_item = csr_matrix((numbers, self.items, self.indptr), shape=shape).tocsc()
        return by_item.indptr.astype(np.int64), by_item.indices.astype(np.int32), by_item.data

    def adjacency(self) -> csr_matrix:
        """Return the symmetric-normalised adjacency, shape `(n_rows, n_rows)`, in double precision."""
        users = np.repeat(np.arange(self.n_users), np.diff(self.indptr))
        items = self.n_users + self.items.astype(np.int64)
        rows, columns = np.concatenate([users, items]), np.concatenate([items, users])
        weights = np.concatenate([self.weights, self.weights])
        return csr_matrix((weights, (rows, columns)), shape=(self.n_rows, self.n_rows))
