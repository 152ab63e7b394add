"""Small platforms that the tests of environments share."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from recattack_gym.core import Interactions
from recattack_gym.victims import VICTIMS

QUICK = {"epochs": 1, "finetune_epochs": 1, "embedding_size": 8}
"""Settings that make any victim quick and bad."""


@pytest.fixture(scope="session")
def ladder() -> Interactions:
    """Four users on a ladder of six items; item `i < 4` has `4 - i` clicks, items 4 and 5 have none.

    With ItemPop, `k=1` and the whole catalogue ranked, the users' best unseen items are 4 (no clicks;
    ties go to the smaller id), 3 (one click), 2 (two) and 1 (three). A new target, item 6, is therefore
    shown to exactly `c` users once it has `c <= 4` clicks.
    """
    return Interactions(
        np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 3]), np.array([0, 1, 2, 3, 0, 1, 2, 0, 1, 0]), 4, 6
    )


@pytest.fixture(scope="session")
def on_ladder(ladder: Interactions) -> dict[str, Any]:
    """Arguments of an environment on the ladder: two fake users, two clicks each."""
    return {
        "victim": "ItemPop",
        "dataset": ladder,
        "targets": 1,
        "k": 1,
        "n_candidates": None,
        "n_fake_users": 2,
        "profile_size": 2,
    }


@pytest.fixture(scope="session")
def small_log() -> Interactions:
    """60 users, 40 items, 8 distinct items per user."""
    rng = np.random.default_rng(0)
    items = np.stack([rng.permutation(40)[:8] for _ in range(60)])
    return Interactions(np.repeat(np.arange(60), 8), items.ravel(), 60, 40)


@pytest.fixture(scope="session")
def small(small_log: Interactions) -> Callable[..., dict[str, Any]]:
    """Return the arguments of a small environment with a quick victim; more arguments replace these."""

    def arguments(victim: str, /, **replaced: object) -> dict[str, Any]:
        known = {field.name for field in fields(VICTIMS[victim].config_class)}
        settings = {name: value for name, value in QUICK.items() if name in known}
        return {
            "dataset": small_log,
            "n_fake_users": 3,
            "profile_size": 2,
            "targets": 2,
            "k": 3,
            "n_candidates": 12,
            "victim_config": settings,
            **replaced,
        }

    return arguments
