"""Suspicious accounts weighed down instead of dropped: by whose rank, how often, and the limits 0 and 1."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions, UnknownNameError
from recattack_gym.datasets import SyntheticConfig, from_interactions, generate
from recattack_gym.defenses import Detector, Screening
from recattack_gym.simulator import DefendedSimulator, PlatformSimulator, make_simulator

QUICK: dict[str, object] = {"epochs": 2, "embedding_size": 8, "finetune_epochs": 2}
SETTINGS: dict[str, dict[str, object]] = {
    "BPR": QUICK,
    "AutoRec": QUICK,
    "CoVisitation": {},
    "ItemPop": {},
}


class Length(Detector):
    """Suspects who clicks much: scores can be told by eye."""

    name = "length"

    def _scores(self, log: Interactions) -> NDArray[np.float64]:
        return np.diff(log.indptr).astype(np.float64)


def stairs(n_users: int) -> Interactions:
    """User u clicks item 0 u + 1 times, so the most suspicious account is the last, and so on."""
    users = np.repeat(np.arange(n_users), np.arange(n_users) + 1)
    return Interactions(users, np.zeros_like(users), n_users, 3)


def small_log() -> Interactions:
    return generate(
        SyntheticConfig(n_users=40, n_items=60, n_events=600), np.random.default_rng(3)
    ).log


def poison_sets(platform: PlatformSimulator) -> NDArray[np.int64]:
    """Five sets of four accounts, each of sixty clicks: flagged before most genuine ones."""
    return np.random.default_rng(0).integers(0, platform.n_items, (5, 4, 60))


def platform(victim: str, screening: Screening | None, **more: object) -> PlatformSimulator:
    arguments: dict[str, Any] = {
        "targets": 2,
        "n_candidates": 20,
        "victim_config": SETTINGS[victim],
        **more,
    }
    dataset = from_interactions(small_log())
    if screening is None:
        return PlatformSimulator(dataset, victim, **arguments)
    return DefendedSimulator(dataset, victim, screening=screening, **arguments)


def everything(simulator: PlatformSimulator) -> list[object]:
    """Return all that a platform says of itself and of poison sets."""
    sets = poison_sets(simulator)
    effects = simulator.side_effects(sets)
    return [
        simulator.clean_exposure.tolist(),
        simulator.exposure(sets).tolist(),
        simulator.exposure(sets[0], rng=np.random.default_rng(5)).tolist(),
        (effects.clean_hr_at_k, effects.hr_at_k.tolist(), effects.ndcg_at_k.tolist()),
    ]


def test_weights_fall_with_rank() -> None:
    log = stairs(10)
    screening = Screening(Length(), 0.4, "weight", (0.2, 1.0))
    # Ranks 0 to 3 of four flagged: 0.2 + 0.8 * (1/8, 3/8, 5/8, 7/8), the last account being the worst
    assert screening.account_weights(log) == pytest.approx([1.0] * 6 + [0.9, 0.7, 0.5, 0.3])
    assert screening.flags(log).tolist() == [False] * 6 + [True] * 4
    assert Screening(Length(), 0.4).account_weights(log).tolist() == [1.0] * 6 + [0.0] * 4


def test_accounts_take_part_as_often_as_their_weight_says() -> None:
    log = stairs(10)
    screening = Screening(Length(), 0.4, "weight", (0.2, 1.0))
    drops = np.stack([screening.drops(log, seed) for seed in range(4000)])
    assert 1.0 - drops.mean(axis=0) == pytest.approx(screening.account_weights(log), abs=0.03)
    assert not drops[:, :6].any()
    # Accounts are drawn alone: what the worst does says nothing of the next
    assert abs(np.corrcoef(drops[:, 9], drops[:, 8])[0, 1]) < 0.05


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_larger_weights_let_in_whom_smaller_ones_do(seed: int) -> None:
    log = stairs(200)
    kept = [
        ~Screening(Length(), 0.5, "weight", weights).drops(log, seed)
        for weights in ((0.0, 0.0), (0.0, 0.5), (0.0, 1.0), (0.6, 1.0), (1.0, 1.0))
    ]
    for fewer, more in pairwise(kept):
        assert (fewer <= more).all()
        assert fewer.sum() < more.sum()
    assert kept[0].tolist() == (~Screening(Length(), 0.5).flags(log)).tolist()
    assert kept[-1].all()


@pytest.mark.parametrize("retrain", ["finetune", "full"])
@pytest.mark.parametrize("victim", SETTINGS)
def test_weights_of_one_are_no_defence(victim: str, retrain: str) -> None:
    ones = platform(victim, Screening(Length(), 0.3, "weight", (1.0, 1.0)), retrain=retrain)
    assert everything(ones) == everything(platform(victim, None, retrain=retrain))
    assert isinstance(ones, DefendedSimulator)
    assert ones.n_genuine_clicks_lost == 0
    assert ones.screen(poison_sets(ones)).n_dropped.tolist() == [0] * 5
    assert ones.flags(ones.unscreened_log).sum() == 12  # flagged they are


@pytest.mark.parametrize("retrain", ["finetune", "full"])
@pytest.mark.parametrize("victim", SETTINGS)
def test_weights_of_zero_are_dropping(victim: str, retrain: str) -> None:
    zeros = platform(victim, Screening(Length(), 0.1, "weight", (0.0, 0.0)), retrain=retrain)
    dropping = platform(victim, Screening(Length(), 0.1), retrain=retrain)
    assert everything(zeros) == everything(dropping)
    assert isinstance(zeros, DefendedSimulator)
    assert isinstance(dropping, DefendedSimulator)
    assert zeros.n_genuine_clicks_lost == dropping.n_genuine_clicks_lost > 0


@pytest.mark.parametrize("retrain", ["finetune", "full"])
@pytest.mark.parametrize("victim", SETTINGS)
def test_equals_a_plain_platform_that_never_had_who_is_not_drawn(victim: str, retrain: str) -> None:
    """The slow twin: draw account by account, then build a platform without those who lose."""
    screening = Screening(Length(), 0.3, "weight")
    defended = platform(victim, screening, retrain=retrain, seed=4)
    assert isinstance(defended, DefendedSimulator)
    sets = poison_sets(defended)
    outcome, screened = defended.screened_exposure(sets)
    train = defended.unscreened_log
    weights = screening.account_weights(train)
    out = [
        user
        for user in range(train.n_users)
        if weights[user] < 1.0 and screening.drops(train, 4)[user]
    ]
    assert 0 < len(out) < (weights < 1.0).sum()
    assert defended.n_genuine_clicks_lost == sum(len(train.items_of(user)) for user in out)
    left = from_interactions(small_log()).split.train
    arguments: dict[str, Any] = {"retrain": retrain, "seed": 4, "victim_config": SETTINGS[victim]}
    without = left.select(~np.isin(left.user_ids, out))
    plain = PlatformSimulator(without, victim, targets=2, n_candidates=20, **arguments)
    plain.lists = defended.lists  # which know what everybody clicked
    assert 0 < screened.n_dropped.sum() < sets.shape[0] * sets.shape[1]
    for profile, dropped, exposure in zip(sets, screened.is_dropped, outcome, strict=True):
        poisoned = train.with_fake_users(profile)
        assert dropped.tolist() == screening.drops(poisoned, 4)[train.n_users :].tolist()
        rest = profile[~dropped]
        expected = plain.exposure(rest)[0] if len(rest) else plain.clean_exposure
        assert exposure.tolist() == expected.tolist()


def test_the_draw_is_the_platform_s_and_stays() -> None:
    screening = Screening(Length(), 0.5, "weight", (0.5, 0.5))
    first, second = (platform("ItemPop", screening, seed=seed) for seed in (0, 1))
    assert isinstance(first, DefendedSimulator)
    assert isinstance(second, DefendedSimulator)
    assert first.genuine_dropped.tolist() != second.genuine_dropped.tolist()
    # With an attack, too: genuine accounts that are flagged either way are drawn as they were
    log = first.unscreened_log
    poisoned = log.with_fake_users(np.zeros((2, 1), dtype=np.int64))
    before, after = screening.drops(log, 0), screening.drops(poisoned, 0)[: log.n_users]
    both = screening.flags(log) & screening.flags(poisoned)[: log.n_users]
    assert before[both].tolist() == after[both].tolist()


def test_several_screenings_each_keep_their_own_out() -> None:
    log = small_log()
    light, heavy = Screening(Length(), 0.5, "weight", (0.5, 1.0)), Screening(Length(), 0.1)
    both = DefendedSimulator(log, "ItemPop", screening=[light, heavy], n_candidates=20)
    catalogue = log.with_catalogue(log.n_items + 8)
    expected = light.drops(catalogue, 0) | heavy.drops(catalogue, 0)
    assert both.genuine_dropped.tolist() == expected.tolist()
    assert both.flags(catalogue).sum() == 20


def test_names_with_an_action() -> None:
    arguments = {"dataset": small_log(), "victim": "ItemPop", "n_candidates": 20}
    for name, share, action in (
        ("popularity", 0.01, "drop"),
        ("popularity:drop", 0.01, "drop"),
        ("popularity:weight", 0.02, "weight"),
    ):
        made = make_simulator({**arguments, "defense": name})
        assert isinstance(made, DefendedSimulator)
        (screening,) = made.screening
        assert (screening.share, screening.action) == (share, action)
        assert screening.weights == (0.0, 1.0)
    with pytest.raises(UnknownNameError, match="unknown action of defense 'popularity' 'halve'"):
        make_simulator({**arguments, "defense": "popularity:halve"})
    for no_detector in ("apr:weight", "bagging:drop", ":weight"):
        with pytest.raises(UnknownNameError, match=f"unknown defense '{no_detector}'"):
            make_simulator({**arguments, "defense": no_detector})


@pytest.mark.parametrize(
    ("action", "weights", "message"),
    [
        ("keep", (0.0, 1.0), "action must be one of"),
        ("weight", (0.8, 0.2), "must not give the most suspicious account the larger one"),
        ("weight", (-0.1, 1.0), "weights must be"),
        ("weight", (0.0, 1.1), "weights must be"),
        ("weight", [0.0, 1.0], "weights must be a tuple of two numbers"),
        ("weight", (0.5,), "weights must be a tuple of two numbers"),
    ],
)
def test_wrong_weights_are_refused(action: str, weights: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Screening(Length(), 0.1, action, weights)  # type: ignore[arg-type]
