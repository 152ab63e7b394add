"""`recattack bench kkt`: what it measures, resumes, counts and writes."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from agents.benchmark import kkt, kkt_measure, kkt_report
from agents.benchmark.kkt_measure import MEASURES
from agents.benchmark.kkt_pieces import all_pieces
from recattack_gym.core import ArgumentError, Interactions, UnknownNameError

TINY = ("--steps", "1", "--nuclear-steps", "1", "--items-per-user", "5")


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    kkt.add_arguments(parser)
    return parser.parse_args(words)


def row(attack: str, mu: tuple[int, int], **values: object) -> dict[str, object]:
    p = dict.fromkeys(kkt_report.TESTS, 0.01)
    return {
        "kind": "attack", "beta": 0.6 if attack == "sgld" else None, "dataset": "d", "victim": "ALS",
        "size": 0.1, "seed": 0, "attack": attack, "mu": list(mu), "mimicry": p, **values,
    }  # fmt: skip


def holds(rows: list[dict[str, object]], text: str) -> tuple[object, object]:
    (claim,) = [c for c in kkt_report.claims(rows, []) if c["claim"] == text]
    return claim["holds"], claim["cases"]


def test_it_measures_both_victims_writes_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, page = str(tmp_path / "pieces"), tmp_path / "kkt.md"
    words = ("--datasets", "generated", "--sizes", "0.05", "--betas", "0", *TINY, "--out", out)
    result = kkt.run(
        arguments(*words, "--figures", str(tmp_path / "pictures"), "--write-docs", str(page))
    )
    assert result["n_pieces"] == result["n_finished"]
    victims = result["victims"]
    assert isinstance(victims, dict)
    assert set(victims) == {"ALS", "NuclearNorm"}
    for measured in victims.values():
        assert set(measured["rmse"]) == {"clean", "uniform", "pga", "sgld"}
        assert measured["rmse"]["clean"] < 1e-5 < measured["rmse"]["uniform"]
        assert measured["rmse"]["pga"] > measured["rmse"]["uniform"]
        assert 0 < measured["fd_error"] < 1e-6
        assert -1 <= measured["cosine"]["generated"]["1, 0"] <= 1
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {
        "kkt-generated.png", "kkt-generated-beta.png",
    }  # fmt: skip
    assert str(result["table"]).rpartition("\n\n")[0] in page.read_text()
    rows = json.loads(page.with_suffix(".json").read_text())["pieces"]
    assert len(rows) == result["n_pieces"]
    pushed = {(r["attack"], r["victim"]): r for r in rows if r.get("mu") == [0, 1]}
    for attack in ("uniform", "pga"):  # with the target every fake user rates something else
        for victim in victims:
            free, forced = (pushed[name, victim] for name in (attack, f"{attack}+target"))
            assert free["mimicry"]["t_matched"] != forced["mimicry"]["t_matched"]

    def measured_again(_: object) -> dict[str, object]:
        raise AssertionError("a finished piece was measured again")

    monkeypatch.setattr(kkt, "MEASURES", dict.fromkeys(MEASURES, measured_again))
    assert kkt.run(arguments(*words))["table"] == result["table"]
    with pytest.raises(AssertionError, match="measured again"):
        kkt.run(arguments(*words, "--seeds", "1"))
    for path in [*Path(out).glob("*attack*")][::3]:  # as if killed, and in the middle of a file
        path.write_text(path.read_text()[:40])
    part = kkt.run(arguments(*words, "--report-only", "--figures", str(tmp_path / "part")))
    assert 0 < int(str(part["n_finished"])) < int(str(part["n_pieces"]))
    assert part["figures"]
    empty = kkt.run(arguments(*words, "--seeds", "1", "--report-only"))
    assert empty["n_finished"] == 4  # what no seed decides


def test_pieces_are_distinct_and_the_usual_beta_is_measured_once() -> None:
    pieces = all_pieces(arguments("--datasets", "generated", "--betas", "0", "0.6"))
    assert len({str(sorted(piece.items())) for piece in pieces}) == len(pieces)
    first = [
        piece for piece in pieces
        if (piece.get("mu"), piece.get("size"), piece["victim"]) == ([1, 0], 0.03, "ALS")
    ]  # fmt: skip
    named = [(piece["attack"], piece["beta"]) for piece in first]
    assert sorted(named, key=str) == [
        ("pga", None),
        ("sgld", 0.0),
        ("sgld", 0.6),
        ("uniform", None),
    ]


def test_only_the_usual_beta_counts_beside_other_attacks() -> None:
    first = (1, 0)
    rows = [row("sgld", first, rmse=0.2), row("pga", first, rmse=0.3)]
    other = {**rows[0], "beta": 10.0, "rmse": 0.4}
    elsewhere = {**rows[0], "size": 0.3}
    assert kkt_report.attacks_of([*rows, other]) == rows
    assert kkt_report.betas_of([*rows, other, elsewhere]) == [rows[0], other]


def test_pictures_have_room_for_what_is_not_measured_yet(tmp_path: Path) -> None:
    nuclear = row("pga", (0, 1), average_rating=0.2, clean_average_rating=0.1, victim="NuclearNorm")
    rows = [row("pga", (1, 0), rmse=0.1, clean_rmse=0.0), nuclear]
    (path,) = kkt_report.draw(rows, tmp_path)
    assert path.name == "kkt-d.png"
    assert path.stat().st_size > 5_000


def test_claims_are_counted_by_what_the_rows_say() -> None:
    first = (1, 0)
    rows = [
        row("pga", first, rmse=0.3), row("sgld", first, rmse=0.2), row("uniform", first, rmse=0.1)
    ]  # fmt: skip
    ordered = "(1, 0): RMSE of PGA > SGLD > uniform"
    assert holds(rows, ordered) == (1, 1)
    assert holds([{**r, "rmse": 0.2} for r in rows], ordered) == (0, 1)
    assert holds([*rows, *({**r, "seed": 1, "rmse": 0.2} for r in rows)], ordered) == (1, 2)
    assert holds(rows[:2], ordered) == (0, 0)
    assert holds(rows, "pga: p < 0.05 in ks") == (1, 1)
    assert holds(rows, "sgld: p >= 0.05 in ks") == (0, 1)
    nuke = (0, -1)
    rows = [row("pga", nuke, average_rating=0.1), row("uniform", nuke, average_rating=0.7)]
    assert holds(rows, "(0, -1): average rating of pga below uniform") == (1, 1)
    assert holds(rows[::-1], "(0, -1): average rating of pga below uniform") == (1, 1)


def test_a_part_of_a_log_keeps_active_users_and_the_most_rated_items() -> None:
    rng = np.random.default_rng(0)
    users, items = np.nonzero(rng.random((60, 50)) < np.linspace(0.2, 0.9, 50))
    log = Interactions(users, items, 60, 50, ratings=(items % 5 + 1).astype(np.float64))
    part = kkt_measure.part_of(log, 20, 30, rng)
    kept = np.sort(np.argsort(-log.item_popularity, kind="stable")[:30])
    assert (part.n_users, part.n_items) == (20, 30)
    assert np.diff(part.indptr).min() >= 20
    assert part.ratings is not None
    np.testing.assert_array_equal(kept[part.item_ids] % 5 + 1, part.ratings)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--victims", "ASL"), "did you mean 'ALS'"),
        (("--attacks", "pgd"), "unknown attack 'pgd'"),
        (("--datasets", "steam"), "unknown dataset 'steam'"),
    ],
)
def test_unknown_names_are_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        kkt.run(arguments(*words))


@pytest.mark.parametrize(
    "words", [("--sizes", "0"), ("--betas", "-1"), ("--steps", "0"), ("--sizes", "nan")]
)
def test_numbers_out_of_range_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(ArgumentError, match=words[0]):
        kkt.run(arguments(*words))
