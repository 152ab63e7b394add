"""MultiVAE: a variational autoencoder of a user's row of clicks with a multinomial likelihood."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count, as_real
from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_words, draw_seed
from recattack_gym.victims.autorec import falling_rates
from recattack_gym.victims.base import ExposureEngine, GradientConfig, State, Victim, state_array
from recattack_gym.victims.epochs import visit_batches
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.ranking import CandidateLists

if TYPE_CHECKING:
    import torch

_DROPOUT, _NOISE = 1 << 21, 1 << 22
"""First streams of clean training beside those of `epochs`, two per epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiVAEConfig(GradientConfig):
    """Settings of MultiVAE; an example is one user's whole row."""

    embedding_size: int = 64
    """Dimensions of the latent variable (the paper has 200)."""
    hidden_size: int = 128
    """Units of the one hidden layer of the encoder, and of that of the decoder (the paper has 600)."""
    epochs: int = 20
    """Passes over the users in clean training and in `retrain="full"`."""
    learning_rate: float = 0.01
    """First step size of Adam in clean training; it falls linearly to zero."""
    batch_size: int = 64
    """Users per gradient step of clean training (the paper has 500, of logs with far more users)."""
    dropout: float = 0.3
    """Share of a user's clicks that the encoder does not see in a step, in `[0, 1)`.

    The paper has 0.5 for a network of 600 and 200 units; this one is a fifth of that.
    """
    kl_weight: float = 0.2
    """What the weight of the divergence rises to: the paper's beta."""
    annealing: float = 0.5
    """Share of the steps over which that weight rises linearly from zero, in `(0, 1]`."""
    finetune_epochs: int = 120
    """Steps of `retrain="finetune"`, each over all fake users and all genuine denominators."""
    finetune_learning_rate: float = 0.04
    """First step size of Adam in fine-tuning; it falls linearly to zero."""
    finetune_encoder_pace: float = 0.5
    """How large the steps of new items' encoder rows are beside those of their decoder rows in fine-tuning.

    In clean training all steps move a new item's decoder row, but only those with a user who clicked it its
    encoder row; of such rare gradients Adam's steps are smaller by the root of their share in all steps. On
    Steam 20 fake users come in 18 % of the steps, whose root is .42.
    """
    finetune_draws: int = 4
    """Draws of every genuine user's hidden clicks and latent variable that the steps take in turn."""
    finetune_replay: float = 0.0
    """Without effect: fine-tuning needs no sample of genuine rows."""
    finetune_batch_size: int = 256
    """Without effect: every step of fine-tuning takes all rows."""
    new_items_as_negatives: bool = True
    """Whether new items compete for a genuine user's probability.

    Yes: a platform that adds items and then trains anew has them in its catalogue, and so in every softmax.
    What an attack gains then depends on how many accounts click a target beside how many click other items:
    on Steam 78 % of the items have fewer than 20 clickers, on the `synthetic` log 17 %, where 20 accounts
    hardly matter (RecNum 0 to 3 of 8,000 places under full retraining; 100 accounts: 0 to 78).
    If not, the only rows that speak of a target are those that click it, and these show it to nearly
    everybody: on `synthetic` one account that clicks each of eight targets once gets 4,624 of 8,000 places
    under full retraining. That pays for naming a target, not for an attack.
    """

    def __post_init__(self) -> None:
        super(MultiVAEConfig, self).__post_init__()  # slots: the class is made twice
        as_count("hidden_size", self.hidden_size)
        as_count("finetune_draws", self.finetune_draws)
        as_real("finetune_encoder_pace", self.finetune_encoder_pace, at_least=0.0)
        as_real("dropout", self.dropout, at_least=0.0)
        if self.dropout >= 1.0:
            raise ArgumentError(f"dropout must be < 1, got {self.dropout!r}")
        as_real("kl_weight", self.kl_weight, at_least=0.0)
        as_real("annealing", self.annealing, above=0.0, at_most=1.0)


