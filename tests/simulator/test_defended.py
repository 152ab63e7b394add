"""The platform that screens accounts: who is dropped, what is then learnt, and that nothing else changes."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions, UnknownNameError
from recattack_gym.core.random import draw_seed
from recattack_gym.datasets import SyntheticConfig, from_interactions, generate
from recattack_gym.defenses import DETECTORS, Detector, DetectorConfig, Screening
from recattack_gym.simulator import DefendedSimulator, PlatformSimulator, make_simulator
from recattack_gym.simulator.known_users import kept_out, recommend_unseen
from recattack_gym.victims import BPR, VICTIMS, Victim
from recattack_gym.victims.ranking import CandidateLists

QUICK = {"epochs": 2, "embedding_size": 8, "finetune_epochs": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatsConfig(DetectorConfig):
    """No settings."""


class Repeats(Detector):
    """Suspects who clicks one item again and again; what is flagged can be told by eye."""

    name = "repeats"
    config_class: ClassVar[type[DetectorConfig]] = RepeatsConfig

    def _scores(self, log: Interactions) -> NDArray[np.float64]:
        most = [
            np.bincount(log.items_of(user)).max() if len(log.items_of(user)) else 0
            for user in range(log.n_users)
        ]
        return np.array(most, dtype=np.float64)


def small_log() -> Interactions:
    return generate(
        SyntheticConfig(n_users=40, n_items=60, n_events=600), np.random.default_rng(3)
    ).log


def ladder() -> Interactions:
    """Item 0 to 3 have 4, 3, 2, 1 clicks; nobody clicks twice but user 4, who clicks item 5 four times."""
    users = [0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 4, 4, 4]
    items = [0, 1, 2, 3, 0, 1, 2, 0, 1, 0, 5, 5, 5, 5]
    return Interactions(np.array(users), np.array(items), 5, 6)


def on_ladder(share: float, **more: object) -> DefendedSimulator:
    arguments = {"victim": "ItemPop", "targets": 1, "k": 1, "n_candidates": None, **more}
    return DefendedSimulator(ladder(), screening=Screening(Repeats(), share), **arguments)  # type: ignore[arg-type]


def test_the_flagged_user_is_not_learnt_from_but_still_counts() -> None:
    platform = on_ladder(0.2)  # one of five
    assert platform.genuine_dropped.tolist() == [False] * 4 + [True]
    assert platform.n_users == 5
    assert platform.item_popularity.tolist() == [4, 3, 2, 1, 0, 0, 0]
    # Without screening item 5 has four clicks; here it has none, and users are shown 4, 3, 2, 1 and 0.
    assert platform.victim.recommend(np.arange(5), 1)[:, 0].tolist() == [4, 3, 2, 1, 0]


def test_rec_num_by_hand() -> None:
    platform = on_ladder(0.3)  # two of five genuine users, and of seven accounts three
    assert platform.genuine_dropped.sum() == 2
    assert bool(platform.genuine_dropped[4])
    quiet, loud = [[6, 1], [6, 2]], [[6, 6], [6, 6]]
    outcome, screened = platform.screened_exposure([quiet, loud])
    # The loud accounts click one item twice and are flagged behind user 4, who does so four times.
    assert screened.is_dropped[1].tolist() == [True, True]
    assert screened.n_genuine_flagged[1] == 1
    assert outcome[1].tolist() == platform.clean_exposure.tolist()
    # Of the quiet set, tied with the genuine users, whoever the hash takes is dropped, the rest injected.
    left = np.array(quiet)[~screened.is_dropped[0]]
    plain = PlatformSimulator(
        platform.log, "ItemPop", targets=1, k=1, n_candidates=None
    )  # the screened log
    expected = plain.exposure(left)[0] if len(left) else plain.clean_exposure
    assert outcome[0].tolist() == expected.tolist()
    assert screened.n_dropped.tolist() == screened.is_dropped.sum(axis=1).tolist()


@pytest.mark.parametrize("victim", ["BPR", "CoVisitation", "AutoRec"])
@pytest.mark.parametrize("retrain", ["finetune", "full"])
def test_equals_a_plain_platform_that_never_had_the_dropped_accounts(
    victim: str, retrain: str
) -> None:
    log = small_log()
    config = {} if victim == "CoVisitation" else QUICK
    arguments: dict[str, Any] = {
        "targets": 2,
        "n_candidates": 20,
        "victim_config": config,
        "retrain": retrain,
    }
    defended = DefendedSimulator(log, victim, screening=Screening(Repeats(), 0.1), **arguments)
    rng = np.random.default_rng(0)
    sets = rng.integers(0, defended.n_items, (5, 4, 6))
    sets[1, :2] = defended.target_items[0]  # two accounts that stand out
    sets[2] = defended.target_items[1]  # all four
    outcome, screened = defended.screened_exposure(sets)
    assert screened.n_dropped[1] >= 2
    assert screened.n_dropped[2] == 4
    keep = ~defended.genuine_dropped[log.user_ids]
    plain = PlatformSimulator(log.select(keep), victim, **arguments)
    plain.lists = defended.lists  # which know what the dropped users clicked
    for profile, dropped, exposure in zip(sets, screened.is_dropped, outcome, strict=True):
        left = profile[~dropped]
        expected = plain.exposure(left)[0] if len(left) else plain.clean_exposure
        assert exposure.tolist() == expected.tolist()


def test_sets_do_not_know_of_each_other_and_nothing_is_left_behind() -> None:
    platform = DefendedSimulator(
        small_log(),
        "BPR",
        screening=Screening(Repeats(), 0.1),
        victim_config=QUICK,
        n_candidates=20,
    )
    sets = np.random.default_rng(1).integers(0, platform.n_items, (6, 4, 6))
    sets[3] = platform.target_items[0]
    together = platform.exposure(sets)
    alone = np.concatenate([platform.exposure(one) for one in sets])
    assert together.tolist() == alone.tolist()
    assert platform.exposure(sets).tolist() == together.tolist()


def test_fresh_lists_are_those_of_the_plain_platform() -> None:
    log = small_log()
    arguments: dict[str, Any] = {"targets": 2, "n_candidates": 20, "victim_config": QUICK}
    defended = DefendedSimulator(log, "BPR", screening=Screening(Repeats(), 0.1), **arguments)
    plain = PlatformSimulator(defended.log, "BPR", **arguments)
    plain._draw_lists = defended._draw_lists  # type: ignore[method-assign]  # which know all clicks
    profile = np.random.default_rng(2).integers(0, defended.n_items, (4, 6))
    left = profile[~defended.screen(profile).is_dropped[0]]
    assert len(left) > 0
    fresh = [np.random.default_rng(7) for _ in range(2)]
    assert (
        defended.exposure(profile, rng=fresh[0]).tolist()
        == plain.exposure(left, rng=fresh[1]).tolist()
    )
    assert fresh[0].bit_generator.state == fresh[1].bit_generator.state
    all_caught = np.full((4, 6), defended.target_items[0])
    rng = np.random.default_rng(7)
    lists = defended._draw_lists(defended.lists.log, draw_seed(rng))
    # nobody is left: the clean victim, on fresh lists
    expected = by_hand(defended, defended.victim, lists)
    assert expected.tolist() != defended.clean_exposure.tolist()
    exposure = defended.exposure(all_caught, rng=np.random.default_rng(7))
    assert exposure.tolist() == [expected.tolist()]
    both = defended.exposure([all_caught, profile], rng=np.random.default_rng(7))
    assert both[0].tolist() == expected.tolist()
    assert both[1].tolist() == defended.exposure(profile, rng=np.random.default_rng(7))[0].tolist()


def test_side_effects_are_measured_on_everyone() -> None:
    dataset = from_interactions(small_log())
    screening = Screening(Repeats(), 0.2)
    defended = DefendedSimulator(
        dataset, "BPR", screening=screening, victim_config=QUICK, n_candidates=20
    )
    sets = np.random.default_rng(1).integers(0, defended.n_items, (3, 4, 6))
    sets[1] = defended.target_items[0]  # caught
    kept = ~defended.screen(sets).is_dropped
    assert not kept[1].any()
    effects = defended.side_effects(sets)
    assert effects.hr_at_k[1] == effects.clean_hr_at_k
    assert effects.ndcg_at_k[1] == effects.clean_ndcg_at_k
    for m in (0, 2):
        poisoned = defended.victim.poisoned(sets[m][kept[m]], defended._retrain_seed, "finetune")
        users = np.flatnonzero(dataset.split.evaluable("test"))
        shown = []
        for user in users.tolist():
            items = np.arange(defended.n_items)
            scores = poisoned.score(np.array([user]), items[None])[0]
            if defended.genuine_dropped[user]:  # nothing is known about them: what is most popular
                scores = poisoned.log.item_popularity
            order = items[np.argsort(-scores, kind="stable")]
            seen = defended.unscreened_log.items_of(user)  # also of those who were dropped
            shown.append(order[~np.isin(order, seen)][:10])
        hits = np.stack(shown) == dataset.split.test_items[users, None]
        assert effects.hr_at_k[m] == pytest.approx(hits.any(axis=1).mean())
    undefended = PlatformSimulator(dataset, "BPR", victim_config=QUICK, n_candidates=20)
    users = np.flatnonzero(dataset.split.evaluable("test"))
    assert bool(defended.genuine_dropped[users].any())  # and they are among those who are measured
    assert len(undefended.log) > len(defended.log)


def test_lists_never_show_what_a_dropped_user_clicked() -> None:
    defended = on_ladder(0.2, targets=(1, 5), n_candidates=3)
    assert defended.candidates is not None
    assert bool(defended.genuine_dropped[4])
    assert defended.lists.kept_out.tolist() == defended.genuine_dropped.tolist()
    assert not defended.lists.eligible[4].any()  # not shown anything by the victim
    for user in range(4):
        drawn = defended.candidates[user, :-2]
        assert not np.isin(drawn, ladder().items_of(user)).any()
        assert defended.lists.eligible[user].tolist() == [
            target not in ladder().items_of(user) for target in (1, 5)
        ]
    # The lists are those of a platform without any defence.
    plain = PlatformSimulator(ladder(), "ItemPop", targets=(1, 5), k=1, n_candidates=3)
    assert plain.candidates is not None
    assert defended.candidates.tolist() == plain.candidates.tolist()
    # All are pushed to the top by the poison: those who own target 1 see 5, user 4 sees 1.
    outcome, screened = defended.screened_exposure([[[1, 5]] * 9])
    assert screened.n_dropped[0] < 9
    assert outcome[0].tolist() == [2, 3]
    assert outcome[0].sum() <= defended.max_rec_num
    dataset = from_interactions(small_log())
    everyone = DefendedSimulator(
        small_log(), "ItemPop", screening=Screening(Repeats(), 0.2), n_candidates=20
    )
    assert everyone.candidates is not None
    for user in np.flatnonzero(everyone.genuine_dropped).tolist():
        assert not np.isin(everyone.candidates[user], small_log().items_of(user)).any()
    effects = DefendedSimulator(
        dataset, "ItemPop", screening=Screening(Repeats(), 0.2), n_candidates=20
    )
    users = np.flatnonzero(effects.genuine_dropped)
    shown = recommend_unseen(effects.victim, users, effects.unscreened_log, 30)
    assert len(users) > 0
    for user, items in zip(users.tolist(), shown, strict=True):
        own = dataset.split.train.items_of(user)
        assert np.isin(
            own, effects.victim.recommend(np.array([user]), 60)
        ).any()  # on its own it does
        assert not np.isin(items, own).any()


def by_hand(
    platform: DefendedSimulator, victim: Victim, lists: CandidateLists
) -> NDArray[np.int64]:
    """Exposure on lists made one by one: the victim's of those it was trained on, else the most popular."""
    own, popularity = platform.unscreened_log, victim.log.item_popularity
    exposure = np.zeros(len(platform.target_items), dtype=np.int64)
    for user in range(platform.n_users):
        items = np.arange(platform.n_items) if lists.all_ids is None else lists.all_ids[user]
        items = np.sort(items[~np.isin(items, own.items_of(user))])
        scores = victim.score(np.array([user]), items[None])[0]
        if platform.genuine_dropped[user]:
            scores = popularity[items].astype(np.float32)
        exposure += np.isin(
            platform.target_items, items[np.argsort(-scores, kind="stable")][: platform.k]
        )
    return exposure


