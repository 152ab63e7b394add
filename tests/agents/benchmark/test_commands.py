"""Every benchmark command on something small: the numbers it prints are those it measured."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from agents.benchmark import cost, fidelity, policy, quality, speed
from agents.poisonrec.tree_space import TreeSpace
from recattack_gym.core import ArgumentError, UnknownNameError
from recattack_gym.datasets import SyntheticConfig, generate

TINY = SyntheticConfig(n_users=20, n_items=30, n_events=100)


def arguments(command: ModuleType, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(words)


def test_speed_compares_both_sides_and_their_results() -> None:
    result = speed.run(
        arguments(
            speed,
            *("--dataset", "synthetic", "--victims", "ItemPop", "CoVisitation", "--sets", "8"),
            *("--repetitions", "1", "--plain-sets", "3"),
        )
    )
    assert set(result["ratios"]) == {"ItemPop", "CoVisitation"}  # type: ignore[call-overload]
    for measured in result["victims"].values():  # type: ignore[attr-defined]
        assert measured["sets_equal"] == "3/3"
        assert measured["largest_difference"] == 0
        ratio = measured["plain_wall_seconds"] / measured["engine_wall_seconds"]
        assert measured["ratio_wall"] == pytest.approx(ratio, abs=0.01)


def test_fidelity_of_a_counting_victim_is_perfect_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--dataset", "synthetic", "--victims", "ItemPop", "--attacks", "8", "--draws", "1")
    args = arguments(fidelity, *words, "--out", str(tmp_path))
    first = fidelity.run(args)
    assert first["spearman"] == {"ItemPop": pytest.approx(1.0)}
    (result,) = first["victims"].values()  # type: ignore[attr-defined]
    assert (result["level"], result["reseeded_spearman"]) == pytest.approx((1.0, 1.0))

    def measured_again(_: object) -> dict[str, object]:
        raise AssertionError("a finished piece was measured again")

    monkeypatch.setattr(fidelity, "_measure", measured_again)
    assert fidelity.run(args)["table"] == first["table"]


def test_fidelity_sets_two_full_retrainings_from_different_seeds_beside(tmp_path: Path) -> None:
    words = ("--dataset", "synthetic", "--victims", "BPR", "--attacks", "4", "--draws", "1")
    args = arguments(fidelity, *words, "--out", str(tmp_path))
    fidelity.run(args)
    pieces = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*varied*.json"))]
    results = [piece["result"] for piece in pieces]
    assert [result["reseeded"] is None for result in results] == [False, True, False, True]
    assert any(result["reseeded"] not in (None, result["full"]) for result in results)


def test_fidelity_measured_on_a_stand_in_is_not_taken_for_the_real_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = {seed: generate(TINY, np.random.default_rng(seed)) for seed in (0, 1)}
    measured: list[object] = []

    def measure(piece: object) -> dict[str, object]:
        measured.append(piece)
        keys = ("finetune", "full", "finetune_seconds", "full_seconds", "clean_rec_num")
        return dict.fromkeys((*keys, "max_rec_num", "reseeded"), len(measured))

    monkeypatch.setattr(fidelity, "_measure", measure)
    words = ("--dataset", "steam", "--victims", "ItemPop", "--attacks", "2", "--draws", "1")
    args = arguments(fidelity, *words, "--out", str(tmp_path))
    for seed, n_measured in ((0, 6), (0, 6), (1, 12)):
        monkeypatch.setattr(fidelity, "dataset_or_synthetic", lambda *_, log=logs[seed]: log)
        assert fidelity.run(args)["dataset"] == logs[seed].name
        assert len(measured) == n_measured


@pytest.mark.parametrize(
    ("name", "protocol", "paper"),
    [("steam", "poisonrec", "7"), ("steam", None, "-"), ("synthetic-steam", None, "-")],
)
def test_the_papers_numbers_stand_beside_its_own_users_only(
    name: str, protocol: str | None, paper: str
) -> None:
    dataset = replace(generate(TINY, np.random.default_rng(0)), name=name, protocol=protocol)
    victims = {"ItemPop": {"heuristics": {"random": {"finetune": 1.0, "full": 2.0}}}}
    row = fidelity._heuristics_table(dataset, victims).splitlines()[-1]
    assert row.split("|")[-2].strip() == paper


def test_quality_reports_victims_beside_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "REFERENCE_GRID", quality.REFERENCE_GRID[:2])
    args = arguments(
        quality, *("--datasets", "synthetic", "--victims", "ItemPop", "--out", str(tmp_path))
    )
    results = quality.run(args)["results"]["synthetic"]  # type: ignore[index]
    assert results["implicit BPR"]["n_tried"] == 2
    assert 0.02 < results["ItemPop"]["test_hr"] < results["implicit BPR"]["test_hr"]


def test_cost_grows_with_the_number_of_sets() -> None:
    args = arguments(
        cost,
        *("--victims", "ItemPop", "--users", "500", "--items", "400", "--sets", "1", "16"),
        *("--repetitions", "1", "--full"),
    )
    row = cost.run(args)["rows"][0]  # type: ignore[index]
    assert row["users"] == 500
    assert row["M = 16: s"] > 0
    assert row["full, one set: s"] > 0


@pytest.mark.parametrize("command", [speed, fidelity, quality, cost])
def test_an_unknown_victim_is_named(command: ModuleType) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'BPR'"):
        command.run(arguments(command, "--victims", "BRP"))


@pytest.mark.parametrize("option", ["--sets", "--repetitions", "--plain-sets", "--n-fake-users"])
def test_a_count_of_zero_is_refused(option: str) -> None:
    with pytest.raises(ArgumentError, match=option):
        speed.run(arguments(speed, option, "0"))


def test_policy_compares_equal_gradients_and_all_sides() -> None:
    result = policy.run(
        arguments(policy, "--items", "60", "300", "--sets", "3", "--repetitions", "2")
    )
    for side in result["steps"].values():  # type: ignore[attr-defined]
        assert set(side) == {"bcbt", "bcbt, all rows", "bcbt in torch", "plain"}
        assert side["bcbt"]["difference"] < 1e-5
    steps, ratios = result["steps"], result["ratios"]
    assert isinstance(steps, dict)
    assert isinstance(ratios, dict)
    growth = steps["300"]["bcbt"]["wall_seconds"] / steps["60"]["bcbt"]["wall_seconds"]
    assert ratios["bcbt 300 / 60"] == pytest.approx(growth, abs=0.01)


def test_the_slow_twin_of_the_tree_walks_as_the_compiled_one_does() -> None:
    agents = [policy._agent(50, 4, "bcbt-popular") for _ in range(2)]
    space = agents[1].policy.space
    assert isinstance(space, TreeSpace)
    agents[1].policy.space = policy.TorchTreeSpace(space.tree)
    for _ in range(3):
        first, second = (agent.step() for agent in agents)
        assert first.target_share == second.target_share
    assert np.allclose(
        agents[0].policy.features.values, agents[1].policy.features.values, atol=1e-4
    )
