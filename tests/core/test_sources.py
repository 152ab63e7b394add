"""A digest of code that sees through sentences."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from recattack_gym.core.sources import imported_files, source_digest
from recattack_gym.simulator.cache import _DECISIVE
from recattack_gym.victims import VICTIMS

CODE = '"""Add."""\n\n\ndef add(a, b):\n    """Return the sum."""\n    return a + b\n'


def write(path: Path, text: str) -> Path:
    """Write a file and return its path."""
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "other",
    [
        CODE.replace("Return the sum.", "Return a and b, added."),
        CODE.replace('    """Return the sum."""\n', ""),
        CODE.replace("a + b", "a + b  # a sum"),
        CODE.replace("return a + b", "return (\n        a + b\n    )"),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(tmp_path: Path, other: str) -> None:
    digest = source_digest([write(tmp_path / "a.py", CODE)])
    assert source_digest([write(tmp_path / "a.py", other)]) == digest


@pytest.mark.parametrize(
    "other",
    [
        CODE.replace("a + b", "a - b"),
        CODE.replace("(a, b)", "(a, b=1)"),
        CODE + "add(1, 2)\n",
        CODE.replace("a + b", 'a + b + "text"'),
    ],
)
def test_what_the_code_does_counts(tmp_path: Path, other: str) -> None:
    digest = source_digest([write(tmp_path / "a.py", CODE)])
    assert source_digest([write(tmp_path / "a.py", other)]) != digest


def test_the_folder_does_not_count_and_the_name_does(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    digest = source_digest([write(tmp_path / "a.py", CODE)])
    assert source_digest([write(tmp_path / "deeper" / "a.py", CODE)]) == digest
    assert source_digest([write(tmp_path / "b.py", CODE)]) != digest


def test_every_file_counts_in_any_order(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.py", CODE), write(tmp_path / "b.py", "x = 1\n")
    assert source_digest([one, two]) == source_digest([two, one]) != source_digest([one])


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of empty modules that can be imported, and a module `begin` beside it."""
    folder = tmp_path / "somewhere"
    (folder / "deep").mkdir(parents=True)
    for name in ("__init__", "first", "second", "third", "deep/__init__", "deep/fourth"):
        (folder / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [n for n in sys.modules if n.partition(".")[0] in ("somewhere", "begin")]:
        del sys.modules[name]


def names_from(module: str, *packages: str) -> set[str]:
    importlib.import_module(module)
    return {path.name for path in imported_files(module, packages)}


def test_imports_are_followed_within_the_packages_asked_for(package: Path) -> None:
    write(package.parent / "begin.py", "import os\nfrom somewhere.first import x\n")
    write(package / "first.py", "from somewhere.second import y\nimport numpy\n\nx = y\n")
    write(package / "second.py", "y = 1\n\n\ndef later():\n    import somewhere.first\n")
    assert names_from("begin", "somewhere") == {"begin.py", "first.py", "second.py"}
    assert names_from("begin", "somewhere.first") == {"begin.py", "first.py"}
    assert names_from("begin") == names_from("begin", "some") == {"begin.py"}


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("import somewhere.third", {"third.py"}),
        ("import os, somewhere.first as first", {"first.py"}),
        ("from somewhere import third", {"__init__.py", "third.py"}),
        ("from somewhere.deep import fourth", {"__init__.py", "fourth.py"}),
        ("from somewhere.third import __doc__", {"third.py"}),
        ("from .third import __doc__", {"third.py"}),
        ("from . import third", {"__init__.py", "third.py"}),
        ("from .deep.fourth import __doc__", {"fourth.py"}),
        ("def later():\n    from .third import __doc__", {"third.py"}),
        ("somewhere = 1", set()),
    ],
)
def test_every_way_to_import_a_module_is_seen(
    package: Path, statement: str, names: set[str]
) -> None:
    write(package / "second.py", f"{statement}\n")
    assert names_from("somewhere.second", "somewhere") == {"second.py"} | names


@pytest.mark.parametrize("module", ["somewhere.second", "somewhere.deep"])
def test_a_module_need_not_have_been_imported(package: Path, module: str) -> None:
    for name in ("second", "deep/__init__"):
        write(package / f"{name}.py", "from . import __name__\n")
    assert module not in sys.modules
    before = imported_files(module, ["somewhere"])
    assert len(before) == (2 if module.endswith("second") else 1)
    importlib.import_module(module)
    assert imported_files(module, ["somewhere"]) == before


def test_a_module_without_a_source_has_no_files() -> None:
    assert imported_files("sys", ["agents"]) == imported_files("no.such.module", []) == frozenset()


def test_victims_are_told_apart_and_know_their_kernels() -> None:
    bpr, itempop = (
        {path.name for path in imported_files(VICTIMS[name].__module__, _DECISIVE)}
        for name in ("BPR", "ItemPop")
    )
    own = {"bpr.py", "base.py", "mf_engine.py", "mf_kernel.py", "schedule.py", "random.py"}
    assert own <= bpr
    assert "itempop.py" not in bpr
    assert "bpr.py" not in itempop
