"""What Gymnasium, Stable-Baselines3 and we expect of every registered environment."""

import copy
import inspect
import pickle
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env, data_equivalence
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from envs_registry import DEFENDED, ENV_IDS, ENVIRONMENTS, VICTIM_NAMES, register_envs
from recattack_gym.envs import PoisonEnv, PoisonVectorEnv
from recattack_gym.simulator import DefendedSimulator
from recattack_gym.victims import VICTIMS

Small = Callable[..., dict[str, Any]]
Transition = tuple[Any, ...]

every_id = pytest.mark.parametrize(
    ("env_id", "victim"),
    [(env_id, given["victim"]) for env_id, given in ENVIRONMENTS.items()],
    ids=(*VICTIM_NAMES, *DEFENDED),
)


def through_pickle(env: PoisonEnv) -> PoisonEnv:
    copied: PoisonEnv = pickle.loads(pickle.dumps(env))  # noqa: S301  # our own bytes
    return copied


def make(env_id: str, arguments: dict[str, Any]) -> PoisonEnv:
    env = gym.make(env_id, **arguments).unwrapped
    assert isinstance(env, PoisonEnv)
    return env


def through_json(env: gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any]) -> EnvSpec:
    assert env.spec is not None
    return EnvSpec.from_json(env.spec.to_json())


def rollout(env: gym.Env[Any, Any], seed: int, n_steps: int = 13) -> list[Transition]:
    """Play more than two episodes of six random clicks."""
    rng = np.random.default_rng(0)
    transitions: list[Transition] = [env.reset(seed=seed)]
    for _ in range(n_steps):
        transitions.append(env.step(rng.integers(gym.spaces.flatdim(env.action_space))))
        if transitions[-1][2]:
            transitions.append(env.reset())
    return transitions


def test_the_table_of_ids_names_every_victim_and_nothing_else() -> None:
    assert set(VICTIM_NAMES) == set(VICTIMS)
    assert len(set(VICTIM_NAMES)) == len(VICTIM_NAMES)
    assert tuple(VICTIMS[name].name for name in VICTIM_NAMES) == VICTIM_NAMES


def test_a_defended_id_is_named_after_its_victim_and_makes_that_defence(small: Small) -> None:
    assert len(ENV_IDS) == len(VICTIM_NAMES) + len(DEFENDED)
    detectors = {"PCAVarSelect": "pca-varselect", "Popularity": "popularity"}
    for name, given in DEFENDED.items():
        victim, _, detector = name.rpartition("-")
        assert given == {"victim": victim, "defense": detectors[detector]}
        simulator = make(f"RecPoison-{name}-v0", small(victim)).simulator
        assert isinstance(simulator, DefendedSimulator)
        assert [each.detector.name for each in simulator.screening] == [given["defense"]]
        assert simulator.victim.name == victim
        bare = make(f"RecPoison-{name}-v0", small(victim, defense=None)).simulator
        assert not isinstance(bare, DefendedSimulator)


def test_a_detector_behind_robust_training_is_both_defences_together(small: Small) -> None:
    """`RecPoison-PamaCF-PCAVarSelect-v0` is BPR with `defense=("pamacf", "pca-varselect")`."""
    preset = make("RecPoison-PamaCF-PCAVarSelect-v0", small("PamaCF"))
    both = make("RecPoison-BPR-v0", small("BPR", defense=("pamacf", "pca-varselect")))
    for here, there in zip(rollout(preset, 3), rollout(both, 3), strict=True):
        assert data_equivalence(here, there, exact=True)


def test_the_page_about_environments_is_what_the_docstrings_say() -> None:
    script = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "make_environments.py"))
    written = script["PAGE"].read_text(encoding="utf-8")
    assert written == script["page"](), "run: python docs/make_environments.py"


@pytest.mark.parametrize("env_class", [PoisonEnv, PoisonVectorEnv])
def test_the_docstring_has_the_sections_of_gymnasium(env_class: type) -> None:
    headings = re.findall(r"^## (.*)$", inspect.getdoc(env_class) or "", flags=re.MULTILINE)
    assert [heading for heading in headings if heading != "Reproducibility"] == [
        "Description",
        "Action Space",
        "Observation Space",
        "Starting State",
        "Rewards",
        "Episode End",
        "Information",
        "Arguments",
        "References",
        "Version History",
    ]


def test_both_environments_take_the_same_arguments_with_the_same_defaults() -> None:
    single, vector = (
        dict(inspect.signature(env_class).parameters) for env_class in (PoisonEnv, PoisonVectorEnv)
    )
    for name in ("num_envs", "autoreset_mode"):
        del vector[name]
    assert single == vector


def test_registering_again_changes_nothing() -> None:
    before = {env_id: gym.spec(env_id) for env_id in ENV_IDS}
    register_envs()
    assert {env_id: gym.spec(env_id) for env_id in ENV_IDS} == before


