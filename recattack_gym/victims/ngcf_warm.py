"""The BPR stage of NGCF in fine-tuning: what it trains on, and the clean run that it follows.

The examples are those of MF-BCE's schedule with one negative per click, put together to BPR's triples of a
user, an item and a negative.
"""

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_integers
from recattack_gym.victims.base import State, state_array
from recattack_gym.victims.epochs import NEGATIVES, visit_order
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.mf_bce_schedule import (
    CLICK,
    FIRST,
    CleanRun,
    LogisticSchedule,
    make_logistic_schedule,
)

_POSITIVE = 27
_SPAN = 1 << 30


class Triples(NamedTuple):
    """Examples of one poison set; batch `b` is `batch_indptr[b]:batch_indptr[b + 1]`, and may be empty."""

    users: NDArray[np.int64]
    """Shape `(S,)`; fake user `f` is `n_users + f`."""
    items: NDArray[np.int64]
    """Clicked items, shape `(S,)`."""
    negatives: NDArray[np.int64]
    """Items that were not clicked, shape `(S,)`."""
    batch_indptr: NDArray[np.int64]
    """Shape `(n_batches + 1,)`."""


@dataclass(frozen=True, eq=False, slots=True)
class PairSchedule:
    """The triples of one fine-tuning run, for any profiles of shape `(N, T)`.

    Attributes:
        rows: Clicks, each with its negative behind it, and genuine users' negatives.
        positives: Shape `(S,)`: what the genuine user of a negative has clicked; -1 elsewhere.
    """

    rows: LogisticSchedule
    positives: NDArray[np.int32]

    def examples(
        self, log: Interactions, profile: NDArray[np.int64], is_learnt: NDArray[np.bool_]
    ) -> Triples:
        """Fill in one poison set.

        Args:
            log: The clean log.
            profile: Shape `(N, T)`.
            is_learnt: Shape `(n_items,)`: genuine users' examples with other negatives are left out.
        """
        users, items, _ = self.rows.examples(log, profile)
        kinds = self.rows.kinds
        is_click = kinds == CLICK
        negatives = np.where(is_click, np.roll(items, -1), items)
        is_genuine = ~is_click & (kinds != FIRST) & (items >= 0)
        is_genuine[is_genuine] = is_learnt[items[is_genuine]]
        is_one = is_click | is_genuine
        before = np.concatenate([[0], np.cumsum(is_one)])
        return Triples(
            users[is_one],
            np.where(is_click, items, self.positives)[is_one],
            negatives[is_one],
            before[self.rows.batch_indptr],
        )


def make_pair_schedule(
    log: Interactions,
    profile_shape: tuple[int, int],
    *,
    seed: int,
    epochs: int,
    replay: float,
    batch_size: int,
    popular_negatives: float,
    below: int,
    n_waypoints: int,
) -> PairSchedule:
    """Lay out a fine-tuning run; arguments as in `make_logistic_schedule`.

    A genuine user's negative stands beside one of that user's clicks, drawn uniformly. All items without a
    click are fresh, new or not: with poison, full retraining learns them from nothing else.
    """
    rows = make_logistic_schedule(
        log,
        profile_shape,
        seed=seed,
        epochs=epochs,
        replay=replay,
        batch_size=batch_size,
        n_negatives=1,
        popular_negatives=popular_negatives,
        n_new_items=log.n_items,
        below=below,
        n_waypoints=n_waypoints,
    )
    genuine = np.flatnonzero(rows.user_ids < log.n_users)
    owners = rows.user_ids[genuine]
    n_clicks = np.bincount(log.user_ids, minlength=log.n_users)
    first = np.cumsum(n_clicks) - n_clicks
    of_user = log.item_ids[np.argsort(log.user_ids, kind="stable")]
    place = counter_integers(seed, _POSITIVE, genuine, _SPAN) * n_clicks[owners] // _SPAN
    positives = np.full(len(rows.kinds), -1, dtype=np.int32)
    positives[genuine] = of_user[first[owners] + place]
    return PairSchedule(rows, positives)


