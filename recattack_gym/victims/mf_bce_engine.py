"""Evaluates poison sets against MF-BCE: counts as the other factorisations do, trains along the clean run."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_normal
from recattack_gym.victims.factors import FactorConfig, Factors
from recattack_gym.victims.mf_bce_kernel import fill_logits, train_logits
from recattack_gym.victims.mf_bce_schedule import (
    CleanRun,
    LogisticSchedule,
    first_item_rows,
    fresh_items,
)
from recattack_gym.victims.mf_engine import FactorEngine, _WorkingCopy
from recattack_gym.victims.ranking import CandidateLists
from recattack_gym.victims.schedule import INITIAL, fake_share


class LogisticEngine(FactorEngine):
    """Poison, fine-tune on the logistic loss along the clean run, and count; see `FactorEngine`.

    Args:
        factors: The clean state; not changed.
        run: The way to it; not changed.
        lists: What is ranked.
        config: The victim's settings.
        schedule: Lays out fine-tuning for a log, `(N, T)` and a seed.
        n_new_items: How many of the last items are new.
    """

    def __init__(
        self,
        factors: Factors,
        run: CleanRun,
        lists: CandidateLists,
        config: FactorConfig,
        schedule: Callable[[Interactions, tuple[int, int], int], LogisticSchedule],
        n_new_items: int,
    ) -> None:
        super().__init__(factors, lists, "points", config, schedule)  # type: ignore[arg-type]  # _prepare calls it
        self._lay_out = schedule
        self._run = run
        self._fresh = fresh_items(lists.log, n_new_items)
        self._n_new_items = n_new_items
        self._plan: _Plan | None = None

    def _prepare(self, shape: tuple[int, int], seed: int) -> "_Plan":  # type: ignore[override]  # own schedule
        plan = self._plan
        if plan is None or plan.key != (seed, *shape):
            scale, d = self._config.initial_scale, self._factors.items.shape[1]
            rows = first_item_rows(seed, self._n_new_items, d, scale)
            plan = _Plan(
                key=(seed, *shape),
                schedule=self._lay_out(self._lists.log, shape, seed),
                run=self._run,
                fakes=counter_normal(seed, INITIAL, (shape[0], d)) * np.float32(scale),
                fresh=self._fresh,
                fresh_rows=rows[self._fresh - self._lists.log.n_items],
                user_places=np.full(len(self._factors.users), -1, dtype=np.int32),
            )
            self._plan = plan
        return plan

    def _working_copy(self, prepared: "_Plan") -> _WorkingCopy:  # type: ignore[override]  # as above
        return _LogisticCopy(self._factors, self._lists.log, prepared, self._config)

    def factors_after(self, profile: NDArray[np.int64], seed: int) -> Factors:
        """See `FactorEngine.factors_after`."""
        copy = self._working_copy(self._prepare((profile.shape[0], profile.shape[1]), seed))
        copy.update(profile)
        return Factors(np.concatenate([self._factors.users, copy.users]), copy.items, copy.bias)


@dataclass(frozen=True, eq=False, slots=True)
class _Plan:
    """What all poison sets of one seed and shape have in common; genuine users do not move."""

    key: tuple[int, int, int]
    schedule: LogisticSchedule
    run: CleanRun
    fakes: NDArray[np.float32]  # (N, d), untrained
    fresh: NDArray[np.int64]
    fresh_rows: NDArray[np.float32]  # (len(fresh), d), untrained
    user_places: NDArray[np.int32]  # (U,), all -1


class _LogisticCopy(_WorkingCopy):
    """One thread's model."""

    prepared: _Plan  # type: ignore[assignment]  # counting reads its `user_places` alone

    def __init__(
        self, factors: Factors, log: Interactions, plan: _Plan, config: FactorConfig
    ) -> None:
        self._clean, self._log, self.prepared, self._config = factors, log, plan, config
        self.users = plan.fakes.copy()
        self.items, self.bias = factors.items.copy(), factors.bias.copy()
        self.item_places = np.full(len(factors.items), -1, dtype=np.int32)
        self.undecided = np.empty(len(factors.users), dtype=np.int64)
        self._examples = np.empty(len(plan.schedule.kinds), dtype=np.int32)
        self._events = np.concatenate([log.item_ids, np.zeros(plan.key[1] * plan.key[2], np.int64)])
        self._clicked = np.zeros(0, dtype=np.int64)
        self._gradients = [np.zeros_like(x) for x in (self.users, self.items, self.bias)]

    def update(self, profile: NDArray[np.int64]) -> None:
        """Fine-tune on one poison set, shape `(N, T)`, in place."""
        plan, schedule = self.prepared, self.prepared.schedule
        self.users[:] = plan.fakes
        self._clicked = np.unique(profile)
        self.item_places[self._clicked] = np.arange(len(self._clicked))
        if len(schedule.waypoints) == 0:
            return
        self._events[len(self._log) :] = profile.ravel()
        fill_logits(
            schedule.user_ids,
            schedule.kinds,
            schedule.clicks,
            schedule.item_ids,
            schedule.seed,
            schedule.below,
            schedule.popular_negatives,
            *self._log.seen,
            profile,
            self._events,
            self._examples,
        )
        is_scratch = np.isin(plan.fresh, self._clicked)
        scratch = plan.fresh[is_scratch]
        self.items[scratch], self.bias[scratch] = plan.fresh_rows[is_scratch], 0.0
        follows = np.setdiff1d(self._clicked, scratch)
        run, first, last = plan.run, schedule.waypoints[0], schedule.waypoints[-1]
        self.items[follows], self.bias[follows] = (
            run.items[follows, first],
            run.bias[follows, first],
        )
        self._train(fake_share(self._log, profile), follows)
        self.items[follows] += self._clean.items[follows] - run.items[follows, last]
        self.bias[follows] += self._clean.bias[follows] - run.bias[follows, last]

    def _train(self, share: NDArray[np.float32], follows: NDArray[np.int64]) -> None:
        """Learn from the examples that `update` has filled in.

        Args:
            share: What an item's steps are scaled by, shape `(n_items,)`.
            follows: Clicked items that move with the clean run.
        """
        run, schedule = self.prepared.run, self.prepared.schedule
        train_logits(
            self.users,
            self.items,
            self.bias,
            share,
            follows,
            run.users,
            run.items,
            run.bias,
            schedule.user_ids,
            schedule.kinds,
            self._examples,
            schedule.batch_indptr,
            schedule.waypoints,
            self._config.finetune_learning_rate,
            self._config.reg,
            *self._gradients,
        )
