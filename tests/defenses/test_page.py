"""docs/detectors.md keeps its promises: its code runs, all detectors are listed, tables are the results'."""

import json
import re
from pathlib import Path
from types import CodeType

import pytest

from agents.benchmark.detect_report import report
from recattack_gym.defenses import DETECTORS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "detectors.md").read_text()
RESULTS = sorted((DOCS / "results").glob("detect*.json"))


def test_the_code_runs() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    compiled: CodeType = compile(code, "detectors.md", "exec")
    names: dict[str, object] = {}
    exec(compiled, names)  # noqa: S102  # our own page
    assert float(str(names["auc"])) > 0.95


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_is_in_the_table(name: str) -> None:
    kind = DETECTORS[name]
    learns = "yes" if kind.is_supervised else "no"
    reads = "ratings" if kind.needs_ratings else "clicks"
    assert f"| `{name}` | {learns} | {reads} |" in PAGE


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_tables_and_commands_are_those_of_the_results(path: Path) -> None:
    content = json.loads(path.read_text())
    assert f"$ {content['command']}" in PAGE
    assert report(content["rows"]) in PAGE