class MultiVAE(Victim):
    """Encode a user's row of clicks into a latent normal and decode a share of clicks for every item.

    Liang, Krishnan, Hoffman, Jebara, "Variational Autoencoders for Collaborative Filtering", WWW 2018, there
    called Mult-VAE^PR. A user's row of clicks, of length one and with a share `dropout` of it hidden, goes
    through one hidden layer (tanh) to the mean and the variance of a latent normal; a sample of it goes
    through another hidden layer (tanh) to logits over the catalogue. Training maximises the multinomial log
    likelihood of the whole row minus `kl_weight` (the paper's beta) times the divergence from the standard
    normal, and that weight rises linearly from zero. Scores are the logits at the mean of the latent
    variable, nothing hidden. A fake user is one more row to learn from.

    Differs from the paper: a smaller network; Adam's steps fall linearly to zero; beta stops at `kl_weight`
    instead of at the best validation of an annealing run to one; `reg` is an L2 penalty on matrices (not on
    biases) and zero by default. Held-out users play no part: a platform recommends to the users that it
    trains on, and scores them by their whole rows.

    Fine-tuning is full retraining restricted to what the poison decides; what genuine rows decide rests. The
    encoder and decoder rows of clicked new items (items without a genuine click) take `finetune_epochs`
    full steps of Adam from where clean training began (as in full retraining they never sink first): on the
    bound of all fake rows and on what new items add to the denominators of genuine rows. All rows hide clicks
    and draw latent variables as in clean training, genuine ones what the next `finetune_draws` passes would:
    a genuine user whom a draw takes near the fake ones holds the target down, and at the mean of the latent
    variable it seldom is. Beside them the encoder rows of clicked old items move, their steps scaled by the
    share of their clicks that is fake; so fake users learn to be told apart by what else they click. Then
    these rows go back to where genuine clicks hold them. Last the decoder row of each clicked old item takes
    one Newton step up the fake users' likelihood; against it stands the curvature of as many average genuine
    clicks as the item has.

    Full retraining is itself noisy here: two seeds of it agree at .24 (Spearman), since twenty fake users
    lead Adam elsewhere. On 16 attacks of 20 x 20 clicks on Steam fine-tuning agrees with it at .80
    [.50, .94], and RecNum is .97 of it (`recattack bench fidelity --protocol poisonrec --attacks 16 --draws 1
    --victims MultiVAE`; settings were chosen on `--seed 7`). Attacks without fillers and with niche ones are
    underestimated.
    """

    name = "MultiVAE"
    config_class = MultiVAEConfig
    config: MultiVAEConfig

    def _fit(self, log: Interactions, rng: np.random.Generator) -> None:
        import torch

        config = self.config
        seed = draw_seed(rng)
        self._weights = _draw(log.n_items, config.hidden_size, config.embedding_size, rng)
        weights = {
            name: torch.as_tensor(array, device=self.device).requires_grad_()
            for name, array in self._weights.items()
        }
        users = np.flatnonzero(np.diff(log.indptr))
        epochs = [
            visit_batches(seed, epoch, len(users), config.batch_size)
            for epoch in range(config.epochs)
        ]
        n_steps = sum(len(indptr) - 1 for _, indptr in epochs)
        rates = falling_rates(config.learning_rate, n_steps)
        optimiser = torch.optim.Adam(weights.values(), fused=True)
        step = 0
        with one_thread():
            for epoch, (order, indptr) in enumerate(epochs):
                for b in range(len(indptr) - 1):
                    batch = users[order[indptr[b] : indptr[b + 1]]]
                    warmth = min(1.0, step / (config.annealing * n_steps))
                    loss = self._loss(weights, log, batch, seed, epoch, config.kl_weight * warmth)
                    optimiser.param_groups[0]["lr"] = float(rates[step])
                    optimiser.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation
                    optimiser.step()
                    step += 1
        self._weights = {name: array.detach().cpu().numpy() for name, array in weights.items()}

    def _loss(
        self,
        weights: dict[str, "torch.Tensor"],
        log: Interactions,
        users: NDArray[np.int64],
        seed: int,
        epoch: int,
        kl_weight: float,
    ) -> "torch.Tensor":
        """Return the mean over users of the negative evidence bound, with what an epoch drops and draws."""
        import torch
        from torch.nn.functional import embedding_bag

        config, device = self.config, self.device
        indptr, seen = log.seen
        counts = indptr[users + 1] - indptr[users]
        starts = np.repeat(indptr[users] - (np.cumsum(counts) - counts), counts)
        places = starts + np.arange(len(starts))
        owners = torch.as_tensor(np.repeat(np.arange(len(users)), counts), device=device)
        items = torch.as_tensor(seen[places].astype(np.int64), device=device)
        row = torch.zeros(len(users), log.n_items, device=device)
        row[owners, items] = 1.0
        is_kept = ~dropped_clicks(seed, epoch, places, config.dropout)
        entries = is_kept / np.sqrt(np.repeat(counts, counts)) / (1.0 - config.dropout)
        sums = embedding_bag(
            items,
            weights["encoder"],
            torch.as_tensor(np.cumsum(counts) - counts, device=device),
            per_sample_weights=torch.as_tensor(entries.astype(np.float32), device=device),
            mode="sum",
        )
        mean, log_variance = _latent(weights, sums)
        noise = normal_draws(seed, epoch, users, config.embedding_size)
        sample = mean + torch.as_tensor(noise, device=device) * torch.exp(0.5 * log_variance)
        loss = _reconstruction(weights, sample, row, self._n_known)
        loss = loss + kl_weight * _divergence(mean, log_variance)
        loss = loss / len(users)
        if config.reg:
            norms = torch.stack([w.square().sum() for w in weights.values() if w.dim() > 1])
            loss = loss + 0.5 * config.reg * norms.sum()
        return loss

    def _untrained(self) -> dict[str, NDArray[np.float32]]:
        """Return the parameters from which clean training began."""
        rng = np.random.default_rng(self._fit_seed)
        draw_seed(rng)  # what `_fit` draws first
        config = self.config
        return _draw(self.log.n_items, config.hidden_size, config.embedding_size, rng)

    @property
    def _n_known(self) -> int:
        """Items from here on compete in a row's softmax only if the row has one of them."""
        return self.config.negatives_below(self.log.n_items, self.n_new_items)

    def _score(
        self, user_ids: NDArray[np.int64], item_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        weights = self._weights
        factors = Factors(self._decoded(user_ids), weights["decoder"], weights["decoder_bias"])
        return factors.score(np.arange(len(user_ids)), item_ids)

    def _decoded(self, user_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the decoder's hidden units of users at their mean latent variable, shape `(U, h)`."""
        from scipy.sparse import csr_array

        weights, d = self._weights, self.config.embedding_size
        indptr, seen = self.log.seen
        norms = np.sqrt(np.maximum(np.diff(indptr), 1)).astype(np.float32)
        ones = np.ones(len(seen), dtype=np.float32)
        rows = csr_array((ones, seen, indptr), shape=(self.log.n_users, self.log.n_items))
        sums = (rows[user_ids] @ weights["encoder"]) / norms[user_ids, None]
        hidden = np.tanh(sums + weights["encoder_bias"])
        mean = hidden @ weights["to_latent"][:, :d] + weights["to_latent_bias"][:d]
        decoded: NDArray[np.float32] = np.tanh(
            mean @ weights["from_latent"] + weights["from_latent_bias"]
        )
        return decoded

    def _compiled_engine(self, lists: CandidateLists) -> ExposureEngine | None:
        if lists.item_ids is None or self.device != "cpu":
            return None
        from recattack_gym.victims.multivae_engine import MultiVAEEngine, Objective

        config = self.config
        decoded = self._decoded(np.arange(lists.n_users))
        return MultiVAEEngine(
            self._weights,
            self._untrained(),
            decoded,
            self._drawn(self.log),
            click_moment(decoded, np.diff(self.log.seen[0])),
            lists,
            falling_rates(config.finetune_learning_rate, config.finetune_epochs),
            Objective(
                n_known=self._n_known,
                dropout=config.dropout,
                kl_weight=config.kl_weight,
                reg=config.reg,
                encoder_pace=config.finetune_encoder_pace,
            ),
        )

    def _drawn(self, log: Interactions) -> list[NDArray[np.float32]]:
        """Return the decoder's units of a log's users as its next passes of training would have them.

        Args:
            log: The clean log.

        Returns:
            `finetune_draws` arrays of shape `(U, h)`, of the users with a click.
        """
        from scipy.sparse import csr_array

        config, weights, d = self.config, self._weights, self.config.embedding_size
        seed = draw_seed(np.random.default_rng(self._fit_seed))  # that of `_fit`
        indptr, seen = log.seen
        counts = np.diff(indptr)
        users = np.flatnonzero(counts)
        lengths = np.sqrt(np.repeat(counts, counts))
        draws = []
        for epoch in range(config.epochs, config.epochs + config.finetune_draws):
            is_kept = ~dropped_clicks(seed, epoch, np.arange(len(seen)), config.dropout)
            entries = (is_kept / lengths / (1.0 - config.dropout)).astype(np.float32)
            rows = csr_array((entries, seen, indptr), shape=(log.n_users, log.n_items))
            hidden = np.tanh(rows[users] @ weights["encoder"] + weights["encoder_bias"])
            latent = hidden @ weights["to_latent"] + weights["to_latent_bias"]
            noise = normal_draws(seed, epoch, users, d)
            sample = latent[:, :d] + noise * np.exp(np.float32(0.5) * latent[:, d:])
            draws.append(np.tanh(sample @ weights["from_latent"] + weights["from_latent_bias"]))
        return draws

    def _finetune(self, log: Interactions, profile: NDArray[np.int64], seed: int) -> None:
        clicked = np.unique(profile)
        is_new = log.item_popularity[clicked] == 0
        self._refit_new(log, profile, clicked, is_new, seed)
        self._refit_old(log, profile, clicked[~is_new])

    def _refit_new(
        self,
        log: Interactions,
        profile: NDArray[np.int64],
        clicked: NDArray[np.int64],
        is_new: NDArray[np.bool_],
        seed: int,
    ) -> None:
        """Take Adam steps on the rows of new items, over all fake users and all genuine ones.

        Beside them move the encoder rows of old items, as far as their clicks are fake; then they go back.
        """
        import torch

        config, device = self.config, self.device
        weights = {
            name: torch.as_tensor(array.copy(), device=device)
            for name, array in self._weights.items()
        }
        items = clicked[is_new]
        new, all_clicked = (torch.as_tensor(ids, device=device) for ids in (items, clicked))
        users = np.flatnonzero(np.diff(log.indptr))
        counts = torch.as_tensor(np.diff(log.seen[0])[users].astype(np.float32), device=device)
        draws = [torch.as_tensor(units, device=device) for units in self._drawn(log)]
        others = np.setdiff1d(np.arange(self._n_known), items)
        log_rests = [
            torch.logsumexp(_logits(weights, units)[:, others], dim=1, keepdim=True)
            for units in draws
        ]
        row = torch.zeros(len(profile), log.n_items, device=device)
        row[torch.arange(len(profile))[:, None], torch.as_tensor(profile, device=device)] = 1.0
        shown = row / row.sum(dim=1, keepdim=True).sqrt()
        untrained = self._untrained()
        moving = {
            name: torch.as_tensor(untrained[name][items], device=device).requires_grad_()
            for name in ("decoder", "decoder_bias")
        }
        weights["encoder"][new] = torch.as_tensor(untrained["encoder"][items], device=device)
        n_fake = row.sum(dim=0)
        n_genuine = np.bincount(log.seen[1], minlength=log.n_items).astype(np.float32)
        share = (n_fake / (n_fake + torch.as_tensor(n_genuine, device=device)))[clicked, None]
        share[torch.as_tensor(is_new, device=device)] = config.finetune_encoder_pace
        move = torch.zeros(len(clicked), config.hidden_size, device=device, requires_grad=True)
        fakes = np.arange(len(profile))
        places = fakes[:, None] * log.n_items + np.arange(log.n_items)
        optimiser = torch.optim.Adam([*moving.values(), move])
        rates = falling_rates(config.finetune_learning_rate, config.finetune_epochs)
        for step, rate in enumerate(rates if len(items) else ()):
            now = {
                name: weights[name].index_copy(0, new, moving[name]) if name in moving else array
                for name, array in weights.items()
            }
            now["encoder"] = now["encoder"].index_add(0, all_clicked, share * move)
            is_kept = ~dropped_clicks(seed, step, places, config.dropout)
            kept = shown * torch.as_tensor(is_kept, device=device) / (1.0 - config.dropout)
            mean, log_variance = _latent(now, kept @ now["encoder"])
            noise = normal_draws(seed, step, fakes, config.embedding_size)
            sample = mean + torch.as_tensor(noise, device=device) * torch.exp(0.5 * log_variance)
            loss = _reconstruction(now, sample, row, self._n_known)
            loss = loss + config.kl_weight * _divergence(mean, log_variance)
            draw = step % len(draws)
            rivals = _logits(moving, draws[draw])[:, new < self._n_known]
            denominators = torch.logsumexp(torch.cat([log_rests[draw], rivals], dim=1), dim=1)
            loss = loss + counts @ denominators
            norms = moving["decoder"].square().sum() + now["encoder"][new].square().sum()
            loss = loss / (len(users) + len(profile)) + 0.5 * config.reg * norms
            optimiser.param_groups[0]["lr"] = float(rate)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation
            optimiser.step()
        for name, array in moving.items():
            self._weights[name][items] = array.detach().cpu().numpy()
        self._weights["encoder"][items] = (
            (weights["encoder"].index_add(0, all_clicked, share * move))[new].detach().cpu().numpy()
        )

    def _refit_old(
        self, log: Interactions, profile: NDArray[np.int64], items: NDArray[np.int64]
    ) -> None:
        """Move the decoder rows of old items by one damped Newton step towards the fake users' clicks."""
        from scipy.special import softmax

        weights = self._weights
        users = np.flatnonzero(np.diff(log.indptr))
        moment = click_moment(self._decoded(users), np.diff(log.seen[0])[users])
        fakes = with_one(self._decoded(log.n_users + np.arange(len(profile))))
        decoder = np.column_stack([weights["decoder"], weights["decoder_bias"]])
        logits = fakes @ decoder.T
        for row, own in zip(logits, profile, strict=True):
            if (own < self._n_known).all():
                row[self._n_known :] = -np.inf
        shares = softmax(logits, axis=1)
        n_clicks = np.array([len(np.unique(own)) for own in profile])
        popularity = np.bincount(log.seen[1], minlength=log.n_items)
        for item in items:
            is_click = (profile == item).any(axis=1)
            clicking = fakes[is_click]
            wanted = 1.0 - n_clicks[is_click] * shares[is_click, item]
            system = popularity[item] * moment + np.eye(len(moment)) + clicking.T @ clicking
            move = np.linalg.solve(system, wanted @ clicking)
            weights["decoder"][item] += move[:-1].astype(np.float32)
            weights["decoder_bias"][item] += np.float32(move[-1])

    def _state(self) -> State:
        return dict(self._weights)

    def _set_state(self, state: State) -> None:
        n_items, h, d = self.log.n_items, self.config.hidden_size, self.config.embedding_size
        self._weights = {
            name: state_array(state, name, shape).astype(np.float32, copy=False)
            for name, shape in _shapes(n_items, h, d).items()
        }


def with_one(decoded: NDArray[np.float32]) -> NDArray[np.float64]:
    """Append the constant unit that the decoder's bias belongs to; shape `(n, h + 1)`."""
    return np.column_stack([decoded.astype(np.float64), np.ones(len(decoded))])


def click_moment(decoded: NDArray[np.float32], n_clicks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the second moment of the decoder's units over clicks, shape `(h + 1, h + 1)`.

    Args:
        decoded: Of genuine users, shape `(U, h)`.
        n_clicks: Items that each has clicked, shape `(U,)`.
    """
    units = with_one(decoded)
    moment: NDArray[np.float64] = (units * n_clicks[:, None]).T @ units / n_clicks.sum()
    return moment


def _latent(
    weights: Mapping[str, "torch.Tensor"], sums: "torch.Tensor"
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return mean and log variance of the latent variable, `(B, d)` each.

    Args:
        weights: The parameters by name.
        sums: Of the encoder rows of each user's clicks over the root of their number, shape `(B, h)`.
    """
    hidden = (sums + weights["encoder_bias"]).tanh()
    mean, log_variance = (hidden @ weights["to_latent"] + weights["to_latent_bias"]).chunk(2, dim=1)
    return mean, log_variance


def _logits(weights: Mapping[str, "torch.Tensor"], decoded: "torch.Tensor") -> "torch.Tensor":
    """Return every item's score for the decoder's hidden units `(B, h)`."""
    return decoded @ weights["decoder"].T + weights["decoder_bias"]


def _reconstruction(
    weights: Mapping[str, "torch.Tensor"],
    latent: "torch.Tensor",
    row: "torch.Tensor",
    n_known: int,
) -> "torch.Tensor":
    """Return the negative multinomial log likelihood of rows `(B, n_items)`, summed."""
    import torch

    decoded = (latent @ weights["from_latent"] + weights["from_latent_bias"]).tanh()
    logits = _logits(weights, decoded)
    likelihood = (row * logits).sum()
    if n_known < row.shape[1]:
        is_silent = (row[:, n_known:] == 0.0).all(dim=1)
        logits = torch.cat(
            [logits[:, :n_known], logits[:, n_known:].masked_fill(is_silent[:, None], -torch.inf)],
            dim=1,
        )
    return row.sum(dim=1) @ torch.logsumexp(logits, dim=1) - likelihood


def _divergence(mean: "torch.Tensor", log_variance: "torch.Tensor") -> "torch.Tensor":
    """Return the Kullback-Leibler divergence from the standard normal, summed."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum()


def dropped_clicks(
    seed: int, epoch: int, places: NDArray[np.int64], dropout: float
) -> NDArray[np.bool_]:
    """Tell which clicks the encoder does not see in an epoch, whatever else is in the log.

    Args:
        seed: Of clean training.
        epoch: From 0.
        places: Of clicks in the log's distinct ones, any shape.
        dropout: Share of clicks.
    """
    return _uniform(seed, _DROPOUT + epoch, places) < dropout


def normal_draws(seed: int, epoch: int, users: NDArray[np.int64], d: int) -> NDArray[np.float32]:
    """Return an epoch's standard normal draws, shape `(B, d)`, each user's by its number (Box-Muller)."""
    places = users[:, None] * d + np.arange(d)
    radius = np.sqrt(-2.0 * np.log(1.0 - _uniform(seed, _NOISE + 2 * epoch, places)))
    angle = 2.0 * np.pi * _uniform(seed, _NOISE + 2 * epoch + 1, places)
    return (radius * np.cos(angle)).astype(np.float32)


def _uniform(seed: int, stream: int, counters: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return one draw in `[0, 1)` per counter."""
    return (counter_words(seed, stream, counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _shapes(n_items: int, h: int, d: int) -> dict[str, tuple[int, ...]]:
    return {
        "encoder": (n_items, h),
        "encoder_bias": (h,),
        "to_latent": (h, 2 * d),
        "to_latent_bias": (2 * d,),
        "from_latent": (d, h),
        "from_latent_bias": (h,),
        "decoder": (n_items, h),
        "decoder_bias": (n_items,),
    }


def _draw(n_items: int, h: int, d: int, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Draw matrices with Glorot's scale; biases are zero."""
    weights = {}
    for name, shape in _shapes(n_items, h, d).items():
        weights[name] = np.zeros(shape, dtype=np.float32)
        if len(shape) == 2:  # a matrix
            scale = np.float32(np.sqrt(2.0 / sum(shape)))
            weights[name] = scale * rng.standard_normal(shape, dtype=np.float32)
    return weights


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold torch to one thread, so that sums are the same on any machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
