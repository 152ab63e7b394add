"""CoVisitation by raw counts: a neighbour counts as often as it was clicked next to the user's items.

The same graph as `covisitation`, without dividing by how popular the user's own items are.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from recattack_gym.victims.base import ExposureEngine
from recattack_gym.victims.covisitation import SHARE_BITS, CoVisitation, CoVisitationConfig
from recattack_gym.victims.ranking import CandidateLists

if TYPE_CHECKING:
    from scipy.sparse import csr_array


@dataclass(frozen=True, kw_only=True, slots=True)
class CoVisitationCountsConfig(CoVisitationConfig):
    """CoVisitation by raw counts has nothing to set."""


class CoVisitationCounts(CoVisitation):
    """Rank items by how often they stand next to the user's own items, without dividing by visits.

    A user's score for item `c` is the sum of the co-visits `w_jc` over the distinct items `j` that the
    user has clicked (notation of Yang, Gong, Cai, NDSS 2017, see `CoVisitation`). Scores are whole
    numbers, so an incremental update gives the same bits as counting everything anew.

    Differs from the paper: as `CoVisitation`, and it divides by nothing. PoisonRec (Song et al., ICDE
    2020) gives no formula. Raw counts order Table III's heuristics on Steam as printed there, and shares
    recommend better (figures in `CoVisitation`), so that one is the default and this one shows what
    depends on the choice.
    """

    name = "CoVisitation-Counts"
    config_class = CoVisitationCountsConfig

    def _compiled_engine(self, lists: CandidateLists) -> ExposureEngine:
        from recattack_gym.victims.covisitation_counts_kernel import CoVisitationCountsEngine

        return CoVisitationCountsEngine(self._pairs, self._covisits, lists)

    @cached_property
    def _shares(self) -> "csr_array":
        """Shape `(n_items, n_items)`: row `j` holds `w_jc` in units of `2**-SHARE_BITS`."""
        from scipy.sparse import csr_array

        n_items = self.log.n_items
        rows, columns = np.divmod(self._pairs, n_items)
        indptr = np.searchsorted(rows, np.arange(n_items + 1))
        return csr_array((self._covisits << SHARE_BITS, columns, indptr), shape=(n_items, n_items))
