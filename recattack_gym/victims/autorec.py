"""AutoRec: an autoencoder that completes a user's row of clicks."""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_real
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import draw_seed
from recattack_gym.victims.base import ExposureEngine, GradientConfig, State, Victim, state_array
from recattack_gym.victims.epochs import visit_batches
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.ranking import CandidateLists

if TYPE_CHECKING:
    import torch

    from recattack_gym.victims.autorec_kernel import Objective


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoRecConfig(GradientConfig):
    """Settings of AutoRec; an example is one user's whole row."""

    embedding_size: int = 64
    """Hidden units (the paper has 500 for ratings)."""
    epochs: int = 30
    """Passes over the users in clean training and in `retrain="full"`."""
    learning_rate: float = 5e-3
    """First step size of Adam in clean training; it falls linearly to zero."""
    batch_size: int = 64
    """Users per gradient step of clean training."""
    unclicked_weight: float = 0.3
    """Weight of an unclicked entry's squared error; a clicked entry has 1."""
    initial_scale: float = 0.01
    """Standard deviation of untrained encoder and decoder rows."""
    new_items_as_negatives: bool = True
    """Whether a genuine user's row says 0 for new items.

    Yes, since the decoder is dense. If not, the only rows that speak of a target are those that click
    it, and one click shows it to everybody.
    """
    finetune_epochs: int = 200
    """Steps of `retrain="finetune"`, each over all fake users and all genuine zeros."""
    finetune_learning_rate: float = 0.03
    """First step size of Adam in fine-tuning; it falls linearly to zero."""
    finetune_replay: float = 0.0
    """Without effect: fine-tuning needs no sample of genuine rows."""
    finetune_batch_size: int = 256
    """Without effect: every step of fine-tuning takes all rows."""

    def __post_init__(self) -> None:
        super(AutoRecConfig, self).__post_init__()  # slots: the class is made twice
        as_real("unclicked_weight", self.unclicked_weight, above=0.0)
        as_real("initial_scale", self.initial_scale, above=0.0)


