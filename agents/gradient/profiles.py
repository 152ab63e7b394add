"""Profiles that hold every item once, as far as the catalogue goes: targets, fillers, order, projection."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.gradient.graph import InteractionGraph
from agents.gradient.kernels import Real
from recattack_gym.core.checks import as_count, as_ids
from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.interactions import Interactions
from recattack_gym.core.view import AttackerView


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """What an attack with a surrogate is about.

    Args:
        log: Genuine events over the whole catalogue, target items included.
        target_items: What to push, shape `(n_targets,)`, distinct.
        n_fake_users: N.
        profile_size: T, clicks per fake user, those on targets included.

    Raises:
        ArgumentError: If a target is no item, or a count is not positive.
    """

    log: Interactions
    target_items: NDArray[np.int64]
    n_fake_users: int
    profile_size: int

    def __post_init__(self) -> None:
        targets = as_ids("target_items", self.target_items, below=self.log.n_items, shape=(None,))
        if len(targets) == 0 or len(np.unique(targets)) != len(targets):
            raise ArgumentError(f"target_items must be distinct and at least one, got {targets}")
        as_count("n_fake_users", self.n_fake_users)
        as_count("profile_size", self.profile_size)
        object.__setattr__(self, "target_items", targets)

    @classmethod
    def of(cls, view: AttackerView) -> "Task":
        """Return the task of a view that shows its log."""
        return cls(
            log=view.log.with_catalogue(view.n_items),
            target_items=np.array(view.goal.target_items, dtype=np.int64),
            n_fake_users=view.budget.n_fake_users,
            profile_size=view.budget.profile_size,
        )

    @property
    def n_fillers(self) -> int:
        """Clicks of a fake user that are not on targets."""
        return max(0, self.profile_size - len(self.target_items))

    @property
    def is_target(self) -> NDArray[np.bool_]:
        """Shape `(n_items,)`."""
        found = np.zeros(self.log.n_items, dtype=np.bool_)
        found[self.target_items] = True
        return found

    def targets_of(self, fake_user: int) -> NDArray[np.int64]:
        """Return the targets that a fake user clicks: all, or if they are too many, its share of them.

        With fewer clicks than targets the fake users take turns: the first takes the first T, the next goes
        on where that stopped, so that all targets are clicked about equally often.
        """
        if self.profile_size >= len(self.target_items):
            return self.target_items
        places = fake_user * self.profile_size + np.arange(self.profile_size)
        return self.target_items[places % len(self.target_items)]

    def graph(self, profiles: list[NDArray[np.int64]]) -> InteractionGraph:
        """Return the graph of the log and of some fake users."""
        return InteractionGraph.of(self.log, profiles)


def top_items(worth: NDArray[Real], allowed: NDArray[np.bool_], n: int) -> NDArray[np.int64]:
    """Return the `n` allowed items with the largest worth, best first; of equals the smaller id comes first.

    Args:
        worth: Shape `(n_items,)`.
        allowed: Shape `(n_items,)`.
        n: How many; fewer come back if fewer are allowed.
    """
    items = np.flatnonzero(allowed)
    return items[np.argsort(-worth[items], kind="stable")[:n]]


def as_clicks(
    profiles: list[NDArray[np.int64]], profile_size: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return sets of items as sequences of clicks of one length, each in random order.

    Args:
        profiles: Distinct items of each fake user, at least one and at most `profile_size`.
        profile_size: T. A shorter profile, of a catalogue with fewer items, begins again until that is full.
        rng: Of the order.

    Returns:
        Shape `(n_fake_users, profile_size)`.
    """
    return np.stack([rng.permutation(np.resize(each, profile_size)) for each in profiles])


def project(
    values: NDArray[Real], profile_size: int, forced: list[NDArray[np.int64]]
) -> list[NDArray[np.int64]]:
    """Return the sets of items nearest to rows of real numbers: the largest entries of each.

    Args:
        values: Shape `(n_fake_users, n_items)`.
        profile_size: T; all items where the catalogue has no more.
        forced: Items that each fake user has in any case, at most T.

    Returns:
        Ascending and distinct items, `min(T, n_items)` for each fake user.
    """
    chosen = []
    for row, own in zip(values, forced, strict=True):
        is_free = np.ones(len(row), dtype=np.bool_)
        is_free[own] = False
        others = top_items(row, is_free, profile_size - len(own))
        chosen.append(np.sort(np.concatenate([own, others])))
    return chosen
