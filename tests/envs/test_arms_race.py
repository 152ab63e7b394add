"""The arms race around environments: rounds, whose verdict counts, seeds, both classes, what is hidden."""

import copy
import inspect
import pickle
import re
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, UnknownNameError
from recattack_gym.defenses import Bagging, Screening
from recattack_gym.envs import (
    ArmsRace,
    BlackBox,
    FlatObservation,
    GroupedActions,
    PoisonEnv,
    PoisonVectorEnv,
    VectorArmsRace,
)
from recattack_gym.simulator import DefendedSimulator

Small = Callable[..., dict[str, Any]]

RACE: dict[str, Any] = {"every": 2, "detector": "degree-sad", "share": 0.05}
ADDED = {"detector_round", "detector_auc", "detector_recall", "cost", "n_genuine_flagged"}


def known() -> NDArray[np.int64]:
    """Return two attacks of three fake users who click new items only."""
    return np.array([[[41, 41], [41, 40], [40, 41]], [[40, 40], [41, 40], [40, 40]]])


def attack(env: gym.Env[Any, Any], items: list[int]) -> tuple[float, dict[str, Any]]:
    """Spend the six clicks of an attack after a plain reset."""
    env.reset()
    for item in items:
        _, reward, terminated, _, info = env.step(np.int64(item))
    assert terminated
    return float(reward), info


PLANS = [
    [40, 40, 41, 41, 40, 41],
    [3, 40, 5, 41, 7, 40],
    [1, 2, 3, 4, 40, 41],
    [40, 1, 40, 2, 41, 3],
]


def test_rounds_begin_after_so_many_attacks_and_the_verdict_is_that_of_the_round(
    small: Small,
) -> None:
    arguments = small("CoVisitation")
    env = ArmsRace(PoisonEnv(victim="CoVisitation", **arguments), **RACE)
    env.reset(seed=3)
    plain = PoisonEnv(victim="CoVisitation", **arguments)
    seen: list[list[int]] = []
    for number, plan in enumerate(PLANS + PLANS):
        reward, info = attack(env, plan)
        assert info["detector_round"] == number // 2
        profile = np.array(plan).reshape(3, 2)
        defence = env.defence
        assert defence is not None
        if number < 2:  # nobody is screened
            assert reward == attack(plain, plan)[0]
            assert (info["cost"], info["n_genuine_flagged"]) == (0, 0)
            assert (info["detector_auc"], info["detector_recall"]) == (-1, -1)
        else:
            assert defence.detector is not None
            by_hand = DefendedSimulator(
                arguments["dataset"], "CoVisitation", targets=2, k=3, n_candidates=12,
                screening=Screening(defence.detector, 0.05),
            )  # fmt: skip
            exposure, screened = by_hand.screened_exposure(profile)
            assert reward == info["rec_num"] == exposure.sum()
            assert info["clean_rec_num"] == by_hand.clean_rec_num
            assert info["cost"] == screened.n_dropped[0]
            assert info["n_genuine_flagged"] == screened.n_genuine_flagged[0]
            found = defence.visibility(profile)
            assert found is not None
            assert info["detector_auc"] == found.auc[0]
            assert info["detector_recall"] == found.recall[0]
        seen.append(plan)
    assert env.defence is not None
    assert env.defence.round == 3
    assert env.defence.n_noted == 2
    _, info = env.reset()  # and not the first click after it
    assert info["detector_round"] == env.defence.round == 4
    assert info["clean_rec_num"] == env.unwrapped.simulator.clean_rec_num  # type: ignore[attr-defined]  # PoisonEnv


def test_a_detector_learns_from_the_attacks_that_were_made(small: Small) -> None:
    env = ArmsRace(PoisonEnv(victim="ItemPop", **small("ItemPop")), **RACE)
    env.reset(seed=3)
    loud, quiet = PLANS[0], [1, 2, 3, 4, 5, 6]
    for _ in range(2):
        attack(env, loud)
    _, info = attack(env, loud)
    assert info["detector_round"] == 1
    assert info["detector_auc"] > 0.9
    assert info["cost"] > 0
    assert attack(env, quiet)[1]["detector_auc"] < info["detector_auc"]


def test_a_seed_starts_the_race_anew_and_decides_it(small: Small) -> None:
    arguments = small("BPR")
    race = {**RACE, "audit_rate": 0.5}

    def run(env: ArmsRace, seed: int) -> list[tuple[float, dict[str, Any]]]:
        env.reset(seed=seed)
        found = [attack(env, plan) for plan in PLANS]
        return [
            (r, {k: v for k, v in i.items() if k not in ("n_queries", "target_exposure")})
            for r, i in found
        ]

    env = ArmsRace(PoisonEnv(victim="BPR", **arguments), **race)
    first = run(env, 3)
    assert env.defence is not None
    assert env.defence.round == 1
    assert run(env, 3) == first
    other = ArmsRace(PoisonEnv(victim="BPR", **arguments), **race)
    assert run(other, 3) == first
    seed = env.defence.seed
    env.reset(seed=4)
    assert env.defence.round == 0
    assert env.reset()[1]["detector_round"] == 0
    assert env.defence.seed != seed


