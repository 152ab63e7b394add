"""The view of a simulated platform that an attacker is handed."""

from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.attack import AttackBudget, AttackGoal, Knowledge
from recattack_gym.core.checks import as_choice
from recattack_gym.core.errors import ArgumentError, KnowledgeError
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.profiles import as_profile_batch
from recattack_gym.simulator.platform import PlatformSimulator


class PlatformView:
    """An `AttackerView` of a `PlatformSimulator`; counts queries, and shows what `knowledge` allows.

    The simulator is held in closures only, so that no attribute of the view leads to it.

    Args:
        simulator: The platform.
        budget: What the attacker may inject.
        knowledge: What the attacker may see.
    """

    def __init__(
        self,
        simulator: PlatformSimulator,
        budget: AttackBudget | None = None,
        knowledge: Knowledge = Knowledge.BLACK_BOX,
    ) -> None:
        self._knowledge = as_choice("knowledge", knowledge, tuple(Knowledge))
        self._budget = AttackBudget() if budget is None else budget
        self._goal = simulator.goal
        self._item_popularity = simulator.item_popularity
        self._n_queries = 0

        def rec_num(profiles: NDArray[np.int64]) -> NDArray[np.int64]:
            return simulator.rec_num(profiles)

        self._rec_num = rec_num
        gray = self._knowledge.includes(Knowledge.GRAY_BOX)
        white = self._knowledge.includes(Knowledge.WHITE_BOX)
        self._log = simulator.log if gray else None
        self._victim = (
            (simulator.victim.name, MappingProxyType(asdict(simulator.victim.config)))
            if white
            else None
        )

    @property
    def knowledge(self) -> Knowledge:
        """See `AttackerView.knowledge`."""
        return self._knowledge

    @property
    def budget(self) -> AttackBudget:
        """See `AttackerView.budget`."""
        return self._budget

    @property
    def goal(self) -> AttackGoal:
        """See `AttackerView.goal`."""
        return self._goal

    @property
    def n_items(self) -> int:
        """See `AttackerView.n_items`."""
        return len(self._item_popularity)

    @property
    def item_popularity(self) -> NDArray[np.int64]:
        """See `AttackerView.item_popularity`."""
        return self._item_popularity

    @property
    def n_queries(self) -> int:
        """See `AttackerView.n_queries`."""
        return self._n_queries

    def query(self, profiles: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `AttackerView.query`."""
        batch = as_profile_batch(profiles, self.n_items)
        wanted = (self._budget.n_fake_users, self._budget.profile_size)
        if batch.shape[1:] != wanted:
            raise ArgumentError(
                f"profiles must have shape (M, {wanted[0]}, {wanted[1]}), the budget, got {batch.shape}"
            )
        observed = self._rec_num(batch)
        self._n_queries += len(batch)
        return observed

    @property
    def log(self) -> Interactions:
        """See `AttackerView.log`."""
        if self._log is None:
            raise KnowledgeError(
                f"the log needs knowledge gray_box, this view has {self._knowledge}"
            )
        return self._log

    @property
    def victim_name(self) -> str:
        """See `AttackerView.victim_name`."""
        return self._white_box()[0]

    @property
    def victim_config(self) -> Mapping[str, object]:
        """See `AttackerView.victim_config`."""
        return self._white_box()[1]

    def _white_box(self) -> tuple[str, Mapping[str, object]]:
        if self._victim is None:
            raise KnowledgeError(
                f"the victim's kind and settings need knowledge white_box, this view has {self._knowledge}"
            )
        return self._victim
