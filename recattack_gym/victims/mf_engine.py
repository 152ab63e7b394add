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
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.kernels import fill_examples
from recattack_gym.victims.mf_kernel import (
    count_lists,
    count_rows,
    number_rows,
    score_lists,
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
        users[prepared.user_rows] = copy.users
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
            copy.is_touched,
            ranked.item_ids,
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

    item_ids: NDArray[np.int32]  # (U, L), -1 behind a list's end
    scores: NDArray[np.float32]  # (U, L), clean
    is_complete: NDArray[np.bool_]  # (U,): nothing is missing behind the end


def _rank_clean(factors: Factors, lists: CandidateLists) -> _Ranked:
    n_users = lists.n_users
    if lists.item_ids is not None:
        item_ids, is_complete = lists.item_ids.astype(np.int32), np.ones(n_users, dtype=np.bool_)
    else:
        item_ids, is_complete = _best_unseen(factors, lists)
    scores = np.empty(item_ids.shape, dtype=np.float32)
    score_lists(factors.users, factors.items, factors.bias, item_ids, scores)
    order = np.argsort(-scores, axis=1)
    return _Ranked(
        np.take_along_axis(item_ids, order, axis=1),
        np.take_along_axis(scores, order, axis=1),
        is_complete,
    )


def _best_unseen(
    factors: Factors, lists: CandidateLists
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    n_items = len(factors.items)
    length = min(lists.k + _PREFIX, n_items)
    item_ids = np.empty((lists.n_users, length), dtype=np.int32)
    block = max(1, _BLOCK_CELLS // n_items)
    for start in range(0, lists.n_users, block):
        users = np.arange(start, min(start + block, lists.n_users))
        loss = -(factors.users[users] @ factors.items.T + factors.bias)
        blocked = seen_mask(lists.log, users)
        blocked[:, lists.target_items] = True
        loss[blocked] = np.inf
        best = np.argpartition(loss, length - 1, axis=1)[:, :length]
        is_blocked = np.take_along_axis(blocked, best, axis=1)
        item_ids[users] = np.where(is_blocked, -1, best)
    # a blocked item is among the best only if nothing else was left
    is_complete = item_ids.min(axis=1) < 0
    return item_ids, is_complete


@dataclass(frozen=True, eq=False, slots=True)
class _Prepared:
    """What all poison sets of one seed and shape have in common."""

    key: tuple[int, int, int]
    schedule: UpdateSchedule
    fake_rows: NDArray[np.float32]  # (N, d) untrained
    user_rows: NDArray[np.int32]  # (n_moving_users,) ids in the order in which they first move
    user_places: NDArray[np.int32]  # (n_users + N,) place in user_rows, or -1
    users: NDArray[np.float32]  # (n_moving_users, d) before fine-tuning
    local_users: NDArray[np.int32]  # (S, 1) place of each example's user
    n_active_users: NDArray[np.int64]  # (n_batches,) users that have moved after each batch


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
    rows = np.empty(n_users, dtype=np.int32)
    local = np.empty((len(schedule.user_ids), 1), dtype=np.int32)
    n_active = np.empty(len(schedule.batch_indptr) - 1, dtype=np.int64)
    n_moving = number_rows(
        schedule.user_ids[:, None], schedule.batch_indptr, places, rows, local, n_active
    )
    rows = rows[:n_moving]
    users = factors.users[np.minimum(rows, log.n_users - 1)]
    is_fake = rows >= log.n_users
    users[is_fake] = fake_rows[rows[is_fake] - log.n_users]
    return _Prepared((seed, *shape), schedule, fake_rows, rows, places, users, local, n_active)


class _WorkingCopy:
    """One thread's model: updated by a poison set, ranked, and undone."""

    def __init__(self, factors: Factors, prepared: _Prepared, rule: UpdateRule) -> None:
        self._clean, self.prepared, self._rule = factors, prepared, rule
        n_examples, n_batches = len(prepared.local_users), len(prepared.n_active_users)
        n_items, d = factors.items.shape
        width = 1 + rule.n_negatives
        n_moving = min(n_items, n_examples * width)
        self.users = prepared.users.copy()
        self.items, self.bias = factors.items.copy(), factors.bias.copy()
        self.is_touched = np.zeros(n_items, dtype=np.bool_)
        self.undecided = np.empty(len(factors.users), dtype=np.int64)
        self._example_items = np.empty((n_examples, width), dtype=np.int32)
        self._local_items = np.empty((n_examples, width), dtype=np.int32)
        self._places = np.full(n_items, -1, dtype=np.int32)
        self._rows = np.empty(n_moving, dtype=np.int32)
        self._n_rows = 0
        self._n_active_items = np.empty(n_batches, dtype=np.int64)
        self._moving_items = np.empty((n_moving, d), dtype=np.float32)
        self._moving_bias = np.empty(n_moving, dtype=np.float32)
        # gradient, first and second moment of everything that moves
        self._user_adam = np.zeros((3, len(self.users), d), dtype=np.float32)
        self._item_adam = np.zeros((3, n_moving, d), dtype=np.float32)
        self._bias_adam = np.zeros((3, n_moving), dtype=np.float32)

    def update(self, profile: NDArray[np.int64]) -> None:
        """Fine-tune on one poison set, in place."""
        prepared, schedule, rule = self.prepared, self.prepared.schedule, self._rule
        examples = self._example_items
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
        n_rows = number_rows(
            examples,
            schedule.batch_indptr,
            self._places,
            self._rows,
            self._local_items,
            self._n_active_items,
        )
        self._n_rows = n_rows
        rows = self._rows[:n_rows]
        self.users[:] = prepared.users
        self._moving_items[:n_rows] = self._clean.items[rows]
        self._moving_bias[:n_rows] = self._clean.bias[rows]
        self._user_adam[:] = 0.0
        self._item_adam[:, :n_rows] = 0.0
        self._bias_adam[:, :n_rows] = 0.0
        train = train_pairs if rule.loss == "bpr" else train_points
        train(
            self.users,
            self._moving_items,
            self._moving_bias,
            prepared.local_users,
            self._local_items,
            schedule.batch_indptr,
            prepared.n_active_users,
            self._n_active_items,
            rule.config.finetune_learning_rate,
            rule.config.reg,
            self._user_adam,
            self._item_adam,
            self._bias_adam,
        )
        self.items[rows] = self._moving_items[:n_rows]
        self.bias[rows] = self._moving_bias[:n_rows]
        self.is_touched[rows] = True

    def undo(self) -> None:
        """Return to the clean state."""
        rows = self._rows[: self._n_rows]
        self.items[rows] = self._clean.items[rows]
        self.bias[rows] = self._clean.bias[rows]
        self.is_touched[rows] = False
        self._places[rows] = -1
