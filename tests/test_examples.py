"""Every example runs, small, and shows what it claims."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_has_a_test_here_and_says_which_question_it_answers() -> None:
    tested = Path(__file__).read_text()
    for path in sorted(EXAMPLES.glob("*.py")):
        assert f'load_example("{path.stem}")' in tested
        assert path.read_text().startswith('"""')
        assert "?" in path.read_text().splitlines()[0]


def test_heuristics_are_compared_per_victim(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("compare_heuristics")
    results = example.main(victims=("ItemPop", "CoVisitation"), n_draws=2)
    attackers = ["no attack", "random", "popular", "middle", "power-item"]
    assert [list(row) for row in results.values()] == [attackers, attackers]
    assert "CoVisitation" in capsys.readouterr().out


def test_stable_baselines3_trains_on_an_environment(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("train_with_sb3")
    before, after = example.main(
        env_id="recattack_gym:RecPoison-ItemPop-v0", n_updates=2, n_envs=2, n_clicks=4
    )
    assert math.isfinite(before)
    assert math.isfinite(after)
    assert "after training" in capsys.readouterr().out


def test_a_policy_that_walks_a_tree_is_compared_with_a_flat_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = load_example("train_sb3_tree")
    found = example.main(env_id="recattack_gym:RecPoison-PMF-v0", n_updates=2, n_envs=4, n_clicks=6)
    assert list(found) == ["one logit per item", "tree"]
    assert found["tree"]["before"] > found["one logit per item"]["before"]
    assert "RecNum after" in capsys.readouterr().out


def test_a_hand_written_algorithm_learns_on_an_environment(
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = load_example("custom_algorithm_reinforce")
    curve = example.main(
        env_id="recattack_gym:RecPoison-CoVisitation-v0", n_updates=25, num_envs=16, n_clicks=8
    )
    assert len(curve) == 25
    assert sum(curve[-5:]) > sum(curve[:5])
    assert "update 1 " in capsys.readouterr().out


def test_a_log_of_ones_own_is_attacked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("own_data")
    path = example.write_invented_log(tmp_path / "clicks.csv", n_users=80, n_items=90)
    result = example.main(path, victim="ItemPop")
    assert result["users"] == 80
    assert 0 <= result["RecNum without attack"] <= result["largest RecNum"] == 640
    assert "events" in capsys.readouterr().out


def test_a_victim_of_ones_own_is_attacked(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("own_victim")
    results = example.main(n_draws=2)
    assert results["no attack"] == 0
    assert results["popular"] > results["no attack"]
    assert "power-item" in capsys.readouterr().out


def test_the_victim_of_ones_own_is_finetuned_as_if_retrained() -> None:
    import numpy as np

    from recattack_gym.datasets import load
    from recattack_gym.simulator import PlatformSimulator

    example = load_example("own_victim")
    profiles = np.random.default_rng(0).integers(500, 502, size=(3, 20, 20))
    platform = PlatformSimulator(load("synthetic"), example.Trending, targets=2)
    assert np.array_equal(
        platform.exposure(profiles, retrain="finetune"), platform.exposure(profiles, retrain="full")
    )


def test_poisonrec_is_compared_with_rules_of_thumb(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("train_poisonrec")
    found = example.main(n_queries=64, n_draws=2)
    assert found["PoisonRec (best)"] > found["no attack"]
    assert list(found)[-2:] == ["PoisonRec (best)", "PoisonRec, warm start (best)"]
    assert "| random search (best)" in capsys.readouterr().out
