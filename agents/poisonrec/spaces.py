"""What an action space of PoisonRec's policy is: a way to turn a query vector into an item.

The query is what the network makes of the clicks so far. It is turned into one or more decisions, each a
softmax over inner products with features. PoisonRec (Song et al., ICDE 2020), §IV-C and §IV-D.
"""

from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray

from agents.poisonrec.threads import Blocks


class Decisions(ABC):
    """How R clicks came about: the decisions, and the features that these touch."""

    rows: NDArray[np.int64]
    """Distinct rows of the feature table that the decisions touch, shape `(n_touched,)`."""
    item_places: NDArray[np.int64]
    """Where in `rows` the feature of each clicked item is, shape `(R,)`."""
    mask: torch.Tensor
    """Whether there is a decision, shape `(R, depth)`."""

    @abstractmethod
    def log_p(self, query: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Return the log-probability of every decision, differentiable in both arguments.

        Args:
            query: Shape `(R, D)`.
            features: Those of `rows`, shape `(n_touched, D)`.

        Returns:
            Shape `(R, depth)`; anything where there is no decision.
        """


class ActionSpace(ABC):
    """A way to choose items; without parameters of its own, which are a table of features."""

    n_rows: int
    """Rows of the table of features."""
    first_item_row: int
    """Row of item 0; those of the other items follow."""
    depth: int
    """Most decisions that one click takes."""

    @abstractmethod
    def sample(
        self,
        query: NDArray[np.float32],
        features: NDArray[np.float32],
        rng: np.random.Generator,
        blocks: Blocks,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Choose items.

        Args:
            query: Shape `(B, D)`.
            features: Shape `(n_rows, D)`.
            rng: Source of randomness.
            blocks: Threads.

        Returns:
            Item ids, shape `(B,)`, and the log-probability of each decision, shape `(B, depth)`.
        """

    @abstractmethod
    def decisions(self, item_ids: NDArray[np.int64], blocks: Blocks) -> Decisions:
        """Return the decisions that choose these items, shape `(R,)`."""
