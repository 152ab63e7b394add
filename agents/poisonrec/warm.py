"""PoisonRec with a warm start: ours, not the paper's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.poisonrec.agent import PoisonRec, PoisonRecAttacker, PoisonRecConfig
from agents.poisonrec.ppo import mean_log_p
from agents.poisonrec.threads import Blocks
from agents.recombination import Elites
from agents.search import Trials
from agents.structured import structured_sets
from recattack_gym.core.checks import as_count, as_real
from recattack_gym.core.view import AttackerView


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmPoisonRecConfig(PoisonRecConfig):
    """Settings of `WarmPoisonRec`, chosen on platform seeds 10 to 12 of Steam."""

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
    n_elites: int = 16
    """Poison sets that are imitated and recombined: the best so far."""
    imitation_weight: float = 0.1
    """Weight of their log-likelihood beside PPO's objective; 0: none, as in the paper."""
    recombined: float = 0.5
    """Share of the poison sets of a step that are made from elites, not by the policy, in `[0, 1)`."""

    def __post_init__(self) -> None:
        PoisonRecConfig.__post_init__(self)
        for name in ("n_elites", "imitation_epochs"):
            as_count(name, getattr(self, name))
        as_count("warm_up", self.warm_up, at_least=0)
        as_real("imitation_weight", self.imitation_weight, at_least=0.0)
        as_real("recombined", self.recombined, at_least=0.0, at_most=0.99)


class WarmPoisonRec(PoisonRec):
    """`PoisonRec` that does not begin with a blank policy, and makes more of each query.

    The paper's policy begins with all choices about equal. Its first poison sets then hardly differ in what
    matters, and it mostly settles on the first thing that is rewarded (on ItemPop two targets, where four
    pay more). Here

    - the first queries try sets of simple structure (`agents.structured`), and the policy imitates the best;
    - half of the sets of every later step are the best so far, recombined (`agents.recombination`), which
      the policy could not draw before it has changed;
    - the policy goes on imitating the best sets, whoever made them, while PPO improves it on its own;
    - steps are smaller, with more updates.

    PoisonRec: Song et al., ICDE 2020.

    Differs from the paper: all of the above. Not published elsewhere; docs/benchmarks.md has the ablation.
    """

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
        self._elites = Elites(view, self.config.n_elites)

    def _try_and_improve(self, threads: Blocks) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        if self.config.warm_up and not self.history:
            n_sets = self._n_next(self.config.warm_up)
            item_ids = structured_sets(self._view, n_sets, self._rng)
            worth = self._trials.query(item_ids)
            self._elites.add(item_ids, worth)
            self._imitate(threads)
            return item_ids, worth
        n_sets = self._n_next(self.config.batch_size)
        n_recombined = int(self.config.recombined * n_sets) if self.history else 0
        rollout = self.policy.sample(n_sets - n_recombined, self._rng, threads)
        item_ids = rollout.item_ids
        if n_recombined:
            item_ids = np.concatenate([item_ids, self._elites.recombine(n_recombined, self._rng)])
        worth = self._trials.query(item_ids)
        self._elites.add(item_ids, worth)
        self._improve(rollout, worth[: len(rollout.item_ids)], threads)
        return item_ids, worth

    def _imitated(self, worth: NDArray[np.float64]) -> NDArray[np.int64]:
        if not self._imitation_weight:
            return super()._imitated(worth)
        is_better = self._elites.worth > worth.mean()
        return np.compress(is_better, self._elites.item_ids, axis=0)

    def _imitate(self, threads: Blocks) -> None:
        """Raise the likelihood of the elites."""
        evaluation = self.policy.evaluate(self._elites.item_ids, threads)
        for _ in range(self.config.imitation_epochs):
            evaluation.improve(mean_log_p(evaluation.log_p(), evaluation.mask))

    def _n_possible_steps(self) -> int:
        n_left, n_steps = self._trials.n_left, 0
        if self.config.warm_up and not self.history and n_left:
            n_left, n_steps = max(0, n_left - self.config.warm_up), 1
        return n_steps + -(-n_left // self.config.batch_size)

    def _extra_state(self) -> dict[str, NDArray[Any]]:
        return {"elites": self._elites.item_ids, "elite_worth": self._elites.worth}

    def _restore_extra(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._elites.add(arrays["elites"], arrays["elite_worth"])


class WarmPoisonRecAttacker(PoisonRecAttacker):
    """Train `WarmPoisonRec` on the platform; the plan is the best poison set that it tried."""

    name = "poisonrec-warm"
    config: WarmPoisonRecConfig
    config_class = WarmPoisonRecConfig
    agent_class = WarmPoisonRec