@dataclass(eq=False, slots=True)
class WarmRun:
    """What the BPR stage of clean training went through, as rows of layer 0 (items first).

    Attributes:
        past: Shape `(n_nodes, W, d)`: at W waypoints, see `CleanRun.epochs`. The last coordinate is the bias
            of an item, and 1 for a user.
        first: Shape `(n_items, d)`: items before training, where full retraining starts them again.
    """

    past: NDArray[np.float32]
    first: NDArray[np.float32]

    def after(self, embeddings: NDArray[np.float32], clicked: NDArray[np.int64]) -> "WarmRun":
        """Return the run of a poisoned model: what the poison has decided stands where it ended.

        Args:
            embeddings: Of the poisoned model, fake users last.
            clicked: Items that fake users have clicked.
        """
        n_clean, n_waypoints, _ = self.past.shape
        past = self.past.copy()
        past[clicked] = embeddings[clicked, None]
        fakes = np.repeat(embeddings[n_clean:, None], n_waypoints, axis=1)
        return WarmRun(np.concatenate([past, fakes]), self.first)

    def as_state(self) -> State:
        """Return the arrays by name, not copied."""
        return {"past": self.past, "first": self.first}

    @classmethod
    def from_state(cls, state: State, shape: tuple[int, int, int], n_items: int) -> Self:
        """Take over the arrays of `as_state`.

        Args:
            state: What was saved.
            shape: Nodes, waypoints and dimensions.
            n_items: Size of the catalogue.

        Raises:
            ArtifactError: If an array is missing or does not fit.
        """
        past = state_array(state, "past", shape)
        first = state_array(state, "first", (n_items, shape[2]))
        return cls(*(np.ascontiguousarray(array, dtype=np.float32) for array in (past, first)))


def layer_zero(factors: Factors) -> NDArray[np.float32]:
    """Fold the item bias into one more dimension, in which users are 1; shape `(n_nodes, d + 1)`."""
    ones = np.ones(len(factors.users), dtype=np.float32)
    items = np.column_stack([factors.items, factors.bias])
    return np.concatenate([items, np.column_stack([factors.users, ones])])


def fit_warm(
    factors: Factors,
    log: Interactions,
    *,
    n_negative_items: int,
    popular_negatives: float,
    epochs: int,
    learning_rate: float,
    reg: float,
    seed: int,
    n_waypoints: int,
) -> WarmRun:
    """Train factors in place as `fit_bpr` does, and keep what fine-tuning needs.

    Args:
        factors: Untrained.
        log: What to train on.
        n_negative_items: Uniform negatives are drawn from `[0, n_negative_items)`.
        popular_negatives: Share of negatives that are drawn by popularity.
        epochs: Passes over the log.
        learning_rate: Step size.
        reg: L2 penalty on the rows of an example.
        seed: What order and negatives are drawn from.
        n_waypoints: How many states to keep, at `CleanRun.epochs`.
    """
    from recattack_gym.victims.mf_kernel import _bpr_epoch

    indptr, seen = log.seen
    kept = CleanRun.epochs(n_waypoints, epochs)
    states: list[NDArray[np.float32]] = []
    first = layer_zero(factors)[: log.n_items]

    def keep(n_epochs: int) -> None:
        if n_epochs in kept:
            states.extend([layer_zero(factors)] * kept.count(n_epochs))

    keep(0)
    for epoch in range(epochs):
        _bpr_epoch(
            factors.users,
            factors.items,
            factors.bias,
            log.user_ids,
            log.item_ids,
            visit_order(seed, epoch, len(log)),
            indptr,
            seen,
            n_negative_items,
            popular_negatives,
            seed,
            NEGATIVES + epoch,
            learning_rate,
            reg,
        )
        keep(epoch + 1)
    return WarmRun(np.stack(states, axis=1), first)
