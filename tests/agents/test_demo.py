"""The demo, small: what it writes, and that nobody is compared unfairly."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agents import demo
from agents.demo import AGENT, LEARNERS, NO_ATTACK, DemoConfig, run_demo, smoothed
from agents.heuristic import HEURISTICS
from recattack_gym.core import ArgumentError
from recattack_gym.simulator import PlatformSimulator

SMALL = DemoConfig(n_fake_users=3, profile_size=4, n_queries=8, n_fresh=4, n_full=2)


@pytest.fixture(autouse=True)
def cheap_victim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "ENV_ID", "recattack_gym:RecPoison-CoVisitation-v0")


def test_the_demo_writes_a_picture_and_its_results(tmp_path: Path) -> None:
    report = run_demo(tmp_path, seeds=(5, 6), config=SMALL, show_progress=False)
    picture = (tmp_path / "learning-curve.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["seeds"] == [5, 6]
    assert [run["seed"] for run in stored["runs"]] == [5, 6]
    for name in (NO_ATTACK, *HEURISTICS, *LEARNERS):
        assert name in report.text
    assert "learning-curve.png" in report.text


def test_everybody_is_compared_over_equally_many_attacks(tmp_path: Path) -> None:
    data = run_demo(tmp_path, seeds=(0,), config=SMALL, show_progress=False).data
    rows = data["attackers"]
    assert isinstance(rows, list)
    assert {row["n_queries"] for row in rows if row["attacker"] != NO_ATTACK} == {8}
    runs = data["runs"]
    assert isinstance(runs, list)
    for name in LEARNERS:
        assert len(runs[0]["curves"][name]) == 8
        assert runs[0]["best"][name] == max(runs[0]["curves"][name])


def test_attacks_are_repeated_under_full_retraining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, object]] = []
    rec_num = PlatformSimulator.rec_num

    def counted(self: PlatformSimulator, profiles: NDArray[np.int64], **how: Any) -> Any:  # noqa: ANN401
        found = rec_num(self, profiles, **how)
        if how.get("retrain") == "full":
            asked.append((len(profiles), float(found.mean())))
        return found

    monkeypatch.setattr(PlatformSimulator, "rec_num", counted)
    data = run_demo(tmp_path, seeds=(0,), config=SMALL, show_progress=False).data
    rows = data["attackers"]
    assert isinstance(rows, list)
    assert [size for size, _ in asked] == [SMALL.n_full] * len([*HEURISTICS, *LEARNERS])
    clean = rows[0]["mean_rec_num"]
    assert [row["full_rec_num"] for row in rows] == [clean, *(mean for _, mean in asked)]


def test_counts_are_the_same_under_both_kinds_of_retraining(tmp_path: Path) -> None:
    every = replace(SMALL, n_full=4)  # all fresh attacks; CoVisitation is updated exactly
    data = run_demo(tmp_path, seeds=(0,), config=every, show_progress=False).data
    rows = data["attackers"]
    assert isinstance(rows, list)
    for row in rows:
        if row["attacker"] in LEARNERS:
            assert row["full_rec_num"] == row["mean_rec_num"]


def test_more_full_retrainings_than_attacks_are_refused() -> None:
    with pytest.raises(
        ArgumentError, match="n_full must be at most n_fresh and n_queries, 4, got 5"
    ):
        replace(SMALL, n_full=5)


def test_a_senseless_size_is_refused() -> None:
    with pytest.raises(ArgumentError, match="n_queries must be a whole number >= 1, got 0"):
        DemoConfig(n_queries=0)


@pytest.mark.parametrize(("n_queries", "remedy"), [(5, "take 8"), (20, "take 16 or 24")])
def test_queries_that_are_no_whole_rollouts_are_refused(n_queries: int, remedy: str) -> None:
    with pytest.raises(ArgumentError, match=f"multiple of 8, .* got {n_queries}: {remedy}"):
        DemoConfig(n_queries=n_queries)


@pytest.mark.parametrize("seeds", [(0, 0, 0), (1, 2, 1), ()])
def test_seeds_that_are_not_distinct_platforms_are_refused(
    seeds: tuple[int, ...], tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match="seeds must be one or more distinct numbers"):
        run_demo(tmp_path, seeds=seeds, config=SMALL, show_progress=False)
    assert not list(tmp_path.iterdir())


def test_every_platform_is_stored_with_the_settings_that_it_had(tmp_path: Path) -> None:
    run_demo(tmp_path, seeds=(5, 6), config=SMALL, show_progress=False)
    stored = json.loads((tmp_path / "results.json").read_text())
    for seed, run in zip((5, 6), stored["runs"], strict=True):
        assert run["config"]["env"]["platform_seed"] == seed
        assert run["config"]["env"]["profile_size"] == SMALL.profile_size
        assert set(run["config"]["learners"]) == set(LEARNERS)
        assert run["config"]["learners"][AGENT]["seed"] == seed
        assert run["config"]["learners"][AGENT]["env_options"]["platform_seed"] == seed
    assert stored["config"] == {"demo": asdict(SMALL)}


def test_smoothing_takes_the_mean_of_the_last_values() -> None:
    assert np.allclose(smoothed([1, 3, 5, 7], 2), [1.0, 2.0, 4.0, 6.0])
    assert np.allclose(smoothed([2, 4], 10), [2.0, 3.0])
