"""The sets of items and the pattern of clicks that the heuristics share."""

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.attack import AttackBudget
from recattack_gym.core.view import AttackerView

NO_NUKE = (
    "rules of thumb that demote (reverse bandwagon, love/hate) rate the targets low, and a click cannot; "
    "an agent can be trained for it (recattack train ENV_ID --direction nuke)"
)
"""Why the heuristics only push.

Reverse bandwagon and love/hate attacks: Mobasher, Burke, Bhaumik and Williams, "Toward trustworthy
recommender systems", ACM TOIT 7(4), 2007. Without ratings nothing of them is left that is about a target.
"""


def other_items(view: AttackerView) -> NDArray[np.int64]:
    """Return all items that are no targets, ascending; PoisonRec's `I`. Never empty."""
    is_other = np.ones(view.n_items, dtype=np.bool_)
    is_other[list(view.goal.target_items)] = False
    return np.flatnonzero(is_other).astype(np.int64)


def top_share(
    item_ids: NDArray[np.int64], worth: NDArray[np.int64], rate: float
) -> NDArray[np.int64]:
    """Return the items with the largest worth.

    Args:
        item_ids: Ascending, shape `(n,)`.
        worth: Shape `(n,)`; among equals the smaller id comes first.
        rate: In `(0, 1]`: `floor(rate * n)` items, but at least one.
    """
    n_best = max(1, int(rate * len(item_ids)))
    return item_ids[np.argsort(-worth, kind="stable")[:n_best]]


def alternate(
    budget: AttackBudget,
    target_items: NDArray[np.int64],
    selected_items: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return profiles that alternate a target item and a selected item, the target first.

    Both are drawn uniformly with replacement, for each click anew. Shape
    `(n_fake_users, profile_size)`.
    """
    shape = (budget.n_fake_users, budget.profile_size)
    clicks = rng.choice(target_items, size=shape)
    clicks[:, 1::2] = rng.choice(selected_items, size=clicks[:, 1::2].shape)
    return clicks
