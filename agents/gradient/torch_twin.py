"""Surrogates in PyTorch: autograd, `torch.optim.Adam`, dense matrices; the oracle of the compiled ones."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import softplus

from agents.gradient.gradient_passing import GradientPassing, pass_gradient_plainly
from agents.gradient.graph import InteractionGraph
from agents.gradient.surrogates import Surrogate


class _Passing(torch.autograd.Function):
    """The identity, whose backward passes the gradient along the graph."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        representations: torch.Tensor,
        graph: InteractionGraph,
        config: GradientPassing,
    ) -> torch.Tensor:
        ctx.save_for_backward(representations)
        ctx.graph, ctx.config = graph, config  # type: ignore[attr-defined]  # torch's way to keep what is no tensor
        return representations.clone()

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, None, None]:
        (representations,) = ctx.saved_tensors  # type: ignore[attr-defined]
        passed = pass_gradient_plainly(
            gradient.numpy(),
            representations.detach().numpy(),
            ctx.graph,  # type: ignore[attr-defined]
            ctx.config,  # type: ignore[attr-defined]
        )
        return torch.as_tensor(passed, dtype=gradient.dtype), None, None


def passing_identity(
    representations: torch.Tensor, graph: InteractionGraph, config: GradientPassing
) -> torch.Tensor:
    """Return representations as they are, whose gradient will be passed along the graph.

    Args:
        representations: Final ones, on the CPU, shape `(n_rows, d)`.
        graph: The pairs.
        config: Thresholds, weights and hops.

    Returns:
        The same numbers; in `backward` their gradient is that of `gradient_passing.pass_gradient`. What was
        passed is no part of a graph: there are no second derivatives.
    """
    passed: torch.Tensor = _Passing.apply(representations, graph, config)  # type: ignore[no-untyped-call]
    return passed


class TorchTwin:
    """A surrogate trained by autograd on exactly the draws of a compiled one.

    Args:
        surrogate: Whose embeddings, settings and draws are taken; it is not changed by `train_epoch`.
    """

    def __init__(self, surrogate: Surrogate) -> None:
        self._twin, self.config, self.graph = surrogate, surrogate.config, surrogate.graph
        self.embeddings = torch.tensor(surrogate.embeddings, requires_grad=True)
        self.optimiser = torch.optim.Adam([self.embeddings], lr=surrogate.config.learning_rate)
        self._adjacency: torch.Tensor | None = None

    def representations(self) -> torch.Tensor:
        """Return the final representations, shape `(n_rows, d)`."""
        if self.config.model == "mf":
            return self.embeddings
        if self._adjacency is None:
            found = self.graph.adjacency().tocoo()
            places = torch.as_tensor(np.stack([found.row, found.col]).astype(np.int64))
            self._adjacency = torch.sparse_coo_tensor(
                places,
                torch.as_tensor(found.data, dtype=self.embeddings.dtype),
                found.shape,
                check_invariants=True,
            ).coalesce()
        hops = [self.embeddings]
        for _ in range(self.config.n_layers):
            hops.append(torch.sparse.mm(self._adjacency, hops[-1]))
        return torch.stack(hops).mean(dim=0)

    def train_epoch(self) -> float:
        """Train on the draws of the surrogate's present epoch and return the mean loss.

        All steps pass their gradient if the settings have Gradient Passing (`passing_rate` is not heeded).
        """
        return float(np.mean([self.train_step(batch) for batch in self._batches()]))

    def train_step(self, batch: tuple[NDArray[np.int64], ...]) -> float:
        """Take one step on a batch, as in `loss`, and return its mean loss."""
        rows = self.representations()
        if self.config.passing is not None:
            rows = passing_identity(rows, self.graph, self.config.passing)
        loss = self.loss(batch, rows)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation
        self.optimiser.step()
        return float(loss.item())

    def loss(self, batch: tuple[NDArray[np.int64], ...], rows: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch: `(users,)` for `"mse"`, else users, items and negatives."""
        n, config = self.graph.n_users, self.config
        if config.loss == "mse":
            return self._squared_error(torch.as_tensor(batch[0]), rows)
        users, positives, negatives = (torch.as_tensor(ids.astype(np.int64)) for ids in batch)
        u, p, other = rows[users], rows[n + positives], rows[n + negatives]
        score = (u * p).sum(dim=1)
        others = (u[:, None] * other).sum(dim=2)
        if config.loss == "bpr":
            norms = (u**2).sum(dim=1) + (p**2).sum(dim=1) + (other[:, 0] ** 2).sum(dim=1)
            return softplus(others[:, 0] - score).mean() + config.reg * norms.mean()
        both = torch.cat([softplus(-score), softplus(others).ravel()])
        own = (u**2).sum(dim=1)
        norms = torch.cat([own + (p**2).sum(dim=1), (own[:, None] + (other**2).sum(dim=2)).ravel()])
        return both.mean() + config.reg * norms.mean()

    def _squared_error(self, users: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        n, config = self.graph.n_users, self.config
        clicked = torch.zeros((n, self.graph.n_items), dtype=rows.dtype)
        owners = np.repeat(np.arange(n), np.diff(self.graph.indptr))
        clicked[owners, self.graph.items.astype(np.int64)] = 1.0
        y = clicked[users]
        weight = torch.where(y > 0, config.positive_weight, 1.0)
        u, items = rows[users], rows[n:]
        norms = (u**2).sum(dim=1).mean() + (items**2).sum(dim=1).mean()
        return (weight * (y - u @ items.T) ** 2).mean() + config.reg * norms

    def _batches(self) -> list[tuple[NDArray[np.int64], ...]]:
        if self.config.loss == "mse":
            return [(users,) for users in self._twin.user_batches()]
        n_draws, _ = self._twin.epoch_draws()
        size = self.config.batch_size
        return [
            tuple(
                ids.astype(np.int64) for ids in self._twin.draw(first, min(size, n_draws - first))
            )
            for first in range(0, n_draws, size)
        ]
