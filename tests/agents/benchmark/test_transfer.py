"""Attacks on victims that they were not made against: that they fit, that they count, what comes of it."""

import json
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from agents import cli
from agents.benchmark import plans, transfer
from agents.benchmark.cells import Cell, identity, profiles_path, run_cell
from agents.benchmark.plans import Plan, check_plan, read_plan
from agents.benchmark.store import ResultStore
from agents.benchmark.transfer_figure import draw_transfer
from agents.benchmark.transfer_table import Evaluation, matrices, report, share_table, summary_table
from recattack_gym.core import ArgumentError, ArtifactError, FakeProfiles
from recattack_gym.datasets import SyntheticConfig, generate
from recattack_gym.simulator import PlatformSimulator
from recattack_gym.victims import VICTIMS
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
HEADER = {"n_items": 308, "target_items": list(range(300, 308))}
PROFILES = FakeProfiles(np.full((20, 20), 300), header=HEADER)


def options(folder: Path, **changes: object) -> list[str]:
    given: dict[str, object] = {
        "--datasets": "synthetic",
        "--protocol": "none",
        "--victims": "ItemPop CoVisitation",
        "--attackers": "popular random-search",
        "--seeds": "0 1",
        "--queries": 8,
        "--draws": 2,
        "--out": folder,
        **changes,
    }
    return ["bench", "transfer", "--json"] + [
        word for name, value in given.items() for word in (name, *str(value).split())
    ]


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_an_attack_is_counted_on_the_other_victims_own_platform(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = options(tmp_path, **{"--victims": "CoVisitation BPR"})  # BPR's two retrainings differ
    assert cli.main([*words, "--full"]) == 0
    data = answer(capsys)
    assert str(data["n_finished"]) == str(data["n_evaluations"]) == str(2 * 2 * 2 * 2 * 2)
    for row in data["transfer"]:
        cell = replace(
            CELL,
            victim=str(row["made_against"]),
            entry=str(row["attacker"]),
            seed=int(str(row["seed"])),
        )
        profiles = read_plan(cell, tmp_path)
        assert profiles is not None
        assert row["profiles"] == profiles.content_hash
        victim = PlatformSimulator("synthetic", str(row["injected_into"]), seed=cell.seed)
        retrain: Retrain = "full" if row["retrain"] == "full" else "finetune"
        assert row["rec_num"] == int(victim.rec_num(profiles, retrain=retrain)[0])
        assert row["clean_rec_num"] == victim.clean_rec_num
    # not one number that fits everything
    assert len({row["rec_num"] for row in data["transfer"]}) > 4


def test_nothing_that_exists_is_measured_again_and_what_is_missing_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = options(tmp_path, **{"--victims": "CoVisitation ItemPop", "--seeds": 3})
    assert cli.main(words) == 0
    first = answer(capsys)
    stored = sorted((tmp_path / "transfer").glob("*.json"))
    # Popular clicks the same whatever the victim, so its plan is injected into each victim once
    assert len(stored) == 2 + 4
    for path in stored[:2]:
        path.unlink()
    evaluated = []
    evaluate = transfer.evaluate

    def counting(simulator: PlatformSimulator, profiles: FakeProfiles, retrain: Retrain) -> object:
        evaluated.append(profiles)
        return evaluate(simulator, profiles, retrain)

    def attacked_again(*_: object, **__: object) -> None:
        raise AssertionError("an attack that exists was made again")

    monkeypatch.setattr(transfer, "evaluate", counting)
    monkeypatch.setattr(plans, "run_cells", attacked_again)
    assert cli.main([*words, "--report-only"]) == 0
    assert int(str(answer(capsys)["n_finished"])) < int(str(first["n_finished"]))
    assert not evaluated
    assert cli.main(words) == 0
    assert len(evaluated) == 2
    assert answer(capsys)["transfer"] == first["transfer"]


def test_processes_do_not_change_the_result_and_bad_names_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for jobs in ("1", "2"):
        assert cli.main([*options(tmp_path / jobs, **{"--seeds": 0}), "--jobs", jobs]) == 0
        found.append(answer(capsys)["transfer"])
    assert found[0] == found[1]
    assert cli.main(options(tmp_path, **{"--victims": "BRP"})) == 2
    assert "unknown victim 'BRP'" in capsys.readouterr().err


def test_reports_and_pictures_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = tmp_path / "docs" / "transfer.md"
    words = options(
        tmp_path / "cells", **{"--seeds": 0, "--figures": tmp_path / "docs", "--write-docs": docs}
    )
    assert cli.main(words) == 0
    (picture,) = answer(capsys)["figures"]
    assert Path(str(picture)).read_bytes().startswith(b"\x89PNG")
    page = docs.read_text()
    assert "$ recattack bench transfer --datasets synthetic --protocol none" in page
    assert "## synthetic, fine-tuning" in page
    assert "![transfer-synthetic-finetune](transfer-synthetic-finetune.png)" in page
    assert len(json.loads(docs.with_suffix(".json").read_text())["evaluations"]) == 2 * 2 * 2


# -- plans and platforms belong together -----------------------------------------------------------


@pytest.mark.slow  # the first time, which compiles every victim
def test_all_victims_of_a_dataset_and_seed_have_the_same_items_targets_and_lists() -> None:
    dataset = generate(
        SyntheticConfig(n_users=60, n_items=150, n_events=900), np.random.default_rng(0)
    )

    def platform(victim: str, seed: int) -> tuple[object, ...]:
        simulator = PlatformSimulator(dataset, victim, seed=seed)
        lists = transfer.lists_digest(simulator)
        targets = tuple(simulator.target_items.tolist())
        return simulator.n_items, targets, simulator.log.content_hash, lists

    (found,) = {platform(victim, 5) for victim in VICTIMS}
    other = platform("ItemPop", 6)
    assert found[:3] == other[:3]
    assert found[3] != other[3]  # lists are drawn from the seed, and the digest tells them apart


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_items": 309}, "n_items of the plan must be that of the platform, 308, got 309"),
        ({"target_items": [1, 2]}, "target_items of the plan must be .* got \\[1, 2\\]"),
        ({"n_items": None}, "n_items of the plan must be"),
    ],
)
def test_a_plan_for_other_items_is_refused(change: dict[str, object], message: str) -> None:
    check_plan(PROFILES, **HEADER)  # type: ignore[arg-type]
    simulator = PlatformSimulator("synthetic", "ItemPop")
    n_items, targets = simulator.n_items, simulator.target_items.tolist()
    right = {"n_items": n_items, "target_items": targets}
    assert transfer.evaluate(simulator, FakeProfiles(PROFILES.item_ids, header=right), "finetune")
    wrong = {**HEADER, **change}
    with pytest.raises(ArgumentError, match=message):
        check_plan(FakeProfiles(PROFILES.item_ids, header=wrong), **HEADER)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="of the plan must be that of the platform"):
        transfer.evaluate(
            simulator, FakeProfiles(PROFILES.item_ids, header={**right, **change}), "finetune"
        )


