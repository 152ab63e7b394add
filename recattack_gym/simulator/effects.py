"""What attacks do to everyone else: quality of recommendations, and who loses the places that targets gain.

Both are of the same lists: the best of the whole catalogue for every genuine user who has a held-out item, as
`PlatformSimulator.side_effects` has them. RecNum is of other lists, those of a user's candidates.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.core.profiles import FakeProfiles, as_profile_batch
from recattack_gym.metrics import BANDS, exposures, hr_at_k, ndcg_at_k, popularity_bands
from recattack_gym.simulator.defended import DefendedSimulator
from recattack_gym.simulator.known_users import recommend_unseen
from recattack_gym.simulator.platform import PlatformSimulator, SideEffects
from recattack_gym.victims.base import Victim


@dataclass(frozen=True, kw_only=True, slots=True)
class Effects:
    """What M attacks do to everyone else, each alone."""

    names: ClassVar[tuple[str, ...]] = ("targets", *BANDS)
    """Groups of items: the targets, and the others by the clicks of the log (`popularity_bands`)."""
    quality: SideEffects
    """Held-out items in the lists, as `PlatformSimulator.side_effects` returns it."""
    n_users: int
    """Genuine users whose lists these are: those with a held-out item."""
    n_items: NDArray[np.int64]
    """Items of each group, shape `(4,)`."""
    clean_exposure: NDArray[np.int64]
    """Places of the lists that each group has without any attack, shape `(4,)`."""
    exposure: NDArray[np.int64]
    """The same after each attack, shape `(M, 4)`. Rows sum to what `clean_exposure` does: a place that one
    item gains another loses."""


class EffectsMeter:
    """Measures what attacks do to everyone else on one platform; the clean lists are made once.

    Args:
        simulator: The platform, screened or not; `bagged_effects.effects_meter` takes bagged ones, too. What
            it is is not changed.

    Raises:
        StateError: If the platform was made from a log, which has no held-out items.
    """

    def __init__(self, simulator: PlatformSimulator) -> None:
        split = simulator._held_out()
        self._simulator = simulator
        self._users = np.flatnonzero(split.evaluable("test"))
        self._test_items = split.test_items[self._users]
        known = simulator.victim.log
        if isinstance(simulator, DefendedSimulator):
            known = simulator.unscreened_log
        self._known: Interactions = known
        self._group = popularity_bands(known.item_popularity) + 1
        self._group[simulator.target_items] = 0

    @cached_property
    def _clean(self) -> NDArray[np.int64]:
        """Lists without any attack, shape `(U, k)`."""
        return self._lists(self._simulator.victim)

    def measure(self, profiles: FakeProfiles | ArrayLike) -> Effects:
        """Inject poison sets, each into the clean platform, retrain as it does, and look at the lists.

        Victims are poisoned on the plain path, and the whole catalogue is ranked: this takes far longer than
        `PlatformSimulator.exposure`.

        Args:
            profiles: Item ids, shape `(M, N, T)`, or `(N, T)` for one set.

        Raises:
            ArgumentError: If shape, dtype or an item id is wrong.
        """
        simulator, n_groups = self._simulator, len(Effects.names)
        batch = as_profile_batch(profiles, simulator.n_items)
        kept = np.ones(batch.shape[:2], dtype=np.bool_)
        if isinstance(simulator, DefendedSimulator):
            kept = ~simulator.screen(batch).is_dropped
        hr, ndcg = np.empty((2, len(batch)))
        exposure = np.empty((len(batch), n_groups), dtype=np.int64)
        for m, profile in enumerate(batch):
            shown = self._clean
            if kept[m].any():
                shown = self._lists(
                    simulator.victim.poisoned(
                        profile[kept[m]], simulator._retrain_seed, simulator.retrain
                    )
                )
            hr[m], ndcg[m] = hr_at_k(shown, self._test_items), ndcg_at_k(shown, self._test_items)
            exposure[m] = self._by_group(shown)
        return Effects(
            quality=SideEffects(
                k=simulator.k,
                clean_hr_at_k=hr_at_k(self._clean, self._test_items),
                clean_ndcg_at_k=ndcg_at_k(self._clean, self._test_items),
                hr_at_k=hr,
                ndcg_at_k=ndcg,
            ),
            n_users=len(self._users),
            n_items=np.bincount(self._group, minlength=n_groups).astype(np.int64),
            clean_exposure=self._by_group(self._clean),
            exposure=exposure,
        )

    def _lists(self, victim: Victim) -> NDArray[np.int64]:
        if isinstance(self._simulator, DefendedSimulator):
            return recommend_unseen(victim, self._users, self._known, self._simulator.k)
        return victim.recommend(self._users, self._simulator.k)

    def _by_group(self, shown: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many places each group has, shape `(4,)`."""
        counts = exposures(shown, self._simulator.n_items)
        return np.bincount(self._group, counts, len(Effects.names)).astype(np.int64)
