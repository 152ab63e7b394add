"""Training runs: what they report, that they can be killed and resumed, and that they learn."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents import cli
from agents.learner import Learner, Progress, Randomness
from agents.training import TrainingConfig, default_folder, train
from recattack_gym.core import ArgumentError, ArtifactError, FakeProfiles, StateError

ROOT = Path(__file__).parents[2]
ENV_ID = "recattack_gym:RecPoison-CoVisitation-v0"
N_CLICKS = 12


def make_config(**changes: Any) -> TrainingConfig:  # noqa: ANN401  # fields of many types
    settings: dict[str, Any] = {
        "env_id": ENV_ID,
        "env_options": {"n_fake_users": 3, "profile_size": 4, "targets": 2},
        "total_steps": 4 * 2 * N_CLICKS,
        "n_envs": 2,
        "eval_episodes": 2,
        "n_minibatches": 1,
        "embedding_size": 4,
        "hidden_size": 8,
        **changes,
    }
    return TrainingConfig(**settings)


def parameters_of(learner: Learner) -> list[bytes]:
    return [x.detach().numpy().tobytes() for x in learner.model.policy.parameters()]


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_a_run_reports_its_best_attack_its_policy_and_all_its_queries(
    algo: str, tmp_path: Path
) -> None:
    report = train(make_config(algo=algo), tmp_path)
    data = report.data
    assert data["command"] == "train"
    assert data["queries"] == {"training": 8, "policy": 2, "best": 1}
    assert data["n_queries"] == 11
    assert data["rec_num"] == data["best_in_training"] == max(data["curve"])  # type: ignore[call-overload]
    assert data["total_steps"] == 96
    assert (data["clicks"], data["accounts"], data["seed"]) == (12, 3, 0)
    profiles = FakeProfiles.load(tmp_path / "profiles.npz")
    assert profiles.content_hash == data["profiles_hash"]
    assert profiles.header["attacker"] == algo
    assert {"detectors", "side_effects", "exposure"} < set(data)
    assert "detectors    AUC of popularity " in report.text
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(data))


def test_the_saved_model_loads_in_stable_baselines3(tmp_path: Path) -> None:
    from stable_baselines3 import PPO

    train(make_config(), tmp_path, side_effects=False)
    model = PPO.load(tmp_path / "model.zip", device="cpu")
    assert model.num_timesteps == 96


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    runs = []
    for seed in (1, 1, 2):
        learner = Learner(make_config(seed=seed))
        learner.run()
        runs.append((learner.progress.rec_nums, parameters_of(learner)))
    assert runs[0] == runs[1]
    assert runs[0][1] != runs[2][1]


class KilledError(Exception):
    """Stands for the end of the process."""


def run_until(learner: Learner, n_attacks: int) -> None:
    """Train, and break off when so many attacks have been evaluated."""

    def kill(n_more: int) -> None:
        del n_more
        if len(learner.progress.rec_nums) >= n_attacks:
            raise KilledError

    with pytest.raises(KilledError):
        learner.run(kill)


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
@pytest.mark.parametrize("policy", ["popularity", "embedding"])
def test_a_killed_run_that_is_resumed_equals_an_uninterrupted_one(
    algo: str, policy: str, tmp_path: Path
) -> None:
    config = make_config(algo=algo, policy=policy, seed=3)
    whole = Learner(config)
    whole.run()
    run_until(Learner(config, tmp_path / "checkpoint.zip"), n_attacks=6)
    resumed = Learner(config, tmp_path / "checkpoint.zip", resume=True)
    assert len(resumed.progress.rec_nums) == 4  # only the rollout that was under way is lost
    resumed.run()
    assert resumed.progress.rec_nums == whole.progress.rec_nums
    assert parameters_of(resumed) == parameters_of(whole)
    assert np.array_equal(resumed.best_profiles, whole.best_profiles)


def test_a_finished_run_can_go_on_for_longer(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.zip"
    Learner(make_config(), path).run()
    longer = Learner(make_config(total_steps=6 * 2 * N_CLICKS), path, resume=True)
    longer.run()
    whole = Learner(make_config(total_steps=6 * 2 * N_CLICKS))
    whole.run()
    assert longer.progress.rec_nums == whole.progress.rec_nums


def test_resuming_a_finished_run_repeats_its_report(tmp_path: Path) -> None:
    timing = ("cpu_seconds", "wall_seconds")
    config = make_config(eval_episodes=8)
    first, again = (
        {
            name: value
            for name, value in train(config, tmp_path, resume=resume).data.items()
            if name not in timing
        }
        for resume in (False, True)
    )
    assert again == first


def test_a_run_that_is_longer_than_asked_for_says_how_long_it_was(tmp_path: Path) -> None:
    train(make_config(), tmp_path, side_effects=False)
    shorter = make_config(total_steps=N_CLICKS)
    data = train(shorter, tmp_path, resume=True, side_effects=False).data
    assert data["total_steps"] == 96
    assert data["queries"] == {"training": 8, "policy": 2, "best": 1}


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path: Path) -> None:
    train(make_config(), tmp_path, side_effects=False)
    before = (tmp_path / "checkpoint.zip").read_bytes()
    with pytest.raises(ArgumentError, match="already holds a run: add --resume"):
        train(make_config(), tmp_path)
    assert (tmp_path / "checkpoint.zip").read_bytes() == before


def test_nothing_to_resume_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nothing to resume"):
        train(make_config(), tmp_path, resume=True)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.zip"
    Learner(make_config(), path).run()
    with pytest.raises(ArgumentError, match=r"other settings \(n_envs 2, now 4\)"):
        Learner(make_config(n_envs=4), path, resume=True)


@pytest.mark.parametrize("damage", ["cut off", "garbage", "another format"])
def test_a_damaged_checkpoint_is_refused(damage: str, tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "checkpoint.zip"
    Learner(make_config(), path).run()
    content = path.read_bytes()
    if damage == "cut off":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "garbage":
        path.write_bytes(b"\x00" * len(content))
    else:
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        header = {**json.loads(parts["header.json"]), "format": 99}
        with zipfile.ZipFile(path, "w") as archive:
            for name, part in {**parts, "header.json": json.dumps(header).encode()}.items():
                archive.writestr(name, part)
    with pytest.raises(ArtifactError, match=r"checkpoint\.zip"):
        Learner(make_config(), path, resume=True)


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.zip"
    learner = Learner(make_config(), path)
    learner.save_checkpoint()
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        del descriptor
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        learner.run()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_nuke_keeps_the_smallest_rec_num_as_its_best() -> None:
    progress = Progress()
    for rec_num in (5, 3, 4):
        progress.add(rec_num, np.full((1, 1), rec_num), is_nuke=True)
    assert progress.best_rec_num == 3
    assert progress.best_profiles is not None
    assert progress.best_profiles.tolist() == [[3]]


def test_there_is_no_best_attack_before_the_first() -> None:
    with pytest.raises(StateError, match=r"call run\(\) first"):
        _ = Learner(make_config()).best_profiles


def test_restored_randomness_repeats_what_stable_baselines3_draws() -> None:
    import torch

    state = Randomness.now()
    first = torch.rand(3).tolist(), np.random.permutation(9).tolist()  # noqa: NPY002
    Randomness.of(state.arrays()).restore()
    assert (torch.rand(3).tolist(), np.random.permutation(9).tolist()) == first  # noqa: NPY002


def test_learners_are_not_paid_another_reward() -> None:
    with pytest.raises(ArgumentError, match="must not name a reward"):
        make_config(env_options={"reward": "rec_num"})


def test_the_default_folder_says_what_was_trained() -> None:
    folder = default_folder("recattack_gym:RecPoison-CoVisitation-v0", "ppo", 7)
    assert folder == Path("recattack-runs/RecPoison-CoVisitation-v0-ppo-seed7")


@pytest.mark.slow
def test_an_agent_learns_to_beat_the_policy_that_it_started_as() -> None:
    config = make_config(
        env_options={"n_fake_users": 5, "profile_size": 8, "targets": 1, "n_candidates": 30},
        n_envs=8,
        total_steps=20 * 8 * 40,
        learning_rate=5e-2,
        n_epochs=8,
        target_share=0.5,  # with no taste for popular items, so that there is something to learn
        popularity_weight=0.0,
    )
    learner = Learner(config)
    before = learner.sample(32)[0].mean()
    learner.run()
    assert learner.sample(32)[0].mean() > 1.3 * before


def start_training(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(  # noqa: S603  # our own command
        [
            sys.executable, "-m", "agents.cli", "train", "CoVisitation", "--save", str(folder), "--quiet",
            "--n-envs", "2", "--n-fake-users", "3", "--profile-size", "4", "--total-steps", "200000",
        ],
        cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=hear_interrupts,  # one signal is set, nothing more
    )  # fmt: skip


def hear_interrupts() -> None:
    """Undo what a shell does to commands in the background: they ignore SIGINT, and so do their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(path: Path, n_bytes: int = 1) -> None:
    for _ in range(1200):
        if path.exists() and path.stat().st_size >= n_bytes:
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} did not appear")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_training_process_can_be_stopped_and_resumed(
    how: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with start_training(tmp_path) as process:
        wait_for(tmp_path / "checkpoint.zip")
        time.sleep(1.0)
        process.send_signal(how)
        out, err = process.communicate(timeout=120)
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert f"--save {tmp_path} --resume" in err
        assert "Traceback" not in err
    assert out == ""
    for leftover in tmp_path.glob(".*.part"):
        leftover.unlink()  # a kill in the middle of a write leaves it, and harms nobody
    done = json.loads(read_header(tmp_path / "checkpoint.zip"))
    code = cli.main(
        [
            "train", "CoVisitation", "--save", str(tmp_path), "--resume", "--quiet", "--json",
            "--n-envs", "2", "--n-fake-users", "3", "--profile-size", "4",
            "--total-steps", str(done["n_steps"] + 24), "--no-side-effects", "--eval-episodes", "2",
        ]
    )  # fmt: skip
    data = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 0
    assert data["curve"][: len(done["rec_nums"])] == done["rec_nums"]
    assert data["queries"]["training"] == len(done["rec_nums"]) + 2


def read_header(path: Path) -> bytes:
    import zipfile

    with zipfile.ZipFile(path) as archive:
        return archive.read("header.json")