def test_without_any_seed_it_runs(small: Small) -> None:
    env = ArmsRace(PoisonEnv(victim="ItemPop", **small("ItemPop")), **RACE)
    assert env.defence is None
    for plan in PLANS:
        _, info = attack(env, plan)
    assert info["detector_round"] == 1


def test_info_has_the_same_keys_always_and_answers_at_the_end_only(small: Small) -> None:
    for more in ({}, {"known": known()}):
        env = ArmsRace(PoisonEnv(victim="ItemPop", **small("ItemPop")), **{**RACE, **more})
        _, info = env.reset(seed=0)
        keys = set(info)
        assert keys >= ADDED
        for number in range(24):
            _, _, terminated, _, info = env.step(np.int64(PLANS[0][number % 6]))
            assert set(info) == keys
            assert (info["n_genuine_flagged"] >= 0) == terminated
            assert (info["detector_auc"] >= 0) == (terminated and env.defence.detector is not None)  # type: ignore[union-attr]  # reset
            if terminated:
                _, info = env.reset()
                assert set(info) == keys
                assert (info["cost"], info["detector_auc"], info["n_genuine_flagged"]) == (
                    0,
                    -1,
                    -1,
                )


def test_what_is_known_from_the_start_screens_the_first_attack(small: Small) -> None:
    env = ArmsRace(PoisonEnv(victim="ItemPop", **small("ItemPop")), **RACE, known=known())
    env.reset(seed=0)
    _, info = attack(env, PLANS[0])
    assert info["detector_round"] == 0
    assert info["cost"] + info["n_genuine_flagged"] == 4  # 5 % of 63, rounded up


def test_the_environments_own_defense_stays(small: Small) -> None:
    env = ArmsRace(
        PoisonEnv(victim="ItemPop", **small("ItemPop", defense="popularity", reward="stealth")),
        **RACE,
    )
    env.reset(seed=0)
    for plan in PLANS:
        attack(env, plan)
    simulator = env.unwrapped.simulator  # type: ignore[attr-defined]  # of PoisonEnv
    assert [each.detector.name for each in simulator.screening] == ["popularity", "held-out"]


def test_a_black_box_does_not_show_what_the_platform_knows(small: Small) -> None:
    race = ArmsRace(PoisonEnv(victim="ItemPop", **small("ItemPop")), **RACE, known=known())
    env = BlackBox(race)
    hidden = {"detector_round", "detector_auc", "detector_recall"}
    assert not hidden & set(env.reset(seed=0)[1])
    popularity = env.item_popularity.copy()
    for plan in PLANS:
        _, info = attack(env, plan)
        assert not hidden & set(info)
        assert {"cost", "n_genuine_flagged"} < set(info)  # as behind any defence
    assert env.item_popularity.tolist() == popularity.tolist()
    assert race.defence is not None
    assert race.defence.round == 1  # and it went on behind the box
    assert not [value for value in vars(env).values() if isinstance(value, ArmsRace)]
    with pytest.raises(ArgumentError, match="env must be a PoisonEnv"):
        ArmsRace(env, **RACE)


def test_checkers_are_content_and_other_wrappers_go_around(small: Small) -> None:
    env = ArmsRace(PoisonEnv(victim="ItemPop", **small("ItemPop")), **RACE, known=known())
    with pytest.warns(UserWarning, match="different from the unwrapped version"):
        check_env(env, skip_render_check=True)
    check_env(BlackBox(env), skip_render_check=True)
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    flat = FlatObservation(ArmsRace(PoisonEnv(victim="ItemPop", **small("ItemPop")), **RACE))
    sb3.check_env(flat)
    grouped = GroupedActions(ArmsRace(PoisonEnv(victim="ItemPop", **small("ItemPop")), **RACE))
    grouped.reset(seed=0)
    assert "detector_round" in grouped.step(np.array([0, 0]))[4]


@pytest.mark.slow
def test_stable_baselines_learns_in_a_race(small: Small) -> None:
    ppo = pytest.importorskip("stable_baselines3").PPO
    race = ArmsRace(PoisonEnv(victim="ItemPop", **small("ItemPop")), **RACE)
    model = ppo("MlpPolicy", FlatObservation(race), n_steps=12, batch_size=12, seed=0, device="cpu")
    model.learn(48)
    assert race.defence is not None
    assert race.defence.round >= 3


