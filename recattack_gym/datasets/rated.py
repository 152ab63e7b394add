"""Generated ratings for a log of clicks, for tests and for machines without rated data."""

from dataclasses import replace

import numpy as np

from recattack_gym.core.checks import as_count, as_generator, as_real
from recattack_gym.core.interactions import Interactions


def with_generated_ratings(
    log: Interactions, rng: np.random.Generator, *, rank: int = 3, noise: float = 0.6
) -> Interactions:
    """Return the log with a rating from 1 to 5 for each event.

    `3.5 + item quality + taste of user and item (rank many) + noise`, each part normal with standard
    deviation 0.5, 0.8 and `noise`, rounded and clipped.

    Args:
        log: What is rated.
        rng: Source of all randomness.
        rank: Dimensions of taste.
        noise: Standard deviation of what taste does not explain.
    """
    as_generator("rng", rng)
    rank, noise = as_count("rank", rank), as_real("noise", noise, at_least=0.0)
    quality = 0.5 * rng.standard_normal(log.n_items)
    users = rng.standard_normal((log.n_users, rank))
    items = 0.8 / np.sqrt(rank) * rng.standard_normal((log.n_items, rank))
    taste = np.einsum("ek,ek->e", users[log.user_ids], items[log.item_ids])
    value = 3.5 + quality[log.item_ids] + taste + noise * rng.standard_normal(len(log))
    return replace(log, ratings=np.clip(np.rint(value), 1.0, 5.0))
