"""What attacks do to everyone else where models vote: the lists are those of the elected."""

from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recattack_gym.core.profiles import FakeProfiles, as_profile_batch
from recattack_gym.simulator.bagged import BaggedSimulator
from recattack_gym.simulator.effects import Effects, EffectsMeter
from recattack_gym.simulator.platform import PlatformSimulator


def effects_meter(simulator: PlatformSimulator) -> EffectsMeter:
    """Return what measures side effects on a platform, whatever its defence.

    Raises:
        StateError: If the platform was made from a log, which has no held-out items.
    """
    if isinstance(simulator, BaggedSimulator):
        return BaggedEffectsMeter(simulator)
    return EffectsMeter(simulator)


class BaggedEffectsMeter(EffectsMeter):
    """`EffectsMeter` of a platform whose victim shows nothing itself: its models vote.

    Args:
        simulator: The platform. What it is is not changed.

    Raises:
        StateError: If the platform was made from a log, which has no held-out items.
    """

    def __init__(self, simulator: BaggedSimulator) -> None:
        super().__init__(simulator)
        self._votes = simulator

    @cached_property
    def _clean(self) -> NDArray[np.int64]:
        return self._votes.best_of_catalogue()[self._users]

    def measure(self, profiles: FakeProfiles | ArrayLike) -> Effects:
        """See `EffectsMeter.measure`."""
        simulator = self._votes
        batch = as_profile_batch(profiles, simulator.n_items)
        shown = [simulator.best_of_catalogue(profile)[self._users] for profile in batch]
        return Effects(
            quality=simulator.quality(self._clean, shown, self._test_items),
            n_users=len(self._users),
            n_items=np.bincount(self._group, minlength=len(Effects.names)).astype(np.int64),
            clean_exposure=self._by_group(self._clean),
            exposure=np.stack([self._by_group(each) for each in shown]),
        )
