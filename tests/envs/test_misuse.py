"""Whatever is done wrong, the message says what, with which value, and what would be right."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence

from recattack_gym.core import ArgumentError, DatasetNotFoundError, StateError, UnknownNameError
from recattack_gym.envs import PoisonEnv, PoisonVectorEnv

Arguments = dict[str, Any]
Wrong = Any  # what no annotation allows

WRONG_ARGUMENTS: list[tuple[dict[str, object], type[Exception], str]] = [
    ({"victim": "BRP"}, UnknownNameError, r"unknown victim 'BRP'; did you mean 'BPR'\?"),
    ({"victim": 3}, ArgumentError, "victim must be a name or a subclass of Victim, got 3"),
    ({"victim": dict}, ArgumentError, "victim must be a name or a subclass of Victim"),
    ({"dataset": "steem"}, UnknownNameError, r"unknown dataset 'steem'; did you mean 'steam'\?"),
    ({"dataset": [1, 2]}, ArgumentError, "dataset must be a name, a Dataset or Interactions"),
    ({"protocol": "poisonrec"}, ArgumentError, "protocol goes with a dataset's name"),
    ({"n_fake_users": 0}, ArgumentError, "n_fake_users must be a whole number >= 1, got 0"),
    ({"n_fake_users": 2.0}, ArgumentError, "n_fake_users must be a whole number"),
    ({"n_fake_users": True}, ArgumentError, "n_fake_users must be a whole number"),
    ({"profile_size": -3}, ArgumentError, "profile_size must be a whole number >= 1, got -3"),
    ({"profile_size": "20"}, ArgumentError, "profile_size must be a whole number"),
    ({"targets": 0}, ArgumentError, "targets must be a whole number >= 1, got 0"),
    ({"targets": 100}, ArgumentError, "targets must be at most 6 new items, got 100"),
    ({"targets": [2, 2]}, ArgumentError, "targets must be one or more distinct item ids"),
    ({"targets": [6]}, ArgumentError, r"targets must lie in \[0, 6\), got 6 at index \(0,\)"),
    ({"targets": []}, ArgumentError, "targets must be one or more distinct item ids"),
    ({"targets": "all"}, ArgumentError, "targets must be a number of new items or a sequence"),
    ({"direction": "up"}, ArgumentError, "direction must be one of 'push', 'nuke', got 'up'"),
    ({"k": 0}, ArgumentError, "k must be a whole number >= 1, got 0"),
    ({"n_candidates": 5000}, ArgumentError, "n_candidates must be at most"),
    ({"n_candidates": -1}, ArgumentError, "n_candidates must be a whole number >= 1, got -1"),
    ({"n_candidates": 1}, ArgumentError, "n_candidates must be > 1 .* got 1"),
    ({"targets": [[1], [1, 2]]}, ArgumentError, "targets must be an array of whole numbers"),
    ({"victim_config": "quick"}, ArgumentError, "config must be a ItemPopConfig, a mapping"),
    ({"device": "cudda"}, ArgumentError, "device must be 'cpu', 'cuda', .* got 'cudda'"),
    ({"device": "cuda:999"}, ArgumentError, "device 'cuda:999' is not available on this machine"),
    ({"data_dir": 3}, ArgumentError, "data_dir must be a path or None, got 3"),
    ({"cache_dir": 3}, ArgumentError, "cache_dir must be a path or None, got 3"),
    ({"resample_candidates": 1}, ArgumentError, "resample_candidates must be True or False, got 1"),
    ({"retrain": "warm"}, ArgumentError, "retrain must be one of 'finetune', 'full', got 'warm'"),
    ({"reward": "recnum"}, UnknownNameError, r"unknown reward 'recnum'; did you mean 'rec_num'\?"),
    ({"reward": None}, ArgumentError, "reward must be a name or a Reward function, got None"),
    ({"victim_config": {"size": 3}}, UnknownNameError, "unknown setting of ItemPop 'size'"),
    (
        {"victim": "BPR", "victim_config": {"epoch": 3}},
        UnknownNameError,
        r"unknown setting of BPR 'epoch'; did you mean 'epochs'\?",
    ),
    ({"platform_seed": -1}, ArgumentError, "platform_seed must be a whole number >= 0, got -1"),
    ({"platform_seed": None}, ArgumentError, "platform_seed must be a whole number >= 0, got None"),
    ({"render_mode": "text"}, ArgumentError, "render_mode must be None or one of 'human'"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG_ARGUMENTS)
@pytest.mark.parametrize("env_class", [PoisonEnv, PoisonVectorEnv])
def test_a_wrong_argument_is_named(
    env_class: Callable[..., object],
    wrong: dict[str, object],
    error: type[Exception],
    message: str,
    on_ladder: Arguments,
) -> None:
    with pytest.raises(error, match=message):
        env_class(**{**on_ladder, **wrong})


def test_a_dataset_that_is_not_here_says_where_to_put_it(
    on_ladder: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RECATTACK_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DatasetNotFoundError, match="steam"):
        PoisonEnv(**{**on_ladder, "dataset": "steam", "data_dir": tmp_path})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_envs": 0}, "num_envs must be a whole number >= 1, got 0"),
        ({"num_envs": 1.5}, "num_envs must be a whole number"),
        (
            {"autoreset_mode": "Never"},
            "autoreset_mode must be one of 'NextStep', 'SameStep', 'Disa",
        ),
        ({"autoreset_mode": None}, "autoreset_mode must be one of .*, got None"),
    ],
)
def test_a_wrong_argument_of_the_vector_environment_is_named(
    wrong: dict[str, object], message: str, on_ladder: Arguments
) -> None:
    with pytest.raises(ArgumentError, match=message):
        PoisonVectorEnv(**{**on_ladder, **wrong})


@pytest.mark.parametrize("paid", [np.zeros(2), 3.0, [float("nan")]], ids=repr)
def test_a_reward_function_that_pays_nonsense_is_named(paid: object, on_ladder: Arguments) -> None:
    env = PoisonEnv(**on_ladder, reward=lambda *_, **__: paid)  # type: ignore[arg-type]  # wrong on purpose
    env.reset()
    for _ in range(3):
        env.step(6)
    with pytest.raises(ArgumentError, match="reward must return one finite number per attack"):
        env.step(6)
    assert env.n_queries == 0


def test_an_unknown_argument_is_refused_by_name(on_ladder: Arguments) -> None:
    with pytest.raises(TypeError, match="n_fakes"):
        gym.make("RecPoison-ItemPop-v0", **on_ladder, n_fakes=3)
    with pytest.raises(TypeError, match="n_fakes"):
        gym.make_vec("RecPoison-ItemPop-v0", **on_ladder, n_fakes=3)


def test_an_unknown_id_suggests_the_nearest() -> None:
    with pytest.raises(gym.error.NameNotFound, match="RecPoison-NGCF"):
        gym.make("RecPoison-NGCE-v0")


# -- actions -------------------------------------------------------------------------------------

WRONG_ACTIONS: list[object] = [
    -1,
    7,
    1.0,
    np.float64(2.0),
    float("nan"),
    True,
    np.True_,
    "3",
    None,
    [3],
    (1, 2),
    np.array([3]),
    np.array(3.0),
    2**70,
    1 + 0j,
]


@pytest.mark.parametrize("action", WRONG_ACTIONS, ids=repr)
def test_a_wrong_action_is_refused_and_changes_nothing(action: Wrong, on_ladder: Arguments) -> None:
    env, untouched = PoisonEnv(**on_ladder), PoisonEnv(**on_ladder)
    for each in (env, untouched):
        each.reset(seed=0)
        each.step(6)
    with pytest.raises(
        ArgumentError, match=r"action must be one item id, a whole number in \[0, 7\)"
    ):
        env.step(action)
    for item in (6, 0, 6):
        assert data_equivalence(env.step(item), untouched.step(item), exact=True)


@pytest.mark.parametrize(
    "action", [6, np.int64(6), np.int32(6), np.uint8(6), np.array(6)], ids=repr
)
def test_every_kind_of_whole_number_is_an_action(action: Wrong, on_ladder: Arguments) -> None:
    env = PoisonEnv(**on_ladder)
    env.reset()
    assert env.step(action)[0]["clicks"].tolist() == [6, 7]


@pytest.mark.parametrize(
    "actions",
    [
        [0, 7],
        [-1, 0],
        [0.0, 1.0],
        [float("nan"), 0],
        [True, False],
        [0],
        [0, 1, 2],
        [[0, 1]],
        3,
        None,
        ["0", "1"],
    ],
    ids=repr,
)
def test_wrong_vector_actions_are_refused_and_change_nothing(
    actions: Wrong, on_ladder: Arguments
) -> None:
    env = PoisonVectorEnv(num_envs=2, **on_ladder)
    untouched = PoisonVectorEnv(num_envs=2, **on_ladder)
    for each in (env, untouched):
        each.reset(seed=0)
        each.step(np.array([6, 0]))
    with pytest.raises(ArgumentError, match="actions must"):
        env.step(actions)
    for item in (6, 0, 6):
        right = np.array([item, 6])
        assert data_equivalence(env.step(right), untouched.step(right), exact=True)


# -- states --------------------------------------------------------------------------------------


def test_a_step_before_the_first_reset_says_so(on_ladder: Arguments) -> None:
    with pytest.raises(StateError, match=r"before the first reset: call reset\(\) first"):
        PoisonEnv(**on_ladder).step(0)
    with pytest.raises(StateError, match=r"before the first reset: call reset\(\) first"):
        PoisonVectorEnv(**on_ladder).step(np.array([0]))


def test_a_step_after_the_end_says_so_and_the_next_reset_works(on_ladder: Arguments) -> None:
    env = PoisonEnv(**on_ladder)
    env.reset()
    for _ in range(4):
        env.step(6)
    with pytest.raises(
        StateError, match=r"the attack is over \(all 4 clicks are spent\): call reset"
    ):
        env.step(6)
    assert env.n_queries == 1
    env.reset()
    assert env.step(6)[0]["clicks"].tolist() == [6, 7]


@pytest.mark.parametrize("seed", [-1, 1.0, "0", True, [1]], ids=repr)
def test_a_wrong_seed_is_refused_and_the_attack_goes_on(seed: Wrong, on_ladder: Arguments) -> None:
    env = PoisonEnv(**on_ladder)
    env.reset()
    env.step(6)
    with pytest.raises(ArgumentError, match="seed must be a whole number >= 0"):
        env.reset(seed=seed)
    assert env.step(6)[0]["fake_user"] == 1


@pytest.mark.parametrize("options", [{"reset_mask": None}, {"seed": 3}], ids=repr)
def test_unknown_options_are_refused(options: Wrong, on_ladder: Arguments) -> None:
    with pytest.raises(UnknownNameError, match="unknown option of reset"):
        PoisonEnv(**on_ladder).reset(options=options)


def test_options_that_are_no_dict_are_refused(on_ladder: Arguments) -> None:
    with pytest.raises(ArgumentError, match="options must be a dict or None, got 'fast'"):
        PoisonEnv(**on_ladder).reset(options="fast")  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (-1, "seed must be a whole number >= 0, got -1"),
        ([1], "seed must have one entry per copy, 2, got 1"),
        ([1, 2.0], r"seed\[1\] must be a whole number >= 0"),
        ("12", "seed must be a whole number >= 0"),
        (True, "seed must be a whole number >= 0"),
    ],
)
def test_wrong_seeds_of_copies_are_refused(seed: Wrong, message: str, on_ladder: Arguments) -> None:
    envs = PoisonVectorEnv(num_envs=2, **on_ladder)
    envs.reset(seed=0)
    before = [rng.bit_generator.state for rng in envs.np_random]
    with pytest.raises(ArgumentError, match=message):
        envs.reset(seed=seed)
    assert [rng.bit_generator.state for rng in envs.np_random] == before


@pytest.mark.parametrize(
    "mask",
    [[True, False], np.array([1, 0]), np.array([True]), np.array([False, False]), "first"],
    ids=repr,
)
def test_a_wrong_reset_mask_is_refused(mask: object, on_ladder: Arguments) -> None:
    envs = PoisonVectorEnv(num_envs=2, **on_ladder)
    envs.reset()
    with pytest.raises(
        ArgumentError, match=r"options\['reset_mask'\] must be a bool array of shape"
    ):
        envs.reset(options={"reset_mask": mask})


def test_the_first_reset_must_reset_every_copy(on_ladder: Arguments) -> None:
    envs = PoisonVectorEnv(num_envs=2, **on_ladder)
    with pytest.raises(StateError, match="the first reset must reset every copy"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    envs.reset()


def test_an_unknown_option_of_the_vector_environment_is_refused(on_ladder: Arguments) -> None:
    envs = PoisonVectorEnv(num_envs=2, **on_ladder)
    with pytest.raises(UnknownNameError, match="did you mean 'reset_mask'"):
        envs.reset(options={"reset_masks": np.array([True, False])})
