"""Defences compared: that rows are what defended platforms do, that tables say what rows do."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents import cli
from agents.benchmark import defense_field, defense_plans, plans, protections
from agents.benchmark.cells import Cell, make_attacker, run_cell
from agents.benchmark.defense_field import (
    Attack,
    Trial,
    make_plan,
    recall_and_ndcg,
    strength_and_quality,
    target_gain_at_k,
    train_under_attack,
    trained_part,
)
from agents.benchmark.defense_figure import draw_defense
from agents.benchmark.defense_report import (
    attack_table,
    field_means,
    field_summary,
    field_table,
    platform_means,
    price,
    report,
    shares,
    summary_table,
)
from agents.benchmark.gp_platform import Lab, lab
from agents.benchmark.plans import read_plan
from agents.benchmark.protections import CLICK_DETECTORS, Protection, protections_of
from recattack_gym.core import ArgumentError, FakeProfiles, Interactions, UnknownNameError
from recattack_gym.defenses import DETECTORS, Screening
from recattack_gym.metrics import detection_auc
from recattack_gym.simulator import DefendedSimulator, PlatformSimulator
from recattack_gym.simulator.known_users import recommend_unseen
from recattack_gym.victims import VICTIMS, ItemPop
from recattack_gym.victims.base import Retrain

CELL = Cell(
    dataset="synthetic",
    protocol=None,
    victim="CoVisitation",
    entry="random-search",
    seed=3,
    n_queries=8,
    n_draws=2,
    is_full=False,
)
FORMS = {("apr", "ItemPop"): "CoVisitation"}
"""Stands in for the table of robust victims: ItemPop's robust form is another counting victim."""


def options(folder: Path, **changes: object) -> list[str]:
    given: dict[str, object] = {
        "--datasets": "synthetic",
        "--protocol": "none",
        "--victims": "ItemPop CoVisitation",
        "--attackers": "popular random-search",
        "--seeds": 3,
        "--queries": 8,
        "--draws": 2,
        "--defenses": "popularity pca-varselect",
        "--share": 0.05,
        "--field-datasets": "synthetic",
        "--field-victims": "ItemPop",
        "--field-attackers": "random-sets",
        "--out": folder,
        **changes,
    }
    return ["bench", "defense", "--json"] + [
        word for name, value in given.items() for word in (name, *str(value).split())
    ]


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


# -- PoisonRec's platforms -------------------------------------------------------------------------


def test_rows_are_what_the_defended_platforms_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*options(tmp_path), "--no-field", "--full"]) == 0
    data = answer(capsys)
    assert data["n_finished"] == data["n_results"] == len(data["plans"]) == 2 * 2 * 3 * 2
    for row in data["plans"]:
        cell = replace(CELL, victim=row["victim"], entry=row["attacker"])
        plan = read_plan(cell, tmp_path)
        assert plan is not None
        platform = {"dataset": "synthetic", "victim": row["victim"], "seed": 3}
        if row["defense"] == "none":
            simulator = PlatformSimulator(**platform)
            assert row["n_dropped"] == row["n_genuine_flagged"] == 0
        else:
            screening = Screening(DETECTORS[row["defense"]](), 0.05)
            simulator = DefendedSimulator(screening=screening, **platform)
            screened = simulator.screen(plan)
            assert row["n_dropped"] == int(screened.n_dropped[0])
            assert row["n_genuine_flagged"] == int(screened.n_genuine_flagged[0])
            assert row["clean_n_flagged"] == 0.05 * simulator.n_users
        assert row["rec_num"] == int(simulator.rec_num(plan, retrain=row["retrain"])[0])
        assert row["clean_rec_num"] == simulator.clean_rec_num
        if row["retrain"] == "full":
            assert row["hr"] is row["clean_hr"] is None
        else:
            effects = simulator.side_effects(plan)
            assert (row["clean_hr"], row["hr"]) == (effects.clean_hr_at_k, effects.hr_at_k[0])
            assert (row["clean_ndcg"], row["ndcg"]) == (
                effects.clean_ndcg_at_k,
                effects.ndcg_at_k[0],
            )
    # not one number that fits everything
    assert len({row["rec_num"] for row in data["plans"]}) > 4
    assert {row["n_dropped"] for row in data["plans"]} - {0, 20}
    log = simulator.dataset.split.train.with_catalogue(simulator.n_items)  # type: ignore[union-attr]
    is_fake = np.arange(log.n_users + 20) >= log.n_users
    assert len(data["visibility"]) == 2 * 2 * len(CLICK_DETECTORS)
    for each in data["visibility"]:
        plan = read_plan(replace(CELL, victim=each["victim"], entry=each["attacker"]), tmp_path)
        assert plan is not None
        scores = DETECTORS[each["detector"]]().scores(log.with_fake_users(plan.item_ids))
        assert each["auc"] == detection_auc(scores, is_fake)


