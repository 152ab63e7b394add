"""The native vector environment equals M single environments in every mode, and asks once for all."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from recattack_gym.envs import PoisonEnv, PoisonVectorEnv

Arguments = dict[str, Any]
Small = Callable[..., Arguments]
MODES = [mode.value for mode in AutoresetMode]
M = 3


def both(mode: str, arguments: Arguments) -> tuple[PoisonVectorEnv, SyncVectorEnv]:
    native = PoisonVectorEnv(num_envs=M, autoreset_mode=mode, **arguments)
    sync = SyncVectorEnv([lambda: PoisonEnv(**arguments)] * M, autoreset_mode=AutoresetMode(mode))
    return native, sync


def reset_some(mask: NDArray[np.bool_]) -> dict[str, Any]:
    return {"reset_mask": mask.copy()}


def through_pickle(envs: PoisonVectorEnv) -> PoisonVectorEnv:
    copied: PoisonVectorEnv = pickle.loads(pickle.dumps(envs))  # noqa: S301  # our own bytes
    return copied


@pytest.mark.parametrize("is_resampled", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_equals_single_environments_over_several_attacks(
    mode: str, is_resampled: bool, small: Small
) -> None:
    arguments = small("PMF", victim="PMF", resample_candidates=is_resampled)
    native, sync = both(mode, arguments)
    assert native.observation_space == sync.observation_space
    assert native.action_space == sync.action_space
    assert native.metadata == sync.metadata
    assert data_equivalence(native.reset(seed=7), sync.reset(seed=7), exact=True)
    rng = np.random.default_rng(1)
    for step in range(40):
        actions = rng.integers(42, size=M)
        here, there = native.step(actions), sync.step(actions)
        assert data_equivalence(here, there, exact=True), step
        over = here[2]
        if mode == "Disabled" and over.any():
            starts = native.reset(options=reset_some(over)), sync.reset(options=reset_some(over))
            assert data_equivalence(*starts, exact=True)
        elif step == 9:  # from here on the copies end at different steps
            mask = np.array([True, False, True])
            seeds: Any = [4, 5, None]
            starts = (
                native.reset(seed=seeds, options=reset_some(mask)),
                sync.reset(seed=seeds, options=reset_some(mask)),
            )
            assert data_equivalence(*starts, exact=True)
    assert native.np_random_seed == sync.np_random_seed
    assert [rng.bit_generator.state for rng in native.np_random] == [
        rng.bit_generator.state for rng in sync.np_random
    ]
    assert native.n_queries.tolist() == list(sync.get_attr("n_queries"))
    assert data_equivalence(native.last_profiles, np.stack(sync.get_attr("last_profiles")))


def test_all_copies_that_end_are_evaluated_in_one_call(
    on_ladder: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    envs = PoisonVectorEnv(num_envs=5, **on_ladder)
    calls: list[tuple[int, ...]] = []
    exposure = envs.simulator.exposure

    def spy(
        profiles: NDArray[np.int64], rng: np.random.Generator | None = None
    ) -> NDArray[np.int64]:
        calls.append(profiles.shape)
        return exposure(profiles, rng=rng)

    monkeypatch.setattr(envs.simulator, "exposure", spy)
    envs.reset()
    for _ in range(4):
        envs.step(np.full(5, 6))
    assert calls == [(5, 2, 2)]


def test_copies_with_equal_clicks_get_equal_rewards(small: Small) -> None:
    envs = PoisonVectorEnv(victim="BPR", num_envs=4, **small("BPR"))
    envs.reset(seed=0)
    for item in (40, 41, 40, 3, 4, 40):
        _, rewards, _, _, _ = envs.step(np.full(4, item))
    assert len(set(rewards.tolist())) == 1


def test_the_waiting_step_ignores_even_an_impossible_action(on_ladder: Arguments) -> None:
    envs = PoisonVectorEnv(num_envs=2, autoreset_mode="NextStep", **on_ladder)
    envs.reset()
    for _ in range(4):
        envs.step(np.array([6, 6]))
    observation, rewards, terminated, _, _ = envs.step(np.array([-5, 999]))
    assert observation["clicks"].tolist() == [[7, 7], [7, 7]]
    assert not rewards.any()
    assert not terminated.any()


def test_a_finished_copy_refuses_clicks_until_it_is_reset(on_ladder: Arguments) -> None:
    envs = PoisonVectorEnv(num_envs=2, autoreset_mode="Disabled", **on_ladder)
    envs.reset()
    for _ in range(4):
        envs.step(np.array([6, 6]))
    with pytest.raises(RuntimeError, match=r"the attack is over .*: call reset\(\) first"):
        envs.step(np.array([6, 6]))
    mask = np.array([True, False])
    options = reset_some(mask)
    envs.reset(options=options)
    assert options["reset_mask"] is not None  # left to wrappers that read it after us
    with pytest.raises(RuntimeError, match="the attack is over"):
        envs.step(np.array([6, 6]))


def test_last_profiles_of_copies_without_a_finished_attack_are_padded(on_ladder: Arguments) -> None:
    envs = PoisonVectorEnv(num_envs=2, autoreset_mode="Disabled", **on_ladder)
    assert envs.last_profiles is None
    envs.reset()
    envs.step(np.array([6, 1]))
    envs.reset(options=reset_some(np.array([False, True])))
    for _ in range(3):
        envs.step(np.array([6, 1]))
    assert envs.last_profiles is not None
    assert envs.last_profiles.tolist() == [[[6, 6], [6, 6]], [[7, 7], [7, 7]]]
    envs.n_queries[:] = 7  # a copy: the count cannot be changed
    assert envs.n_queries.tolist() == [1, 0]


def test_masks_have_one_row_per_copy(on_ladder: Arguments) -> None:
    masks = PoisonVectorEnv(num_envs=2, **on_ladder).action_masks()
    assert masks.shape == (2, 7)
    assert masks.all()


def test_the_mode_is_told_without_touching_the_class(on_ladder: Arguments) -> None:
    envs = PoisonVectorEnv(autoreset_mode=AutoresetMode.DISABLED, **on_ladder)
    assert envs.metadata["autoreset_mode"] is envs.autoreset_mode is AutoresetMode.DISABLED
    assert PoisonVectorEnv.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle])
def test_a_copy_goes_on_like_the_original(
    duplicate: Callable[[PoisonVectorEnv], PoisonVectorEnv], small: Small
) -> None:
    envs = PoisonVectorEnv(victim="PMF", num_envs=M, **small("PMF", resample_candidates=True))
    envs.reset(seed=1)
    envs.step(np.array([1, 2, 3]))
    twin = duplicate(envs)
    for _ in range(8):
        assert data_equivalence(
            envs.step(np.array([40, 2, 41])), twin.step(np.array([40, 2, 41])), exact=True
        )


@pytest.mark.parametrize("mode", MODES)
def test_episode_statistics_of_gymnasium_count_our_episodes(
    mode: str, on_ladder: Arguments
) -> None:
    envs = gym.wrappers.vector.RecordEpisodeStatistics(
        PoisonVectorEnv(num_envs=2, autoreset_mode=mode, **on_ladder)
    )
    envs.reset()
    for _ in range(4):
        *_, info = envs.step(np.array([6, 0]))
    statistics = info["episode"]
    assert statistics["r"].tolist() == [4.0, 0.0]
    assert statistics["l"].tolist() == [4, 4]


def test_a_step_whose_evaluation_fails_has_happened_in_no_copy(
    on_ladder: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    envs = PoisonVectorEnv(num_envs=2, autoreset_mode="Disabled", **on_ladder)
    envs.reset()
    for _ in range(2):
        envs.step(np.array([6, 6]))
    envs.reset(options=reset_some(np.array([False, True])))
    before = envs.step(np.array([6, 2]))  # the first copy has one click left, the second three

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(envs.simulator, "exposure", fail)
        with pytest.raises(MemoryError):
            envs.step(np.array([0, 0]))
    assert data_equivalence(envs._episodes.observe(), before[0], exact=True)
    observation, rewards, terminated, *_ = envs.step(np.array([6, 3]))
    assert observation["clicks"].tolist() == [[6, 6], [7, 7]]
    assert envs._episodes.clicks[1].tolist() == [[2, 3], [7, 7]]
    assert (rewards.tolist(), terminated.tolist()) == ([4.0, 0.0], [True, False])
