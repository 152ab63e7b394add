"""APR: matrix factorisation whose ranking survives a push at its embeddings."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import draw_seed
from recattack_gym.victims.adversarial import Adversary, Coefficient, adversarial_losses
from recattack_gym.victims.base import ExposureEngine
from recattack_gym.victims.bpr import BPR, BPRConfig
from recattack_gym.victims.factors import Factors, hold_back
from recattack_gym.victims.ranking import CandidateLists
from recattack_gym.victims.schedule import fake_share


@dataclass(frozen=True, kw_only=True, slots=True)
class APRConfig(BPRConfig):
    """Settings of APR; those of BPR, and the adversary."""

    reg: float = 0.005
    """L2 penalty on the rows of each example, bias included; half of BPR's, as the adversary is one, too."""
    eps: float = 0.3
    """Euclidean length of the perturbation of an embedding; 0 is plain BPR.

    The paper has 0.5, the code of PamaCF 0.3. Embeddings have norms of 1.7 to 3 without an adversary; with
    0.4 those of ml-100k begin to collapse, since embeddings of zero are the best answer to perturbations
    that are longer than what they teach. Validation HR@10 on ml-100k and Steam, where BPR has 0.136 and
    0.411: 0.147 and 0.407 with 0.3, 0.110 and 0.408 with 0.4. On ml-1m 0.3 is too much (docs/defenses.md).
    """
    adv_reg: float = 1.0
    """Weight of the loss of perturbed embeddings relative to that of the clean ones; 1 in the paper (lambda).
    0 is plain BPR."""
    plain_share: float = 0.5
    """Share of the passes, of clean training and of fine-tuning alike, that are plain BPR and come first;
    a half in the authors' code, 4 of 30 in PamaCF's."""

    finetune_replay: float = 2.0
    """How often a clicked item is a genuine user's negative in fine-tuning; 1 is clean training's rate.

    Chosen with `retrain="full"` on 11 attacks on Steam, on a platform that is not the reported one: 1 orders
    them equally well (a Spearman correlation of 0.99), but RecNum is 1.49 times that of full retraining, with
    2 it is 1.07 times (`recattack bench fidelity --protocol poisonrec --seed 7 --victims APR`).
    """

    def __post_init__(self) -> None:
        super(APRConfig, self).__post_init__()  # slots: the class is made twice, so no bare super()
        Adversary.checked(self.eps, self.adv_reg, self.plain_share)


class APR(BPR):
    """Adversarial personalised ranking of a matrix factorisation (AMF), with an item bias.

    He, He, Du, Chua, "Adversarial Personalized Ranking for Recommendation", SIGIR 2018: after some passes of
    BPR, minimise `(L + adv_reg L') / (1 + adv_reg)`, where `L'` is the BPR loss of embeddings that are
    perturbed by `eps` in the direction that raises `L` most (Eqs. 8 to 11); see `adversarial` for the closed
    form. The perturbation is a constant in the gradient.

    With `eps = 0` or `adv_reg = 0` there is no adversary: all passes are BPR's, draws included, and the
    victim is BPR of the same settings bit for bit. (For `eps -> 0` it comes as near as floating point does.)

    Fine-tuning is BPR's (see `FactorVictim`) with the adversary in the same share of the passes, and with
    twice as many negatives of genuine users.

    Differs from the paper: the two losses are divided by `1 + adv_reg`, so that step size and penalty keep
    their meaning when the adversary comes in (undivided, BPR's settings rank worse with it); stochastic
    gradient descent, one example at a time, where the paper has Adagrad and batches of 512, so that
    perturbations per sample and per row (see `adversarial`) are the same thing; an item bias, which is not
    perturbed; some negatives are drawn by popularity; a penalty on the factors.
    """

    name = "APR"
    config_class = APRConfig
    config: APRConfig

    @property
    def _adversary(self) -> Adversary:
        config = self.config
        return Adversary(config.eps, config.adv_reg, config.plain_share, self._coefficient)

    @property
    def _coefficient(self) -> Coefficient:
        return "uniform"

    def _fit(self, log: Interactions, rng: np.random.Generator) -> None:
        from recattack_gym.victims.adversarial_kernel import fit_adversarial

        config = self.config
        seed = draw_seed(rng)
        self._factors = Factors.draw(log, config.embedding_size, config.initial_scale, rng)
        fit_adversarial(
            self._factors,
            log,
            self._adversary,
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
        user_ids, item_ids, negatives = (
            torch.as_tensor(ids, device=self.device) for ids in schedule.examples(log, profile)
        )
        users, items, bias = (
            torch.as_tensor(array, device=self.device).requires_grad_()
            for array in (self._factors.users, self._factors.items, self._factors.bias)
        )
        optimiser = torch.optim.SGD([users, items, bias], lr=config.finetune_learning_rate)
        for batch, (start, end) in enumerate(pairwise(indptr)):
            user, item, other = user_ids[start:end], item_ids[start:end], negatives[start:end, 0]
            p, q, r = users[user], items[item], items[other]
            above = bias[item] - bias[other]
            norms = (p**2 + q**2 + r**2).sum(dim=1) + bias[item] ** 2 + bias[other] ** 2
            if batch < n_plain:
                losses = softplus(-(p * (q - r)).sum(dim=1) - above)
            else:
                losses = adversarial_losses(p, q, r, above, adversary, usual_size)
            loss = (losses + 0.5 * config.reg * norms).sum()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation
            hold_back(share, items, bias)
            optimiser.step()
        self._factors = Factors(*(x.detach().cpu().numpy() for x in (users, items, bias)))

    def _compiled_engine(self, lists: CandidateLists) -> ExposureEngine:
        from recattack_gym.victims.apr_engine import AdversarialEngine

        if self._adversary.is_idle:
            return super()._compiled_engine(lists)
        return AdversarialEngine(self._factors, lists, self.config, self._schedule, self._adversary)
