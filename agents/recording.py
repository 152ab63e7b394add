"""Watch an attacker at work: every query and what it observed."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core import AttackBudget, AttackGoal, Interactions, Knowledge
from recattack_gym.core.view import AttackerView


class RecordingView:
    """An `AttackerView` that passes everything on and keeps what queries observed.

    Args:
        view: What the attacker may see.
        on_query: Called after every query with the number of poison sets in it.
    """

    def __init__(self, view: AttackerView, on_query: Callable[[int], object] | None = None) -> None:
        self._view = view
        self._on_query = on_query
        self._is_target = np.zeros(view.n_items, dtype=np.bool_)
        self._is_target[list(view.goal.target_items)] = True
        self.batch_sizes: list[int] = []
        """Poison sets of every query."""
        self.rec_nums: list[int] = []
        """RecNum of every poison set, in the order of evaluation."""
        self.target_shares: list[float] = []
        """Share of clicks on target items in every poison set, in `[0, 1]`."""

    @property
    def knowledge(self) -> Knowledge:
        """See `AttackerView.knowledge`."""
        return self._view.knowledge

    @property
    def budget(self) -> AttackBudget:
        """See `AttackerView.budget`."""
        return self._view.budget

    @property
    def goal(self) -> AttackGoal:
        """See `AttackerView.goal`."""
        return self._view.goal

    @property
    def n_items(self) -> int:
        """See `AttackerView.n_items`."""
        return self._view.n_items

    @property
    def item_popularity(self) -> NDArray[np.int64]:
        """See `AttackerView.item_popularity`."""
        return self._view.item_popularity

    @property
    def n_queries(self) -> int:
        """See `AttackerView.n_queries`."""
        return self._view.n_queries

    def query(self, profiles: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `AttackerView.query`."""
        observed = self._view.query(profiles)
        self.batch_sizes.append(len(observed))
        self.rec_nums.extend(observed.tolist())
        self.target_shares.extend(self._is_target[profiles].mean(axis=(1, 2)).tolist())
        if self._on_query is not None:
            self._on_query(len(observed))
        return observed

    @property
    def log(self) -> Interactions:
        """See `AttackerView.log`."""
        return self._view.log

    @property
    def victim_name(self) -> str:
        """See `AttackerView.victim_name`."""
        return self._view.victim_name

    @property
    def victim_config(self) -> Mapping[str, object]:
        """See `AttackerView.victim_config`."""
        return self._view.victim_config
