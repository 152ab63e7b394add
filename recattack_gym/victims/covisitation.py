"""CoVisitation: users get what others clicked next to what they have clicked."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.errors import ArtifactError
from recattack_gym.core.interactions import Interactions
from recattack_gym.victims.base import ExposureEngine, State, Victim, VictimConfig, state_array
from recattack_gym.victims.ranking import CandidateLists

if TYPE_CHECKING:
    from scipy.sparse import csr_array

SHARE_BITS = 32
"""Shares are whole numbers of `2**-SHARE_BITS`, so their sums are exact in any order."""

_BLOCK_CELLS = 4_000_000
"""Dense scores that are held at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CoVisitationConfig(VictimConfig):
    """CoVisitation has nothing to set."""


class CoVisitation(Victim):
    """Rank items by how often they were clicked right before or after the user's own items.

    Yang, Gong, Cai, "Fake Co-visitation Injection Attacks to Recommender Systems", NDSS 2017: an
    undirected graph whose node weights `w_j` are visits and whose edge weights `w_jc` are co-visits,
    here consecutive clicks of one user on two different items. A user's score for item `c` is the sum
    of the shares `w_jc / w_j` over the distinct items `j` that the user has clicked.

    A share is rounded down to a multiple of `2**-32`. Sums of shares are then exact, so an
    incremental update gives the same bits as counting everything anew.

    Differs from the paper: the paper lists items similar to one item and divides by `w_j * w_c` or
    `sqrt(w_j * w_c)`; PoisonRec (Song et al., ICDE 2020), which ranks candidates for a user,
    gives no formula. The share `w_jc / w_j` (the chance that `c` is next to a visit of `j`) was chosen
    on validation items: HR@10 on Steam 0.418 (cosine 0.408, product 0.130, raw counts 0.372,
    ItemPop 0.101), on ML-1M 0.090 (0.087, 0.007, 0.075, 0.044). There is no popularity threshold. Raw
    counts, not shares, order Table III's heuristics on Steam as printed there (Random, Middle, Popular,
    ConsLOP: 278, 530, 1895, 4715 in the paper; 182, 752, 4283, 5962 with raw counts; 1551, 1851, 7329,
    5943 with shares), but recommend worse.
    """

    name = "CoVisitation"
    config_class = CoVisitationConfig
    is_incremental = True

    def _fit(self, log: Interactions, rng: np.random.Generator) -> None:  # noqa: ARG002  # counts
        n_items = log.n_items
        same_user = log.user_ids[1:] == log.user_ids[:-1]
        first, second = log.item_ids[:-1][same_user], log.item_ids[1:][same_user]
        self._visits = log.item_popularity.copy()
        self._pairs, self._covisits = np.unique(
            pair_keys(first, second, n_items), return_counts=True
        )
        self._forget_shares()

    def _finetune(self, log: Interactions, profile: NDArray[np.int64], seed: int) -> None:
        del seed  # counts add up exactly
        n_items = log.n_items
        self._visits += np.bincount(profile.ravel(), minlength=n_items)
        added = pair_keys(profile[:, :-1].ravel(), profile[:, 1:].ravel(), n_items)
        pairs, places = np.unique(np.concatenate([self._pairs, added]), return_inverse=True)
        covisits = np.bincount(places[len(self._pairs) :], minlength=len(pairs))
        covisits[places[: len(self._pairs)]] += self._covisits
        self._pairs, self._covisits = pairs, covisits
        self._forget_shares()

    def _score(
        self, user_ids: NDArray[np.int64], item_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        scores = np.empty(item_ids.shape, dtype=np.float32)
        step = max(1, _BLOCK_CELLS // self.log.n_items)
        for start in range(0, len(user_ids), step):
            rows = slice(start, start + step)
            sums = (self._history[user_ids[rows]] @ self._shares).toarray()
            scores[rows] = np.take_along_axis(sums, item_ids[rows], axis=1) * 2.0**-SHARE_BITS
        return scores

    def _state(self) -> State:
        return {"visits": self._visits, "pairs": self._pairs, "covisits": self._covisits}

    def _set_state(self, state: State) -> None:
        n_items = self.log.n_items
        self._visits = state_array(state, "visits", (n_items,)).astype(np.int64)
        self._pairs = state_array(state, "pairs", (None,)).astype(np.int64)
        self._covisits = state_array(state, "covisits", self._pairs.shape).astype(np.int64)
        rows, neighbours = np.divmod(self._pairs, n_items)
        is_graph = (
            bool((self._pairs[1:] > self._pairs[:-1]).all())
            and bool(((rows >= 0) & (rows < n_items) & (rows != neighbours)).all())
            and np.array_equal(np.sort(neighbours * n_items + rows), self._pairs)
        )
        if not is_graph:
            raise ArtifactError(
                "arrays 'pairs' must be a sorted list of both directions of each pair"
            )
        if (self._covisits <= 0).any() or (self._visits[rows] <= 0).any():
            raise ArtifactError("arrays 'covisits' and 'visits' must be positive for each pair")
        self._forget_shares()

    def _compiled_engine(self, lists: CandidateLists) -> ExposureEngine:
        from recattack_gym.victims.covisitation_kernel import CoVisitationEngine

        return CoVisitationEngine(self._pairs, self._covisits, self._visits, lists)

    def _forget_shares(self) -> None:
        self.__dict__.pop("_shares", None)
        self.__dict__.pop("_history", None)

    @cached_property
    def _shares(self) -> "csr_array":
        """Shape `(n_items, n_items)`: row `j` holds `w_jc / w_j` in units of `2**-SHARE_BITS`."""
        from scipy.sparse import csr_array

        n_items = self.log.n_items
        rows, columns = np.divmod(self._pairs, n_items)
        shares = (self._covisits << SHARE_BITS) // self._visits[rows]
        indptr = np.searchsorted(rows, np.arange(n_items + 1))
        return csr_array((shares, columns, indptr), shape=(n_items, n_items))

    @cached_property
    def _history(self) -> "csr_array":
        """Shape `(n_users, n_items)`: one where the user has clicked the item."""
        from scipy.sparse import csr_array

        indptr, items = self.log.seen
        shape = (self.log.n_users, self.log.n_items)
        return csr_array((np.ones(len(items), dtype=np.int64), items, indptr), shape=shape)


def pair_keys(
    first: NDArray[np.int64], second: NDArray[np.int64], n_items: int
) -> NDArray[np.int64]:
    """Number the directed pairs of co-visits, both directions of each; an item has none with itself.

    Args:
        first: Shape `(n,)`.
        second: Shape `(n,)`.
        n_items: Size of the catalogue.

    Returns:
        `j * n_items + c` for each directed pair `(j, c)`; shape `(2 * number of unequal pairs,)`.
    """
    unequal = first != second
    a, b = first[unequal], second[unequal]
    return np.concatenate([a * n_items + b, b * n_items + a])
