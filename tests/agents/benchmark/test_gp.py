"""`recattack bench gp`: the platform by hand, pieces that resume, and tables that say what was measured."""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.attackers import ATTACKERS
from agents.benchmark import gp, gp_platform
from agents.benchmark.gp_platform import (
    Lab,
    core_of,
    distinct,
    lab,
    mean_ndcg,
    quality,
    split,
    strength,
    trained_victim,
)
from agents.benchmark.gp_report import gain_rows, similarity_rows, strength_rows
from agents.benchmark.gp_speed import measure_speed
from agents.gradient.baselines import bandwagon_sets, random_sets
from agents.gradient.gradient_passing import GradientPassing
from agents.gradient.graph import InteractionGraph
from agents.gradient.surrogates import Surrogate, SurrogateConfig
from recattack_gym.core import ArgumentError, Interactions, UnknownNameError
from recattack_gym.datasets import DATASETS
from tests.agents.gradient.cases import make_task
from tests.agents.stub_view import random_log


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    gp.add_arguments(parser)
    return parser.parse_args(words)


# -- the platform ----------------------------------------------------------------------------------


def test_the_core_is_what_is_left_when_nobody_is_too_rare() -> None:
    # u0 u1 u2 x i0 i1 i2 complete; u3 has i3, i0; i4 has u0 only. k = 3: i3, i4, then u3.
    users = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 0])
    items = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 0, 4])
    core = core_of(Interactions(users, items, 5, 6), 3)
    assert (core.n_users, core.n_items, len(core)) == (3, 3, 9)
    with pytest.raises(ArgumentError, match="k must leave something of the log, got 4"):
        core_of(Interactions(users, items, 5, 6), 4)


def test_the_first_event_of_a_pair_stays() -> None:
    log = Interactions(np.array([0, 0, 0, 1]), np.array([2, 1, 2, 2]), 2, 3)
    assert distinct(log).item_ids.tolist() == [2, 1, 2]


def test_users_are_split_at_four_fifths_in_their_order() -> None:
    log = Interactions(np.repeat([0, 1, 2], [5, 1, 10]), np.arange(16), 3, 16)
    parts = split(log)
    assert np.diff(parts.train.indptr).tolist() == [4, 0, 8]
    assert parts.train.items_of(2).tolist() == list(range(6, 14))
    assert parts.validation.item_ids.tolist() == [4, 5, 14, 15]
    assert (parts.n_fake_users, parts.profile_size) == (1, 5)


@pytest.mark.real_data
@pytest.mark.skipif(DATASETS["gowalla"].locate() is None, reason="gowalla is not here")
def test_the_core_of_gowalla_is_that_of_revadv_and_gp() -> None:
    own = lab("gowalla")
    assert (own.train.n_users, own.train.n_items) == (13_149, 14_007)
    assert len(own.train) + len(own.validation) == 535_610
    assert (own.n_fake_users, own.profile_size) == (131, 41)


def test_ndcg_is_that_of_the_formula() -> None:
    graph = InteractionGraph.of(random_log(12, 9, 40))
    model = Surrogate(graph, SurrogateConfig(embedding_size=4), seed=1)
    wanted = InteractionGraph.of(random_log(12, 9, 30, seed=5))
    values, is_hit = [], []
    for user in range(12):
        relevant = set(wanted.items[wanted.indptr[user] : wanted.indptr[user + 1]].tolist())
        if relevant:
            shown = gp_platform.lists_of(model, np.array([user]), 4)[0]
            gain = sum(1 / np.log2(p + 2) for p, item in enumerate(shown) if item in relevant)
            values.append(gain / sum(1 / np.log2(p + 2) for p in range(min(4, len(relevant)))))
            is_hit.append(bool(relevant & set(shown.tolist())))
    assert mean_ndcg(model, wanted, 4) == pytest.approx(np.mean(values))
    assert quality(model, wanted, 4)[0] == pytest.approx(np.mean(is_hit))
    assert 0 < np.mean(is_hit) < 1
    assert 0 < np.mean(values) < 1


