"""Wrappers change what is seen or chosen, never what an attack earns."""

import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env, data_equivalence
from numpy.typing import ArrayLike
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from recattack_gym.core import ArgumentError, KnowledgeError
from recattack_gym.envs import (
    BlackBox,
    FlatObservation,
    FlatVectorObservation,
    GroupedActions,
    GroupedVectorActions,
    PoisonEnv,
    PoisonVectorEnv,
)
from recattack_gym.envs.wrappers import group_items

Arguments = dict[str, Any]
Small = Callable[..., Arguments]


def test_groups_are_targets_then_bands_of_popularity() -> None:
    popularity = np.array([5, 0, 9, 7, 1, 7, 0])
    table = group_items(popularity, np.array([6, 1]), 2)
    # Others by popularity, ties by id: 2 (9), 3 (7), 5 (7), 0 (5), 4 (1); the shorter groups repeat.
    assert table.tolist() == [[6, 6, 1], [2, 3, 5], [0, 0, 4]]


def test_equally_popular_items_are_in_order_of_their_ids() -> None:
    popularity = np.random.default_rng(0).integers(3, size=201)
    table = group_items(popularity, np.array([200]), 2)
    expected = sorted(range(200), key=lambda item: (-popularity[item], item))
    assert table[1:].ravel().tolist() == expected


@pytest.mark.parametrize("n_bands", [None, 1, 2, 7, 100])
def test_every_item_has_a_cell_and_groups_are_disjoint(n_bands: int | None) -> None:
    popularity = np.random.default_rng(0).integers(50, size=108)
    targets = np.arange(100, 108)
    table = group_items(popularity, targets, n_bands)
    assert set(table.ravel().tolist()) == set(range(108))
    assert set(table[0].tolist()) == set(targets.tolist())
    assert sum(len(set(row.tolist())) for row in table) == 108
    if n_bands is None:
        assert table.shape == (11, 10)


def test_more_bands_than_items_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"n_bands must be at most 2, .* got 3"):
        group_items(np.array([1, 2, 0]), np.array([2]), 3)


def test_grouped_actions_click_the_item_of_the_cell(on_ladder: Arguments) -> None:
    env = GroupedActions(PoisonEnv(**on_ladder), n_bands=3)
    assert isinstance(env.action_space, gym.spaces.MultiDiscrete)
    assert env.action_space.nvec.tolist() == [4, 2]
    assert env.action_masks().shape == (6,)
    env.reset()
    for cell in ((0, 1), (1, 0), (2, 1), (3, 0)):
        env.step(np.array(cell))
    assert env.get_wrapper_attr("last_profiles").tolist() == [[6, 0], [3, 4]]


@pytest.mark.parametrize(
    "action", [(4, 0), (0, 2), (-1, 0), (0,), (0.0, 1.0), (True, False), 3, (0, 0, 0)]
)
def test_a_cell_that_does_not_exist_is_refused(action: ArrayLike, on_ladder: Arguments) -> None:
    env = GroupedActions(PoisonEnv(**on_ladder), n_bands=3)
    env.reset()
    with pytest.raises(ArgumentError, match=r"action must be whole numbers \(group, place\) below"):
        env.action(action)


def test_grouped_vector_actions_equal_grouped_actions(on_ladder: Arguments) -> None:
    envs = GroupedVectorActions(PoisonVectorEnv(num_envs=2, **on_ladder))
    env = GroupedActions(PoisonEnv(**on_ladder))
    assert envs.single_action_space == env.action_space
    assert envs.action_masks().shape == (2, len(env.action_masks()))
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(4)]
    envs.reset()
    rewards = [envs.step(action)[1] for action in actions][-1]
    for copy_number in range(2):
        env.reset()
        assert [env.step(action[copy_number])[1] for action in actions][-1] == rewards[copy_number]


def test_flat_observations_hold_ids_fake_user_and_progress(on_ladder: Arguments) -> None:
    env: gym.Env[Any, Any] = FlatObservation(PoisonEnv(**on_ladder))
    observation, _ = env.reset()
    seen = [observation] + [env.step(item)[0] for item in (6, 0, 3)]
    expected = [[0, 0, 1, 0, 0], [1, 0, 1, 0, 0.5], [0, 0, 0, 1, 0], [4 / 7, 0, 0, 1, 0.5]]
    np.testing.assert_allclose(np.stack(seen), np.array(expected), rtol=1e-6)
    assert all(o in env.observation_space and o.dtype == np.float32 for o in seen)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_flat_vector_observations_equal_flat_observations(mode: str, on_ladder: Arguments) -> None:
    native = FlatVectorObservation(PoisonVectorEnv(num_envs=2, autoreset_mode=mode, **on_ladder))
    sync = gym.vector.SyncVectorEnv(
        [lambda: FlatObservation(PoisonEnv(**on_ladder))] * 2, autoreset_mode=mode
    )
    assert native.single_observation_space == sync.single_observation_space
    assert native.observation_space == sync.observation_space
    assert data_equivalence(native.reset(seed=0), sync.reset(seed=0), exact=True)
    for step in range(4 if mode == "Disabled" else 9):
        actions = np.array([step % 7, 6])
        assert data_equivalence(native.step(actions), sync.step(actions), exact=True)


