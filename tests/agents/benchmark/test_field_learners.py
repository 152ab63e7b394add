"""Attackers that ask, on existing targets: what they hand over is what they tried, and worth the asking."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agents import cli
from agents.benchmark import defense_field, field_learners
from agents.benchmark.cells import ENTRIES
from agents.benchmark.defense_field import (
    FIELD_ATTACKERS,
    Attack,
    Trial,
    attack_identity,
    attack_of,
    make_plan,
    trained_part,
    trial_identity,
    trials_of,
)
from agents.benchmark.defense_report import learned_table, report, what_was_told
from agents.benchmark.field_learners import (
    LEARNERS,
    SetsView,
    filler_orders,
    learn,
    make_learner,
    n_trained_clicks,
    platform,
    without_repeats,
)
from agents.benchmark.gp_platform import Lab, lab
from agents.benchmark.protections import Protection
from agents.gradient.baselines import random_sets
from recattack_gym.core import AttackBudget, FakeProfiles, UnknownNameError
from recattack_gym.simulator import PlatformSimulator
from recattack_gym.victims import VICTIMS

GIVEN: dict[str, Any] = {"epochs": 3, "descent_epochs": 7, "attack_epochs": 5, "group_size": 2}


def attack(name: str, **changes: object) -> Attack:
    """Return an attack on the generated log, by a learner with few queries of ItemPop."""
    settings: dict[str, Any] = {**GIVEN, "victim": "ItemPop", "n_queries": 8, **changes}
    return attack_of("synthetic", 1, name, **settings)


@pytest.fixture(scope="module")
def own() -> Lab:
    return lab("synthetic")


@pytest.fixture(scope="module")
def asked(own: Lab) -> PlatformSimulator:
    return platform(own, "BPR", 1, 50)


# -- what is learnt --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEARNERS)
def test_the_plan_is_what_was_tried_and_beats_as_many_random_profiles(
    name: str, own: Lab, asked: PlatformSimulator
) -> None:
    n_queries = 160
    plan = learn(own, asked, name=name, seed=1, n_queries=n_queries)
    told: Mapping[str, Any] = plan.header
    assert len(told["curve"]) == told["n_queries"] == sum(told["batch_sizes"]) == n_queries
    assert plan.item_ids.shape == (own.n_fake_users, own.profile_size)
    for profile in plan.item_ids:
        assert len(set(profile.tolist())) == own.profile_size  # a set, like everybody's here
    trained = trained_part(plan)
    assert trained.item_ids.shape[1] == int(0.8 * own.profile_size)
    # a platform that this module has no part in
    targets = own.task(1).target_items
    other = PlatformSimulator(
        own.train, "BPR", targets=targets.tolist(), k=50, n_candidates=None, seed=1
    )
    assert told["target_items"] == targets.tolist()
    assert told["rec_num"] == int(other.rec_num(trained)[0]) == max(told["curve"])
    assert told["clean_rec_num"] == other.clean_rec_num
    assert told["max_rec_num"] == 5 * own.train.n_users
    rng = np.random.default_rng(0)
    sets = [random_sets(own.task(1), rng)[:, : trained.item_ids.shape[1]] for _ in range(n_queries)]
    assert told["rec_num"] > other.rec_num(np.stack(sets)).max() > other.clean_rec_num


def test_poisonrec_gets_better_at_it_on_the_whole_catalogue(
    own: Lab, asked: PlatformSimulator
) -> None:
    plan = learn(own, asked, name="poisonrec", seed=1, n_queries=320)
    told: dict[str, Any] = what_was_told(plan)
    first, last = np.array(told["curve"][:32]), np.array(told["curve"][-32:])
    assert (told["first_rec_num"], told["last_rec_num"]) == (first.mean(), last.mean())
    # four standard errors of the difference
    assert last.mean() - first.mean() > 4.0 * np.sqrt((first.var() + last.var()) / 32)


def test_the_same_seed_gives_the_same_plan_and_another_seed_another(
    own: Lab, asked: PlatformSimulator
) -> None:
    plans = [
        learn(own, asked, name="evolution", seed=seed, n_queries=8).content_hash
        for seed in (1, 1, 2)
    ]
    assert plans[0] == plans[1] != plans[2]


def test_learners_keep_their_own_settings_and_others_are_refused() -> None:
    learner = make_learner("poisonrec-warm", 12)
    assert {**asdict(learner.config), "n_queries": None} == {
        **asdict(type(learner)().config),
        "n_queries": None,
    }
    assert asdict(learner.config)["n_queries"] == 12
    assert set(LEARNERS) < set(ENTRIES)
    with pytest.raises(UnknownNameError, match="unknown attacker 'popular'"):
        make_learner("popular", 12)


# -- profiles without repetition -------------------------------------------------------------------


def one_by_one(profiles: NDArray[np.int64], orders: NDArray[np.int64]) -> list[list[list[int]]]:
    """Return what `without_repeats` does, click by click."""
    found = []
    for accounts in profiles.tolist():
        changed = []
        for clicks, order in zip(accounts, orders.tolist(), strict=True):
            waiting = [item for item in order if item not in clicks]
            done: list[int] = []
            for item in clicks:
                done.append(waiting.pop(0) if item in done and waiting else item)
            changed.append(done)
        found.append(changed)
    return found


@pytest.mark.parametrize("n_items", [5, 9, 30])
def test_repeated_clicks_go_to_the_next_fillers_of_the_account(n_items: int) -> None:
    rng = np.random.default_rng(n_items)
    profiles = rng.integers(0, n_items, (6, 3, 8))
    profiles[0] = 2  # one item alone
    profiles[1] = np.arange(8) % n_items
    before = profiles.copy()
    orders = np.stack([rng.permutation(np.arange(2, n_items))[:10] for _ in range(3)])
    found = without_repeats(profiles, orders)
    np.testing.assert_array_equal(profiles, before)
    assert found.tolist() == one_by_one(profiles, orders)
    if n_items > 10:
        assert all(len(set(row)) == 8 for accounts in found.tolist() for row in accounts)
    np.testing.assert_array_equal(without_repeats(found, orders), found)


def test_fillers_are_of_the_account_and_no_targets(own: Lab) -> None:
    targets = own.task(1).target_items
    orders = filler_orders(own, targets, 1)
    assert orders.shape == (own.n_fake_users, own.profile_size)
    assert not np.isin(orders, targets).any()
    assert len({tuple(order) for order in orders.tolist()}) == own.n_fake_users


def test_queries_see_profiles_without_repetition(own: Lab, asked: PlatformSimulator) -> None:
    n_trained = n_trained_clicks(own.profile_size)
    budget = AttackBudget(n_fake_users=own.n_fake_users, profile_size=n_trained)
    orders = filler_orders(own, asked.target_items, 1)
    view = SetsView(asked, budget, orders)
    raw = np.full((1, own.n_fake_users, n_trained), asked.target_items[0])
    raw[0, :, 1] = asked.target_items[1]
    observed = view.query(raw)
    assert observed.tolist() == asked.rec_num(np.array(one_by_one(raw, orders))).tolist()
    assert observed.tolist() != asked.rec_num(raw).tolist()
    assert view.n_queries == 1


# -- identities ------------------------------------------------------------------------------------


def test_identities_of_attacks_that_ask_nobody_are_what_they_were() -> None:
    known = {
        "piece", "version", "code", "log", "measuring", "dataset", "seed", "name", "epochs",
        "attack_epochs", "group_size",
    }  # fmt: skip
    for name in ("none", *(each for each in FIELD_ATTACKERS if each not in LEARNERS)):
        assert attack(name) == attack(name, victim="BPR", n_queries=9)
        identity = attack_identity(attack(name))
        assert set(identity) == known
        assert identity["piece"] == f"attack-synthetic-{name}-1"


def test_identities_of_learners_name_all_that_decides_their_plans(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = attack("poisonrec")
    identity = attack_identity(base)
    assert identity["piece"] == "attack-synthetic-ItemPop-poisonrec-1"
    assert (identity["queried"], identity["n_queries"]) == ("ItemPop", 8)
    learner: Any = identity["learner"]
    assert learner["attacker_config"] == asdict(make_learner("poisonrec", 8).config)
    assert learner["victim_config"] == asdict(VICTIMS["ItemPop"]().config)
    assert learner["k"] == 50
    others = [
        attack_identity(attack("poisonrec", victim="CoVisitation")),
        attack_identity(attack("poisonrec", n_queries=9)),
        attack_identity(attack("evolution")),
    ]
    assert all(other["learner"] != learner for other in others)
    assert others[2]["learner"]["code"] != learner["code"]  # type: ignore[index]  # JSON
    trial = Trial(attack=base, victim="ItemPop", protection=Protection(label="none"))
    assert trial_identity(trial)["attack"] == identity
    # what the victim does and how it is set
    monkeypatch.setattr(field_learners, "code_hash", lambda _: "another")
    assert attack_identity(base)["learner"] == {**learner, "victim_code": "another"}
    monkeypatch.undo()
    monkeypatch.setattr(field_learners, "VICTIMS", {"ItemPop": VICTIMS["BPR"]})
    assert attack_identity(base)["learner"]["victim_config"] == asdict(VICTIMS["BPR"]().config)  # type: ignore[index]  # JSON


def test_the_code_of_a_learner_is_its_own_and_that_of_the_platform(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[set[str]] = []

    def noting(paths: frozenset[Path]) -> str:
        read.append({"/".join(path.parts[-2:]) for path in paths})
        return "digest"

    monkeypatch.setattr(field_learners, "source_digest", noting)
    field_learners._code.__wrapped__("poisonrec")
    (files,) = read
    assert files >= {
        "benchmark/field_learners.py",
        "benchmark/gp_platform.py",
        "poisonrec/agent.py",
        "poisonrec/policy.py",
        "agents/search.py",
        "simulator/platform.py",
        "simulator/view.py",
        "simulator/candidates.py",
    }
    assert not {"benchmark/defense_report.py", "benchmark/defense.py", "agents/reports.py"} & files


def test_a_learner_attacks_the_forms_of_the_victim_that_it_asked() -> None:
    attacks = [attack("random-sets"), attack("evolution", victim="BPR"), attack("evolution")]
    robust = Protection(label="apr", training="apr")
    trials = trials_of(attacks, ["BPR", "ItemPop"], [Protection(label="none"), robust])
    found = [(each.attack.name, each.attack.queried, each.trained) for each in trials]
    assert found == [
        ("random-sets", "", "BPR"),
        ("evolution", "BPR", "BPR"),
        ("random-sets", "", "APR"),
        ("evolution", "BPR", "APR"),
        ("random-sets", "", "ItemPop"),
        ("evolution", "ItemPop", "ItemPop"),
    ]


# -- the command -----------------------------------------------------------------------------------


def test_learners_are_measured_reported_and_not_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        *(
            "bench",
            "defense",
            "--json",
            "--no-plans",
            "--field-datasets",
            "synthetic",
            "--seeds",
            "1",
        ),
        *("--field-victims", "ItemPop", "CoVisitation"),
        *("--field-attackers", "poisonrec", "evolution", "--field-queries", "8"),
        *("--defenses", "popularity", "popularity:weight", "--out", str(tmp_path / "results")),
    ]
    docs = tmp_path / "defense.md"
    assert cli.main([*words, "--write-docs", str(docs)]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert first["n_finished"] == first["n_results"] == 2 * 3 * 3
    assert {(each["victim"], each["attacker"]) for each in first["learned"]} == {
        (victim, name)
        for victim in ("ItemPop", "CoVisitation")
        for name in ("poisonrec", "evolution")
    }
    made = make_plan(attack("poisonrec"))
    (told,) = (
        each
        for each in first["learned"]
        if (each["victim"], each["attacker"]) == ("ItemPop", "poisonrec")
    )
    assert told["curve"] == made.header["curve"]
    assert made.header["k"] == defense_field.K_TARGETS == 50  # lists are as long as those of T-HR
    (row,) = (
        each
        for each in first["field"]
        if (each["victim"], each["attacker"], each["defense"]) == ("ItemPop", "poisonrec", "none")
    )
    trial = Trial(attack=attack("poisonrec"), victim="ItemPop", protection=Protection(label="none"))
    assert row["t_hr"] == defense_field.train_under_attack(trial, made)["t_hr"]
    page = docs.read_text()
    assert "--field-attackers poisonrec evolution " in page
    assert "--field-queries 8 --jobs" in page
    assert "## What those who ask were told" in page
    assert "a lottery lets about half of them take part" in page
    again: list[tuple[str, int]] = []

    def noting(*given: object, name: str, seed: int, n_queries: int) -> FakeProfiles:
        again.append((name, n_queries))
        return learn(*given, name=name, seed=seed, n_queries=n_queries)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(defense_field, "learn", noting)
    (lost,) = (tmp_path / "results" / "defense").glob("trial-*-ItemPop-popularity-evolution-*.json")
    lost.unlink()
    assert cli.main(words) == 0  # the plan is there, so that only the trial is missing
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["field"] == first["field"]
    assert not again
    assert cli.main([*words, "--field-queries", "9"]) == 0
    assert sorted(again) == [("evolution", 9)] * 2 + [("poisonrec", 9)] * 2


def test_the_table_of_learners_has_means_over_seeds() -> None:
    def told(seed: int, **numbers: object) -> dict[str, object]:
        who = {"dataset": "ml-1m", "victim": "BPR", "attacker": "poisonrec", "seed": seed}
        return {**who, "k": 50, "n_queries": 1600, "max_rec_num": 30200, **numbers}

    rows = [
        told(0, clean_rec_num=100, first_rec_num=90.5, last_rec_num=200.0, rec_num=300),
        told(1, clean_rec_num=200, first_rec_num=110.5, last_rec_num=400.0, rec_num=500),
    ]
    header, _, line = (
        [cell.strip() for cell in each.strip("|").split("|")]
        for each in learned_table(rows).splitlines()
    )
    assert dict(zip(header, line, strict=True)) == {
        "dataset": "ml-1m",
        "asked": "BPR",
        "attacker": "poisonrec",
        "queries": "1,600",
        "no attack": "150",
        "first batch": "100",
        "last batch": "300",
        "best": "400",
        "there can be": "30,200",
    }
    assert "first 50 items" in report([], [], [], [], rows)
    assert "asked" not in report([], [], [], [])