def test_a_victim_ends_at_its_best_epoch_and_learns_from_four_fifths_of_the_fakes() -> None:
    own = split(distinct(random_log(60, 30, 900)))
    config = SurrogateConfig(embedding_size=8, learning_rate=0.05, batch_size=256)
    profiles = np.tile(np.arange(20, 30), (3, 1))
    victim, fields = trained_victim(
        own, profiles, config, seed=1, max_epochs=40, patience=10, every=5, k=20
    )
    assert victim.graph.n_users == 63
    assert np.diff(victim.graph.indptr)[60:].tolist() == [8, 8, 8]
    wanted = InteractionGraph.of(own.validation, [np.arange(28, 30)] * 3)
    assert np.isin([28, 29], gp_platform.lists_of(victim, np.array([60]), 20)).any()
    assert mean_ndcg(victim, wanted, 20) == pytest.approx(fields["validation_ndcg"])
    again, _ = trained_victim(
        own, profiles, config, seed=1, max_epochs=40, patience=10, every=5, k=20
    )
    assert np.array_equal(victim.embeddings, again.embeddings)
    alone, one = trained_victim(own, None, config, seed=1, max_epochs=3, patience=10, every=5, k=10)
    assert (one["best_epoch"], one["n_epochs"], alone.graph.n_users) == (3, 3, 60)


def test_strength_counts_genuine_users_without_their_own_items() -> None:
    new = int(np.flatnonzero(make_task().log.item_popularity == 0)[0])
    task = make_task(target_items=(0, new))
    graph = task.graph([np.array([new])])
    model = Surrogate(graph, SurrogateConfig(embedding_size=4), seed=1)
    model.embeddings[:] = 0.0
    model.embeddings[:31, 0] = 1.0
    model.embeddings[31 + new, 0] = 1.0  # the second target is on top of every list
    model.embeddings[:15, 1] = -1.0
    model.embeddings[31, 1] = 0.1  # the first one is on that of half of the users
    validation = Interactions(np.array([2]), np.array([new]), 30, task.log.n_items)
    found = strength(model, Lab(train=task.log, validation=validation), task, 3)
    assert found["hit_one_at_k"] == 1.0
    owns = task.log.has(np.arange(30)[:, None], np.array([[0, new]]))
    assert not owns[:, 1].any()
    assert 0 < owns[:, 0].sum() < 30
    n_open = 2 - owns[:, 0].astype(int)
    shown = model.lists(np.arange(30), 3, hidden=graph)
    hits = np.isin(shown, [0, new]).sum(axis=1)
    assert found["target_recall_at_k"] == pytest.approx((hits / n_open).mean())
    # T-HR: who has a target in the validation part owns it, so user 2 does not count for the second one
    second = np.delete(np.ones(30), 2).mean()
    first = (shown == 0).any(axis=1)[~owns[:, 0]].mean()
    assert found["target_hr_at_k"] == pytest.approx((first + second) / 2)
    own_of_two = np.flatnonzero(owns[:, 0])
    assert len(own_of_two) > 0
    everybody = Interactions(np.arange(30), np.full(30, new), 30, task.log.n_items)
    rest = strength(model, Lab(train=task.log, validation=everybody), task, 3)
    assert 0 < first < 1
    assert rest["target_hr_at_k"] == pytest.approx(first)
    assert rest["target_recall_at_k"] == found["target_recall_at_k"]


def test_baselines_spend_the_budget_on_sets_with_all_targets() -> None:
    task = make_task(profile_size=9)
    popular = set(np.argsort(-task.log.item_popularity, kind="stable")[:4])
    for make in (random_sets, bandwagon_sets):
        clicks = make(task, np.random.default_rng(0))
        assert clicks.shape == (4, 9)
        for profile in clicks.tolist():
            assert len(set(profile)) == 9
            assert set(task.target_items) <= set(profile)
            if make is bandwagon_sets:
                assert len(popular & set(profile)) == 3  # int(6 / 2)


# -- pieces ----------------------------------------------------------------------------------------

FEW = (
    "--datasets", "synthetic", "--attackers", "rapu-r", "--models", "mf-bce", "--seeds", "3",
    "--similarity-epochs", "1", "2", "--learning-rates", "0.01", "--epochs", "1", "2", "--gp-epochs", "1",
    "--victim-epochs", "4", "--patience", "4", "--no-speed",
)  # fmt: skip


def test_it_measures_both_sides_draws_them_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = arguments(*FEW, "--out", str(tmp_path), "--figures", str(tmp_path / "figures"))
    result: dict[str, Any] = dict(gp.run(args))
    assert result["n_finished"] == result["n_pieces"] == 1 + 2 + 3 + 3
    js = result["similarity"]
    assert [row["epochs"] for row in js] == [1, 2]
    assert all(0 < row["js"] < 1 and 0 < row["js_gp"] < 1 for row in js)
    assert js[0]["cpu_seconds"] < js[1]["cpu_seconds"]
    by_name = {(row["attacker"], row["gp"], row["epochs"]): row for row in result["strength"]}
    assert set(by_name) == {
        ("none", "no", 0), ("random-sets", "no", 0), ("bandwagon-sets", "no", 0),
        ("rapu-r", "no", 1), ("rapu-r", "no", 2), ("rapu-r", "yes", 1),
    }  # fmt: skip
    assert by_name["rapu-r", "yes", 1]["training_seconds"] > 0
    (gain,) = result["gains"]
    with_gp, without = by_name["rapu-r", "yes", 1], by_name["rapu-r", "no", 1]
    assert gain["strength_change"] == pytest.approx(
        100 * (with_gp["strength"] / without["strength"] - 1)
    )
    assert Path(result["figures"][0]).read_bytes().startswith(b"\x89PNG")
    json.dumps(result)

    def measured_again(*_: object) -> dict[str, object]:
        raise AssertionError("a finished piece was measured again")

    for name in ("_attack", "_similarity", "_victim"):
        monkeypatch.setattr(gp, name, measured_again)
    assert gp.run(args)["table"] == result["table"]


