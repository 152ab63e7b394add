"""A view without a platform behind it: what an attacker is told, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core import AttackBudget, AttackGoal, Interactions, Knowledge, KnowledgeError


@dataclass
class StubView:
    """An `AttackerView` of a log whose trailing items are new targets."""

    clean_log: Interactions
    goal: AttackGoal
    budget: AttackBudget
    knowledge: Knowledge = Knowledge.GRAY_BOX
    n_queries: int = 0

    @property
    def n_items(self) -> int:
        return max(self.clean_log.n_items, max(self.goal.target_items) + 1)

    @property
    def item_popularity(self) -> NDArray[np.int64]:
        return self.clean_log.with_catalogue(self.n_items).item_popularity

    def query(self, profiles: NDArray[np.int64]) -> NDArray[np.int64]:
        self.n_queries += len(profiles)
        return np.zeros(len(profiles), dtype=np.int64)

    @property
    def log(self) -> Interactions:
        if not self.knowledge.includes(Knowledge.GRAY_BOX):
            raise KnowledgeError("the log needs knowledge gray_box")
        return self.clean_log

    @property
    def victim_name(self) -> str:
        raise KnowledgeError("the victim needs knowledge white_box")

    @property
    def victim_config(self) -> Mapping[str, object]:
        raise KnowledgeError("the victim needs knowledge white_box")


def random_log(n_users: int, n_items: int, n_events: int, seed: int = 0) -> Interactions:
    """Return a log whose small item ids are the popular ones."""
    rng = np.random.default_rng(seed)
    items = np.minimum(rng.geometric(min(1.0, 4 / n_items), n_events) - 1, n_items - 1)
    return Interactions(rng.integers(n_users, size=n_events), items, n_users, n_items)


def make_view(
    *,
    n_items: int = 40,
    n_targets: int = 3,
    n_fake_users: int = 5,
    profile_size: int = 6,
    knowledge: Knowledge = Knowledge.GRAY_BOX,
    seed: int = 0,
) -> StubView:
    """Return a view with `n_targets` new items after `n_items` original ones."""
    return StubView(
        random_log(30, n_items, 400, seed),
        AttackGoal(target_items=tuple(range(n_items, n_items + n_targets))),
        AttackBudget(n_fake_users=n_fake_users, profile_size=profile_size),
        knowledge,
    )
