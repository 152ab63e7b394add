"""Settings for RL Baselines3 Zoo are those of whole attacks, and the algorithms take and train with them."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

import recattack_gym
from agents.popularity_policy import PopularityPolicy
from agents.sb3 import ClickSequenceExtractor
from envs_registry import ENV_IDS

recattack_gym.register_envs()

yaml = pytest.importorskip("yaml", reason="reading the settings needs pyyaml, of the extra `test`")

FOLDER = Path(__file__).parents[1] / "examples" / "rl_zoo3"
ALGORITHMS: dict[str, type[PPO] | type[RecurrentPPO]] = {"ppo": PPO, "ppo_lstm": RecurrentPPO}
SMALL = {"n_fake_users": 2, "profile_size": 3}

Settings = dict[str, Any]  # Any: whatever the file has


def read(algo: str) -> dict[str, Settings]:
    settings: dict[str, Settings] = yaml.safe_load((FOLDER / f"{algo}.yml").read_text())
    return settings


def class_by_name(name: str) -> Any:  # noqa: ANN401  # whatever has the name
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def prepare(env_id: str, settings: Settings) -> tuple[VecEnv, Settings]:
    """Do to an entry what `rl_zoo3.exp_manager` (2.9.2) does before it makes the model."""
    left = {**settings, "env_kwargs": {**settings["env_kwargs"], **SMALL}}
    names = {
        "get_class_by_name": class_by_name,
        "hyperparams": left,
        "self": SimpleNamespace(env_name=SimpleNamespace(gym_id=env_id)),
    }
    left["policy_kwargs"] = eval(left["policy_kwargs"], names)  # noqa: S307  # our own file
    if "." in left["policy"]:
        left["policy"] = class_by_name(left["policy"])
    wrappers = [
        (class_by_name(name), kwargs)
        for entry in left.pop("env_wrapper", [])
        for name, kwargs in entry.items()
    ]

    def wrap(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        for wrapper, kwargs in wrappers:
            env = wrapper(env, **kwargs)
        return env

    envs = make_vec_env(
        lambda **kwargs: gym.make(env_id, **kwargs),
        n_envs=left.pop("n_envs"),
        seed=0,
        env_kwargs=left.pop("env_kwargs"),
        wrapper_class=wrap,
    )
    del left["n_timesteps"]
    return envs, left


def test_every_file_is_of_an_algorithm_that_is_tested_here() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(ALGORITHMS)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_settings_name_every_environment_and_no_other(algo: str) -> None:
    assert set(read(algo)) == {"default", *ENV_IDS}


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_rollout_is_one_whole_undiscounted_attack_per_copy(algo: str) -> None:
    for env_id, settings in read(algo).items():
        env = gym.make("RecPoison-ItemPop-v0", **settings["env_kwargs"])
        budget = env.get_wrapper_attr("budget")
        assert settings["n_steps"] == budget.n_fake_users * budget.profile_size, env_id
        assert settings["batch_size"] == settings["n_steps"] * settings["n_envs"], env_id
        assert settings["n_timesteps"] % settings["batch_size"] == 0, env_id
        assert settings["gamma"] == settings["gae_lambda"] == 1.0, env_id
        assert settings["env_kwargs"]["reward"] == "normalized", env_id


@pytest.mark.parametrize("env_id", ["RecPoison-CoVisitation-v0", "RecPoison-ItemPop-v0"])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_algorithm_takes_the_settings_and_trains(algo: str, env_id: str) -> None:
    settings = read(algo)[env_id]
    envs, left = prepare(env_id, settings)
    n_clicks = SMALL["n_fake_users"] * SMALL["profile_size"]
    left |= {"n_steps": n_clicks, "batch_size": n_clicks * settings["n_envs"]}
    model = ALGORITHMS[algo](env=envs, seed=0, device="cpu", **left)
    if algo == "ppo":
        assert type(model.policy) is PopularityPolicy
        identity = {"RecPoison-CoVisitation-v0": 1.0}.get(env_id, 0.2)
        assert left["policy_kwargs"]["table"][-1, -1] == pytest.approx(identity)
    else:
        assert type(model.policy.features_extractor) is ClickSequenceExtractor
        assert isinstance(envs.action_space, gym.spaces.MultiDiscrete)
        assert envs.action_space.nvec[0] == 6  # targets and five bands
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(n_clicks * settings["n_envs"])
    assert model.num_timesteps == n_clicks * settings["n_envs"]
    pairs = zip(before, model.policy.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in pairs)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("rl_zoo3") is None,
    reason="rl_zoo3 is not installed: pip install -c constraints.txt -e '.[sb3]' rl_zoo3",
)
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_rl_zoo3_itself_trains_saves_and_loads(algo: str, tmp_path: Path) -> None:
    shared = ["--algo", algo, "--env", "RecPoison-CoVisitation-v0", "-f", str(tmp_path)]
    shared += ["--gym-packages", "recattack_gym"]
    small = ["--env-kwargs", "reward:'normalized'", "n_fake_users:2", "profile_size:3"]
    small += ["-params", "n_steps:6", "batch_size:48"]
    config = ["--conf-file", str(FOLDER / f"{algo}.yml"), "-n", "96", "--eval-freq", "-1"]
    for module, more in (
        ("rl_zoo3.train", [*config, *small]),
        ("rl_zoo3.enjoy", ["--no-render", "--stochastic", "-n", "12"]),
    ):
        command = [sys.executable, "-m", module, *shared, *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # ours
        assert done.returncode == 0, done.stderr
    assert "2 Episodes" in done.stdout
