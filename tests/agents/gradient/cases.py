"""Small tasks for attackers with surrogates."""

import numpy as np

from agents.gradient.profiles import Task
from tests.agents.stub_view import random_log


def make_task(
    *,
    n_users: int = 30,
    n_items: int = 40,
    n_events: int = 300,
    target_items: tuple[int, ...] = (37, 38, 39),
    n_fake_users: int = 4,
    profile_size: int = 8,
    seed: int = 0,
) -> Task:
    """Return a task whose targets are, by default, the least clicked items."""
    return Task(
        log=random_log(n_users, n_items, n_events, seed),
        target_items=np.array(target_items),
        n_fake_users=n_fake_users,
        profile_size=profile_size,
    )
