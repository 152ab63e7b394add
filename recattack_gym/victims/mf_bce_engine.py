"""Evaluates poison sets against MF-BCE: the engine of the other factorisations with another loss."""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.victims.kernels import fill_examples
from recattack_gym.victims.mf_bce_kernel import train_logits
from recattack_gym.victims.mf_engine import FactorEngine, _Prepared, _WorkingCopy
from recattack_gym.victims.mf_kernel import take_first_negatives
from recattack_gym.victims.schedule import fake_share


class LogisticEngine(FactorEngine):
    """Poison, fine-tune on the logistic loss and count; see `FactorEngine`, whose `loss` has no effect."""

    def _working_copy(self, prepared: _Prepared) -> _WorkingCopy:
        return _LogisticCopy(self._factors, self._lists.log, prepared, self._loss, self._config)


class _LogisticCopy(_WorkingCopy):
    """One thread's model."""

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
        take_first_negatives(
            updates.clicks,
            updates.user_ids,
            prepared.schedule.popular,
            prepared.schedule.pushed,
            *self._log.seen,
            profile,
            examples,
        )
        self._clicked = np.unique(profile)
        self.item_places[self._clicked] = np.arange(len(self._clicked))
        self.users[:] = prepared.users
        train_logits(
            self.users,
            self.items,
            self.bias,
            fake_share(self._log, profile),
            prepared.user_rows,
            examples,
            updates.batch_indptr,
            config.finetune_learning_rate,
            config.reg,
            *self._gradients,
        )
