"""ItemPop: everyone gets what is clicked most."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.victims.base import ExposureEngine, State, Victim, VictimConfig, state_array
from recattack_gym.victims.ranking import CandidateLists


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemPopConfig(VictimConfig):
    """ItemPop has nothing to set."""


class ItemPop(Victim):
    """Rank items by their number of clicks, repeats included.

    PoisonRec (Song et al., ICDE 2020), Table III: one item that gets all 400 clicks reaches nearly
    every Steam user, so clicks count and not distinct users.

    Differs from the paper: none; the paper gives no formula.
    """

    name = "ItemPop"
    config_class = ItemPopConfig
    is_incremental = True

    def _fit(self, log: Interactions, rng: np.random.Generator) -> None:  # noqa: ARG002  # counts
        self._clicks = log.item_popularity.copy()

    def _score(
        self, user_ids: NDArray[np.int64], item_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        del user_ids  # the same for everyone
        return self._clicks[item_ids].astype(np.float32)

    def _finetune(self, log: Interactions, profile: NDArray[np.int64], seed: int) -> None:
        del log, seed  # counts add up exactly
        self._clicks += np.bincount(profile.ravel(), minlength=len(self._clicks))

    def _state(self) -> State:
        return {"clicks": self._clicks}

    def _set_state(self, state: State) -> None:
        self._clicks = state_array(state, "clicks", (self.log.n_items,)).astype(np.int64)

    def _compiled_engine(self, lists: CandidateLists) -> ExposureEngine:
        from recattack_gym.victims.itempop_kernel import ItemPopCandidates, ItemPopCatalogue

        if lists.item_ids is None:
            return ItemPopCatalogue(self._clicks, lists)
        return ItemPopCandidates(self._clicks, lists, lists.item_ids)
