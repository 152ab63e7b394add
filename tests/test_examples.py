"""Every example runs, small, and shows what it claims."""

import importlib.util
import math
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from recattack_gym.core import ArgumentError, Interactions

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


SMALL_PPO = {"n_fake_users": 6, "profile_size": 8, "n_targets": 1, "platform_seed": 10}


def test_a_ppo_in_one_file_learns(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("cleanrl_ppo")
    curve = example.main(example.Args(**SMALL_PPO, n_updates=24))
    assert len(curve) == 24
    # Over platform seeds 10 to 13 with agent seeds 0 to 3, learning multiplies RecNum by 4 at least.
    assert sum(curve[-5:]) > 2 * sum(curve[:5]) > 0
    assert "| update 1 " in capsys.readouterr().out
    again = example.main(example.Args(**SMALL_PPO, n_updates=24))
    assert again == curve


def test_the_agent_of_that_file_starts_with_half_of_its_clicks_on_targets() -> None:
    import numpy as np
    import torch

    example = load_example("cleanrl_ppo")
    torch.manual_seed(0)
    agent = example.Agent(np.array([5, 0, 9, 1, 0]), np.array([1, 4]), example.Args())
    with torch.no_grad():
        log_policy, values = agent(torch.tensor([[5, 5, 5], [2, 5, 5], [4, 1, 0]]))
    policy = log_policy.exp()
    assert values.shape == (3,)
    assert torch.allclose(policy.sum(dim=1), torch.ones(3))
    assert torch.allclose(policy[:, [1, 4]].sum(dim=1), torch.full((3,), 0.5), atol=0.02)
    assert torch.allclose(policy[:, [0, 2, 3]], torch.full((3, 3), 1 / 6), atol=0.02)
    with torch.no_grad():
        agent.kind.bias[1] = 20.0  # the second kind is that of targets
        policy = agent(torch.tensor([[5, 5, 5]]))[0].exp()
    assert policy[0, [1, 4]].sum() > 0.999


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 1.0), (0.9, 0.7), (0.5, 0.0)])
def test_the_advantages_of_that_file_are_sums_of_surprises(gamma: float, gae_lambda: float) -> None:
    import numpy as np
    import torch

    example = load_example("cleanrl_ppo")
    n_steps, n_copies = 6, 2
    values, rewards = torch.rand(2, n_steps, n_copies, generator=torch.Generator().manual_seed(0))
    ends = torch.zeros(n_steps, n_copies)
    ends[2, 0] = ends[5, 0] = 1.0  # copy 1 is cut in the middle of an attack
    last_value = torch.tensor([7.0, 0.25])
    nothing = torch.zeros(0)
    rollout = example.Rollout(
        np.zeros(0, np.int64), last_value, nothing, nothing, nothing, values, rewards, ends
    )
    found = example.estimate_advantages(rollout, gamma, gae_lambda)
    for copy in range(n_copies):
        for start in range(n_steps):
            expected, weight = 0.0, 1.0
            for t in range(start, n_steps):
                value_tp1 = float(last_value[copy] if t == n_steps - 1 else values[t + 1, copy])
                is_end = bool(ends[t, copy])
                ahead = float(rewards[t, copy]) + (0.0 if is_end else gamma * value_tp1)
                expected += weight * (ahead - float(values[t, copy]))
                weight *= gamma * gae_lambda
                if is_end:
                    break
            assert float(found[start, copy]) == pytest.approx(expected, abs=1e-5)
    if gamma == gae_lambda == 1.0:
        total = rewards[:3, 0].sum() - values[0, 0]
        assert float(found[0, 0]) == pytest.approx(float(total), abs=1e-5)


def test_that_file_reads_its_options_from_the_command_line() -> None:
    example = load_example("cleanrl_ppo")
    assert example.parse([]) == example.Args()
    args = example.parse(["--platform-seed", "3", "--learning-rate", "0.5", "--log-dir", "runs"])
    assert args == example.Args(platform_seed=3, learning_rate=0.5, log_dir="runs")
    page = (EXAMPLES.parent / "docs" / "training.md").read_text()
    commands = re.findall(r"^\$ python examples/cleanrl_ppo.py (.*)", page, re.MULTILINE)
    assert commands
    for command in commands:
        assert example.parse(shlex.split(command)) != example.Args()


