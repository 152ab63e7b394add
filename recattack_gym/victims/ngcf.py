"""NGCF: embeddings that are propagated over the user-item graph."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count, as_real
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_normal, draw_seed
from recattack_gym.victims.base import ExposureEngine, GradientConfig, State, Victim, state_array
from recattack_gym.victims.bpr import BPRConfig
from recattack_gym.victims.epochs import clean_epochs
from recattack_gym.victims.factors import Factors
from recattack_gym.victims.graph import InteractionGraph, touched_nodes
from recattack_gym.victims.ranking import CandidateLists
from recattack_gym.victims.schedule import INITIAL, UpdateSchedule, make_schedule

if TYPE_CHECKING:
    import torch


Ids = NDArray[np.int32] | NDArray[np.int64]


class Examples(NamedTuple):
    """What to train on; batch `b` is `batch_indptr[b]:batch_indptr[b + 1]`."""

    users: Ids
    """Shape `(S,)`."""
    items: Ids
    """Clicked items, shape `(S,)`."""
    negatives: Ids
    """Items that were not clicked, shape `(S,)`."""
    batch_indptr: NDArray[np.int64]
    """Shape `(n_batches + 1,)`."""
    learning_rate: float
    """Step size of these batches."""


SLOPE = 0.2
"""Of LeakyReLU below zero."""

_SCORE_CELLS = 2_000_000
"""Numbers that scoring holds at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NGCFConfig(GradientConfig):
    """Settings of NGCF."""

    n_layers: int = 3
    """Rounds of propagation."""
    initial_scale: float = 0.1
    """Standard deviation of the initial embeddings."""
    warm_start_epochs: int = 60
    """Passes of BPR, with its own default settings, that layer 0 starts from; 0 for a random start."""
    epochs: int = 20
    """Passes over the log in clean training and in `retrain="full"`, after the warm start."""
    learning_rate: float = 5e-3
    """Step size of clean training in its first epoch; it falls linearly towards zero."""
    reg: float = 5e-3
    """L2 penalty on the layer-0 embeddings of each example's user, item and negative."""
    batch_size: int = 8192
    """Examples per gradient step of clean training; each step propagates over the whole graph."""
    popular_negatives: float = 0.1
    """Share of the negatives of clean training that are drawn by popularity, in `[0, 1]`."""
    finetune_epochs: int = 12
    """Passes over the fake clicks in `retrain="finetune"`, each one step of Adam unless they are many.

    With the next, chosen by agreement with `retrain="full"` on 48 attacks on Steam: Spearman correlation of
    RecNum 0.72 (2 passes: 0.61, 20: 0.74; two full retrainings from different seeds: 0.94). RecNum is
    2.4 times that of full retraining, where genuine users also meet clicked items as negatives. Moving
    all embeddings agrees better, but at the price of the recommendations: test HR@10 falls from 0.39 to
    0.36 and far below, where full retraining and this recipe leave it at 0.39.
    """
    finetune_learning_rate: float = 0.05
    """Step size of fine-tuning; large, since it has few steps and moves new and clicked nodes only."""
    finetune_replay: float = 1.0
    """Genuine clicks mixed in per fake click in every epoch; eight times as many change little."""
    finetune_batch_size: int = 1024
    """Examples per gradient step of fine-tuning."""

    def __post_init__(self) -> None:
        GradientConfig.__post_init__(self)
        as_count("n_layers", self.n_layers)
        as_count("warm_start_epochs", self.warm_start_epochs, at_least=0)
        as_real("initial_scale", self.initial_scale, above=0.0)
        as_real("popular_negatives", self.popular_negatives, at_least=0.0, at_most=1.0)


