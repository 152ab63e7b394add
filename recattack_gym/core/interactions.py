"""A log of (user, item) events: the training data of every victim."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recattack_gym.core.checks import as_count, as_ids, as_numbers
from recattack_gym.core.errors import ArgumentError

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Interactions:
    """An ordered log of (user, item) events, grouped by user; immutable.

    Events are stored user by user, each user's events in order of time (or of the file). The same
    item may occur several times in one user's sequence. "Changing" a log returns a new one.

    Args:
        user_ids: Shape `(n_events,)`, in `[0, n_users)`. Need not be sorted: the events are
            grouped by user on construction and keep their order within each user.
        item_ids: Shape `(n_events,)`, in `[0, n_items)`.
        n_users: Number of users, those without events included.
        n_items: Size of the catalogue, items without events included.
        timestamps: Shape `(n_events,)`, seconds, or `None` where the source has no time.
        ratings: Shape `(n_events,)`, or `None` for clicks.

    Raises:
        ArgumentError: If a shape, dtype or id is wrong.
    """

    user_ids: NDArray[np.int64]
    item_ids: NDArray[np.int64]
    n_users: int
    n_items: int
    timestamps: NDArray[np.float64] | None = None
    ratings: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        n_users = as_count("n_users", self.n_users)
        n_items = as_count("n_items", self.n_items)
        users = as_ids("user_ids", self.user_ids, below=n_users, shape=(None,))
        items = as_ids("item_ids", self.item_ids, below=n_items, shape=(len(users),))
        order = None if bool(np.all(users[1:] >= users[:-1])) else np.argsort(users, kind="stable")
        columns: dict[str, NDArray[np.int64] | NDArray[np.float64] | None] = {
            "user_ids": users,
            "item_ids": items,
            "timestamps": _as_column("timestamps", self.timestamps, len(users)),
            "ratings": _as_column("ratings", self.ratings, len(users)),
        }
        for name, column in columns.items():
            if column is None:
                continue
            column = column.copy() if order is None else column[order]
            column.flags.writeable = False
            object.__setattr__(self, name, column)
        object.__setattr__(self, "n_users", n_users)
        object.__setattr__(self, "n_items", n_items)

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.user_ids)

    @cached_property
    def indptr(self) -> NDArray[np.int64]:
        """Shape `(n_users + 1,)`: user `u`'s events are `indptr[u]:indptr[u + 1]`."""
        return _frozen(np.searchsorted(self.user_ids, np.arange(self.n_users + 1)).astype(np.int64))

    @cached_property
    def item_popularity(self) -> NDArray[np.int64]:
        """Shape `(n_items,)`: how many events each item has, repeats included."""
        return _frozen(np.bincount(self.item_ids, minlength=self.n_items).astype(np.int64))

    @cached_property
    def seen(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The distinct items of each user in CSR form: `(indptr (n_users + 1,), item_ids sorted)`."""
        keys = np.unique(self.user_ids * np.int64(self.n_items) + self.item_ids)
        users, items = np.divmod(keys, self.n_items)
        indptr = np.searchsorted(users, np.arange(self.n_users + 1)).astype(np.int64)
        return _frozen(indptr), _frozen(items.astype(np.int32))

    @cached_property
    def content_hash(self) -> str:
        """A hex digest of everything in the log; equal logs have equal hashes."""
        digest = hashlib.sha256(f"interactions-1 {self.n_users} {self.n_items}".encode())
        for column in (self.user_ids, self.item_ids, self.timestamps, self.ratings):
            digest.update(b"-" if column is None else np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def items_of(self, user_id: int) -> NDArray[np.int64]:
        """Return the item sequence of one user, oldest first; shape `(n_events_of_user,)`."""
        return self.item_ids[self.indptr[user_id] : self.indptr[user_id + 1]]

    def has(self, user_ids: ArrayLike, item_ids: ArrayLike) -> NDArray[np.bool_]:
        """Tell which (user, item) pairs are in the log; the arguments broadcast."""
        users, items = np.broadcast_arrays(np.asarray(user_ids), np.asarray(item_ids))
        keys = users.astype(np.int64) * self.n_items + items
        known = self._seen_keys
        position = np.searchsorted(known, keys)
        found = np.zeros(keys.shape, dtype=np.bool_)
        inside = position < len(known)
        found[inside] = known[position[inside]] == keys[inside]
        return found

    @cached_property
    def _seen_keys(self) -> NDArray[np.int64]:
        indptr, items = self.seen
        users = np.repeat(np.arange(self.n_users, dtype=np.int64), np.diff(indptr))
        return users * self.n_items + items

    def with_catalogue(self, n_items: int) -> Self:
        """Return the same log over a larger catalogue; the added items have no events.

        Raises:
            ArgumentError: If `n_items` is smaller than the present catalogue.
        """
        if as_count("n_items", n_items) < self.n_items:
            raise ArgumentError(
                f"n_items must be >= {self.n_items} (the present size), got {n_items}"
            )
        return replace(self, n_items=n_items)

    def with_fake_users(
        self, profiles: NDArray[np.int64], ratings: NDArray[np.float64] | None = None
    ) -> Self:
        """Return the log after injection: fake users get the ids `n_users ... n_users + N - 1`.

        Args:
            profiles: Item ids, shape `(n_fake_users, profile_size)`, in `[0, n_items)`.
            ratings: Of a rated log, what the fake users give, shape as `profiles`, on the log's own scale:
                from its smallest to its largest rating. `None` takes each click for the largest.

        Returns:
            A log without timestamps, since a fake click has none; with ratings if this log has them.

        Raises:
            ArgumentError: If an item, a rating or a shape is wrong, or this log has no ratings.
        """
        clicks = as_ids("profiles", profiles, below=self.n_items, shape=(None, None))
        n_fake_users, profile_size = clicks.shape
        fake_ids = np.repeat(np.arange(n_fake_users, dtype=np.int64) + self.n_users, profile_size)
        fake_ratings = self._fake_ratings(clicks.shape, ratings)
        return replace(
            self,
            user_ids=np.concatenate([self.user_ids, fake_ids]),
            item_ids=np.concatenate([self.item_ids, clicks.ravel()]),
            n_users=self.n_users + n_fake_users,
            timestamps=None,
            ratings=None
            if self.ratings is None or fake_ratings is None
            else np.concatenate([self.ratings, fake_ratings.ravel()]),
        )

    def _fake_ratings(
        self, shape: tuple[int, ...], ratings: NDArray[np.float64] | None
    ) -> NDArray[np.float64] | None:
        if self.ratings is None or len(self) == 0:
            if ratings is not None:
                raise ArgumentError(
                    "ratings must be None for a log that has none of its own, whose scale they would need"
                )
            return None
        low, high = float(self.ratings.min()), float(self.ratings.max())
        if ratings is None:
            return np.full(shape, high)
        given = as_numbers("ratings", ratings)
        if given.shape != shape:
            raise ArgumentError(f"ratings must have shape {shape}, got {given.shape}")
        bad = (given < low) | (given > high)
        if bad.any():
            raise ArgumentError(
                f"ratings must lie on the log's scale, [{low:g}, {high:g}], got {given[bad][0]:g}"
            )
        return given

    def select(self, keep: NDArray[np.bool_]) -> Self:
        """Return the log with only the events where `keep`, shape `(n_events,)`, is true."""
        if keep.shape != self.user_ids.shape or keep.dtype != np.bool_:
            raise ArgumentError(
                f"keep must be a bool array of shape {self.user_ids.shape}, got {keep.dtype} {keep.shape}"
            )
        return replace(
            self,
            user_ids=self.user_ids[keep],
            item_ids=self.item_ids[keep],
            timestamps=None if self.timestamps is None else self.timestamps[keep],
            ratings=None if self.ratings is None else self.ratings[keep],
        )


def _as_column(name: str, values: object, length: int) -> NDArray[np.float64] | None:
    if values is None:
        return None
    column = as_numbers(name, values)
    if column.shape != (length,):
        raise ArgumentError(f"{name} must have shape ({length},), got {column.shape}")
    return column


def _frozen(array: NDArray[Scalar]) -> NDArray[Scalar]:
    array.flags.writeable = False
    return array
