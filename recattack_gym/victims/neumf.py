"""NeuMF: matrix factorisation and a small neural network over embeddings, added up."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count, as_real
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_integers, counter_normal, draw_seed
from recattack_gym.victims.base import ExposureEngine, GradientConfig, State, Victim, state_array
from recattack_gym.victims.epochs import Epoch, clean_epochs
from recattack_gym.victims.ranking import CandidateLists, best_first
from recattack_gym.victims.schedule import (
    INITIAL,
    UpdateSchedule,
    fake_share,
    make_schedule,
)

if TYPE_CHECKING:
    import torch

_BLOCK_NUMBERS = 4_000_000
"""Hidden units that are held at once while scoring."""

_VISITOR = 16
"""Stream of the genuine users who meet a new item as a negative."""

Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]
"""Users, items and which were clicked, each `(B,)`: the examples of one fine-tuning step."""

Layers = dict[str, NDArray[np.float32]]
"""Parameters by name: embeddings and layers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NeuMFConfig(GradientConfig):
    """Settings of NeuMF; `embedding_size` d is that of both parts, whose tower is 2d - d - d/2 - d/4."""

    epochs: int = 15
    """Passes over the log in clean training and in `retrain="full"`."""
    learning_rate: float = 2e-3
    """Step size of Adam in clean training."""
    reg: float = 3e-3
    """L2 penalty on both embeddings of each example."""
    new_items_as_negatives: bool = True
    """Whether genuine users' examples may draw new items as negatives.

    Yes: with log loss, a target that is never a negative rises for everybody as soon as it is clicked.
    """
    n_negatives: int = 4
    """Items per click that the user has not clicked (section 4.3 finds 3 to 6 best)."""
    initial_scale: float = 0.05
    """Standard deviation of untrained embeddings."""
    finetune_epochs: int = 15
    """Passes over the fake clicks in `retrain="finetune"`, spread over the epochs of clean training."""
    finetune_learning_rate: float = 5.6e-3
    """Step size of fine-tuning's Adam.

    Batches that are n times as large as in clean training take steps that are sqrt(n) times as large.
    """
    finetune_replay: float = 1.0
    """Negatives of genuine users that fall on clicked new items, as a share of clean training's."""
    finetune_batch_size: int = 8192
    """Clicks of the log per step of fine-tuning, which visits only those that the poison touches."""
    finetune_checkpoints: int = 8
    """Moments of clean training, denser at its start, whose parameters are kept for fine-tuning."""

    def __post_init__(self) -> None:
        super(
            NeuMFConfig, self
        ).__post_init__()  # slots: the class is made twice, so no bare super()
        for name in ("n_negatives", "finetune_checkpoints"):
            as_count(name, getattr(self, name))
        as_real("initial_scale", self.initial_scale, above=0.0)


