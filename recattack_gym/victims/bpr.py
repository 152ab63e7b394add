"""BPR: matrix factorisation trained to rank a clicked item above one that was not clicked."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_real
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
class BPRConfig(FactorConfig):
    """Settings of BPR; clean training takes one example at a time, so `batch_size` has no effect."""

    epochs: int = 120
    """Passes over the log in clean training and in `retrain="full"`."""
    learning_rate: float = 0.05
    """Step size of stochastic gradient descent in clean training."""
    reg: float = 0.01
    """L2 penalty on the rows of each example, bias included (the paper's lambda)."""
    popular_negatives: float = 0.25
    """Share of the negatives of clean training that are drawn by popularity instead of uniformly, in
    `[0, 1]`. Validation HR@10 on Steam after 60 epochs: 0.34 with none, 0.41 with a quarter, 0.38 with
    popular ones alone."""
    finetune_epochs: int = 120
    """Passes over the fake clicks in fine-tuning; this and the step size are those of clean training."""
    finetune_learning_rate: float = 0.05
    """Step size of stochastic gradient descent in fine-tuning."""
    finetune_replay: float = 1.0
    """How often a clicked item is a genuine user's negative in fine-tuning; 1 is clean training's rate."""
    finetune_batch_size: int = 64
    """Examples per step, whose gradients are summed: 1 gives the same RecNum within 1 %."""

    def __post_init__(self) -> None:
        super(BPRConfig, self).__post_init__()  # slots: the class is made twice, so no bare super()
        as_real("popular_negatives", self.popular_negatives, at_least=0.0, at_most=1.0)


class BPR(FactorVictim):
    """Factorise users and items so that clicked items score above others, with an item bias.

    Rendle, Freudenthaler, Gantner, Schmidt-Thieme, "BPR: Bayesian Personalized Ranking from Implicit
    Feedback", UAI 2009: maximise `sum log sigmoid(x_ui - x_uj) - reg |parameters|^2` over clicks
    (u, i) and sampled items j that u has not clicked (section 4, LearnBPR), with
    `x_ui = p_u . q_i + b_i`.

    Fine-tuning is full retraining restricted to what the poison decides; see `FactorVictim`.

    Differs from the paper: every click is visited once per epoch, in random order, where the paper
    draws clicks with replacement; an item bias, as usual since; fine-tuning takes a
    minibatch at a time (summed gradients).
    """

    name = "BPR"
    config_class = BPRConfig
    config: BPRConfig

    def _fit(self, log: Interactions, rng: np.random.Generator) -> None:
        from recattack_gym.victims.mf_kernel import fit_bpr

        config = self.config
        seed = draw_seed(rng)
        self._factors = Factors.draw(log, config.embedding_size, config.initial_scale, rng)
        fit_bpr(
            self._factors,
            log,
            n_negative_items=self._n_genuine_negatives,
            popular_negatives=config.popular_negatives,
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            reg=config.reg,
            seed=seed,
        )

    def _finetune(self, log: Interactions, profile: NDArray[np.int64], seed: int) -> None:
        import torch
        from torch.nn.functional import softplus

        config = self.config
        schedule = self._schedule(log, (profile.shape[0], profile.shape[1]), seed)
        batches = pairwise(schedule.updates.batch_indptr)
        share = torch.as_tensor(fake_share(log, profile), device=self.device)
        self._factors.add_fake_users(len(profile), seed, config.initial_scale)
        user_ids, item_ids, negatives = (
            torch.as_tensor(ids, device=self.device) for ids in schedule.examples(log, profile)
        )
        users, items, bias = (
            torch.as_tensor(array, device=self.device).requires_grad_()
            for array in (self._factors.users, self._factors.items, self._factors.bias)
        )
        optimiser = torch.optim.SGD([users, items, bias], lr=config.finetune_learning_rate)
        for start, end in batches:
            user, item, other = user_ids[start:end], item_ids[start:end], negatives[start:end, 0]
            p, q, r = users[user], items[item], items[other]
            margin = (p * (q - r)).sum(dim=1) + bias[item] - bias[other]
            norms = (p**2 + q**2 + r**2).sum(dim=1) + bias[item] ** 2 + bias[other] ** 2
            loss = (softplus(-margin) + 0.5 * config.reg * norms).sum()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation
            hold_back(share, items, bias)
            optimiser.step()
        self._factors = Factors(*(x.detach().cpu().numpy() for x in (users, items, bias)))

    def _schedule(
        self, log: Interactions, profile_shape: tuple[int, int], seed: int
    ) -> FactorSchedule:
        return make_factor_schedule(
            log,
            profile_shape,
            self.config,
            seed=seed,
            n_negatives=1,
            popular_negatives=self.config.popular_negatives,
            n_new_items=self.n_new_items,
        )

    def _compiled_engine(self, lists: CandidateLists) -> ExposureEngine:
        from recattack_gym.victims.mf_engine import FactorEngine

        return FactorEngine(self._factors, lists, "pairs", self.config, self._schedule)