def test_nothing_that_exists_is_measured_again_and_what_is_missing_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(options(tmp_path)) == 0
    first = answer(capsys)
    stored = sorted((tmp_path / "defense").glob("synthetic-*.json"))
    # every plan on its own victim, without and with two detectors
    assert len(stored) == 2 * 2 * 3
    (trial,) = (tmp_path / "defense").glob("trial-*-popularity-random-sets-*.json")
    stored[0].unlink()
    trial.unlink()
    evaluated: list[int] = []
    evaluate, train = defense_plans.evaluate, defense_field.train_under_attack

    def counting(
        simulator: PlatformSimulator, some: Sequence[FakeProfiles], retrain: Retrain
    ) -> list[dict[str, object]]:
        evaluated.append(len(some))
        return evaluate(simulator, some, retrain)

    def training(each: Trial, plan: FakeProfiles | None) -> dict[str, object]:
        evaluated.append(0)
        return train(each, plan)

    def attacked_again(*_: object, **__: object) -> None:
        raise AssertionError("an attack that exists was made again")

    monkeypatch.setattr(defense_plans, "evaluate", counting)
    monkeypatch.setattr(defense_field, "train_under_attack", training)
    monkeypatch.setattr(defense_field, "make_plan", attacked_again)
    monkeypatch.setattr(plans, "run_cells", attacked_again)
    assert cli.main([*options(tmp_path), "--report-only"]) == 0
    assert answer(capsys)["n_finished"] == first["n_finished"] - 2
    assert not evaluated
    assert cli.main(options(tmp_path)) == 0
    assert sorted(evaluated) == [0, 1]
    again = answer(capsys)
    for name in ("plans", "field", "visibility", "t_hr"):
        assert again[name] == first[name]


def test_robust_training_is_found_where_there_is_a_form_of_the_victim(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protections, "ROBUST", FORMS)
    words = options(
        tmp_path, **{"--defenses": "apr apr+popularity", "--attackers": "random-search"}
    )
    assert cli.main(words) == 0
    data = answer(capsys)
    by_defense = {row["defense"]: row for row in data["plans"] if row["victim"] == "ItemPop"}
    assert set(by_defense) == {"none", "apr", "apr+popularity"}
    of_other = {row["defense"] for row in data["plans"] if row["victim"] == "CoVisitation"}
    assert of_other == {"none"}  # which has no robust form
    assert data["n_finished"] == data["n_results"]
    plan = read_plan(replace(CELL, victim="ItemPop"), tmp_path)
    assert plan is not None
    robust = PlatformSimulator("synthetic", "CoVisitation", seed=3)
    assert by_defense["apr"]["trained"] == "CoVisitation"
    assert by_defense["apr"]["rec_num"] == int(robust.rec_num(plan)[0])
    assert by_defense["apr"]["rec_num"] != by_defense["none"]["rec_num"]
    both = DefendedSimulator(
        "synthetic", "CoVisitation", seed=3, screening=Screening(DETECTORS["popularity"](), 0.05)
    )
    assert by_defense["apr+popularity"]["rec_num"] == int(both.rec_num(plan)[0])
    field = {(row["defense"], row["attacker"]): row for row in data["field"]}
    assert field["apr", "none"]["trained"] == "CoVisitation"
    assert field["apr", "none"]["recall"] != field["none", "none"]["recall"]


