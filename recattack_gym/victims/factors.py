"""The learnt arrays of a matrix factorisation: how they are made, scored, grown and saved."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_integers, counter_normal
from recattack_gym.victims.base import State, state_array
from recattack_gym.victims.schedule import INITIAL, UpdateSchedule

_BLOCK_NUMBERS = 2_000_000
"""Gathered factors, or scores, that are held at once: a few megabytes stay in the cache."""


_IS_POPULAR, _POPULAR = 17, 18
_FINE = 1 << 20


def popular_negatives(
    log: Interactions, schedule: UpdateSchedule, share: float
) -> NDArray[np.int32]:
    """Draw which examples of a fine-tuning run take a negative by popularity, and which.

    Args:
        log: The clean log; the item of a random event is drawn.
        schedule: The run.
        share: Of the examples, in `[0, 1]`.

    Returns:
        Shape `(S,)`: an item, or -1 where the schedule's uniform negative stays: for `1 - share` of the
        examples and where a genuine user has seen the item. A fake user who has clicked the item keeps
        the uniform negative, too, which only its profile can tell.
    """
    places = np.arange(len(schedule.clicks))
    wanted = counter_integers(schedule.seed, _IS_POPULAR, places, _FINE) < share * _FINE
    drawn = log.item_ids[counter_integers(schedule.seed, _POPULAR, places, len(log))]
    genuine = schedule.clicks < 0
    wanted[genuine] &= ~log.has(schedule.user_ids[genuine], drawn[genuine])
    return np.where(wanted, drawn, -1).astype(np.int32)


@dataclass(eq=False, slots=True)
class Factors:
    """Score = user factor . item factor + item bias.

    Attributes:
        users: Shape `(n_users, d)`.
        items: Shape `(n_items, d)`.
        bias: Shape `(n_items,)`; zero and fixed in models without bias.
    """

    users: NDArray[np.float32]
    items: NDArray[np.float32]
    bias: NDArray[np.float32]

    @classmethod
    def draw(
        cls, log: Interactions, embedding_size: int, scale: float, rng: np.random.Generator
    ) -> Self:
        """Draw untrained factors from `normal(0, scale)`, the items first; zero bias."""
        items = rng.standard_normal((log.n_items, embedding_size), dtype=np.float32)
        users = rng.standard_normal((log.n_users, embedding_size), dtype=np.float32)
        bias = np.zeros(log.n_items, dtype=np.float32)
        return cls(users * np.float32(scale), items * np.float32(scale), bias)

    def score(
        self, user_ids: NDArray[np.int64], item_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Score items `(U, C)` for users `(U,)`; shape `(U, C)`."""
        n_items, embedding_size = self.items.shape
        width = item_ids.shape[1]
        is_whole_catalogue = 2 * width > n_items
        per_user = n_items if is_whole_catalogue else width * embedding_size
        step = max(1, _BLOCK_NUMBERS // max(per_user, 1))
        scores = np.empty(item_ids.shape, dtype=np.float32)
        for start in range(0, len(user_ids), step):
            rows = slice(start, start + step)
            users, items = self.users[user_ids[rows]], item_ids[rows]
            if is_whole_catalogue:
                scores[rows] = np.take_along_axis(users @ self.items.T, items, axis=1)
            else:
                scores[rows] = (self.items[items] @ users[:, :, None])[:, :, 0]
        return scores + self.bias[item_ids]

    def add_fake_users(self, n_fake_users: int, seed: int, scale: float) -> None:
        """Append untrained rows that depend on `seed` alone."""
        rows = counter_normal(seed, INITIAL, (n_fake_users, self.users.shape[1]))
        self.users = np.concatenate([self.users, rows * np.float32(scale)])

    def as_state(self) -> State:
        """Return the arrays by name, not copied."""
        return {"users": self.users, "items": self.items, "bias": self.bias}

    @classmethod
    def from_state(cls, state: State, n_items: int, embedding_size: int) -> Self:
        """Take over the arrays of `as_state`.

        Raises:
            ArtifactError: If an array is missing or has another shape than a model of `n_items` and
                `embedding_size` has.
        """
        users = state_array(state, "users", (None, embedding_size))
        items = state_array(state, "items", (n_items, embedding_size))
        bias = state_array(state, "bias", (n_items,))
        return cls(*(array.astype(np.float32, copy=False) for array in (users, items, bias)))
