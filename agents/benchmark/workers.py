"""Processes for the pieces of a benchmark: of this machine (joblib's loky) or of a Ray cluster."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from joblib import Parallel, parallel_config

from recattack_gym.core import ArgumentError

BACKENDS = ("loky", "ray")
PASSED_ON = ("RECATTACK_DATA", "RECATTACK_CACHE")
"""Environment variables that Ray's workers get from whoever starts a benchmark."""

Task = tuple[Callable[..., object], tuple[object, ...], Mapping[str, object]]
"""What `joblib.delayed(function)(...)` returns."""
Run = Callable[[Iterable[Task]], Iterator[object]]
"""Starts tasks as workers become free, and hands back results as they are finished, in any order."""


@contextmanager
def workers(n_jobs: int, backend: str) -> Iterator[Run]:
    """Give processes that take one task at a time and hand back results as they are finished.

    Args:
        n_jobs: Tasks that run at once.
        backend: One of `BACKENDS`. `"ray"` joins the cluster that `RAY_ADDRESS` names, or starts one on this
            machine with `n_jobs` workers until the block ends.

    Raises:
        ArgumentError: If Ray is asked for and not installed.
    """
    if backend == "ray":
        with _ray(n_jobs) as run:
            yield run
        return
    with (
        parallel_config(backend=backend if n_jobs > 1 else "sequential"),
        Parallel(
            n_jobs=n_jobs, batch_size=1, pre_dispatch=n_jobs, return_as="generator_unordered"
        ) as parallel,
    ):
        yield parallel


@contextmanager
def _ray(n_jobs: int) -> Iterator[Run]:
    """Run tasks on Ray itself: its backend for joblib cannot return results as they are finished."""
    try:
        import ray
    except ImportError as error:
        raise ArgumentError(
            "--backend ray needs Ray, which is not installed: pip install 'recattack-gym[ray]'"
        ) from error
    is_ours = not ray.is_initialized()
    if is_ours:
        _start(ray, n_jobs)
    pending: list[object] = []

    def run(tasks: Iterable[Task]) -> Iterator[object]:
        for function, arguments, keywords in tasks:
            while len(pending) >= n_jobs:
                yield next_result()
            pending.append(ray.remote(function).remote(*arguments, **keywords))
        while pending:
            yield next_result()

    def next_result() -> object:
        (finished,), pending[:] = ray.wait(pending, num_returns=1)
        return ray.get(finished)

    try:
        yield run
    finally:
        for task in pending:
            ray.cancel(task, force=True)
        if is_ours:
            ray.shutdown()


def _start(ray: Any, n_jobs: int) -> None:  # noqa: ANN401  # a module that may be missing
    """Join the cluster of `RAY_ADDRESS`, or start one on this machine."""
    # Ray's announcement of a default that will change; it has no GPU to hide from us.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS", "local")
    own = {"num_cpus": n_jobs, "include_dashboard": False} if address == "local" else {}
    variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    ray.init(
        address=address,
        runtime_env={"env_vars": variables},
        logging_level=logging.WARNING,
        **own,
    )


def share_the_machine(n_jobs: int) -> None:
    """Hold a worker that is not alone to one thread."""
    if n_jobs > 1:
        import torch

        os.environ["RECATTACK_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
