"""What every attacker that asks the platform has in common: a query budget, counted and never exceeded."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.base import Attacker, AttackerConfig
from agents.interruption import raise_if_interrupted
from recattack_gym.core import StateError
from recattack_gym.core.attack import DIRECTIONS
from recattack_gym.core.checks import as_count
from recattack_gym.core.view import AttackerView


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig(AttackerConfig):
    """Settings of every attacker that queries."""

    n_queries: int = 3_200
    """Poison sets that may be evaluated: 100 of PoisonRec's steps."""
    batch_size: int = 32
    """Poison sets that are evaluated together, M; 32, PoisonRec §V."""

    def __post_init__(self) -> None:
        as_count("n_queries", self.n_queries)
        as_count("batch_size", self.batch_size)


class SearchAttacker(Attacker):
    """An attacker that tries poison sets on the platform and keeps the best one of them.

    A subclass writes `_search`, which asks `Trials` until the budget is spent; the plan is the best set.
    """

    directions = DIRECTIONS
    config: SearchConfig
    config_class = SearchConfig

    def _plan(self, view: AttackerView, rng: np.random.Generator) -> NDArray[np.int64]:
        trials = Trials(view, self.config.n_queries)
        self._search(view, trials, rng)
        return trials.best_profiles

    def _search(self, view: AttackerView, trials: "Trials", rng: np.random.Generator) -> None:
        """Evaluate poison sets with `trials.query`, at least one, until the budget is spent."""
        raise NotImplementedError


class Trials:
    """Counted queries with a limit, and the best poison set among them.

    Args:
        view: The platform as the attacker sees it.
        n_queries: How many poison sets may be evaluated from now on.
        best: RecNum and profiles of the best set of earlier trials that these continue.
    """

    def __init__(
        self,
        view: AttackerView,
        n_queries: int,
        best: tuple[int, NDArray[np.int64]] | None = None,
    ) -> None:
        self._view = view
        self._sign = 1 if view.goal.direction == "push" else -1
        self._best = best
        self.n_left = as_count("n_queries", n_queries, at_least=0)

    @property
    def is_spent(self) -> bool:
        """Whether no query is left."""
        return self.n_left == 0

    @property
    def best_rec_num(self) -> int:
        """RecNum of the best set so far: the largest, or the smallest where targets are demoted."""
        return self._found()[0]

    @property
    def best_profiles(self) -> NDArray[np.int64]:
        """The set that reached it first, shape `(n_fake_users, profile_size)`."""
        return self._found()[1].copy()

    def query(self, profiles: NDArray[np.int64]) -> NDArray[np.float64]:
        """Evaluate poison sets.

        Args:
            profiles: Item ids, shape `(M, n_fake_users, profile_size)`, `M <= n_left`.

        Returns:
            Shape `(M,)`: what the attacker maximises, RecNum, or minus RecNum where targets are demoted.

        Raises:
            StateError: If fewer queries are left than sets were given; none is evaluated then.
            KeyboardInterrupt: If an interrupt arrived in the meantime.
        """
        if len(profiles) > self.n_left:
            raise StateError(
                f"at most {self.n_left} queries are left of the attacker's budget, got {len(profiles)} sets"
            )
        raise_if_interrupted()
        rec_nums = self._view.query(profiles)
        self.n_left -= len(profiles)
        worth = self._sign * rec_nums
        best = int(np.argmax(worth)) if len(worth) else None
        if best is not None and (self._best is None or worth[best] > self._sign * self._best[0]):
            self._best = int(rec_nums[best]), profiles[best].copy()
        return worth.astype(np.float64)

    def _found(self) -> tuple[int, NDArray[np.int64]]:
        if self._best is None:
            raise StateError("no poison set has been tried yet: call query() first")
        return self._best
