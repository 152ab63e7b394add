"""Small logs, candidate lists and quick configurations that the tests of all victims share."""

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import Interactions
from recattack_gym.victims import VICTIMS, CandidateLists, GradientConfig, Victim

N_NEW = 3
"""New items at the end of the small log's catalogue."""

QUICK: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {"ALS": {"reg": 0.5}, "LTS-MF": {"reg": 0.5}, "NuclearNorm": {"reg": 8.0}}
)
"""Settings that keep a victim's mechanics quick, by victim name, over the default below."""

QUICK_GRADIENT: Mapping[str, object] = MappingProxyType(
    {
        "embedding_size": 8,
        "epochs": 2,
        "batch_size": 64,
        "finetune_epochs": 2,
        "finetune_learning_rate": 0.02,
        "finetune_batch_size": 32,
    }
)

LEARNING: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "ALS": {"embedding_size": 2, "reg": 8.0},
        "LTS-MF": {"embedding_size": 2, "reg": 8.0},
        "MF-BCE": {"epochs": 300, "reg": 0.05},
        "MF-BCE-APR": {"epochs": 300, "reg": 0.05},
        "MF-BCE-PamaCF": {"epochs": 300, "reg": 0.05},
        "NGCF": {"learning_rate": 0.005},
        "NeuMF": {"epochs": 20},
        "NuclearNorm": {"reg": 8.0},
        "PMF": {"epochs": 300, "reg": 0.1},
        "PMF-APR": {"epochs": 300, "reg": 0.1},
        "PMF-PamaCF": {"epochs": 300, "reg": 0.1},
    }
)
"""Settings with which a victim learns the checkerboard, by victim name, over the default below."""

LEARNING_GRADIENT: Mapping[str, object] = MappingProxyType(
    {"embedding_size": 8, "epochs": 80, "learning_rate": 0.02, "batch_size": 64}
)


def _settings(
    name: str, default: Mapping[str, object], special: Mapping[str, Mapping[str, object]]
) -> dict[str, object]:
    is_gradient = issubclass(VICTIMS[name].config_class, GradientConfig)
    return {**(default if is_gradient else {}), **special.get(name, {})}


@pytest.fixture(scope="session")
def quick_config() -> Callable[[str], dict[str, object]]:
    """Give settings by victim name with which everything takes milliseconds."""
    return lambda name: _settings(name, QUICK_GRADIENT, QUICK)


@pytest.fixture(scope="session")
def learning_config() -> Callable[[str], dict[str, object]]:
    """Give settings by victim name with which the checkerboard is learnt in a second or two."""
    return lambda name: _settings(name, LEARNING_GRADIENT, LEARNING)


@pytest.fixture(scope="session")
def checkerboard() -> Interactions:
    """Return 24 users and 16 items: even users click even items, odd users odd items.

    Every user has clicked 5 of the 8 items of their colour, so 3 right answers are left.
    """
    rng = np.random.default_rng(5)
    users = np.repeat(np.arange(24), 5)
    items = np.concatenate([2 * rng.permutation(8)[:5] + user % 2 for user in range(24)])
    return Interactions(users, items, n_users=24, n_items=16)


@pytest.fixture(scope="session")
def small_log() -> Interactions:
    """Return 30 users with 2 to 8 clicks, repeats included, on 24 items, and 3 new items."""
    rng = np.random.default_rng(11)
    lengths = rng.integers(2, 9, 30)
    weights = 1.0 / np.arange(1, 25)
    items = rng.choice(24, lengths.sum(), p=weights / weights.sum())
    users = np.repeat(np.arange(30), lengths)
    return Interactions(users, items, n_users=30, n_items=24 + N_NEW)


@pytest.fixture(scope="session")
def quick_victim(
    small_log: Interactions, quick_config: Callable[[str], dict[str, object]]
) -> Callable[[str], Victim]:
    """Give the victim of a name, fitted once on the small log and shared by all tests."""

    @cache
    def fitted(name: str) -> Victim:
        rng = np.random.default_rng(3)
        return VICTIMS[name](quick_config(name)).fit(small_log, rng, n_new_items=N_NEW)

    return fitted


MakeLists = Callable[..., CandidateLists]


@pytest.fixture(scope="session")
def make_lists() -> MakeLists:
    """Give a function that draws candidate lists: distinct unseen items per user, plus targets."""

    def make(
        log: Interactions,
        target_items: list[int],
        *,
        k: int = 3,
        n_candidates: int | None = 8,
        seed: int = 0,
    ) -> CandidateLists:
        targets = np.array(target_items, dtype=np.int64)
        items: NDArray[np.int64] | None = None
        if n_candidates is not None:
            rng = np.random.default_rng(seed)
            items = np.stack(
                [
                    rng.choice(
                        np.setdiff1d(
                            np.arange(log.n_items), np.append(log.items_of(user), targets)
                        ),
                        n_candidates,
                        replace=False,
                    )
                    for user in range(log.n_users)
                ]
            ).astype(np.int64)
        return CandidateLists(log, items, targets, k)

    return make
