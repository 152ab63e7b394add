"""What attacks do to everyone else, against lists that are made and counted one user after the other."""

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions, StateError
from recattack_gym.datasets import Dataset, SyntheticConfig, from_interactions, generate
from recattack_gym.defenses import DETECTORS, Screening
from recattack_gym.envs import PoisonEnv
from recattack_gym.metrics import BANDS, popularity_bands
from recattack_gym.simulator import DefendedSimulator, PlatformSimulator
from recattack_gym.simulator.effects import Effects, EffectsMeter
from recattack_gym.victims.base import Retrain, Victim

QUICK = {"epochs": 2, "embedding_size": 8, "finetune_epochs": 2}


def small() -> Dataset:
    config = SyntheticConfig(n_users=40, n_items=60, n_events=600)
    return from_interactions(generate(config, np.random.default_rng(3)).log)


def platform_of(
    victim: str, targets: int | tuple[int, ...] = 8, retrain: Retrain = "finetune"
) -> PlatformSimulator:
    config = QUICK if victim == "BPR" else None
    return PlatformSimulator(
        small(),
        victim,
        targets=targets,
        retrain=retrain,
        victim_config=config,
        n_candidates=20,
        k=5,
    )


def counted(
    victim: Victim, known: Interactions, targets: NDArray[np.int64], k: int
) -> dict[str, int]:
    """Make the list of every user with a held-out item, and put each place of it in its group."""
    bands = popularity_bands(known.item_popularity)
    found = dict.fromkeys(Effects.names, 0)
    for user in np.flatnonzero(small().split.evaluable("test")).tolist():
        scores = victim.score(np.array([user]), np.arange(known.n_items)[None])[0]
        if len(known.items_of(user)) and not len(victim.log.items_of(user)):
            scores = victim.log.item_popularity.astype(np.float32)  # kept out of training
        ranked = sorted(range(known.n_items), key=lambda item: (-scores[item], item))
        unseen = [item for item in ranked if item not in known.items_of(user)]
        for item in unseen[:k]:
            found["targets" if item in targets else BANDS[bands[item]]] += 1
    return found


@pytest.mark.parametrize("victim", ["ItemPop", "BPR"])
@pytest.mark.parametrize("targets", [3, (0, 41)])
def test_places_are_those_counted_user_by_user(victim: str, targets: int | tuple[int, ...]) -> None:
    simulator = platform_of(victim, targets=targets)
    sets = np.random.default_rng(5).integers(0, simulator.n_items, (2, 6, 9))
    sets[0, :, ::2] = simulator.target_items[0]
    effects = EffectsMeter(simulator).measure(sets)
    known = simulator.victim.log
    clean = counted(simulator.victim, known, simulator.target_items, 5)
    assert dict(zip(Effects.names, effects.clean_exposure.tolist(), strict=True)) == clean
    for m in range(2):
        poisoned = simulator.victim.poisoned(sets[m], simulator._retrain_seed, "finetune")
        expected = counted(poisoned, known, simulator.target_items, 5)
        assert dict(zip(Effects.names, effects.exposure[m].tolist(), strict=True)) == expected
    assert effects.exposure[0].tolist() != effects.clean_exposure.tolist()  # it has an effect
    assert effects.n_items.sum() == simulator.n_items
    assert effects.n_items[0] == len(simulator.target_items)
    assert effects.n_users == len(np.flatnonzero(small().split.evaluable("test")))


