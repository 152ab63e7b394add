"""LightGCN under adversarial training: with APR's perturbations, and with PamaCF's."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.victims.adversarial import Adversary, Coefficient, adversarial_losses
from recattack_gym.victims.apr import APRConfig
from recattack_gym.victims.base import ExposureEngine
from recattack_gym.victims.bpr import BPRConfig
from recattack_gym.victims.factors import Factors, hold_back
from recattack_gym.victims.graph import InteractionGraph
from recattack_gym.victims.lightgcn import LightGCN, LightGCNConfig, propagate
from recattack_gym.victims.ngcf import Examples, _adjacency
from recattack_gym.victims.pamacf import PamaCFConfig
from recattack_gym.victims.ranking import CandidateLists
from recattack_gym.victims.schedule import fake_share


@dataclass(frozen=True, kw_only=True, slots=True)
class LightGCNAPRConfig(LightGCNConfig):
    """Settings of LightGCN-APR; the warm start has APR's own defaults besides."""

    eps: float = 0.3
    """Euclidean length of the perturbation of a final embedding, as in APR; 0 is plain LightGCN."""
    adv_reg: float = 1.0
    """Weight of the loss of perturbed embeddings, relative to that of the clean ones; 0 is plain LightGCN."""
    plain_share: float = 0.5
    """Share of the passes of the warm start, and of fine-tuning, that are plain and come first. Training on
    the graph, which is short, is adversarial from its beginning."""

    def __post_init__(self) -> None:
        super(LightGCNAPRConfig, self).__post_init__()  # slots: see APRConfig
        Adversary.checked(self.eps, self.adv_reg, self.plain_share)


