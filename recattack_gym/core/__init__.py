"""Records without behaviour that every other part of the package depends on."""

from recattack_gym.core.attack import AttackBudget, AttackGoal, Direction, Knowledge
from recattack_gym.core.errors import (
    ArgumentError,
    ArtifactError,
    DataError,
    DatasetNotFoundError,
    KnowledgeError,
    RecAttackError,
    StateError,
    UnknownNameError,
)
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.profiles import FakeProfiles, as_profile_batch

__all__ = [
    "ArgumentError",
    "ArtifactError",
    "AttackBudget",
    "AttackGoal",
    "DataError",
    "DatasetNotFoundError",
    "Direction",
    "FakeProfiles",
    "Interactions",
    "Knowledge",
    "KnowledgeError",
    "RecAttackError",
    "StateError",
    "UnknownNameError",
    "as_profile_batch",
]
