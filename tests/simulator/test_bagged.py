"""The platform on which models vote: its accounts alone teach each, and certificates hold under attack."""

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

from agents.reports import attack_fields
from recattack_gym.core import ArgumentError, FakeProfiles, Interactions, UnknownNameError
from recattack_gym.datasets import SyntheticConfig, from_interactions, generate
from recattack_gym.defenses import Bagging
from recattack_gym.simulator import BaggedSimulator, PlatformSimulator, make_simulator
from recattack_gym.simulator.bagged import Certificate
from recattack_gym.simulator.bagged_effects import effects_meter
from recattack_gym.simulator.effects import EffectsMeter
from recattack_gym.victims import VICTIMS
from recattack_gym.victims.ranking import top_k
from recattack_gym.victims.serving import READS_CLICKS, serving

QUICK = {"epochs": 1, "finetune_epochs": 1, "embedding_size": 8, "hidden_size": 8}


def small_log() -> Interactions:
    return generate(
        SyntheticConfig(n_users=60, n_items=50, n_events=900), np.random.default_rng(3)
    ).log


def config(victim: str) -> dict[str, object]:
    known = VICTIMS[victim].config_class.__dataclass_fields__
    return {name: value for name, value in QUICK.items() if name in known}


def bagged(victim: str, n_models: int = 8, **more: object) -> BaggedSimulator:
    arguments: dict[str, Any] = {"targets": 2, "n_candidates": 20, "k": 4, **more}
    return BaggedSimulator(
        from_interactions(small_log()),
        victim,
        bagging=Bagging(n_models),
        victim_config=config(victim),
        **arguments,
    )


def attacks(simulator: PlatformSimulator) -> list[NDArray[np.int64]]:
    """Attacks of one to five fake users, uniform, on targets only, and on a mixture of both."""
    rng, found = np.random.default_rng(0), []
    for n in range(1, 6):
        uniform = rng.integers(0, simulator.n_items, (n, 8))
        targets = rng.choice(simulator.target_items, (n, 8))
        found += [uniform, targets, np.where(rng.random((n, 8)) < 0.5, uniform, targets)]
    return found


