"""The user-item graph that graph victims propagate over.

Edges are binary (an item clicked twice is one edge), and the normalisation of the adjacency matrix,
`D^-1/2 A D^-1/2`, is kept as a vector `D^-1/2` beside it. Poisoning therefore changes a few rows of the
adjacency and a few numbers of the vector, never all values.

Nodes are numbered items first, then genuine users, then fake users, so that injecting users renames
no node.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions


@dataclass(frozen=True, eq=False)
class InteractionGraph:
    """A symmetric binary adjacency in CSR form.

    Args:
        indptr: Shape `(n_nodes + 1,)`.
        neighbours: Shape `(2 * n_edges,)`: node ids, ascending within each row.
        n_items: Nodes `[0, n_items)` are items; user `u` is node `n_items + u`.
    """

    indptr: NDArray[np.int64]
    neighbours: NDArray[np.int32]
    n_items: int

    @classmethod
    def from_log(cls, log: Interactions) -> Self:
        """Build the graph of a log's distinct (user, item) pairs."""
        user_indptr, items = log.seen
        users = np.repeat(np.arange(log.n_users, dtype=np.int32), np.diff(user_indptr))
        by_item = np.argsort(items, kind="stable")
        counts = np.bincount(items, minlength=log.n_items)
        indptr = np.concatenate([[0], np.cumsum(counts), len(items) + user_indptr[1:]])
        neighbours = np.concatenate([users[by_item] + np.int32(log.n_items), items])
        return cls(indptr.astype(np.int64), neighbours.astype(np.int32), log.n_items)

    @property
    def n_nodes(self) -> int:
        """Items and users."""
        return len(self.indptr) - 1

    @cached_property
    def scale(self) -> NDArray[np.float32]:
        """Shape `(n_nodes,)`: one over the square root of the degree, 0 for nodes without edges."""
        degree = np.diff(self.indptr)
        root = np.sqrt(np.maximum(degree, 1))
        return np.where(degree > 0, 1.0 / root, 0.0).astype(np.float32)

    @cached_property
    def normalised(self) -> NDArray[np.float32]:
        """Shape `(2 * n_edges,)`: the values of `D^-1/2 A D^-1/2`, in the order of `neighbours`."""
        rows = np.repeat(np.arange(self.n_nodes), np.diff(self.indptr))
        return self.scale[rows] * self.scale[self.neighbours]


def touched_nodes(profile: NDArray[np.int64], n_clean_nodes: int) -> NDArray[np.int32]:
    """Return the nodes that a poison set touches: the items it clicks and its fake users.

    Args:
        profile: Shape `(N, T)`.
        n_clean_nodes: Nodes without the fake users.

    Returns:
        Ascending and distinct.
    """
    fakes = np.arange(n_clean_nodes, n_clean_nodes + len(profile))
    return np.concatenate([np.unique(profile), fakes]).astype(np.int32)
