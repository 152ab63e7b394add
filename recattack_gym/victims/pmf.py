"""PMF: matrix factorisation that predicts one for a click and zero for its absence."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import draw_seed
from recattack_gym.victims.base import ExposureEngine
from recattack_gym.victims.factors import (
    FactorConfig,
    Factors,
    FactorSchedule,
    FactorVictim,
    hold_back,
    make_factor_schedule,
)
from recattack_gym.victims.ranking import CandidateLists
from recattack_gym.victims.schedule import fake_share


@dataclass(frozen=True, kw_only=True, slots=True)
class PMFConfig(FactorConfig):
    """Settings of PMF; clean training takes one example at a time, so `batch_size` has no effect."""

    epochs: int = 60
    """Passes over the log in clean training and in `retrain="full"`."""
    learning_rate: float = 0.02
    """Step size of stochastic gradient descent in clean training."""
    reg: float = 0.015
    """L2 penalty on the rows of each example (the paper's lambda_U and lambda_V)."""
    n_negatives: int = 4
    """Zeros per click, drawn from what the user has not clicked."""
    finetune_epochs: int = 60
    """Passes over the fake clicks in fine-tuning; this and the step size are those of clean training."""
    finetune_learning_rate: float = 0.02
    """Step size of stochastic gradient descent in fine-tuning."""
    finetune_replay: float = 1.0
    """How often a clicked item is a genuine user's negative in fine-tuning; 1 is clean training's rate,
    which is not at all unless `new_items_as_negatives`."""
    finetune_batch_size: int = 32
    """Examples per step, whose gradients are summed; clean training takes one at a time."""

    def __post_init__(self) -> None:
        super(PMFConfig, self).__post_init__()  # slots: the class is made twice, so no bare super()
        as_count("n_negatives", self.n_negatives)


class PMF(FactorVictim):
    """Factorise users and items by least squares.

    Mnih & Salakhutdinov, "Probabilistic Matrix Factorization", NIPS 2007: minimise
    `sum (r_ui - p_u . q_i)^2 / 2 + reg / 2 (|p_u|^2 + |q_i|^2)` (equation 4).

    Fine-tuning is full retraining restricted to what the poison decides; see `FactorVictim`.

    Differs from the paper: clicks instead of ratings, so r is 1 for a click and 0 for items drawn from
    those that the user has not clicked; scores are not passed through a logistic function (equation
    5 there, which keeps ratings in range); fine-tuning takes a minibatch at a time (summed
    gradients).
    """

    name = "PMF"
    config_class = PMFConfig
    config: PMFConfig

    def _fit(self, log: Interactions, rng: np.random.Generator) -> None:
        from recattack_gym.victims.mf_kernel import fit_pmf

        config = self.config
        seed = draw_seed(rng)
        self._factors = Factors.draw(log, config.embedding_size, config.initial_scale, rng)
        fit_pmf(
            self._factors,
            log,
            n_negative_items=self._n_genuine_negatives,
            n_negatives=config.n_negatives,
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            reg=config.reg,
            seed=seed,
        )

    def _finetune(self, log: Interactions, profile: NDArray[np.int64], seed: int) -> None:
        import torch

        config = self.config
        schedule = self._schedule(log, (profile.shape[0], profile.shape[1]), seed)
        batches = pairwise(schedule.updates.batch_indptr)
        share = torch.as_tensor(fake_share(log, profile), device=self.device)
        self._factors.add_fake_users(len(profile), seed, config.initial_scale)
        user_ids, item_ids, negatives = schedule.examples(log, profile)
        all_users = torch.as_tensor(user_ids, device=self.device)
        all_items = torch.as_tensor(
            np.concatenate([item_ids[:, None], negatives], axis=1), device=self.device
        )
        clicked = torch.zeros(1 + config.n_negatives, device=self.device)
        clicked[0] = 1.0
        users, items = (
            torch.as_tensor(array, device=self.device).requires_grad_()
            for array in (self._factors.users, self._factors.items)
        )
        optimiser = torch.optim.SGD([users, items], lr=config.finetune_learning_rate)
        for start, end in batches:
            p = users[all_users[start:end]][:, None, :]  # (B, 1, d)
            q = items[all_items[start:end]]  # (B, 1 + n_negatives, d)
            error = clicked - (p * q).sum(dim=2)
            norms = (p**2).sum(dim=2) + (q**2).sum(dim=2)
            loss = 0.5 * (error**2 + config.reg * norms).sum()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation
            hold_back(share, items)
            optimiser.step()
        self._factors = Factors(
            users.detach().cpu().numpy(), items.detach().cpu().numpy(), self._factors.bias
        )

    def _schedule(
        self, log: Interactions, profile_shape: tuple[int, int], seed: int
    ) -> FactorSchedule:
        return make_factor_schedule(
            log,
            profile_shape,
            self.config,
            seed=seed,
            n_negatives=self.config.n_negatives,
            popular_negatives=0.0,
            n_new_items=self.n_new_items,
        )

    def _compiled_engine(self, lists: CandidateLists) -> ExposureEngine:
        from recattack_gym.victims.mf_engine import FactorEngine

        return FactorEngine(self._factors, lists, "points", self.config, self._schedule)
