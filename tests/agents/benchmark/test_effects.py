"""What is kept beside the cells of a comparison: detectors, harm, and who is shown instead of whom."""

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents import cli
from agents.benchmark import cells as cells_module
from agents.benchmark import effects, effects_tables, sidecars
from agents.benchmark.archive import pack, unpack
from agents.benchmark.cells import Cell, identity, profiles_path, run_cell
from agents.benchmark.effects_tables import (
    clean_table,
    columns,
    effects_section,
    found_text,
    missing_text,
    spread,
)
from agents.benchmark.rows import Row, cells_in, read_rows
from agents.benchmark.sidecars import sidecar_path
from agents.benchmark.store import ResultStore
from agents.reports import DETECTORS as REPORTED
from agents.reports import measured_fields
from recattack_gym.core import ArtifactError, FakeProfiles
from recattack_gym.defenses import DETECTORS
from recattack_gym.simulator import PlatformSimulator
from recattack_gym.simulator.effects import EffectsMeter
from recattack_gym.simulator.visibility import visibility

Json = dict[str, object]
CELL = Cell(
    dataset="synthetic",
    protocol=None,
    victim="CoVisitation",
    entry="popular",
    seed=3,
    n_queries=12,
    n_draws=2,
    is_full=False,
)
CELLS = [
    replace(CELL, victim=victim, entry=entry)
    for victim in ("ItemPop", "CoVisitation")
    for entry in ("random", "popular")
]


def made(folder: Path, cells: list[Cell] = CELLS) -> list[Row]:
    for cell in cells:
        run_cell(cell, folder)
    return read_rows(cells, folder)


def without_sidecars(folder: Path) -> list[Row]:
    for row in made(folder):
        sidecar_path(row.path).unlink()
    return read_rows(CELLS, folder)


def content(row: Row) -> Json:
    found: Json = json.loads(sidecar_path(row.path).read_text())
    return found


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cells whose effects are measured."""
    names: list[str] = []
    measure = effects.measure

    def noting(piece: effects.Piece, simulator: PlatformSimulator, meter: EffectsMeter) -> None:
        names.append(piece.path.name)
        measure(piece, simulator, meter)

    monkeypatch.setattr(effects, "measure", noting)
    return names


def test_a_new_cell_has_its_effects_at_once_and_its_result_is_as_before(tmp_path: Path) -> None:
    (row,) = made(tmp_path, [CELL])
    assert row.has_current_effects
    assert row.effects is not None
    assert set(row.effects) == {"detectors", "side_effects", "exposure"}
    assert set(row.result) >= {"side_effects", "rec_num"}
    assert not {"detectors", "exposure"} & set(row.result)
    assert row.effects["side_effects"] == row.result["side_effects"]
    simulator = PlatformSimulator("synthetic", "CoVisitation", seed=3)
    plan = FakeProfiles.load(profiles_path(ResultStore(tmp_path), identity(CELL)))
    for name, numbers in row.effects["detectors"].items():  # type: ignore[attr-defined]
        seen = visibility(simulator.victim.log, plan, DETECTORS[name](), fpr=0.01)
        assert numbers["auc"] == pytest.approx(seen.auc[0], abs=1e-6)
        assert numbers["recall"] == pytest.approx(seen.recall[0], abs=1e-6)
    found = EffectsMeter(simulator).measure(plan)
    shown = row.effects["exposure"]
    assert shown["n_users"] == found.n_users  # type: ignore[index]
    groups = shown["groups"]  # type: ignore[index]
    assert [group["poisoned"] for group in groups.values()] == found.exposure[0].tolist()
    assert [group["clean"] for group in groups.values()] == found.clean_exposure.tolist()
    assert [group["n_items"] for group in groups.values()] == found.n_items.tolist()


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_stored_plans_are_measured_without_attacking_again(
    n_jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {row.path: content(row) for row in made(tmp_path)}
    rows = without_sidecars(tmp_path)
    assert [row.effects for row in rows] == [None] * 4
    monkeypatch.setattr(cells_module, "_measure", lambda cell: pytest.fail(f"{cell} was attacked"))
    assert effects.measure_missing(rows, n_jobs=n_jobs) == 4
    rows = read_rows(CELLS, tmp_path)
    assert {row.path: content(row) for row in rows} == before
    assert all(row.has_current_effects for row in rows)
    assert effects.measure_missing(rows, n_jobs=n_jobs) == 0


def test_a_run_that_was_stopped_goes_on_where_it_was(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = without_sidecars(tmp_path)
    n_done = 0

    def stopping(*given: object) -> Json:
        nonlocal n_done
        n_done += 1
        if n_done == 3:
            raise KeyboardInterrupt
        return measured_fields(*given)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr("agents.benchmark.effects.measured_fields", stopping)
    with pytest.raises(KeyboardInterrupt):
        effects.measure_missing(rows, n_jobs=1)
    monkeypatch.setattr("agents.benchmark.effects.measured_fields", measured_fields)
    first = measured.copy()
    assert len(first) == 3
    rows = read_rows(CELLS, tmp_path)
    assert sum(row.has_current_effects for row in rows) == 2
    measured.clear()
    assert effects.measure_missing(rows, n_jobs=1) == 2
    assert measured[0] == first[2]
    assert not set(measured) & set(first[:2])
    assert all(row.has_current_effects for row in read_rows(CELLS, tmp_path))


def other_plan(row: Row) -> None:
    """Put another plan in the place of a cell's, as if it had been attacked anew."""
    plan_file = row.path.with_suffix(".npz")
    plan = FakeProfiles.load(plan_file)
    other = FakeProfiles(plan.item_ids[::-1], header=plan.header)
    other.save(plan_file)
    stored = json.loads(row.path.read_text())
    stored["result"]["profiles_hash"] = other.content_hash
    row.path.write_text(json.dumps(stored))