@pytest.mark.parametrize("victim", ["ItemPop", "CoVisitation", "BPR", "AutoRec"])
@pytest.mark.parametrize("n_candidates", [20, None])
@pytest.mark.parametrize("is_new", [True, False])
def test_whom_training_leaves_out_is_shown_what_is_popular(
    victim: str, n_candidates: int | None, is_new: bool
) -> None:
    log = small_log()
    middling = np.argsort(-log.item_popularity)[20:22].tolist()
    config = {} if victim in ("ItemPop", "CoVisitation") else QUICK
    platform = DefendedSimulator(
        log,
        victim,
        screening=Screening(Repeats(), 0.25),
        targets=2 if is_new else middling,
        k=5,
        n_candidates=n_candidates,
        victim_config=config,
    )
    rng = np.random.default_rng(5)
    sets = rng.integers(0, platform.n_items, (3, 40, 8))
    sets[0, :, 0] = sets[1, :, ::2] = platform.target_items[0]
    kept = ~platform.screen(sets).is_dropped
    assert kept.any(axis=1).all()
    assert not kept.all(axis=1).any()
    by_popularity = platform.lists.exposure_by_popularity
    fakes = np.bincount(sets[0][kept[0]].ravel(), minlength=platform.n_items)
    assert (
        by_popularity(platform.item_popularity + fakes)[0]
        > by_popularity(platform.item_popularity)[0]
    )
    clean = by_hand(platform, platform.victim, platform.lists)
    assert platform.clean_exposure.tolist() == clean.tolist()
    assert not platform.clean_exposure.flags.writeable
    for exposure, profile, passes in zip(platform.exposure(sets), sets, kept, strict=True):
        poisoned = platform.victim.poisoned(profile[passes], platform._retrain_seed, "finetune")
        assert exposure.tolist() == by_hand(platform, poisoned, platform.lists).tolist()
    caught = np.full((4, 8), platform.target_items[0])
    assert platform.exposure(caught).tolist() == [clean.tolist()]
    # Candidates that are drawn afresh are those of the victim and of the others alike.
    rng = np.random.default_rng(6)
    lists, seed = platform._draw_lists(platform.lists.log, draw_seed(rng)), draw_seed(rng)
    poisoned = platform.victim.poisoned(sets[0][kept[0]], seed, "finetune")
    afresh = platform.exposure(sets[0], rng=np.random.default_rng(6))
    assert afresh.tolist() == [by_hand(platform, poisoned, lists).tolist()]