def by_hand(simulator: BaggedSimulator, profile: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Deal out accounts one by one, train from scratch a model per part, rank, vote: the slow twin."""
    log, k = simulator.lists.log, simulator.k
    whole = log if profile is None else log.with_fake_users(profile)
    dealt = [
        int(simulator.bagging.models_of(np.array([u]), simulator.seed)[0])
        for u in range(whole.n_users)
    ]
    counts = np.zeros((log.n_users, simulator.n_items), dtype=np.int64)
    for number, model in enumerate(simulator.models):
        own = [user for user in range(whole.n_users) if dealt[user] == number]
        events = [(place, item) for place, user in enumerate(own) for item in whole.items_of(user)]
        users, items = np.array(events).T
        part = Interactions(users, items, len(own), whole.n_items)
        fresh = type(model)(model.config)
        fresh._fitted_log, fresh._n_new_items, fresh._fit_seed = part, 2, model._fit_seed
        fresh._fit(part, np.random.default_rng(model._fit_seed))
        for user in range(log.n_users):
            row, allowed = simulator.lists.block(np.array([user]))
            asked = serving(fresh, log).score(np.array([user]), row)
            for place, item in enumerate(top_k(asked, row, allowed, k)[0].tolist()):
                counts[user, item] += 1000 + k - place
    shown = []
    for user in range(log.n_users):
        row, allowed = simulator.lists.block(np.array([user]))
        may = row[0][allowed[0]]
        shown.append(may[np.lexsort((may, -counts[user, may]))][:k].tolist())
    return np.array(shown)


@pytest.mark.parametrize("victim", ["ItemPop", "CoVisitation", "ItemKNN", "AutoRec"])
def test_what_is_shown_is_what_parts_trained_by_hand_elect(victim: str) -> None:
    simulator = bagged(victim, 4, retrain="full")
    assert simulator.shown.tolist() == by_hand(simulator, None).tolist()
    for profile in attacks(simulator)[9:12]:
        shown = simulator.shown_after(profile)
        assert shown.tolist() == by_hand(simulator, profile).tolist()
        wanted = [(shown == target).sum() for target in simulator.target_items]
        assert simulator.exposure(profile)[0].tolist() == wanted


@pytest.mark.parametrize(
    ("victim", "retrain"),
    [
        *((victim, "finetune") for victim in READS_CLICKS),
        *((victim, "full") for victim in READS_CLICKS if victim != "GRU4Rec"),  # the slowest
    ],
)
def test_no_attack_breaks_what_is_certified(victim: str, retrain: str) -> None:
    simulator = bagged(victim, retrain=retrain)
    certificate = simulator.certificate()
    assert certificate.overlap(1) <= certificate.overlap(0)
    assert certificate.overlap(0) > 0.2
    assert (certificate.barred >= 1).any() or (certificate.borne >= 1).any()
    has_effect = False
    for profile in attacks(simulator):
        e = len(profile)
        shown = simulator.shown_after(profile)
        for user in range(simulator.n_users):
            sure = simulator.shown[user][certificate.borne[user] >= e]
            assert np.isin(sure, shown[user]).all()
            out = simulator.target_items[certificate.barred[user] >= e]
            assert not np.isin(out, shown[user]).any()
        rec_num = int(simulator.rec_num(profile)[0])
        assert rec_num <= certificate.rec_num_bound(e)
        has_effect |= bool((shown != simulator.shown).any())
    assert has_effect  # or the bounds would hold for nothing
    assert certificate.rec_num_bound(0) >= simulator.clean_rec_num
    bounds = [certificate.rec_num_bound(e) for e in range(9)]
    assert (np.diff(bounds) >= 0).all()
    assert bounds[-1] == simulator.max_rec_num


@pytest.mark.parametrize("victim", READS_CLICKS)
def test_serving_the_users_that_taught_it_is_the_victim_itself(victim: str) -> None:
    log = small_log()
    fitted = VICTIMS[victim](config(victim)).fit(log, np.random.default_rng(0))
    users, items = np.arange(log.n_users), np.tile(np.arange(log.n_items), (log.n_users, 1))
    assert (serving(fitted, log).score(users, items) == fitted.score(users, items)).all()
    assert not any(len(array) == log.n_users for array in fitted.state.values() if array.ndim)


def test_fresh_lists_and_repeated_calls() -> None:
    simulator = bagged("ItemKNN")
    profile = attacks(simulator)[-1]
    first = simulator.exposure(profile)
    fresh = simulator.exposure(profile, rng=np.random.default_rng(1))
    assert fresh.tolist() == simulator.exposure(profile, rng=np.random.default_rng(1)).tolist()
    assert simulator.exposure(np.stack([profile, profile])).tolist() == [first[0].tolist()] * 2
    copied = pickle.loads(pickle.dumps(simulator))  # noqa: S301  # our own
    assert copied.exposure(profile).tolist() == first.tolist()


def test_the_whole_catalogue_is_ranked_and_side_effects_are_of_what_is_elected() -> None:
    simulator = bagged("ItemKNN", n_candidates=None)
    profile = attacks(simulator)[-1]
    effects = simulator.side_effects(profile)
    split = from_interactions(small_log()).split
    users = np.flatnonzero(split.evaluable("test"))
    for shown, hr in (
        (simulator.shown, effects.clean_hr_at_k),
        (simulator.shown_after(profile), effects.hr_at_k[0]),
    ):
        hits = (shown[users] == split.test_items[users, None]).any(axis=1)
        assert hr == pytest.approx(hits.mean())
    assert not simulator.lists.log.has(users[:, None], simulator.shown[users]).any()


def test_effects_are_of_what_is_elected_and_not_of_the_victim_that_nobody_is_shown() -> None:
    simulator = bagged("ItemKNN", targets=(0, 7))
    sets = np.stack(attacks(simulator)[-3:])
    effects, plain = effects_meter(simulator).measure(sets), simulator.side_effects(sets)
    assert effects.quality.hr_at_k.tolist() == plain.hr_at_k.tolist()
    assert effects.quality.ndcg_at_k.tolist() == plain.ndcg_at_k.tolist()
    assert effects.quality.clean_ndcg_at_k == plain.clean_ndcg_at_k
    users = np.flatnonzero(from_interactions(small_log()).split.evaluable("test"))
    for places, profile in zip(effects.exposure, sets, strict=True):
        shown = simulator.best_of_catalogue(profile)[users]
        assert places[0] == np.isin(shown, simulator.target_items).sum()
        assert places.sum() == effects.clean_exposure.sum() == 4 * len(users)
    assert effects.exposure[0].tolist() != effects.clean_exposure.tolist()
    nobody_s = EffectsMeter(simulator).measure(sets)
    assert effects.clean_exposure.tolist() != nobody_s.clean_exposure.tolist()
    plan = FakeProfiles(sets[0])
    row = attack_fields(simulator, plan)
    assert row["side_effects"]["clean_ndcg_at_k"] == pytest.approx(  # type: ignore[index]  # plain JSON
        plain.clean_ndcg_at_k, abs=1e-6
    )


def test_it_goes_by_name_and_alone() -> None:
    arguments: dict[str, Any] = {"dataset": small_log(), "victim": "ItemPop", "n_candidates": 20}
    with pytest.raises(ArgumentError, match="n_models must leave every model somebody"):
        make_simulator({**arguments, "defense": Bagging(60)})
    named = make_simulator({**arguments, "defense": Bagging(4)})
    assert isinstance(named, BaggedSimulator)
    assert named.bagging.n_models == 4
    by_name = make_simulator({"victim": "ItemPop", "defense": ["bagging"]})
    assert isinstance(by_name, BaggedSimulator)
    assert by_name.bagging == Bagging()
    for beside in ("popularity", "apr"):
        with pytest.raises(ArgumentError, match="nothing beside bagging"):
            make_simulator({**arguments, "defense": ("bagging", beside)})
    with pytest.raises(UnknownNameError, match=r"not trained on 'BPR'.* Known: AutoRec, CoVis"):
        make_simulator({**arguments, "victim": "BPR", "defense": "bagging"})
    with pytest.raises(ArgumentError, match="bagging must be a Bagging"):
        BaggedSimulator(small_log(), "ItemPop", bagging=3)  # type: ignore[arg-type]


def test_environments_on_it() -> None:
    env = gym.make(
        "recattack_gym:RecPoison-ItemPop-v0",
        dataset=small_log(),
        defense=Bagging(4),
        n_fake_users=3,
        profile_size=2,
        targets=2,
        n_candidates=20,
    )
    check_env(env.unwrapped, skip_render_check=True)
    env.reset(seed=0)
    for _ in range(6):
        _, reward, _, _, info = env.step(np.int64(50))
    assert reward == info["rec_num"] <= info["max_rec_num"]


def test_a_certificate_is_for_a_number_of_accounts() -> None:
    certificate = Certificate(k=1, borne=np.array([[2], [0]]), barred=np.array([[1], [-1]]))
    assert [certificate.overlap(n) for n in (0, 1, 3)] == [1.0, 0.5, 0.0]
    assert [certificate.rec_num_bound(n) for n in (0, 1, 2)] == [1, 1, 2]
    for ask in (certificate.overlap, certificate.rec_num_bound):
        with pytest.raises(ArgumentError, match=r"n_fake_users must be .* got -1"):
            ask(-1)
