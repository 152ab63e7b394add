"""The benchmark of the arms race: that rows are what the rounds were, pieces, tables, pictures, messages."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from agents import cli
from agents.attackers import ATTACKERS
from agents.benchmark import armsrace_race
from agents.benchmark.armsrace_figure import draw_race
from agents.benchmark.armsrace_race import (
    OPPONENTS,
    RULES_OF_THUMB,
    Race,
    RaceView,
    Side,
    race_identity,
    read_races,
    rules_of_thumb,
    run_race,
    run_races,
)
from agents.benchmark.armsrace_report import RoundRow, final_means, report, rows_of
from agents.poisonrec.agent import PoisonRecConfig
from recattack_gym.core import AttackBudget, KnowledgeError
from recattack_gym.defenses import Screening
from recattack_gym.metrics import detection_auc, recall_at_fpr
from recattack_gym.simulator import DefendedSimulator, PlatformSimulator
from recattack_gym.simulator.arms_race import AdaptiveDetector, genuine_log

RACE = Race(
    dataset="synthetic",
    protocol=None,
    victim="ItemPop",
    attacker="random-search",
    opponent="adaptive",
    seed=2,
    n_rounds=2,
    n_queries=4,
    n_draws=2,
    detector="degree-sad",
    share=0.02,
    max_attacks=20,
    audit_rate=1.0,
)


def rounds(race: Race) -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], run_race(race)["rounds"])


def test_a_race_is_what_the_platforms_of_its_rounds_do() -> None:
    """The slow twin: every round by hand, with defended platforms made anew."""
    plain = PlatformSimulator("synthetic", "ItemPop", seed=2)
    genuine = genuine_log(plain)
    known = rules_of_thumb(genuine, plain.goal, AttackBudget(), 2)
    defence = AdaptiveDetector(genuine, RACE.config, known=known, seed=2)
    view = RaceView(plain.goal, plain.item_popularity, AttackBudget())
    side = Side(RACE, view)
    measured = rounds(RACE)
    assert len(measured) == 2
    for number, row in enumerate(measured):
        detector = defence.detector
        assert detector is not None
        platform = DefendedSimulator(
            "synthetic", "ItemPop", seed=2, screening=Screening(detector, 0.02)
        )
        view.ask = platform.rec_num
        attack = side.attacks(number)
        tried = np.concatenate(view.tried)
        observed = platform.rec_num(tried)
        assert len(tried) == row["n_queries"] == 4
        assert row["rec_num"] == observed.max() == platform.rec_num(attack)[0]
        screened = platform.screen(attack)
        assert row["n_dropped"] == screened.n_dropped[0]
        assert row["n_genuine_flagged"] == screened.n_genuine_flagged[0]
        assert row["n_genuine_dropped"] == platform.genuine_dropped.sum() == 20  # 2 % of 1,000
        assert row["clean_rec_num"] == platform.clean_rec_num
        effects = platform.side_effects(attack[0])
        assert (row["hr"], row["clean_hr"]) == (effects.hr_at_k[0], effects.clean_hr_at_k)
        poisoned = genuine.with_fake_users(attack[0])
        is_fake = np.arange(poisoned.n_users) >= genuine.n_users
        assert row["auc_before"] == detection_auc(detector.scores(poisoned), is_fake)
        assert row["recall_before"] == recall_at_fpr(detector.scores(poisoned), is_fake, 0.01)
        defence.note(tried)
        defence.next_round()
        assert defence.detector is not None
        assert defence.detector is not detector
        assert row["auc_after"] == detection_auc(defence.detector.scores(poisoned), is_fake)


def test_opponents_begin_alike_and_only_one_of_them_learns() -> None:
    race = replace(RACE, attacker="popular", detector="pop-sad")
    none, static, adaptive = (rounds(replace(race, opponent=each)) for each in OPPONENTS)
    assert static[0] == {**adaptive[0], "auc_after": static[0]["auc_before"],
                         "recall_after": static[0]["recall_before"]}  # fmt: skip
    for row in none:
        assert (row["n_dropped"], row["n_genuine_flagged"], row["n_genuine_dropped"]) == (0, 0, 0)
        assert row["auc_after"] == row["auc_before"]
    platform = PlatformSimulator("synthetic", "ItemPop", seed=2)
    assert none[1]["clean_rec_num"] == platform.clean_rec_num
    assert static[1]["auc_after"] == static[1]["auc_before"]
    assert adaptive[1]["auc_after"] != adaptive[1]["auc_before"]
    assert adaptive[1]["auc_before"] > static[1]["auc_before"]  # it has seen such sets


def test_poisonrec_goes_on_and_others_begin_anew() -> None:
    asked: list[int] = []

    def answer(profiles: NDArray[np.int64]) -> NDArray[np.int64]:
        asked.append(len(profiles))
        return np.arange(len(profiles))

    plain = PlatformSimulator("synthetic", "ItemPop", seed=2)

    def side(attacker: str) -> tuple[Side, RaceView]:
        view = RaceView(plain.goal, plain.item_popularity, AttackBudget(), answer)
        return Side(replace(RACE, attacker=attacker, n_queries=12), view), view

    poisonrec, view = side("poisonrec")
    config = poisonrec.attacker.config
    assert isinstance(config, PoisonRecConfig)
    assert (config.batch_size, config.n_queries) == (4, 24)  # 4 divides 12 and 32
    for number in range(2):
        attack = poisonrec.attacks(number)
        assert attack.tolist() == [np.concatenate(view.tried)[3].tolist()]  # the first best
        assert len(np.concatenate(view.tried)) == 12
    assert poisonrec._agent is not None
    assert [step.number for step in poisonrec._agent.history] == list(range(6))
    assert asked == [4] * 6
    search, view = side("random-search")
    tried = []
    for number in range(2):
        search.attacks(number)
        tried.append(np.concatenate(view.tried))
    assert len(tried[0]) == len(tried[1]) == 12
    assert tried[0].tolist() != tried[1].tolist()
    popular, view = side("popular")
    assert popular.attacks(0).shape == (2, 20, 20)
    assert popular.attacks(1).tolist() == np.concatenate(view.tried).tolist()


def test_rules_of_thumb_promoted_other_items() -> None:
    plain = PlatformSimulator("synthetic", "ItemPop", seed=2)
    known = rules_of_thumb(genuine_log(plain), plain.goal, AttackBudget(), 2)
    assert known.shape == (2 * len(RULES_OF_THUMB), 20, 20)
    assert not np.isin(known, plain.target_items).any()
    assert set(RULES_OF_THUMB) == {"random", "popular", "middle"}
    assert len(np.unique(known.reshape(len(known), -1), axis=0)) == len(known)


def test_the_view_is_a_black_box() -> None:
    plain = PlatformSimulator("synthetic", "ItemPop", seed=2)
    view = RaceView(plain.goal, plain.item_popularity, AttackBudget())
    for name in ("log", "victim_name", "victim_config"):
        with pytest.raises(KnowledgeError):
            getattr(view, name)
    with pytest.raises(KnowledgeError, match="no platform to ask"):
        view.query(np.zeros((1, 20, 20), dtype=np.int64))


def test_finished_races_are_kept_and_what_decides_them_is_in_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    races = [RACE, replace(RACE, opponent="none")]
    made: list[str] = []

    def quick(race: Race) -> dict[str, object]:
        made.append(race.opponent)
        if race.opponent == "none" and len(made) < 3:
            raise KeyboardInterrupt
        return {"rounds": []}

    monkeypatch.setattr(armsrace_race, "run_race", quick)
    with pytest.raises(KeyboardInterrupt):
        run_races(races, tmp_path, n_jobs=1)
    assert [race for race, _ in read_races(races, tmp_path)] == [RACE]
    run_races(races, tmp_path, n_jobs=1)
    assert made == ["adaptive", "none", "none"]  # the first one was not run again
    assert len(read_races(races, tmp_path)) == 2
    others = [
        replace(RACE, **cast(dict[str, Any], {name: value}))
        for name, value in {
            "seed": 3, "n_rounds": 3, "n_queries": 5, "detector": "pop-sad", "share": 0.01,
            "max_attacks": 19, "audit_rate": 0.5, "victim": "CoVisitation", "attacker": "evolution",
        }.items()
    ]  # fmt: skip
    identities = [json.dumps(race_identity(race), sort_keys=True) for race in (*races, *others)]
    assert len(set(identities)) == len(identities)
    assert race_identity(replace(RACE, n_draws=9)) == race_identity(RACE)  # it draws nothing


def row(**changes: object) -> RoundRow:
    given: dict[str, object] = {
        "dataset": "toy", "victim": "BPR", "attacker": "evolution", "opponent": "none", "seed": 0,
        "round": 0, "max_rec_num": 1000, "n_users": 500, "n_fake_users": 20, "k": 10,
        "rec_num": 100.0, "policy_rec_num": 50.0, "clean_rec_num": 3, "n_queries": 8,
        "target_share": 0.5, "auc_before": 0.7, "recall_before": 0.25, "auc_after": 0.7,
        "recall_after": 0.25, "n_dropped": 0.0, "n_genuine_flagged": 0.0, "n_genuine_dropped": 0,
        "clean_hr": 0.3, "clean_ndcg": 0.2, "hr": 0.29, "ndcg": 0.19, **changes,
    }  # fmt: skip
    return cast(RoundRow, given)


def some_rows() -> list[RoundRow]:
    return [
        row(
            opponent=opponent,
            seed=seed,
            round=number,
            rec_num=100.0 * (1 + seed) * share,
            n_dropped=dropped,
            auc_before=0.7 + 0.1 * number,
            auc_after=0.95,
        )
        for opponent, share, dropped in (
            ("none", 1, 0.0),
            ("static", 0.8, 4.0),
            ("adaptive", 0.5, 9.0),
        )
        for seed in (0, 1)
        for number in (0, 1)
    ]


def test_tables_say_what_rows_say() -> None:
    text = report(some_rows())
    ends = [line for line in text.splitlines() if line.startswith("| BPR")]
    assert [cell.strip() for cell in ends[2].split("|")[3:10]] == [
        "adaptive", "75", "0.5 ± 0", "0.80", "0.25", "9.0", "0.0",
    ]  # fmt: skip
    assert [cell.strip() for cell in ends[0].split("|")[3:10]] == [
        "none", "150", "-", "0.80", "0.25", "-", "-",
    ]  # fmt: skip
    assert "**Round 1, the last one** (toy, 500 genuine users, 2 seeds" in text
    curves = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["evolution", "static", "RecNum", "120", "120"] in curves
    assert ["evolution", "adaptive", "AUC", "0.70", "0.80"] in curves
    assert ["evolution", "adaptive", "AUC after", "0.95", "0.95"] in curves
    assert ["evolution", "static", "AUC after", "0.95", "0.95"] not in curves
    means = final_means(some_rows())
    assert means["rec_num_share"] == pytest.approx(
        {"none": 0.15, "static": 0.12, "adaptive": 0.075}
    )
    assert means["dropped_share"] == pytest.approx({"none": 0, "static": 0.2, "adaptive": 0.45})
    assert report([]) == "No race is finished yet."
    assert not any(final_means([]).values())


def test_rows_are_the_rounds_of_races() -> None:
    measured = {name: value for name, value in row(rec_num=7.0).items() if name not in
                ("dataset", "victim", "attacker", "opponent", "seed", "round")}  # fmt: skip
    result = {**measured, "rounds": [measured, {**measured, "rec_num": 9.0}]}
    made = rows_of([(RACE, result)])
    assert [each["round"] for each in made] == [0, 1]
    assert [each["rec_num"] for each in made] == [7.0, 9.0]
    assert {each["attacker"] for each in made} == {"random-search"}


def test_the_picture_is_drawn_whole(tmp_path: Path) -> None:
    path = tmp_path / "race.png"
    draw_race(some_rows(), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    draw_race([each for each in some_rows() if each["opponent"] == "none"], path)
    assert [each.name for each in tmp_path.iterdir()] == ["race.png"]


def test_the_command_reports_draws_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        "--dataset synthetic --protocol none --victims ItemPop --seeds 2 --attackers random-search "
        "--rounds 2 --queries 4 --detector degree-sad --share 0.02"
    )
    words = ["bench", "armsrace", "--json", *options.split()]
    places = ["--out", str(tmp_path / "out"), "--figures", str(tmp_path)]
    page = tmp_path / "armsrace.md"
    assert cli.main([*words, *places, "--write-docs", str(page)]) == 0
    data: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert data["n_finished"] == data["n_races"] == 3
    assert set(data["rec_num_share"]) == set(OPPONENTS)
    own = [each for each in data["rounds"] if each["opponent"] == "adaptive"]
    assert [each["rec_num"] for each in own] == [each["rec_num"] for each in rounds(RACE)]
    text = page.read_text()
    assert (
        "$ recattack bench armsrace --dataset synthetic --protocol none --victims ItemPop" in text
    )
    assert "(armsrace-synthetic-ItemPop.png)" in text
    stored = json.loads(page.with_suffix(".json").read_text())
    assert len(stored["rounds"]) == 6
    files = sorted((tmp_path / "out").iterdir())
    assert cli.main([*words, *places[:2], "--report-only"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["rounds"] == data["rounds"]
    assert sorted((tmp_path / "out").iterdir()) == files


def test_the_page_is_that_of_its_results() -> None:
    page = Path(__file__).parents[3] / "docs" / "results" / "armsrace.md"
    stored = json.loads(page.with_suffix(".json").read_text())
    assert f"$ {stored['command']}\n" in page.read_text()
    assert report(stored["rounds"]) in page.read_text()


@pytest.mark.slow
def test_the_smoke_run_is_small_and_ends_in_numbers_per_opponent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.process_time()
    assert cli.main(["bench", "armsrace", "--smoke", "--json", "--out", str(tmp_path)]) == 0
    assert time.process_time() - started < 60
    data = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert data["n_finished"] == data["n_races"] == 18
    for name in ("rec_num_share", "auc", "dropped_share", "hr"):
        assert set(data[name]) == set(OPPONENTS)
    assert data["dropped_share"]["none"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--attackers poisonrecc", "unknown attacker 'poisonrecc'"),
        ("--attackers dpa2dl", "--attackers must be black boxes, got 'dpa2dl'"),
        ("--victims BPRR", "unknown victim 'BPRR'"),
        ("--detector gru-attention", "unknown detector that can be retrained 'gru-attention'"),
        ("--rounds 0", "--rounds must be"),
        ("--queries 0", "--queries must be"),
        ("--share 0.7", "--share must be"),
        ("--audit-rate 0", "--audit-rate must be"),
        ("--seeds -1", "--seeds must be"),
        ("--dataset steaam", "--dataset 'steaam' is not on this machine"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--dataset", "synthetic", *words.split(), "--out", str(tmp_path / "out")]
    assert cli.main(["bench", "armsrace", *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_all_default_attackers_are_black_boxes_that_exist() -> None:
    from agents.benchmark.armsrace import ATTACKERS_BY_DEFAULT, SMOKE

    smoke = cast(list[str], SMOKE["attackers"])
    for name in (*ATTACKERS_BY_DEFAULT, *smoke):
        assert str(ATTACKERS[name].knowledge) == "black_box"