@pytest.mark.parametrize("victim", ["ItemPop", "BPR"])
@pytest.mark.parametrize("retrain", ["finetune", "full"])
def test_quality_is_that_of_the_platform_and_what_one_gains_others_lose(
    victim: str, retrain: Retrain
) -> None:
    simulator = platform_of(victim, retrain=retrain)
    sets = np.random.default_rng(6).integers(0, simulator.n_items, (3, 8, 10))
    sets[1] = simulator.target_items[0]
    effects, plain = EffectsMeter(simulator).measure(sets), simulator.side_effects(sets)
    assert effects.quality.k == plain.k
    assert effects.quality.clean_hr_at_k == plain.clean_hr_at_k
    assert effects.quality.clean_ndcg_at_k == plain.clean_ndcg_at_k
    assert effects.quality.hr_at_k.tolist() == plain.hr_at_k.tolist()
    assert effects.quality.ndcg_at_k.tolist() == plain.ndcg_at_k.tolist()
    places = effects.clean_exposure.sum()
    assert places == 5 * effects.n_users
    assert effects.exposure.sum(axis=1).tolist() == [places] * 3


def test_one_meter_serves_many_attacks() -> None:
    simulator = platform_of("BPR")
    sets = np.random.default_rng(7).integers(0, simulator.n_items, (2, 4, 6))
    meter = EffectsMeter(simulator)
    together = meter.measure(sets)
    for m in range(2):
        alone = meter.measure(sets[m])
        assert alone.exposure[0].tolist() == together.exposure[m].tolist()
        assert alone.quality.hr_at_k[0] == together.quality.hr_at_k[m]


def test_behind_a_screening_only_those_who_get_through_count() -> None:
    # the detector suspects fake users with items that nobody has, and genuine ones with the rarest tastes
    screening = Screening(DETECTORS["popularity"](), 0.2)
    simulator = DefendedSimulator(
        small(), "BPR", screening=screening, victim_config=QUICK, n_candidates=20, k=5
    )
    assert simulator.genuine_dropped.any()
    sets = np.random.default_rng(8).integers(0, simulator.n_items, (2, 4, 6))
    sets[0] = simulator.target_items[:6]  # whom nobody has: caught
    is_kept = ~simulator.screen(sets).is_dropped
    assert not is_kept[0].any()
    assert is_kept[1].any()
    effects, plain = EffectsMeter(simulator).measure(sets), simulator.side_effects(sets)
    assert effects.quality.hr_at_k.tolist() == plain.hr_at_k.tolist()
    assert effects.quality.ndcg_at_k.tolist() == plain.ndcg_at_k.tolist()
    assert effects.quality.clean_hr_at_k == plain.clean_hr_at_k
    assert effects.exposure[0].tolist() == effects.clean_exposure.tolist()
    known = simulator.unscreened_log
    poisoned = simulator.victim.poisoned(sets[1][is_kept[1]], simulator._retrain_seed, "finetune")
    expected = counted(poisoned, known, simulator.target_items, 5)
    assert dict(zip(Effects.names, effects.exposure[1].tolist(), strict=True)) == expected
    bands = popularity_bands(known.item_popularity[: small().log.n_items])
    old = [int((bands == band).sum()) for band in range(3)]
    assert effects.n_items.tolist() == [8, *old]  # by what everybody clicked, flagged or not


def test_the_last_attack_of_an_environment_can_be_measured() -> None:
    env: PoisonEnv = gymnasium.make(  # type: ignore[assignment]  # the class below the wrappers
        "recattack_gym:RecPoison-ItemPop-v0", n_fake_users=4, profile_size=5
    ).unwrapped
    env.reset(seed=0)
    for _ in range(20):
        env.step(env.target_items[0])
    assert env.last_profiles is not None
    effects = EffectsMeter(env.simulator).measure(env.last_profiles)
    plain = env.simulator.side_effects(env.last_profiles)
    assert effects.quality.hr_at_k.tolist() == plain.hr_at_k.tolist()
    assert effects.exposure.shape == (1, 4)


def test_what_cannot_be_measured_is_refused() -> None:
    bare = PlatformSimulator(small().log, "ItemPop", n_candidates=20)
    with pytest.raises(StateError, match="from_interactions"):
        EffectsMeter(bare)
    simulator = platform_of("ItemPop")
    with pytest.raises(ArgumentError):
        EffectsMeter(simulator).measure(np.full((2, 3), simulator.n_items))
