"""The README keeps its promises: its commands, its code and its links."""

import re
from pathlib import Path
from types import CodeType

import pytest

from agents.attackers import ATTACKERS
from envs_registry import VICTIM_NAMES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_first_two_commands_install_and_run_the_main_job_and_the_tests() -> None:
    main_job, tests = blocks("bash")
    for command in (main_job, tests):
        assert "python3 -m venv" in command
        assert "pip install -c constraints.txt -e" in command
    assert main_job.strip().endswith("recattack demo")
    assert tests.strip().endswith("python -m pytest -n 2")


def test_the_training_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code = next(block for block in blocks("python") if "PPO(" in block)
    for old, new in (("RecPoison-ALS", "RecPoison-ItemPop"), ("learn(128_000)", "learn(6_400)")):
        assert old in code
        code = code.replace(old, new)
    compiled: CodeType = compile(code, "README.md", "exec")
    names: dict[str, object] = {}
    exec(compiled, names)  # noqa: S102  # our own README
    assert "model" in names
    assert capsys.readouterr().err == ""


def test_every_victim_and_attacker_is_in_its_table() -> None:
    for name in (*VICTIM_NAMES, *ATTACKERS):
        assert f"| `{name}` |" in README


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (ROOT / target).exists(), f"{page.name} links to {target}"