def test_that_file_says_what_tensorboard_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = load_example("cleanrl_ppo")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SystemExit, match=r"pip install 'recattack-gym\[tensorboard\]'"):
        example.main(example.Args(log_dir=str(tmp_path)))


def test_that_file_logs_every_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = load_example("cleanrl_ppo")
    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, log_dir: str) -> None:
            assert log_dir == str(tmp_path)

        def add_text(self, tag: str, text: str) -> None:
            assert tag == "args"
            assert "| n_updates " in text

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            written.append((tag, value, step))

        def close(self) -> None:
            written.append(("closed", 0.0, 0))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]  # a stand-in
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    curve = example.main(example.Args(**SMALL_PPO, n_updates=2, num_envs=2, log_dir=str(tmp_path)))
    rec_nums = [(value, step) for tag, value, step in written if tag == "charts/rec_num"]
    assert rec_nums == [(curve[0], 96), (curve[1], 192)]
    assert all(math.isfinite(value) for _, value, _ in written)
    assert {"losses/policy", "losses/value", "losses/entropy"} <= {tag for tag, *_ in written}
    assert written[-1][0] == "closed"


def test_adversarial_training_halves_what_a_push_at_embeddings_costs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = load_example("attack_embeddings")
    results = example.main(victims=("BPR", "APR"), eps=(1.0,), n_steps=2)
    for of_attack in results.values():
        clean, noise, fgsm = (of_attack[name] for name in ("none", "random, 1", "FGSM, 1"))
        assert clean.drop == 0.0
        assert clean.loss < noise.loss < fgsm.loss
        assert noise.ndcg > fgsm.ndcg > 0.0
    plain, robust = (results[name]["FGSM, 1"] for name in ("BPR", "APR"))
    assert robust.drop < 0.6 * plain.drop  # 0.144 and 0.060
    assert robust.loss < plain.loss
    shown = capsys.readouterr().out
    assert f"{results['BPR']['none'].ndcg:.4f} (clean) |" in shown
    assert f"{plain.ndcg:.4f} ({-plain.drop:+.1%}) |" in shown


def test_trimmed_learning_is_measured_on_a_rated_log(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("trimmed_learning")
    rng = np.random.default_rng(0)
    users, items = np.nonzero(rng.random((80, 60)) < 0.25)
    tastes = rng.standard_normal((80, 2)) @ rng.standard_normal((2, 60))
    ratings = np.clip(np.round(3.0 + tastes), 1, 5)[users, items]
    log = Interactions(users, items, 80, 60, ratings=ratings)
    found = example.main(log=log, attacks=("average",), sizes=(0.1,), n_targets=2, seeds=(0,))
    assert list(found) == ["ALS", "LTS-MF, ratings", "LTS-MF, users"]
    for victim, by_case in found.items():
        assert list(by_case) == ["none", "average, 10%"]
        clean, attacked = by_case.values()
        assert clean.shift == 0.0
        assert math.isnan(clean.targets_trimmed)
        assert 0.0 < clean.rmse < 2.0
        is_trimming = victim != "ALS"
        assert (clean.genuine_trimmed > 0.05) is is_trimming
        assert (attacked.fillers_trimmed + attacked.targets_trimmed > 0.0) is is_trimming
    shift = {victim: by_case["average, 10%"].shift for victim, by_case in found.items()}
    assert shift["ALS"] > 0.0 > shift["LTS-MF, ratings"]
    assert "targets out" in capsys.readouterr().out
    with pytest.raises(ArgumentError, match="log must have ratings"):
        example.main(log=Interactions(users, items, 80, 60))


def test_votes_certify_lists_for_a_price(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("certified_bagging")
    found = example.main(
        dataset="synthetic", victims=("ItemPop",), n_models=(5, 40), n_fakes=(1, 4)
    )
    none, few, many = found["ItemPop"].values()
    assert none["overlap"] == [0.0, 0.0]
    assert none["bound"] == [1.0, 1.0]
    assert many["overlap"][0] > many["overlap"][1] > few["overlap"][1] == 0.0
    for bagged in (few, many):
        for reached, bound in zip(bagged["reached"], bagged["bound"], strict=True):
            assert bagged["clean_share"] <= reached <= bound <= 1.0
        assert 0.0 < bagged["clean_hr_at_k"] < 1.0
    assert many["bound"][0] < 1.0
    assert "certified share" in capsys.readouterr().out
