"""Stable-Baselines3 sees the native vector environment as it would see a DummyVecEnv."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import VectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from agents.sb3 import GymnasiumVecEnv, make_sb3_vec_env
from recattack_gym.core import ArgumentError, KnowledgeError, StateError
from recattack_gym.envs import (
    BlackBox,
    FlatVectorObservation,
    GroupedVectorActions,
)

ENV_ID = "recattack_gym:RecPoison-PMF-v0"
QUICK = {"epochs": 1, "finetune_epochs": 1, "embedding_size": 8}
ARGUMENTS: dict[str, Any] = {"n_fake_users": 3, "profile_size": 2, "victim_config": QUICK}


def dummy(n_envs: int, **arguments: object) -> DummyVecEnv:
    return DummyVecEnv([lambda: gym.make(ENV_ID, **{**ARGUMENTS, **arguments})] * n_envs)


def as_dict(observation: VecEnvObs) -> dict[str, Any]:
    assert isinstance(observation, dict)
    return dict(observation)  # DummyVecEnv gives an OrderedDict


@pytest.mark.parametrize("is_resampled", [False, True])
def test_equals_dummy_vec_env_bit_for_bit(is_resampled: bool) -> None:
    native = make_sb3_vec_env(
        ENV_ID, 3, seed=5, monitor=False, resample_candidates=is_resampled, **ARGUMENTS
    )
    reference = dummy(3, resample_candidates=is_resampled)
    reference.seed(5)
    assert native.observation_space == reference.observation_space
    assert native.action_space == reference.action_space
    assert data_equivalence(as_dict(native.reset()), as_dict(reference.reset()), exact=True)
    assert data_equivalence(native.reset_infos, reference.reset_infos, exact=True)
    rng = np.random.default_rng(0)
    for _ in range(20):
        actions = rng.integers(490, 508, size=3)
        (obs, *others), (expected_obs, *expected) = native.step(actions), reference.step(actions)
        assert data_equivalence(as_dict(obs), as_dict(expected_obs), exact=True)
        assert data_equivalence(others, expected, exact=True)
        assert data_equivalence(native.reset_infos, reference.reset_infos, exact=True)
    for name in ("n_queries", "last_profiles", "budget", "goal", "item_popularity", "render_mode"):
        assert data_equivalence(native.get_attr(name), reference.get_attr(name)), name
    for arguments in ({}, {"indices": 1}, {"indices": [0, 2]}):
        here, there = (envs.env_method("action_masks", **arguments) for envs in (native, reference))
        assert data_equivalence(here, there, exact=True)


def test_the_first_episode_is_seeded_and_later_ones_are_not() -> None:
    runs = []
    for _ in range(2):
        envs = make_sb3_vec_env(ENV_ID, 2, seed=3, resample_candidates=True, **ARGUMENTS)
        envs.reset()
        infos = [envs.step(np.array([500, 501]))[3] for _ in range(12)]
        runs.append([[info["rec_num"] for info in infos[step]] for step in (5, 11)])
    assert runs[0] == runs[1]
    before = [rng.bit_generator.state for rng in envs.get_attr("np_random")]
    envs.reset()
    assert [rng.bit_generator.state for rng in envs.get_attr("np_random")] == before


def test_the_monitor_reports_returns_and_lengths() -> None:
    envs = make_sb3_vec_env(ENV_ID, 2, seed=0, **ARGUMENTS)
    assert isinstance(envs, VecMonitor)
    envs.reset()
    for _ in range(6):
        _, rewards, _, infos = envs.step(np.array([500, 501]))
    assert [info["episode"]["r"] for info in infos] == rewards.tolist()
    assert [info["episode"]["l"] for info in infos] == [6, 6]
    assert envs.env_is_wrapped(Monitor) == [False, False]


def test_vector_wrappers_are_seen_through() -> None:
    envs = make_sb3_vec_env(ENV_ID, 2, wrapper=GroupedVectorActions, **ARGUMENTS)
    wrapper: Any = GroupedVectorActions
    assert envs.env_is_wrapped(wrapper) == [True, True]
    n_cells = sum(envs.get_attr("items")[0].shape)
    assert [mask.shape for mask in envs.env_method("action_masks")] == [(n_cells,)] * 2
    assert envs.get_attr("n_queries") == [0, 0]


def test_pictures_are_tiled() -> None:
    envs = make_sb3_vec_env(ENV_ID, 2, monitor=False, render_mode="rgb_array", **ARGUMENTS)
    envs.reset()
    picture = envs.render()
    assert picture is not None
    assert picture.shape == (960, 960, 3)
    envs.close()


@pytest.mark.parametrize(
    ("policy", "wrapper"),
    [
        ("MlpPolicy", FlatVectorObservation),
        ("MultiInputPolicy", GroupedVectorActions),
    ],
)
def test_ppo_trains_through_wrappers(policy: str, wrapper: Callable[[Any], Any]) -> None:
    envs = make_sb3_vec_env(ENV_ID, 2, seed=0, wrapper=wrapper, **ARGUMENTS)
    model = PPO(policy, envs, n_steps=12, batch_size=12, n_epochs=1, device="cpu")
    assert model.learn(24).num_timesteps == 24


def test_ppo_trains_on_black_boxes() -> None:
    envs = make_vec_env(lambda: BlackBox(gym.make(ENV_ID, **ARGUMENTS)), 2)
    PPO("MultiInputPolicy", envs, n_steps=12, batch_size=12, n_epochs=1, device="cpu").learn(24)
    with pytest.raises(KnowledgeError, match="the simulator is the platform's side"):
        envs.get_attr("simulator")


@pytest.mark.slow
def test_subprocesses_under_spawn_play_the_same_attacks() -> None:
    there = make_vec_env(
        ENV_ID,
        2,
        env_kwargs=ARGUMENTS,
        vec_env_cls=SubprocVecEnv,
        vec_env_kwargs={"start_method": "spawn"},
    )
    here = make_sb3_vec_env(ENV_ID, 2, **ARGUMENTS)
    try:
        both: tuple[VecEnv, VecEnv] = (there, here)
        for envs in both:
            envs.seed(0)
        start, expected_start = (as_dict(envs.reset()) for envs in both)
        assert data_equivalence(start, expected_start, exact=True)
        for _ in range(7):
            one, other = (envs.step(np.array([500, 3])) for envs in both)
            assert one[1].tolist() == other[1].tolist()
            assert one[2].tolist() == other[2].tolist()
            assert [info["rec_num"] for info in one[3]] == [info["rec_num"] for info in other[3]]
    finally:
        there.close()


# -- misuse --------------------------------------------------------------------------------------


def test_other_autoreset_modes_are_refused() -> None:
    native = gym.make_vec(ENV_ID, num_envs=2, **ARGUMENTS)
    with pytest.raises(
        ArgumentError, match=r"env must reset in the same step .* got AutoresetMode.NEXT"
    ):
        GymnasiumVecEnv(native)


def test_a_single_environment_is_refused() -> None:
    single: Any = gym.make(ENV_ID, **ARGUMENTS)
    assert not isinstance(single, VectorEnv)
    with pytest.raises(ArgumentError, match="env must be a gymnasium VectorEnv, got"):
        GymnasiumVecEnv(single)


def test_steps_need_actions_attributes_exist_and_cannot_be_set() -> None:
    envs = make_sb3_vec_env(ENV_ID, 2, monitor=False, **ARGUMENTS)
    envs.reset()
    with pytest.raises(StateError, match="step_wait was called without actions"):
        envs.step_wait()
    with pytest.raises(AttributeError, match=r"no layer of .* has an attribute 'rec_nums'"):
        envs.get_attr("rec_nums")
    with pytest.raises(StateError, match=r"set_attr.* make a new one with other arguments"):
        envs.set_attr("budget", 3)


def test_different_options_for_copies_are_refused() -> None:
    envs = make_sb3_vec_env(ENV_ID, 2, monitor=False, **ARGUMENTS)
    envs.set_options([{}, {"reset_mask": np.array([True, False])}])
    with pytest.raises(ArgumentError, match="options must be the same for all copies"):
        envs.reset()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"n_envs": 0}, "n_envs must be"), ({"seed": -1}, "seed must be"), ({"k": 0}, "k must be")],
)
def test_wrong_arguments_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make_sb3_vec_env(ENV_ID, **{**ARGUMENTS, **wrong})
