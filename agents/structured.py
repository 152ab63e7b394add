"""Poison sets with a simple structure, drawn at random: what to try before anything is known.

A policy that begins with no preference at all makes sets that are all alike (every target equally often,
everything else uniform), so a first batch says little. These differ in what matters: how many targets are
promoted, how large their share of the clicks is, how popular the other items are, and whether both alternate.
"""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.checks import as_count
from recattack_gym.core.view import AttackerView

TARGET_SHARES = (0.25, 0.5, 0.75, 1.0)
"""Shares of clicks on targets that are tried; one half as often again, since all heuristics use it."""


def structured_sets(view: AttackerView, n_sets: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw poison sets that spend exactly the budget.

    Every set has its own

    - number of promoted targets, uniform in `1 .. n_targets`, and which they are;
    - share of clicks on them, from `TARGET_SHARES`; half of the sets with one half alternate strictly;
    - pool of other items: a run of the catalogue sorted by popularity, as long as `n ** u` with u uniform
      in [0, 1], so that one item is as likely to be the size as the whole catalogue; three of four runs begin
      at the most popular item.

    Clicks are drawn uniformly from the targets and from the pool.

    Args:
        view: Budget, goal and popularity are used.
        n_sets: M.
        rng: Source of randomness.

    Returns:
        Item ids, shape `(M, n_fake_users, profile_size)`.
    """
    shape = (view.budget.n_fake_users, view.budget.profile_size)
    targets = np.array(view.goal.target_items, dtype=np.int64)
    others = np.setdiff1d(np.arange(view.n_items, dtype=np.int64), targets)
    others = others[np.argsort(-view.item_popularity[others], kind="stable")]
    sets = np.zeros((as_count("n_sets", n_sets), *shape), dtype=np.int64)
    for profiles in sets:
        promoted = rng.permutation(targets)[: rng.integers(1, len(targets) + 1)]
        profiles[...] = rng.choice(promoted, shape)
        if len(others):
            is_other = _where_others_go(shape, rng)
            profiles[is_other] = rng.choice(_pool(others, rng), shape)[is_other]
    return sets


def _where_others_go(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw which clicks are on other items than targets, shape `(n_fake_users, profile_size)`."""
    share = rng.choice((*TARGET_SHARES, 0.5))
    if share == 0.5 and rng.random() < 0.5:
        alternating = np.zeros(shape, dtype=np.bool_)
        alternating[:, 1::2] = True
        return alternating
    is_other: NDArray[np.bool_] = rng.random(shape) >= share
    return is_other


def _pool(others: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw a run of `others`, which is sorted by popularity."""
    size = max(1, round(len(others) ** rng.random()))
    starts_at_top = rng.random() < 0.75
    start = 0 if starts_at_top else int((len(others) - size) * rng.random() ** 2)
    return others[start : start + size]
