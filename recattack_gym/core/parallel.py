"""Spread poison sets over threads: compiled kernels release the GIL, so plain threads are enough.

Numba's own parallel loops are not used: their OpenMP pool does not survive `fork`, which vector
environments use, and a kernel over one poison set is easier to read and to test.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from threadpoolctl import threadpool_limits

from recattack_gym.core.checks import as_count
from recattack_gym.core.errors import ArgumentError


def n_threads() -> int:
    """Return how many threads compiled code uses.

    `RECATTACK_NUM_THREADS` if set, else the CPUs that this process may run on.
    """
    setting = os.environ.get("RECATTACK_NUM_THREADS")
    if setting is None:
        return (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
    if not setting.isdecimal():
        raise ArgumentError(f"RECATTACK_NUM_THREADS must be a whole number >= 1, got {setting!r}")
    return as_count("RECATTACK_NUM_THREADS", int(setting))


def over_sets(n_sets: int, work: Callable[[int, range], None]) -> None:
    """Call `work(thread, sets)` on every thread, which together cover `range(n_sets)`.

    Sets are dealt out in turn (thread 0 gets 0, n, 2n, ...). BLAS is held to one thread meanwhile,
    since each thread runs its own small products. An error in any thread is raised here.

    Args:
        n_sets: Number of poison sets, M.
        work: Must touch only buffers of its own thread and the results of its own sets.
    """
    workers = min(n_threads(), n_sets)
    with threadpool_limits(limits=1, user_api="blas"):
        if workers <= 1:
            work(0, range(n_sets))
            return
        with ThreadPoolExecutor(workers, thread_name_prefix="recattack") as pool:
            jobs = [pool.submit(work, t, range(t, n_sets, workers)) for t in range(workers)]
            for job in jobs:
                job.result()
