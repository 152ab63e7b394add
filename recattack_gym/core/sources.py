"""Tell whether code that decides results has changed."""

import ast
import hashlib
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path


def source_digest(paths: Iterable[str | Path]) -> str:
    """Return a digest of what Python files do, whatever their comments, docstrings and layout.

    A result that took hours should not count as another code's because a sentence was corrected.

    Args:
        paths: Files, whose order and places do not matter.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: If a file cannot be read.
        SyntaxError: If a file is no Python.
    """
    digest = hashlib.sha256()
    for path in sorted({Path(path) for path in paths}, key=lambda path: (path.name, str(path))):
        state = path.stat()
        digest.update(_file_digest(path, state.st_mtime_ns, state.st_size))
    return digest.hexdigest()


@lru_cache(maxsize=512)
def _file_digest(path: Path, _changed_at: int, _size: int) -> bytes:
    """Return the digest of one file; parsing takes a while, and comparisons ask hundreds of times."""
    tree = ast.parse(path.read_bytes(), filename=str(path))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [each for each in node.body if not _is_text(each)]
    return hashlib.sha256(f"{path.name}\n{ast.dump(tree)}".encode()).digest()


def imported_files(path: str | Path, packages: Iterable[str]) -> frozenset[Path]:
    """Return a Python file and all files of some packages that it imports, directly or not.

    Imports within functions count. `from package import name` counts as importing the package, and what its
    `__init__` imports: code that is to be told apart imports from modules.

    Args:
        path: Where to begin.
        packages: Names of packages and modules; those within a package count, too.

    Raises:
        OSError: If a file cannot be read.
        SyntaxError: If a file is no Python.
    """
    wanted = tuple(packages)
    found = {Path(path)}
    waiting = [Path(path)]
    while waiting:
        here = waiting.pop()
        state = here.stat()
        for name in _imports(here, state.st_mtime_ns, state.st_size):
            if not any(name == each or name.startswith(f"{each}.") for each in wanted):
                continue
            spec = find_spec(name)
            if spec is not None and spec.origin is not None and Path(spec.origin) not in found:
                found.add(Path(spec.origin))
                waiting.append(Path(spec.origin))
    return frozenset(found)


@lru_cache(maxsize=512)
def _imports(path: Path, _changed_at: int, _size: int) -> frozenset[str]:
    """Return the names of the modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return frozenset(names)


def _is_text(statement: ast.stmt) -> bool:
    """Tell whether a statement is a string alone: a docstring, or one below an attribute."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