@pytest.mark.parametrize(
    ("wrap", "victim"),
    [(FlatObservation, "ItemPop"), (GroupedActions, "BPR"), (lambda env: env, "PMF")],
)
@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version.*:UserWarning")
def test_wrapped_environments_pass_the_checkers(
    wrap: Callable[[Any], Any], victim: str, small: Small
) -> None:
    env = wrap(gym.make(f"RecPoison-{victim}-v0", **small(victim)))
    check_env(env, skip_render_check=True)
    sb3_check_env(env)


def test_the_spec_of_a_wrapped_environment_makes_it_again(small: Small) -> None:
    arguments = small("ItemPop", dataset="synthetic")
    grouped: gym.Env[Any, Any] = GroupedActions(gym.make("RecPoison-ItemPop-v0", **arguments), 4)
    env = FlatObservation(grouped)
    assert env.spec is not None
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.action_space == env.action_space
    assert again.observation_space == env.observation_space


@pytest.mark.parametrize("wrapper", [FlatObservation, GroupedActions, BlackBox])
def test_other_environments_are_refused(wrapper: Callable[[Any], Any]) -> None:
    with pytest.raises(ArgumentError, match="env must be a PoisonEnv"):
        wrapper(gym.make("CartPole-v1"))


@pytest.mark.parametrize("wrapper", [FlatVectorObservation, GroupedVectorActions])
def test_other_vector_environments_are_refused(wrapper: Callable[[Any], Any]) -> None:
    with pytest.raises(ArgumentError, match="env must be a PoisonVectorEnv"):
        wrapper(gym.make_vec("CartPole-v1", vectorization_mode="sync"))


# -- the black box -------------------------------------------------------------------------------


def test_a_black_box_plays_like_what_is_inside(on_ladder: Arguments) -> None:
    inside, box = (
        PoisonEnv(**on_ladder),
        BlackBox(gym.wrappers.OrderEnforcing(PoisonEnv(**on_ladder))),
    )
    assert data_equivalence(inside.reset(seed=1), box.reset(seed=1), exact=True)
    for item in (6, 1, 6, 2):
        assert data_equivalence(inside.step(item), box.step(item), exact=True)
    assert box.n_queries == 1
    assert data_equivalence(box.last_profiles, inside.last_profiles)
    assert box.item_popularity.tolist() == inside.item_popularity.tolist()
    assert box.target_items.tolist() == [6]
    assert (box.budget, box.goal) == (inside.budget, inside.goal)
    assert box.action_masks().all()


def reachable(start: object, depth: int) -> list[object]:
    """Return the values of all attributes, and of theirs, as an attacker could look them up."""
    found: list[object] = []
    for name in dir(start):
        try:
            value = getattr(start, name)
        except (AttributeError, KnowledgeError, TypeError):  # TypeError: slots in Python 3.11.2
            continue
        if not name.startswith("__") or name == "__self__":
            found.append(value)
            if depth > 1 and not isinstance(value, np.ndarray | np.random.Generator | int | str):
                found += reachable(value, depth - 1)
    return found


def test_no_attribute_of_a_black_box_leads_to_the_platform(on_ladder: Arguments) -> None:
    env = PoisonEnv(**on_ladder)
    box = BlackBox(env)
    box.reset(seed=0)
    secrets = (env, env.simulator, env.simulator.victim, env.simulator.log, env._episodes)
    assert any(value is env.simulator for value in reachable(env, 2))  # the search does find things
    assert not any(value is secret for value in reachable(box, 3) for secret in secrets)
    assert box.unwrapped is box
    assert box.spec is None


def test_a_black_box_refuses_to_be_opened(on_ladder: Arguments) -> None:
    wrapped = gym.wrappers.RecordEpisodeStatistics(BlackBox(PoisonEnv(**on_ladder)))
    with pytest.raises(KnowledgeError, match="the simulator is the platform's side"):
        wrapped.get_wrapper_attr("simulator")
    with pytest.raises(KnowledgeError, match="cannot be copied"):
        copy.deepcopy(wrapped)


def test_other_wrappers_and_checkers_work_around_a_black_box(on_ladder: Arguments) -> None:
    box = BlackBox(PoisonEnv(**on_ladder))
    check_env(box, skip_render_check=True)
    sb3_check_env(box)
    grouped: gym.Env[Any, Any] = GroupedActions(box, n_bands=2)
    env: gym.Env[Any, Any] = gym.wrappers.RecordEpisodeStatistics(FlatObservation(grouped))
    env.reset(seed=0)
    for _ in range(4):
        *_, info = env.step(np.array([0, 0]))
    assert info["episode"]["r"] == 4.0
