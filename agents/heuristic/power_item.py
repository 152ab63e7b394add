"""PowerItem: targets among the items that many others are similar to."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.base import Attacker, AttackerConfig
from agents.heuristic.clicks import NO_NUKE, alternate, other_items, top_share
from recattack_gym.core import Interactions, Knowledge
from recattack_gym.core.checks import as_count, as_real
from recattack_gym.core.view import AttackerView

_BLOCK_PAIRS = 4_000_000
"""Item pairs that are held at once, so that memory does not grow with the catalogue."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerItemConfig(AttackerConfig):
    """Settings of `PowerItem`."""

    power_rate: float = 0.1
    """Share of the other items that are power items; not in PoisonRec, 0.1 as for its popular items."""
    n_neighbours: int = 50
    """Most similar items that every item points at; 50, a usual neighbourhood in item-based kNN."""
    significance: int = 50
    """Users in common from which a similarity counts in full: weight `min(n, 50) / 50`."""

    def __post_init__(self) -> None:
        as_real("power_rate", self.power_rate, above=0.0, at_most=1.0)
        as_count("n_neighbours", self.n_neighbours)
        as_count("significance", self.significance)


class PowerItem(Attacker):
    """Alternate a random target item and a random power item; needs the log.

    PoisonRec (Song et al., ICDE 2020), §V, baseline "PowerItem"; power items after Seminario and
    Wilson, "Attacking item-based recommender systems with power items", RecSys 2014: the items with
    the largest in-degree in the graph of nearest neighbours.

    Differs from the paper: PoisonRec states neither how many power items there are nor which
    similarity ranks the neighbours; see `PowerItemConfig` and `in_degrees`. The target comes first.
    """

    name = "power-item"
    knowledge = Knowledge.GRAY_BOX
    config: PowerItemConfig
    config_class = PowerItemConfig
    why_not = NO_NUKE

    def __init__(self, config: AttackerConfig | Mapping[str, object] | None = None) -> None:
        super().__init__(config)
        self._known: tuple[Interactions, NDArray[np.int64]] | None = None

    def _plan(self, view: AttackerView, rng: np.random.Generator) -> NDArray[np.int64]:
        targets = np.array(view.goal.target_items, dtype=np.int64)
        others = other_items(view)
        degrees = self._in_degrees(view.log, view.n_items)
        power_items = top_share(others, degrees[others], self.config.power_rate)
        return alternate(view.budget, targets, power_items, rng)

    def _in_degrees(self, log: Interactions, n_items: int) -> NDArray[np.int64]:
        """Return the in-degrees over the whole catalogue; those of the last log are remembered."""
        if self._known is None or self._known[0] is not log:
            degrees = in_degrees(
                log, n_neighbours=self.config.n_neighbours, significance=self.config.significance
            )
            self._known = (log, degrees)
        known = self._known[1]
        return np.pad(known, (0, n_items - len(known)))


def in_degrees(
    log: Interactions, *, n_neighbours: int = 50, significance: int = 50
) -> NDArray[np.int64]:
    """Count for every item how many others have it among their nearest neighbours.

    With `n_i` users of item i and `n_ij` users of both, the similarity is the cosine
    `n_ij / sqrt(n_i n_j)` times `min(n_ij, significance) / significance`. Items without a user in
    common are no neighbours; among equal similarities the smaller id is the nearer one.

    Returns:
        Shape `(n_items,)`.
    """
    from scipy.sparse import csr_array

    indptr, items = log.seen
    shape = (log.n_users, log.n_items)
    by_user = csr_array((np.ones(len(items), dtype=np.float64), items, indptr), shape=shape)
    by_item = by_user.T.tocsr()
    n_users_of = np.diff(by_item.indptr).astype(np.float64)
    degrees = np.zeros(log.n_items, dtype=np.int64)
    for block in _blocks(by_item @ np.diff(indptr), log.n_items):
        pairs = (by_item[block] @ by_user).tocsr()
        pairs.sort_indices()  # so that a stable sort puts the smaller id first among equals
        for row, item in enumerate(range(block.start, block.stop)):
            entries = slice(pairs.indptr[row], pairs.indptr[row + 1])
            neighbours, n_both = pairs.indices[entries], pairs.data[entries]
            cosine = n_both / np.sqrt(n_users_of[item] * n_users_of[neighbours])
            similarity = cosine * np.minimum(n_both, significance) / significance
            similarity[neighbours == item] = -np.inf
            nearest = np.argsort(-similarity, kind="stable")[
                : min(n_neighbours, len(neighbours) - 1)
            ]
            degrees[neighbours[nearest]] += 1
    return degrees


def _blocks(n_paths: NDArray[np.float64], n_items: int) -> Iterator[slice]:
    """Cut the items into runs with at most `_BLOCK_PAIRS` pairs each (or of one item)."""
    n_pairs = np.minimum(n_paths, n_items)
    start, held = 0, 0.0
    for item, n_more in enumerate(n_pairs.tolist()):
        if held and held + n_more > _BLOCK_PAIRS:
            yield slice(start, item)
            start, held = item, 0.0
        held += n_more
    yield slice(start, len(n_pairs))