class NeuMF(Victim):
    """Add generalised matrix factorisation and a multi-layer perceptron over separate embeddings.

    He, Liao, Zhang, Nie, Hu, Chua, "Neural Collaborative Filtering", WWW 2017, section 3.4, equation 12:
    `score = w . [p_u * q_i, relu(W3 relu(W2 relu(W1 [p'_u, q'_i])))]`, trained with log loss on clicks
    and sampled negatives (equation 7).

    Fine-tuning repeats clean training for what the poison decides: fake users and clicked items, whose
    steps are scaled by the share of their clicks that are fake. All other rows and the layers follow the
    course they took in clean training, from checkpoint to checkpoint, as full retraining would lead
    them along about the same course again. Clicked new items start untrained. Examples are the fake clicks
    and, at the rate of clean training, genuine users for whom a clicked new item is a negative. The course
    matters: beside layers that are fully trained from the first step on, fake users learn their clicks at
    the expense of genuine users' lists, and agreement with full retraining is lost.

    Differs from the paper: no pre-training of the two parts; layers start from Glorot's distribution
    and embeddings from `initial_scale` instead of 0.01; the score is the logit, which ranks alike; L2
    penalty `reg` on the embeddings of each example.
    """

    name = "NeuMF"
    config_class = NeuMFConfig
    config: NeuMFConfig

    def _fit(self, log: Interactions, rng: np.random.Generator) -> None:
        from recattack_gym.victims.neumf_kernel import fit

        config = self.config
        d, scale = config.embedding_size, np.float32(config.initial_scale)
        seed = draw_seed(rng)
        self._weights = _draw_layers(d, rng)
        for name, rows in (("items", log.n_items), ("users", log.n_users)):
            self._weights[name] = rng.standard_normal((rows, 2 * d), dtype=np.float32) * scale
        epochs = clean_epochs(
            log,
            seed,
            epochs=config.epochs,
            batch_size=config.batch_size,
            n_negatives=config.n_negatives,
            below=config.negatives_below(log.n_items, self.n_new_items),
        )
        self._untrained = self._weights["items"][log.n_items - self.n_new_items :].copy()
        kept = checkpoint_epochs(config)
        self._checkpoints: dict[int, Layers] = {}

        def after_epoch(epoch: int, weights: Layers) -> None:
            if epoch in kept:
                self._checkpoints[epoch] = {name: x.copy() for name, x in weights.items()}

        if self.device == "cpu":
            fit(
                self._weights,
                epochs,
                after_epoch,
                reg=config.reg,
                learning_rate=config.learning_rate,
            )
        else:
            self._train(epochs, after_epoch)

    def _course(self) -> list[Layers]:
        """Return the parameters of clean training beside which each pass of fine-tuning runs."""
        epochs, passes = self.config.epochs, self.config.finetune_epochs
        course = []
        for n in range(1, passes + 1):
            later = [kept for kept in self._checkpoints if kept * passes >= n * epochs]
            course.append(self._checkpoints[min(later)] if later else self._weights)
        return course

    def _first_new_items(self) -> NDArray[np.float32]:
        """Return what clicked new items start from: untrained rows, or the clean ones if they stay there."""
        if self.config.finetune_epochs == 0:
            return self._weights["items"][self.n_original_items :]
        return self._untrained

    def _finetune(self, log: Interactions, profile: NDArray[np.int64], seed: int) -> None:
        import torch

        config = self.config
        schedule = self._schedule(log, (profile.shape[0], profile.shape[1]), seed)
        clicked = np.unique(profile)
        item_ids = torch.as_tensor(clicked, device=self.device)
        share = torch.as_tensor(fake_share(log, profile)[clicked, None], device=self.device)
        fakes = torch.as_tensor(fake_rows(len(profile), seed, config), device=self.device)
        moves = torch.zeros((len(clicked), fakes.shape[1]), device=self.device)
        new = np.flatnonzero(clicked >= self.n_original_items)
        untrained = torch.as_tensor(
            self._first_new_items()[clicked[new] - self.n_original_items], device=self.device
        )

        def grown(weights: "dict[str, torch.Tensor]") -> "tuple[torch.Tensor, torch.Tensor]":
            """Return all users and items beside some weights of clean training."""
            start = weights["items"][item_ids]
            start[new] = untrained
            items = weights["items"].index_copy(0, item_ids, start + share * moves)
            return torch.cat([weights["users"], fakes]), items

        optimiser = torch.optim.Adam(
            [fakes.requires_grad_(), moves.requires_grad_()], lr=config.finetune_learning_rate
        )
        course = [self._tensors(weights) for weights in self._course()]
        for batch, pairs in enumerate(schedule.batches(profile)):
            weights = course[batch // schedule.batches_per_epoch]
            user_ids, pair_items, is_click = (torch.as_tensor(x, device=self.device) for x in pairs)
            users, items = grown(weights)
            p, q = users[user_ids], items[pair_items]
            loss = _log_loss(_logits(weights, p, q), is_click)
            loss = loss + 0.5 * config.reg * ((p**2).sum() + (q**2).sum())
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation
            optimiser.step()
        with torch.no_grad():
            users, items = grown(self._tensors(self._weights))
        self._weights["users"], self._weights["items"] = users.cpu().numpy(), items.cpu().numpy()

    def _schedule(
        self, log: Interactions, profile_shape: tuple[int, int], seed: int
    ) -> "RefitSchedule":
        return make_refit_schedule(
            log, profile_shape, self.config, n_new_items=self.n_new_items, seed=seed
        )

    def _compiled_engine(self, lists: CandidateLists) -> ExposureEngine | None:
        if lists.item_ids is None or self.device != "cpu":
            return None
        from recattack_gym.victims.neumf_engine import NeuMFEngine, Update

        def updates(n_fake_users: int, profile_size: int, seed: int) -> Update:
            schedule = self._schedule(self.log, (n_fake_users, profile_size), seed)
            return Update(schedule, fake_rows(n_fake_users, seed, self.config))

        users = np.arange(lists.n_users)
        targets = np.broadcast_to(lists.target_items, (len(users), len(lists.target_items)))
        scores = self.score(users, lists.item_ids)
        return NeuMFEngine(
            self._weights,
            self._course(),
            self._first_new_items(),
            best_first(scores, lists.item_ids),
            lists,
            (-np.sort(-scores, axis=1), self.score(users, targets)),
            updates,
            reg=self.config.reg,
            learning_rate=self.config.finetune_learning_rate,
        )

    def _train(self, epochs: Iterator[Epoch], after_epoch: Callable[[int, Layers], None]) -> None:
        """Take one step of Adam on the mean loss per batch; the plain twin of `neumf_kernel.fit`."""
        import torch

        weights = {name: x.requires_grad_() for name, x in self._tensors(self._weights).items()}
        optimiser = torch.optim.Adam(weights.values(), lr=self.config.learning_rate)
        for number, (users, clicked, negatives, batch_indptr) in enumerate(epochs, start=1):
            items = np.concatenate([clicked[:, None], negatives], axis=1)
            is_click = torch.zeros(items.shape, dtype=torch.bool, device=self.device)
            is_click[:, 0] = True
            for start, end in pairwise(batch_indptr):
                user_ids, item_ids = (
                    torch.as_tensor(ids[start:end], device=self.device).long()
                    for ids in (users, items)
                )
                p = weights["users"][user_ids][:, None].expand(*item_ids.shape, -1)
                q = weights["items"][item_ids]
                logit = _logits(weights, p, q)
                loss = _log_loss(logit, is_click[start:end])
                loss = loss + 0.5 * self.config.reg * ((p**2).sum() + (q**2).sum())
                optimiser.zero_grad()
                (loss / logit.numel()).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            self._weights = {name: x.detach().cpu().numpy() for name, x in weights.items()}
            after_epoch(number, self._weights)

    def _tensors(self, weights: Layers) -> "dict[str, torch.Tensor]":
        import torch

        return {name: torch.as_tensor(array, device=self.device) for name, array in weights.items()}

    def _score(
        self, user_ids: NDArray[np.int64], item_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            weights = self._tensors(self._weights)
            users = weights["users"][torch.as_tensor(user_ids, device=self.device)]
            p_gmf, p_mlp = users.chunk(2, 1)
            q_gmf, q_mlp = weights["items"].chunk(2, 1)
            p_gmf = p_gmf * weights["gmf_output"]
            # The first layer is linear in user and item, so its halves are computed once for each.
            p_mlp = p_mlp @ weights["user_layer"] + weights["bias1"]
            q_mlp = q_mlp @ weights["item_layer"]
            scores = np.empty(item_ids.shape, dtype=np.float32)
            step = max(1, _BLOCK_NUMBERS // max(item_ids.shape[1] * q_mlp.shape[1], 1))
            for start in range(0, len(user_ids), step):
                rows = slice(start, start + step)
                ids = torch.as_tensor(item_ids[rows].copy(), device=self.device)
                hidden = torch.relu(p_mlp[rows, None] + q_mlp[ids])
                hidden = torch.relu(hidden @ weights["layer2"] + weights["bias2"])
                hidden = torch.relu(hidden @ weights["layer3"] + weights["bias3"])
                score = (q_gmf[ids] @ p_gmf[rows, :, None])[:, :, 0]
                score = score + hidden @ weights["mlp_output"] + weights["output_bias"]
                scores[rows] = score.cpu().numpy()
        return scores

    def _state(self) -> State:
        state: State = {**self._weights, "untrained": self._untrained}
        for epoch, weights in self._checkpoints.items():
            state |= {f"{name}_{epoch}": array for name, array in weights.items()}
        return state

    def _set_state(self, state: State) -> None:
        d = self.config.embedding_size
        shapes: dict[str, tuple[int | None, ...]] = {
            "users": (None, 2 * d),
            "items": (self.log.n_items, 2 * d),
            **_layer_shapes(d),
        }

        def array(name: str, shape: tuple[int | None, ...]) -> NDArray[np.float32]:
            return state_array(state, name, shape).astype(np.float32, copy=False)

        self._weights = {name: array(name, shape) for name, shape in shapes.items()}
        self._untrained = array("untrained", (self.n_new_items, 2 * d))
        self._checkpoints = {
            epoch: {name: array(f"{name}_{epoch}", shape) for name, shape in shapes.items()}
            for epoch in checkpoint_epochs(self.config)
        }


@dataclass(frozen=True, eq=False, slots=True)
class RefitSchedule:
    """The examples of one fine-tuning run of NeuMF, for any profiles of shape `(N, T)`.

    Attributes:
        updates: The fake clicks with their negatives, in batches that may be empty.
        visitors: Shape `(V, n_new_items)`: genuine users for each of whom a new item is a negative, if
            the item is clicked at all.
        visit_indptr: Shape `(n_batches + 1,)`: the visitors of batch `b` are
            `visit_indptr[b]:visit_indptr[b + 1]`.
        batches_per_epoch: Batches of a pass over the fake clicks.
        n_original_items: New items have the ids from here on.
    """

    updates: UpdateSchedule
    visitors: NDArray[np.int32]
    visit_indptr: NDArray[np.int64]
    batches_per_epoch: int
    n_original_items: int

    def batches(self, profile: NDArray[np.int64]) -> Iterator[Pairs]:
        """Yield the examples of each step for one poison set.

        Args:
            profile: Shape `(N, T)`.
        """
        users, items, negatives = self.updates.examples(profile)
        new = np.unique(profile[profile >= self.n_original_items]) - self.n_original_items
        width = 1 + negatives.shape[1]
        for (start, end), (first, last) in zip(
            pairwise(self.updates.batch_indptr), pairwise(self.visit_indptr), strict=True
        ):
            shown = np.concatenate([items[start:end, None], negatives[start:end]], axis=1)
            visitors = self.visitors[first:last, new]
            is_click = np.zeros(shown.size + visitors.size, dtype=np.bool_)
            is_click[: shown.size : width] = True
            yield (
                np.concatenate([np.repeat(users[start:end], width), visitors.ravel()]),
                np.concatenate(
                    [shown.ravel(), np.tile(new + self.n_original_items, len(visitors))]
                ),
                is_click,
            )


def make_refit_schedule(
    log: Interactions,
    profile_shape: tuple[int, int],
    config: NeuMFConfig,
    *,
    n_new_items: int,
    seed: int,
) -> RefitSchedule:
    """Lay out a fine-tuning run.

    An item is a negative of `len(log) * n_negatives / n_items` genuine clicks per epoch, whoever's; a
    pass of fine-tuning has as many visitors of each new item.

    Args:
        log: The clean log over the whole catalogue.
        profile_shape: `(N, T)`.
        config: Passes, batches, negatives.
        n_new_items: How many of the last items are new.
        seed: In `[0, 2**63)`.
    """
    n_clicks, passes = profile_shape[0] * profile_shape[1], config.finetune_epochs
    updates = make_schedule(
        log,
        profile_shape,
        seed=seed,
        epochs=passes,
        replay=0.0,
        batch_size=n_clicks,
        n_negatives=config.n_negatives,
        n_genuine_negatives=config.negatives_below(log.n_items, n_new_items),
    )
    n_visits = 0
    if config.new_items_as_negatives and n_new_items:
        n_visits = round(config.finetune_replay * len(log) * config.n_negatives / log.n_items)
    per_epoch = max(1, round(len(log) / config.finetune_batch_size))
    bounds = np.arange(passes * per_epoch + 1)
    places = np.arange(passes * n_visits * n_new_items).reshape(-1, n_new_items or 1)
    visitors = log.user_ids[counter_integers(seed, _VISITOR, places, len(log))]
    return RefitSchedule(
        updates=replace(updates, batch_indptr=bounds * n_clicks // per_epoch),
        visitors=visitors.astype(np.int32),
        visit_indptr=bounds * n_visits // per_epoch,
        batches_per_epoch=per_epoch,
        n_original_items=log.n_items - n_new_items,
    )


def checkpoint_epochs(config: NeuMFConfig) -> list[int]:
    """Return after which epochs of clean training, counted from 1, its parameters are kept.

    Most change happens early, so the gaps grow. The last epoch is not
    among them: what it leaves is the victim itself.
    """
    n, epochs = config.finetune_checkpoints, config.epochs
    moments = {max(1, round(epochs * (i / n) ** 1.5)) for i in range(1, n)}
    return sorted(epoch for epoch in moments if epoch < epochs)


def fake_rows(n_fake_users: int, seed: int, config: NeuMFConfig) -> NDArray[np.float32]:
    """Return untrained rows of fake users, shape `(N, 2d)`, that depend on `seed` alone."""
    rows = counter_normal(seed, INITIAL, (n_fake_users, 2 * config.embedding_size))
    return rows * np.float32(config.initial_scale)


def _layer_shapes(d: int) -> dict[str, tuple[int, ...]]:
    h2, h3 = max(d // 2, 1), max(d // 4, 1)
    return {
        "user_layer": (d, d),
        "item_layer": (d, d),
        "bias1": (d,),
        "layer2": (d, h2),
        "bias2": (h2,),
        "layer3": (h2, h3),
        "bias3": (h3,),
        "gmf_output": (d,),
        "mlp_output": (h3,),
        "output_bias": (1,),
    }


def _draw_layers(d: int, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Draw from Glorot's normal distribution; zero biases."""
    layers = {}
    for name, shape in _layer_shapes(d).items():
        fan = {"user_layer": 3 * d, "item_layer": 3 * d}.get(name, sum(shape) + (len(shape) == 1))
        scale = 0.0 if "bias" in name else (2.0 / fan) ** 0.5
        layers[name] = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
    return layers


def _logits(
    weights: "dict[str, torch.Tensor]", p: "torch.Tensor", q: "torch.Tensor"
) -> "torch.Tensor":
    """Return the scores of users' and items' rows of shape `(..., 2d)`; shape `(...)`."""
    import torch

    (p_gmf, p_mlp), (q_gmf, q_mlp) = p.chunk(2, -1), q.chunk(2, -1)
    layer1 = torch.cat([weights["user_layer"], weights["item_layer"]])
    hidden = torch.relu(torch.cat([p_mlp, q_mlp], dim=-1) @ layer1 + weights["bias1"])
    hidden = torch.relu(hidden @ weights["layer2"] + weights["bias2"])
    hidden = torch.relu(hidden @ weights["layer3"] + weights["bias3"])
    logit = (p_gmf * q_gmf) @ weights["gmf_output"] + hidden @ weights["mlp_output"]
    return logit + weights["output_bias"]


def _log_loss(logit: "torch.Tensor", is_click: "torch.Tensor") -> "torch.Tensor":
    """Return equation 7, summed."""
    import torch
    from torch.nn.functional import softplus

    return softplus(torch.where(is_click, -logit, logit)).sum()
