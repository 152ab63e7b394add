"""The pages in docs/ keep their promises: code runs, commands exist, links lead somewhere."""

import re
import shlex
from dataclasses import asdict
from pathlib import Path
from types import CodeType

import pytest

from agents import cli
from agents.training import LEARNING_RATES, TrainingConfig

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TRAINING = (ROOT / "docs" / "training.md").read_text()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "code", blocks(TRAINING, "python"), ids=["train", "one's own", "tree", "poisonrec"]
)
def test_the_code_about_training_runs(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    compiled: CodeType = compile(code, "training.md", "exec")
    names: dict[str, object] = {}
    exec(compiled, names)  # noqa: S102  # our own page
    assert {"report", "model", "agent"} & set(names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_understood(page: Path) -> None:
    for command in re.findall(r"^\$ (recattack .*)", page.read_text(), re.MULTILINE):
        argv = shlex.split(command)[1:]
        assert cli._parse(argv).handler, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_table_of_training_options_has_the_defaults() -> None:
    learning_rate = LEARNING_RATES["popularity"]
    defaults = {**asdict(TrainingConfig(learning_rate=learning_rate)), "resample_candidates": "off"}
    rows = re.findall(r"^\| (`--.*?) \| (.*?) \|", TRAINING, re.MULTILINE)
    assert len(rows) > 10
    for options, values in rows:
        names = re.findall(r"--([a-z-]+)", options)
        for name, written in zip(names, values.split(", "), strict=True):
            default = defaults[name.replace("-", "_")]
            expected = f"`{default}`" if name in ("algo", "policy") else default
            assert written == (expected if isinstance(expected, str) else f"{expected:g}"), name


def test_the_page_of_table_3_is_what_the_documented_command_writes() -> None:
    """Of which the pictures are a part: a report without them leaves the page without them, too."""
    page = (ROOT / "docs" / "results" / "table3.md").read_text()
    (command,) = re.findall(r"^\$ (recattack .*)", page, re.MULTILINE)
    assert f"$ {command}\n" in (ROOT / "docs" / "benchmarks.md").read_text()
    pictures = {path.name for path in (ROOT / "docs" / "results").glob("table3-*.png")}
    assert len(pictures) > 4
    assert set(re.findall(r"^!\[.*\]\((.*)\)", page, re.MULTILINE)) == pictures
