"""The learnt arrays of a matrix factorisation: how they are made, scored, grown and saved."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_real
from recattack_gym.core.errors import StateError
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_integers, counter_normal
from recattack_gym.victims.base import GradientConfig, State, Victim, state_array
from recattack_gym.victims.schedule import INITIAL, UpdateSchedule, make_schedule

if TYPE_CHECKING:
    import torch

_BLOCK_NUMBERS = 2_000_000
"""Gathered factors, or scores, that are held at once: a few megabytes stay in the cache."""


_IS_POPULAR, _POPULAR, _IS_PUSHED, _PUSHED, _NEW = 17, 18, 19, 20, 21
_FINE = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class FactorConfig(GradientConfig):
    """Settings that matrix factorisations share."""

    initial_scale: float = 0.1
    """Standard deviation of untrained factors."""

    def __post_init__(self) -> None:
        GradientConfig.__post_init__(self)
        as_real("initial_scale", self.initial_scale, above=0.0)


@dataclass(frozen=True, eq=False, slots=True)
class FactorSchedule:
    """The examples of one fine-tuning run of a factorisation, for any profiles of shape `(N, T)`.

    Full retraining learns a fake-clicked item from the fake clicks and from the negatives of genuine
    users that fall on it. Both are here at the rate of clean training; everything else that full
    retraining visits leaves the item as it was.

    Attributes:
        updates: Fake clicks, and genuine ones that stand for the negatives.
        popular: Shape `(S,)`: the first negative of a fake click if it is drawn by popularity, or -1. A
            fake user who has clicked that item keeps the uniform negative.
        pushed: Shape `(S,)`: the fake click, an index into the flattened profile, whose item is the first
            negative of a genuine one, or -1. A user who has seen that item keeps the other negative.
    """

    updates: UpdateSchedule
    popular: NDArray[np.int32]
    pushed: NDArray[np.int32]

    def examples(
        self, log: Interactions, profile: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Fill in one poison set.

        Args:
            log: The clean log.
            profile: Shape `(N, T)`.

        Returns:
            `user_ids (S,)`, `item_ids (S,)` and `negatives (S, n_negatives)`.
        """
        users, items, negatives = self.updates.examples(profile)
        first = negatives[:, 0]  # written to below
        fake = np.flatnonzero(self.popular >= 0)
        own = profile[self.updates.clicks[fake] // profile.shape[1]]
        fake = fake[(own != self.popular[fake, None]).all(axis=1)]
        first[fake] = self.popular[fake]
        genuine = np.flatnonzero(self.pushed >= 0)
        item = profile.ravel()[self.pushed[genuine]]
        unseen = ~log.has(users[genuine], item)
        first[genuine[unseen]] = item[unseen]
        return users, items, negatives


def make_factor_schedule(
    log: Interactions,
    profile_shape: tuple[int, int],
    config: GradientConfig,
    *,
    seed: int,
    n_negatives: int,
    popular_negatives: float,
    n_new_items: int,
) -> FactorSchedule:
    """Lay out a fine-tuning run.

    Args:
        log: The clean log over the whole catalogue.
        profile_shape: `(N, T)`.
        config: Epochs, batches, whether new items are negatives, and how many genuine examples.
        seed: In `[0, 2**63)`.
        n_negatives: Negatives per click.
        popular_negatives: Share of (first) negatives that are drawn by popularity, in `[0, 1]`: in full
            retraining an item becomes that more often a genuine user's negative with each fake click.
        n_new_items: How many of the last items are new; uniform negatives fall on them, if at all, in
            proportion to their number.
    """
    n_clicks = profile_shape[0] * profile_shape[1]
    by_clicks = popular_negatives * n_clicks * len(log) / (len(log) + n_clicks)
    by_chance = 0.0
    if config.new_items_as_negatives:
        by_chance = (1.0 - popular_negatives) * len(log) * n_new_items / log.n_items
    rate = by_clicks + by_chance
    updates = make_schedule(
        log,
        profile_shape,
        seed=seed,
        epochs=config.finetune_epochs,
        replay=config.finetune_replay * rate / n_clicks,
        batch_size=config.finetune_batch_size,
        n_negatives=n_negatives,
        n_genuine_negatives=config.negatives_below(log.n_items, n_new_items),
    )
    places, fake = np.arange(len(updates.clicks)), updates.clicks >= 0
    is_popular = counter_integers(seed, _IS_POPULAR, places, _FINE) < popular_negatives * _FINE
    popular = log.item_ids[counter_integers(seed, _POPULAR, places, len(log))]
    is_pushed = counter_integers(seed, _IS_PUSHED, places, _FINE) * rate < by_clicks * _FINE
    pushed = counter_integers(seed, _PUSHED, places, n_clicks)
    new = (
        log.n_items
        - n_new_items
        + counter_integers(
            seed,
            _NEW,
            np.arange(updates.negatives.size).reshape(-1, n_negatives),
            max(n_new_items, 1),
        )
    )
    by_chance_only = ~fake & ~is_pushed
    negatives = np.where(by_chance_only[:, None], new, updates.negatives).astype(np.int32)
    return FactorSchedule(
        replace(updates, negatives=negatives),
        np.where(fake & is_popular, popular, -1).astype(np.int32),
        np.where(~fake & is_pushed, pushed, -1).astype(np.int32),
    )


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


def hold_back(share: "torch.Tensor", *items: "torch.Tensor") -> None:
    """Scale the gradients of a fine-tuning step in place, so that items move as the poison decides.

    Args:
        share: `fake_share`, shape `(n_items,)`.
        items: Of shape `(n_items, d)` or `(n_items,)`, with gradients.
    """
    for tensor in items:
        if tensor.grad is None:
            raise StateError("hold_back needs gradients: call it after backward()")
        tensor.grad *= share.reshape(-1, *[1] * (tensor.dim() - 1))


class FactorVictim(Victim):
    """What matrix factorisations share: their state is `Factors`, and these score.

    Fine-tuning is full retraining restricted to what the poison decides. Fake users' factors are trained
    from scratch; a clicked item moves by steps scaled with `fake_share`; other items rest, as their clicks
    outnumber the fake ones and their gradients cancel in the clean state. The examples are the fake
    clicks and, at the rate of clean training, the negatives of genuine users that fall on clicked
    items (`FactorSchedule`); genuine users move by these alone.

    What is left out is how genuine clicks pull back, so agreement with full retraining is worse where the
    poison is a per cent of the log or more; and the negatives of an existing item that has no click, so
    that such an item is promoted too easily. `docs/benchmarks.md` has the figures.
    """

    config: FactorConfig
    _factors: Factors

    @property
    def _n_genuine_negatives(self) -> int:
        return self.config.negatives_below(self.log.n_items, self.n_new_items)

    def _score(
        self, user_ids: NDArray[np.int64], item_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        return self._factors.score(user_ids, item_ids)

    def _state(self) -> State:
        return self._factors.as_state()

    def _set_state(self, state: State) -> None:
        self._factors = Factors.from_state(state, self.log.n_items, self.config.embedding_size)
