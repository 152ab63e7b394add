"""Processes for benchmarks: the rules on a stand-in for Ray, and Ray itself where it is installed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from joblib import delayed

from agents.benchmark.workers import workers

ROOT = Path(__file__).parents[3]


class StandInTask:
    """A remote function: calling it makes a task, which runs when it is asked for."""

    def __init__(self, ray: "StandIn", function: Callable[..., object]) -> None:
        self.ray, self.function = ray, function

    def remote(self, *args: object, **kwargs: object) -> Callable[[], object]:
        self.ray.n_pending += 1
        self.ray.most_pending = max(self.ray.most_pending, self.ray.n_pending)
        return lambda: self.function(*args, **kwargs)


class StandIn:
    """The part of Ray's interface that is used, in this process; tasks finish last in, first out."""

    def __init__(self, *, is_running: bool = False) -> None:
        self.is_running = is_running
        self.settings: dict[str, object] = {}
        self.n_pending = self.most_pending = 0
        self.cancelled: list[object] = []

    def is_initialized(self) -> bool:
        return self.is_running

    def init(self, **settings: object) -> None:
        self.is_running, self.settings = True, settings

    def shutdown(self) -> None:
        self.is_running = False

    def remote(self, function: Callable[..., object]) -> StandInTask:
        return StandInTask(self, function)

    def wait(self, pending: list[object], num_returns: int) -> tuple[list[object], list[object]]:
        assert num_returns == 1
        self.n_pending -= 1
        return pending[-1:], pending[:-1]

    def get(self, task: Callable[[], object]) -> object:
        return task()

    def cancel(self, task: object, *, force: bool) -> None:
        assert force
        self.cancelled.append(task)


def square(number: int, *, sign: int = 1) -> int:
    return sign * number * number


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    return stand_in


@pytest.mark.parametrize("backend", ["loky", "ray"])
def test_every_task_is_run_once_whatever_the_backend(backend: str, ray: StandIn) -> None:
    del ray
    with workers(1, backend) as run:
        for sign in (1, -1):  # two rounds, as fits and attacks
            results = list(run(delayed(square)(x, sign=sign) for x in range(7)))
            assert sorted(map(str, results)) == sorted(str(sign * x * x) for x in range(7))


def test_no_more_tasks_than_jobs_wait_on_ray(ray: StandIn) -> None:
    with workers(3, "ray") as run:
        assert len(list(run(delayed(square)(x) for x in range(10)))) == 10
        assert ray.most_pending == 3
        assert ray.is_running
    assert not ray.is_running


def test_an_interrupt_cancels_what_is_pending(ray: StandIn) -> None:
    def interrupted() -> None:
        with workers(3, "ray") as run:
            for _ in run(delayed(square)(x) for x in range(10)):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(ray.cancelled) == 2
    assert not ray.is_running


def test_ray_is_started_here_unless_there_is_a_cluster(
    ray: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECATTACK_DATA", "/shared/data")
    with workers(3, "ray"):
        assert str(ray.settings["address"]) == "local"
        assert ray.settings["num_cpus"] == 3
        passed_on = ray.settings["runtime_env"]["env_vars"]  # type: ignore[index]
        assert passed_on["RECATTACK_DATA"] == "/shared/data"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with workers(3, "ray"):
        assert ray.settings.keys() == {
            "address",
            "runtime_env",
            "logging_level",
        }  # it has what it has
        assert str(ray.settings["address"]) == "10.0.0.1:6379"


def test_somebody_elses_ray_is_left_running(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = StandIn(is_running=True)
    monkeypatch.setitem(sys.modules, "ray", ray)
    with workers(2, "ray") as run:
        assert list(run([delayed(square)(3)])) == [9]
    assert ray.is_running
    assert not ray.settings


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install ray")
def test_ray_gives_what_one_process_gives(tmp_path: Path) -> None:
    words = (
        *("--datasets", "synthetic", "--protocol", "none", "--victims", "ItemPop", "CoVisitation"),
        *("--attackers", "popular", "random-search", "--seeds", "0", "1", "--queries", "8"),
        *("--draws", "2", "--no-full", "--json"),
    )
    found = []
    for name, more in (("one", ()), ("ray", ("--backend", "ray", "--jobs", "2"))):
        command = [sys.executable, "-m", "agents.cli", "bench", "table3", *words, *more]
        done = subprocess.run(  # noqa: S603  # our own
            [*command, "--out", name],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
        assert len(list((tmp_path / name).glob("*.npz"))) == 8
    assert found[0]["rec_num"] == found[1]["rec_num"]
    assert found[0]["n_finished"] == 8
