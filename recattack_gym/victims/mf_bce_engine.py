"""Evaluates poison sets against MF-BCE: the engine of the other factorisations with another loss."""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.victims.factor_copy import TrainedCopy
from recattack_gym.victims.mf_bce_kernel import train_logits
from recattack_gym.victims.mf_engine import FactorEngine, _Prepared, _WorkingCopy


class LogisticEngine(FactorEngine):
    """Poison, fine-tune on the logistic loss and count; see `FactorEngine`, whose `loss` has no effect."""

    def _working_copy(self, prepared: _Prepared) -> _WorkingCopy:
        return _LogisticCopy(self._factors, self._lists.log, prepared, self._loss, self._config)


class _LogisticCopy(TrainedCopy):
    """One thread's model."""

    def _train(self, share: NDArray[np.float32]) -> None:
        prepared, config = self.prepared, self._config
        train_logits(
            self.users,
            self.items,
            self.bias,
            share,
            prepared.user_rows,
            self._examples,
            prepared.schedule.updates.batch_indptr,
            config.finetune_learning_rate,
            config.reg,
            *self._gradients,
        )