def test_fake_clicks_that_pass_reach_those_who_are_kept_out() -> None:
    log = Interactions(np.array([0, 1, 2, 2, 2]), np.array([0, 1, 2, 2, 2]), 3, 3)
    platform = DefendedSimulator(
        log, "BPR", screening=Screening(Repeats(), 0.25), targets=1, k=1, n_candidates=None
    )
    assert platform.genuine_dropped.tolist() == [False, False, True]
    assert platform.lists.exposure_by_popularity(np.array([1, 1, 0, 0])).tolist() == [0]
    assert platform.lists.exposure_by_popularity(np.array([1, 1, 9, 1])).tolist() == [0]  # a tie
    assert platform.lists.exposure_by_popularity(np.array([1, 1, 9, 2])).tolist() == [1]
    shown = recommend_unseen(platform.victim, np.arange(3), platform.unscreened_log, 4)
    assert shown[2].tolist() == [0, 1, 3, -1]  # item 2 is theirs
    poisoned = platform.victim.poisoned(np.array([[3, 3]]), 0, "finetune")
    shown = recommend_unseen(poisoned, np.arange(3), platform.unscreened_log, 4)
    assert shown[2].tolist() == [3, 0, 1, -1]


def test_users_are_served_alike_alone_and_among_many() -> None:
    log = generate(
        SyntheticConfig(n_users=600, n_items=60, n_events=6000), np.random.default_rng(3)
    ).log
    trained = log.select(np.random.default_rng(4).random(600)[log.user_ids] < 0.8)
    victim = BPR(QUICK).fit(trained, np.random.default_rng(0))
    users = np.random.default_rng(1).permutation(600)  # more than one block
    assert kept_out(trained, log)[users[512:]].any()
    together = recommend_unseen(victim, users, log, 5)
    alone = [recommend_unseen(victim, np.array([user]), log, 5)[0].tolist() for user in users]
    assert together.tolist() == alone


