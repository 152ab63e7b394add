"""NeuMF: matrix factorisation and a small neural network over embeddings, added up."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count, as_real
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_normal, draw_seed
from recattack_gym.victims.base import ExposureEngine, GradientConfig, State, Victim, state_array
from recattack_gym.victims.ranking import CandidateLists, best_first
from recattack_gym.victims.schedule import INITIAL, UpdateSchedule, make_schedule

_BLOCK_NUMBERS = 4_000_000
"""Hidden units that are held at once while scoring."""

Ids = NDArray[np.int32] | NDArray[np.int64]
Examples = tuple[Ids, Ids, Ids]
"""Users `(B,)`, clicked items `(B,)` and negatives `(B, n_negatives)` of one gradient step."""


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
    finetune_epochs: int = 3
    """Passes over the fake clicks in `retrain="finetune"`."""
    finetune_learning_rate: float = 7e-4
    """Step size of gradient descent on the loss summed over a batch; the batch size matters as much."""

    def __post_init__(self) -> None:
        super(
            NeuMFConfig, self
        ).__post_init__()  # slots: the class is made twice, so no bare super()
        as_count("n_negatives", self.n_negatives)
        as_real("initial_scale", self.initial_scale, above=0.0)


class NeuMF(Victim):
    """Add generalised matrix factorisation and a multi-layer perceptron over separate embeddings.

    He, Liao, Zhang, Nie, Hu, Chua, "Neural Collaborative Filtering", WWW 2017, section 3.4, equation 12:
    `score = w . [p_u * q_i, relu(W3 relu(W2 relu(W1 [p'_u, q'_i])))]`, trained with log loss on clicks
    and sampled negatives (equation 7).

    Fine-tuning is vanilla gradient descent, as the paper continues from pre-trained parameters (section
    3.4.1). It also keeps the number of clicks on a target meaningful, where a fresh Adam's first steps
    have one size however many clicks agree.

    Differs from the paper: no pre-training of the two parts; layers start from Glorot's distribution
    and embeddings from `initial_scale` instead of 0.01; the score is the logit, which ranks alike; L2
    penalty `reg` on the embeddings of each example.
    """

    name = "NeuMF"
    config_class = NeuMFConfig
    config: NeuMFConfig

    def _fit(self, log: Interactions, rng: np.random.Generator) -> None:
        from recattack_gym.victims.neumf_kernel import clean_epochs, fit

        config = self.config
        d, scale = config.embedding_size, np.float32(config.initial_scale)
        self._weights = _draw_layers(d, rng)
        for name, rows in (("items", log.n_items), ("users", log.n_users)):
            self._weights[name] = rng.standard_normal((rows, 2 * d), dtype=np.float32) * scale
        seed = draw_seed(rng)
        epochs = clean_epochs(
            log,
            seed,
            epochs=config.epochs,
            n_negatives=config.n_negatives,
            below=self._n_genuine_negatives,
        )
        if self.device == "cpu":
            fit(
                self._weights,
                epochs,
                batch_size=config.batch_size,
                reg=config.reg,
                learning_rate=config.learning_rate,
            )
        else:
            self._train(_batches(epochs, config.batch_size), config.learning_rate, is_adam=True)

    @property
    def _n_genuine_negatives(self) -> int:
        return self.log.n_items if self.config.new_items_as_negatives else self.n_original_items

    def _finetune(self, log: Interactions, profile: NDArray[np.int64], seed: int) -> None:
        schedule = self._schedule(log, (profile.shape[0], profile.shape[1]), seed)
        fakes = fake_rows(len(profile), seed, self.config)
        self._weights["users"] = np.concatenate([self._weights["users"], fakes])
        users, items, negatives = schedule.examples(profile)
        self._train(
            (
                (users[start:end], items[start:end], negatives[start:end])
                for start, end in pairwise(schedule.batch_indptr)
            ),
            self.config.finetune_learning_rate,
            is_adam=False,
        )

    def _schedule(
        self, log: Interactions, profile_shape: tuple[int, int], seed: int
    ) -> UpdateSchedule:
        config = self.config
        return make_schedule(
            log,
            profile_shape,
            seed=seed,
            epochs=config.finetune_epochs,
            replay=config.finetune_replay,
            batch_size=config.finetune_batch_size,
            n_negatives=config.n_negatives,
            n_genuine_negatives=self._n_genuine_negatives,
        )

    def _compiled_engine(self, lists: CandidateLists) -> ExposureEngine | None:
        if lists.item_ids is None or self.device != "cpu":
            return None
        from recattack_gym.victims.neumf_kernel import NeuMFEngine, Update

        def updates(n_fake_users: int, profile_size: int, seed: int) -> Update:
            schedule = self._schedule(self.log, (n_fake_users, profile_size), seed)
            return Update(schedule, fake_rows(n_fake_users, seed, self.config))

        scores = self.score(np.arange(lists.n_users), lists.item_ids)
        return NeuMFEngine(
            self._weights,
            best_first(scores, lists.item_ids),
            lists,
            updates,
            reg=self.config.reg,
            learning_rate=self.config.finetune_learning_rate,
        )

    def _train(self, batches: Iterator[Examples], learning_rate: float, *, is_adam: bool) -> None:
        """Take one step per batch: of Adam on the mean loss, or of gradient descent on the sum."""
        import torch
        from torch.nn.functional import softplus

        weights = {
            name: torch.as_tensor(array, device=self.device).requires_grad_()
            for name, array in self._weights.items()
        }
        reg = self.config.reg
        optimiser: torch.optim.Optimizer
        if is_adam:
            optimiser = torch.optim.Adam(weights.values(), lr=learning_rate)
        else:
            optimiser = torch.optim.SGD(weights.values(), lr=learning_rate)
        for batch in batches:
            user_ids, clicked, negatives = (
                torch.as_tensor(ids, device=self.device).long() for ids in batch
            )
            item_ids = torch.cat([clicked[:, None], negatives], dim=1)  # (B, 1 + n_negatives)
            p_gmf, p_mlp = (
                weights["users"][user_ids][:, None].expand(*item_ids.shape, -1).chunk(2, 2)
            )
            q_gmf, q_mlp = weights["items"][item_ids].chunk(2, 2)
            layer1 = torch.cat([weights["user_layer"], weights["item_layer"]])
            hidden = torch.relu(torch.cat([p_mlp, q_mlp], dim=2) @ layer1 + weights["bias1"])
            hidden = torch.relu(hidden @ weights["layer2"] + weights["bias2"])
            hidden = torch.relu(hidden @ weights["layer3"] + weights["bias3"])
            logit = (p_gmf * q_gmf) @ weights["gmf_output"] + hidden @ weights["mlp_output"]
            logit = logit + weights["output_bias"]
            loss = softplus(-logit[:, 0]).sum() + softplus(logit[:, 1:]).sum()
            if reg:
                norms = sum((x**2).sum() for x in (p_gmf, p_mlp, q_gmf, q_mlp))
                loss = loss + 0.5 * reg * norms
            if is_adam:
                loss = loss / logit.numel()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation
            optimiser.step()
        self._weights = {name: array.detach().cpu().numpy() for name, array in weights.items()}

    def _score(
        self, user_ids: NDArray[np.int64], item_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            weights = {
                name: torch.as_tensor(array, device=self.device)
                for name, array in self._weights.items()
            }
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
        return dict(self._weights)

    def _set_state(self, state: State) -> None:
        d = self.config.embedding_size
        shapes: dict[str, tuple[int | None, ...]] = {
            "users": (None, 2 * d),
            "items": (self.log.n_items, 2 * d),
            **_layer_shapes(d),
        }
        self._weights = {
            name: state_array(state, name, shape).astype(np.float32, copy=False)
            for name, shape in shapes.items()
        }


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


def _batches(epochs: Iterator[Examples], batch_size: int) -> Iterator[Examples]:
    for users, items, negatives in epochs:
        for start in range(0, len(users), batch_size):
            rows = slice(start, start + batch_size)
            yield users[rows], items[rows], negatives[rows]
