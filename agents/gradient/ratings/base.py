"""What every attack on predicted ratings has in common: the budget is enforced here."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, AttackBudget, FakeProfiles
from recattack_gym.core.checks import as_generator, as_ids
from recattack_gym.core.errors import UnknownNameError
from recattack_gym.simulator import RatingGoal, RatingPlatform
from recattack_gym.victims.least_squares import TOP


@dataclass(frozen=True, kw_only=True, slots=True)
class RatingAttackConfig:
    """Settings of an attack on predicted ratings; each has its own subclass."""

    force_targets: bool = False
    """Whether every fake user rates the targets, which the paper's do not. Ratings of other items move a
    target little, and by the paper's gradient not at all."""

    def __post_init__(self) -> None:
        if not isinstance(self.force_targets, bool):
            raise ArgumentError(f"force_targets must be True or False, got {self.force_targets!r}")


class RatingAttack(ABC):
    """An attack that writes fake profiles with ratings, knowing platform and victim (white box).

    Args:
        config: Settings, a mapping of some of them by name, or `None` for the defaults.

    Raises:
        ArgumentError: If a setting is unknown or out of range.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[RatingAttackConfig]] = RatingAttackConfig

    def __init__(self, config: RatingAttackConfig | Mapping[str, object] | None = None) -> None:
        if isinstance(config, self.config_class):
            self.config = config
            return
        if config is not None and not isinstance(config, Mapping):
            raise ArgumentError(
                f"config must be a {self.config_class.__name__}, a mapping of settings or None, "
                f"got {config!r}"
            )
        known = [field.name for field in fields(self.config_class)]
        for setting in config or {}:
            if setting not in known:
                raise UnknownNameError(f"setting of {self.name}", setting, known)
        values: Mapping[str, Any] = config or {}  # each is checked where it is declared
        self.config = self.config_class(**values)

    @final
    def attack(
        self,
        platform: RatingPlatform,
        goal: RatingGoal,
        budget: AttackBudget,
        rng: np.random.Generator,
    ) -> FakeProfiles:
        """Decide what every fake user rates, and how.

        Args:
            platform: Of explicit ratings.
            goal: What the attacker wants.
            budget: Fake users, and distinct items that each rates (the paper's B).
            rng: Source of all randomness; the same state gives the same profiles.

        Returns:
            Profiles with ratings on the log's scale.

        Raises:
            ArgumentError: If the catalogue is smaller than a profile or lacks a target, or a profile has no
                room for the targets that it has to rate.
        """
        as_generator("rng", rng)
        as_ids("target_items", list(goal.target_items), below=platform.n_items, shape=(None,))
        if budget.profile_size > platform.n_items:
            raise ArgumentError(
                f"profile_size must be <= n_items = {platform.n_items}, got {budget.profile_size}"
            )
        if len(self._forced(goal)) > budget.profile_size:
            raise ArgumentError(
                f"profile_size must be >= {len(goal.target_items)}, the number of forced targets, got "
                f"{budget.profile_size}"
            )
        items, ratings = self._attack(platform, goal, budget, rng)
        shape = (budget.n_fake_users, budget.profile_size)
        as_ids(f"profiles of {self.name!r}", items, below=platform.n_items, shape=shape)
        if (np.diff(np.sort(items, axis=1), axis=1) == 0).any() or np.abs(ratings).max() > TOP:
            raise ArgumentError(f"attack {self.name!r} rated an item twice, or off the scale")
        header = {
            "attacker": self.name,
            "config": asdict(self.config),
            "goal": asdict(goal),
            "victim": platform.victim.name,
            "victim_config": asdict(platform.victim.config),
            "target_items": list(goal.target_items),
            "log_hash": platform.log.content_hash,
        }
        return platform.profiles(items, ratings, header)

    @final
    def _forced(self, goal: RatingGoal) -> tuple[int, ...]:
        """Return the items that every fake user has to rate."""
        return goal.target_items if self.config.force_targets else ()

    @abstractmethod
    def _attack(
        self,
        platform: RatingPlatform,
        goal: RatingGoal,
        budget: AttackBudget,
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return distinct item ids per row and ratings on [-2, 2], both `(N, T)`."""


def random_items(
    n_items: int,
    budget: AttackBudget,
    forced: tuple[int, ...],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Draw distinct items for each fake user, `forced` among them; shape `(N, T)`, sorted by row."""
    size = budget.profile_size
    others = np.setdiff1d(np.arange(n_items), forced)
    rows = [
        np.concatenate([forced, rng.choice(others, size - len(forced), replace=False)])
        for _ in range(budget.n_fake_users)
    ]
    return np.sort(np.array(rows, dtype=np.int64), axis=1)
