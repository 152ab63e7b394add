"""Profiles without any surrogate, under the same budget: what the attacks of this package must beat."""

import numpy as np
from numpy.typing import NDArray

from agents.gradient.profiles import Task, as_clicks, top_items


def random_sets(task: Task, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return all targets and uniformly random other items without repetition: GP-lab's random attack.

    Args:
        task: What the attack is about.
        rng: Source of randomness.

    Returns:
        Shape `(n_fake_users, profile_size)`.
    """
    others = np.flatnonzero(~task.is_target)
    profiles = [
        np.concatenate([task.targets_of(fake), rng.permutation(others)[: task.n_fillers]])
        for fake in range(task.n_fake_users)
    ]
    return as_clicks(profiles, task.profile_size, rng)


def bandwagon_sets(
    task: Task, rng: np.random.Generator, popular_rate: float = 0.1
) -> NDArray[np.int64]:
    """Return all targets, half of the fillers from the most popular items, half from the others.

    GP-lab's bandwagon attack: `int(n_fillers / 2)` of the most popular tenth, 18 and 18 of 41 on Gowalla.

    Args:
        task: What the attack is about.
        rng: Source of randomness.
        popular_rate: Share of the catalogue that counts as popular.

    Returns:
        Shape `(n_fake_users, profile_size)`.
    """
    popularity = task.log.item_popularity.astype(np.float64)
    n_popular = max(1, int(popular_rate * task.log.n_items))
    popular = top_items(popularity, ~task.is_target, n_popular)
    others = np.setdiff1d(np.flatnonzero(~task.is_target), popular)
    profiles = []
    for fake in range(task.n_fake_users):
        chosen = rng.permutation(popular)[: task.n_fillers // 2]
        rest = rng.permutation(others)[: task.n_fillers - len(chosen)]
        profiles.append(np.concatenate([task.targets_of(fake), chosen, rest]))
    return as_clicks(profiles, task.profile_size, rng)