@every_id
def test_passes_the_checkers_of_gymnasium_and_stable_baselines3(
    env_id: str, victim: str, small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    env = gym.make(env_id, **small(victim))
    check_env(env.unwrapped)
    sb3_check_env(env.unwrapped)
    assert "clean" in capsys.readouterr().out  # the checker renders "human" without a display


@every_id
def test_same_seed_and_clicks_give_the_same_transitions(
    env_id: str, victim: str, small: Small
) -> None:
    first, second = (gym.make(env_id, **small(victim)) for _ in range(2))
    for here, there in zip(rollout(first, 3), rollout(second, 3), strict=True):
        assert data_equivalence(here, there, exact=True)


@every_id
def test_rewards_are_within_bounds_and_come_last(env_id: str, victim: str, small: Small) -> None:
    env = gym.make(env_id, **small(victim))
    for transition in rollout(env, 0):
        if len(transition) == 2:
            continue
        _, reward, terminated, truncated, info = transition
        assert truncated is False
        assert 0 <= reward <= info["max_rec_num"] == 60 * 2
        assert (info["rec_num"] >= 0) is terminated
        if terminated:
            assert reward == info["rec_num"] == info["target_exposure"].sum()
        else:
            assert reward == 0
            assert not info["target_exposure"].any()


@every_id
def test_info_has_the_same_keys_and_types_always(env_id: str, victim: str, small: Small) -> None:
    env = gym.make(env_id, **small(victim))
    screened = {"cost": int, "n_genuine_flagged": int}
    for transition in rollout(env, 0):
        info = transition[-1]
        assert {name: type(value) for name, value in info.items()} == {
            "rec_num": int,
            "max_rec_num": int,
            "clean_rec_num": int,
            "target_exposure": np.ndarray,
            "n_queries": int,
            **(screened if "defense" in ENVIRONMENTS[env_id] else {}),
        }
        assert info["target_exposure"].dtype == np.int64
        assert info["target_exposure"].shape == (2,)


@every_id
@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle])
def test_a_copy_in_mid_attack_goes_on_like_the_original(
    env_id: str, victim: str, small: Small, duplicate: Callable[[PoisonEnv], PoisonEnv]
) -> None:
    env = make(env_id, small(victim, resample_candidates=True))
    env.reset(seed=5)
    for item in (40, 1, 41):
        env.step(item)
    twin = duplicate(env)
    for item in (41, 40, 2):
        assert data_equivalence(env.step(item), twin.step(item), exact=True)
    env.reset()
    assert twin.last_profiles is not None
    assert twin.last_profiles.tolist() == [[40, 1], [41, 41], [40, 2]]


@every_id
def test_the_spec_survives_json_and_makes_the_same_environment(
    env_id: str, victim: str, small: Small
) -> None:
    by_name = small(victim, dataset="synthetic", n_candidates=None, render_mode="ansi")
    env = gym.make(f"recattack_gym:{env_id}", **by_name)
    again = gym.make(through_json(env))
    assert again.spec == env.spec
    assert isinstance(env.unwrapped, PoisonEnv)
    assert isinstance(again.unwrapped, PoisonEnv)
    assert again.unwrapped.simulator is env.unwrapped.simulator
    assert again.unwrapped.simulator.victim.name == victim
    assert data_equivalence(env.reset(seed=1), again.reset(seed=1), exact=True)


@every_id
def test_make_vec_gives_the_native_class_and_its_spec_makes_it_again(
    env_id: str, victim: str, small: Small
) -> None:
    arguments = small(victim, dataset="synthetic", autoreset_mode="SameStep")
    envs = gym.make_vec(env_id, num_envs=2, **arguments)
    again = gym.make_vec(through_json(envs))
    for env in (envs, again):
        assert type(env) is PoisonVectorEnv
        assert env.num_envs == 2
        assert (
            env.autoreset_mode
            is env.metadata["autoreset_mode"]
            is gym.vector.AutoresetMode.SAME_STEP
        )
    assert data_equivalence(envs.reset(seed=1), again.reset(seed=1), exact=True)


@every_id
def test_the_vector_environment_pays_what_the_single_one_pays(
    env_id: str, victim: str, small: Small
) -> None:
    env = make(env_id, small(victim))
    envs = gym.make_vec(env_id, num_envs=3, **small(victim))
    actions = np.random.default_rng(2).integers(42, size=(6, 3))
    envs.reset(seed=0)
    for row in actions:
        _, rewards, _, _, _ = envs.step(row)
    for copy_number in range(3):
        env.reset(seed=99)
        for item in actions[:, copy_number]:
            _, reward, _, _, _ = env.step(item)
        assert reward == rewards[copy_number]
