"""Training that diverges is an error on the compiled path too, never a RecNum."""

from collections.abc import Callable

import numpy as np
import pytest

from recattack_gym.core import Interactions, StateError
from recattack_gym.victims import VICTIMS, CandidateLists, GradientConfig
from recattack_gym.victims.kernels import check_finite

GRADIENT_NAMES = sorted(
    name for name in VICTIMS if issubclass(VICTIMS[name].config_class, GradientConfig)
)


@pytest.mark.parametrize("name", GRADIENT_NAMES)
def test_an_engine_whose_training_diverges_says_so_and_serves_the_next_victim(
    name: str,
    small_log: Interactions,
    make_lists: Callable[..., CandidateLists],
    quick_config: Callable[[str], dict[str, object]],
) -> None:
    settings = {**quick_config(name), "finetune_epochs": 6, "finetune_learning_rate": 3e38}
    victim = VICTIMS[name](settings).fit(small_log, np.random.default_rng(0), n_new_items=3)
    engine = victim.engine(make_lists(small_log, [24, 25]))
    profiles = np.random.default_rng(1).integers(0, 27, (3, 4, 5))
    for _ in range(2):
        with np.errstate(all="ignore"), pytest.raises(StateError, match="learning_rate"):
            engine.exposure(profiles, 0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_found(wrong: float) -> None:
    numbers = np.full((50, 8), 1e38, dtype=np.float32)
    check_finite(numbers, numbers[:0])
    numbers[31, 5] = wrong
    with pytest.raises(StateError, match="diverged"):
        check_finite(numbers[:30], numbers)