def test_users_without_any_click_are_the_victims() -> None:
    known = Interactions(np.array([0, 2]), np.array([0, 1]), 4, 2)
    trained = Interactions(np.array([2, 4]), np.array([1, 1]), 5, 2)  # and one behind them
    assert kept_out(trained, known).tolist() == [True, False, False, False]


@pytest.mark.parametrize("victim", list(VICTIMS))
def test_compiled_engines_equal_plain_ones_on_lists_that_know_more_than_the_victim(
    victim: str,
) -> None:
    log = small_log()
    popular = np.argsort(-log.item_popularity)[:2].tolist()  # targets that dropped users own
    names = {"epochs", "embedding_size", "finetune_epochs"}
    fields = set(VICTIMS[victim].config_class.__dataclass_fields__)
    config = {name: QUICK[name] for name in names & fields}
    compiled, plain = (
        DefendedSimulator(
            log,
            victim,
            screening=Screening(Repeats(), 0.2),
            targets=popular,
            k=5,
            n_candidates=20,
            victim_config=config,
            backend=backend,
        )
        for backend in ("auto", "plain")
    )
    dropped = compiled.genuine_dropped
    assert not compiled.lists.eligible[dropped].all()
    profile = np.random.default_rng(0).integers(0, log.n_items, (3, 6))
    assert compiled.exposure(profile).tolist() == plain.exposure(profile).tolist()


