"""What an attacker sees of a platform."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.attack import AttackBudget, AttackGoal, Knowledge
from recattack_gym.core.interactions import Interactions


class AttackerView(Protocol):
    """The only thing an attacker gets; what it may see depends on its knowledge level.

    Black box: everything but `log`, `victim_name` and `victim_config`. Gray box adds `log`, white box
    the victim's kind and settings. Nothing leads from a view to the victim, the candidate lists or
    other users' recommendations.
    """

    @property
    def knowledge(self) -> Knowledge:
        """The level that this view grants."""
        ...

    @property
    def budget(self) -> AttackBudget:
        """What the attacker may inject."""
        ...

    @property
    def goal(self) -> AttackGoal:
        """What the attacker wants."""
        ...

    @property
    def n_items(self) -> int:
        """Size of the catalogue, target items included."""
        ...

    @property
    def item_popularity(self) -> NDArray[np.int64]:
        """Clicks of each item before the attack, shape `(n_items,)`, read-only."""
        ...

    @property
    def n_queries(self) -> int:
        """Poison sets evaluated through this view so far."""
        ...

    def query(self, profiles: NDArray[np.int64]) -> NDArray[np.int64]:
        """Inject poison sets, each into a clean platform, and observe RecNum.

        Args:
            profiles: Item ids, shape `(M, n_fake_users, profile_size)`.

        Returns:
            Shape `(M,)`. Every set counts as one query.

        Raises:
            ArgumentError: If the sets do not spend exactly the budget or name unknown items.
        """
        ...

    @property
    def log(self) -> Interactions:
        """The clean log. Raises `KnowledgeError` below gray box."""
        ...

    @property
    def victim_name(self) -> str:
        """The victim's kind. Raises `KnowledgeError` below white box."""
        ...

    @property
    def victim_config(self) -> Mapping[str, object]:
        """The victim's settings. Raises `KnowledgeError` below white box."""
        ...
