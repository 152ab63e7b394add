"""NGCF: embeddings that are propagated over the user-item graph."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count
from recattack_gym.core.errors import ArtifactError
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_normal
from recattack_gym.victims.base import GradientConfig, State, Victim
from recattack_gym.victims.graph import InteractionGraph
from recattack_gym.victims.schedule import INITIAL, MAX_TRIES, UpdateSchedule, make_schedule

if TYPE_CHECKING:
    import torch

Batch = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""User ids, item ids and negative item ids of one gradient step, each `(batch_size,)`."""

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
        rows = rng.standard_normal((log.n_items + log.n_users, size), dtype=np.float32)
        self._embeddings = rows * np.float32(config.initial_scale)
        bound = np.sqrt(6.0 / (2 * size))
        shape = (config.n_layers, 2 * size, size)
        self._weights = rng.uniform(-bound, bound, shape).astype(np.float32)
        self._biases = np.zeros((config.n_layers, size), dtype=np.float32)
        below = log.n_items if config.new_items_as_negatives else self.n_original_items
        steps = (
            batch
            for _ in range(config.epochs)
            for batch in _shuffled_batches(log, rng, config.batch_size, below)
        )
        self._train(steps, config.learning_rate)

    def _finetune(self, log: Interactions, profile: NDArray[np.int64], seed: int) -> None:
        schedule = self._schedule(log, profile.shape, seed)
        fakes = counter_normal(seed, INITIAL, (len(profile), self.config.embedding_size))
        self._embeddings = np.concatenate(
            [self._embeddings, fakes * np.float32(self.config.initial_scale)]
        )
        users, items, negatives = schedule.examples(profile)
        ends = schedule.batch_indptr
        steps = ((users[a:b], items[a:b], negatives[a:b, 0]) for a, b in pairwise(ends))
        self._train(steps, self.config.finetune_learning_rate)

    def _schedule(
        self, log: Interactions, profile_shape: tuple[int, ...], seed: int
    ) -> UpdateSchedule:
        config = self.config
        return make_schedule(
            log,
            (profile_shape[0], profile_shape[1]),
            seed=seed,
            epochs=config.finetune_epochs,
            replay=config.finetune_replay,
            batch_size=config.finetune_batch_size,
            n_negatives=1,
            n_genuine_negatives=(
                log.n_items if config.new_items_as_negatives else self.n_original_items
            ),
        )

    def _train(self, steps: Iterator[Batch], learning_rate: float) -> None:
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
        for users, items, negatives in steps:
            nodes = torch.from_numpy(np.stack([users + n_items, items, negatives])).to(self.device)
            final = propagate(adjacency, *parameters)
            user, item, negative = embedding(nodes, final)
            margin = (user * (item - negative)).sum(dim=1)
            layer0 = embedding(nodes, parameters[0])
            loss = softplus(-margin).mean()
            loss = loss + 0.5 * self.config.reg * layer0.square().sum() / len(users)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
        self._embeddings, self._weights, self._biases = (
            parameter.detach().cpu().numpy() for parameter in parameters
        )
        self._final = None

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
                scores[rows] = np.einsum("ud,ucd->uc", users, final[items])
        return scores

    def _state(self) -> State:
        return {
            "embeddings": self._embeddings,
            "weights": self._weights,
            "biases": self._biases,
        }

    def _set_state(self, state: State) -> None:
        size, n_layers = self.config.embedding_size, self.config.n_layers
        shapes = {
            "embeddings": (None, size),
            "weights": (n_layers, 2 * size, size),
            "biases": (n_layers, size),
        }
        for key, shape in shapes.items():
            found = state[key].shape if key in state else None
            if found is None or len(found) != len(shape) or found[1:] != shape[1:]:
                raise ArtifactError(f"{key} must have shape {shape}, got {found}")
        self._embeddings, self._weights, self._biases = (
            np.ascontiguousarray(state[key], dtype=np.float32) for key in shapes
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
        neighbours = cast("torch.Tensor", Neighbours.apply(rows))  # type: ignore[no-untyped-call]  # as above
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


def _shuffled_batches(
    log: Interactions, rng: np.random.Generator, batch_size: int, below: int
) -> Iterator[Batch]:
    """Yield one epoch: every event once, each with a uniform item that its user has not seen."""
    order = rng.permutation(len(log))
    users, items = log.user_ids[order], log.item_ids[order]
    negatives = rng.integers(below, size=len(log))
    for _ in range(MAX_TRIES):
        again = np.flatnonzero(log.has(users, negatives))
        if len(again) == 0:
            break
        negatives[again] = rng.integers(below, size=len(again))
    for start in range(0, len(log), batch_size):
        rows = slice(start, start + batch_size)
        yield users[rows], items[rows], negatives[rows]
