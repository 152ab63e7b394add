"""Evaluates poison sets against PMF-APR and PMF-PamaCF: as PMF's engine, with the adversary."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.victims.adversarial import Adversary
from recattack_gym.victims.factor_copy import TrainedCopy
from recattack_gym.victims.factors import FactorConfig, Factors, FactorSchedule
from recattack_gym.victims.mf_engine import FactorEngine, _Prepared, _WorkingCopy
from recattack_gym.victims.pmf_apr_kernel import train_adversarial_points
from recattack_gym.victims.ranking import CandidateLists


class AdversarialPointsEngine(FactorEngine):
    """Poison, fine-tune on squared errors against an adversary and count; see `FactorEngine`.

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
        super().__init__(factors, lists, "points", config, schedule)
        self._adversary = adversary
        self._usual_size = adversary.usual_size(factors.users)

    def _working_copy(self, prepared: _Prepared) -> _WorkingCopy:
        return _PointsCopy(
            self._factors,
            self._lists.log,
            prepared,
            self._config,
            self._adversary,
            self._usual_size,
        )


class _PointsCopy(TrainedCopy):
    """One thread's model."""

    def __init__(
        self,
        factors: Factors,
        log: Interactions,
        prepared: _Prepared,
        config: FactorConfig,
        adversary: Adversary,
        usual_size: float,
    ) -> None:
        super().__init__(factors, log, prepared, "points", config)
        n_batches = len(prepared.schedule.updates.batch_indptr) - 1
        self._n_plain = adversary.n_plain_batches(n_batches, config.finetune_epochs)
        self._adversary, self._usual_size = adversary, usual_size

    def _train(self, share: NDArray[np.float32]) -> None:
        prepared, config, adversary = self.prepared, self._config, self._adversary
        train_adversarial_points(
            self.users,
            self.items,
            share,
            prepared.user_rows,
            self._examples,
            prepared.schedule.updates.batch_indptr,
            self._n_plain,
            config.finetune_learning_rate,
            config.reg,
            adversary.eps,
            adversary.weight,
            adversary.kind,
            self._usual_size,
            *self._gradients[:2],
        )
