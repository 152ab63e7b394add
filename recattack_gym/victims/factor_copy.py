"""Working copies of factorisations whose fine-tuning has a loss of its own."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from recattack_gym.victims.kernels import fill_examples
from recattack_gym.victims.mf_engine import _WorkingCopy
from recattack_gym.victims.mf_kernel import take_first_negatives
from recattack_gym.victims.schedule import fake_share


class TrainedCopy(_WorkingCopy, ABC):
    """One thread's model; a subclass says how it is trained on the examples that are laid out here."""

    def update(self, profile: NDArray[np.int64]) -> None:
        """Fine-tune on one poison set, shape `(N, T)`, in place."""
        prepared, examples = self.prepared, self._examples
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
        self._train(fake_share(self._log, profile))

    @abstractmethod
    def _train(self, share: NDArray[np.float32]) -> None:
        """Minimise the loss on `self._examples`, batch by batch.

        Args:
            share: What an item's steps are scaled by, shape `(n_items,)`.
        """
