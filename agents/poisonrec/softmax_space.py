"""Plain and BPlain: choose an item by a softmax over the catalogue, or over one of two sets."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.poisonrec.spaces import ActionSpace, Decisions
from agents.poisonrec.threads import Blocks

_CHUNK_SCORES = 8_000_000
"""Scores of items that are held at once."""


class PlainSpace(ActionSpace):
    """Choose an item by one softmax over the catalogue (the paper's "Plain").

    Args:
        n_items: Size of the catalogue.
    """

    first_item_row = 0
    depth = 1

    def __init__(self, n_items: int) -> None:
        self.n_rows = n_items

    def sample(
        self,
        query: NDArray[np.float32],
        features: NDArray[np.float32],
        rng: np.random.Generator,
        blocks: Blocks,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See `ActionSpace.sample`."""
        del blocks
        items, log_p = _sample_softmax(query, features, rng)
        return items, log_p[:, None]

    def decisions(self, item_ids: NDArray[np.int64], blocks: Blocks) -> "PlainDecisions":
        """See `ActionSpace.decisions`."""
        del blocks
        return PlainDecisions(self.n_rows, item_ids)


class PlainDecisions(Decisions):
    """Choices from the whole catalogue.

    Args:
        n_items: Size of the catalogue.
        item_ids: Shape `(R,)`.
    """

    def __init__(self, n_items: int, item_ids: NDArray[np.int64]) -> None:
        self.rows = np.arange(n_items)
        self.item_places = item_ids
        self.mask = torch.ones((len(item_ids), 1), dtype=torch.bool)

    def log_p(self, query: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """See `Decisions.log_p`."""
        return _log_softmax_of(query, features, torch.from_numpy(self.item_places))[:, None]


class BPlainSpace(ActionSpace):
    """Choose between targets and other items first, then by a softmax inside the set ("BPlain").

    Args:
        n_items: Size of the catalogue.
        target_items: Distinct ids, shape `(n_targets,)`; at least one item is no target.
    """

    first_item_row = 2
    depth = 2

    def __init__(self, n_items: int, target_items: NDArray[np.int64]) -> None:
        self.n_rows = 2 + n_items
        self.sets = [
            np.sort(target_items),
            np.setdiff1d(np.arange(n_items), target_items, assume_unique=True),
        ]
        self.set_of = np.ones(n_items, dtype=np.int64)
        self.set_of[target_items] = 0
        self.place_in_set = np.zeros(n_items, dtype=np.int64)
        for members in self.sets:
            self.place_in_set[members] = np.arange(len(members))

    def sample(
        self,
        query: NDArray[np.float32],
        features: NDArray[np.float32],
        rng: np.random.Generator,
        blocks: Blocks,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See `ActionSpace.sample`."""
        del blocks
        chosen, set_log_p = _sample_softmax(query, features[:2], rng)
        items = np.zeros(len(query), dtype=np.int64)
        item_log_p = np.zeros(len(query), dtype=np.float32)
        for number, members in enumerate(self.sets):
            here = np.flatnonzero(chosen == number)
            if len(here):
                place, item_log_p[here] = _sample_softmax(query[here], features[2 + members], rng)
                items[here] = members[place]
        return items, np.stack([set_log_p, item_log_p], axis=1)

    def decisions(self, item_ids: NDArray[np.int64], blocks: Blocks) -> "BPlainDecisions":
        """See `ActionSpace.decisions`."""
        del blocks
        return BPlainDecisions(self, item_ids)


class BPlainDecisions(Decisions):
    """Choices of a set, then of an item in it.

    Args:
        space: The sets.
        item_ids: Shape `(R,)`.
    """

    def __init__(self, space: BPlainSpace, item_ids: NDArray[np.int64]) -> None:
        self.rows = np.arange(space.n_rows)
        self.item_places = 2 + item_ids
        self.mask = torch.ones((len(item_ids), 2), dtype=torch.bool)
        self._members = [torch.from_numpy(2 + members) for members in space.sets]
        self._chosen = torch.from_numpy(space.set_of[item_ids])
        self._place_in_set = torch.from_numpy(space.place_in_set[item_ids])

    def log_p(self, query: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """See `Decisions.log_p`."""
        set_log_p = _log_softmax_of(query, features[:2], self._chosen)
        item_log_p = torch.zeros_like(set_log_p)
        for number, members in enumerate(self._members):
            here = torch.nonzero(self._chosen == number)[:, 0]
            picked = _log_softmax_of(query[here], features[members], self._place_in_set[here])
            item_log_p = item_log_p.index_put((here,), picked)
        return torch.stack([set_log_p, item_log_p], dim=1)


def _sample_softmax(
    query: NDArray[np.float32], features: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Draw one row of `features` per query; returns the rows, shape `(B,)`, and their log-probabilities."""
    n = len(query)
    uniform = rng.random(n)
    chosen = np.zeros(n, dtype=np.int64)
    log_p = np.zeros(n, dtype=np.float32)
    for block in _chunks(n, len(features)):
        scores = query[block] @ features.T
        scores -= scores.max(axis=1, keepdims=True)
        cumulated = np.cumsum(np.exp(scores), axis=1, dtype=np.float64)
        total = cumulated[:, -1]
        wanted = uniform[block] * total
        here = np.minimum((cumulated <= wanted[:, None]).sum(axis=1), len(features) - 1)
        chosen[block] = here
        log_p[block] = scores[np.arange(len(here)), here] - np.log(total)
    return chosen, log_p


def _log_softmax_of(
    query: torch.Tensor, features: torch.Tensor, chosen: torch.Tensor
) -> torch.Tensor:
    log_p: torch.Tensor = _LogSoftmaxOf.apply(query, features, chosen)  # type: ignore[no-untyped-call]  # torch
    return log_p


class _LogSoftmaxOf(torch.autograd.Function):
    """`log softmax(query @ features.T)[r, chosen[r]]`, a block of rows at a time in both directions."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  # torch's own
        query: torch.Tensor,
        features: torch.Tensor,
        chosen: torch.Tensor,
    ) -> torch.Tensor:
        log_p = torch.empty(len(query))
        norm = torch.empty(len(query))
        for block in _chunks(len(query), len(features)):
            scores = query[block] @ features.T
            norm[block] = scores.logsumexp(dim=1)
            log_p[block] = scores.gather(1, chosen[block, None])[:, 0] - norm[block]
        ctx.save_for_backward(query, features, chosen, norm)
        return log_p

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401  # torch's own
        *gradients: torch.Tensor,
    ) -> tuple[torch.Tensor | None, ...]:
        query, features, chosen, norm = ctx.saved_tensors
        query_gradient = torch.empty_like(query)
        feature_gradient = torch.zeros_like(features)
        for block in _chunks(len(query), len(features)):
            g = gradients[0][block, None]
            weight = (query[block] @ features.T).sub_(norm[block, None]).exp_().mul_(-g)
            weight.scatter_add_(1, chosen[block, None], g)
            query_gradient[block] = weight @ features
            feature_gradient.addmm_(weight.T, query[block])
        return query_gradient, feature_gradient, None


def _chunks(n_rows: int, n_columns: int) -> list[slice]:
    """Cut rows into blocks of at most `_CHUNK_SCORES` scores (or of one row)."""
    size = max(1, _CHUNK_SCORES // max(1, n_columns))
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]
