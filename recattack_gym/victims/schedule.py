"""Which examples a fine-tuning step trains on: one schedule that plain and compiled code both follow.

Fine-tuning runs over the fake clicks mixed with replayed genuine clicks. Everything random about it
(order, which genuine clicks are replayed, negative items) is a counter-based function of one seed, so
the schedule is data: the same for every poison set of a batch except where a set's own clicks come
in. Two sets with equal clicks therefore get equal updates, in any batch and on any thread.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_integers, counter_permutation

ORDER, REPLAY, NEGATIVE, INITIAL = 1, 2, 3, 4
"""Streams of the counter-based generator; a victim that needs more starts at 16."""

MAX_TRIES = 32
"""How often a negative that turns out to be a positive is drawn again."""


def fake_share(log: Interactions, profile: NDArray[np.int64]) -> NDArray[np.float32]:
    """Tell how far the poison decides each item: the share of its clicks that are fake.

    Fine-tuning stands for full retraining from the clean state, where the gradients of an item's genuine
    examples cancel; only the fake ones pull. The more genuine clicks an item has, the less it gives
    way, so victims scale the steps of an item by this share: 1 for a clicked new item, a hundredth for one
    with 99 genuine clicks per fake one, 0 (it rests) for an item that no fake user clicked.

    Args:
        log: The clean log.
        profile: Shape `(N, T)`.

    Returns:
        Shape `(n_items,)`.
    """
    fake = np.bincount(profile.ravel(), minlength=log.n_items)
    share: NDArray[np.float64] = fake / np.maximum(fake + log.item_popularity, 1)
    return share.astype(np.float32)


@dataclass(frozen=True, eq=False)
class UpdateSchedule:
    """The examples of one fine-tuning run of any profiles of shape `(N, T)`.

    Examples are in training order; `S` is their number over all epochs.

    Attributes:
        clicks: Shape `(S,)`: index into the flattened `(N, T)` profile, or -1 for a replayed click.
        user_ids: Shape `(S,)`: genuine users below `n_users`, fake user `f` is `n_users + f`.
        item_ids: Shape `(S,)`: the item of a replayed click, -1 for a fake click.
        negatives: Shape `(S, n_negatives)`: for replayed clicks; -1 for fake clicks, whose negatives
            depend on the profile.
        batch_indptr: Shape `(n_batches + 1,)`: batch `b` is `batch_indptr[b]:batch_indptr[b + 1]`.
        seed: What all draws are made from.
        n_items: Fake users' negatives are drawn from `[0, n_items)`, like genuine users'.
    """

    clicks: NDArray[np.int32]
    user_ids: NDArray[np.int32]
    item_ids: NDArray[np.int32]
    negatives: NDArray[np.int32]
    batch_indptr: NDArray[np.int64]
    seed: int
    n_items: int

    def examples(
        self, profile: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Fill in one poison set.

        Args:
            profile: Shape `(N, T)`.

        Returns:
            `user_ids (S,)`, `item_ids (S,)` and `negatives (S, n_negatives)`. A fake user's negative
            is uniform below `n_items` outside its own profile (after `MAX_TRIES` draws: anything).
        """
        fake = np.flatnonzero(self.clicks >= 0)
        items = self.item_ids.astype(np.int64)
        items[fake] = profile.ravel()[self.clicks[fake]]
        negatives = self.negatives.astype(np.int64)
        n_negatives = negatives.shape[1]
        own = profile[self.clicks[fake] // profile.shape[1]]  # (n_fake_examples, T)
        places = fake[:, None] * n_negatives + np.arange(n_negatives)
        drawn = np.full(places.shape, -1, dtype=np.int64)
        for attempt in range(MAX_TRIES):
            again = (drawn < 0) | (drawn[:, :, None] == own[:, None, :]).any(axis=2)
            if not again.any():
                break
            drawn[again] = counter_integers(
                self.seed, NEGATIVE, places[again] * MAX_TRIES + attempt, self.n_items
            )
        negatives[fake] = drawn
        return self.user_ids.astype(np.int64), items, negatives


def make_schedule(
    log: Interactions,
    profile_shape: tuple[int, int],
    *,
    seed: int,
    epochs: int,
    replay: float,
    batch_size: int,
    n_negatives: int,
    n_genuine_negatives: int,
) -> UpdateSchedule:
    """Lay out a fine-tuning run.

    Args:
        log: The clean log over the whole catalogue.
        profile_shape: `(N, T)`.
        seed: In `[0, 2**63)`.
        epochs: Passes over the N * T fake clicks.
        replay: Genuine clicks per fake click, drawn afresh with replacement in each epoch; where
            that reaches `len(log)` every genuine click is used exactly once per epoch.
        batch_size: Examples per gradient step; batches do not cross epochs.
        n_negatives: Negative items per example; may be 0.
        n_genuine_negatives: Negatives are drawn from `[0, n_genuine_negatives)` outside what the user
            has seen: the original catalogue, or all items.
    """
    n_fake_users, profile_size = profile_shape
    n_clicks = n_fake_users * profile_size
    n_replayed = min(round(replay * n_clicks), len(log))
    per_epoch = n_clicks + n_replayed
    clicks, users, items = ([np.zeros(0, dtype=np.int64)] for _ in range(3))  # for no epochs
    for epoch in range(epochs):
        if n_replayed == len(log):
            picked = np.arange(len(log))
        else:
            places = epoch * n_replayed + np.arange(n_replayed)
            picked = counter_integers(seed, REPLAY, places, max(len(log), 1))
        order = counter_permutation(seed, (ORDER << 32) + epoch, per_epoch)
        own = np.arange(n_clicks)
        clicks.append(np.concatenate([own, np.full(n_replayed, -1)])[order])
        users.append(
            np.concatenate([log.n_users + own // profile_size, log.user_ids[picked]])[order]
        )
        items.append(np.concatenate([np.full(n_clicks, -1), log.item_ids[picked]])[order])
    all_clicks, all_users, all_items = map(np.concatenate, (clicks, users, items))
    starts = np.arange(0, per_epoch, batch_size)
    indptr = (np.arange(epochs)[:, None] * per_epoch + starts).ravel()
    return UpdateSchedule(
        clicks=all_clicks.astype(np.int32),
        user_ids=all_users.astype(np.int32),
        item_ids=all_items.astype(np.int32),
        negatives=_genuine_negatives(
            log, all_users, all_clicks, seed, n_negatives, n_genuine_negatives
        ).astype(np.int32),
        batch_indptr=np.append(indptr, epochs * per_epoch).astype(np.int64),
        seed=seed,
        n_items=n_genuine_negatives,
    )


def _genuine_negatives(
    log: Interactions,
    users: NDArray[np.int64],
    clicks: NDArray[np.int64],
    seed: int,
    n_negatives: int,
    below: int,
) -> NDArray[np.int64]:
    negatives = np.full((len(users), n_negatives), -1, dtype=np.int64)
    genuine = np.flatnonzero(clicks < 0)
    places = genuine[:, None] * n_negatives + np.arange(n_negatives)
    owners = np.broadcast_to(users[genuine][:, None], places.shape)
    drawn = counter_integers(seed, NEGATIVE, places * MAX_TRIES, below)
    again = log.has(owners, drawn)
    for attempt in range(1, MAX_TRIES):
        if not again.any():
            break
        drawn[again] = counter_integers(seed, NEGATIVE, places[again] * MAX_TRIES + attempt, below)
        still = again.copy()
        still[again] = log.has(owners[again], drawn[again])
        again = still
    negatives[genuine] = drawn
    return negatives
