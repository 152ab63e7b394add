"""What MF-BCE's fine-tuning trains on, and the clean run that it follows.

The shared schedule of the factorisations (`factors`) takes its examples at the rates of clean training as
long as there is one negative per click. Here there are several, the first of which may be drawn by
popularity, so every negative is an example of its own and has a rate of its own.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_integers, counter_normal, counter_permutation
from recattack_gym.victims.base import State, state_array
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.schedule import MAX_TRIES, NEGATIVE, ORDER

CLICK, FIRST, OTHER, FRESH, PUSHED = range(5)
"""Kinds of examples; see `LogisticSchedule.kinds`."""

COINS = 1 << 20
"""Whether a draw is by popularity is one of so many numbers being small."""

_FRESH_USER, _FRESH_ITEM, _PUSHED_USER, _PUSHED_CLICK, _FIRST_ROWS = 22, 23, 24, 25, 26
_SPAN = 1 << 31


@dataclass(frozen=True, eq=False, slots=True)
class LogisticSchedule:
    """The examples of one fine-tuning run of MF-BCE, for any profiles of shape `(N, T)`.

    An example is a user, an item and a label. `S` is their number over all epochs, in training order.

    Attributes:
        user_ids: Shape `(S,)`: genuine users below `n_users`, fake user `f` is `n_users + f`.
        kinds: Shape `(S,)`: `CLICK` of a fake user; `FIRST` negative of that click, which may be drawn by
            popularity; `OTHER` negative of it, uniform; a genuine user's uniform negative that falls on a
            `FRESH` item; a genuine user's negative by popularity that falls on a fake click, which has
            `PUSHED` the item. All but clicks have label 0.
        clicks: Shape `(S,)`: index into the flattened profile of the fake click that is meant, or -1.
        item_ids: Shape `(S,)`: the item of a `FRESH` example; -1 for others, whose item the profile decides.
        batch_indptr: Shape `(n_batches + 1,)`; batches do not cross epochs.
        waypoints: Shape `(n_batches,)`: the state of the clean run (`CleanRun`) that a batch meets.
        seed: What all draws are made from.
        below: Uniform negatives are drawn from `[0, below)`.
        popular_negatives: Share of the `FIRST` negatives that take the item of a random event.
    """

    user_ids: NDArray[np.int32]
    kinds: NDArray[np.int8]
    clicks: NDArray[np.int32]
    item_ids: NDArray[np.int32]
    batch_indptr: NDArray[np.int64]
    waypoints: NDArray[np.int64]
    seed: int
    below: int
    popular_negatives: float

    def examples(
        self, log: Interactions, profile: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Fill in one poison set.

        Args:
            log: The clean log.
            profile: Shape `(N, T)`.

        Returns:
            Users, items and labels, `(S,)` each. An item of -1 is no example: the genuine user has seen the
            item that was pushed, so draws another one, and the rates count that in.
        """
        users, clicked = self.user_ids.astype(np.int64), profile.ravel()
        items = self.item_ids.astype(np.int64)
        by_profile = np.isin(self.kinds, (CLICK, PUSHED))
        items[by_profile] = clicked[self.clicks[by_profile]]
        pushed = np.flatnonzero(self.kinds == PUSHED)
        items[pushed[log.has(users[pushed], items[pushed])]] = -1
        drawn = np.flatnonzero(np.isin(self.kinds, (FIRST, OTHER)))
        own = profile[self.clicks[drawn] // profile.shape[1]]  # (n_drawn, T)
        items[drawn] = self._fake_negatives(drawn, own, np.concatenate([log.item_ids, clicked]))
        return users, items, (self.kinds == CLICK).astype(np.float32)

    def _fake_negatives(
        self, places: NDArray[np.int64], own: NDArray[np.int64], events: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Draw items outside fake users' own profiles (after `MAX_TRIES` draws: anything), as `_fit` does."""
        limit = np.where(
            self.kinds[places] == FIRST, np.int64(self.popular_negatives * COINS), np.int64(0)
        )
        drawn = np.full(len(places), -1, dtype=np.int64)
        again = np.ones(len(places), dtype=np.bool_)
        for attempt in range(MAX_TRIES):
            counters = 2 * (places[again] * MAX_TRIES + attempt)
            is_popular = counter_integers(self.seed, NEGATIVE, counters + 1, COINS) < limit[again]
            drawn[again] = np.where(
                is_popular,
                events[counter_integers(self.seed, NEGATIVE, counters, len(events))],
                counter_integers(self.seed, NEGATIVE, counters, self.below),
            )
            again = (own == drawn[:, None]).any(axis=1)
            if not again.any():
                break
        return drawn


def negative_rates(
    log: Interactions,
    *,
    n_negatives: int,
    popular_negatives: float,
    below: int,
    n_clicks: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how often an epoch of full retraining makes an item that a genuine user has not seen a negative.

    The first negative of each event takes, with probability `popular_negatives`, the item of one of
    `len(log) + n_clicks` events, and otherwise one of `below` items; the other negatives are uniform. What
    the user has seen is drawn again, which makes everything else more likely. The fake clicks are
    left out of how likely that is.

    Args:
        log: The clean log.
        n_negatives: Per click.
        popular_negatives: Share of the first negatives that are drawn by popularity.
        below: Uniform negatives are drawn from `[0, below)`.
        n_clicks: Fake clicks, N * T.

    Returns:
        Two arrays of shape `(n_users,)`: the expected number of uniform draws of one particular item, and of
        draws by popularity that fall on one particular event, such as a fake click.
    """
    indptr, seen = log.seen
    owners = np.repeat(np.arange(log.n_users), np.diff(indptr))
    n_events, n_all = np.bincount(log.user_ids, minlength=log.n_users), max(len(log) + n_clicks, 1)
    n_seen = np.bincount(owners, weights=seen < below, minlength=log.n_users)
    popularity = np.bincount(owners, weights=log.item_popularity[seen], minlength=log.n_users)
    least = 1.0 / MAX_TRIES  # who has seen nearly everything gives up after that many draws
    seen_uniform, seen_popular = n_seen / max(below, 1), popularity / n_all
    unseen = np.maximum(1.0 - seen_uniform, least)
    first = np.maximum(
        1.0 - popular_negatives * seen_popular - (1.0 - popular_negatives) * seen_uniform, least
    )
    per_event = ((1.0 - popular_negatives) / first + (n_negatives - 1) / unseen) / max(below, 1)
    return n_events * per_event, n_events * popular_negatives / first / n_all


def make_logistic_schedule(
    log: Interactions,
    profile_shape: tuple[int, int],
    *,
    seed: int,
    epochs: int,
    replay: float,
    batch_size: int,
    n_negatives: int,
    popular_negatives: float,
    n_new_items: int,
    below: int,
    n_waypoints: int,
) -> LogisticSchedule:
    """Lay out a fine-tuning run.

    Args:
        log: The clean log over the whole catalogue.
        profile_shape: `(N, T)`.
        seed: In `[0, 2**63)`.
        epochs: Passes over the N * T fake clicks.
        replay: How many of the genuine users' negatives there are per one that full retraining has.
        batch_size: Fake clicks (with their negatives) and genuine negatives per gradient step.
        n_negatives: Per fake click.
        popular_negatives: Share of first negatives that are drawn by popularity, in `[0, 1]`.
        n_new_items: How many of the last items are new. Those without a click are fresh.
        below: Uniform negatives are drawn from `[0, below)`.
        n_waypoints: States of the clean run that are followed.
    """
    n_fake_users, profile_size = profile_shape
    n_clicks = n_fake_users * profile_size
    uniform, popular = negative_rates(
        log,
        n_negatives=n_negatives,
        popular_negatives=popular_negatives,
        below=below,
        n_clicks=n_clicks,
    )
    fresh = fresh_items(log, n_new_items)
    fresh = fresh[fresh < below]
    until = np.arange(epochs + 1)
    n_fresh, n_pushed = (
        np.diff(np.floor(until * rate).astype(np.int64))  # rounded over the run, not in each epoch
        for rate in (replay * len(fresh) * uniform.sum(), replay * n_clicks * popular.sum())
    )
    places = np.arange(n_fresh.sum())
    fresh_users = _weighted(uniform, counter_integers(seed, _FRESH_USER, places, _SPAN))
    fresh_ids = fresh[counter_integers(seed, _FRESH_ITEM, places, max(len(fresh), 1))]
    places = np.arange(n_pushed.sum())
    pushed_users = _weighted(popular, counter_integers(seed, _PUSHED_USER, places, _SPAN))
    pushed_clicks = counter_integers(seed, _PUSHED_CLICK, places, max(n_clicks, 1))

    own = np.repeat(np.arange(n_clicks), n_negatives + 1)
    own_kinds = np.tile([CLICK, FIRST, *[OTHER] * (n_negatives - 1)], n_clicks)
    columns: list[NDArray[np.int64]] = []  # users, kinds, clicks, items
    starts: list[NDArray[np.int64]] = []
    waypoints: list[NDArray[np.int64]] = []
    n_before = 0
    for epoch in range(epochs):
        a = slice(n_fresh[:epoch].sum(), n_fresh[: epoch + 1].sum())
        b = slice(n_pushed[:epoch].sum(), n_pushed[: epoch + 1].sum())
        n_a, n_b = int(n_fresh[epoch]), int(n_pushed[epoch])
        rows = np.stack(
            [
                np.concatenate(
                    [log.n_users + own // profile_size, fresh_users[a], pushed_users[b]]
                ),
                np.concatenate([own_kinds, np.full(n_a, FRESH), np.full(n_b, PUSHED)]),
                np.concatenate([own, np.full(n_a, -1), pushed_clicks[b]]),
                np.concatenate([np.full(len(own), -1), fresh_ids[a], np.full(n_b, -1)]),
            ]
        )
        # a click and its negatives stay together, like in clean training
        units = np.concatenate([own, n_clicks + np.arange(n_a + n_b)])
        n_units = n_clicks + n_a + n_b
        rank = np.empty(n_units, dtype=np.int64)
        rank[counter_permutation(seed, (ORDER << 32) + epoch, n_units)] = np.arange(n_units)
        order = np.argsort(rank[units], kind="stable")
        columns.append(rows[:, order])
        first_of_unit = np.searchsorted(rank[units][order], np.arange(0, n_units, batch_size))
        starts.append(n_before + first_of_unit)
        waypoints.append(np.full(len(first_of_unit), int((epoch + 0.5) * n_waypoints / epochs)))
        n_before += len(units)
    users, kinds, clicks, items = np.concatenate(
        [np.zeros((4, 0), dtype=np.int64), *columns], axis=1
    )
    return LogisticSchedule(
        user_ids=users.astype(np.int32),
        kinds=kinds.astype(np.int8),
        clicks=clicks.astype(np.int32),
        item_ids=items.astype(np.int32),
        batch_indptr=np.concatenate([*starts, [n_before]]).astype(np.int64),
        waypoints=np.concatenate([np.zeros(0, dtype=np.int64), *waypoints]),
        seed=seed,
        below=below,
        popular_negatives=popular_negatives,
    )


def _weighted(weights: NDArray[np.float64], draws: NDArray[np.int64]) -> NDArray[np.int64]:
    """Turn draws below `_SPAN` into indices of weights, in proportion to these."""
    if len(draws) == 0:
        return draws
    total = np.cumsum(weights)
    places: NDArray[np.int64] = np.searchsorted(total, (draws + 0.5) / _SPAN * total[-1])
    return places


def fresh_items(log: Interactions, n_new_items: int) -> NDArray[np.int64]:
    """Return the new items that nobody has clicked: with poison, full retraining learns them anew."""
    new: NDArray[np.int64] = np.arange(log.n_items - n_new_items, log.n_items)
    is_fresh: NDArray[np.bool_] = log.item_popularity[new] == 0
    return new[is_fresh]


def first_item_rows(seed: int, n: int, embedding_size: int, scale: float) -> NDArray[np.float32]:
    """Return untrained rows of fresh items that depend on `seed` alone; shape `(n, embedding_size)`."""
    return counter_normal(seed, _FIRST_ROWS, (n, embedding_size)) * np.float32(scale)


@dataclass(eq=False, slots=True)
class CleanRun:
    """What clean training went through: its parameters at W waypoints.

    Attributes:
        users: Shape `(n_users, W, d)`.
        items: Shape `(n_items, W, d)`.
        bias: Shape `(n_items, W)`.
    """

    users: NDArray[np.float32]
    items: NDArray[np.float32]
    bias: NDArray[np.float32]

    @staticmethod
    def epochs(n_waypoints: int, n_epochs: int) -> list[int]:
        """Return after how many epochs the waypoints are: in the middle of each of W equal parts."""
        return [int((w + 0.5) * n_epochs / n_waypoints) for w in range(n_waypoints)]

    @classmethod
    def of(cls, states: list[Factors]) -> Self:
        """Stack the parameters at each waypoint."""
        users, items, bias = (
            np.stack([getattr(state, name) for state in states], axis=1)
            for name in ("users", "items", "bias")
        )
        return cls(users, items, bias)

    def after(self, factors: Factors, clicked: NDArray[np.int64]) -> "CleanRun":
        """Return the run of a poisoned model: what the poison has decided stands where it ended.

        Args:
            factors: The poisoned model, fake users last.
            clicked: Items that fake users have clicked.
        """
        n_users, n_waypoints, _ = self.users.shape
        fakes = np.repeat(factors.users[n_users:, None], n_waypoints, axis=1)
        items, bias = self.items.copy(), self.bias.copy()
        items[clicked] = factors.items[clicked, None]
        bias[clicked] = factors.bias[clicked, None]
        return CleanRun(np.concatenate([self.users, fakes]), items, bias)

    def as_state(self) -> State:
        """Return the arrays by name, not copied."""
        return {"past_users": self.users, "past_items": self.items, "past_bias": self.bias}

    @classmethod
    def from_state(cls, state: State, factors: Factors, n_waypoints: int) -> Self:
        """Take over the arrays of `as_state`.

        Raises:
            ArtifactError: If an array is missing or does not fit the factors and `n_waypoints`.
        """
        shapes = (factors.users.shape, factors.items.shape, factors.bias.shape)
        names = ("past_users", "past_items", "past_bias")
        return cls(
            *(
                state_array(state, name, (shape[0], n_waypoints, *shape[1:])).astype(
                    np.float32, copy=False
                )
                for name, shape in zip(names, shapes, strict=True)
            )
        )
