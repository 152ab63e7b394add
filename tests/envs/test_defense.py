"""Environments on a platform that screens accounts: info, rewards, both classes, registered ids."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence

from recattack_gym.core import ArgumentError, KnowledgeError
from recattack_gym.defenses import DETECTORS, Screening
from recattack_gym.envs import BlackBox, PoisonEnv, PoisonVectorEnv
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


@pytest.mark.parametrize("defense", [None, (), "apr", ("pamacf",)])
def test_stealth_needs_a_defense_that_screens(
    small: Small, defense: str | tuple[str, ...] | None
) -> None:
    arguments = small("BPR", reward="stealth", defense=defense)
    for make in (PoisonEnv, PoisonVectorEnv):
        with pytest.raises(ArgumentError, match="reward 'stealth' needs a defense that screens"):
            make(victim="BPR", **arguments)
    both = ("popularity", *((defense,) if isinstance(defense, str) else defense or ()))
    assert PoisonEnv(victim="BPR", **{**arguments, "defense": both}).reset()[1]["cost"] == 0


@pytest.mark.parametrize(
    ("plain", "defense", "robust"),
    [
        ("MF-BCE", "apr", "MF-BCE-APR"),
        ("MF-BCE", "pamacf", "MF-BCE-PamaCF"),
        ("PMF", "apr", "PMF-APR"),
        ("PMF", "pamacf", "PMF-PamaCF"),
    ],
)
def test_an_id_of_a_factorisation_takes_robust_training(
    plain: str, defense: str, robust: str, small: Small
) -> None:
    env = gym.make(f"RecPoison-{plain}-v0", **small(plain, defense=defense)).unwrapped
    named = gym.make(f"RecPoison-{robust}-v0", **small(robust)).unwrapped
    assert isinstance(env, PoisonEnv)
    assert isinstance(named, PoisonEnv)
    assert env.simulator.victim.name == named.simulator.victim.name == robust
    profile = np.random.default_rng(0).integers(0, env.simulator.n_items, (1, 3, 2))
    for retrain in ("finetune", "full"):
        found, wanted = (x.simulator.exposure(profile, retrain=retrain) for x in (env, named))
        np.testing.assert_array_equal(found, wanted)


def test_a_negative_price_is_refused() -> None:
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


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_info_has_the_same_keys_after_every_reset_and_click(small: Small, mode: str) -> None:
    arguments = small("ItemPop", defense="popularity")
    env = PoisonEnv(victim="ItemPop", **arguments)
    keys = set(env.reset(seed=0)[1])
    assert keys > DEFENDED
    envs = PoisonVectorEnv(victim="ItemPop", num_envs=2, autoreset_mode=mode, **arguments)
    both = keys | {f"_{key}" for key in keys}
    assert set(envs.reset(seed=0)[1]) == both
    for number in range(6):
        assert set(env.step(np.int64(40))[4]) == keys
        info = envs.step(np.full(2, 40))[4]
        final = info.pop("final_info", None)
        assert set(info) - {"final_obs", "_final_obs", "_final_info"} == both
        assert (final is not None) == (mode == "SameStep" and number == 5)
        if final is not None:
            assert set(final) == both
            assert (info["cost"] == 0).all()
            assert (info["n_genuine_flagged"] == -1).all()
    mask = np.array([True, False])
    options = {"reset_mask": mask} if mode == "Disabled" else None
    info = envs.reset(options=options)[1] if options else envs.step(np.full(2, 40))[4]
    assert set(info) == both
    assert info["_cost"].tolist() == (mask.tolist() if options else [True, True])
    assert info["n_genuine_flagged"][0] == -1


@pytest.mark.slow
def test_worker_processes_screen_with_the_same_objects(small: Small) -> None:
    defense = (Screening(DETECTORS["ks-popularity"](), 0.1), "popularity")
    arguments = small("BPR", defense=defense, reward="stealth")
    there = gym.make_vec(
        "recattack_gym:RecPoison-BPR-v0",
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"context": "spawn", "autoreset_mode": "SameStep"},
        **arguments,
    )
    here = PoisonVectorEnv(victim="BPR", num_envs=2, autoreset_mode="SameStep", **arguments)
    try:
        assert data_equivalence(there.reset(seed=4), here.reset(seed=4), exact=True)
        rng = np.random.default_rng(0)
        for _ in range(8):
            actions = rng.integers(30, 42, size=2)
            assert data_equivalence(there.step(actions), here.step(actions), exact=True)
    finally:
        there.close()


def test_copies_and_pickles_screen_alike(small: Small) -> None:
    defense = (Screening(DETECTORS["ks-popularity"](), 0.1), "popularity")
    env = PoisonEnv(victim="BPR", **small("BPR", defense=defense))
    expected = attack(env, 40)
    assert expected[1]["cost"] + expected[1]["n_genuine_flagged"] > 1
    simulator = pickle.loads(pickle.dumps(env.simulator))  # noqa: S301  # our own
    assert env.last_profiles is not None
    exposure, screened = simulator.screened_exposure(env.last_profiles)
    assert exposure.sum() == expected[1]["rec_num"]
    assert screened.n_dropped[0] == expected[1]["cost"]
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):  # noqa: S301  # our own
        reward, info = attack(other, 40)
        assert reward == expected[0]
        assert {**info, "n_queries": 1, "target_exposure": 0} == {
            **expected[1],
            "target_exposure": 0,
        }


def test_a_black_box_leads_to_no_screening(small: Small) -> None:
    env = BlackBox(PoisonEnv(victim="BPR", **small("BPR", defense="popularity")))
    with pytest.raises(KnowledgeError):
        _ = env.simulator
    found = [
        value for value in vars(env).values() if isinstance(value, DefendedSimulator | Screening)
    ]
    assert not found
    assert "popularity" not in repr(env)
    assert env.spec is None


def test_gymnasium_is_content(small: Small) -> None:
    arguments = small("BPR", defense=("popularity",), reward="stealth")
    env = gym.make("recattack_gym:RecPoison-BPR-v0", **arguments)
    check_env(env.unwrapped, skip_render_check=True)


def test_fresh_lists_are_screened_too(small: Small) -> None:
    arguments = small("BPR", defense="popularity", resample_candidates=True)
    env = PoisonEnv(victim="BPR", **arguments)
    _, info = attack(env, 40)
    assert info["cost"] + info["n_genuine_flagged"] == 1
