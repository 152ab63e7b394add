"""Evaluates poison sets against APR, PamaCF and their LightGCNs: as the plain engines, with the adversary."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.victims.adversarial import Adversary
from recattack_gym.victims.adversarial_kernel import (
    Opponent,
    train_adversarial_factors,
    train_adversarial_pairs,
)
from recattack_gym.victims.factor_copy import TrainedCopy
from recattack_gym.victims.factors import FactorConfig, Factors, FactorSchedule
from recattack_gym.victims.lightgcn_engine import LightGCNEngine
from recattack_gym.victims.mf_engine import FactorEngine, _Prepared, _WorkingCopy
from recattack_gym.victims.ranking import CandidateLists


class AdversarialEngine(FactorEngine):
    """Poison, fine-tune against an adversary and count; see `FactorEngine`.

    Args:
        factors: The clean state; not changed.
        lists: What is ranked.
        config: The victim's settings.
        schedule: Lays out fine-tuning for a log, `(N, T)` and a seed.
        adversary: Not idle.
    """

    def __init__(
        self,
        factors: Factors,
        lists: CandidateLists,
        config: FactorConfig,
        schedule: Callable[[Interactions, tuple[int, int], int], FactorSchedule],
        adversary: Adversary,
    ) -> None:
        super().__init__(factors, lists, "pairs", config, schedule)
        self._adversary = adversary
        self._opponent = Opponent.of(adversary, factors.users)

    def _working_copy(self, prepared: _Prepared) -> _WorkingCopy:
        return _AdversarialCopy(
            self._factors,
            self._lists.log,
            prepared,
            self._config,
            self._adversary,
            self._opponent,
        )


class _AdversarialCopy(TrainedCopy):
    """One thread's model."""

    def __init__(
        self,
        factors: Factors,
        log: Interactions,
        prepared: _Prepared,
        config: FactorConfig,
        adversary: Adversary,
        opponent: Opponent,
    ) -> None:
        super().__init__(factors, log, prepared, "pairs", config)
        n_batches = len(prepared.schedule.updates.batch_indptr) - 1
        self._n_plain = adversary.n_plain_batches(n_batches, config.finetune_epochs)
        self._opponent = opponent

    def _train(self, share: NDArray[np.float32]) -> None:
        prepared, config = self.prepared, self._config
        train_adversarial_pairs(
            self.users,
            self.items,
            self.bias,
            share,
            prepared.user_rows,
            self._examples,
            prepared.schedule.updates.batch_indptr,
            self._n_plain,
            config.finetune_learning_rate,
            config.reg,
            self._opponent,
            *self._gradients,
        )


class LightGCNAdversarialEngine(LightGCNEngine):
    """Poison, fine-tune final embeddings against an adversary and count; see `LightGCNEngine`.

    Args:
        factors: See `LightGCNEngine`, like all but the last.
        lists: What is ranked.
        config: The settings of APR that fine-tuning follows.
        schedule: Lays out fine-tuning.
        first_fakes: Gives fake users' first embeddings.
        adversary: Not idle.
    """

    def __init__(
        self,
        factors: Factors,
        lists: CandidateLists,
        config: FactorConfig,
        schedule: Callable[[Interactions, tuple[int, int], int], FactorSchedule],
        first_fakes: Callable[[int, int], NDArray[np.float32]],
        adversary: Adversary,
    ) -> None:
        super().__init__(factors, lists, config, schedule, first_fakes)
        self._adversary = adversary
        self._opponent = Opponent.of(adversary, factors.users[:, :-1])

    def _working_copy(self, prepared: _Prepared) -> _WorkingCopy:
        return _FinalCopy(
            self._factors,
            self._lists.log,
            prepared,
            self._config,
            self._adversary,
            self._opponent,
        )


class _FinalCopy(_AdversarialCopy):
    """One thread's final embeddings."""

    def _train(self, share: NDArray[np.float32]) -> None:
        prepared, config = self.prepared, self._config
        train_adversarial_factors(
            self.users,
            self.items,
            share,
            prepared.user_rows,
            self._examples,
            prepared.schedule.updates.batch_indptr,
            self._n_plain,
            config.finetune_learning_rate,
            config.reg,
            self._opponent,
            *self._gradients[:2],
        )
