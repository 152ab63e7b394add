"""PMF under adversarial training: with APR's perturbations, and with PamaCF's."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import draw_seed
from recattack_gym.victims.adversarial import Adversary, Coefficient
from recattack_gym.victims.adversarial_points import own_lengths, perturb_points
from recattack_gym.victims.base import ExposureEngine
from recattack_gym.victims.factors import Factors, hold_back
from recattack_gym.victims.pmf import PMF, PMFConfig
from recattack_gym.victims.ranking import CandidateLists
from recattack_gym.victims.schedule import fake_share


@dataclass(frozen=True, kw_only=True, slots=True)
class PMFAPRConfig(PMFConfig):
    """Settings of PMF-APR; those of PMF, and the adversary."""

    eps: float = 0.05
    """Euclidean length of the perturbation of an embedding; 0 is plain PMF.

    Validation HR@10 on ml-100k, where PMF has 0.155: 0.155 with 0.02, 0.152 with 0.05, 0.144 with 0.1. Items
    have a mean norm of 0.8 under PMF.
    """
    adv_reg: float = 1.0
    """Weight of the loss of perturbed embeddings relative to that of the clean ones. 0 is plain PMF."""
    plain_share: float = 0.5
    """Share of the passes, of clean training and of fine-tuning alike, that are plain and come first."""

    def __post_init__(self) -> None:
        super(
            PMFAPRConfig, self
        ).__post_init__()  # slots: the class is made twice, so no bare super()
        Adversary.checked(self.eps, self.adv_reg, self.plain_share)


class PMFAPR(PMF):
    """Factorise users and items by least squares, against perturbed embeddings.

    The adversary of He, He, Du, Chua, "Adversarial Personalized Ranking for Recommendation", SIGIR 2018, on
    the loss of PMF: after some passes of it, minimise `(L + adv_reg L') / (1 + adv_reg)`, where `L'` is the
    squared error of embeddings that are perturbed by `eps` in the direction that raises `L` most,
    `-eps s q / |q|` for the user and `-eps s p / |p|` for the item, `s` the sign of the error. So an error e
    becomes `e + s eps (|p| + |q|) - eps^2 cos(p, q)`. The perturbation is a constant in the gradient.

    With `eps = 0` or `adv_reg = 0` there is no adversary, and the victim is PMF of the same settings bit for
    bit. Fine-tuning is PMF's with the adversary in the same share of the passes.

    Differs from the paper: its loss is BPR's; the two losses are divided by `1 + adv_reg`; stochastic
    gradient descent, one pair at a time.
    """

    name = "PMF-APR"
    config_class = PMFAPRConfig
    config: PMFAPRConfig

    @property
    def _adversary(self) -> Adversary:
        config = self.config
        return Adversary(config.eps, config.adv_reg, config.plain_share, self._coefficient)

    @property
    def _coefficient(self) -> Coefficient:
        return "uniform"

    def _fit(self, log: Interactions, rng: np.random.Generator) -> None:
        from recattack_gym.victims.pmf_apr_kernel import fit_adversarial_points

        config = self.config
        seed = draw_seed(rng)
        self._factors = Factors.draw(log, config.embedding_size, config.initial_scale, rng)
        fit_adversarial_points(
            self._factors,
            log,
            self._adversary,
            n_negative_items=self._n_genuine_negatives,
            n_negatives=config.n_negatives,
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            reg=config.reg,
            seed=seed,
        )

    def _finetune(self, log: Interactions, profile: NDArray[np.int64], seed: int) -> None:
        import torch

        config, adversary = self.config, self._adversary
        if adversary.is_idle:
            super()._finetune(log, profile, seed)
            return
        schedule = self._schedule(log, (profile.shape[0], profile.shape[1]), seed)
        indptr = schedule.updates.batch_indptr
        n_plain = adversary.n_plain_batches(len(indptr) - 1, config.finetune_epochs)
        usual_size = adversary.usual_size(self._factors.users)
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
        for batch, (start, end) in enumerate(pairwise(indptr)):
            p = users[all_users[start:end]][:, None, :]  # (B, 1, d)
            q = items[all_items[start:end]]  # (B, 1 + n_negatives, d)
            error = clicked - (p * q).sum(dim=2)
            squares = error**2
            if batch >= n_plain:
                eps = own_lengths(p, adversary, usual_size)
                to_p, to_q = perturb_points(p, q, -torch.sign(error), eps)
                moved = (clicked - ((p + to_p) * (q + to_q)).sum(dim=2)) ** 2
                squares = torch.lerp(squares, moved, adversary.weight)
            norms = (p**2).sum(dim=2) + (q**2).sum(dim=2)
            loss = 0.5 * (squares + config.reg * norms).sum()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation
            hold_back(share, items)
            optimiser.step()
        self._factors = Factors(
            users.detach().cpu().numpy(), items.detach().cpu().numpy(), self._factors.bias
        )

    def _compiled_engine(self, lists: CandidateLists) -> ExposureEngine:
        from recattack_gym.victims.pmf_apr_engine import AdversarialPointsEngine

        if self._adversary.is_idle:
            return super()._compiled_engine(lists)
        return AdversarialPointsEngine(
            self._factors, lists, self.config, self._schedule, self._adversary
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PMFPamaCFConfig(PMFAPRConfig):
    """Settings of PMF-PamaCF."""

    eps: float = 0.05
    """Euclidean length of the perturbation of an embedding, of a user of the usual norm; 0 is plain PMF.

    Validation HR@10 on ml-100k and Steam, where PMF has 0.155 and 0.394: 0.152 and 0.388 with 0.05, 0.142 and
    0.378 with 0.1.
    """
    coefficient: Coefficient = "squared"
    """How a user's share of `eps` follows from the user's norm; see `PamaCFConfig`."""

    def __post_init__(self) -> None:
        super(PMFPamaCFConfig, self).__post_init__()  # slots: see APRConfig
        Adversary.checked(self.eps, self.adv_reg, self.plain_share, self.coefficient)


class PMFPamaCF(PMFAPR):
    """Factorise users and items by least squares, against perturbations of personal magnitude.

    Zhang, Cao, Wu, Sun, Shen, Cheng, "Understanding and Improving Adversarial Collaborative Filtering for
    Robust Recommendation", NeurIPS 2024, on squared errors: PMF-APR in which the perturbations of a pair have
    the length `c_u eps`, and c grows with the norm of the user's embedding (see `adversarial.coefficients`).
    The coefficient of the user holds for the item, too.

    With `eps = 0` or `adv_reg = 0` the victim is PMF of the same settings, and with `coefficient="uniform"`
    it is PMF-APR, bit for bit.

    Differs from the paper: as PMF-APR does; and norms are compared with their mean over all users at the
    beginning of an epoch (in fine-tuning: in the clean state), where the code takes the mean over a batch of
    2048 users, drawn uniformly.
    """

    name = "PMF-PamaCF"
    config_class = PMFPamaCFConfig
    config: PMFPamaCFConfig

    @property
    def _coefficient(self) -> Coefficient:
        return self.config.coefficient
