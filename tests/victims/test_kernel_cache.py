"""Machine code that is kept on disk never outlives the source that it was made from."""

import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numba
import numpy as np
import pytest

from recattack_gym.victims import kernels

ROOT = Path(__file__).parents[2]
KERNELS = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for path in (ROOT / "recattack_gym").rglob("*.py")
    if "\n@compiled" in path.read_text()
)
PROGRAM = """
from recattack_gym.victims import kernels
from recattack_gym.simulator.candidates_kernel import draw_rows
import numpy as np
drawn = np.empty((1, 3), dtype=np.int64)
draw_rows(np.zeros(2, np.int64), np.zeros(0, np.int32), np.zeros(900, np.bool_), 900, 1, drawn)
print(drawn.tolist())
"""


def is_dispatcher(value: object) -> bool:
    return isinstance(value, numba.core.dispatcher.Dispatcher)


@pytest.mark.parametrize("name", KERNELS)
def test_every_file_that_another_kernel_is_compiled_from_is_a_shared_source(name: str) -> None:
    module = import_module(name)
    dispatchers = [value for value in vars(module).values() if is_dispatcher(value)]
    own = [value for value in dispatchers if value.__module__ == name]
    assert own
    needed = {value.__module__ for value in dispatchers} - {name}
    globals_ = {used for value in own for used in value.py_func.__code__.co_names}
    for used in globals_ & set(vars(module)):
        value = getattr(module, used)
        if isinstance(value, int | float) and not is_defined_here(module, used):
            needed.update(origins(used, value) - {name})
    assert {Path(*x.split(".")).name + ".py" for x in needed} <= set(kernels.SHARED_SOURCES)


def is_defined_here(module: ModuleType, name: str) -> bool:
    assert module.__file__ is not None
    lines = Path(module.__file__).read_text().splitlines()
    return any(name in line.split(" = ")[0].split(", ") for line in lines if " = " in line)


def origins(name: str, value: object) -> set[str]:
    """Return the modules of the package that define a constant of this name and value."""
    return {
        module.__name__
        for module in list(sys.modules.values())
        if module.__name__.startswith("recattack_gym.")
        and getattr(module, name, None) is value
        and is_defined_here(module, name)
    }


def test_kernels_are_kept_in_the_folder_of_their_shared_sources() -> None:
    assert str(kernels.cache_folder()) in kernels.draw_below._cache.cache_path  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_change_of_a_shared_kernel_reaches_kernels_in_other_files(tmp_path: Path) -> None:
    for name in ("recattack_gym", "envs_registry.py"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    before, again = run(tmp_path), run(tmp_path)
    shared = tmp_path / "recattack_gym" / "victims" / "kernels.py"
    changed = shared.read_text().replace("np.uint64(seed) +", "np.uint64(seed + 1) +")
    assert changed != shared.read_text()
    shared.write_text(changed)
    assert before == again != run(tmp_path)


NESTED = """
from recattack_gym.victims.kernels import compiled

@compiled
def inner(x):
    total = x[0]
    for i in range(1, len(x)):
        y = x[i]
        for _ in range(i):
            y = y * y + total / (1.0 + y)
            if y > 2.0:
                y = x[i // 2] - y
        total += y * (x[i - 1] - total)
    return total

@compiled
def outer(x):
    return inner(x) + inner(x[1:]) * inner(x[2:]) + inner(x[3:]) / inner(x[4:])
"""


def test_a_kernel_contains_what_it_calls_and_shares_no_copy_with_other_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nested_kernel.py").write_text(NESTED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(kernels, "_CACHE_FOLDER", str(tmp_path))
    nested = import_module("nested_kernel")
    nested.outer(np.ones(8, dtype=np.float32))
    (code,) = nested.outer.inspect_llvm().values()
    assert "nested_kernel" in code
    assert not re.search("define linkonce_odr.*nested_kernel", code)


def run(folder: Path) -> str:
    done = subprocess.run(  # noqa: S603  # our own program
        [sys.executable, "-c", PROGRAM], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
