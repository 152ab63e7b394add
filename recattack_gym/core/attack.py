"""What an attack may spend, what it wants, and what it may see."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from recattack_gym.core.checks import as_choice, as_count
from recattack_gym.core.errors import ArgumentError

Direction = Literal["push", "nuke"]
DIRECTIONS: tuple[Direction, ...] = ("push", "nuke")


class Knowledge(StrEnum):
    """What an attacker sees; each level includes the ones before it."""

    BLACK_BOX = "black_box"
    """Budget, target items, catalogue size, item popularity, and counted queries."""
    GRAY_BOX = "gray_box"
    """Also the log."""
    WHITE_BOX = "white_box"
    """Also the victim's kind and configuration; never its live parameters."""

    def includes(self, other: "Knowledge") -> bool:
        """Tell whether this level allows what `other` allows."""
        levels = list(Knowledge)
        return levels.index(self) >= levels.index(other)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackBudget:
    """How much an attacker may inject."""

    n_fake_users: int = 20
    """Accounts the attacker controls: N = 20, PoisonRec (ICDE'20) §V."""
    profile_size: int = 20
    """Clicks of each account: T = 20, PoisonRec §V."""

    def __post_init__(self) -> None:
        as_count("n_fake_users", self.n_fake_users)
        as_count("profile_size", self.profile_size)

    @property
    def n_clicks(self) -> int:
        """All clicks of an attack, N * T."""
        return self.n_fake_users * self.profile_size


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackGoal:
    """Which items an attack is about, and in which direction."""

    target_items: tuple[int, ...]
    """Distinct item ids."""
    direction: Direction = "push"
    """`"push"` promotes the target items, `"nuke"` demotes them."""

    def __post_init__(self) -> None:
        as_choice("direction", self.direction, DIRECTIONS)
        if not self.target_items:
            raise ArgumentError("target_items must name at least one item, got none")
        for item in self.target_items:
            as_count("target_items", item, at_least=0)
        if len(set(self.target_items)) != len(self.target_items):
            raise ArgumentError(f"target_items must be distinct, got {self.target_items}")
