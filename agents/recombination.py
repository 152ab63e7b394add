"""Make new poison sets from the best so far: their profiles, items and clicks in other combinations."""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count
from recattack_gym.core.view import AttackerView

CROSSOVER_RATE = 0.6
"""How often a set takes its profiles from two parents; the others are copies of one."""
FRESH_RATE = 0.3
"""How often the item that replaces another is drawn from the whole catalogue, not from the elites' items."""
LARGEST_CHANGE = 0.1
"""Share of clicks that single replacements change at most."""


class Elites:
    """The best distinct poison sets so far.

    Args:
        view: Budget and goal are used.
        n_elites: How many are kept.
    """

    def __init__(self, view: AttackerView, n_elites: int) -> None:
        shape = (0, view.budget.n_fake_users, view.budget.profile_size)
        self._n_elites = as_count("n_elites", n_elites)
        self._n_items = view.n_items
        self._is_target = np.zeros(view.n_items, dtype=np.bool_)
        self._is_target[list(view.goal.target_items)] = True
        self.item_ids: NDArray[np.int64] = np.zeros(shape, dtype=np.int64)
        """Best first, shape `(n, N, T)`, `n <= n_elites`."""
        self.worth: NDArray[np.float64] = np.zeros(0)
        """Shape `(n,)`."""

    def add(self, item_ids: NDArray[np.int64], worth: NDArray[np.float64]) -> None:
        """Take in poison sets that were tried, shape `(M, N, T)`, of worth `(M,)`; more is better."""
        both = np.concatenate([self.item_ids, item_ids])
        worths = np.concatenate([self.worth, worth])
        _, first = np.unique(both.reshape(len(both), -1), axis=0, return_index=True)
        first = np.sort(first)
        best = first[np.argsort(-worths[first], kind="stable")][: self._n_elites]
        self.item_ids, self.worth = both[best], worths[best]

    def recombine(self, n_sets: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Make new sets, each with one change; the better an elite, the more often it is a parent.

        A set takes every profile from one of two elites, or copies one elite. Then, equally likely,

        - an item gives way to another of its kind (target or not), in all its clicks or about half of them;
        - a few clicks are replaced by clicks of an elite;
        - one profile is copied over some of the others.

        Args:
            n_sets: How many.
            rng: Source of randomness.

        Returns:
            Item ids, shape `(n_sets, N, T)`.
        """
        pool = np.unique(self.item_ids)
        made = np.empty((as_count("n_sets", n_sets), *self.item_ids.shape[1:]), dtype=np.int64)
        for profiles in made:
            profiles[...] = self.item_ids[self._parent(rng)]
            if rng.random() < CROSSOVER_RATE:
                from_other = rng.random(len(profiles)) < 0.5
                profiles[from_other] = self.item_ids[self._parent(rng)][from_other]
            change = rng.integers(3)
            if change == 0:
                self._replace_item(profiles, pool, rng)
            elif change == 1:
                clicks = profiles.reshape(-1)
                n_changed = 1 + int(len(clicks) * LARGEST_CHANGE * rng.random())
                given = self.item_ids[self._parent(rng)].reshape(-1)
                clicks[rng.integers(len(clicks), size=n_changed)] = rng.choice(given, n_changed)
            else:
                n_copies = 1 + int((len(profiles) - 1) * rng.random() ** 2)
                profiles[rng.permutation(len(profiles))[:n_copies]] = profiles[
                    rng.integers(len(profiles))
                ]
        return made

    def _parent(self, rng: np.random.Generator) -> int:
        return int(len(self.item_ids) * rng.random() ** 2)

    def _replace_item(
        self, profiles: NDArray[np.int64], pool: NDArray[np.int64], rng: np.random.Generator
    ) -> None:
        old = rng.choice(profiles.reshape(-1))
        if rng.random() < FRESH_RATE:
            pool = np.arange(self._n_items, dtype=np.int64)
        alike = pool[self._is_target[pool] == self._is_target[old]]
        is_old = profiles == old
        if rng.random() < 0.5:
            is_old &= rng.random(profiles.shape) < 0.5
        profiles[is_old] = rng.choice(alike)
