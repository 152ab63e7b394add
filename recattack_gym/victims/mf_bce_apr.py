"""MF-BCE under adversarial training: with APR's perturbations, and with PamaCF's."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import draw_seed
from recattack_gym.victims.adversarial import Adversary, Coefficient
from recattack_gym.victims.adversarial_points import own_lengths, perturb_points
from recattack_gym.victims.base import ExposureEngine
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.mf_bce import MFBCE, MFBCEConfig
from recattack_gym.victims.mf_bce_schedule import LogisticSchedule
from recattack_gym.victims.ranking import CandidateLists

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class MFBCEAPRConfig(MFBCEConfig):
    """Settings of MF-BCE-APR; those of MF-BCE, and the adversary."""

    eps: float = 0.15
    """Euclidean length of the perturbation of an embedding; 0 is plain MF-BCE.

    Validation HR@10 on ml-100k and Steam, where MF-BCE has 0.130 and 0.411 and its users a mean norm of 3.2
    and 1.9: 0.142 and 0.413 with 0.1, 0.143 and 0.414 with 0.15, 0.138 and 0.414 with 0.2. With 0.25 the
    embeddings of ml-100k begin to collapse (0.125, users of 1.7), with 0.3 they are gone (0.082, 0.5). Half
    the penalty and 0.25 halve what pushes at the embeddings of ml-100k cost, and rank as well there and on
    Steam (0.140 and 0.404), but not on the generated log (0.197, where MF-BCE has 0.216), so were not taken.
    """
    adv_reg: float = 1.0
    """Weight of the loss of perturbed embeddings relative to that of the clean ones. 0 is plain MF-BCE."""
    plain_share: float = 0.5
    """Share of the passes, of clean training and of fine-tuning alike, that are plain and come first."""

    def __post_init__(self) -> None:
        super(MFBCEAPRConfig, self).__post_init__()  # slots: see APRConfig
        Adversary.checked(self.eps, self.adv_reg, self.plain_share)


class MFBCEAPR(MFBCE):
    """Factorise users and items so that the score is a log odds, against perturbed embeddings.

    The adversary of He, He, Du, Chua, "Adversarial Personalized Ranking for Recommendation", SIGIR 2018, on
    the log loss of MF-BCE: after some passes of it, minimise `(L + adv_reg L') / (1 + adv_reg)`, where `L'`
    is the log loss of embeddings that are perturbed by `eps` in the direction that raises `L` most. With the
    score `x = p . q + b` and the label y the gradients of the loss are `(sigmoid(x) - y) q` by the user and
    `(sigmoid(x) - y) p` by the item, so the user moves by `-t eps q / |q|` and the item by `-t eps p / |p|`
    with `t = 1` for a click and `t = -1` for another item, and the score becomes `x - t eps (|p| + |q|) +
    eps^2 cos(p, q)` (see `adversarial_points`). The perturbation is a constant in the gradient, and the bias
    is not perturbed.

    With `eps = 0` or `adv_reg = 0` there is no adversary, and the victim is MF-BCE of the same settings bit
    for bit. Fine-tuning is MF-BCE's, along the clean run, with the adversary in the same share of the
    passes.

    Differs from the paper: its loss is BPR's; the two losses are divided by `1 + adv_reg`, so that step size
    and penalty keep their meaning when the adversary comes in; stochastic gradient descent, one example at a
    time; an item bias; what MF-BCE differs in.
    """

    name = "MF-BCE-APR"
    config_class = MFBCEAPRConfig
    config: MFBCEAPRConfig

    @property
    def _adversary(self) -> Adversary:
        config = self.config
        return Adversary(config.eps, config.adv_reg, config.plain_share, self._coefficient)

    @property
    def _coefficient(self) -> Coefficient:
        return "uniform"

    def _fit(self, log: Interactions, rng: np.random.Generator) -> None:
        from recattack_gym.victims.mf_bce_apr_kernel import fit_adversarial_logits

        config = self.config
        seed = draw_seed(rng)
        self._factors = Factors.draw(log, config.embedding_size, config.initial_scale, rng)
        self._run = fit_adversarial_logits(
            self._factors,
            log,
            self._adversary,
            n_negative_items=self._n_genuine_negatives,
            n_negatives=config.n_negatives,
            popular_negatives=config.popular_negatives,
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            reg=config.reg,
            seed=seed,
            n_waypoints=config.finetune_waypoints,
        )

    def _losses(
        self,
        users: "torch.Tensor",
        items: "torch.Tensor",
        bias: "torch.Tensor",
        labels: "torch.Tensor",
        schedule: LogisticSchedule,
        batch: int,
    ) -> "torch.Tensor":
        """See `MFBCE._losses`; of batches after the plain passes with the adversary's share."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        from recattack_gym.victims.mf_bce_apr_engine import first_adversarial_batch

        losses = super()._losses(users, items, bias, labels, schedule, batch)
        adversary, n_batches = self._adversary, len(schedule.waypoints)
        if adversary.is_idle or batch < first_adversarial_batch(
            adversary, n_batches, self.config.finetune_epochs
        ):
            return losses
        usual_size = adversary.usual_size(self._run.users[:, schedule.waypoints[batch]])
        eps = own_lengths(users, adversary, usual_size)
        to_users, to_items = perturb_points(users, items, 1.0 - 2.0 * labels, eps)
        moved = ((users + to_users) * (items + to_items)).sum(dim=1) + bias
        pushed = binary_cross_entropy_with_logits(moved, labels, reduction="none")
        return losses.lerp(pushed, adversary.weight)

    def _compiled_engine(self, lists: CandidateLists) -> ExposureEngine:
        from recattack_gym.victims.mf_bce_apr_engine import AdversarialLogisticEngine

        if self._adversary.is_idle:
            return super()._compiled_engine(lists)
        return AdversarialLogisticEngine(
            self._factors,
            self._run,
            lists,
            self.config,
            self._schedule,
            self.n_new_items,
            self._adversary,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MFBCEPamaCFConfig(MFBCEAPRConfig):
    """Settings of MF-BCE-PamaCF."""

    eps: float = 0.15
    """Euclidean length of the perturbation of an embedding, of a user of the usual norm; 0 is plain MF-BCE.

    Validation HR@10 on ml-100k and Steam, where MF-BCE has 0.130 and 0.411: 0.142 and 0.410 with 0.1, 0.142
    and 0.406 with 0.15, 0.142 and 0.391 with 0.2.
    """
    coefficient: Coefficient = "squared"
    """How a user's share of `eps` follows from the user's norm; see `PamaCFConfig`."""

    def __post_init__(self) -> None:
        super(MFBCEPamaCFConfig, self).__post_init__()  # slots: see APRConfig
        Adversary.checked(self.eps, self.adv_reg, self.plain_share, self.coefficient)


class MFBCEPamaCF(MFBCEAPR):
    """Factorise users and items so that the score is a log odds, against perturbations of personal magnitude.

    Zhang, Cao, Wu, Sun, Shen, Cheng, "Understanding and Improving Adversarial Collaborative Filtering for
    Robust Recommendation", NeurIPS 2024, on the log loss: MF-BCE-APR in which the perturbations of a pair
    have the length `c_u eps`, and c grows with the norm of the user's embedding (see
    `adversarial.coefficients`). The coefficient of the user holds for the item, too.

    With `eps = 0` or `adv_reg = 0` the victim is MF-BCE of the same settings, and with
    `coefficient="uniform"` it is MF-BCE-APR, bit for bit.

    Differs from the paper: as MF-BCE-APR does; and norms are compared with their mean over all users at the
    beginning of an epoch, in fine-tuning at the waypoint of the clean run that an example meets, where the
    code takes the mean over a batch of 2048 users, drawn uniformly.
    """

    name = "MF-BCE-PamaCF"
    config_class = MFBCEPamaCFConfig
    config: MFBCEPamaCFConfig

    @property
    def _coefficient(self) -> Coefficient:
        return self.config.coefficient
