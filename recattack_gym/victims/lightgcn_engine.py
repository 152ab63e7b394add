"""Evaluates poison sets against LightGCN: the engine of the factorisations, on final embeddings.

Fine-tuning trains final embeddings and then finds the layer 0 that has them. Exposure needs the former alone,
so nothing here propagates over a graph.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.victims.factor_copy import TrainedCopy
from recattack_gym.victims.factors import FactorConfig, Factors, FactorSchedule
from recattack_gym.victims.lightgcn_kernel import train_factors
from recattack_gym.victims.mf_engine import FactorEngine, _prepare, _Prepared, _WorkingCopy
from recattack_gym.victims.ranking import CandidateLists


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


class _FinalCopy(TrainedCopy):
    """One thread's final embeddings."""

    def _train(self, share: NDArray[np.float32]) -> None:
        prepared, config = self.prepared, self._config
        train_factors(
            self.users,
            self.items,
            share,
            prepared.user_rows,
            self._examples,
            prepared.schedule.updates.batch_indptr,
            config.finetune_learning_rate,
            config.reg,
            *self._gradients[:2],
        )