def damaged(row: Row) -> None:
    sidecar_path(row.path).write_text(sidecar_path(row.path).read_text()[:80])


def incomplete(row: Row) -> None:
    stored = content(row)
    del stored["result"]["exposure"]  # type: ignore[attr-defined]
    sidecar_path(row.path).write_text(json.dumps(stored))


@pytest.mark.parametrize("change", [other_plan, damaged, incomplete])
def test_effects_of_another_plan_or_that_cannot_be_read_are_measured_anew(
    change: Callable[[Row], None], tmp_path: Path, measured: list[str]
) -> None:
    rows = made(tmp_path)
    change(rows[2])
    rows = read_rows(CELLS, tmp_path)
    assert [row.effects is None for row in rows] == [False, False, True, False]
    effects.measure_missing(rows, n_jobs=1)
    assert measured == [rows[2].path.name]
    rows = read_rows(CELLS, tmp_path)
    assert all(row.has_current_effects for row in rows)
    plan = FakeProfiles.load(rows[2].path.with_suffix(".npz"))
    assert content(rows[2])["identity"]["profiles"] == plan.content_hash  # type: ignore[index]


@pytest.mark.parametrize("part", ["_code", "_MEASURING", "victim_code"])
def test_effects_that_other_code_measured_serve_until_they_are_measured_anew(
    part: str, tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [content(row) for row in made(tmp_path)]
    if part == "victim_code":
        monkeypatch.setattr(cells_module, "code_hash", lambda _: "other")
    else:
        monkeypatch.setattr(sidecars, part, 7 if part == "_MEASURING" else lambda: "other")
    rows = read_rows(CELLS, tmp_path)
    assert all(row.effects is not None and not row.has_current_effects for row in rows)
    assert "Measured by other code than is here now: 4." in missing_text(rows)
    effects.measure_missing(rows, n_jobs=1)
    assert len(measured) == 4
    rows = read_rows(CELLS, tmp_path)
    assert all(row.has_current_effects for row in rows)
    for row, old in zip(rows, before, strict=True):
        assert content(row)["result"] == old["result"]
        assert content(row)["identity"] != old["identity"]


def test_what_the_code_of_effects_is() -> None:
    assert len(sidecars._code()) == 16
    key = sidecars.sidecar_identity(identity(CELL), "plan")
    assert key == sidecars.sidecar_identity(identity(replace(CELL, entry="random")), "plan")
    for change in ({"seed": 4}, {"victim": "BPR"}):
        assert key != sidecars.sidecar_identity(identity(replace(CELL, **change)), "plan")
    assert key != sidecars.sidecar_identity(identity(CELL), "another plan")


def test_a_plan_that_is_not_what_its_result_says_is_refused(tmp_path: Path) -> None:
    row = without_sidecars(tmp_path)[0]
    plan_file = row.path.with_suffix(".npz")
    plan = FakeProfiles.load(plan_file)
    FakeProfiles(plan.item_ids[::-1], header=plan.header).save(plan_file)
    with pytest.raises(ArtifactError, match="must be the plan that"):
        effects.measure_missing([row], n_jobs=1)
    plan.save(plan_file)
    other = replace(row, result={**row.result, "target_items": [1, 2]})
    with pytest.raises(ArtifactError, match=r"got one for \[1, 2\]"):
        effects.measure_missing([other], n_jobs=1)
    assert not sidecar_path(row.path).exists()
    assert effects.measure_missing([row], n_jobs=1) == 1


def test_the_twin_that_is_retrained_in_full_takes_the_effects_over(
    tmp_path: Path, measured: list[str]
) -> None:
    (row,) = made(tmp_path, [CELL])
    (twin,) = made(tmp_path, [replace(CELL, is_full=True)])
    assert twin.path != row.path
    assert twin.has_current_effects
    assert content(twin) == content(row)
    assert not measured


# -- the command -----------------------------------------------------------------------------------


def told(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[Json, str]:
    assert cli.main(["bench", "table3", "--json", *map(str, words)]) == 0
    out, err = capsys.readouterr()
    data: Json = json.loads(out.splitlines()[-1])
    return data, err


SMALL = (
    "--datasets", "synthetic", "--protocol", "none", "--attackers", "random", "popular",
    "--seeds", "3", "--draws", "2", "--no-full",
)  # fmt: skip
VICTIMS = ("--victims", "CoVisitation", "ItemPop")


def effects_in(data: Json) -> list[object]:
    rows = data["rec_num"]
    assert isinstance(rows, list)
    return [row["effects"] for row in rows]


def test_an_archive_takes_effects_along_and_older_ones_are_read_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], measured: list[str]
) -> None:
    archive, old = tmp_path / "results.zip", tmp_path / "old.zip"
    here = tmp_path / "here"
    first, _ = told(capsys, *SMALL, *VICTIMS, "--out", here, "--archive", archive)
    with zipfile.ZipFile(archive) as packed:
        names = packed.namelist()
    assert len(names) == 12
    assert sum(name.endswith(".effects.json") for name in names) == 4
    shown = ("--report-only", "--everything")
    there, text = told(capsys, *shown, "--archive", archive, "--out", tmp_path / "there")
    assert effects_in(there) == effects_in(first)
    assert None not in effects_in(first)
    assert "Not measured" not in text
    assert not measured

    pack((path for path in here.iterdir() if not sidecars.is_sidecar(path)), old)
    bare, text = told(capsys, *shown, "--archive", old, "--out", tmp_path / "bare")
    assert effects_in(bare) == [None] * 4
    assert bare["n_finished"] == 4
    assert "Not measured (`--effects` does it)." in text
    assert not measured
    given = (*shown, "--effects", "--out", tmp_path / "bare")
    some, text = told(capsys, *given, "--victims", "ItemPop")
    assert some["n_finished"] == 2
    assert len(measured) == 2
    everything, text = told(capsys, *shown, "--out", tmp_path / "bare")
    assert [each is None for each in effects_in(everything)].count(True) == 2
    assert "Not measured: CoVisitation (all)." in text
    written = old.read_bytes()
    told(capsys, *shown, "--archive", old, "--out", tmp_path / "bare")
    assert old.read_bytes() == written  # a report writes to no archive
    everything, _ = told(capsys, *given, "--archive", old)
    assert effects_in(everything) == effects_in(first)
    assert len(measured) == 4
    assert old.read_bytes() == archive.read_bytes()


