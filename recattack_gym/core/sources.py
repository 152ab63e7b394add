"""Tell whether code that decides results has changed."""

import ast
import hashlib
import sys
from collections.abc import Iterable
from functools import lru_cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, resolve_name
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
    return hashlib.sha256(f"{path.name}\n{_dump(tree)}".encode()).digest()


def _dump(tree: ast.AST) -> str:
    """Write a syntax tree in the words of Python 3.11, whatever this Python is."""
    if sys.version_info >= (3, 13):
        text = ast.dump(tree, show_empty=True)
    else:
        text = ast.dump(tree)
    return text.replace(", type_params=[]", "")


def imported_files(module: str, packages: Iterable[str]) -> frozenset[Path]:
    """Return the file of a module and all files of some packages that it imports, directly or not.

    Imports within functions count, and so does the `__init__` of a package that something is imported from.

    Args:
        module: Where to begin, imported or not.
        packages: Names of packages and modules; those within a package count, too.

    Returns:
        Nothing if there is no such module or it has no source file, as one typed into an interpreter.

    Raises:
        SyntaxError: If a file is no Python.
    """
    wanted = tuple(packages)
    origin, is_package = _origin(module)
    if origin is None or not Path(origin).is_file():
        return frozenset()
    found = {module: Path(origin)}
    waiting = [(Path(origin), module if is_package else module.rpartition(".")[0])]
    while waiting:
        path, package = waiting.pop()
        state = path.stat()
        for name in _imports(path, package, state.st_mtime_ns, state.st_size):
            if name in found or not any(f"{name}.".startswith(f"{each}.") for each in wanted):
                continue
            spec = _spec(name)
            if spec is not None and spec.origin is not None:
                found[name] = Path(spec.origin)
                inner = name if spec.submodule_search_locations else name.rpartition(".")[0]
                waiting.append((found[name], inner))
    return frozenset(found.values())


def _origin(module: str) -> tuple[str | None, bool]:
    """Return the file of a module, if it has one, and whether the module is a package."""
    if module in sys.modules:
        loaded = sys.modules[module]
        return getattr(loaded, "__file__", None), hasattr(loaded, "__path__")
    spec = _spec(module)
    if spec is None:
        return None, False
    return spec.origin, spec.submodule_search_locations is not None


def _spec(name: str) -> ModuleSpec | None:
    """Return where a module is, or `None` where the name is that of something in a module."""
    try:
        return find_spec(name)
    except ModuleNotFoundError:  # its parent is no package
        return None


@lru_cache(maxsize=512)
def _imports(path: Path, package: str, _changed_at: int, _size: int) -> frozenset[str]:
    """Return what a file of `package` imports: modules, and what may be one (`from package import it`)."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = resolve_name("." * node.level + module, package)
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return frozenset(names)


def _is_text(statement: ast.stmt) -> bool:
    """Tell whether a statement is a string alone: a docstring, or one below an attribute."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