def test_by_default_defences_are_of_victims_that_rank_clicks() -> None:
    labels = protections.default_labels()
    assert {"none", "popularity", "apr", "pamacf"} <= set(labels)
    assert "lts" not in labels
    (lts,) = protections_of(["lts"], 0.01)[1:]
    assert (lts.victim("ALS"), lts.victim("BPR")) == ("LTS-MF", None)


def test_defences_go_by_names_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protections, "ROBUST", FORMS)
    found = protections_of(["popularity+apr", "none", "popularity+apr", "apr"], 0.02)
    assert [each.label for each in found] == ["none", "popularity+apr", "apr"]
    assert found[1].detectors == ("popularity",)
    assert found[1].training == "apr"
    assert [screening.share for screening in found[1].screenings] == [0.02]
    assert found[0].identity() is found[2].identity() is None
    assert found[1].identity() != protections_of(["popularity"], 0.03)[1].identity()
    (weighted,) = protections_of(["popularity:weight"], 0.02)[1:]
    (screening,) = weighted.screenings
    assert (screening.share, screening.action, screening.weights) == (0.04, "weight", (0.0, 1.0))
    assert weighted.identity() != protections_of(["popularity"], 0.02)[1].identity()
    wrong = (
        "popularty",
        "svm-clicks",
        "popularity+popularity",
        "popularity+popularity:weight",
        "apr+apr",
        "",
        "apr:weight",
        "none:weight",
    )
    for label in wrong:
        with pytest.raises(UnknownNameError, match="unknown defense"):
            protections_of([label], 0.01)
    with pytest.raises(ArgumentError, match="--share must be"):
        protections_of(["popularity"], 0.9)
    monkeypatch.setattr(protections, "ROBUST", {})
    with pytest.raises(UnknownNameError, match="unknown defense 'apr'"):
        protections_of(["apr"], 0.01)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--field-victims", "BRP"], "unknown victim 'BRP'"),
        (["--field-attackers", "poisonrek"], "unknown attacker 'poisonrek'"),
        (["--field-queries", "0"], "--field-queries must be"),
        (["--adaptive", "popular"], "--adaptive must name attackers that query, got 'popular'"),
        (["--adaptive-queries", "0"], "--adaptive-queries must be"),
        (["--no-plans", "--no-field"], "must not both be given"),
        (["--share", "0"], "--share must be"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*options(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "defense").exists()


def test_adaptive_attackers_ask_the_defended_platform(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = options(
        tmp_path,
        **{
            "--victims": "CoVisitation",
            "--attackers": "popular",
            "--adaptive": "random-search",
            "--adaptive-queries": 8,
            "--defenses": "popularity",
        },
    )
    assert cli.main([*words, "--no-field"]) == 0
    data = answer(capsys)
    rows = {row["defense"]: row for row in data["adaptive"]}
    assert set(rows) == {"none", "popularity"}
    assert {row["n_queries"] for row in rows.values()} == {8}
    # on the undefended platform it is table3's own attack
    assert rows["none"]["rec_num"] == run_cell(CELL, tmp_path / "cells")["finetune_rec_num"]
    simulator = DefendedSimulator(
        "synthetic",
        "CoVisitation",
        seed=3,
        screening=Screening(DETECTORS["popularity"](), 0.05),
    )
    plan, n_queries = defense_plans.attack(simulator, make_attacker(CELL), CELL)
    assert n_queries == 8
    assert rows["popularity"]["rec_num"] == int(simulator.rec_num(plan)[0])
    assert rows["popularity"]["n_dropped"] == int(simulator.screen(plan).n_dropped[0])
    table = attack_table(data["adaptive"], with_place=True)
    assert [line[:4] for line in cells(table)[2:]] == [
        ["synthetic", "CoVisitation", "random-search", name] for name in ("none", "popularity")
    ]


def test_a_plan_for_other_items_and_plans_of_several_shapes_are_refused() -> None:
    simulator = PlatformSimulator("synthetic", "ItemPop")
    header = {"n_items": simulator.n_items, "target_items": simulator.target_items.tolist()}
    right = FakeProfiles(np.full((20, 20), 300), header=header)
    assert len(defense_plans.evaluate(simulator, [right, right], "finetune")) == 2
    other = FakeProfiles(right.item_ids, header={**header, "n_items": 9})
    with pytest.raises(ArgumentError, match="n_items of the plan must be that of the platform"):
        defense_plans.evaluate(simulator, [right, other], "finetune")
    small = FakeProfiles(right.item_ids[:3], header=header)
    with pytest.raises(ArgumentError, match="plans must be at least one, and of one shape"):
        defense_plans.evaluate(simulator, [right, small], "finetune")


# -- the setting of the papers on robust training --------------------------------------------------


def test_metrics_of_the_field_are_those_counted_user_by_user() -> None:
    rng = np.random.default_rng(1)
    n_users, n_items, k = 30, 25, 8
    keys = np.unique(rng.integers(0, (n_users - 3) * n_items, 150))  # three users have nothing
    held_out = Interactions(keys // n_items, keys % n_items, n_users, n_items)
    shown = np.stack([rng.permutation(n_items)[:k] for _ in range(n_users)])
    shown[4, 5:] = -1
    targets = np.array([2, 7, 20])
    owns = rng.random((n_users, 3)) < 0.3
    owns[:, 1] = True  # nobody is left to be shown it
    gain = [1.0 / np.log2(place + 2.0) for place in range(k)]
    recalls, ndcgs = [], []
    for user in range(n_users):
        wanted = set(held_out.items_of(user).tolist())
        if wanted:
            hits = [item in wanted for item in shown[user]]
            recalls.append(sum(hits) / len(wanted))
            reached = sum(g for g, hit in zip(gain, hits, strict=True) if hit)
            ndcgs.append(reached / sum(gain[: len(wanted)]))
    assert len(recalls) < n_users
    assert recall_and_ndcg(shown, held_out) == pytest.approx((np.mean(recalls), np.mean(ndcgs)))
    of_targets = []
    for number in (0, 2):
        open_users = [user for user in range(n_users) if not owns[user, number]]
        gains = [
            gain[shown[user].tolist().index(targets[number])]
            if targets[number] in shown[user]
            else 0.0
            for user in open_users
        ]
        of_targets.append(np.mean(gains))
    assert target_gain_at_k(shown, targets, owns) == pytest.approx(np.mean(of_targets))
    nothing = held_out.select(np.zeros(len(held_out), dtype=np.bool_))
    assert np.isnan(recall_and_ndcg(shown, nothing)).all()
    assert np.isnan(target_gain_at_k(shown, targets, np.ones_like(owns)))


def test_targets_are_looked_for_in_lists_of_those_who_own_them_nowhere() -> None:
    users, items = np.arange(4), np.arange(4)
    own = Lab(
        train=Interactions(users, items, 4, 6),
        validation=Interactions(np.array([0, 1, 2]), np.array([4, 5, 4]), 4, 6),
    )
    shown = np.array([[1, 4, 2], [4, 0, 2], [0, 4, 3], [1, 2, 0]])
    found = strength_and_quality(shown, own, np.array([4, 0]))
    # item 4: users 1 (first place) and 3 (none); item 0: users 1, 2 and 3 (second, first, third place)
    second, third = 1.0 / np.log2(3.0), 0.5
    assert found["t_hr"] == pytest.approx((1 / 2 + 3 / 3) / 2)
    assert found["t_ndcg"] == pytest.approx((1.0 / 2 + (second + 1.0 + third) / 3) / 2)
    # users 0 and 2 find item 4 in the second place, user 1 finds nothing, user 3 looks for nothing
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["ndcg"] == pytest.approx(2 * second / 3)


def test_victims_of_a_seed_draw_the_same_numbers_whatever_the_defence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[int] = []

    class Noting(ItemPop):
        def _fit(self, log: Interactions, rng: np.random.Generator) -> None:
            drawn.append(int(rng.integers(2**62)))
            super()._fit(log, rng)

    attacks = [Attack(dataset="synthetic", seed=seed, name="random-sets") for seed in (0, 1)]
    found = protections_of(["popularity", "apr", "pamacf"], 0.05)
    trials = [
        Trial(attack=each, victim="BPR", protection=protection)
        for each in attacks
        for protection in found
    ]
    assert {trial.trained for trial in trials} == {"BPR", "APR", "PamaCF"}
    monkeypatch.setattr(defense_field, "VICTIMS", dict.fromkeys(("BPR", "APR", "PamaCF"), Noting))
    for trial in trials:
        train_under_attack(trial, make_plan(trial.attack))
        train_under_attack(trial, None)
    of_first, of_second = drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]
    assert len(set(of_first)) == len(set(of_second)) == 1
    assert of_first[0] != of_second[0]


@pytest.mark.parametrize("label", ["popularity", "popularity:weight"])
def test_flagged_accounts_are_not_trained_on_but_are_shown_lists(label: str) -> None:
    attack = Attack(dataset="synthetic", seed=2, name="random-sets")
    plan = make_plan(attack)
    own = lab("synthetic")
    assert plan.item_ids.shape == (own.n_fake_users, own.profile_size)
    clicks = trained_part(plan).item_ids
    np.testing.assert_array_equal(clicks, plan.item_ids[:, : int(0.8 * own.profile_size)])
    protection = Protection(label=label, detectors=(label,), share=0.05)
    trial = Trial(attack=attack, victim="ItemPop", protection=protection)
    result = train_under_attack(trial, plan)
    log = own.train.with_fake_users(clicks)
    if label == "popularity":
        screening = Screening(DETECTORS["popularity"](), 0.05)
        flagged = dropped = screening.flags(log)
    else:
        screening = Screening(DETECTORS["popularity"](), 0.1, "weight")
        flagged, dropped = screening.flags(log), screening.drops(log, 2)
        assert 0 < dropped.sum() < flagged.sum()
    n_users = own.train.n_users
    assert result["n_dropped"] == dropped[n_users:].sum() > 0
    assert result["n_genuine_flagged"] == flagged[:n_users].sum() > 0
    victim = VICTIMS["ItemPop"]().fit(
        log.select(~dropped[log.user_ids]), np.random.default_rng(0)
    )  # ItemPop draws nothing
    shown = recommend_unseen(victim, np.arange(n_users), own.train, 50)
    best = np.argsort(
        -victim.score(np.array([0]), np.arange(own.train.n_items)[None])[0], kind="stable"
    )
    for user in (0, int(np.flatnonzero(flagged)[0])):
        seen = set(own.train.items_of(user).tolist())
        assert shown[user].tolist() == [item for item in best.tolist() if item not in seen][:50]
    recall, ndcg = recall_and_ndcg(shown[:, :20], own.validation)
    assert (result["recall"], result["ndcg"]) == (recall, ndcg)
    targets = own.task(2).target_items

    def rate(users: Sequence[int]) -> float:
        rates = []
        for target in targets:
            strangers = [
                user
                for user in users
                if target not in own.train.items_of(user)
                and target not in own.validation.items_of(user)
            ]
            rates.append(np.mean([target in shown[user] for user in strangers]))
        return float(np.mean(rates))

    assert result["t_hr"] == pytest.approx(rate(range(n_users)))
    trained = np.flatnonzero(~dropped[:n_users]).tolist()
    assert result["t_hr_trained"] == pytest.approx(rate(trained))
    assert 0 < len(trained) < n_users
    assert result["t_hr_trained"] != result["t_hr"]
    plain = train_under_attack(replace(trial, protection=Protection(label="none")), plan)
    assert plain["n_dropped"] == plain["n_genuine_flagged"] == 0
    assert plain["t_hr_trained"] == plain["t_hr"]
    clean = train_under_attack(replace(trial, protection=Protection(label="none")), None)
    assert clean["n_fake"] == 0
    assert float(str(clean["t_hr"])) <= float(str(plain["t_hr"]))


def test_what_an_attack_has_no_use_for_is_not_part_of_it() -> None:
    given: dict[str, Any] = {
        "epochs": 3,
        "descent_epochs": 7,
        "attack_epochs": 5,
        "group_size": 2,
    }
    make = defense_field.attack_of
    assert make("synthetic", 1, "bandwagon-sets", **given) == Attack(
        dataset="synthetic", seed=1, name="bandwagon-sets"
    )
    dpa2dl, revadv = (make("synthetic", 1, name, **given) for name in ("dpa2dl", "revadv"))
    assert (dpa2dl.epochs, dpa2dl.group_size, dpa2dl.attack_epochs) == (3, 2, 0)
    assert (revadv.epochs, revadv.group_size, revadv.attack_epochs) == (7, 0, 5)


# -- what is worked out ----------------------------------------------------------------------------


def row(defense: str, attacker: str, seed: int, rec_num: int, **changes: object) -> dict[str, Any]:
    return {
        "dataset": "steam",
        "victim": "BPR",
        "trained": "BPR",
        "defense": defense,
        "attacker": attacker,
        "seed": seed,
        "retrain": "finetune",
        "rec_num": rec_num,
        "clean_rec_num": 10,
        "max_rec_num": 5000,
        "n_fake": 20,
        "n_dropped": 0,
        "n_genuine_flagged": 0,
        "clean_n_flagged": 0,
        "k": 10,
        "clean_hr": 0.4,
        "clean_ndcg": 0.2,
        "hr": 0.39,
        "ndcg": 0.19,
        "n_queries": None,
        **changes,
    }


CHEAP: Mapping[str, object] = {"n_dropped": 15, "clean_n_flagged": 66, "clean_hr": 0.38}
ROWS = [
    row("none", "popular", 0, 100),
    row("none", "popular", 1, 300),
    row("none", "evolution", 0, 1000),
    row("none", "middle", 0, 0),
    row("popularity", "popular", 0, 50, **CHEAP),
    row("popularity", "popular", 1, 50, **CHEAP),
    row("popularity", "evolution", 0, 900, **{**CHEAP, "n_dropped": 0}),
    row("popularity", "evolution", 1, 5, **CHEAP),  # the undefended is missing
    row("popularity", "middle", 0, 7, **CHEAP),  # reached nobody undefended
    row("none", "random", 0, 49),  # less than one per cent
    row("popularity", "random", 0, 490, **CHEAP),
]


def cells(table: str) -> list[list[str]]:
    return [[x.strip() for x in line.strip("|").split("|")] for line in table.splitlines()]


def test_shares_and_prices_are_ratios_over_the_seeds_that_both_have() -> None:
    kept = shares(ROWS)
    assert kept["BPR", "popular", "popularity"] == pytest.approx(100 / 400)
    assert kept["BPR", "evolution", "popularity"] == pytest.approx(0.9)
    assert ("BPR", "middle", "popularity") not in kept
    assert ("BPR", "random", "popularity") not in kept
    assert price(ROWS, "clean_hr")["BPR", "popularity"] == pytest.approx(-0.05)
    assert price(ROWS, "clean_ndcg")["BPR", "popularity"] == pytest.approx(0.0)
    means = platform_means(ROWS)
    assert means["rec_num_share"]["popularity"] == pytest.approx((0.25 + 0.9) / 2)  # type: ignore[index]
    assert means["fakes_dropped"]["popularity"] == pytest.approx(5 * 15 / 20 / 6)  # type: ignore[index]
    assert means["clean_hr_change"] == {"none": 0.0, "popularity": pytest.approx(-0.05)}


def test_tables_say_what_was_stopped_and_what_it_cost() -> None:
    header, _, none, defended = cells(summary_table(ROWS))
    assert none[:4] == ["none", "1", "1.00", "1.00"]
    assert dict(zip(header, defended, strict=True)) == {
        "defence": "popularity",
        "victims": "1",
        "rules of thumb": "0.25",
        "queried": "0.90",
        "largest": "0.90",
        "of": "evolution on BPR",
        "fakes dropped": "12.5 of 20",
        "genuine kept out": "66",
        "HR@10": "-5.0 %",
        "NDCG@10": "+0.0 %",
    }
    lines = {(line[0], line[1]): line[2:] for line in cells(attack_table(ROWS))[2:]}
    # 100 and 300: mean 200, deviation 141.42, t(0.975, 1) = 12.706
    assert lines["popular", "none"] == ["200 ± 1,271", "1.00", "0 of 20", "0", "0.3900", "0.1900"]
    assert lines["popular", "popularity"][:3] == ["50 ± 0", "0.25", "15 of 20"]
    assert lines["middle", "popularity"][:2] == ["7", "-"]
    text = report(ROWS, [], [], [])
    assert text.index("## steam, fine-tuning") < text.index("### BPR")
    assert "lottery" not in text
    weighed = [{**each, "defense": each["defense"].replace("ity", "ity:weight")} for each in ROWS]
    assert "Behind `:weight` twice as many are flagged, and a lottery" in report(
        weighed, [], [], []
    )


def test_means_of_the_field_leave_out_where_nobody_attacks() -> None:
    def trained(defense: str, attacker: str, t_hr: float, recall: float) -> dict[str, Any]:
        kept_in = t_hr / (4 if defense == "none" else 8)
        hits = {"t_hr": t_hr, "t_hr_trained": kept_in, "t_ndcg": t_hr / 2}
        numbers = {**hits, "recall": recall, "ndcg": recall / 2}
        flags = {"n_fake": 60 * (attacker != "none"), "n_dropped": 3, "n_genuine_flagged": 1}
        place = {"dataset": "ml-1m", "victim": "BPR", "seed": 0}
        return {"defense": defense, "attacker": attacker, **numbers, **flags, **place}

    rows = [
        trained("none", "none", 0.001, 0.30),
        trained("none", "dpa2dl", 0.02, 0.29),
        trained("none", "random-sets", 0.04, 0.28),
        trained("apr", "none", 0.001, 0.31),
        trained("apr", "dpa2dl", 0.01, 0.30),
    ]
    means = field_means(rows)
    # random sets are not in APR's mean, and so in nobody's
    assert means["t_hr"] == {"none": pytest.approx(0.02), "apr": pytest.approx(0.01)}
    assert means["recall"] == {"none": pytest.approx(0.29), "apr": pytest.approx(0.30)}
    assert means["clean_recall"] == {"none": 0.30, "apr": 0.31}
    both = field_means([*rows, trained("apr", "random-sets", 0.03, 0.26)])
    assert both["t_hr"] == {"none": pytest.approx(0.03), "apr": pytest.approx(0.02)}
    assert both["recall"] == {"none": pytest.approx(0.285), "apr": pytest.approx(0.28)}
    for other in ({"seed": 1}, {"dataset": "gowalla"}, {"victim": "LightGCN"}):
        assert field_means([rows[1], {**rows[4], **other}])["t_hr"] == {}  # nothing in common
    # of APR there is one attack, which the undefended victim met, too; no attack does not count
    assert cells(field_summary(rows))[2:] == [
        ["none", "2", "1.00", "+0.0 %", "+0.0 %"],
        ["apr", "1", "0.25", "+3.4 %", "+3.4 %"],
    ]
    lines = {(line[0], line[1]): line[2:] for line in cells(field_table(rows))[2:]}
    assert lines["dpa2dl", "apr"] == ["1", "0.125", "0.5", "30", "15", "0.25", "3 of 60", "1"]
    assert lines["(no attack)", "none"][6] == "-"


def test_intervals_are_of_a_defences_own_seeds_and_shares_of_those_that_both_have() -> None:
    def trained(defense: str, seed: int, t_hr: float) -> dict[str, Any]:
        place = {"dataset": "ml-1m", "victim": "BPR", "attacker": "poisonrec", "seed": seed}
        numbers = {"t_hr": 0.1, "t_hr_trained": t_hr, "t_ndcg": 0.1, "recall": 0.3, "ndcg": 0.2}
        flags = {"n_fake": 60, "n_dropped": 0, "n_genuine_flagged": 0}
        return {"defense": defense, **place, **numbers, **flags}

    rows = [
        *(trained("none", seed, t_hr) for seed, t_hr in ((0, 0.01), (1, 0.02), (2, 0.03))),
        *(trained("apr", seed, t_hr) for seed, t_hr in ((1, 0.01), (2, 0.02), (3, 0.09))),
    ]
    lines = {line[1]: line[2:] for line in cells(field_table(rows))[2:]}
    # t(0.975, 2) = 4.3027; deviations 1 and 19 ** 0.5
    assert lines["none"][1:3] == ["2 ± 2.5", "10 ± 0"]
    assert lines["apr"][1] == "4 ± 11"
    assert [lines[name][5] for name in ("none", "apr")] == ["1.00", "0.60"]


def test_reports_and_pictures_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = tmp_path / "docs" / "defense.md"
    words = options(
        tmp_path / "cells",
        **{"--attackers": "popular", "--figures": tmp_path / "docs", "--write-docs": docs},
    )
    assert cli.main(words) == 0
    (picture,) = answer(capsys)["figures"]
    assert Path(picture).read_bytes().startswith(b"\x89PNG")
    page = docs.read_text()
    assert "$ recattack bench defense --defenses popularity pca-varselect --share 0.05" in page
    assert "--field-datasets synthetic" in page
    assert "## synthetic, fine-tuning" in page
    assert "## synthetic, ItemPop trained from scratch" in page
    assert "Visibility of these attacks, by the clicks that victims are trained on. Recall" in page
    assert "![defense-synthetic-finetune](defense-synthetic-finetune.png)" in page
    written = json.loads(docs.with_suffix(".json").read_text())
    assert len(written["plans"]) == 2 * 3
    assert len(written["field"]) == 2 * 3
    path = tmp_path / "several.png"
    draw_defense([*ROWS, *(row("none", "popular", s, 9, victim="PMF") for s in (0, 1))], path)
    assert path.stat().st_size > 10_000


@pytest.mark.slow
def test_the_smoke_run_ends_in_numbers_per_defence_and_takes_less_than_a_minute(
    tmp_path: Path,
) -> None:
    words = [sys.executable, "-m", "agents.cli", "bench", "defense", "--smoke", "--json"]
    done = subprocess.run(  # noqa: S603
        [*words, "--out", str(tmp_path)], capture_output=True, text=True, check=True
    )
    data = json.loads(done.stdout.splitlines()[-1])
    for name in ("t_hr", "recall", "rec_num_share"):
        assert set(data[name]) == set(protections.default_labels())
        assert all(np.isfinite(value) for value in data[name].values())
    start = time.process_time()
    assert cli.main(["bench", "defense", "--smoke", "--out", str(tmp_path)]) == 0
    assert time.process_time() - start < 10  # everything was there
