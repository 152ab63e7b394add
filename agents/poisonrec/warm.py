"""PoisonRec with a warm start: ours, not the paper's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.poisonrec.agent import PoisonRec, PoisonRecAttacker, PoisonRecConfig
from agents.poisonrec.ppo import mean_log_p
from agents.poisonrec.threads import Blocks
from agents.search import Trials
from agents.structured import structured_sets
from recattack_gym.core.checks import as_count, as_real
from recattack_gym.core.view import AttackerView


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmPoisonRecConfig(PoisonRecConfig):
    """Settings of `WarmPoisonRec`, chosen on platform seeds 10 and 11 of Steam."""

    batch_size: int = 16
    """Half of the paper's, so that twice as many steps are made from the same queries."""
    n_examples: int = 16
    """As many."""
    n_epochs: int = 6
    """Twice the paper's: queries cost more than updates."""
    warm_up: int = 64
    """Poison sets of simple structure that are tried and imitated first; 0: none, as in the paper."""
    imitation_epochs: int = 60
    """Updates that raise the likelihood of the best of them."""
    n_elites: int = 8
    """Poison sets that are imitated: the best so far."""
    imitation_weight: float = 0.0
    """Weight of their log-likelihood beside PPO's objective; 0: none, as in the paper."""

    def __post_init__(self) -> None:
        PoisonRecConfig.__post_init__(self)
        for name in ("n_elites", "imitation_epochs"):
            as_count(name, getattr(self, name))
        as_count("warm_up", self.warm_up, at_least=0)
        as_real("imitation_weight", self.imitation_weight, at_least=0.0)


class WarmPoisonRec(PoisonRec):
    """`PoisonRec` that does not begin with a blank policy, and makes more of each query."""

    name = "poisonrec-warm"
    config: WarmPoisonRecConfig
    config_class = WarmPoisonRecConfig

    def __init__(
        self,
        view: AttackerView,
        config: WarmPoisonRecConfig | None = None,
        *,
        seed: int = 0,
        trials: Trials | None = None,
    ) -> None:
        super().__init__(view, config, seed=seed, trials=trials)
        self._imitation_weight = self.config.imitation_weight
        shape = (0, view.budget.n_fake_users, view.budget.profile_size)
        self._elites = np.zeros(shape, dtype=np.int64)
        self._elite_worth = np.zeros(0)

    def _try_and_improve(self, threads: Blocks) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        if self.config.warm_up and not self.history:
            n_sets = self._n_next(self.config.warm_up)
            item_ids = structured_sets(self._view, n_sets, self._rng)
            worth = self._trials.query(item_ids)
            self._keep_elites(item_ids, worth)
            self._imitate(threads)
            return item_ids, worth
        item_ids, worth = super()._try_and_improve(threads)
        self._keep_elites(item_ids, worth)
        return item_ids, worth

    def _imitated(self, worth: NDArray[np.float64]) -> NDArray[np.int64]:
        if not self._imitation_weight:
            return super()._imitated(worth)
        better: NDArray[np.int64] = self._elites[self._elite_worth > worth.mean()]
        return better

    def _keep_elites(self, item_ids: NDArray[np.int64], worth: NDArray[np.float64]) -> None:
        """Keep the best distinct poison sets so far."""
        both = np.concatenate([self._elites, item_ids])
        worths = np.concatenate([self._elite_worth, worth])
        _, first = np.unique(both.reshape(len(both), -1), axis=0, return_index=True)
        first = np.sort(first)
        best = first[np.argsort(-worths[first], kind="stable")][: self.config.n_elites]
        self._elites, self._elite_worth = both[best], worths[best]

    def _imitate(self, threads: Blocks) -> None:
        """Raise the likelihood of the elites."""
        evaluation = self.policy.evaluate(self._elites, threads)
        for _ in range(self.config.imitation_epochs):
            evaluation.improve(mean_log_p(evaluation.log_p(), evaluation.mask))

    def _n_possible_steps(self) -> int:
        n_left, n_steps = self._trials.n_left, 0
        if self.config.warm_up and not self.history and n_left:
            n_left, n_steps = max(0, n_left - self.config.warm_up), 1
        return n_steps + -(-n_left // self.config.batch_size)

    def _extra_state(self) -> dict[str, NDArray[Any]]:
        return {"elites": self._elites, "elite_worth": self._elite_worth}

    def _restore_extra(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._elites, self._elite_worth = arrays["elites"], arrays["elite_worth"]


class WarmPoisonRecAttacker(PoisonRecAttacker):
    """Train `WarmPoisonRec` on the platform; the plan is the best poison set that it tried."""

    name = "poisonrec-warm"
    config: WarmPoisonRecConfig
    config_class = WarmPoisonRecConfig
    agent_class = WarmPoisonRec
