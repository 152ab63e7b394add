"""MF-BCE: matrix factorisation trained to tell clicks from sampled items by log loss."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count, as_real
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
class MFBCEConfig(FactorConfig):
    """Settings of MF-BCE; clean training takes one example at a time, so `batch_size` has no effect."""

    epochs: int = 40
    """Passes over the log in clean training and in `retrain="full"`."""
    learning_rate: float = 0.05
    """Step size of stochastic gradient descent in clean training."""
    reg: float = 0.01
    """L2 penalty on the rows of each example, bias included."""
    n_negatives: int = 4
    """Items per click that the user has not clicked; 4 as in the experiments on Gradient Passing."""
    popular_negatives: float = 0.5
    """Share of clicks' first negatives that are drawn by popularity instead of uniformly, in `[0, 1]`.

    Validation HR@10 on Steam: 0.352 with none, 0.410 with a half.
    """
    new_items_as_negatives: bool = True
    """Whether genuine users' examples may draw new items as negatives.

    Yes, as in NeuMF: a score is a log odds, far below 0 for nearly every pair, so new items that are never a
    negative stay near 0 and above the others. On Steam targets got 51,348 of 52,048 places without attack.
    In fine-tuning they are drawn less often than in clean training (with these settings 0.57 times).
    """
    finetune_epochs: int = 40
    """Passes over the fake clicks in fine-tuning; this and the step size are those of clean training."""
    finetune_learning_rate: float = 0.05
    """Step size of stochastic gradient descent in fine-tuning."""
    finetune_replay: float = 1.0
    """How often a clicked item is a genuine user's negative in fine-tuning; 1 is clean training's rate."""
    finetune_batch_size: int = 32
    """Examples per step, whose gradients are summed; clean training takes one at a time."""

    def __post_init__(self) -> None:
        super(
            MFBCEConfig, self
        ).__post_init__()  # slots: the class is made twice, so no bare super()
        as_count("n_negatives", self.n_negatives)
        as_real("popular_negatives", self.popular_negatives, at_least=0.0, at_most=1.0)


class MFBCE(FactorVictim):
    """Factorise users and items so that the score is the log odds of a click.

    Matrix factorisation with the log loss of He, Liao, Zhang, Nie, Hu, Chua, "Neural Collaborative
    Filtering", WWW 2017, equation 7: minimise `-sum log sigmoid(x_ui) - sum log sigmoid(-x_uj)` over
    clicks (u, i) and sampled items j that u has not clicked, plus `reg / 2` times the squared
    parameters, with `x_ui = p_u . q_i + b_i`. It is the victim, and the surrogate of the attackers, in the
    experiments on Gradient Passing (RecSys 2024), there called MF-BCE.

    Fine-tuning is full retraining restricted to what the poison decides; see `FactorVictim`. It overestimates
    attacks, 2.4 times on Steam, and orders them badly (Spearman 0.51; `recattack bench fidelity`): use
    `retrain="full"` where numbers matter.

    Differs from the paper: the score is the inner product of generalised matrix factorisation with all
    output weights one, plus an item bias; stochastic gradient descent, one example at a time, where both
    papers use Adam; every click once per epoch, where the experiments draw users uniformly and then one
    of their clicks; positive and negative examples weigh the same; fine-tuning takes a minibatch at a time
    (summed gradients).
    """

    name = "MF-BCE"
    config_class = MFBCEConfig
    config: MFBCEConfig

    def _fit(self, log: Interactions, rng: np.random.Generator) -> None:
        from recattack_gym.victims.mf_bce_kernel import fit_bce

        config = self.config
        seed = draw_seed(rng)
        self._factors = Factors.draw(log, config.embedding_size, config.initial_scale, rng)
        fit_bce(
            self._factors,
            log,
            n_negative_items=self._n_genuine_negatives,
            n_negatives=config.n_negatives,
            popular_negatives=config.popular_negatives,
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            reg=config.reg,
            seed=seed,
        )

    def _finetune(self, log: Interactions, profile: NDArray[np.int64], seed: int) -> None:
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

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
        users, items, bias = (
            torch.as_tensor(array, device=self.device).requires_grad_()
            for array in (self._factors.users, self._factors.items, self._factors.bias)
        )
        optimiser = torch.optim.SGD([users, items, bias], lr=config.finetune_learning_rate)
        for start, end in batches:
            p = users[all_users[start:end]][:, None, :]  # (B, 1, d)
            q = items[all_items[start:end]]  # (B, 1 + n_negatives, d)
            b = bias[all_items[start:end]]
            logit = (p * q).sum(dim=2) + b
            label = torch.zeros_like(logit)
            label[:, 0] = 1.0
            norms = ((p**2).sum(dim=2) + (q**2).sum(dim=2) + b**2).sum()
            loss = binary_cross_entropy_with_logits(logit, label, reduction="sum")
            optimiser.zero_grad()
            loss = loss + 0.5 * config.reg * norms
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
            n_negatives=self.config.n_negatives,
            popular_negatives=self.config.popular_negatives,
            n_new_items=self.n_new_items,
        )

    def _compiled_engine(self, lists: CandidateLists) -> ExposureEngine:
        from recattack_gym.victims.mf_bce_engine import LogisticEngine

        return LogisticEngine(self._factors, lists, "points", self.config, self._schedule)
