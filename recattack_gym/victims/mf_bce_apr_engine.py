"""Evaluates poison sets against MF-BCE-APR and MF-BCE-PamaCF: as MF-BCE's engine, with the adversary."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.victims.adversarial import Adversary
from recattack_gym.victims.factors import FactorConfig, Factors
from recattack_gym.victims.mf_bce_apr_kernel import train_adversarial_logits
from recattack_gym.victims.mf_bce_engine import LogisticEngine, _LogisticCopy, _Plan
from recattack_gym.victims.mf_bce_schedule import CleanRun, LogisticSchedule
from recattack_gym.victims.mf_engine import _WorkingCopy
from recattack_gym.victims.ranking import CandidateLists


class AdversarialLogisticEngine(LogisticEngine):
    """Poison, fine-tune against an adversary along the clean run, and count; see `LogisticEngine`.

    Args:
        factors: The clean state; not changed.
        run: The way to it; not changed.
        lists: What is ranked.
        config: The victim's settings.
        schedule: Lays out fine-tuning for a log, `(N, T)` and a seed.
        n_new_items: How many of the last items are new.
        adversary: Not idle.
    """

    def __init__(
        self,
        factors: Factors,
        run: CleanRun,
        lists: CandidateLists,
        config: FactorConfig,
        schedule: Callable[[Interactions, tuple[int, int], int], LogisticSchedule],
        n_new_items: int,
        adversary: Adversary,
    ) -> None:
        super().__init__(factors, run, lists, config, schedule, n_new_items)
        self._adversary = adversary
        self._usual_sizes = usual_sizes(adversary, run)

    def _working_copy(self, prepared: _Plan) -> _WorkingCopy:  # type: ignore[override]  # own plan
        return _AdversarialCopy(
            self._factors,
            self._lists.log,
            prepared,
            self._config,
            self._adversary,
            self._usual_sizes,
        )


def usual_sizes(adversary: Adversary, run: CleanRun) -> NDArray[np.float64]:
    """Return what users' norms are compared with at each waypoint; shape `(W,)`."""
    n_waypoints = run.users.shape[1]
    return np.array([adversary.usual_size(run.users[:, w]) for w in range(n_waypoints)])


class _AdversarialCopy(_LogisticCopy):
    """One thread's model."""

    def __init__(
        self,
        factors: Factors,
        log: Interactions,
        plan: _Plan,
        config: FactorConfig,
        adversary: Adversary,
        sizes: NDArray[np.float64],
    ) -> None:
        super().__init__(factors, log, plan, config)
        n_batches = len(plan.schedule.waypoints)
        self._n_plain = first_adversarial_batch(adversary, n_batches, config.finetune_epochs)
        self._adversary, self._usual_sizes = adversary, sizes

    def _train(self, share: NDArray[np.float32], follows: NDArray[np.int64]) -> None:
        run, schedule, adversary = self.prepared.run, self.prepared.schedule, self._adversary
        train_adversarial_logits(
            self.users,
            self.items,
            self.bias,
            share,
            follows,
            run.users,
            run.items,
            run.bias,
            schedule.user_ids,
            schedule.kinds,
            self._examples,
            schedule.batch_indptr,
            schedule.waypoints,
            self._config.finetune_learning_rate,
            self._config.reg,
            self._n_plain,
            adversary.eps,
            adversary.weight,
            adversary.kind,
            self._usual_sizes,
            *self._gradients,
        )


def first_adversarial_batch(adversary: Adversary, n_batches: int, n_passes: int) -> int:
    """Return how many batches are plain: those of the plain passes, or as good as.

    Passes of MF-BCE's fine-tuning differ by an example or two, so that one may have a batch more than
    another. Where all have the same number of batches, this is `Adversary.n_plain_batches`.

    Args:
        adversary: When it comes in.
        n_batches: Of all passes.
        n_passes: Of fine-tuning.
    """
    return adversary.n_plain(n_passes) * n_batches // max(n_passes, 1)
