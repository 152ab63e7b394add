"""The course of an attack, on a ladder of items where every number can be derived by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from numpy.typing import NDArray

from recattack_gym.core import FakeProfiles
from recattack_gym.envs import PoisonEnv

Arguments = dict[str, Any]
Small = Callable[..., Arguments]
TARGET = 6


def attack(env: PoisonEnv, *item_ids: int, seed: int | None = None) -> tuple[float, dict[str, Any]]:
    """Play one episode; return its reward and its last info."""
    env.reset(seed=seed)
    for item in item_ids:
        _, reward, _, _, info = env.step(np.int64(item))
    return reward, info


def test_observations_follow_the_fake_users(on_ladder: Arguments) -> None:
    env = PoisonEnv(**on_ladder)
    observation, _ = env.reset()
    seen = [observation] + [env.step(np.int64(item))[0] for item in (3, 0, 6, 1)]
    assert [(o["clicks"].tolist(), int(o["fake_user"]), int(o["step"])) for o in seen] == [
        ([7, 7], 0, 0),
        ([3, 7], 0, 1),
        ([7, 7], 1, 0),
        ([6, 7], 1, 1),
        ([6, 1], 1, 1),  # over: the last fake user with all of its clicks
    ]
    assert all(o in env.observation_space for o in seen)


@pytest.mark.parametrize("clicks_on_target", range(5))
def test_one_more_user_is_shown_the_target_per_click_on_it(
    on_ladder: Arguments, clicks_on_target: int
) -> None:
    env = PoisonEnv(**on_ladder)
    items = [TARGET] * clicks_on_target + [0] * (4 - clicks_on_target)
    reward, info = attack(env, *items)
    assert reward == clicks_on_target
    assert {name: value for name, value in info.items() if name != "target_exposure"} == {
        "rec_num": clicks_on_target,
        "max_rec_num": 4,
        "clean_rec_num": 0,
        "n_queries": 1,
    }
    assert info["target_exposure"].tolist() == [clicks_on_target]


def test_normalized_reward_is_the_share_of_what_can_be_gained(on_ladder: Arguments) -> None:
    env = PoisonEnv(**on_ladder, reward="normalized")
    assert attack(env, TARGET, TARGET, TARGET, 0)[0] == 0.75


def test_a_reward_function_of_ones_own_is_paid(on_ladder: Arguments) -> None:
    env = PoisonEnv(**on_ladder, reward=lambda rec_num, **_: -2.5 * rec_num)
    assert attack(env, TARGET, TARGET, 0, 0)[0] == -5.0


@pytest.mark.parametrize(("reward", "paid"), [("rec_num", [3.0, 4.0]), ("normalized", [0.0, 1.0])])
def test_a_nuke_is_paid_for_what_the_target_loses(
    on_ladder: Arguments, reward: str, paid: list[float]
) -> None:
    # Item 1 is shown to user 3 alone, until item 2 has two more clicks and overtakes it: 4 > 3.
    env = PoisonEnv(**{**on_ladder, "targets": [1], "direction": "nuke", "reward": reward})
    assert env.target_items.tolist() == [1]
    assert [attack(env, 0, 0, 0, 0)[0], attack(env, 2, 2, 0, 0)[0]] == paid


def test_every_attack_starts_from_the_clean_platform(on_ladder: Arguments) -> None:
    env = PoisonEnv(**on_ladder)
    rewards = [attack(env, *items)[0] for items in ([6, 6, 6, 6], [0, 0, 0, 0], [6, 0, 0, 0])]
    assert rewards == [4.0, 0.0, 1.0]


def test_a_new_attack_shows_nothing_of_the_last_ones_result(on_ladder: Arguments) -> None:
    env = PoisonEnv(**on_ladder)
    attack(env, TARGET, TARGET, TARGET, TARGET)
    for info in (env.reset()[1], env.step(np.int64(0))[4]):
        assert info["rec_num"] == -1
        assert info["target_exposure"].tolist() == [0]


def test_queries_are_counted_and_never_forgotten(on_ladder: Arguments) -> None:
    env = PoisonEnv(**on_ladder)
    assert [attack(env, 0, 0, 0, 0, seed=1)[1]["n_queries"] for _ in range(3)] == [1, 2, 3]
    env.reset(seed=1)
    env.step(np.int64(0))
    assert (
        env.reset(seed=1)[1]["n_queries"] == env.n_queries == 3
    )  # an unfinished attack costs none


def test_last_profiles_are_those_of_the_last_finished_attack(on_ladder: Arguments) -> None:
    env = PoisonEnv(**on_ladder)
    assert env.last_profiles is None
    attack(env, 6, 1, 2, 3)
    env.reset()
    env.step(np.int64(5))
    assert env.last_profiles is not None
    assert env.last_profiles.tolist() == [[6, 1], [2, 3]]
    assert env.simulator.rec_num(FakeProfiles(env.last_profiles)).tolist() == [1]
    with pytest.raises(ValueError, match="read-only"):
        env.last_profiles[0, 0] = 0


def test_what_never_changes_is_a_read_only_attribute(on_ladder: Arguments) -> None:
    env = PoisonEnv(**on_ladder)
    assert env.item_popularity.tolist() == [4, 3, 2, 1, 0, 0, 0]
    assert env.target_items.tolist() == [TARGET]
    assert (env.budget.n_fake_users, env.budget.profile_size) == (2, 2)
    assert (env.goal.target_items, env.goal.direction) == ((TARGET,), "push")
    for array in (env.item_popularity, env.target_items):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 9


def test_returned_arrays_are_the_callers_to_change(on_ladder: Arguments) -> None:
    env = PoisonEnv(**on_ladder)
    observation, info = env.reset()
    observation["clicks"][:] = 3
    info["target_exposure"][:] = 3
    observation, _, _, _, info = env.step(np.int64(5))
    assert observation["clicks"].tolist() == [5, 7]
    assert info["target_exposure"].tolist() == [0]
    env.action_masks()[:] = False
    assert env.action_masks().all()
    assert env.action_masks().shape == (7,)


def test_a_reset_in_mid_attack_drops_the_clicks(on_ladder: Arguments) -> None:
    env = PoisonEnv(**on_ladder)
    env.reset()
    for _ in range(3):
        env.step(np.int64(TARGET))
    assert attack(env, 0, 0, 0, TARGET)[0] == 1.0


def test_the_seed_of_reset_does_not_change_what_equal_clicks_earn(
    small: Small,
) -> None:
    env = PoisonEnv(victim="BPR", **small("BPR"))
    rewards = {attack(env, 40, 41, 40, 3, 4, 40, seed=seed)[0] for seed in range(4)}
    assert len(rewards) == 1


def test_with_resampling_the_seed_of_reset_decides(small: Small) -> None:
    env = PoisonEnv(victim="PMF", **small("PMF", resample_candidates=True))
    results = [attack(env, 40, 41, 40, 3, 4, 40, seed=seed) for seed in (0, 1, 2, 0)]
    assert data_equivalence(results[0][1]["target_exposure"], results[3][1]["target_exposure"])
    assert len({result[1]["rec_num"] for result in results}) > 1


def test_the_platform_seed_changes_the_platform(small: Small) -> None:
    envs = [PoisonEnv(victim="PMF", **small("PMF", platform_seed=seed)) for seed in (0, 1)]
    lists = [env.simulator.candidates for env in envs]
    assert lists[0] is not None
    assert lists[0].tolist() != lists[1].tolist()  # type: ignore[union-attr]  # as above


def test_one_click_is_a_whole_attack_if_the_budget_says_so(on_ladder: Arguments) -> None:
    env = PoisonEnv(**{**on_ladder, "n_fake_users": 1, "profile_size": 1})
    env.reset()
    observation, reward, terminated, _, _ = env.step(np.int64(TARGET))
    assert (observation["clicks"].tolist(), reward, terminated) == ([TARGET], 1.0, True)


def test_an_interrupted_evaluation_can_be_repeated(
    on_ladder: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = PoisonEnv(**on_ladder)
    env.reset()
    for _ in range(3):
        env.step(np.int64(TARGET))

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(env.simulator, "exposure", interrupt)
        with pytest.raises(KeyboardInterrupt):
            env.step(np.int64(TARGET))
    assert env.n_queries == 0
    assert env.step(np.int64(TARGET))[1] == 4.0


def test_a_click_whose_evaluation_fails_has_not_happened(small: Small) -> None:
    failures = [ZeroDivisionError]

    def moody(rec_num: NDArray[np.int64], **_: object) -> NDArray[np.float64]:
        if failures:
            raise failures.pop()
        return rec_num.astype(np.float64)

    arguments = small("PMF", resample_candidates=True, reward=moody)
    env = PoisonEnv(victim="PMF", **arguments)
    env.reset(seed=5)
    for item in (40, 41, 40, 3, 4):
        before = env.step(np.int64(item))
    state = env.np_random.bit_generator.state
    with pytest.raises(ZeroDivisionError):
        env.step(np.int64(7))
    assert data_equivalence((env._observation(), env._info()), (before[0], before[4]), exact=True)
    assert env.last_profiles is None
    assert env.np_random.bit_generator.state == state
    reward, info = env.step(np.int64(40))[1::3]
    other = PoisonEnv(victim="PMF", **arguments)
    assert data_equivalence((reward, info), attack(other, 40, 41, 40, 3, 4, 40, seed=5), exact=True)