def test_pieces_ask_for_epochs_by_kind_of_attacker() -> None:
    pieces = gp.pieces_of(arguments("--seeds", "0", "--datasets", "synthetic", "--no-similarity"))
    attacks = [(p.name, p.is_passing, p.epochs) for p in pieces if p.kind == "attack"]
    assert ("dpa2dl", True, (1,)) in attacks
    assert ("dpa2dl", False, (4,)) in attacks
    assert ("revadv", True, (10,)) in attacks
    assert ("revadv", False, (50,)) in attacks
    revadv = next(p for p in pieces if p.name == "revadv")
    attacker: Any = gp.make_attacker(replace(revadv, epochs=(3,), is_passing=True))
    assert (attacker.config.epochs, attacker.config.unrolled_epochs) == (3, 3)
    assert attacker.config.passing() == GradientPassing()
    assert not attacker.config.click_targets


def test_batches_groups_and_the_victims_rate_are_options() -> None:
    words = ("--seeds", "0", "--datasets", "synthetic", "--batch-size", "99", "--group-size", "3")
    pieces = gp.pieces_of(arguments(*words, "--victim-learning-rate", "0.02", "--models", "mf-bpr"))
    by_name = {(p.kind, p.name): p for p in pieces}
    similar, clean = by_name["similarity", "mf-bpr"], by_name["victim", "mf-bpr"]
    assert gp._surrogate_config(similar).batch_size == 99
    assert gp._victim_of(similar) == clean
    assert gp._victim_config(clean).loss == "bpr"
    for name in ("dpa2dl", "revadv"):
        piece = by_name["attack", name]
        victim = gp._victim_config(piece)
        assert (victim.loss, victim.batch_size, victim.learning_rate) == ("bce", 99, 0.02)
    made: Any = gp.make_attacker(by_name["attack", "dpa2dl"])
    assert (made.config.group_size, made.config.batch_size) == (3, 99)
    descending: Any = gp.make_attacker(by_name["attack", "revadv"])
    assert descending.config.batch_size == 2048  # users, not draws
    published = gp.pieces_of(arguments("--seeds", "0", "--datasets", "synthetic"))
    made = gp.make_attacker(next(p for p in published if p.name == "dpa2dl"))
    assert (made.config.group_size, made.config.batch_size) == (1, 1 << 12)


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "agents.cli", "bench", "gp", "--smoke", "--no-speed"]
    words += ["--attackers", "rapu-r", "--out", str(tmp_path)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    try:
        for _ in range(6000):
            if len(list(tmp_path.glob("*.json"))) >= 2 or process.poll() is not None:
                break
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert 2 <= len(finished) < 8
    args = arguments(*words[5:])
    result = gp.run(args)
    assert result["n_finished"] == result["n_pieces"] == 1 + 2 + 3 + 2
    assert all(path.stat().st_mtime_ns == made for path, made in finished.items())


def test_what_decides_a_piece_is_in_its_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    piece = gp.pieces_of(arguments("--seeds", "0", "--datasets", "synthetic"))[-3]
    assert not piece.is_passing
    base = gp.identity(piece)
    for change in ({"seed": 1}, {"is_passing": True}, {"epochs": (7,)}, {"k": 3}, {"patience": 1},
        {"batch_size": 5}, {"group_size": 2}, {"victim_learning_rate": 0.5},
    ):  # fmt: skip
        assert gp.identity(replace(piece, **change)) != base
    monkeypatch.setattr(gp, "_code", lambda: "other")
    assert gp.identity(piece) != base


def test_options_are_checked() -> None:
    with pytest.raises(UnknownNameError, match="unknown attacker 'dpa2d'"):
        gp.pieces_of(arguments("--attackers", "dpa2d"))
    with pytest.raises(UnknownNameError, match="unknown model 'mf-bse'"):
        gp.pieces_of(arguments("--models", "mf-bse"))
    with pytest.raises(ArgumentError, match="--group-size must be"):
        gp.pieces_of(arguments("--group-size", "0"))
    with pytest.raises(ArgumentError, match="--batch-size must be"):
        gp.pieces_of(arguments("--batch-size", "-1"))
    with pytest.raises(ArgumentError, match="--victim-learning-rate must be"):
        gp.pieces_of(arguments("--victim-learning-rate", "0"))
    with pytest.raises(ArgumentError, match="--gp-epochs must be"):
        gp.pieces_of(arguments("--gp-epochs", "0"))
    with pytest.raises(ArgumentError, match="--learning-rates must be"):
        gp.pieces_of(arguments("--learning-rates", "0"))


def test_the_attackers_of_the_benchmark_are_those_with_surrogates() -> None:
    for name in gp.GRADIENT_ATTACKERS:
        assert ATTACKERS[name].__module__.startswith("agents.gradient.")


# -- tables ----------------------------------------------------------------------------------------


def attack_row(gp_: str, epochs: int, strength_: float, seconds: float) -> dict[str, object]:
    return {
        "attacker": "a",
        "dataset": "d",
        "gp": gp_,
        "epochs": epochs,
        "strength": strength_,
        "training_seconds": seconds,
        "total_seconds": 2 * seconds + 10.0,
    }


def test_equal_strength_is_reached_by_the_fewest_epochs_that_suffice() -> None:
    rows = [
        attack_row("no", 4, 4.5, 40.0),
        attack_row("no", 1, 2.0, 10.0),
        attack_row("no", 2, 3.0, 20.0),
        attack_row("yes", 1, 3.0, 15.0),
        attack_row("yes", 2, 9.0, 30.0),
    ]
    one, two = gain_rows(rows)
    assert (one["strength_change"], one["seconds_change"]) == (50.0, 50.0)
    assert (one["equal_strength_epochs"], one["equal_strength_seconds_change"]) == (2, -25.0)
    assert one["total_seconds_change"] == pytest.approx(100 * (40 / 30 - 1))
    assert one["equal_strength_total_seconds_change"] == pytest.approx(100 * (40 / 50 - 1))
    assert two["strength_change"] == pytest.approx(200.0)
    assert (two["equal_strength_epochs"], two["equal_strength_seconds_change"]) == (None, None)


def test_each_point_takes_its_better_learning_rate_and_the_mean_over_seeds() -> None:
    def row(rate: float, gp_: str, js: list[float]) -> dict[str, object]:
        piece = {
            "kind": "similarity", "name": "m", "dataset": "d", "epochs": [1, 5], "learning_rate": rate,
            "is_passing": gp_ == "yes",
        }  # fmt: skip
        return {"piece": piece, "js": js, "cpu_seconds": [1.0, 5.0]}

    rows = [row(0.1, "no", [0.1, 0.6]), row(0.1, "no", [0.3, 0.6]), row(0.01, "no", [0.1, 0.9])]
    first, second = similarity_rows([*rows, row(0.1, "yes", [0.5, 0.7])])
    assert (first["js"], first["js_gp"]) == (pytest.approx(0.2), 0.5)
    assert (second["js"], second["js_gp"]) == (0.9, 0.7)


def test_strength_is_in_per_cent_over_seeds() -> None:
    piece = {"kind": "attack", "name": "a", "dataset": "d", "epochs": [], "is_passing": False}
    rows = [
        {"piece": piece, "strength": {"target_recall_at_k": s}, "training_seconds": 1.0, "total_seconds": 2.0}
        for s in (0.01, 0.03)
    ]  # fmt: skip
    (row,) = strength_rows(rows)
    assert (row["strength"], row["seeds"]) == (pytest.approx(2.0), 2)
    assert row["sd"] == pytest.approx(2**0.5)


def test_speed_names_both_sides() -> None:
    own = split(distinct(random_log(30, 20, 300)))
    found: Any = measure_speed(own, 0, repetitions=1)["speed"]
    for model in ("MF", "LightGCN"):
        step = f"{model}-BCE step of 4096 draws"
        plain, passing = (found[f"{step}{x}, ms"] for x in ("", " with GP"))
        assert found[f"{step}, ratio with GP"] == pytest.approx(passing / plain)
    assert found["torch over compiled"] > 0
    pairs = len(own.train)
    for side, epoch in (
        ("MF-BPR", "MF-BPR epoch, s"),
        ("implicit BPR", "implicit BPR iteration, s"),
    ):
        assert found[f"{side}, ns per interaction"] == pytest.approx(1e9 * found[epoch] / pairs)
        assert (
            0
            < found[f"{side}, NDCG@20 after 30 epochs"]
            <= found[f"{side}, HR@20 after 30 epochs"]
            <= 1
        )
