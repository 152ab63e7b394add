"""Arguments of the wrong kind are refused by name, whatever part of the package they are given to."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from agents.heuristic import Popular
from recattack_gym.core import ArgumentError, FakeProfiles, Interactions
from recattack_gym.core.profiles import as_profile_batch
from recattack_gym.simulator import PlatformSimulator, PlatformView
from recattack_gym.victims import ItemPop

CLICKS = np.zeros((1, 1), dtype=np.int64)


def wrong(value: object) -> Any:  # noqa: ANN401  # passes for any type, to be refused at run time
    return value


def view_of_all() -> PlatformView:
    log = Interactions(np.array([0, 0, 1]), np.array([0, 1, 2]), n_users=2, n_items=9)
    platform = PlatformSimulator(log, "ItemPop", targets=1, n_candidates=None)
    return PlatformView(platform, knowledge=wrong("all"))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: Popular(wrong(3)),
            "config must be a PopularConfig, a mapping of settings or None, got 3",
        ),
        (lambda: Popular(wrong("popular_rate")), "config must be a PopularConfig"),
        (lambda: Popular(wrong([1])), r"config must be a PopularConfig.*got \[1\]"),
        (view_of_all, "knowledge must be one of"),
        (
            lambda: ItemPop().fit(wrong("log"), np.random.default_rng(0)),
            "log must be Interactions, got str",
        ),
        (lambda: as_profile_batch([[1, 2], [3]], 9), "profiles must be an array of whole numbers"),
        (lambda: FakeProfiles(CLICKS, wrong([["a"]])), "ratings must be an array of numbers"),
        (lambda: FakeProfiles(CLICKS, wrong([[np.inf]])), "ratings must be finite, got inf"),
        (
            lambda: FakeProfiles(CLICKS, wrong([1.0])),
            r"ratings must have shape \(1, 1\), got \(1,\)",
        ),
        (
            lambda: Interactions(wrong([0]), wrong([0]), 1, 1, timestamps=wrong(["noon"])),
            "timestamps must be an array",
        ),
    ],
)
def test_an_argument_of_the_wrong_kind_is_named(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        call()