def test_a_plan_serves_whether_or_not_its_cell_measured_full_retraining(tmp_path: Path) -> None:
    cell = replace(CELL, entry="random")
    assert read_plan(cell, tmp_path) is None
    run_cell(replace(cell, is_full=True), tmp_path)
    stored = read_plan(cell, tmp_path)
    assert stored is not None
    run_cell(cell, tmp_path / "other")
    own = read_plan(cell, tmp_path / "other")
    assert own is not None
    assert stored.content_hash == own.content_hash


def test_a_plan_that_is_not_the_results_is_refused(tmp_path: Path) -> None:
    cell = replace(CELL, entry="random")
    run_cell(cell, tmp_path)
    path = profiles_path(ResultStore(tmp_path), identity(cell))
    PROFILES.save(path)
    with pytest.raises(ArtifactError, match="remove both to have it made again"):
        read_plan(cell, tmp_path)
    path.unlink()
    with pytest.raises(ArtifactError, match="must be a readable profiles file"):
        read_plan(cell, tmp_path)


# -- what is worked out ----------------------------------------------------------------------------


def evaluation(
    made_against: str,
    tested_on: str,
    seed: int,
    rec_num: int,
    *,
    clean: int = 10,
    lists: str = "same",
) -> Evaluation:
    plan = Plan(replace(CELL, victim=made_against, seed=seed), PROFILES)
    result = {"rec_num": rec_num, "clean_rec_num": clean, "lists": lists}
    return Evaluation(plan, tested_on, "finetune", MappingProxyType(result))


