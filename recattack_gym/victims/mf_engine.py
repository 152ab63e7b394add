"""Evaluates poison sets against matrix factorisations (BPR, PMF) as fast as we know how.

The engine follows the victims' plain fine-tuning exactly. It is fast because it touches only what
moves (fake users, items that they click, genuine users who meet these as negatives), keeps one working
copy of the items per thread, scores anew only what has moved, and counts instead of ranking: a user's
candidates are visited in the order of their clean scores until k of them beat the best target.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.core.parallel import over_sets
from recattack_gym.core.random import counter_normal
from recattack_gym.victims.factors import FactorConfig, Factors, FactorSchedule
from recattack_gym.victims.kernels import check_finite, fill_examples
from recattack_gym.victims.mf_kernel import (
    count_lists,
    count_rows,
    score_lists,
    take_first_negatives,
    train_pairs,
    train_points,
)
from recattack_gym.victims.ranking import CandidateLists, seen_mask
from recattack_gym.victims.schedule import INITIAL, fake_share

Loss = Literal["pairs", "points"]

_BLOCK_CELLS = 2_000_000
"""Scores of the whole catalogue that are held at once."""

_PREFIX = 64
"""Where the whole catalogue is ranked: how many candidates beyond k are kept in clean order."""


class FactorEngine:
    """Poison, fine-tune and count for many sets; see `ExposureEngine`.

    Args:
        factors: The clean state; not changed.
        lists: What is ranked.
        loss: Of pairs (click above negative) or of points (one for a click, zero for a negative).
        config: The victim's settings.
        schedule: Lays out fine-tuning for a log, `(N, T)` and a seed.
    """

    def __init__(
        self,
        factors: Factors,
        lists: CandidateLists,
        loss: Loss,
        config: FactorConfig,
        schedule: Callable[[Interactions, tuple[int, int], int], FactorSchedule],
    ) -> None:
        self._factors = factors
        self._lists = lists
        self._loss: Loss = loss
        self._config = config
        self._schedule = schedule
        self._ranked = _rank_clean(factors, lists)
        self._prepared: _Prepared | None = None

    def exposure(self, profiles: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """See `ExposureEngine.exposure`."""
        prepared = self._prepare((profiles.shape[1], profiles.shape[2]), seed)
        counts = np.zeros((len(profiles), len(self._lists.target_items)), dtype=np.int64)

        def work(thread: int, sets: range) -> None:
            del thread  # every thread has a copy of its own
            copy = self._working_copy(prepared)
            for m in sets:
                copy.update(profiles[m])
                check_finite(copy.users, *copy.moved())
                self._count(copy, counts[m])
                copy.undo()

        over_sets(len(profiles), work)
        return counts

    def factors_after(self, profile: NDArray[np.int64], seed: int) -> Factors:
        """Return the factors that one poison set leads to, fake users included.

        Args:
            profile: Shape `(N, T)`.
            seed: What fine-tuning draws from.
        """
        prepared = self._prepare((profile.shape[0], profile.shape[1]), seed)
        copy = self._working_copy(prepared)
        copy.update(profile)
        users = np.concatenate([self._factors.users, copy.users[: profile.shape[0]]])
        moved = prepared.user_places >= 0
        users[: len(moved)][moved] = copy.users[prepared.user_places[moved]]
        return Factors(users, copy.items, copy.bias)

    def _prepare(self, shape: tuple[int, int], seed: int) -> "_Prepared":
        prepared = self._prepared
        if prepared is None or prepared.key != (seed, *shape):
            schedule = self._schedule(self._lists.log, shape, seed)
            fake_rows = counter_normal(seed, INITIAL, (shape[0], self._factors.users.shape[1]))
            fake_rows *= np.float32(self._config.initial_scale)
            prepared = _prepare((seed, *shape), schedule, fake_rows, self._factors.users)
            self._prepared = prepared
        return prepared

    def _working_copy(self, prepared: "_Prepared") -> "_WorkingCopy":
        return _WorkingCopy(self._factors, self._lists.log, prepared, self._loss, self._config)

    def _count(self, copy: "_WorkingCopy", counts: NDArray[np.int64]) -> None:
        ranked, lists, prepared = self._ranked, self._lists, copy.prepared
        n_undecided = count_lists(
            self._factors.users,
            copy.users,
            prepared.user_places,
            copy.items,
            copy.bias,
            copy.item_places,
            ranked.item_ids,
            ranked.lengths,
            ranked.scores,
            ranked.is_complete,
            lists.target_items,
            lists.eligible,
            lists.k,
            counts,
            copy.undecided,
        )
        block = max(1, _BLOCK_CELLS // self._factors.items.shape[0])
        for start in range(0, n_undecided, block):
            user_ids = copy.undecided[start : min(start + block, n_undecided)]
            places = prepared.user_places[user_ids]
            users = np.where(
                places[:, None] >= 0, copy.users[places], self._factors.users[user_ids]
            )
            scores = users @ copy.items.T
            scores += copy.bias
            indptr, seen = lists.log.seen
            count_rows(
                scores, user_ids, indptr, seen, lists.target_items, lists.eligible, lists.k, counts
            )


@dataclass(frozen=True, eq=False, slots=True)
class _Ranked:
    """Candidates in the order of their clean scores."""

    item_ids: NDArray[np.int32]  # (U, L)
    lengths: NDArray[np.int64]  # (U,): places behind a list's end hold any item
    scores: NDArray[np.float32]  # (U, L), clean
    is_complete: NDArray[np.bool_]  # (U,): nothing is missing behind the end


def _rank_clean(factors: Factors, lists: CandidateLists) -> _Ranked:
    n_users = lists.n_users
    if lists.item_ids is None:
        item_ids, lengths, is_complete = _best_unseen(factors, lists)
    else:
        item_ids = lists.item_ids.astype(np.int32)
        lengths = np.full(n_users, item_ids.shape[1], dtype=np.int64)
        is_complete = np.ones(n_users, dtype=np.bool_)
    scores = np.empty(item_ids.shape, dtype=np.float32)
    score_lists(factors.users, factors.items, factors.bias, item_ids, lengths, scores)
    order = np.argsort(-scores, axis=1)
    return _Ranked(
        np.take_along_axis(item_ids, order, axis=1),
        lengths,
        np.take_along_axis(scores, order, axis=1),
        is_complete,
    )


def _best_unseen(
    factors: Factors, lists: CandidateLists
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.bool_]]:
    n_items = len(factors.items)
    width = min(lists.k + _PREFIX, n_items)
    item_ids = np.empty((lists.n_users, width), dtype=np.int32)
    lengths = np.empty(lists.n_users, dtype=np.int64)
    block = max(1, _BLOCK_CELLS // n_items)
    for start in range(0, lists.n_users, block):
        users = np.arange(start, min(start + block, lists.n_users))
        loss = -(factors.users[users] @ factors.items.T + factors.bias)
        blocked = seen_mask(lists.log, users)
        blocked[:, lists.target_items] = True
        loss[blocked] = np.inf
        best = np.argpartition(loss, width - 1, axis=1)[:, :width]
        best_loss = np.take_along_axis(loss, best, axis=1)
        item_ids[users] = np.take_along_axis(best, np.argsort(best_loss, axis=1), axis=1)
        lengths[users] = np.isfinite(best_loss).sum(axis=1)
    # a blocked item is among the best only if nothing else was left
    return item_ids, lengths, lengths < width


@dataclass(frozen=True, eq=False, slots=True)
class _Prepared:
    """What all poison sets of one seed and shape have in common."""

    key: tuple[int, int, int]
    schedule: FactorSchedule
    users: NDArray[np.float32]  # (N + R, d) untrained fake users, then genuine users that move
    user_places: NDArray[np.int32]  # (U,) row of a genuine user, or -1
    user_rows: NDArray[np.int32]  # (S,) row of each example's user


def _prepare(
    key: tuple[int, int, int],
    schedule: FactorSchedule,
    fake_rows: NDArray[np.float32],
    clean_users: NDArray[np.float32],
) -> _Prepared:
    user_ids, n_clean, n_fake = schedule.updates.user_ids, len(clean_users), len(fake_rows)
    genuine = np.unique(user_ids[user_ids < n_clean])
    places = np.full(n_clean, -1, dtype=np.int32)
    places[genuine] = n_fake + np.arange(len(genuine))
    rows = np.concatenate([places, np.arange(n_fake, dtype=np.int32)])[user_ids]
    users = np.concatenate([fake_rows, clean_users[genuine]])
    return _Prepared(key, schedule, users, places, rows)


class _WorkingCopy:
    """One thread's model: updated by a poison set, ranked, and undone."""

    def __init__(
        self,
        factors: Factors,
        log: Interactions,
        prepared: _Prepared,
        loss: Loss,
        config: FactorConfig,
    ) -> None:
        self._clean, self._log, self.prepared = factors, log, prepared
        self._loss, self._config = loss, config
        n_items = len(factors.items)
        self.users = prepared.users.copy()
        self.items, self.bias = factors.items.copy(), factors.bias.copy()
        self.item_places = np.full(n_items, -1, dtype=np.int32)
        self.undecided = np.empty(len(factors.users), dtype=np.int64)
        n_examples, n_negatives = prepared.schedule.updates.negatives.shape
        self._examples = np.empty((n_examples, 1 + n_negatives), dtype=np.int32)
        self._clicked = np.zeros(0, dtype=np.int64)
        self._gradients = [np.zeros_like(x) for x in (self.users, self.items, self.bias)]

    def update(self, profile: NDArray[np.int64]) -> None:
        """Fine-tune on one poison set, in place."""
        prepared, config, examples = self.prepared, self._config, self._examples
        updates = prepared.schedule.updates
        fill_examples(
            updates.clicks,
            updates.item_ids,
            updates.negatives,
            profile,
            updates.seed,
            updates.n_items,
            examples[:, 0],
            examples[:, 1:],
        )
        indptr, seen = self._log.seen
        take_first_negatives(
            updates.clicks,
            updates.user_ids,
            prepared.schedule.popular,
            prepared.schedule.pushed,
            indptr,
            seen,
            profile,
            examples,
        )
        self._clicked = np.unique(profile)
        self.item_places[self._clicked] = np.arange(len(self._clicked))
        self.users[:] = prepared.users
        share = fake_share(self._log, profile)
        to_users, to_items, to_bias = self._gradients
        if self._loss == "pairs":
            train_pairs(
                self.users,
                self.items,
                self.bias,
                share,
                prepared.user_rows,
                examples,
                updates.batch_indptr,
                config.finetune_learning_rate,
                config.reg,
                to_users,
                to_items,
                to_bias,
            )
        else:
            train_points(
                self.users,
                self.items,
                share,
                prepared.user_rows,
                examples,
                updates.batch_indptr,
                config.finetune_learning_rate,
                config.reg,
                to_users,
                to_items,
            )

    def moved(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return what has moved of the items and their bias."""
        return self.items[self._clicked], self.bias[self._clicked]

    def undo(self) -> None:
        """Return to the clean state."""
        clicked = self._clicked
        self.items[clicked] = self._clean.items[clicked]
        self.bias[clicked] = self._clean.bias[clicked]
        self.item_places[clicked] = -1
