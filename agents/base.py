"""What every planning attacker has in common: the budget and the knowledge level are enforced here."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import ClassVar, final

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, FakeProfiles, Knowledge, KnowledgeError
from recattack_gym.core.attack import Direction
from recattack_gym.core.checks import as_generator, as_ids
from recattack_gym.core.errors import UnknownNameError
from recattack_gym.core.view import AttackerView


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackerConfig:
    """Settings of an attacker; each attacker has its own subclass."""


class Attacker(ABC):
    """An attack that writes all fake profiles in one go.

    Args:
        config: Settings, a mapping of some of them by name, or `None` for the defaults.

    Raises:
        ArgumentError: If a setting is unknown or out of range.
    """

    name: ClassVar[str]
    """The key in `ATTACKERS` and on the command line."""
    knowledge: ClassVar[Knowledge] = Knowledge.BLACK_BOX
    """The least that a view must show for this attack to work."""
    directions: ClassVar[tuple[Direction, ...]] = ("push",)
    """Goals that this attack has an answer to."""
    why_not: ClassVar[str] = ""
    """Why it has none to the others, and what has; ends the error message."""
    config_class: ClassVar[type[AttackerConfig]] = AttackerConfig

    def __init__(self, config: AttackerConfig | Mapping[str, object] | None = None) -> None:
        self.config = self._as_config(config)

    @classmethod
    def _as_config(cls, config: AttackerConfig | Mapping[str, object] | None) -> AttackerConfig:
        if isinstance(config, AttackerConfig):
            if not isinstance(config, cls.config_class):
                raise ArgumentError(
                    f"config must be a {cls.config_class.__name__} for {cls.name}, "
                    f"got {type(config).__name__}"
                )
            return config
        if config is not None and not isinstance(config, Mapping):
            raise ArgumentError(
                f"config must be a {cls.config_class.__name__}, a mapping of settings or None, "
                f"got {config!r}"
            )
        settings = dict(config or {})
        known = [field.name for field in fields(cls.config_class)]
        for setting in settings:
            if setting not in known:
                raise UnknownNameError(f"setting of {cls.name}", setting, known)
        return cls.config_class(**settings)

    @final
    def plan(self, view: AttackerView, rng: np.random.Generator) -> FakeProfiles:
        """Decide what every fake user clicks.

        Args:
            view: What this attacker may see of the platform.
            rng: Source of all randomness; the same state gives the same profiles.

        Returns:
            Profiles that spend exactly `view.budget`. Their header says who made them and how many
            queries that took; whoever knows the platform may add the dataset's hash and the seed.

        Raises:
            KnowledgeError: If the view shows less than this attack needs.
            ArgumentError: If this attack has no answer to the view's goal, or broke its budget.
        """
        as_generator("rng", rng)
        if not view.knowledge.includes(self.knowledge):
            raise KnowledgeError(
                f"attacker {self.name!r} needs knowledge {self.knowledge}, "
                f"this view has {view.knowledge}"
            )
        if view.goal.direction not in self.directions:
            known = " or ".join(map(repr, self.directions))
            raise ArgumentError(
                f"direction must be {known} for attacker {self.name!r}, "
                f"got {view.goal.direction!r}{self.why_not and f': {self.why_not}'}"
            )
        queries_before = view.n_queries
        budget = view.budget
        clicks = as_ids(
            f"profiles of {self.name!r}",
            self._plan(view, rng),
            below=view.n_items,
            shape=(budget.n_fake_users, budget.profile_size),
        )
        header = {
            "attacker": self.name,
            "config": asdict(self.config),
            "knowledge": str(self.knowledge),
            "target_items": list(view.goal.target_items),
            "direction": view.goal.direction,
            "n_items": view.n_items,
            "n_queries": view.n_queries - queries_before,
        }
        return FakeProfiles(clicks, header=header)

    @abstractmethod
    def _plan(self, view: AttackerView, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return item ids of shape `(n_fake_users, profile_size)`."""
