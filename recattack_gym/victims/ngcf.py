"""NGCF: embeddings that are propagated over the user-item graph."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_normal
from recattack_gym.victims.base import ExposureEngine, GradientConfig, State, Victim, state_array
from recattack_gym.victims.graph import InteractionGraph
from recattack_gym.victims.ranking import CandidateLists
from recattack_gym.victims.schedule import INITIAL, MAX_TRIES, UpdateSchedule, make_schedule

if TYPE_CHECKING:
    import torch

Examples = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""User ids, item ids and negative item ids, each `(S,)`, and the bounds of the batches."""

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
    epochs: int = 100
    """Passes over the log in clean training and in `retrain="full"`."""
    learning_rate: float = 5e-3
    """Step size of clean training."""
    reg: float = 1e-3
    """L2 penalty on the layer-0 embeddings of each example's user, item and negative."""
    batch_size: int = 8192
    """Examples per gradient step of clean training; each step propagates over the whole graph."""
    finetune_epochs: int = 5
    """Passes over the fake clicks in `retrain="finetune"`."""
    finetune_learning_rate: float = 3e-3
    """Step size of fine-tuning."""
    finetune_batch_size: int = 1024
    """Examples per gradient step of fine-tuning."""

    def __post_init__(self) -> None:
        GradientConfig.__post_init__(self)
        as_count("n_layers", self.n_layers)


class NGCF(Victim):
    """Neural graph collaborative filtering.

    Wang, He, Wang, Feng, Chua, "Neural Graph Collaborative Filtering", SIGIR 2019. A node's embedding
    `e` and the sum `s` of its neighbours' under the symmetric normalisation give the next layer
    `LeakyReLU((s + e) W1 + (s * e) W2 + b)` (Eq. 7); all layers are concatenated (Eq. 9), scored by inner
    product (Eq. 10) and trained with the BPR loss (Eq. 11). A poisoned platform retrains on the fake
    clicks and propagates over a graph with the fake edges.

    Differs from the paper: layers 1 to L are divided by their L2 norm before concatenation, as in the
    authors' code; no node or message dropout; one bias per layer; the L2 penalty covers the embeddings
    of layer 0 and not the weights.
    """

    name = "NGCF"
    config_class = NGCFConfig
    config: NGCFConfig
    _final: NDArray[np.float32] | None = None

    def _fit(self, log: Interactions, rng: np.random.Generator) -> None:
        config, size = self.config, self.config.embedding_size
        self._embeddings = _draw(rng, log.n_items + log.n_users, size, config.initial_scale)
        bound = np.sqrt(6.0 / (2 * size))
        shape = (config.n_layers, 2 * size, size)
        self._weights = rng.uniform(-bound, bound, shape).astype(np.float32)
        self._biases = np.zeros((config.n_layers, size), dtype=np.float32)
        epochs = (
            _shuffled_epoch(log, rng, config.batch_size, self._n_genuine_negatives)
            for _ in range(config.epochs)
        )
        if self.device == "cpu":
            self._train_compiled(epochs, config.learning_rate)
        else:
            self._train(epochs, config.learning_rate)

    def _finetune(self, log: Interactions, profile: NDArray[np.int64], seed: int) -> None:
        schedule = self._schedule(log, (profile.shape[0], profile.shape[1]), seed)
        fakes = counter_normal(seed, INITIAL, (len(profile), self.config.embedding_size))
        fakes *= np.float32(self.config.initial_scale)
        self._embeddings = np.concatenate([self._embeddings, fakes])
        users, items, negatives = schedule.examples(profile)
        examples = (users, items, negatives[:, 0], schedule.batch_indptr)
        self._train(iter([examples]), self.config.finetune_learning_rate)

    @property
    def _n_genuine_negatives(self) -> int:
        return self.log.n_items if self.config.new_items_as_negatives else self.n_original_items

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
            n_genuine_negatives=self._n_genuine_negatives,
        )

    def _train(self, parts: Iterator[Examples], learning_rate: float) -> None:
        """Take one Adam step per batch on everything learnt, propagating over `self.log`'s graph."""
        import torch
        from torch.nn.functional import embedding, softplus

        n_items = self.log.n_items
        adjacency = _adjacency(InteractionGraph.from_log(self.log), self.device)
        parameters = [
            torch.tensor(array, device=self.device, requires_grad=True)
            for array in (self._embeddings, self._weights, self._biases)
        ]
        optimiser = torch.optim.Adam(parameters, lr=learning_rate)
        for users, items, negatives, indptr in parts:
            nodes = torch.from_numpy(np.stack([users + n_items, items, negatives])).to(self.device)
            for start, end in pairwise(indptr.tolist()):
                batch = nodes[:, start:end]
                user, item, negative = embedding(batch, propagate(adjacency, *parameters))
                margin = (user * (item - negative)).sum(dim=1)
                penalty = embedding(batch, parameters[0]).square().sum() / (end - start)
                loss = softplus(-margin).mean() + 0.5 * self.config.reg * penalty
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        self._embeddings, self._weights, self._biases = (
            parameter.detach().cpu().numpy() for parameter in parameters
        )
        self._final = None

    def _train_compiled(self, parts: Iterator[Examples], learning_rate: float) -> None:
        """Do what `_train` does, on one core."""
        from recattack_gym.victims.ngcf_kernel import Parameters, Trainer

        parameters = Parameters(self._embeddings, self._weights, self._biases)
        trainer = Trainer(parameters, InteractionGraph.from_log(self.log), self.log.n_items)
        for examples in parts:
            trainer.train(*examples, learning_rate=learning_rate, reg=self.config.reg)
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
            learning_rate=config.finetune_learning_rate,
            reg=config.reg,
            initial_scale=config.initial_scale,
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


def _draw(rng: np.random.Generator, n: int, size: int, scale: float) -> NDArray[np.float32]:
    return rng.standard_normal((n, size), dtype=np.float32) * np.float32(scale)


def _shuffled_epoch(
    log: Interactions, rng: np.random.Generator, batch_size: int, below: int
) -> Examples:
    """Return every event once, each with an item in `[0, below)` that its user has not seen."""
    order = rng.permutation(len(log))
    users, items = log.user_ids[order], log.item_ids[order]
    negatives = rng.integers(below, size=len(log))
    for _ in range(MAX_TRIES):
        again = np.flatnonzero(log.has(users, negatives))
        if len(again) == 0:
            break
        negatives[again] = rng.integers(below, size=len(again))
    indptr = np.append(np.arange(0, len(log), batch_size), len(log))
    return users, items, negatives, indptr
