"""Environments on a platform that screens accounts: info, rewards, both classes, registered ids."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from recattack_gym.core import ArgumentError
from recattack_gym.envs import PoisonEnv, PoisonVectorEnv
from recattack_gym.envs.rewards import StealthReward
from recattack_gym.simulator import DefendedSimulator

Small = Callable[..., dict[str, Any]]

DEFENDED = {"cost", "n_genuine_flagged"}


def attack(env: PoisonEnv, item: int) -> tuple[float, dict[str, Any]]:
    env.reset(seed=0)
    terminated = False
    while not terminated:
        _, reward, terminated, _, info = env.step(np.int64(item))
    return float(reward), info


def test_info_tells_what_screening_did_at_the_end_only(small: Small) -> None:
    env = PoisonEnv(victim="ItemPop", **small("ItemPop", defense="popularity"))
    _, info = env.reset(seed=0)
    assert (info["cost"], info["n_genuine_flagged"]) == (0, -1)
    _, info = env.step(np.int64(0))[3:]
    assert (info["cost"], info["n_genuine_flagged"]) == (0, -1)
    _, info = attack(env, int(env.target_items[0]))
    simulator = env.simulator
    assert isinstance(simulator, DefendedSimulator)
    assert env.last_profiles is not None
    screened = simulator.screen(env.last_profiles)
    assert info["cost"] == screened.n_dropped[0]
    assert info["n_genuine_flagged"] == screened.n_genuine_flagged[0]
    assert info["cost"] + info["n_genuine_flagged"] == 1  # 1 % of 63 accounts, rounded up
    _, info = env.reset()
    assert (info["cost"], info["n_genuine_flagged"]) == (0, -1)


def test_an_undefended_environment_says_nothing_of_screening(small: Small) -> None:
    env = PoisonEnv(victim="ItemPop", **small("ItemPop"))
    assert not DEFENDED & set(env.reset()[1])


def test_stealth_pays_normalized_less_the_price(small: Small) -> None:
    arguments = small("ItemPop", defense="popularity")
    target = 40
    plain, info = attack(
        PoisonEnv(victim="ItemPop", **{**arguments, "reward": "normalized"}), target
    )
    for price, reward in ((1.0, "stealth"), (2.5, StealthReward(2.5)), (0.0, StealthReward(0))):
        env = PoisonEnv(victim="ItemPop", **{**arguments, "reward": reward})
        paid, same = attack(env, target)
        assert same["cost"] == info["cost"]
        assert paid == pytest.approx(plain - price * info["cost"] / 3)


def test_stealth_needs_a_defense_that_screens(small: Small) -> None:
    with pytest.raises(ArgumentError, match="reward 'stealth' needs a defense that screens"):
        PoisonEnv(victim="ItemPop", **small("ItemPop", reward="stealth"))
    with pytest.raises(ArgumentError, match="price must be"):
        StealthReward(-1)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_the_vector_environment_agrees_with_single_ones(small: Small, mode: str) -> None:
    arguments = small("BPR", defense="popularity", reward="stealth")
    rng = np.random.default_rng(5)
    clicks = rng.integers(0, 42, (3, 6))
    clicks[1] = 40
    single = []
    for row in clicks:
        env = PoisonEnv(victim="BPR", **arguments)
        env.reset(seed=0)
        for item in row:
            _, reward, _, _, info = env.step(item)
        single.append((reward, info["cost"], info["n_genuine_flagged"], info["rec_num"]))
    envs = PoisonVectorEnv(victim="BPR", num_envs=3, autoreset_mode=mode, **arguments)
    envs.reset(seed=0)
    for item in clicks.T:
        _, rewards, _, _, infos = envs.step(item)
    found = infos["final_info"] if mode == "SameStep" else infos
    for m, (reward, cost, flagged, rec_num) in enumerate(single):
        assert rewards[m] == pytest.approx(reward)
        assert found["cost"][m] == cost
        assert found["n_genuine_flagged"][m] == flagged
        assert found["rec_num"][m] == rec_num


def test_gymnasium_is_content(small: Small) -> None:
    arguments = small("BPR", defense=("popularity",), reward="stealth")
    env = gym.make("recattack_gym:RecPoison-BPR-v0", **arguments)
    check_env(env.unwrapped, skip_render_check=True)


def test_fresh_lists_are_screened_too(small: Small) -> None:
    arguments = small("BPR", defense="popularity", resample_candidates=True)
    env = PoisonEnv(victim="BPR", **arguments)
    _, info = attack(env, 40)
    assert info["cost"] + info["n_genuine_flagged"] == 1