EVALUATIONS = [
    evaluation("PMF", "PMF", 0, 100),
    evaluation("PMF", "PMF", 1, 300),
    evaluation("PMF", "BPR", 0, 30),
    evaluation("PMF", "BPR", 1, 50),
    evaluation("PMF", "ItemPop", 0, 7, clean=0),
    evaluation("BPR", "BPR", 0, 200),
    evaluation("BPR", "BPR", 1, 200),
    evaluation("BPR", "PMF", 0, 50),  # seed 1 is missing
    evaluation("BPR", "ItemPop", 0, 5, clean=0),
    evaluation("ItemPop", "ItemPop", 0, 0, clean=0),
    evaluation("ItemPop", "PMF", 0, 10),
    evaluation("ItemPop", "BPR", 0, 300),
]


def test_shares_are_ratios_of_means_over_the_seeds_that_both_have() -> None:
    (matrix,) = matrices(EVALUATIONS)
    assert matrix.victims == ("ItemPop", "PMF", "BPR")
    nan = np.nan
    expected = [
        [nan, 10 / 100, 300 / 200],  # ItemPop's own attack reaches nothing there
        [nan, 1.0, 80 / 400],
        [nan, 50 / 100, 1.0],
    ]
    np.testing.assert_allclose(matrix.shares, expected)
    np.testing.assert_allclose(matrix.clean_shares, [nan, 20 / 400, 20 / 400])
    np.testing.assert_allclose(np.diag(matrix.shares_elsewhere), [nan] * 3)


def test_tables_say_who_was_attacked_and_who_was_hit() -> None:
    (matrix,) = matrices(EVALUATIONS)
    lines = [
        [x.strip() for x in line.strip("|").split("|")] for line in share_table(matrix).splitlines()
    ]
    assert lines[0] == ["made against", "ItemPop", "PMF", "BPR", "elsewhere"]
    assert lines[2:] == [
        ["ItemPop", "-", "0.10", "1.50", "0.80"],
        ["PMF", "-", "1.00", "0.20", "0.20"],
        ["BPR", "-", "0.50", "1.00", "0.50"],
        ["(no attack)", "-", "0.05", "0.05", "0.05"],
    ]
    (line,) = [x for x in summary_table([matrix]).splitlines() if "random-search" in x]
    # means of 0.1 and 0.5 on PMF, of 1.5 and 0.2 on BPR
    assert [x.strip() for x in line.strip("|").split("|")][1:] == ["-", "0.30", "0.85", "0.57"]
    text = report([matrix])
    # 100 and 300: mean 200, deviation 141.42, t(0.975, 1) = 12.706
    assert "200 ± 1,271" in text
    assert text.index("## synthetic, fine-tuning") < text.index("### random-search")


def test_results_from_different_lists_are_not_put_together(tmp_path: Path) -> None:
    other = evaluation("PMF", "BPR", 0, 30, lists="other")
    with pytest.raises(
        ArtifactError, match="synthetic, seed 0, must be counted in the same candidate"
    ):
        matrices([*EVALUATIONS, other])
    assert matrices([evaluation("PMF", "PMF", 0, 1), evaluation("PMF", "PMF", 1, 1, lists="other")])
    path = tmp_path / "transfer.png"
    draw_transfer(matrices(EVALUATIONS), path)
    assert path.stat().st_size > 10_000


def test_attacks_are_taken_from_the_archive_of_a_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "cells.zip"
    words = options(tmp_path / "here", **{"--archive": archive})
    assert cli.main(["bench", "table3", *words[2:]]) == 0
    capsys.readouterr()
    monkeypatch.setattr(plans, "run_cells", None)  # nothing is left to make
    there = options(tmp_path / "there", **{"--archive": archive})
    assert cli.main(there) == 0
    data = answer(capsys)
    assert str(data["n_finished"]) == str(data["n_evaluations"]) == str(2 * 2 * 2 * 2)
