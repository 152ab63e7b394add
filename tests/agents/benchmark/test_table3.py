"""Cells, their store, and what is worked out from them."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from matplotlib.figure import Figure

from agents import cli
from agents.attackers import ATTACKERS
from agents.benchmark import cells as cells_module
from agents.benchmark import figures, table3
from agents.benchmark.archive import pack, unpack
from agents.benchmark.cells import (
    ENTRIES,
    Cell,
    _attacker_code,
    identity,
    make_attacker,
    profiles_path,
    run_cell,
)
from agents.benchmark.claims import alternation, claims
from agents.benchmark.comparison import (
    _budgets,
    _iqm_with_interval,
    agreement,
    heuristics_best,
    heuristics_table,
    interquartile_mean,
    learners_table,
    paper_table,
    rec_num_table,
    report,
)
from agents.benchmark.figures import (
    draw_anytime,
    draw_heat_map,
    draw_learning,
    draw_target_shares,
)
from agents.benchmark.published import TABLE3, TABLE3_VICTIMS, published_number
from agents.benchmark.rows import Row, cells_in, read_rows
from agents.benchmark.sidecars import is_sidecar, sidecar_path
from agents.benchmark.store import ResultStore
from agents.search import SearchAttacker
from recattack_gym.core import ArgumentError, ArtifactError, FakeProfiles, UnknownNameError
from recattack_gym.core.sources import imported_files
from recattack_gym.simulator import PlatformSimulator

ROOT = Path(__file__).parents[3]
CELL = Cell(
    dataset="synthetic",
    protocol=None,
    victim="CoVisitation",
    entry="random",
    seed=3,
    n_queries=12,
    n_draws=4,
    is_full=True,
)


def test_a_cell_says_what_its_plan_does_under_both_kinds_of_retraining(tmp_path: Path) -> None:
    result = run_cell(CELL, tmp_path)
    store = ResultStore(tmp_path)
    assert store.get(identity(CELL)) == json.loads(json.dumps(result))
    plan = FakeProfiles.load(profiles_path(store, identity(CELL)))
    simulator = PlatformSimulator("synthetic", "CoVisitation", seed=3)
    assert result["finetune_rec_num"] == int(simulator.rec_num(plan)[0])
    assert result["full_rec_num"] == int(simulator.rec_num(plan, retrain="full")[0])
    assert result["share"] == pytest.approx(float(str(result["rec_num"])) / simulator.max_rec_num)
    assert result["target_share"] == np.isin(plan.item_ids, simulator.target_items).mean() == 0.5
    assert result["n_draws"] == 4
    assert result["n_queries"] == 0
    assert result["curve"] == []
    assert result["policy_rec_num"] is None
    assert isinstance(result["best_of_draws"], int)
    assert result["best_of_draws"] >= float(str(result["rec_num"]))


def test_a_searching_cell_has_its_whole_curve_and_the_common_budget(tmp_path: Path) -> None:
    cell = replace(CELL, entry="cross-entropy", is_full=False)
    result = run_cell(cell, tmp_path)
    curve = result["curve"]
    assert isinstance(curve, list)
    assert len(curve) == 12 == result["n_queries"]
    assert result["batch_sizes"] == [12]
    assert result["rec_num"] == max(curve)
    assert result["best_of_draws"] is None
    assert result["full_rec_num"] is None
    assert result["policy_rec_num"] == pytest.approx(np.mean(curve[-12:]))


def test_what_a_policy_reaches_is_the_mean_of_its_last_batch(tmp_path: Path) -> None:
    result = run_cell(replace(CELL, entry="random-search", is_full=False, n_queries=40), tmp_path)
    curve = result["curve"]
    assert isinstance(curve, list)
    assert result["batch_sizes"] == [32, 8]
    assert result["policy_rec_num"] == pytest.approx(np.mean(curve[32:]))
    assert np.mean(curve[:32]) != pytest.approx(np.mean(curve[32:]))


def test_all_searching_entries_get_the_same_budget() -> None:
    for entry in ENTRIES:
        attacker = make_attacker(replace(CELL, entry=entry, n_queries=77))
        if isinstance(attacker, SearchAttacker):
            assert attacker.config.n_queries == 77
    spaces = {make_attacker(replace(CELL, entry=e)).config.action_space  # type: ignore[attr-defined]
              for e in ENTRIES if e.startswith("poisonrec")}  # fmt: skip
    assert spaces == {"bcbt-popular", "bcbt-random", "bplain", "plain"}
    with pytest.raises(UnknownNameError, match="unknown attacker 'poisonrek'"):
        make_attacker(replace(CELL, entry="poisonrek"))


def test_what_decides_a_result_is_in_its_identity() -> None:
    base = identity(CELL)
    for change in (
        {"victim": "ItemPop"}, {"entry": "popular"}, {"seed": 4}, {"n_draws": 5}, {"is_full": False},
    ):  # fmt: skip
        assert identity(replace(CELL, **change)) != base
    search = replace(CELL, entry="random-search")
    assert identity(search) != identity(replace(search, n_queries=13))
    assert identity(search) == identity(replace(search, n_draws=9))  # has no draws


@pytest.mark.parametrize("part", ["code_hash", "_attacker_code", "__version__"])
def test_a_result_of_other_code_is_another_one(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = identity(CELL)
    is_text = part == "__version__"
    monkeypatch.setattr(cells_module, part, "other" if is_text else lambda _: "other")
    changed = identity(CELL)
    assert sum(base[name] != changed[name] for name in base) == 1


def test_a_result_from_another_log_is_another_one() -> None:
    other = identity(CELL, log="other")
    assert {**other, "log": identity(CELL)["log"]} == identity(CELL) != other


def options(folder: Path, **changes: object) -> list[str]:
    given: dict[str, object] = {
        "--datasets": "synthetic",
        "--protocol": "none",
        "--victims": "ItemPop CoVisitation",
        "--attackers": "random popular random-search",
        "--seeds": "0 1",
        "--queries": 8,
        "--draws": 2,
        "--out": folder,
        **changes,
    }
    return ["bench", "table3", "--json"] + [
        word for name, value in given.items() for word in (name, *str(value).split())
    ]


def results_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if not is_sidecar(path))


def test_a_run_is_resumed_and_jobs_do_not_change_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(options(tmp_path / "one")) == 0
    one = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert one["n_finished"] == one["n_cells"] == 12
    assert len(results_in(tmp_path / "one")) == 12
    assert cli.main([*options(tmp_path / "two"), "--jobs", "2"]) == 0
    two = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert two["rec_num"] == one["rec_num"]

    removed = results_in(tmp_path / "one")[::4]
    for path in removed:
        path.unlink()
    measured: list[Cell] = []
    measure = cells_module._measure

    def counting(cell: Cell) -> tuple[dict[str, object], FakeProfiles]:
        measured.append(cell)
        return measure(cell)

    monkeypatch.setattr(cells_module, "_measure", counting)
    assert cli.main(options(tmp_path / "one")) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(measured) == len(removed)
    assert again["rec_num"] == one["rec_num"]


def test_a_damaged_result_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(options(tmp_path)) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    path = results_in(tmp_path)[0]
    path.write_text(path.read_text()[:100])
    assert cli.main(options(tmp_path)) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rec_num"] == first["rec_num"]


@pytest.mark.slow
def test_a_run_that_is_killed_loses_only_what_was_running(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "agents.cli",
        *options(tmp_path, **{"--seeds": "0 1 2 3 4 5 6 7"}),
    ]
    with subprocess.Popen(  # noqa: S603  # our own
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        for _ in range(1200):
            if len(results_in(tmp_path)) >= 3 or process.poll() is not None:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    finished = results_in(tmp_path)
    assert len(finished) >= 3
    for path in finished:
        assert "rec_num" in json.loads(path.read_text())["result"]  # whole, not half-written
        assert "exposure" in json.loads(sidecar_path(path).read_text())["result"]  # and before it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--victims": "BRP"}, "unknown victim 'BRP'"),
        ({"--attackers": "poisonrek"}, "unknown attacker 'poisonrek'"),
        ({"--queries": 0}, "--queries must be"),
        ({"--draws": 0}, "--draws must be"),
        ({"--jobs": 0}, "--jobs must be"),
        ({"--seeds": -1}, "--seeds must be"),
        ({"--backend": "dask"}, "--backend must be one of 'loky', 'ray'"),
    ],
)
def test_wrong_options_are_named(
    change: dict[str, object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(options(tmp_path, **change)) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_ray_is_asked_for_by_name_where_it_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(options(tmp_path, **{"--backend": "ray"})) == 2
    assert "pip install 'recattack-gym[ray]'" in capsys.readouterr().err


def test_a_dataset_that_is_not_here_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RECATTACK_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    args = Namespace(
        datasets=["amazon-phone", "synthetic"], protocol="none", victims=["BPR"], attackers=["random"],
        seeds=[0], queries=1, draws=1, jobs=1, backend="loky", no_full=False,
    )  # fmt: skip
    assert {cell.dataset for cell in table3.cells_of(args)} == {"synthetic"}
    args.datasets = ["amazon-phone"]
    with pytest.raises(ArgumentError, match="--datasets must name one that is on this machine"):
        table3.cells_of(args)


def test_the_paper_has_224_numbers() -> None:
    numbers = [x for attackers in TABLE3.values() for row in attackers.values() for x in row]
    assert len(numbers) == 224
    assert all(len(attackers) == 7 for attackers in TABLE3.values())
    assert TABLE3["steam"]["poisonrec"][TABLE3_VICTIMS.index("GRU4Rec")] == 24319
    assert TABLE3["amazon-phone"]["conslop"][TABLE3_VICTIMS.index("CoVisitation")] == 6234
    assert TABLE3["ml-1m"]["appgrad"][TABLE3_VICTIMS.index("NGCF")] == 24
    for victim in ("CoVisitation", "CoVisitation-Counts"):  # both are what the paper may mean
        assert published_number("amazon-phone", "conslop", victim) == 6234
    assert published_number("steam", "poisonrec", "ALS") is None


# -- what is worked out ----------------------------------------------------------------------------


def row(victim: str, entry: str, seed: int, curve: list[int], rec_num: float | None = None) -> Row:
    cell = replace(CELL, victim=victim, entry=entry, seed=seed)
    result = {
        "rec_num": float(max(curve)) if rec_num is None else rec_num,
        "curve": curve,
        "batch_sizes": [2] * (len(curve) // 2),
        "target_shares": [0.5] * (len(curve) - 2) + [0.25, 0.75] * (len(curve) > 0),
    }
    return Row(cell, MappingProxyType(result), is_current=True)


HEURISTICS = (("random", 4), ("popular", 9), ("middle", 5), ("power-item", 6))
ROWS = [
    row("ItemPop", "poisonrec", 0, [1, 10, 5, 20]),
    row("ItemPop", "poisonrec", 1, [1, 10, 5, 40]),
    row("ItemPop", "poisonrec-warm", 0, [10, 1, 30, 2]),
    row("ItemPop", "poisonrec-warm", 1, [30, 1, 30, 20]),
    row("BPR", "poisonrec", 0, [0, 100, 0, 100]),
    row("BPR", "poisonrec-warm", 0, [0, 0, 0, 150]),
    *(row("BPR", name, 0, [], n) for name, n in HEURISTICS),
]  # fmt: skip


def costly(rows: list[Row]) -> list[Row]:
    """Return rows with all that a report needs."""
    more = {
        "finetune_rec_num": 1, "full_rec_num": None, "knowledge": "black_box", "n_queries": 4,
        "clicks": 400, "cpu_seconds": 1.0, "target_share": 0.5,
        "side_effects": {"clean_hr_at_k": 0.5, "hr_at_k": 0.4, "clean_ndcg_at_k": 0.2, "ndcg_at_k": 0.3},
    }  # fmt: skip
    return [replace(each, result=MappingProxyType({**each.result, **more})) for each in rows]


def test_harm_is_the_relative_change_of_quality() -> None:
    text = report(costly(ROWS))
    assert "| -20.0% |  +50.0% |" in text  # 0.4 of 0.5, 0.3 of 0.2


def test_a_report_says_that_some_numbers_are_means_and_others_the_best_of_many() -> None:
    text = report(costly(ROWS))
    assert "Attackers that do not query: the mean over their draws." in text
    assert "The others: the best set that they tried" in text


def test_means_and_intervals_are_those_worked_out_by_hand() -> None:
    table = rec_num_table(ROWS)
    line = next(x for x in table.splitlines() if x.startswith("| poisonrec "))
    # 20 and 40: mean 30, deviation 14.142, t(0.975, 1) = 12.706: half width 12.706 * 14.142 / sqrt(2)
    assert "30 ± 127" in line
    assert line.rstrip(" |").endswith("100")


def test_learners_are_compared_at_equal_budgets_by_the_interquartile_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agents.benchmark.comparison.BUDGETS", (2, 4))
    table = learners_table(ROWS)
    line = next(x for x in table.splitlines() if x.startswith("| poisonrec-warm"))
    # after 2: 10/10, 30/10, 0/100 -> sorted 0, 1, 3, the middle half weighs .25, 1, .25
    assert f"{(0 * 0.25 + 1 + 3 * 0.25) / 1.5:.2f} [" in line
    # after 4: 30/20, 30/40, 150/100
    assert f"{(0.75 * 0.25 + 1.5 + 1.5 * 0.25) / 1.5:.2f} [" in line


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([5.0], 5.0),
        ([0.0, 1.0, 2.0, 99.0], 1.5),
        ([0.0, 1.0, 3.0], (1 + 3 * 0.25) / 1.5),
        ([0, 1, 2, 3, 4, 5, 6, 7], 3.5),
    ],
)
def test_the_interquartile_mean_cuts_a_quarter_at_each_end(
    values: list[float], expected: float
) -> None:
    assert interquartile_mean(np.array(values)) == pytest.approx(expected)


def test_the_interval_resamples_as_many_seeds_as_there_are_within_each_group() -> None:
    low, high = _ends(_iqm_with_interval([range(16)]))
    # the middle half of 16 uniform values has a mean with a deviation of about 1.5
    assert 3.5 < low < 5.5
    assert 9.5 < high < 11.5
    # a group of equal values stays as it is: 1 and 9 are never exchanged for one another
    assert _iqm_with_interval([[1.0, 1.0], [9.0, 9.0]]) == "5.00 [5.00, 5.00]"


def _ends(text: str) -> tuple[float, float]:
    low, high = text[text.index("[") + 1 : -1].split(", ")
    return float(low), float(high)


def test_the_paper_counts_its_table_4_from_its_table_3() -> None:
    cells = {
        (dataset, victim): {e: float(numbers[e][i]) for e, _ in HEURISTICS}
        for dataset, numbers in TABLE3.items()
        for i, victim in enumerate(TABLE3_VICTIMS)
    }
    counts = heuristics_best(cells)
    table4 = {"random": (4, 1, 1, 1), "popular": (2, 3, 2, 3), "middle": (1, 1, 4, 4),
              "power-item": (1, 2, 1, 0)}  # fmt: skip
    for entry, printed in table4.items():
        assert tuple(counts[dataset, entry] for dataset in TABLE3) == printed


def test_heuristics_are_counted_beside_the_papers() -> None:
    def cell(dataset: str, victim: str, *rec_nums: float) -> list[Row]:
        rows = [row(victim, e, 0, [], n) for (e, _), n in zip(HEURISTICS, rec_nums, strict=True)]
        protocol = "poisonrec" if dataset in TABLE3 else None
        return [
            replace(each, cell=replace(each.cell, dataset=dataset, protocol=protocol))
            for each in rows
        ]

    rows = [
        *cell("steam", "CoVisitation", 1, 5, 2, 5),  # a tie; the paper: popular
        *cell("steam", "NGCF", 1, 2, 3, 4),  # the paper: random
        *cell("steam", "ItemPop", 0, 0, 0, 0),  # nobody; the paper: random
        *cell("synthetic", "BPR", 9, 0, 0, 0),  # the paper has no such dataset
        *cell("ml-1m", "ItemPop", 2, 1, 0, 0),  # the paper: nobody
        *cell("steam", "BPR", 1, 1, 1, 1)[:3],  # one is missing
    ]
    lines = [
        [word.strip() for word in line.strip("|").split("|")]
        for line in heuristics_table(rows).splitlines()
    ]
    assert lines[0] == [
        "heuristic", "steam", "steam, paper", "synthetic", "synthetic, paper", "ml-1m", "ml-1m, paper",
        "all", "all, paper",
    ]  # fmt: skip
    assert lines[2:] == [
        ["random", "0", "2 (4)", "1", "-", "1", "0 (1)", "2", "2 (5)"],
        ["popular", "1", "1 (2)", "0", "-", "0", "0 (3)", "1", "1 (5)"],
        ["middle", "0", "0 (1)", "0", "-", "0", "0 (1)", "0", "0 (2)"],
        ["power-item", "2", "0 (1)", "0", "-", "0", "0 (2)", "2", "0 (3)"],
    ]
    assert heuristics_table(rows[-3:]) == ""


def test_claims_are_counted_from_the_rows() -> None:
    text = claims(ROWS)
    assert "Cells (dataset and victim) with results: 2." in text
    # ItemPop is a tie of (20 + 40) / 2 and (30 + 30) / 2, which counts for both
    assert "Best of everything compared here, by mean: poisonrec-warm 2, poisonrec 1 (of 2 " in text
    assert (
        "poisonrec-warm above poisonrec: 1 of 2 cells, equal in 1." in text
    )  # ItemPop: 30 against 30
    assert "ItemPop 0.50, BPR 0.50" in text
    assert "earlier state" not in text
    assert "1 of 2 results were made by an earlier state" in claims(
        [ROWS[0], replace(ROWS[4], is_current=False)]
    )


def test_attackers_are_compared_on_the_seeds_that_both_have() -> None:
    rows = [
        row("BPR", "poisonrec", 0, [10, 10]),
        row("BPR", "poisonrec", 1, [99, 99]),
        row("BPR", "poisonrec-warm", 0, [11, 11]),
        row("BPR", "poisonrec-bplain", 0, [5, 5]),
        row("NeuMF", "poisonrec", 0, [3, 3]),
        row("NeuMF", "poisonrec-warm", 1, [9, 9]),  # no seed in common
    ]
    text = claims(rows)
    assert "poisonrec-warm above poisonrec: 1 of 1 cells." in text  # 11 against 10, not 54.5
    assert "Best of everything" not in text  # nobody else has both seeds of BPR
    assert "poisonrec above poisonrec-bplain: 1 of 1 cells." in text
    assert "poisonrec-bplain over poisonrec: synthetic BPR 0.50 (" in text


def test_the_cells_that_poisonrec_does_not_win_are_named() -> None:
    names = ("random", "popular", "middle", "power-item", "conslop", "appgrad", "poisonrec")
    best_is_last = [row("BPR", name, 0, [n, n]) for n, name in enumerate(names)]
    best_is_conslop = [
        row("AutoRec", name, 0, [9 - abs(n - 4)] * 2) for n, name in enumerate(names)
    ]
    assert "Where it is not poisonrec" not in claims(best_is_last)
    text = claims(best_is_last + best_is_conslop)
    assert "seven attacks, by mean: conslop 1, poisonrec 1 (" in text
    assert "Where it is not poisonrec: conslop on synthetic AutoRec." in text


def test_learners_without_a_common_budget_have_no_line() -> None:
    rows = [
        row("BPR", "poisonrec", 0, [1, 2, 3, 4]),
        row("BPR", "poisonrec-warm", 0, [4, 4, 4, 4]),
        row("NeuMF", "random-search", 0, [4, 4, 4, 4]),  # where PoisonRec was not
    ]
    table = learners_table(rows)
    assert "poisonrec-warm" in table
    assert "random-search" not in table


def test_a_report_says_what_was_retrained_in_full() -> None:
    def cell(seed: int, full: int | None) -> Row:
        own = costly([row("BPR", "random", seed, [1])])[0]
        return replace(own, result={**own.result, "full_rec_num": full})

    assert "No plan was retrained in full" in report([cell(0, None), cell(1, None)])
    some = report([cell(0, 7), cell(1, None)])
    assert (
        "after full retraining, mean over seeds (heuristics: their first draw). Of seed 0 only."
        in some
    )
    several = report([cell(seed, 7 if seed else None) for seed in range(3)])
    assert "their first draw). Of seeds 1, 2 only." in several
    everything = [cell(0, 7), cell(1, 9)]
    assert "their first draw).\n" in report(everything)
    popular = [replace(row, cell=replace(row.cell, entry="popular")) for row in everything]
    assert "their first draw).\n" in report([*everything, *popular])


@pytest.mark.parametrize("entry", ["random", "random-search"])
def test_full_retraining_is_added_to_a_plan_that_there_is(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = replace(CELL, entry=entry)
    wanted = run_cell(full, tmp_path / "fresh")
    fast = run_cell(replace(full, is_full=False), tmp_path)
    assert fast["full_rec_num"] is None
    monkeypatch.setattr(cells_module, "_measure", lambda _: pytest.fail("attacked again"))
    added = run_cell(full, tmp_path)
    assert added == {**fast, "full_rec_num": wanted["full_rec_num"]}
    store = ResultStore(tmp_path)
    assert store.get(identity(full)) == json.loads(json.dumps(added))
    plans = [
        FakeProfiles.load(profiles_path(store, identity(each)))
        for each in (full, replace(full, is_full=False))
    ]
    assert plans[0].content_hash == plans[1].content_hash
    # and the other way round: more than was asked for is there already
    run_cell(full, tmp_path / "fresh")
    assert run_cell(replace(full, is_full=False), tmp_path / "fresh") == wanted


def test_final_shares_of_targets_are_those_of_the_last_batch_per_dataset() -> None:
    early = row("BPR", "poisonrec", 0, [1, 2, 3, 4])
    early = replace(early, result={**early.result, "target_shares": [0.1, 0.1, 0.7, 0.9]})
    assert "(Fig. 5): BPR 0.80." in claims([early])
    elsewhere = replace(
        early,
        cell=replace(early.cell, dataset="synthetic-large"),
        result={**early.result, "target_shares": [0.0, 0.0, 0.2, 0.2]},
    )
    text = claims([early, elsewhere])
    assert "(Fig. 5): synthetic BPR 0.80, synthetic-large BPR 0.20." in text


def test_where_nobody_reaches_anything_nobody_is_the_best() -> None:
    nobody = [row("PMF", entry, 0, [], 0.0) for entry, _ in HEURISTICS]
    nobody += [row("PMF", entry, 0, [0, 0]) for entry in ("conslop", "appgrad", "poisonrec")]
    entries = ("random", "popular", "middle", "power-item", "conslop", "appgrad")
    poor = [row("BPR", entry, 0, [1, 1]) for entry in entries]
    text = claims([*nobody, *poor, row("BPR", "poisonrec", 0, [1, 2])])
    assert "Best of the paper's seven attacks, by mean: poisonrec 1 (" in text
    assert "Best of everything compared here, by mean: poisonrec 1 (of 2 " in text


def test_the_best_of_everything_is_not_decided_by_cells_that_are_missing() -> None:
    seeds = [row("BPR", "poisonrec", seed, [0, best]) for seed, best in ((0, 9), (1, 1))]
    seeds += [row("BPR", "evolution", seed, [0, 5]) for seed in (0, 1)]  # 10 / 2 both
    late = row(
        "BPR", "sb3-ppo", 0, [100]
    )  # has no seed 1, and does not make the others' seed 1 count less
    begun = row("PMF", "popular", 0, [], 7.0)  # nobody else yet
    text = claims([*seeds, late, begun])
    assert "Best of everything compared here, by mean: evolution 1, poisonrec 1 (of 1 " in text


def test_without_another_learner_there_is_no_table_of_learners() -> None:
    alone = [each for each in ROWS if each.cell.entry != "poisonrec-warm"]
    assert learners_table(alone) == ""
    assert "Best RecNum after so many queries" not in report(costly(alone))


def test_a_dataset_with_another_protocol_is_another_one_in_a_report() -> None:
    steam = [row("BPR", "poisonrec", 0, [n, n]) for n in (100, 900)]
    rows = costly(
        [
            replace(each, cell=replace(each.cell, dataset="steam", protocol=protocol))
            for each, protocol in zip(steam, ("poisonrec", None), strict=True)
        ]
    )
    text = report(rows)
    with_protocol, without = text.split("## steam-no-protocol")
    assert "## steam\n" in with_protocol
    assert "| poisonrec | 100 |" in with_protocol
    assert (
        "| poisonrec  | 163 |" in with_protocol
    )  # the paper's, in a wider column: with all attackers of its
    assert "| poisonrec | 900 |" in without
    assert "163" not in without
    assert "PoisonRec's Table III" not in without
    assert "Cells (dataset and victim) with results: 2." in without


def test_the_command_of_a_report_asks_for_the_same_cells() -> None:
    parser = argparse.ArgumentParser()
    table3.add_arguments(parser)
    for given in (["--no-full"], ["--protocol", "none", "--seeds", "4", "5", "--queries", "9"]):
        args = parser.parse_args(["--datasets", "synthetic", "--protocol", "none", *given])
        again = parser.parse_args(table3._command(args).split()[3:])
        assert table3.cells_of(again) == table3.cells_of(args)


def test_lines_of_many_attackers_can_be_told_apart() -> None:
    assert len({figures.line_style(number) for number in range(32)}) == 32


def test_the_legend_has_attackers_that_are_not_in_the_first_panel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def look(figure: Figure, path: Path) -> None:
        del path
        shown.extend(text.get_text() for legend in figure.legends for text in legend.get_texts())

    monkeypatch.setattr(figures, "write_figure", look)
    rows = [row("ItemPop", "poisonrec", 0, [1, 2]), row("BPR", "poisonrec-plain", 0, [1, 2])]
    draw_anytime(rows, tmp_path / "anytime.png")
    assert shown == ["poisonrec", "poisonrec-plain"]


def test_pictures_say_where_seeds_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Figure] = []
    monkeypatch.setattr(figures, "write_figure", lambda figure, _: seen.append(figure))
    rows = [row("BPR", "poisonrec", seed, [0, best]) for seed, best in ((0, 4), (1, 8))]
    rows += [row("BPR", "evolution", 0, [0, 3]), row("PMF", "poisonrec", 0, [0, 1])]
    draw_anytime(rows, tmp_path / "anytime.png")
    panel = seen[0].axes[0] if seen[0].axes[0].get_title().startswith("BPR") else seen[0].axes[1]
    assert panel.get_title() == "BPR, 1 seed"
    assert [line.get_ydata()[-1] for line in panel.get_lines()] == [4.0, 3.0]  # type: ignore[index]
    draw_heat_map(rows, tmp_path / "heat.png")
    assert sorted(text.get_text() for text in seen[1].axes[0].texts) == ["1", "3*", "6"]
    assert "*: fewer" in seen[1].axes[0].get_title()


def test_pictures_are_written(tmp_path: Path) -> None:
    searching = [each for each in ROWS if len(each.curve)]
    for draw in (draw_anytime, draw_learning, draw_target_shares, draw_heat_map):
        path = tmp_path / f"{draw.__name__}.png"
        draw(searching, path)
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000


@pytest.mark.slow
def test_the_smoke_run_writes_report_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = tmp_path / "docs" / "table3.md"
    code = cli.main(
        ["bench", "table3", "--smoke", "--json", "--out", str(tmp_path / "cells"),
         "--figures", str(tmp_path / "docs"), "--write-docs", str(docs)]
    )  # fmt: skip
    out, err = capsys.readouterr()
    assert code == 0
    data = json.loads(out.splitlines()[-1])
    assert data["n_finished"] == 18
    assert "## synthetic" in err
    page = docs.read_text()
    assert "recattack bench table3 --datasets synthetic" in page
    assert "![table3-synthetic-heat-map](table3-synthetic-heat-map.png)" in page
    assert all(Path(name).is_file() for name in data["figures"])


def test_the_code_of_an_attacker_is_what_it_imports_of_agents() -> None:
    def imported(name: str) -> set[str]:
        return {path.name for path in imported_files(ATTACKERS[name].__module__, ["agents"])}

    assert imported("random") == {"random_items.py", "clicks.py", "base.py"}
    assert imported("appgrad") == {"appgrad.py", "search.py", "base.py", "interruption.py"}
    assert {"agent.py", "policy.py", "tree_space.py", "kernel.py"} < imported("poisonrec")
    assert _attacker_code(ATTACKERS["random"]) != _attacker_code(ATTACKERS["popular"])


def test_a_result_of_other_code_serves_where_there_is_none_of_this_and_the_newest_first(
    tmp_path: Path,
) -> None:
    store, key = ResultStore(tmp_path), identity(CELL)
    for age, code in ((200, "older"), (100, "newer"), (300, "oldest")):
        stale = {**key, "attacker_code": code}
        store.put(stale, {"rec_num": code})
        then = time.time() - age
        os.utime(store.path(stale), (then, then))
    (found,) = read_rows([CELL], tmp_path)
    assert (found.result["rec_num"], found.is_current) == ("newer", False)
    store.put(key, {"rec_num": "current"})
    os.utime(store.path(key), (0, 0))
    (found,) = read_rows([CELL], tmp_path)
    assert (found.result["rec_num"], found.is_current) == ("current", True)
    assert found.path == store.path(key)


def test_a_stand_in_goes_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECATTACK_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = table3.datasets_here(["steam", "synthetic-steam"], "none")
    assert here == [("synthetic-steam", None)]
    assert table3.datasets_here(["steam"], "poisonrec") == [("synthetic-steam", None)]


def test_results_of_a_dataset_that_is_not_here_are_reported_and_stay_in_the_archive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {**identity(CELL), "dataset": "amazon-phone", "protocol": "poisonrec", "log": "theirs"}
    known["piece"] = f"amazon-phone-{CELL.victim}-random-3"
    (result,) = costly([row(CELL.victim, "random", 3, [], 77)])
    made_there = ResultStore(tmp_path / "there")
    made_there.put(known, dict(result.result))
    plan = profiles_path(made_there, known)
    plan.write_bytes(b"clicks")
    archive = tmp_path / "results.zip"
    assert pack([made_there.path(known), plan], archive) == 2

    monkeypatch.delenv("RECATTACK_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    kept = {"--victims": "ItemPop", "--attackers": "random", "--seeds": "0"}
    assert cli.main([*options(tmp_path / "here", **kept), "--archive", str(archive)]) == 0
    with zipfile.ZipFile(archive) as packed:
        names = packed.namelist()
    assert {made_there.path(known).name, plan.name} < set(names)
    assert len(names) == 5
    capsys.readouterr()

    shown = ["--report-only", "--everything", "--archive", str(archive), "--out", str(tmp_path)]
    assert cli.main(["bench", "table3", "--json", *shown]) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out.splitlines()[-1])["rec_num"]
    assert [(each["dataset"], each["is_current"]) for each in rows] == [
        ("amazon-phone", True),
        ("synthetic", True),
    ]
    assert "Downloading" not in err


def test_an_archive_that_is_to_be_reported_must_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing.zip"
    shown = [*options(tmp_path / "cells"), "--report-only", "--archive", str(missing)]
    assert cli.main(shown) == 2
    assert f"{missing} must be a readable archive of results" in capsys.readouterr().err


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    result = tmp_path / "a.json"
    result.write_text(json.dumps(list(range(500))))
    archive = tmp_path / "results.zip"
    pack([result], archive)
    damaged = bytearray(archive.read_bytes())
    damaged[60:120] = bytes(byte ^ 0x5A for byte in damaged[60:120])
    archive.write_bytes(bytes(damaged))
    with pytest.raises(ArtifactError, match=r"results\.zip must be a readable archive of results"):
        unpack(archive, tmp_path / "cells")


def test_an_archive_takes_results_to_another_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "results.zip"
    kept = [*options(tmp_path / "here"), "--archive", str(archive)]
    assert cli.main(kept) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    written = archive.read_bytes()
    with zipfile.ZipFile(archive) as packed:
        names = packed.namelist()
    assert len([name for name in names if name.endswith(".effects.json")]) == 12
    assert len([name for name in names if name.endswith(".json")]) == 24
    assert len([name for name in names if name.endswith(".npz")]) == 12

    def never(cell: Cell) -> tuple[dict[str, object], FakeProfiles]:
        raise AssertionError(f"{cell} is in the archive")

    monkeypatch.setattr(cells_module, "_measure", never)
    there = [*options(tmp_path / "there"), "--archive", str(archive)]
    assert cli.main(there) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["rec_num"] == first["rec_num"]
    assert archive.read_bytes() == written  # the same results, the same bytes


def test_everything_is_reported_with_the_largest_budget_of_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cells"
    for queries, seeds in ((8, "0 1"), (12, "0")):
        given = {"--queries": queries, "--seeds": seeds, "--attackers": "random-search"}
        assert cli.main(options(out, **given)) == 0
    capsys.readouterr()
    everything = ["bench", "table3", "--json", "--report-only", "--everything", "--out", str(out)]
    assert cli.main(everything) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rec_num"]
    assert {(row["victim"], row["seed"], row["n_queries"]) for row in rows} == {
        (victim, seed, 12 if seed == 0 else 8)
        for victim in ("ItemPop", "CoVisitation")
        for seed in (0, 1)
    }
    assert all(row["is_current"] for row in rows)
    assert cli.main(["bench", "table3", "--everything", "--out", str(out)]) == 2
    assert "--everything must go with --report-only" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../outside.json", "folder/inside.json", "program.py"])
def test_an_archive_of_anything_else_is_refused(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "strange.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("fine.json", "{}")
        packed.writestr(name, "{}")
    with pytest.raises(ArtifactError, match=r"must hold \.json and \.npz files without folders"):
        unpack(archive, tmp_path / "cells")
    assert not (tmp_path / "cells").exists()
    archive.write_bytes(b"no zip")
    with pytest.raises(ArtifactError, match=r"strange\.zip must be a readable archive"):
        unpack(archive, tmp_path / "cells")


def test_results_that_are_there_already_are_left_as_they_are(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, text in ((here, "old"), (there, "new")):
        folder.mkdir()
        (folder / "a.json").write_text(text)
    (here / "b.json").write_text("b")
    paths = [here / "a.json", here / "b.json", here / "missing.npz"]
    assert pack(paths, tmp_path / "results.zip") == 2
    assert unpack(tmp_path / "results.zip", there) == 1
    assert (there / "a.json").read_text() == "new"
    assert (there / "b.json").read_text() == "b"


def test_budgets_that_differ_are_said_and_only_equal_ones_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [
        row("ItemPop", "poisonrec", 0, [1, 10, 5, 20]),
        row("ItemPop", "poisonrec-warm", 0, [1, 10, 5, 40]),
        row("NGCF", "poisonrec", 0, [7, 8]),
        row("NGCF", "poisonrec-warm", 0, [24, 8]),
        row("ItemPop", "random-search", 0, [1, 2, 3, 4]),
    ]
    assert _budgets(rows) == "1 seed. Queries of attackers that query: 4, 2 against NGCF."
    monkeypatch.setattr("agents.benchmark.comparison.BUDGETS", (2, 4))
    line = next(x for x in learners_table(rows).splitlines() if x.startswith("| poisonrec-warm"))
    # (1 + 3) / 2; no interval: one seed each
    assert line.split("|")[2].strip() == "2.00"
    assert line.split("|")[3].strip() == "2.00"  # NGCF has no 4 queries: 40 / 20
    # all of them: 40 / 20 of ItemPop, 24 / 8 of NGCF
    assert line.split("|")[4].strip() == "2.50"


def test_agreement_is_the_rank_correlation_of_plans_under_both_kinds_of_retraining() -> None:
    def plan(victim: str, finetune: int, full: int | None) -> Row:
        result = {"finetune_rec_num": finetune, "full_rec_num": full}
        return Row(replace(CELL, victim=victim), MappingProxyType(result), is_current=True)

    # ranks of the second: 1 3 2 4 5 6; sum of squared differences 2: 1 - 6 * 2 / (6 * 35)
    numbers = [(10, 1), (20, 30), (30, 20), (40, 44), (50, 51), (60, 99)]
    rows = [plan("BPR", *each) for each in numbers]
    shown = agreement([*rows, plan("BPR", 7, None)])[1].splitlines()[-1]  # 210 / 245
    assert [x.strip() for x in shown.split("|")[1:-1]] == [
        "BPR",
        "6",
        "0.94",
        "0.86",
        "10 to 60",
        "1 to 99",
    ]
    assert agreement(rows[:5]) == agreement([plan("BPR", 1, None)]) == []
    flat, nothing = (agreement([plan("ItemPop", n, full) for n in range(9)])[1] for full in (7, 0))
    assert " - " in flat  # no order under full retraining
    assert " 0.57 " in flat  # 36 / 63
    assert nothing.splitlines()[-1].count(" - ") == 2


def test_alternation_is_reported_per_dataset(tmp_path: Path) -> None:
    def planned(dataset: str, clicks: list[int]) -> Row:
        path = tmp_path / f"{dataset}.json"
        plan = FakeProfiles(np.array([clicks]), header={"target_items": [9]})
        plan.save(path.with_suffix(".npz"))
        own = row("CoVisitation", "poisonrec", 0, [1, 2])
        return replace(
            own, cell=replace(own.cell, dataset=dataset, protocol="poisonrec"), path=path
        )

    text = claims([planned("steam", [9, 1, 9, 2]), planned("ml-1m", [9, 9, 1, 1])])
    assert "(paper: it learns to alternate): steam 100% (67%), ml-1m 33% (67%)." in text
    assert "consecutive" not in claims([row("CoVisitation", "poisonrec", 0, [1, 2])])  # no plan


def test_alternation_counts_pairs_of_a_target_and_another_item() -> None:
    clicks = np.array([[9, 1, 9, 2], [1, 1, 9, 9], [3, 3, 3, 3]])
    observed, expected = alternation(FakeProfiles(clicks, header={"target_items": [9]}))
    assert observed == pytest.approx((3 + 1 + 0) / 9)
    # two of four: the next of three others is of the other kind in two cases of three
    assert expected == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    single = FakeProfiles(np.array([[9], [1]]), header={"target_items": [9]})
    assert alternation(single) == (0.0, 0.0)


@pytest.mark.parametrize(
    "content", ["null", "[]", "3", "{}", '{"identity": 3, "result": 4}', '{"identity": {', "\udcff"]
)
def test_a_file_of_another_shape_is_no_result(content: str, tmp_path: Path) -> None:
    store, key = ResultStore(tmp_path), identity(CELL)
    store.put(key, {"rec_num": 1})
    store.path(key).write_bytes(content.encode(errors="surrogateescape"))
    assert store.get(key) is None
    assert not read_rows([CELL], tmp_path)
    assert not cells_in(tmp_path)
    store.path(key).write_text(json.dumps({"identity": key}))
    assert store.get(key) is None
    store.put(key, {"rec_num": 1})
    assert store.get(key) == {"rec_num": 1}


def test_of_a_cell_there_is_the_one_with_the_largest_budget_or_each(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    wanted = []
    for seed in range(6):  # names are digests, so that which file comes first is by chance
        plain = replace(CELL, seed=seed, n_draws=2, is_full=False)
        search = replace(plain, entry="random-search", n_draws=1)
        for cell in (
            plain,
            replace(plain, is_full=True),
            replace(plain, n_draws=4),
            search,
            replace(search, n_queries=30),
        ):
            store.put(identity(cell), {})
        wanted += [
            replace(plain, n_draws=4, n_queries=1),
            replace(search, n_queries=30),
            replace(plain, is_full=True, n_queries=1),
            search,
        ]
    largest = [cell for cell in wanted if cell.n_draws == 4 or cell.n_queries == 30]
    assert set(cells_in(tmp_path)) == set(largest)
    assert len(cells_in(tmp_path)) == len(largest)
    assert set(cells_in(tmp_path, every_budget=True)) == set(wanted)
    twins = tmp_path / "twins"
    for seed in range(6):
        for is_full in (True, False):
            cell = replace(CELL, seed=seed, n_queries=1, is_full=is_full)
            ResultStore(twins).put(identity(cell), {})
    assert [cell.is_full for cell in cells_in(twins)] == [True] * 6
    assert cells_in(twins, every_budget=True) == cells_in(twins)


def test_an_archive_keeps_what_was_measured_with_other_budgets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "results.zip"
    given = {"--attackers": "random-search", "--victims": "ItemPop", "--seeds": "0"}
    told = []
    for queries in (8, 12, 4):
        command = options(tmp_path / f"{queries}", **{**given, "--queries": queries})
        assert cli.main([*command, "--archive", str(archive)]) == 0
        told.append(json.loads(capsys.readouterr().out.splitlines()[-1])["rec_num"])
    monkeypatch.setattr(cells_module, "_measure", lambda cell: pytest.fail(f"{cell} is there"))
    for queries, before in zip((8, 12, 4), told, strict=True):
        command = options(tmp_path / "again", **{**given, "--queries": queries})
        assert cli.main([*command, "--archive", str(archive)]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["rec_num"] == before


def test_no_flipped_byte_of_an_archive_is_more_than_a_refusal(tmp_path: Path) -> None:
    for name, content in (("a.json", b'{"a": 1}' * 20), ("b.npz", bytes(range(200)))):
        (tmp_path / name).write_bytes(content)
    archive, out = tmp_path / "results.zip", tmp_path / "out"
    pack([tmp_path / "a.json", tmp_path / "b.npz"], archive)
    written = archive.read_bytes()
    told = []
    for place in range(len(written)):
        for flip in (0x01, 0x80):
            damaged = bytearray(written)
            damaged[place] ^= flip
            archive.write_bytes(bytes(damaged))
            try:
                unpack(archive, out)
            except ArtifactError as error:
                told.append((str(error), out.exists()))
            for path in sorted(out.glob("*")):
                assert path.read_bytes() == (tmp_path / path.name).read_bytes()
                path.unlink()
            if out.exists():
                out.rmdir()
    assert all(f"{archive} must" in error for error, _ in told)
    assert not any(is_there for _, is_there in told)  # nothing of it, not some
    assert len(told) > len(written)  # the rest is in fields that nobody reads


def test_the_time_is_no_part_of_an_archive(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    pack([tmp_path / "a.json"], tmp_path / "results.zip")
    with zipfile.ZipFile(tmp_path / "results.zip") as packed:
        assert [entry.date_time for entry in packed.infolist()] == [(1980, 1, 1, 0, 0, 0)]


@pytest.mark.parametrize("option", ["--out", "--archive", "--figures", "--write-docs"])
def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is_run(
    option: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cells_module, "_measure", lambda cell: pytest.fail(f"{cell} was run"))
    file = tmp_path / "file"
    file.write_text("mine")
    command = [*options(tmp_path / "cells"), option, str(file / "below")]
    assert cli.main(command) == 2
    told = capsys.readouterr().err
    assert f"{option} must name a " in told
    assert str(file) in told
    wrong = tmp_path if option in ("--archive", "--write-docs") else file
    assert cli.main([*command, option, str(wrong)]) == 2
    told = capsys.readouterr().err
    assert f"{option} must " in told
    assert str(wrong) in told
    assert file.read_text() == "mine"
    assert not list((tmp_path / "cells").glob("*.json"))


def test_to_report_from_a_folder_it_need_not_be_writable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing"
    assert cli.main([*options(missing), "--report-only"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["n_finished"] == 0
    assert not missing.exists()
    missing.write_text("a file")
    assert cli.main([*options(missing), "--report-only"]) == 2
    assert f"--out must name a folder, got the file {missing}" in capsys.readouterr().err


def test_a_victim_that_recommends_nothing_right_has_nothing_to_lose() -> None:
    effects = {"clean_hr_at_k": 0.0, "hr_at_k": 0.0, "clean_ndcg_at_k": 0.0, "ndcg_at_k": 0.0}
    rows = [
        replace(each, result=MappingProxyType({**each.result, "side_effects": effects}))
        for each in costly(ROWS)
    ]
    assert "| +0.0% |   +0.0% |" in report(rows)


def test_cells_where_both_have_nothing_say_nothing_about_learners() -> None:
    rows = [
        *(row("ItemPop", name, 0, [0, 0]) for name in ("poisonrec", "poisonrec-warm")),
        row("BPR", "poisonrec", 0, [5, 10]),
        row("BPR", "poisonrec-warm", 0, [20, 20]),
    ]
    line = next(x for x in learners_table(rows).splitlines() if x.startswith("| poisonrec-warm"))
    assert line.split("|")[2].strip() == "2.00"


def test_there_is_no_ratio_to_nothing() -> None:
    rows = [row("ItemPop", name, 0, [0, 0]) for name in ("poisonrec", "poisonrec-bplain")]
    text = claims(rows)
    assert "poisonrec above poisonrec-bplain: 0 of 1 cells, equal in 1." in text
    assert "poisonrec-bplain over poisonrec" not in text


def test_the_papers_numbers_are_there_also_where_ours_are_missing() -> None:
    def there(victim: str, entry: str) -> Row:
        own = row(victim, entry, 0, [1, 1])
        return replace(own, cell=replace(own.cell, dataset="steam", protocol="poisonrec"))

    table = paper_table(
        [there("NGCF", "random"), there("ItemPop", "appgrad"), there("ItemKNN", "random")]
    )
    lines = [[word.strip() for word in line.split("|")[1:-1]] for line in table.splitlines()]
    assert lines[0][0] == "attacker"
    columns = {victim: [line[n] for line in lines[2:]] for n, victim in enumerate(lines[0])}
    assert columns["attacker"] == list(TABLE3["steam"])
    assert columns["NGCF"][columns["attacker"].index("appgrad")] == "8,094"
    assert columns["ItemPop"] == ["7", "6", "2", "6", "8", "5,421", "6,496"]
    assert columns["ItemKNN"] == ["-"] * 7  # none of the paper's victims
    assert len(columns) == 4
