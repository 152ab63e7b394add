"""Evaluates poison sets against matrix factorisations (BPR, PMF) as fast as we know how.

The engine follows the victims' plain fine-tuning exactly. It is fast because it touches only what
moves (fake users, replayed users, items in the examples), keeps one working copy of the items per
thread, and counts instead of ranking: a user's candidates are visited in the order of their clean
scores until k of them beat the best target.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_normal
from recattack_gym.victims.base import GradientConfig
from recattack_gym.victims.factors import Factors, popular_negatives
from recattack_gym.victims.kernels import check_finite, fill_examples
from recattack_gym.victims.mf_kernel import (
    count_lists,
    count_rows,
    number_rows,
    score_lists,
    take_popular,
    train_pairs,
    train_points,
)
from recattack_gym.victims.parallel import over_sets
from recattack_gym.victims.ranking import CandidateLists, seen_mask
from recattack_gym.victims.schedule import INITIAL, UpdateSchedule, make_schedule

_BLOCK_CELLS = 2_000_000
"""Scores of the whole catalogue that are held at once."""

_PREFIX = 64
"""Where the whole catalogue is ranked: how many candidates beyond k are kept in clean order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateRule:
    """What a fine-tuning step minimises and where its examples come from."""

    loss: Literal["bpr", "pmf"]
    """Pairs (click above negative) or points (one for a click, zero for a negative)."""
    config: GradientConfig
    """The victim's settings."""
    n_negatives: int
    """Negatives per click."""
    popular_negatives: float
    """Share of (first) negatives that are drawn by popularity."""
    n_genuine_negatives: int
    """Genuine users' negatives are drawn from `[0, n_genuine_negatives)`."""
    initial_scale: float
    """Standard deviation of a fake user's untrained factors."""


class FactorEngine:
    """Poison, fine-tune and count for many sets; see `ExposureEngine`.

    Args:
        factors: The clean state; not changed.
        lists: What is ranked.
        rule: How fine-tuning goes.
    """

    def __init__(self, factors: Factors, lists: CandidateLists, rule: UpdateRule) -> None:
        self._factors = factors
        self._lists = lists
        self._rule = rule
        self._ranked = _rank_clean(factors, lists)
        self._prepared: _Prepared | None = None

    def exposure(self, profiles: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """See `ExposureEngine.exposure`."""
        prepared = self._prepare((profiles.shape[1], profiles.shape[2]), seed)
        counts = np.zeros((len(profiles), len(self._lists.target_items)), dtype=np.int64)

        def work(thread: int, sets: range) -> None:
            del thread  # every thread has a copy of its own
            copy = _WorkingCopy(self._factors, prepared, self._rule)
            for m in sets:
                copy.update(profiles[m])
                check_finite(copy.users, copy.items, copy.bias)
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
        copy = _WorkingCopy(self._factors, prepared, self._rule)
        copy.update(profile)
        users = np.concatenate([self._factors.users, prepared.fake_rows])
        users[prepared.moving_users] = copy.users
        return Factors(users, copy.items, copy.bias)

    def _prepare(self, shape: tuple[int, int], seed: int) -> "_Prepared":
        prepared = self._prepared
        if prepared is None or prepared.key != (seed, *shape):
            prepared = _prepare(self._factors, self._lists.log, self._rule, shape, seed)
            self._prepared = prepared
        return prepared

    def _count(self, copy: "_WorkingCopy", counts: NDArray[np.int64]) -> None:
        ranked, lists = self._ranked, self._lists
        n_undecided = count_lists(
            self._factors.users,
            copy.users,
            copy.prepared.user_places,
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
            places = copy.prepared.user_places[user_ids]
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
    schedule: UpdateSchedule
    popular: NDArray[np.int32]  # (S,) first negative by popularity, or -1
    fake_rows: NDArray[np.float32]  # (N, d) untrained
    moving_users: NDArray[np.int32]  # (n_moving_users,) ids in the order in which they first move
    user_places: NDArray[np.int32]  # (n_users + N,) place in moving_users, or -1
    users: NDArray[np.float32]  # (n_moving_users, d) before fine-tuning
    user_rows: NDArray[np.int32]  # (S,) place of each example's user


def _prepare(
    factors: Factors, log: Interactions, rule: UpdateRule, shape: tuple[int, int], seed: int
) -> _Prepared:
    config = rule.config
    schedule = make_schedule(
        log,
        shape,
        seed=seed,
        epochs=config.finetune_epochs,
        replay=config.finetune_replay,
        batch_size=config.finetune_batch_size,
        n_negatives=rule.n_negatives,
        n_genuine_negatives=rule.n_genuine_negatives,
    )
    n_fake_users, embedding_size = shape[0], factors.users.shape[1]
    fake_rows = counter_normal(seed, INITIAL, (n_fake_users, embedding_size))
    fake_rows *= np.float32(rule.initial_scale)
    n_users = log.n_users + n_fake_users
    places = np.full(n_users, -1, dtype=np.int32)
    moving = np.empty(n_users, dtype=np.int32)
    moving = moving[: number_rows(schedule.user_ids[:, None], places, moving)]
    users = factors.users[np.minimum(moving, log.n_users - 1)]
    is_fake = moving >= log.n_users
    users[is_fake] = fake_rows[moving[is_fake] - log.n_users]
    return _Prepared(
        (seed, *shape),
        schedule,
        popular_negatives(log, schedule, rule.popular_negatives),
        fake_rows,
        moving,
        places,
        users,
        places[schedule.user_ids],
    )


class _WorkingCopy:
    """One thread's model: updated by a poison set, ranked, and undone."""

    def __init__(self, factors: Factors, prepared: _Prepared, rule: UpdateRule) -> None:
        self._clean, self.prepared, self._rule = factors, prepared, rule
        n_examples, width = len(prepared.user_rows), 1 + rule.n_negatives
        n_items = len(factors.items)
        self.users = prepared.users.copy()
        self.items, self.bias = factors.items.copy(), factors.bias.copy()
        self.item_places = np.full(n_items, -1, dtype=np.int32)
        self.undecided = np.empty(len(factors.users), dtype=np.int64)
        self._examples = np.empty((n_examples, width), dtype=np.int32)
        self._moved = np.empty(n_items, dtype=np.int32)
        self._n_moved = 0
        self._gradients = [np.zeros_like(x) for x in (self.users, self.items, self.bias)]

    def update(self, profile: NDArray[np.int64]) -> None:
        """Fine-tune on one poison set, in place."""
        prepared, schedule, config = self.prepared, self.prepared.schedule, self._rule.config
        examples = self._examples
        fill_examples(
            schedule.clicks,
            schedule.item_ids,
            schedule.negatives,
            profile,
            schedule.seed,
            schedule.n_items,
            examples[:, 0],
            examples[:, 1:],
        )
        take_popular(schedule.clicks, prepared.popular, profile, examples)
        self._n_moved = number_rows(examples, self.item_places, self._moved)
        self.users[:] = prepared.users
        to_users, to_items, to_bias = self._gradients
        if self._rule.loss == "bpr":
            train_pairs(
                self.users,
                self.items,
                self.bias,
                prepared.user_rows,
                examples,
                schedule.batch_indptr,
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
                prepared.user_rows,
                examples,
                schedule.batch_indptr,
                config.finetune_learning_rate,
                config.reg,
                to_users,
                to_items,
            )

    def undo(self) -> None:
        """Return to the clean state."""
        moved = self._moved[: self._n_moved]
        self.items[moved] = self._clean.items[moved]
        self.bias[moved] = self._clean.bias[moved]
        self.item_places[moved] = -1
