"""What a platform knows in an arms race: when it learns from what, and what audits find."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions, UnknownNameError
from recattack_gym.datasets import SyntheticConfig, from_interactions, generate
from recattack_gym.defenses import Screening
from recattack_gym.defenses.held_out import HeldOutDetector, Snapshot
from recattack_gym.simulator import DefendedSimulator, PlatformSimulator, make_simulator
from recattack_gym.simulator.arms_race import (
    AdaptiveDetector,
    ArmsRaceConfig,
    evenly,
    genuine_log,
    screened_platform,
)

QUICK = ArmsRaceConfig(detector="degree-sad", share=0.05)


def small_log() -> Interactions:
    made = generate(
        SyntheticConfig(n_users=80, n_items=60, n_events=1200), np.random.default_rng(3)
    )
    return made.log.with_catalogue(62)


def attacks(seed: int, n: int = 3) -> NDArray[np.int64]:
    """Return attacks of one style for even seeds and of another for odd ones, shape `(n, 5, 6)`."""
    rng = np.random.default_rng(seed)
    popular = np.argsort(-small_log().item_popularity, kind="stable")[:8]
    if seed % 2:
        clicks = rng.choice(popular, (n, 5, 6)).astype(np.int64)
        clicks[..., 0] = 61
        return clicks
    clicks = rng.integers(0, 60, (n, 5, 6))
    clicks[..., ::2] = 60
    return clicks


def expected(race: AdaptiveDetector, number: int, learnt: NDArray[np.int64]) -> HeldOutDetector:
    """Return the detector that has learnt from exactly these attacks when round `number` begins."""
    rng = np.random.default_rng([race.seed, 1, number])
    everyone = np.ones(learnt.shape[1], dtype=np.bool_)
    order = rng.permutation(len(learnt))
    snapshots = [Snapshot(learnt[place], everyone) for place in order]
    return HeldOutDetector("degree-sad").learn(race.genuine, snapshots, rng)


def test_a_round_is_judged_by_who_has_not_seen_it_and_learnt_from_when_it_is_over() -> None:
    race = AdaptiveDetector(small_log(), QUICK, seed=4)
    first, second = attacks(0), attacks(1)
    assert race.detector is None
    assert race.screening is None
    assert race.visibility(first) is None
    race.note(first)
    assert race.detector is None  # noted is not learnt
    assert (race.round, race.n_noted) == (0, 3)
    race.next_round()
    assert (race.round, race.n_noted) == (1, 0)
    judged = race.genuine.with_fake_users(second[0])
    one = race.detector
    assert one is not None
    assert one.scores(judged).tolist() == expected(race, 1, first).scores(judged).tolist()
    before = race.visibility(second)
    race.note(second)
    after_noting = race.visibility(second)
    assert before is not None
    assert after_noting is not None
    assert after_noting.auc.tolist() == before.auc.tolist()  # still the detector of round 1
    race.next_round()
    two = race.detector
    assert two is not None
    assert two is not one
    assert two.scores(judged).tolist() != one.scores(judged).tolist()
    after = race.visibility(second)
    assert after is not None
    assert after.auc.mean() > before.auc.mean()


def test_what_is_known_from_the_start_is_learnt_before_the_first_attack() -> None:
    race = AdaptiveDetector(small_log(), QUICK, known=attacks(0), seed=4)
    judged = race.genuine.with_fake_users(attacks(1)[0])
    assert race.detector is not None
    assert (
        race.detector.scores(judged).tolist()
        == expected(race, 0, attacks(0)).scores(judged).tolist()
    )
    assert race.screening is not None
    assert race.screening.share == 0.05
    assert race.n_noted == 0


def test_all_rounds_are_remembered_alike() -> None:
    def snapshots(n: int) -> list[Snapshot]:
        return [Snapshot(np.full((1, 1), i), np.ones(1, dtype=np.bool_)) for i in range(n)]

    rounds = [snapshots(10), snapshots(1), [], snapshots(5)]
    chosen = evenly(rounds, 7, np.random.default_rng(0))
    ids = [id(each) for each in chosen]
    counts = [sum(id(each) in ids for each in attacks_of) for attacks_of in rounds]
    assert counts == [3, 1, 0, 3]
    assert len(set(ids)) == 7
    counts = [
        sum(
            id(each) in {id(c) for c in evenly(rounds, 2, np.random.default_rng(0))} for each in own
        )
        for own in rounds
    ]
    assert counts == [0, 1, 0, 1]  # later rounds come first
    assert len(evenly(rounds, 99, np.random.default_rng(0))) == 16
    drawn = {
        int(each.profiles[0, 0])
        for seed in range(40)
        for each in evenly([snapshots(10)], 1, np.random.default_rng(seed))
    }
    assert len(drawn) > 5


def test_memory_is_bounded_and_forgets_nothing_that_would_be_chosen() -> None:
    config = ArmsRaceConfig(detector="degree-sad", max_attacks=2)
    race = AdaptiveDetector(small_log(), config, seed=0)
    for number in range(5):
        race.note(attacks(number, n=2))
        race.next_round()
    kept = [own for own in race._by_round if own]
    assert len(kept) == 2
    assert kept[-1][0].profiles.tolist() == attacks(4, n=2)[0].tolist()


def test_audits_find_the_share_that_they_find() -> None:
    config = ArmsRaceConfig(detector="degree-sad", audit_rate=0.25)
    race = AdaptiveDetector(small_log(), config, seed=1)
    race.note(attacks(0, n=80))
    found = np.stack([each.is_known for each in race._by_round[-1]])
    assert 0.18 < found.mean() < 0.32
    assert len(np.unique(found, axis=0)) > 5
    again = AdaptiveDetector(small_log(), config, seed=1)
    again.note(attacks(0, n=80))
    assert np.stack([each.is_known for each in again._by_round[-1]]).tolist() == found.tolist()
    one_by_one = AdaptiveDetector(small_log(), config, seed=1)
    for attack in attacks(0, n=80):
        one_by_one.note(attack)
    alone = np.stack([each.is_known for each in one_by_one._by_round[-1]])
    assert alone.tolist() == found.tolist()


def test_where_audits_find_nobody_the_detector_stays() -> None:
    config = ArmsRaceConfig(detector="degree-sad", audit_rate=1e-9)
    race = AdaptiveDetector(small_log(), config, seed=1)
    race.note(attacks(0))
    race.next_round()
    assert race.detector is None
    assert race.round == 1


def test_what_is_noted_cannot_be_changed_afterwards() -> None:
    race, own = AdaptiveDetector(small_log(), QUICK), attacks(0)
    race.note(own)
    own[:] = 0
    assert race._by_round[-1][0].profiles.tolist() == attacks(0)[0].tolist()


def test_the_platform_of_a_round_is_the_defended_one() -> None:
    log = generate(
        SyntheticConfig(n_users=80, n_items=60, n_events=1200), np.random.default_rng(3)
    ).log
    arguments: dict[str, Any] = {
        "dataset": from_interactions(log),
        "victim": "CoVisitation",
        "targets": 2,
        "n_candidates": 20,
    }
    plain = make_simulator(arguments)
    race = AdaptiveDetector(genuine_log(plain), QUICK, known=attacks(0))
    assert screened_platform(arguments, plain, None) is plain
    screened = screened_platform(arguments, plain, race.screening)
    assert isinstance(screened, DefendedSimulator)
    detector = race.detector
    assert detector is not None
    by_hand = DefendedSimulator(screening=Screening(detector, 0.05), **arguments)
    batch = attacks(2)
    outcome, flagged = screened.screened_exposure(batch)
    expected_outcome, expected_flags = by_hand.screened_exposure(batch)
    assert outcome.tolist() == expected_outcome.tolist()
    assert flagged.n_dropped.tolist() == expected_flags.n_dropped.tolist()
    assert flagged.n_dropped.sum() > 0
    assert flagged.n_genuine_flagged.tolist() == expected_flags.n_genuine_flagged.tolist()
    assert 0 < screened.genuine_dropped.sum() == by_hand.genuine_dropped.sum()
    assert screened.dataset is not None
    # A platform that has a defence of its own keeps it, and its genuine users are everybody's.
    own = make_simulator({**arguments, "defense": "popularity"})
    assert genuine_log(own).content_hash == genuine_log(plain).content_hash
    both = screened_platform({**arguments, "defense": "popularity"}, own, race.screening)
    assert isinstance(both, DefendedSimulator)
    assert [each.detector.name for each in both.screening] == ["popularity", "held-out"]
    robust = {**arguments, "victim": "BPR", "defense": ("apr",), "victim_config": {"epochs": 1}}
    third = screened_platform(robust, make_simulator(robust), race.screening)
    assert third.victim.name == "APR"
    assert isinstance(third, DefendedSimulator)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"detector": "popularity"}, "detector that can be retrained 'popularity'"),
        ({"settings": {"leaf": 3}}, "setting of svm-quick 'leaf'"),
        ({"share": 0.0}, "share must be"),
        ({"share": 0.9}, "share must be"),
        ({"max_attacks": 0}, "max_attacks must be"),
        ({"audit_rate": 0.0}, "audit_rate must be"),
        ({"audit_rate": 1.5}, "audit_rate must be"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises((ArgumentError, UnknownNameError), match=message):
        ArmsRaceConfig(**wrong)


def test_wrong_profiles_are_refused() -> None:
    with pytest.raises(ArgumentError, match="profiles must"):
        AdaptiveDetector(small_log(), QUICK, known=[[99]])
    with pytest.raises(ArgumentError, match="profiles must"):
        AdaptiveDetector(small_log(), QUICK).note([[99]])
    with pytest.raises(ArgumentError, match="seed must be"):
        AdaptiveDetector(small_log(), QUICK, seed=-1)


def test_a_plain_log_keeps_its_new_items() -> None:
    plain = PlatformSimulator(small_log(), "ItemPop", targets=2, n_candidates=20)
    assert genuine_log(plain).n_items == plain.n_items == 64