def test_copies_and_pickles_go_on_alike(small: Small) -> None:
    env = ArmsRace(PoisonEnv(victim="BPR", **small("BPR")), **RACE)
    env.reset(seed=1)
    for plan in PLANS[:3]:
        attack(env, plan)
    twins = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]  # noqa: S301  # our own
    for plan in PLANS:
        reward, info = attack(env, plan)
        for twin in twins:
            same, told = attack(twin, plan)
            assert same == reward
            assert told["detector_auc"] == info["detector_auc"]
            assert told["cost"] == info["cost"]


def test_one_copy_of_the_vector_environment_is_the_single_one(small: Small) -> None:
    arguments = small("BPR")
    env = ArmsRace(PoisonEnv(victim="BPR", **arguments), **RACE)
    env.reset(seed=7)
    single = [attack(env, plan) for plan in PLANS + PLANS]
    for mode in ("NextStep", "SameStep", "Disabled"):
        envs = VectorArmsRace(
            PoisonVectorEnv(victim="BPR", num_envs=1, autoreset_mode=mode, **arguments), **RACE
        )
        envs.reset(seed=7)
        for number, plan in enumerate(PLANS + PLANS):
            for item in plan:
                _, rewards, terminated, _, infos = envs.step(np.array([item]))
            assert terminated.all()
            told = infos["final_info"] if mode == "SameStep" else infos
            reward, info = single[number]
            assert rewards[0] == reward
            for name in (*ADDED, "rec_num", "clean_rec_num"):
                assert told[name][0] == info[name], (mode, number, name)
                assert told[f"_{name}"].tolist() == [True]
            if mode == "SameStep":
                assert infos["detector_auc"][0] == -1
                assert infos["n_genuine_flagged"][0] == -1
            elif mode == "Disabled":
                envs.reset(options={"reset_mask": np.array([True])})
            else:
                envs.step(np.array([0]))  # resets


def test_copies_share_a_race(small: Small) -> None:
    arguments = small("ItemPop")
    envs = VectorArmsRace(
        PoisonVectorEnv(victim="ItemPop", num_envs=3, autoreset_mode="Disabled", **arguments),
        **{**RACE, "every": 3},
    )
    envs.reset(seed=0)
    assert envs.defence is not None
    for items in np.array(PLANS[:3]).T:
        _, _, _, _, infos = envs.step(items)
    assert infos["detector_round"].tolist() == [0, 0, 0]
    assert envs.defence.n_noted == 3
    mask = np.array([True, False, True])
    _, infos = envs.reset(options={"reset_mask": mask})
    assert envs.defence.round == 1
    assert infos["_detector_round"].tolist() == mask.tolist()
    assert infos["detector_round"].tolist() == [1, 0, 1]
    assert infos["n_genuine_flagged"].tolist() == [-1, 0, -1]
    envs.reset(seed=5, options={"reset_mask": mask})
    assert envs.defence.round == 1  # one copy was left out
    envs.reset(seed=5)
    assert envs.defence.round == 0


def test_an_attack_that_cannot_be_evaluated_is_not_noted(small: Small) -> None:
    def nonsense(rec_num: NDArray[np.int64], **_: object) -> NDArray[np.float64]:
        return np.full(len(rec_num), np.nan)

    env = ArmsRace(PoisonEnv(victim="ItemPop", **small("ItemPop", reward=nonsense)), **RACE)
    env.reset(seed=0)
    with pytest.raises(ArgumentError, match="reward must return"):
        attack(env, PLANS[0])
    assert env.defence is not None
    assert env.defence.n_noted == 0


def test_the_code_of_the_docstring_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", inspect.getdoc(ArmsRace) or "", re.DOTALL)
    names: dict[str, Any] = {"gymnasium": gym, "ArmsRace": ArmsRace}
    exec(compile(code, "ArmsRace", "exec"), names)  # noqa: S102  # our own
    assert names["info"]["detector_round"] == 0
    assert isinstance(names["env"].unwrapped, PoisonEnv)


def test_misuse_is_refused(small: Small) -> None:
    env = PoisonEnv(victim="ItemPop", **small("ItemPop"))
    for wrong, message in (
        ({"every": 0}, "every must be"),
        ({"share": 1.0}, "share must be"),
        ({"known": [[99]]}, "profiles must"),
        ({"audit_rate": 2}, "audit_rate must be"),
    ):
        with pytest.raises(ArgumentError, match=message):
            ArmsRace(env, **{**RACE, **wrong})
    bagged = {"victim": "ItemPop", "defense": Bagging(2), **small("ItemPop")}
    with pytest.raises(ArgumentError, match=r"bagging.* got defense=Bagging\(n_models=2\)"):
        ArmsRace(PoisonEnv(**bagged))
    with pytest.raises(UnknownNameError, match="detector that can be retrained 'gru-attention'"):
        ArmsRace(env, detector="gru-attention")
    with pytest.raises(ArgumentError, match="env must be a PoisonVectorEnv"):
        VectorArmsRace(env)  # type: ignore[arg-type]  # as is tested