def test_recommend_unseen_is_recommend_where_the_victim_knows_everything() -> None:
    log = generate(
        SyntheticConfig(n_users=600, n_items=60, n_events=6000), np.random.default_rng(3)
    ).log
    victim = VICTIMS["ItemPop"]().fit(log, np.random.default_rng(0))
    users = np.random.default_rng(1).permutation(600)  # more than one block
    shown = recommend_unseen(victim, users, log, 55)
    assert (shown == -1).any()
    assert shown.tolist() == victim.recommend(users, 55).tolist()


def test_several_screenings_add_up() -> None:
    log = small_log()
    first = Screening(Repeats(), 0.1)
    second = Screening(DETECTORS["popularity"](), 0.1)
    both = DefendedSimulator(log, "ItemPop", screening=[first, second], n_candidates=20)
    catalogue = log.with_catalogue(log.n_items + 8)
    expected = first.flags(catalogue) | second.flags(catalogue)
    assert both.genuine_dropped.tolist() == expected.tolist()


def test_equal_scores_favour_neither_early_nor_late_accounts() -> None:
    class Blind(Repeats):
        def _scores(self, log: Interactions) -> NDArray[np.float64]:
            return np.zeros(log.n_users)

    log = Interactions(np.arange(4000), np.zeros(4000, dtype=np.int64), 4000, 2)
    flagged = np.flatnonzero(Screening(Blind(), 0.1).flags(log))
    assert len(flagged) == 400
    assert 1800 < flagged.mean() < 2200
    assert 150 < (flagged < 2000).sum() < 250