class AutoRec(Victim):
    """Encode a user's row of clicks into a few hidden units and decode a score for every item.

    Sedhain, Menon, Sanner, Xie, "AutoRec: Autoencoders Meet Collaborative Filtering", WWW 2015, in the
    user-based form U-AutoRec (equation 1 with users for items): `score = W sigmoid(V r_u + mu) + b`
    for the row `r_u` of user u. A fake user is one more row to learn from; user-based, because the
    paper's better item-based form has one input per user, so that fake users would change the shape
    of the network and could not be fine-tuned.

    Differs from the paper: clicks instead of ratings. The row is 1 where the user has clicked (however
    often) and 0 elsewhere; since a loss over observed entries alone would be solved by "always 1", the
    unclicked entries count as zeros with the smaller weight `unclicked_weight` (Hu, Koren, Volinsky,
    ICDM 2008). Adam instead of RProp or L-BFGS, with steps that fall to zero: so clean training settles, and
    two full retrainings with different seeds order attacks alike (Spearman .99 on Steam against .66 with
    constant steps and 128 users per batch). L2 penalty `reg` on the weights of the clicked items,
    once per click. New items are left out of the rows of users who clicked none of them, unless
    `new_items_as_negatives`.

    Fine-tuning is full retraining restricted to what the poison decides, and draws nothing. Genuine
    users' hidden states, the encoder of old items and all of the decoder that no fake user clicked
    rest. The decoder and encoder rows of clicked new items (items without a genuine click) take
    `finetune_epochs` full steps of Adam on the loss of clean training: over the fake users' whole rows
    and the zeros that genuine rows say of these items. Then the decoder row of each clicked old item is
    solved for, between the fake users' entries and genuine scores, which it wants to leave as they are.
    `reg` acts on new items only. On Steam (48 attacks, 20 x 20) RecNum has Spearman .96 with that of full
    retraining and is 1.3 times as high; 150 to 600 steps of size .01 to .05 agree about equally well.
    It falls short where many fake users mix targets and other items: 200 x 50 such clicks get 3 times
    the RecNum of full retraining, which also teaches the encoder to tell such users apart.
    """

    name = "AutoRec"
    config_class = AutoRecConfig
    config: AutoRecConfig

    def _fit(self, log: Interactions, rng: np.random.Generator) -> None:
        config = self.config
        seed = draw_seed(rng)
        shape = (log.n_items, config.embedding_size)
        self._weights = {
            "decoder": _normal(rng, shape, config.initial_scale),
            "encoder": _normal(rng, shape, config.initial_scale),
            "decoder_bias": np.zeros(log.n_items, dtype=np.float32),
            "encoder_bias": np.zeros(config.embedding_size, dtype=np.float32),
        }
        users = np.flatnonzero(np.diff(log.indptr))
        orders, batches = [users[:0]], [np.zeros(1, dtype=np.int64)]
        for epoch in range(config.epochs):
            order, indptr = visit_batches(seed, epoch, len(users), config.batch_size)
            orders.append(users[order])
            batches.append(epoch * len(users) + indptr[1:])
        rows, bounds = np.concatenate(orders), np.concatenate(batches)
        rates = falling_rates(config.learning_rate, len(bounds) - 1)
        if self.device == "cpu":
            from recattack_gym.victims.autorec_kernel import fit

            fit(self._weights, log.seen, rows, bounds, rates, self._objective)
        else:
            self._train(log, rows, bounds, rates)

    @property
    def _objective(self) -> "Objective":
        from recattack_gym.victims.autorec_kernel import Objective

        return Objective(
            n_unclickable=self._n_unclickable,
            unclicked_weight=self.config.unclicked_weight,
            reg=self.config.reg,
        )

    def _compiled_engine(self, lists: CandidateLists) -> ExposureEngine | None:
        if lists.item_ids is None or self.device != "cpu":
            return None
        from recattack_gym.victims.autorec_engine import AutoRecEngine

        rates = falling_rates(self.config.finetune_learning_rate, self.config.finetune_epochs)
        hidden = self._hidden(np.arange(lists.n_users))
        return AutoRecEngine(self._weights, hidden, lists, rates, self._objective)

    @property
    def _n_unclickable(self) -> int:
        """Trailing items whose absence from a row says nothing, unless the row has one of them."""
        n_items = self.log.n_items
        return n_items - self.config.negatives_below(n_items, self.n_new_items)

    def _finetune(self, log: Interactions, profile: NDArray[np.int64], seed: int) -> None:
        del seed  # nothing is drawn
        clicked = np.unique(profile)
        is_new = log.item_popularity[clicked] == 0
        genuine = self._hidden(np.flatnonzero(np.diff(log.indptr)))
        self._refit_new(profile, clicked[is_new], genuine)
        fakes = self._hidden(log.n_users + np.arange(len(profile)))
        self._refit_old(profile, clicked[~is_new], genuine, fakes)

    def _refit_new(
        self, profile: NDArray[np.int64], items: NDArray[np.int64], genuine: NDArray[np.float32]
    ) -> None:
        """Take Adam steps on the rows of new items, over all fake users and all genuine zeros."""
        import torch

        config = self.config
        n_known = self.log.n_items - self._n_unclickable
        weights = {
            name: torch.as_tensor(array, device=self.device)
            for name, array in self._weights.items()
        }
        new = torch.as_tensor(items, device=self.device)
        hidden = torch.as_tensor(genuine, device=self.device)
        is_met = new < n_known
        row = torch.zeros(len(profile), self.log.n_items, device=self.device)
        row[torch.arange(len(profile))[:, None], torch.as_tensor(profile, device=self.device)] = 1.0
        weight = self._entry_weights(row)
        moving = {
            name: weights[name][new].requires_grad_()
            for name in ("decoder", "encoder", "decoder_bias")
        }
        optimiser = torch.optim.Adam(moving.values())
        for rate in falling_rates(config.finetune_learning_rate, config.finetune_epochs):
            decoder, encoder, bias = (
                weights[name].index_copy(0, new, array) for name, array in moving.items()
            )
            fake_hidden = torch.sigmoid(row @ encoder + weights["encoder_bias"])
            loss = (weight * (fake_hidden @ decoder.T + bias - row) ** 2).sum()
            zeros = hidden @ moving["decoder"].T + moving["decoder_bias"]
            loss = loss + config.unclicked_weight * (zeros**2 * is_met).sum()
            if config.reg:
                norms = (moving["decoder"] ** 2 + moving["encoder"] ** 2).sum(dim=1)
                loss = loss + 0.5 * config.reg * row[:, new].sum(dim=0) @ norms
            optimiser.param_groups[0]["lr"] = float(rate)
            optimiser.zero_grad()
            loss = loss / (len(genuine) + len(profile))
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation
            optimiser.step()
        for name, array in moving.items():
            self._weights[name][items] = array.detach().cpu().numpy()

    def _refit_old(
        self,
        profile: NDArray[np.int64],
        items: NDArray[np.int64],
        genuine: NDArray[np.float32],
        fakes: NDArray[np.float32],
    ) -> None:
        """Solve for the decoder rows of old items between the fake users and all genuine scores."""
        extra = 1.0 - self.config.unclicked_weight
        rows = np.column_stack([fakes, np.ones(len(fakes))]).astype(np.float64)
        others = np.column_stack([genuine, np.ones(len(genuine))]).astype(np.float64)
        shared = others.T @ others + np.eye(len(others.T)) + rows.T @ rows
        for item in items:
            is_click = (profile == item).any(axis=1)
            weight = np.where(is_click, 1.0, self.config.unclicked_weight)
            old = np.append(self._weights["decoder"][item], self._weights["decoder_bias"][item])
            clicking = rows[is_click]
            system = self.config.unclicked_weight * shared + extra * clicking.T @ clicking
            move = np.linalg.solve(system, rows.T @ (weight * (is_click - rows @ old)))
            self._weights["decoder"][item] += move[:-1].astype(np.float32)
            self._weights["decoder_bias"][item] += np.float32(move[-1])

    def _entry_weights(self, row: "torch.Tensor") -> "torch.Tensor":
        """Return what each entry's squared error counts, for whole rows of clicks `(B, n_items)`."""
        n_known = self.log.n_items - self._n_unclickable
        weight = row + self.config.unclicked_weight * (1.0 - row)
        weight[(row[:, n_known:] == 0.0).all(dim=1), n_known:] = 0.0
        return weight

    def _train(
        self,
        log: Interactions,
        rows: NDArray[np.int64],
        batches: NDArray[np.int64],
        rates: NDArray[np.float64],
    ) -> None:
        """Take one Adam step of size `rates[b]` per batch of users `rows[batches[b]:batches[b + 1]]`."""
        import torch
        from torch.nn.functional import embedding_bag

        config = self.config
        indptr, seen = log.seen
        weights = {
            name: torch.as_tensor(array, device=self.device).requires_grad_()
            for name, array in self._weights.items()
        }
        encoder, decoder = weights["encoder"], weights["decoder"]
        optimiser = torch.optim.Adam(weights.values())
        for (start, end), rate in zip(pairwise(batches), rates, strict=True):
            users = rows[start:end]
            counts = indptr[users + 1] - indptr[users]
            clicked = np.concatenate([seen[indptr[u] : indptr[u + 1]] for u in users])
            items = torch.as_tensor(clicked.astype(np.int64), device=self.device)
            bags = torch.as_tensor(np.cumsum(counts) - counts, device=self.device)
            owners = torch.as_tensor(np.repeat(np.arange(len(users)), counts), device=self.device)
            row = torch.zeros(len(users), log.n_items, device=self.device)
            row[owners, items] = 1.0
            total = embedding_bag(items, encoder, bags, mode="sum")
            hidden = torch.sigmoid(total + weights["encoder_bias"])
            error = hidden @ decoder.T + weights["decoder_bias"] - row
            loss = (self._entry_weights(row) * error**2).sum() / len(users)
            if config.reg:
                norms = (encoder[items] ** 2).sum(dim=1) + (decoder[items] ** 2).sum(dim=1)
                loss = loss + 0.5 * config.reg * norms.sum() / len(users)
            optimiser.param_groups[0]["lr"] = float(rate)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation
            optimiser.step()
        self._weights = {name: array.detach().cpu().numpy() for name, array in weights.items()}

    def _score(
        self, user_ids: NDArray[np.int64], item_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        weights = self._weights
        factors = Factors(self._hidden(user_ids), weights["decoder"], weights["decoder_bias"])
        return factors.score(np.arange(len(user_ids)), item_ids)

    def _hidden(self, user_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the hidden units of users, shape `(U, d)`."""
        from scipy.sparse import csr_array
        from scipy.special import expit

        indptr, seen = self.log.seen
        ones = np.ones(len(seen), dtype=np.float32)
        rows = csr_array((ones, seen, indptr), shape=(self.log.n_users, self.log.n_items))
        sums = rows[user_ids] @ self._weights["encoder"] + self._weights["encoder_bias"]
        hidden: NDArray[np.float32] = expit(sums)
        return hidden

    def _state(self) -> State:
        return dict(self._weights)

    def _set_state(self, state: State) -> None:
        n_items, d = self.log.n_items, self.config.embedding_size
        shapes: dict[str, tuple[int, ...]] = {
            "decoder": (n_items, d),
            "encoder": (n_items, d),
            "decoder_bias": (n_items,),
            "encoder_bias": (d,),
        }
        self._weights = {
            name: state_array(state, name, shape).astype(np.float32, copy=False)
            for name, shape in shapes.items()
        }


def falling_rates(learning_rate: float, n_steps: int) -> NDArray[np.float64]:
    """Return step sizes that fall linearly from `learning_rate` to zero; shape `(n_steps,)`."""
    return learning_rate * (1.0 - np.arange(n_steps) / n_steps)


def _normal(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> NDArray[np.float32]:
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