class NGCF(Victim):
    """Neural graph collaborative filtering.

    Wang, He, Wang, Feng, Chua, "Neural Graph Collaborative Filtering", SIGIR 2019. A node's embedding
    `e` and the sum `s` of its neighbours' under the symmetric normalisation give the next layer
    `LeakyReLU((s + e) W1 + (s * e) W2 + b)` (Eq. 7); all layers are concatenated (Eq. 9), scored by inner
    product (Eq. 10) and trained with the BPR loss (Eq. 11). A poisoned platform retrains on the fake
    clicks and propagates over a graph with the fake edges; fine-tuning moves the layer-0 embeddings of
    the fake users and of the items that they clicked, which the graph carries to everyone.

    Differs from the paper: layers 1 to L are divided by their L2 norm before concatenation, as in the
    authors' code. Layer 0 starts from BPR with an item bias (the bias is one coordinate of the item,
    times a coordinate of the user that starts at 1), where the paper starts from Xavier's distribution
    and the code offers to start from given embeddings; from a random start, 60 epochs on Steam end
    below BPR. No node or message dropout; one bias per layer; the L2 penalty covers
    layer 0 and not the weights; a falling learning rate; some negatives are drawn by popularity.
    """

    name = "NGCF"
    config_class = NGCFConfig
    config: NGCFConfig
    _final: NDArray[np.float32] | None = None

    def _fit(self, log: Interactions, rng: np.random.Generator) -> None:
        config, size = self.config, self.config.embedding_size
        seed = draw_seed(rng)
        bound = np.sqrt(6.0 / (2 * size))
        shape = (config.n_layers, 2 * size, size)
        self._weights = rng.uniform(-bound, bound, shape).astype(np.float32)
        self._biases = np.zeros((config.n_layers, size), dtype=np.float32)
        self._embeddings = self._first_embeddings(log, rng)
        parts = self._clean_epochs(log, seed)
        if self.device == "cpu":
            self._train_compiled(parts)
        else:
            self._train(parts)

    def _first_embeddings(self, log: Interactions, rng: np.random.Generator) -> NDArray[np.float32]:
        """Train BPR and fold its item bias into one more dimension; shape `(n_nodes, d)`."""
        from recattack_gym.victims.mf_kernel import fit_bpr

        config, bpr = self.config, BPRConfig()
        seed = draw_seed(rng)
        factors = Factors.draw(log, config.embedding_size - 1, config.initial_scale, rng)
        fit_bpr(
            factors,
            log,
            n_negative_items=config.negatives_below(log.n_items, self.n_new_items),
            popular_negatives=bpr.popular_negatives,
            epochs=config.warm_start_epochs,
            learning_rate=bpr.learning_rate,
            reg=bpr.reg,
            seed=seed,
        )
        items = np.column_stack([factors.items, factors.bias])
        return np.concatenate([items, _with_one(factors.users)])

    def _clean_epochs(self, log: Interactions, seed: int) -> Iterator[Examples]:
        """Yield every event once per epoch, each with an item that its user has not seen."""
        config = self.config
        epochs = clean_epochs(
            log,
            seed,
            epochs=config.epochs,
            batch_size=config.batch_size,
            n_negatives=1,
            below=config.negatives_below(log.n_items, self.n_new_items),
            popular=config.popular_negatives,
        )
        for epoch, (users, items, negatives, batch_indptr) in enumerate(epochs):
            rate = config.learning_rate * (1.0 - epoch / config.epochs)
            yield Examples(users, items, negatives[:, 0], batch_indptr, rate)

    def _finetune(self, log: Interactions, profile: NDArray[np.int64], seed: int) -> None:
        schedule = self._schedule(log, (profile.shape[0], profile.shape[1]), seed)
        fakes = self._first_fakes(seed, len(profile))
        self._embeddings = np.concatenate([self._embeddings, fakes])
        users, items, negatives = schedule.examples(profile)
        rate = self.config.finetune_learning_rate
        examples = Examples(users, items, negatives[:, 0], schedule.batch_indptr, rate)
        moving = touched_nodes(profile, log.n_items + log.n_users)
        self._train(iter([examples]), moving.astype(np.int64))

    def _first_fakes(self, seed: int, n_fake_users: int) -> NDArray[np.float32]:
        """Return fake users' untrained embeddings, which depend on the seed alone; shape `(N, d)`."""
        config = self.config
        rows = counter_normal(seed, INITIAL, (n_fake_users, config.embedding_size - 1))
        return _with_one(rows * np.float32(config.initial_scale))

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
            n_negatives=1,
            n_genuine_negatives=config.negatives_below(log.n_items, self.n_new_items),
        )

    def _train(self, parts: Iterator[Examples], moving: NDArray[np.int64] | None = None) -> None:
        """Take one Adam step per batch, propagating over `self.log`'s graph.

        Args:
            parts: What to train on.
            moving: The only nodes whose embeddings move, with the weights fixed; `None` to move all.
        """
        import torch
        from torch.nn.functional import embedding, softplus

        n_items = self.log.n_items
        adjacency = _adjacency(InteractionGraph.from_log(self.log), self.device)
        embeddings, weights, biases = (
            torch.tensor(array, device=self.device)
            for array in (self._embeddings, self._weights, self._biases)
        )
        nodes = torch.arange(len(embeddings), device=self.device)
        if moving is not None:
            nodes = torch.as_tensor(moving, device=self.device)
        rows = embeddings[nodes].requires_grad_()
        learnt = [rows]
        if moving is None:
            learnt += [weights.requires_grad_(), biases.requires_grad_()]
        optimiser = torch.optim.Adam(learnt)
        for users, items, negatives, indptr, learning_rate in parts:
            optimiser.param_groups[0]["lr"] = learning_rate
            triples = np.stack([users + n_items, items, negatives]).astype(np.int64)
            on_device = torch.from_numpy(triples).to(self.device)
            for start, end in pairwise(indptr.tolist()):
                batch = on_device[:, start:end]
                layer0 = embeddings.index_copy(0, nodes, rows)
                final = propagate(adjacency, layer0, weights, biases)
                user, item, negative = embedding(batch, final)
                margin = (user * (item - negative)).sum(dim=1)
                penalty = embedding(batch, layer0).square().sum() / (end - start)
                loss = softplus(-margin).mean() + 0.5 * self.config.reg * penalty
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        layer0 = embeddings.index_copy(0, nodes, rows)
        self._embeddings, self._weights, self._biases = (
            tensor.detach().cpu().numpy() for tensor in (layer0, weights, biases)
        )
        self._final = None

    def _train_compiled(self, parts: Iterator[Examples]) -> None:
        """Do what `_train` does, on one core."""
        from recattack_gym.victims.ngcf_kernel import Parameters, Trainer

        parameters = Parameters(self._embeddings, self._weights, self._biases)
        trainer = Trainer(parameters, InteractionGraph.from_log(self.log), self.log.n_items)
        for examples in parts:
            trainer.train(*examples, reg=self.config.reg)
        self._final = None

    def _compiled_engine(self, lists: CandidateLists) -> ExposureEngine | None:
        if self.device != "cpu":
            return None
        from recattack_gym.victims.graph_kernel import make_contest
        from recattack_gym.victims.ngcf_kernel import NGCFEngine, Parameters

        log, config = self.log, self.config
        return NGCFEngine(
            Parameters(self._embeddings, self._weights, self._biases),
            InteractionGraph.from_log(log),
            make_contest(lists, self._score),
            partial(self._schedule, log),
            self._first_fakes,
            learning_rate=config.finetune_learning_rate,
            reg=config.reg,
        )

    def _propagated(self) -> NDArray[np.float32]:
        """Return what items and users are scored by; shape `(n_nodes, (n_layers + 1) * d)`."""
        import torch

        final = self._final
        if final is None:
            arrays = (self._embeddings, self._weights, self._biases)
            with torch.no_grad():
                adjacency = _adjacency(InteractionGraph.from_log(self.log), self.device)
                parameters = [torch.tensor(array, device=self.device) for array in arrays]
                final = propagate(adjacency, *parameters).cpu().numpy()
            self._final = final
        return final

    def _score(
        self, user_ids: NDArray[np.int64], item_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        final, n_items = self._propagated(), self.log.n_items
        width = item_ids.shape[1]
        scores = np.empty(item_ids.shape, dtype=np.float32)
        whole = width * 16 > n_items  # one matrix product is then cheaper than gathering rows
        step = max(1, _SCORE_CELLS // (n_items if whole else max(1, width * final.shape[1])))
        for start in range(0, len(user_ids), step):
            rows = slice(start, start + step)
            users, items = final[n_items + user_ids[rows]], item_ids[rows]
            if whole:
                scores[rows] = np.take_along_axis(users @ final[:n_items].T, items, axis=1)
            else:
                scores[rows] = (final[items] @ users[:, :, None])[:, :, 0]
        return scores

    def _state(self) -> State:
        return {
            "embeddings": self._embeddings,
            "weights": self._weights,
            "biases": self._biases,
        }

    def _set_state(self, state: State) -> None:
        size, n_layers = self.config.embedding_size, self.config.n_layers
        shapes: dict[str, tuple[int | None, ...]] = {
            "embeddings": (None, size),
            "weights": (n_layers, 2 * size, size),
            "biases": (n_layers, size),
        }
        self._embeddings, self._weights, self._biases = (
            np.ascontiguousarray(state_array(state, key, shape), dtype=np.float32)
            for key, shape in shapes.items()
        )
        self._final = None


def propagate(
    adjacency: "torch.Tensor",
    embeddings: "torch.Tensor",
    weights: "torch.Tensor",
    biases: "torch.Tensor",
) -> "torch.Tensor":
    """Propagate over the graph and concatenate the layers (Wang et al., SIGIR 2019, Eqs. 7-9).

    Args:
        adjacency: Symmetrically normalised, sparse CSR, shape `(n_nodes, n_nodes)`.
        embeddings: Shape `(n_nodes, d)`.
        weights: Shape `(n_layers, 2 * d, d)`: for the sum and, below, for the product.
        biases: Shape `(n_layers, d)`.

    Returns:
        Shape `(n_nodes, (n_layers + 1) * d)`; layers after the first have unit rows.
    """
    import torch
    from torch.nn.functional import leaky_relu, normalize

    class Neighbours(torch.autograd.Function):
        """Multiply by the adjacency; it is symmetric, so its backward is itself."""

        @staticmethod
        def forward(context: object, rows: torch.Tensor) -> torch.Tensor:
            del context
            return adjacency @ rows

        @staticmethod
        def backward(context: object, gradient: torch.Tensor) -> torch.Tensor:
            del context
            return adjacency @ gradient

    layers, rows = [embeddings], embeddings
    for weight, bias in zip(weights, biases, strict=True):
        neighbours = cast("torch.Tensor", Neighbours.apply(rows))  # type: ignore[no-untyped-call]  # torch has no annotation
        both = torch.cat([neighbours + rows, neighbours * rows], dim=1)
        rows = leaky_relu(both @ weight + bias, SLOPE)
        layers.append(normalize(rows, dim=1))
    return torch.cat(layers, dim=1)


def _adjacency(graph: InteractionGraph, device: str) -> "torch.Tensor":
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.from_numpy(graph.indptr),
            torch.from_numpy(graph.neighbours.astype(np.int64)),
            torch.from_numpy(graph.normalised),
            (graph.n_nodes, graph.n_nodes),
            device=device,
            check_invariants=False,
        )


def _with_one(users: NDArray[np.float32]) -> NDArray[np.float32]:
    """Append the coordinate that multiplies the items' bias."""
    return np.column_stack([users, np.ones(len(users), dtype=np.float32)])
