"""The command `recattack`: every subcommand, every kind of mistake, and what a program reads from it."""

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents import cli
from agents.attackers import ATTACKERS
from agents.options import OPTION_NAMES
from agents.reports import Report
from agents.search import SearchAttacker
from agents.training import TrainingConfig
from envs_registry import ENV_IDS
from recattack_gym import __version__
from recattack_gym.core import FakeProfiles
from recattack_gym.envs import PoisonEnv

ROOT = Path(__file__).parents[2]
SMALL = ("--n-fake-users", "4", "--profile-size", "5", "--targets", "3")
Result = tuple[int, dict[str, Any], str]  # Any: JSON


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> "Runner":
    return Runner(capsys)


class Runner:
    """Runs a command in this process; gives the exit code, the JSON line and standard error."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *argv: str) -> Result:
        code, out, err = self.text(*argv, "--json")
        lines = out.splitlines()
        assert len(lines) == (code == 0), out
        return code, json.loads(lines[0]) if lines else {}, err

    def text(self, *argv: str) -> tuple[int, str, str]:
        """Run without `--json`; gives exit code, standard output and standard error."""
        try:
            code = cli.main(argv)
        except SystemExit as leave:
            code = int(str(leave.code))
        captured = self.capsys.readouterr()
        return code, captured.out, captured.err


def test_envs_lists_every_id(run: Runner) -> None:
    code, data, err = run("envs")
    assert code == 0
    assert [row["id"] for row in data["environments"]] == list(ENV_IDS)
    assert "recattack_gym:RecPoison-NGCF-v0" in err
    defended = {row["id"]: (row["victim"], row["defense"]) for row in data["environments"]}
    assert defended["RecPoison-NGCF-v0"] == ("NGCF", None)
    assert defended["RecPoison-PamaCF-PCAVarSelect-v0"] == ("PamaCF", "pca-varselect")


def test_data_list_shows_sizes_and_where_the_files_are(run: Runner) -> None:
    code, data, _ = run("data", "list")
    by_name = {row["name"]: row for row in data["datasets"]}
    assert code == 0
    assert by_name["synthetic"]["location"] == "generated"
    assert by_name["ml-100k"]["n_users"] == 943


def test_data_info_describes_a_dataset(run: Runner) -> None:
    code, data, _ = run("data", "info", "synthetic")
    assert code == 0
    assert data["n_events"] == 30_000
    assert data["licence"]


def test_data_fetch_of_a_generated_dataset_has_no_path(run: Runner) -> None:
    code, data, _ = run("data", "fetch", "synthetic")
    assert code == 0
    assert data["path"] is None


@pytest.mark.parametrize("attacker", sorted(ATTACKERS))
def test_attack_reports_everything_that_a_result_row_needs(
    attacker: str, run: Runner, tmp_path: Path
) -> None:
    path = tmp_path / "profiles.npz"
    is_search = issubclass(ATTACKERS[attacker], SearchAttacker)
    budget = ("--attacker-config", "n_queries=6") if is_search else ()
    code, data, err = run(
        "attack",
        "RecPoison-ItemPop-v0",
        "--attacker",
        attacker,
        "--save",
        str(path),
        *SMALL,
        *budget,
    )
    assert code == 0
    assert len(data["curve"]) == data["n_queries"]
    assert ("query" in err) == is_search  # the progress bar
    assert 0 <= data["rec_num"] <= data["max_rec_num"] == 3000
    assert data["share"] == data["rec_num"] / 3000
    assert sum(data["target_exposure"]) == data["rec_num"]
    assert data["clean_rec_num"] >= 0
    n_queries = 6 if is_search else 0
    assert (data["n_queries"], data["seed"], data["clicks"], data["accounts"]) == (
        n_queries,
        0,
        20,
        4,
    )
    assert set(data["side_effects"]) == {
        "k", "clean_hr_at_k", "hr_at_k", "clean_ndcg_at_k", "ndcg_at_k",
    }  # fmt: skip
    assert set(data["detectors"]) == {"popularity", "ks-popularity", "pca-varselect"}
    assert all(0 <= x <= 1 for one in data["detectors"].values() for x in one.values())
    groups = data["exposure"]["groups"]
    assert set(groups) == {"targets", "head", "middle", "tail"}
    n_places = data["exposure"]["n_users"] * data["side_effects"]["k"]
    for when in ("clean", "poisoned"):
        assert sum(group[when] for group in groups.values()) == n_places
    assert "detectors    AUC of popularity " in err
    assert "shown        targets " in err
    assert data["config"]["env"]["profile_size"] == 5
    assert data["config"]["env"]["k"] == 10
    assert data["cpu_seconds"] >= 0
    assert data["versions"]["recattack-gym"] == __version__
    profiles = FakeProfiles.load(path)
    assert profiles.content_hash == data["profiles_hash"]
    assert profiles.header["env_id"] == "recattack_gym:RecPoison-ItemPop-v0"


def test_attack_is_reproducible_and_its_seed_matters(run: Runner) -> None:
    hashes = [
        run(
            "attack", "ItemPop", "--attacker", "random", "--seed", seed, "--no-side-effects", *SMALL
        )[1]["profiles_hash"]
        for seed in ("1", "1", "2")
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_attack_measures_several_draws(run: Runner) -> None:
    code, data, err = run("attack", "ItemPop", "--attacker", "random", "--draws", "3", *SMALL)
    assert code == 0
    assert len(data["draws"]) == 3
    assert data["best_rec_num"] == max(data["draws"])
    assert data["rec_num"] == data["draws"][0]
    assert "3 draws" in err


def test_attack_says_what_a_defense_caught_and_what_it_cost(run: Runner) -> None:
    attack = ("attack", "ItemPop", "--attacker", "random", "--no-side-effects", *SMALL)
    code, plain, _ = run(*attack)
    assert code == 0
    assert "defense" not in plain
    code, data, _ = run(*attack, "--defense", "popularity", "pca-varselect")
    assert code == 0
    assert data["config"]["env"]["defense"] == ["popularity", "pca-varselect"]
    defense = data["defense"]
    assert defense["detectors"] == ["popularity", "pca-varselect"]
    assert 0 < defense["n_dropped"] <= 4
    assert 0 < defense["n_genuine_dropped"] <= 20  # 1 % of 1,000 users by each of two detectors
    assert 0 < defense["n_genuine_clicks_lost"] < 1000
    assert "caught" in run.text(*attack, "--defense", "popularity")[1]
    code, data, _ = run(*attack, "--defense", "popularity:weight")
    assert code == 0
    weighted = data["defense"]
    assert weighted["detectors"] == ["popularity:weight"]
    # Of 1,000 users twenty are flagged; one more if a fake user takes part in the ranking
    assert 0 < weighted["n_genuine_dropped"] < 20
    assert weighted["n_genuine_flagged"] + weighted["n_dropped"] <= 21


def test_attack_on_a_log_without_held_out_items_says_so(run: Runner, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user,item\n" + "\n".join(f"{user},{user}" for user in range(6)))
    small = (
        "--dataset",
        str(log),
        "--n-candidates",
        "all",
        "--targets",
        "1",
        "--n-fake-users",
        "2",
    )
    attack = ("attack", "ItemPop", "--attacker", "popular", *small)
    code, data, _ = run(*attack)
    assert code == 0
    assert data["side_effects"]["hr_at_k"] is None
    assert data["exposure"]["n_users"] == 0
    out = run.text(*attack)[1]
    assert "no genuine user has a held-out item" in out
    assert "None" not in out


def test_attack_says_what_votes_guarantee(run: Runner) -> None:
    attack = ("attack", "ItemPop", "--attacker", "popular", "--defense", "bagging", *SMALL)
    code, data, _ = run(*attack)
    assert code == 0
    certificate = data["certificate"]
    assert certificate["n_models"] == 50
    assert 0.0 < certificate["overlap"] < 1.0
    assert data["rec_num"] <= certificate["rec_num_bound"] <= data["max_rec_num"]
    assert "50 models vote" in run.text(*attack)[1]


def test_a_defended_platform_has_a_short_name(run: Runner) -> None:
    attack = ("attack", "BPR-Popularity", "--attacker", "random", "--no-side-effects", *SMALL)
    config = ("--victim-config", "embedding_size=8", "epochs=1")
    out = run.text(*attack, *config)[1]
    assert "RecPoison-BPR-Popularity-v0, seed 0" in out
    assert "popularity: caught" in out


def test_attack_names_the_victim_that_is_trained(run: Runner) -> None:
    config = ("--victim-config", "embedding_size=8", "epochs=1")
    attack = ("attack", "BPR", "--attacker", "random", "--no-side-effects", *config, *SMALL)
    assert "RecPoison-BPR-v0, seed 0" in run.text(*attack)[1]
    out = run.text(*attack, "--defense", "apr")[1]
    assert "RecPoison-BPR-v0, trained as APR, seed 0" in out
    assert "caught" not in out
    code, data, _ = run(*attack, "--defense", "apr", "popularity")
    assert code == 0
    assert data["victim"] == "APR"
    assert data["defense"]["detectors"] == ["popularity"]


def test_attack_refuses_defenses_that_are_none(run: Runner) -> None:
    attack = ("attack", "ItemPop", "--attacker", "random", *SMALL)
    code, _, err = run(*attack, "--defense", "popularty")
    assert code == 2
    assert "did you mean 'popularity'" in err
    code, _, err = run(*attack, "--defense", "svm")
    assert code == 2
    assert "learns from fake users that are known" in err


def test_attack_takes_options_of_environment_victim_and_attacker(run: Runner) -> None:
    code, data, _ = run(
        "attack", "recattack_gym:RecPoison-BPR-v0", "--attacker", "popular",
        "--attacker-config", "popular_rate=0.2", "--victim-config", "embedding_size=8", "epochs=1",
        "--targets", "3,5", "--n-candidates", "all", "--k", "7", "--platform-seed", "4",
        "--retrain", "full", "--n-fake-users", "2", "--no-side-effects",
    )  # fmt: skip
    assert code == 0
    assert data["target_items"] == [3, 5]
    assert data["config"]["attacker"] == {"popular_rate": 0.2}
    env = data["config"]["env"]
    assert env["victim_config"]["embedding_size"] == 8
    assert (env["n_candidates"], env["k"], env["platform_seed"]) == (None, 7, 4)
    assert "side_effects" not in data
    assert "exposure" not in data
    assert len(data["detectors"]) == 3  # that takes no poisoned victim


def test_every_argument_of_the_environments_is_an_option() -> None:
    arguments = set(inspect.signature(PoisonEnv).parameters)
    assert arguments - set(OPTION_NAMES) == {"victim", "reward", "render_mode"}


def test_every_training_setting_is_an_option(run: Runner) -> None:
    _, out, _ = run.text("train", "--help")
    for field in fields(TrainingConfig):
        if field.name not in ("env_id", "env_options"):
            assert f"--{field.name.replace('_', '-')}" in out, field.name


def test_train_takes_settings_of_the_agent_and_of_the_environment(
    run: Runner, tmp_path: Path
) -> None:
    code, data, _ = run(
        "train", "CoVisitation", "--save", str(tmp_path), "--quiet", "--no-side-effects", *SMALL,
        "--n-envs", "2", "--total-steps", "40", "--eval-episodes", "2", "--target-identity", "1",
        "--target-share", "0.3", "--popularity-weight", "0.5", "--n-epochs", "2",
        "--n-minibatches", "2", "--clip-range", "0.1", "--ent-coef", "0.01", "--hidden-size", "8",
        "--embedding-size", "4", "--resample-candidates",
    )  # fmt: skip
    assert code == 0
    training = data["config"]["training"]
    assert (training["target_identity"], training["target_share"]) == (1.0, 0.3)
    assert (training["popularity_weight"], training["clip_range"]) == (0.5, 0.1)
    assert (training["n_epochs"], training["n_minibatches"]) == (2, 2)
    assert (training["ent_coef"], training["hidden_size"]) == (0.01, 8)
    assert training["embedding_size"] == 4
    assert data["config"]["env"]["resample_candidates"] is True


def test_an_agent_is_trained_to_demote_what_is_shown(run: Runner, tmp_path: Path) -> None:
    code, data, _ = run(
        "train", "ItemPop", "--save", str(tmp_path), "--quiet", "--no-side-effects",
        "--n-envs", "2", "--n-fake-users", "4", "--profile-size", "5", "--targets", "0,1",
        "--total-steps", "40", "--eval-episodes", "2", "--direction", "nuke",
    )  # fmt: skip
    assert code == 0
    assert data["clean_rec_num"] > 0
    assert data["rec_num"] == min(data["curve"])


def test_attacker_settings_may_be_given_one_by_one(run: Runner) -> None:
    one_by_one = ("--attacker-config", "n_neighbours=3", "--attacker-config", "significance=4")
    _, data, _ = run("attack", "ItemPop", "--attacker", "power-item", *one_by_one, *SMALL)
    config = data["config"]["attacker"]
    assert (config["n_neighbours"], config["significance"]) == (3, 4)


def test_without_json_the_result_is_for_people(run: Runner) -> None:
    code, out, err = run.text("attack", "ItemPop", "--attacker", "middle", *SMALL)
    assert code == 0
    assert "RecNum" in out
    assert err == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "required: COMMAND"),
        (("atack",), "did you mean 'attack'"),
        (("data",), "required: ACTION"),
        (("data", "lst"), "did you mean 'list'"),
        (("data", "info"), "required: NAME"),
        (("data", "info", "ml1m"), "unknown dataset 'ml1m'; did you mean 'ml-1m'"),
        (("data", "info", "synthetic", "--protocol", "poisonrec"), "protocol must be one of"),
        (("data", "info", "nowhere.csv"), "nowhere.csv"),
        (("data", "fetch", "steem"), "did you mean 'steam'"),
        (("data", "list", "--data-dri", "x"), "unknown argument '--data-dri'"),
        (("attack", "BPR"), "required: --attacker"),
        (("attack", "NGFC", "--attacker", "random"), "unknown environment 'NGFC'; did you mean 'NGCF'"),
        (("attack", "nix:Nix-v0", "--attacker", "random"), "ENV_ID must name an environment"),
        (("attack", "gymnasium:CartPole-v1", "--attacker", "random", "--k", "3"), "ENV_ID must name"),
        (("attack", "BPR", "--attacker", "poplar"), "unknown attacker 'poplar'; did you mean 'popular'"),
        (("attack", "BPR", "--attacker", "random", "--datset", "x"), "did you mean '--dataset'"),
        (("attack", "BPR", "--attacker", "random", "--dataset", "x.csv"), "x.csv"),
        (("attack", "BPR", "--attacker", "random", "--k", "ten"), "--k: invalid int value: 'ten'"),
        (("attack", "BPR", "--attacker", "random", "--k", "0"), "k must be a whole number >= 1, got 0"),
        (("attack", "BPR", "--attacker", "random", "--n-candidates", "many"), "a number or `all`"),
        (("attack", "BPR", "--attacker", "random", "--n-candidates", "8"), "n_candidates"),
        (("attack", "BPR", "--attacker", "random", "--targets", "a,b"), "item ids with commas"),
        (("attack", "BPR", "--attacker", "random", "--targets", "900,"), "targets must lie in [0, 500)"),
        (("attack", "BPR", "--attacker", "random", "--targets", "0"), "targets must be"),
        (("attack", "BPR", "--attacker", "random", "--retrain", "some"), "invalid choice: 'some'"),
        (("attack", "BPR", "--attacker", "random", "--victim-config", "epochs"), "KEY=VALUE"),
        (("attack", "BPR", "--attacker", "random", "--victim-config", "epoks=1"), "did you mean 'epochs'"),
        (("attack", "BPR", "--attacker", "random", "--victim-config", "epochs=x"), "epochs must be"),
        (("attack", "BPR", "--attacker", "random", "--attacker-config", "a=1"), "unknown setting of random"),
        (("attack", "BPR", "--attacker", "popular", "--attacker-config", "popular_rate=7"), "popular_rate"),
        (("attack", "ItemPop", "--attacker", "random", "--seed", "-1"), "--seed must be"),
        (("attack", "ItemPop", "--attacker", "random", "--draws", "0"), "--draws must be"),
        (("attack", "ItemPop", "--attacker", "random", "--n-fake-users", "0"), "n_fake_users must be"),
        (("attack", "ItemPop", "--attacker", "random", "--direction", "nuke"), "a click cannot"),
        (("data", "info", "ml-100k", "--data-dir", "/nowhere"), "data_dir must be an existing folder"),
        (("train", "BPR", "--algo", "pop"), "unknown algorithm 'pop'; did you mean 'ppo'"),
        (
            ("train", "BPR", "--algo", "poisonrec-wram"),
            "unknown algorithm 'poisonrec-wram'; did you mean 'poisonrec-warm'",
        ),
        (("train", "BPR", "--total-steps", "0"), "total_steps must be"),
        (("train", "BPR", "--target-identity", "2"), "target_identity must be"),
        (("train", "ItemPop", "--target-idenity", "1"), "did you mean '--target-identity'"),
        (("train", "ItemPop", "--direction", "nuke"), "targets must be shown to somebody"),
        (("attack", "ItemPop", "--attacker", "random", "--resample-candidates"), "unknown argument"),
        (("train", "BPR", "--learning-rate", "nan"), "learning_rate must be"),
        (("train", "BPR", "--policy", "words"), "policy must be one of"),
        (("bench", "sped"), "did you mean 'speed'"),
        (("demo", "--seeds", "-3"), "seeds must be"),
        (("demo", "--queries", "0"), "n_queries must be"),
        (("demo", "--queries", "10"), "n_queries must be a multiple of 8"),
        (("demo", "--seeds", "0", "0"), "seeds must be one or more distinct"),
        (("--json", "envs"), "unknown argument '--json': options come after `recattack envs`"),
        (("attack", "ItemPop", "--attacker", "random", "--save", "."), "--save must name a file"),
        (("train", "ItemPop", "--resume", "--save", "nowhere"), "there is nothing to resume"),
        (("Attack",), "did you mean 'attack'"),
        (("attack", "gru4rec", "--attacker", "random"), "did you mean 'GRU4Rec'"),
    ],
)  # fmt: skip
def test_a_mistake_gets_one_clear_line_and_exit_code_2(
    argv: tuple[str, ...], message: str, run: Runner
) -> None:
    code, out, err = run.text(*argv)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "argv",
    [
        (), ("envs",), ("data",), ("data", "list"), ("data", "info"), ("data", "fetch"), ("attack",),
        ("train",), ("bench",), ("demo",),
    ],
)  # fmt: skip
def test_every_command_explains_itself(argv: tuple[str, ...], run: Runner) -> None:
    code, out, _ = run.text(*argv, "--help")
    assert code == 0
    assert "usage: recattack" in out
    if argv and argv not in (("data",), ("bench",)):
        assert "examples:" in out


@pytest.mark.parametrize("name", sorted(cli.BENCHMARKS))
def test_every_benchmark_explains_itself(name: str, run: Runner) -> None:
    code, out, _ = run.text("bench", name, "--help")
    assert code == 0
    assert f"recattack bench {name}" in out


def test_every_benchmark_can_be_run_from_the_command_line() -> None:
    modules = (ROOT / "agents" / "benchmark").glob("*.py")
    assert {m.stem for m in modules if "def add_arguments" in m.read_text()} == set(cli.BENCHMARKS)


def test_a_benchmark_prints_its_table_and_returns_the_rest(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agents.benchmark import speed

    def pretend(args: object) -> Mapping[str, object]:
        del args
        return {"table": "a table", "ratios": {"BPR": 40.0}}

    monkeypatch.setattr(speed, "run", pretend)
    code, data, err = run("bench", "speed")
    assert code == 0
    assert data["ratios"] == {"BPR": 40.0}
    assert "table" not in data
    assert "a table" in err


def test_version_is_the_packages(run: Runner) -> None:
    assert run.text("--version") == (0, f"recattack {__version__}\n", "")


def test_a_file_that_cannot_be_written_is_no_stack_trace(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where a folder should be")
    code, out, err = run.text(
        "attack", "ItemPop", "--attacker", "random", "--save", str(tmp_path / "taken" / "x.npz")
    )
    assert (code, out) == (1, "")
    assert "taken" in err
    assert len(err.splitlines()) == 1


def test_a_budget_beyond_the_memory_is_no_stack_trace(run: Runner) -> None:
    budget = ("--n-fake-users", str(10**9), "--profile-size", str(10**6))
    code, out, err = run.text("attack", "ItemPop", "--attacker", "random", *budget)
    assert (code, out) == (1, "")
    assert "not enough memory" in err
    assert len(err.splitlines()) == 1


def test_an_interrupt_gives_exit_code_130(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(args: object) -> Report:
        del args
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_envs", interrupt)
    code, out, err = run.text("envs")
    assert (code, out, err) == (130, "", "recattack: interrupted\n")


def command(*argv: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(  # noqa: S603  # our own command
        [sys.executable, "-m", "agents.cli", *argv],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_module_is_a_command_whose_last_line_is_json() -> None:
    done = command("attack", "RecPoison-ItemPop-v0", "--attacker", "popular", "--json", *SMALL)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout.splitlines()[-1])
    assert np.isfinite(data["rec_num"])
    assert "Traceback" not in done.stderr


def test_the_module_reports_a_mistake_without_a_stack_trace() -> None:
    done = command("attack", "RecPoison-ItemPop-v0", "--attacker", "poplar")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("recattack: unknown attacker 'poplar'; did you mean 'popular'?")
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_leaves_early_is_no_error() -> None:
    done = subprocess.run(  # noqa: S602  # a pipe needs a shell
        f"{sys.executable} -m agents.cli data list | head -n 1",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.startswith("| dataset")
    assert done.stderr == ""


def test_the_command_line_is_light_until_something_is_measured() -> None:
    heavy = "{'torch', 'pandas', 'numba', 'stable_baselines3', 'matplotlib'}"
    program = (
        "import sys; from agents.cli import main; main(['envs']); "
        f"sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    )
    done = subprocess.run(  # noqa: S603  # our own program
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