@pytest.mark.parametrize(("share", "n", "expected"), [(0.01, 100, 1), (0.01, 101, 2), (0.1, 30, 3)])
def test_the_number_of_flagged_accounts_is_rounded_up(share: float, n: int, expected: int) -> None:
    assert Screening(Repeats(), share).n_flagged(n) == expected


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, "all", float("nan")])
def test_a_wrong_share_is_refused(share: object) -> None:
    with pytest.raises(ArgumentError, match="share must be"):
        Screening(Repeats(), share)  # type: ignore[arg-type]


def test_wrong_defenses_are_refused() -> None:
    with pytest.raises(ArgumentError, match="detector must be a Detector, got 'repeats'"):
        Screening("repeats")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="unknown defense 'pca'"):
        make_simulator({"defense": "pca"})
    with pytest.raises(ArgumentError, match="'svm-clicks' learns from fake users that are known"):
        make_simulator({"defense": "svm-clicks"})
    with pytest.raises(ArgumentError, match="defense must be a name, a Screening"):
        make_simulator({"defense": 3})
    with pytest.raises(ArgumentError, match="defense must be a name, a Screening"):
        make_simulator({"defense": ("popularity", 3)})
    with pytest.raises(
        ArgumentError, match="screening must be one Screening or several, got \\[\\]"
    ):
        DefendedSimulator(small_log(), screening=[])
    with pytest.raises(ArgumentError, match="targets must be a whole number"):
        DefendedSimulator(small_log(), screening=Screening(Repeats()), targets=0)
    nearly_all = Screening(Repeats(), 0.999)
    with pytest.raises(ArgumentError, match="somebody's clicks to learn from"):
        DefendedSimulator(ladder(), "ItemPop", screening=nearly_all, targets=1, n_candidates=None)


def test_names_make_the_platform() -> None:
    plain = {"dataset": small_log(), "victim": "ItemPop", "n_candidates": 20}
    assert type(make_simulator(plain)) is PlatformSimulator
    none = make_simulator({**plain, "defense": None})
    assert type(none) is PlatformSimulator
    assert type(make_simulator({**plain, "defense": ()})) is PlatformSimulator
    named = make_simulator({**plain, "defense": "popularity"})
    assert isinstance(named, DefendedSimulator)
    assert named.screening[0].share == 0.01
    given = make_simulator({**plain, "defense": [Screening(Repeats(), 0.2), "popularity"]})
    assert isinstance(given, DefendedSimulator)
    assert [s.detector.name for s in given.screening] == ["repeats", "popularity"]


def test_robust_training_is_the_robust_victim_and_composes_with_detectors() -> None:
    arguments = {"dataset": small_log(), "n_candidates": 20, "victim_config": QUICK}
    robust = make_simulator({**arguments, "victim": "BPR", "defense": "apr"})
    assert type(robust) is PlatformSimulator
    assert robust.victim.name == "APR"
    named = make_simulator({**arguments, "victim": "APR"})
    profile = np.random.default_rng(0).integers(0, named.n_items, (4, 6))
    assert robust.exposure(profile).tolist() == named.exposure(profile).tolist()
    both = make_simulator({**arguments, "victim": BPR, "defense": ["pamacf", "popularity"]})
    assert isinstance(both, DefendedSimulator)
    assert both.victim.name == "PamaCF"
    with pytest.raises(UnknownNameError, match="apr training"):
        make_simulator({**arguments, "victim": "ItemPop", "defense": "apr"})
