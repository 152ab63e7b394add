"""`recattack train --algo poisonrec`: results, resuming, and mistakes."""

import json
from pathlib import Path

import pytest

from agents import cli
from agents.poisonrec import PoisonRec
from agents.poisonrec.agent import Step
from recattack_gym.core import FakeProfiles


def words(folder: Path, *more: str, n_attacks: int = 24) -> list[str]:
    return [
        "train", "CoVisitation", "--algo", "poisonrec", "--save", str(folder), "--quiet", "--json",
        "--n-fake-users", "3", "--profile-size", "4", "--total-steps", str(12 * n_attacks),
        "--eval-episodes", "2", "--no-side-effects",
        "--agent-config", "batch_size=8", "n_examples=8", "size=8", *more,
    ]  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], command: list[str]) -> dict[str, object]:
    assert cli.main(command) == 0
    data: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return data


def test_a_run_reports_its_best_attack_and_its_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = run(capsys, words(tmp_path))
    curve = data["curve"]
    assert isinstance(curve, list)
    assert data["rec_num"] == data["best_in_training"] == max(curve)
    assert data["queries"] == {"training": 24, "policy": 2, "best": 1}
    assert data["n_queries"] == 27
    assert data["total_steps"] == 24 * 12
    assert data == json.loads((tmp_path / "result.json").read_text())
    profiles = FakeProfiles.load(tmp_path / "profiles.npz")
    assert profiles.content_hash == data["profiles_hash"]
    assert profiles.header["attacker"] == "poisonrec"


@pytest.mark.parametrize(
    "more", [(), ("warm_up=8", "--algo", "poisonrec-warm"), ("--algo", "poisonrec-entropy")]
)
def test_a_longer_run_goes_on_from_a_shorter_one(
    more: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(capsys, words(tmp_path / "whole", *more, n_attacks=40))
    half = run(capsys, words(tmp_path / "half", *more, n_attacks=16))
    resumed = run(capsys, [*words(tmp_path / "half", *more, n_attacks=40), "--resume"])
    assert half["curve"] == whole["curve"][:16]  # type: ignore[index]
    for name in ("curve", "rec_num", "policy", "target_shares", "profiles_hash"):
        assert resumed[name] == whole[name]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--agent-config", "action_space=tree"], "action_space must be one of"),
        (["--agent-config", "patienc=3"], "unknown setting of poisonrec 'patienc'"),
        (["--eval-episodes", "0"], "eval_episodes must be"),
        (["--total-steps", "0"], "total_steps must be"),
        (["--resume"], "readable PoisonRec file"),
    ],
)
def test_mistakes_are_named_and_leave_nothing_behind(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words(tmp_path / "run"), *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_another_run_is_neither_written_over_nor_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, words(tmp_path))
    assert cli.main(words(tmp_path)) == 2
    assert "already holds a run: add --resume" in capsys.readouterr().err
    assert cli.main([*words(tmp_path), "--resume", "--agent-config", "n_epochs=4"]) == 2
    assert "with other settings (n_epochs 3, now 4)" in capsys.readouterr().err
    assert cli.main([*words(tmp_path), "--resume", "--seed", "4"]) == 2
    assert "with other settings (seed 0, now 4)" in capsys.readouterr().err
    # what the attacker sees is the same there, but not what it is paid
    assert cli.main([*words(tmp_path), "--resume", "--defense", "popularity"]) == 2
    assert "'defense': ['popularity']" in capsys.readouterr().err
    other = ["ItemPop" if word == "CoVisitation" else word for word in words(tmp_path)]
    assert cli.main([*other, "--resume"]) == 2
    assert "now 'recattack_gym:RecPoison-ItemPop-v0'" in capsys.readouterr().err


def test_options_of_another_algorithm_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "CoVisitation", "--save", str(tmp_path), "--agent-config", "n_epochs=4"]
    assert cli.main(command) == 2
    told = capsys.readouterr().err
    assert (
        "--agent-config goes with --algo poisonrec or poisonrec-entropy or poisonrec-warm, got --algo ppo"
        in told
    )


@pytest.mark.parametrize("n_steps", [0, 1])
def test_an_interrupt_says_whether_there_is_something_to_go_on_from(
    n_steps: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step, done = PoisonRec.step, list[Step]()

    def interrupted(agent: PoisonRec) -> Step:
        if len(done) == n_steps:
            raise KeyboardInterrupt
        done.append(step(agent))
        return done[-1]

    monkeypatch.setattr(PoisonRec, "step", interrupted)
    assert cli.main(words(tmp_path / "run")) == 130
    told = capsys.readouterr().err
    monkeypatch.undo()
    if n_steps:
        assert "interrupted after 8 attacks" in told
        assert "--resume to go on" in told
        resumed = run(capsys, [*words(tmp_path / "run"), "--resume"])
        assert resumed["curve"] == run(capsys, words(tmp_path / "whole"))["curve"]
    else:
        assert "nothing is saved: repeat the command" in told
        assert "--resume" not in told
        run(capsys, words(tmp_path / "run"))


def test_a_run_that_patience_ended_is_at_its_end_when_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words(tmp_path, "patience=1", n_attacks=400)
    whole = run(capsys, command)
    assert isinstance(whole["curve"], list)
    assert len(whole["curve"]) < 400
    resumed = run(capsys, [*command, "--resume"])
    for name in ("curve", "n_queries", "rec_num", "policy", "profiles_hash"):
        assert resumed[name] == whole[name]
