"""How RecNum becomes a reward: pure functions, one number per attack."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.attack import Direction
from recattack_gym.core.checks import as_real
from recattack_gym.core.errors import ArgumentError, UnknownNameError


class Reward(Protocol):
    """Turns the RecNum of finished attacks into rewards; larger is always better for the attacker."""

    def __call__(
        self,
        rec_num: NDArray[np.int64],
        *,
        clean_rec_num: int,
        max_rec_num: int,
        direction: Direction,
    ) -> NDArray[np.float64]:
        """Return the reward of each attack.

        Args:
            rec_num: RecNum after each attack, shape `(M,)`.
            clean_rec_num: RecNum without any attack.
            max_rec_num: The largest RecNum there can be.
            direction: Whether the attacker promotes or demotes the target items.

        Returns:
            Shape `(M,)`, finite.
        """
        ...


def rec_num_reward(
    rec_num: NDArray[np.int64],
    *,
    clean_rec_num: int,  # noqa: ARG001  # part of the protocol
    max_rec_num: int,
    direction: Direction,
) -> NDArray[np.float64]:
    """Pay RecNum for a push, and what is missing to the largest RecNum for a nuke.

    PoisonRec (Song et al., ICDE 2020), equation 1: the reward of an attack is RecNum.
    """
    paid = rec_num if direction == "push" else max_rec_num - rec_num
    return paid.astype(np.float64)


def normalized_reward(
    rec_num: NDArray[np.int64],
    *,
    clean_rec_num: int,
    max_rec_num: int,
    direction: Direction,
) -> NDArray[np.float64]:
    """Pay the share of what there was to gain: 0 for no effect, 1 for a perfect attack.

    A push gains `(rec_num - clean) / (max - clean)`, a nuke `(clean - rec_num) / clean`. An attack that
    backfires is paid a negative reward; where there is nothing to gain, every attack is paid 0.
    """
    if direction == "push":
        gain, most = rec_num - clean_rec_num, max_rec_num - clean_rec_num
    else:
        gain, most = clean_rec_num - rec_num, clean_rec_num
    if most <= 0:
        return np.zeros(len(rec_num), dtype=np.float64)
    return gain / np.float64(most)


@dataclass(frozen=True)
class StealthReward:
    """Pay what `normalized_reward` pays, less a price for being caught; needs a defence that screens.

    With all fake users caught an attack without effect is paid `-price`, with half of them half of that.
    For a constraint instead of a price use another reward and `info["cost"]`.

    Args:
        price: Of being caught altogether, at least 0; 1 makes it as bad as a perfect attack is good.

    Raises:
        ArgumentError: If the price is wrong.
    """

    price: float = 1.0

    def __post_init__(self) -> None:
        as_real("price", self.price, at_least=0.0)

    def __call__(
        self,
        rec_num: NDArray[np.int64],
        *,
        clean_rec_num: int,
        max_rec_num: int,
        direction: Direction,
        caught_share: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Return the reward of each attack, shape `(M,)`.

        Args:
            rec_num: See `Reward`.
            clean_rec_num: See `Reward`.
            max_rec_num: See `Reward`.
            direction: See `Reward`.
            caught_share: Fake users that were kept out of training, as a share of all, shape `(M,)`.
        """
        gained = normalized_reward(
            rec_num, clean_rec_num=clean_rec_num, max_rec_num=max_rec_num, direction=direction
        )
        return gained - self.price * caught_share


REWARDS: Mapping[str, Reward] = MappingProxyType(
    {"rec_num": rec_num_reward, "normalized": normalized_reward}
)
"""Rewards by the name that the environments' argument `reward` takes, beside `"stealth"`."""

_STEALTH = "stealth"


def as_reward(reward: object) -> Reward | StealthReward:
    """Return the reward that is named or given.

    Raises:
        ArgumentError: If it is neither a name nor callable.
        UnknownNameError: If no reward has that name.
    """
    if reward == _STEALTH:
        return StealthReward()
    if isinstance(reward, str):
        if reward not in REWARDS:
            raise UnknownNameError("reward", reward, (*REWARDS, _STEALTH))
        return REWARDS[reward]
    if not callable(reward):
        raise ArgumentError(f"reward must be a name or a Reward function, got {reward!r}")
    return reward
