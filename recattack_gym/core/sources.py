"""Tell whether code that decides results has changed."""

import ast
import hashlib
from collections.abc import Iterable
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
        tree = ast.parse(path.read_bytes(), filename=str(path))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                node.body = [each for each in node.body if not _is_text(each)]
        digest.update(f"{path.name}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()


def _is_text(statement: ast.stmt) -> bool:
    """Tell whether a statement is a string alone: a docstring, or one below an attribute."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
