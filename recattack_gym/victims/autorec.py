"""AutoRec: an autoencoder that completes a user's row of clicks."""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_real
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_integers, counter_permutation
from recattack_gym.victims.base import ExposureEngine, GradientConfig, State, Victim, state_array
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.ranking import CandidateLists, best_first

if TYPE_CHECKING:
    from recattack_gym.victims.autorec_kernel import Objective

REPLAYED_USERS, ROW_ORDER = 16, 17
"""Streams of the counter-based generator."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoRecConfig(GradientConfig):
    """Settings of AutoRec; an example is one user's whole row."""

    embedding_size: int = 64
    """Hidden units (the paper has 500 for ratings)."""
    epochs: int = 30
    """Passes over the users in clean training and in `retrain="full"`."""
    learning_rate: float = 5e-3
    """Step size of Adam in clean training."""
    batch_size: int = 128
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
    finetune_epochs: int = 10
    """Passes over the fake users in `retrain="finetune"`."""
    finetune_replay: float = 20.0
    """Genuine users mixed in per fake user in every epoch, drawn anew in each.

    Their rows are weighted so that they stand for the whole log.
    """
    finetune_batch_size: int = 512
    """Users per gradient step of fine-tuning."""

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
    ICDM 2008). Adam instead of RProp or L-BFGS. L2 penalty `reg` on the weights of the clicked items,
    once per click. New items are left out of the rows of users who clicked none of them, unless
    `new_items_as_negatives`.
    """

    name = "AutoRec"
    config_class = AutoRecConfig
    config: AutoRecConfig

    def _fit(self, log: Interactions, rng: np.random.Generator) -> None:
        config = self.config
        shape = (log.n_items, config.embedding_size)
        self._weights = {
            "decoder": _normal(rng, shape, config.initial_scale),
            "encoder": _normal(rng, shape, config.initial_scale),
            "decoder_bias": np.zeros(log.n_items, dtype=np.float32),
            "encoder_bias": np.zeros(config.embedding_size, dtype=np.float32),
        }
        users = np.flatnonzero(np.diff(log.indptr))
        order = [rng.permutation(users) for _ in range(config.epochs)]
        rows = np.concatenate([*order, users[:0]])
        batches = batch_bounds(config.epochs, len(users), config.batch_size)
        if self.device == "cpu":
            from recattack_gym.victims.autorec_kernel import fit

            fit(self._weights, log.seen, rows, batches, self._objective(config.learning_rate))
        else:
            self._train(log, rows, batches, config.learning_rate, np.ones(log.n_users))

    def _objective(self, learning_rate: float) -> "Objective":
        from recattack_gym.victims.autorec_kernel import Objective

        return Objective(
            n_unclickable=self._n_unclickable,
            unclicked_weight=self.config.unclicked_weight,
            reg=self.config.reg,
            learning_rate=learning_rate,
        )

    def _compiled_engine(self, lists: CandidateLists) -> ExposureEngine | None:
        if lists.item_ids is None or self.device != "cpu":
            return None
        from recattack_gym.victims.autorec_kernel import AutoRecEngine

        def schedule(
            n_fake_users: int, seed: int
        ) -> tuple[NDArray[np.int64], NDArray[np.int64], float]:
            return row_schedule(self.log, n_fake_users, seed, self.config)

        objective = self._objective(self.config.finetune_learning_rate)
        scores = self.score(np.arange(lists.n_users), lists.item_ids)
        candidates = best_first(scores, lists.item_ids)
        return AutoRecEngine(self._weights, candidates, lists, schedule, objective)

    @property
    def _n_unclickable(self) -> int:
        """Trailing items whose absence from a row says nothing, unless the row has one of them."""
        return 0 if self.config.new_items_as_negatives else self.n_new_items

    def _finetune(self, log: Interactions, profile: NDArray[np.int64], seed: int) -> None:
        rows, batches, genuine_weight = row_schedule(log, len(profile), seed, self.config)
        shares = np.where(np.arange(self.log.n_users) < log.n_users, genuine_weight, 1.0)
        self._train(self.log, rows, batches, self.config.finetune_learning_rate, shares)

    def _train(
        self,
        log: Interactions,
        rows: NDArray[np.int64],
        batches: NDArray[np.int64],
        learning_rate: float,
        user_weights: NDArray[np.float64],
    ) -> None:
        """Take one Adam step per batch of users `rows[batches[b]:batches[b + 1]]`."""
        import torch
        from torch.nn.functional import embedding_bag

        config = self.config
        indptr, seen = log.seen
        weights = {
            name: torch.as_tensor(array, device=self.device).requires_grad_()
            for name, array in self._weights.items()
        }
        encoder, decoder = weights["encoder"], weights["decoder"]
        n_known = log.n_items - self._n_unclickable
        optimiser = torch.optim.Adam(weights.values(), lr=learning_rate)
        for start, end in pairwise(batches):
            users = rows[start:end]
            counts = indptr[users + 1] - indptr[users]
            clicked = np.concatenate([seen[indptr[u] : indptr[u + 1]] for u in users])
            items = torch.as_tensor(clicked.astype(np.int64), device=self.device)
            bags = torch.as_tensor(np.cumsum(counts) - counts, device=self.device)
            owners = torch.as_tensor(np.repeat(np.arange(len(users)), counts), device=self.device)
            row = torch.zeros(len(users), log.n_items, device=self.device)
            row[owners, items] = 1.0
            weight = torch.where(row > 0.0, 1.0, config.unclicked_weight)
            weight[(row[:, n_known:] == 0.0).all(dim=1), n_known:] = 0.0
            total = embedding_bag(items, encoder, bags, mode="sum")
            hidden = torch.sigmoid(total + weights["encoder_bias"])
            error = hidden @ decoder.T + weights["decoder_bias"] - row
            shares = user_weights[users] / user_weights[users].sum()
            share = torch.as_tensor(shares.astype(np.float32), device=self.device)
            loss = share @ (weight * error**2).sum(dim=1)
            if config.reg:
                norms = (encoder[items] ** 2).sum(dim=1) + (decoder[items] ** 2).sum(dim=1)
                loss = loss + 0.5 * config.reg * share[owners] @ norms
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation
            optimiser.step()
        self._weights = {name: array.detach().cpu().numpy() for name, array in weights.items()}

    def _score(
        self, user_ids: NDArray[np.int64], item_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        from scipy.sparse import csr_array
        from scipy.special import expit

        weights, (indptr, seen) = self._weights, self.log.seen
        ones = np.ones(len(seen), dtype=np.float32)
        rows = csr_array((ones, seen, indptr), shape=(self.log.n_users, self.log.n_items))
        hidden = expit(rows[user_ids] @ weights["encoder"] + weights["encoder_bias"])
        factors = Factors(hidden, weights["decoder"], weights["decoder_bias"])
        return factors.score(np.arange(len(user_ids)), item_ids)

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


def row_schedule(
    log: Interactions, n_fake_users: int, seed: int, config: AutoRecConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64], float]:
    """Lay out a fine-tuning run: every fake row once per epoch, among drawn genuine rows.

    Args:
        log: The clean log.
        n_fake_users: N; fake user `f` is row `log.n_users + f`.
        seed: What all draws are made from.
        config: Epochs, replay and batch size.

    Returns:
        User ids in training order, shape `(S,)`, the bounds of the batches, `(n_batches + 1,)`, and
        the weight of a genuine row, with which the replayed ones stand for the whole log. Genuine
        users are drawn with replacement among those who clicked; where the replay reaches all of
        them, each comes once per epoch.
    """
    genuine = np.flatnonzero(np.diff(log.indptr))
    n_replayed = min(round(config.finetune_replay * n_fake_users), len(genuine))
    per_epoch = n_fake_users + n_replayed
    rows = np.empty((config.finetune_epochs, per_epoch), dtype=np.int64)
    for epoch in range(config.finetune_epochs):
        picked = genuine
        if n_replayed < len(genuine):
            places = epoch * n_replayed + np.arange(n_replayed)
            picked = genuine[counter_integers(seed, REPLAYED_USERS, places, len(genuine))]
        mixed = np.concatenate([log.n_users + np.arange(n_fake_users), picked])
        rows[epoch] = mixed[counter_permutation(seed, (ROW_ORDER << 32) + epoch, per_epoch)]
    batches = batch_bounds(config.finetune_epochs, per_epoch, config.finetune_batch_size)
    return rows.ravel(), batches, len(genuine) / max(n_replayed, 1)


def batch_bounds(epochs: int, per_epoch: int, batch_size: int) -> NDArray[np.int64]:
    """Return where batches start and end if they do not cross epochs; shape `(n_batches + 1,)`."""
    starts = np.arange(0, per_epoch, batch_size)
    bounds = (np.arange(epochs)[:, None] * per_epoch + starts).ravel()
    return np.append(bounds, epochs * per_epoch).astype(np.int64)


def _normal(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> NDArray[np.float32]:
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
