"""A view looks like the RecPoison environments to Stable-Baselines3, and its budget holds."""

from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor

from agents.sb3 import ClickSequenceExtractor, make_sb3_vec_env
from agents.sb3.view_env import ViewVecEnv
from agents.search import Trials
from recattack_gym.core import AttackBudget, AttackGoal, StateError
from recattack_gym.core.attack import Direction
from recattack_gym.core.groups import group_items
from recattack_gym.simulator import PlatformView
from tests.agents.stub_view import StubView, make_view


class CountingView(StubView):
    """RecNum is how often the first target was clicked."""

    def query(self, profiles: NDArray[np.int64]) -> NDArray[np.int64]:
        self.n_queries += len(profiles)
        counts = (profiles == self.goal.target_items[0]).sum(axis=(1, 2))
        return np.asarray(counts, dtype=np.int64)


def counting_view(direction: Direction = "push") -> CountingView:
    stub = make_view(n_items=5, n_targets=2, n_fake_users=2, profile_size=2)
    goal = AttackGoal(target_items=(5, 6), direction=direction)
    return CountingView(stub.clean_log, goal, stub.budget)


def play(envs: ViewVecEnv, attacks: list[list[int]]) -> tuple[Any, Any, Any, Any]:
    """Play attacks given as one list of clicks each, from a reset on; return the last step."""
    envs.reset()
    for clicks in np.array(attacks).T[:-1]:
        _, rewards, dones, infos = envs.step(clicks)
        assert not rewards.any()
        assert not dones.any()
        assert infos == [{}] * len(attacks)
    return envs.step(np.array(attacks).T[-1])


def test_it_looks_like_the_environment_of_the_same_platform() -> None:
    there = make_sb3_vec_env(
        "recattack_gym:RecPoison-ItemPop-v0",
        3,
        seed=0,
        monitor=False,
        n_fake_users=2,
        profile_size=3,
    )
    native: Any = there
    view = PlatformView(
        native.env.unwrapped.simulator, AttackBudget(n_fake_users=2, profile_size=3)
    )
    here = ViewVecEnv(view, 3, Trials(view, 6))
    assert here.observation_space == there.observation_space
    assert here.action_space == there.action_space
    first: Any = here.reset()
    assert data_equivalence(first, dict(there.reset()), exact=True)  # type: ignore[arg-type]  # SB3
    rng = np.random.default_rng(0)
    for _ in range(12):
        actions = rng.integers(here.action_space.n, size=3)  # type: ignore[attr-defined]  # Discrete
        obs, _, dones, infos = here.step(actions)
        expected_obs, _, expected_dones, expected_infos = there.step(actions)
        assert data_equivalence(obs, dict(expected_obs), exact=True)  # type: ignore[arg-type]  # SB3
        assert dones.tolist() == expected_dones.tolist()
        for info, expected in zip(infos, expected_infos, strict=True):
            assert info.get("rec_num", 0) == (expected["rec_num"] if dones[0] else 0)
            assert data_equivalence(
                info.get("terminal_observation"), expected.get("terminal_observation"), exact=True
            )
    assert view.n_queries == 6


def test_observations_are_not_changed_by_later_steps() -> None:
    view = counting_view()
    envs = ViewVecEnv(view, 1, Trials(view, 1))
    first: Any = envs.reset()
    envs.step(np.array([3]))
    assert first["clicks"].tolist() == [[7, 7]]


def test_rewards_are_answers_relative_to_all_answers_so_far() -> None:
    view = counting_view()
    envs = ViewVecEnv(view, 2, Trials(view, 4))
    _, rewards, dones, infos = play(envs, [[5, 5, 5, 0], [5, 0, 0, 0]])
    assert rewards.tolist() == [1.0, -1.0]  # 3 and 1: mean 2, standard deviation 1
    assert dones.all()
    assert [info["rec_num"] for info in infos] == [3, 1]
    _, rewards, _, _ = play(envs, [[5, 5, 5, 5], [0, 5, 5, 6]])
    # 3, 1, 4, 2: mean 2.5, variance 1.25
    assert rewards == pytest.approx([1.5 / np.sqrt(1.25), -0.5 / np.sqrt(1.25)])


def test_demotion_pays_for_less() -> None:
    view = counting_view("nuke")
    envs = ViewVecEnv(view, 2, Trials(view, 2))
    _, rewards, _, infos = play(envs, [[5, 5, 5, 0], [5, 0, 0, 0]])
    assert rewards.tolist() == [-1.0, 1.0]
    assert [info["rec_num"] for info in infos] == [3, 1]


def test_equal_answers_are_paid_nothing() -> None:
    view = make_view(n_fake_users=1, profile_size=2)
    envs = ViewVecEnv(view, 3, Trials(view, 3))
    assert play(envs, [[1, 2], [3, 4], [5, 6]])[1].tolist() == [0.0, 0.0, 0.0]


def test_the_budget_is_never_exceeded() -> None:
    view = counting_view()
    trials = Trials(view, 5)
    envs = ViewVecEnv(view, 3, trials)
    play(envs, [[0, 0, 0, 0]] * 3)
    _, rewards, _, infos = play(envs, [[5, 5, 0, 0], [0, 0, 0, 0], [5, 5, 5, 5]])
    assert ["rec_num" in info for info in infos] == [True, True, False]
    assert rewards[2] == 0.0
    assert (view.n_queries, trials.n_left, trials.best_rec_num) == (5, 0, 2)
    with pytest.raises(StateError, match="no query is left"):
        play(envs, [[0, 0, 0, 0]] * 3)
    assert view.n_queries == 5


def test_cells_become_items() -> None:
    view = counting_view()
    items = group_items(view.item_popularity, np.array(view.goal.target_items))
    envs = ViewVecEnv(view, 1, Trials(view, 1), items)
    assert envs.action_space.shape == (2,)
    envs.reset()
    observation: Any = envs.step(np.array([[0, 1]]))[0]
    assert observation["clicks"].tolist() == [[items[0, 1], 7]]
    assert items[0, 1] in view.goal.target_items


def test_any_learner_trains_on_it() -> None:
    view = counting_view()
    envs = ViewVecEnv(view, 2, Trials(view, 4))
    model = PPO(
        "MultiInputPolicy",
        envs,
        n_steps=envs.n_steps,
        batch_size=8,
        policy_kwargs={"features_extractor_class": ClickSequenceExtractor},
        device="cpu",
    )
    model.learn(16)
    assert view.n_queries == 4


def test_attributes_are_shared_and_cannot_be_set() -> None:
    view = counting_view()
    envs = ViewVecEnv(view, 2, Trials(view, 4))
    assert envs.get_attr("n_steps") == [4, 4]
    assert envs.get_attr("goal", indices=[1]) == [view.goal]
    assert envs.env_is_wrapped(Monitor) == [False, False]
    assert len(envs.env_method("reset", indices=0)) == 1
    with pytest.raises(StateError, match="cannot change copies of a view"):
        envs.set_attr("goal", None)
    with pytest.raises(StateError, match="step_wait was called without actions"):
        envs.step_wait()
    envs.close()
