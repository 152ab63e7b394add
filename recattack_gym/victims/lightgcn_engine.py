"""Evaluates poison sets against LightGCN: the engine of the factorisations, on final embeddings.

Fine-tuning trains final embeddings and then finds the layer 0 that has them. Exposure needs the former alone,
so nothing here propagates over a graph.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.victims.factors import FactorConfig, Factors, FactorSchedule
from recattack_gym.victims.kernels import fill_examples
from recattack_gym.victims.lightgcn_kernel import train_factors
from recattack_gym.victims.mf_engine import FactorEngine, _prepare, _Prepared, _WorkingCopy
from recattack_gym.victims.mf_kernel import take_first_negatives
from recattack_gym.victims.ranking import CandidateLists
from recattack_gym.victims.schedule import fake_share


class LightGCNEngine(FactorEngine):
    """Poison, fine-tune final embeddings and count; see `FactorEngine`.

    Args:
        factors: The clean final embeddings, with a bias of zero; not changed.
        lists: What is ranked.
        config: The settings of BPR that fine-tuning follows.
        schedule: Lays out fine-tuning for a log, `(N, T)` and a seed.
        first_fakes: Gives, for a seed and N, fake users' first embeddings, shape `(N, d)`.
    """

    def __init__(
        self,
        factors: Factors,
        lists: CandidateLists,
        config: FactorConfig,
        schedule: Callable[[Interactions, tuple[int, int], int], FactorSchedule],
        first_fakes: Callable[[int, int], NDArray[np.float32]],
    ) -> None:
        super().__init__(factors, lists, "pairs", config, schedule)
        self._first_fakes = first_fakes

    def _prepare(self, shape: tuple[int, int], seed: int) -> _Prepared:
        prepared = self._prepared
        if prepared is None or prepared.key != (seed, *shape):
            schedule = self._schedule(self._lists.log, shape, seed)
            fakes = self._first_fakes(seed, shape[0])
            prepared = _prepare((seed, *shape), schedule, fakes, self._factors.users)
            self._prepared = prepared
        return prepared

    def _working_copy(self, prepared: _Prepared) -> _WorkingCopy:
        return _FinalCopy(self._factors, self._lists.log, prepared, self._loss, self._config)


class _FinalCopy(_WorkingCopy):
    """One thread's final embeddings."""

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
        train_factors(
            self.users,
            self.items,
            fake_share(self._log, profile),
            prepared.user_rows,
            examples,
            updates.batch_indptr,
            config.finetune_learning_rate,
            config.reg,
            *self._gradients[:2],
        )
