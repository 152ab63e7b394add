"""Importing is cheap, and environments work in processes that know nothing but their id."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "pandas", "numba", "scipy", "stable_baselines3", "matplotlib")
Small = Callable[..., dict[str, Any]]


def run_python(code: str) -> str:
    """Run code in a fresh interpreter with warnings as errors; return what it prints."""
    done = subprocess.run(  # noqa: S603  # our own interpreter and code
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, recattack_gym; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    assert run_python(code) == ""


def test_module_and_id_need_no_import() -> None:
    code = (
        "import gymnasium; "
        "env = gymnasium.make('recattack_gym:RecPoison-ItemPop-v0', n_fake_users=1, profile_size=1); "
        "env.reset(seed=0); print(env.step(0)[2])"
    )
    assert run_python(code) == "True"


@pytest.mark.slow
@pytest.mark.parametrize("context", ["spawn", "forkserver"])
@pytest.mark.parametrize("victim", ["ItemPop", "PMF"])
def test_worker_processes_play_the_same_attacks(context: str, victim: str, small: Small) -> None:
    env_id = f"RecPoison-{victim}-v0"
    arguments = small(victim, dataset="synthetic", n_candidates=100)
    there = gym.make_vec(
        env_id,
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"context": context, "autoreset_mode": "SameStep"},
        **arguments,
    )
    here = gym.make_vec(env_id, num_envs=2, autoreset_mode="SameStep", **arguments)
    try:
        assert data_equivalence(there.reset(seed=4), here.reset(seed=4), exact=True)
        rng = np.random.default_rng(0)
        for _ in range(8):
            actions = rng.integers(490, 502, size=2)
            assert data_equivalence(there.step(actions), here.step(actions), exact=True)
    finally:
        there.close()
