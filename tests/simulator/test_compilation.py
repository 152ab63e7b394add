"""Compiling is announced, once, on standard error; machine code from the disk is not."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import pytest

from recattack_gym.simulator.compilation import announce_compilation

ROOT = Path(__file__).parents[2]
LINE = "compiling machine code, once on this machine: this may take a minute\n"
SCRIPT = (
    "-c",
    "from recattack_gym.simulator import PlatformSimulator as P; P(victim='ItemPop').exposure([[0]])",
)
COMMAND = ("-m", "agents.cli", "attack", "ItemPop", "--attacker", "random", "--json")


def run(argv: tuple[str, ...], machine_code: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(  # noqa: S603  # our own programs
        [sys.executable, *argv],
        cwd=ROOT,
        env={**os.environ, "NUMBA_CACHE_DIR": str(machine_code)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )


@pytest.mark.parametrize(("argv", "told"), [(SCRIPT, LINE), (COMMAND, f"recattack: {LINE}")])
def test_only_the_first_use_on_a_machine_is_announced(
    argv: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    first, second = run(argv, tmp_path), run(argv, tmp_path)
    assert first.stderr.count(LINE) == 1
    assert first.stderr.startswith(told)
    assert LINE not in second.stderr
    if argv is COMMAND:
        for done in (first, second):
            assert json.loads(done.stdout.splitlines()[-1])["command"] == "attack"


def test_what_others_compile_is_not_announced(caplog: pytest.LogCaptureFixture) -> None:
    announce_compilation()

    jit: Any = numba.njit  # Any: its annotations are not those of a decorator
    with caplog.at_level(logging.DEBUG, "recattack_gym"):
        assert jit(lambda number: 2 * number)(21) == 42
    assert not caplog.records