def test_a_run_measures_what_is_missing_unless_it_is_told_not_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], measured: list[str]
) -> None:
    first, _ = told(capsys, *SMALL, *VICTIMS, "--out", tmp_path)
    assert not measured  # by the cells themselves
    for path in sorted(tmp_path.glob("*.effects.json"))[1:]:
        path.unlink()
    for extra, n_measured in (("--no-effects", 0), ("--report-only", 0), ("--jobs=1", 3)):
        again, _ = told(capsys, *SMALL, *VICTIMS, "--out", tmp_path, extra)
        assert len(measured) == n_measured
    assert effects_in(again) == effects_in(first)


def test_to_measure_effects_the_folder_must_be_writable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    wrong = ["--report-only", "--effects", "--out", str(tmp_path / "file" / "below")]
    assert cli.main(["bench", "table3", *SMALL, *VICTIMS, *wrong]) == 2
    assert "--out must name a folder" in capsys.readouterr().err


def test_sidecars_do_not_count_as_results(tmp_path: Path) -> None:
    made(tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 8
    assert sorted(map(str, cells_in(tmp_path))) == sorted(
        str(replace(cell, n_queries=1)) for cell in CELLS
    )
    pack(tmp_path.iterdir(), tmp_path / "all.zip")
    assert unpack(tmp_path / "all.zip", tmp_path / "there") == 12
    assert len(list((tmp_path / "there").iterdir())) == 12


# -- the tables ------------------------------------------------------------------------------------


def row(victim: str, entry: str, seed: int, auc: float, places: tuple[int, ...], hr: float) -> Row:
    """A row with known numbers; `places` of targets, head, middle, tail after the attack."""
    clean = (0, 40, 50, 10)
    measured_: Mapping[str, object] = {
        "detectors": {name: {"auc": auc, "recall": auc / 2} for name in REPORTED},
        "side_effects": {
            "k": 10, "clean_hr_at_k": 0.4, "hr_at_k": hr, "clean_ndcg_at_k": 0.0, "ndcg_at_k": 0.0,
        },
        "exposure": {
            "n_users": 10,
            "groups": {
                name: {"n_items": 1000 + number, "clean": clean[number], "poisoned": places[number]}
                for number, name in enumerate(effects_tables.GROUPS)
            },
        },
    }  # fmt: skip
    cell = replace(CELL, victim=victim, entry=entry, seed=seed)
    return Row(cell, {}, is_current=True, effects=measured_, has_current_effects=True)


ROWS = [
    row("ItemPop", "popular", 0, 0.5, (10, 30, 50, 10), 0.4),
    row("ItemPop", "popular", 1, 0.7, (20, 30, 45, 5), 0.3),
    row("CoVisitation", "popular", 0, 0.9, (6, 40, 44, 10), 0.2),
    row("CoVisitation", "random", 0, 0.1, (0, 40, 50, 10), 0.4),
]


def line_of(text: str, *start: str) -> list[str]:
    """Return the cells of the only line of tables that starts so."""
    lines = [[word.strip() for word in line.split("|")[1:-1]] for line in text.splitlines()]
    (found,) = [line for line in lines if line[: len(start)] == list(start)]
    return found[len(start) :]


def test_means_and_intervals_of_effects_are_those_worked_out_by_hand() -> None:
    text = "\n".join(effects_section(ROWS))
    names = [name for name, _, _ in columns()]
    overall = dict(zip(["cells", *names], line_of(text, "popular"), strict=True))
    assert overall["cells"] == "3"
    assert overall["AUC ks-popularity"] == "0.70"  # 0.5, 0.7, 0.9
    assert overall["found pca-varselect"] == "0.35"
    assert overall["HR@10"] == "-25.0%"  # 0, -25 %, -50 %
    assert overall["NDCG@10"] == "+0.0%"  # nothing to lose
    assert overall["targets"] == "+12.00%"  # 10, 20, 6 of 100 places
    assert overall["head"] == "-6.67%"
    assert overall["tail"] == "-1.67%"
    own = dict(zip(names, line_of(text, "ItemPop", "popular"), strict=True))
    # t(0.975, 1) = 12.706; half width 12.706 * deviation / sqrt(2): of 0.5 and 0.7 it is 12.706 * 0.1
    assert own["AUC popularity"] == "0.60 ± 1.27"
    assert own["targets"] == "+15.00% ± 63.53%"
    assert own["head"] == "-10.00% ± 0.00%"
    one = dict(zip(names, line_of(text, "CoVisitation", "random"), strict=True))
    assert one["AUC popularity"] == "0.10"  # one seed
    assert one["targets"] == "+0.00%"
    assert line_of(clean_table(ROWS), "ItemPop") == [
        "1,000: 0.00%", "1,001: 40.00%", "1,002: 50.00%", "1,003: 10.00%",
    ]  # fmt: skip


def test_a_spread_of_one_number_is_the_number() -> None:
    assert spread([0.25], "+.1%") == "+25.0%"
    assert spread([1.0, 1.0, 1.0], ".2f") == "1.00 ± 0.00"
    values = [0.1, 0.4, 0.3]
    half = 4.302653 * np.std(values, ddof=1) / np.sqrt(3)
    assert spread(values, ".3f") == f"{np.mean(values):.3f} ± {half:.3f}"


def test_a_report_says_what_was_not_measured() -> None:
    missing = [replace(ROWS[1], effects=None), replace(ROWS[3], effects=None)]
    text = effects_section([ROWS[0], missing[0], ROWS[2], missing[1]])[0]
    assert "Not measured: ItemPop (1 of 2), CoVisitation (1 of 2)." in text
    text = effects_section([ROWS[0], ROWS[1], missing[1]])[0]
    assert "Not measured: CoVisitation (all)." in text
    assert "other code" not in text
    assert "Not measured" not in effects_section(ROWS)[0]
    (nothing,) = effects_section(missing)
    assert nothing.endswith("Not measured (`--effects` does it).")


def test_how_many_attacks_are_found_is_counted_by_their_best_detector() -> None:
    recalls = {"none": (0, 0, 0), "few": (0, 0.1, 0.05), "most": (0.15, 0, 0), "all": (0.2, 1, 0)}
    rows = []
    for values in recalls.values():
        effects_ = dict(ROWS[0].effects or {})
        effects_["detectors"] = {
            name: {"auc": 0.5, "recall": value}
            for name, value in zip(REPORTED, values, strict=True)
        }
        rows.append(replace(ROWS[0], effects=effects_))
    text = found_text(rows)
    assert "no fake user in 1 of 4 attacks, at most a tenth of them in 2, and all in 1." in text
    assert text in effects_section(rows)
