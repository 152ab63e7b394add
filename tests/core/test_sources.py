"""A digest of code that sees through sentences."""

from pathlib import Path

import pytest

from recattack_gym.core.sources import imported_files, source_digest

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


def test_imports_are_followed_within_the_packages_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "somewhere"
    (package / "deep").mkdir(parents=True)
    for name in ("__init__", "first", "second", "third", "other", "deep/__init__", "deep/fourth"):
        (package / f"{name}.py").write_text("")
    begin = write(
        tmp_path / "begin.py",
        "import os\nfrom somewhere.first import x\n\n\ndef later():\n    import somewhere.deep.fourth\n",
    )
    write(package / "first.py", "from somewhere.second import y\nimport numpy\n")
    write(package / "second.py", "from somewhere.first import x  # each other\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    everything = {path.name for path in imported_files(begin, ["somewhere"])}
    assert everything == {"begin.py", "first.py", "second.py", "fourth.py"}
    assert {path.name for path in imported_files(begin, ["somewhere.first"])} == {
        "begin.py",
        "first.py",
    }
    assert imported_files(begin, []) == {begin}
    assert {path.name for path in imported_files(begin, ["some"])} == {"begin.py"}


def test_victims_are_told_apart_and_know_their_kernels() -> None:
    from recattack_gym.simulator.cache import _DECISIVE
    from recattack_gym.victims import bpr, itempop

    files = {path.name for path in imported_files(bpr.__file__, _DECISIVE)}
    assert {
        "bpr.py",
        "base.py",
        "mf_engine.py",
        "mf_kernel.py",
        "schedule.py",
        "random.py",
    } <= files
    assert "itempop.py" not in files
    assert "bpr.py" not in {path.name for path in imported_files(itempop.__file__, _DECISIVE)}