class LightGCNAPR(LightGCN):
    """LightGCN trained against perturbations of its final embeddings (APR).

    LightGCN: He, Deng, Wang, Li, Zhang, Wang, SIGIR 2020. Adversary: He, He, Du, Chua, "Adversarial
    Personalized Ranking for Recommendation", SIGIR 2018; on the final embeddings and per sample, as in the
    code of Zhang, Cao, Wu, Sun, Shen, Cheng, NeurIPS 2024 (see `PamaCF`). All three parts of LightGCN have
    it: the factors that layer 0 starts from are those of `APR`, training on the graph adds the loss of
    perturbed final embeddings, and so does fine-tuning.

    With `eps = 0` or `adv_reg = 0` the victim is LightGCN, bit for bit.

    Differs from the paper: as LightGCN and APR do; the coordinate that holds the item bias is not perturbed.
    """

    name = "LightGCN-APR"
    config_class = LightGCNAPRConfig
    config: LightGCNAPRConfig
    _factor_config: ClassVar[type[APRConfig]] = APRConfig
    """Whose defaults the warm start and fine-tuning have."""

    @property
    def _adversary(self) -> Adversary:
        config = self.config
        return Adversary(config.eps, config.adv_reg, config.plain_share, self._coefficient)

    @property
    def _coefficient(self) -> Coefficient:
        return "uniform"

    def _fit_factors(self, factors: Factors, log: Interactions, seed: int) -> None:
        from recattack_gym.victims.adversarial_kernel import fit_adversarial

        if self._adversary.is_idle:
            super()._fit_factors(factors, log, seed)
            return
        config, apr = self.config, self._factor_config()
        fit_adversarial(
            factors,
            log,
            self._adversary,
            n_negative_items=config.negatives_below(log.n_items, self.n_new_items),
            popular_negatives=apr.popular_negatives,
            epochs=config.warm_start_epochs,
            learning_rate=apr.learning_rate,
            reg=apr.reg,
            seed=seed,
        )

    @property
    def _bpr_config(self) -> BPRConfig:
        """The settings of APR that fine-tuning follows; without an adversary, those of BPR."""
        bpr = super()._bpr_config
        if self._adversary.is_idle:
            return bpr
        config = self.config
        return self._factor_config(
            embedding_size=bpr.embedding_size,
            initial_scale=bpr.initial_scale,
            new_items_as_negatives=bpr.new_items_as_negatives,
            finetune_epochs=bpr.finetune_epochs,
            finetune_learning_rate=bpr.finetune_learning_rate,
            finetune_replay=bpr.finetune_replay,
            finetune_batch_size=bpr.finetune_batch_size,
            eps=config.eps,
            adv_reg=config.adv_reg,
            plain_share=config.plain_share,
        )

    def _train_final(
        self, log: Interactions, profile: NDArray[np.int64], seed: int, final: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        import torch
        from torch.nn.functional import softplus

        adversary = self._adversary
        if adversary.is_idle:
            return super()._train_final(log, profile, seed, final)
        config = self._bpr_config
        schedule = self._schedule(log, (profile.shape[0], profile.shape[1]), seed)
        indptr = schedule.updates.batch_indptr
        n_plain = adversary.n_plain_batches(len(indptr) - 1, config.finetune_epochs)
        usual_size = adversary.usual_size(final[log.n_items : log.n_items + log.n_users, :-1])
        share = torch.as_tensor(fake_share(log, profile), device=self.device)
        user_ids, item_ids, negatives = (
            torch.as_tensor(ids, device=self.device) for ids in schedule.examples(log, profile)
        )
        items = torch.tensor(final[: log.n_items], device=self.device).requires_grad_()
        rows = torch.tensor(final[log.n_items :], device=self.device)
        users, constant = rows[:, :-1].clone().requires_grad_(), rows[:, -1]
        optimiser = torch.optim.SGD([users, items], lr=config.finetune_learning_rate)
        for batch, (start, end) in enumerate(pairwise(indptr)):
            of_examples = user_ids[start:end]
            p, q, r = users[of_examples], items[item_ids[start:end]], items[negatives[start:end, 0]]
            above = constant[of_examples] * (q[:, -1] - r[:, -1])
            norms = (p**2).sum(dim=1) + (q**2 + r**2).sum(dim=1)
            q, r = q[:, :-1], r[:, :-1]
            if batch < n_plain:
                losses = softplus(-(p * (q - r)).sum(dim=1) - above)
            else:
                losses = adversarial_losses(p, q, r, above, adversary, usual_size)
            loss = (losses + 0.5 * config.reg * norms).sum()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation
            hold_back(share, items)
            optimiser.step()
        with torch.no_grad():
            return torch.cat([items, torch.column_stack([users, constant])]).cpu().numpy()

    def _train(self, parts: Iterator[Examples]) -> None:
        import torch
        from torch.nn.functional import embedding

        adversary = self._adversary
        if adversary.is_idle:
            super()._train(parts)
            return
        n_items = self.log.n_items
        adjacency = _adjacency(InteractionGraph.from_log(self.log), self.device)
        layer0 = torch.tensor(self._embeddings, device=self.device).requires_grad_()
        optimiser = torch.optim.Adam([layer0])
        for users, items, negatives, indptr, learning_rate in parts:
            optimiser.param_groups[0]["lr"] = learning_rate
            triples = np.stack([users + n_items, items, negatives]).astype(np.int64)
            on_device = torch.from_numpy(triples).to(self.device)
            for first, last in pairwise(indptr.tolist()):
                batch = on_device[:, first:last]
                final = propagate(adjacency, layer0, self.config.n_layers)
                rows = embedding(batch, final)
                above = rows[0, :, -1] * (rows[1, :, -1] - rows[2, :, -1])
                p, q, r = rows[:, :, :-1]
                usual_size = adversary.usual_size(p.detach().cpu().numpy())
                loss = adversarial_losses(p, q, r, above, adversary, usual_size).mean()
                penalty = embedding(batch, layer0).square().sum() / (last - first)
                optimiser.zero_grad()
                (loss + 0.5 * self.config.reg * penalty).backward()
                optimiser.step()
        self._embeddings = layer0.detach().cpu().numpy()
        self._final = None

    def _train_compiled(self, parts: Iterator[Examples]) -> None:
        from recattack_gym.victims.adversarial_kernel import (
            Opponent,
            add_adversarial_pairs,
            add_decay,
        )
        from recattack_gym.victims.graph_kernel import graph_arrays
        from recattack_gym.victims.kernels import adam_rows
        from recattack_gym.victims.lightgcn_kernel import average_layers, make_workspace

        adversary = self._adversary
        if adversary.is_idle:
            super()._train_compiled(parts)
            return
        config, n_items, rows = self.config, self.log.n_items, self._embeddings
        graph = graph_arrays(InteractionGraph.from_log(self.log))
        everyone = np.arange(len(rows), dtype=np.int32)
        work = make_workspace(*rows.shape)
        n_steps = 0
        for users, items, negatives, indptr, learning_rate in parts:
            triples = np.stack([users, items, negatives]).astype(np.int32)
            for first, last in pairwise(indptr.tolist()):
                of_users, of_items, of_others = (ids[first:last] for ids in triples)
                average_layers(
                    graph, config.n_layers, everyone, rows, work.layer, work.next_layer, work.final
                )
                opponent = Opponent.of(adversary, work.final[n_items + of_users, :-1])
                add_adversarial_pairs(
                    work.final,
                    of_users,
                    of_items,
                    of_others,
                    n_items,
                    opponent,
                    work.final_gradient,
                )
                average_layers(
                    graph,
                    config.n_layers,
                    everyone,
                    work.final_gradient,
                    work.layer,
                    work.next_layer,
                    work.gradient,
                )
                work.final_gradient[:] = 0.0
                add_decay(rows, of_users, of_items, of_others, n_items, config.reg, work.gradient)
                n_steps += 1
                adam_rows(
                    rows.reshape(-1),
                    work.gradient.reshape(-1),
                    work.first.reshape(-1),
                    work.second.reshape(-1),
                    rows.size,
                    learning_rate,
                    n_steps,
                )
        self._final = None

    def _compiled_engine(self, lists: CandidateLists) -> ExposureEngine | None:
        adversary = self._adversary
        if adversary.is_idle or self.device != "cpu" or self.config.n_layers % 2 == 1:
            return super()._compiled_engine(lists)
        from recattack_gym.victims.apr_engine import LightGCNAdversarialEngine

        final, n_items = self._propagated(), self.log.n_items
        factors = Factors(final[n_items:], final[:n_items], np.zeros(n_items, dtype=np.float32))
        return LightGCNAdversarialEngine(
            factors, lists, self._bpr_config, self._schedule, self._first_fakes, adversary
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LightGCNPamaCFConfig(LightGCNAPRConfig):
    """Settings of LightGCN-PamaCF; the warm start has PamaCF's own defaults besides."""

    eps: float = 0.2
    """Euclidean length of the perturbation of a final embedding, of a user of usual norm, as in PamaCF."""
    coefficient: Coefficient = "squared"
    """How a user's share of `eps` follows from the norm of the final embedding; see `PamaCFConfig`."""

    def __post_init__(self) -> None:
        super(LightGCNPamaCFConfig, self).__post_init__()  # slots: see APRConfig
        Adversary.checked(self.eps, self.adv_reg, self.plain_share, self.coefficient)


class LightGCNPamaCF(LightGCNAPR):
    """LightGCN trained against perturbations of personal magnitude (PamaCF).

    Zhang, Cao, Wu, Sun, Shen, Cheng, "Understanding and Improving Adversarial Collaborative Filtering for
    Robust Recommendation", NeurIPS 2024; see `PamaCF` for the coefficient and `LightGCNAPR` for what is
    perturbed. The warm start's factors are those of `PamaCF`.

    With `eps = 0` or `adv_reg = 0` the victim is LightGCN, bit for bit.

    Differs from the paper: as LightGCN-APR does. Training on the graph compares norms with their mean over
    the batch, as the code does, but the warm start and fine-tuning compare them as `PamaCF` does.
    """

    name = "LightGCN-PamaCF"
    config_class = LightGCNPamaCFConfig
    config: LightGCNPamaCFConfig
    _factor_config = PamaCFConfig

    @property
    def _coefficient(self) -> Coefficient:
        return self.config.coefficient
