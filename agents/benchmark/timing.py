"""Measure both sides of a comparison in one run: interleaved, medians, with CPU time and memory."""

import gc
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """How long something takes; medians over repetitions."""

    wall_seconds: float
    """Elapsed time."""
    cpu_seconds: float
    """Time of this process on all its threads."""
    repetitions: int
    """How many runs the medians are over."""


def interleaved(sides: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, Timing]:
    """Time several callables in turn, so that a busy machine slows all of them alike.

    Every side runs once before, unmeasured: first calls compile and fill caches.
    """
    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run()
    gc.collect()
    for _ in range(repetitions):
        for name, run in sides.items():
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            run()
            wall[name].append(time.perf_counter() - wall_start)
            cpu[name].append(time.process_time() - cpu_start)
    return {
        name: Timing(
            wall_seconds=float(np.median(wall[name])),
            cpu_seconds=float(np.median(cpu[name])),
            repetitions=repetitions,
        )
        for name in sides
    }


def peak_memory(run: Callable[[], object]) -> int | None:
    """Return the largest resident memory of this process while `run` ran, in bytes.

    Libraries, log and models included: what `run` allocates is often memory that an earlier call has
    left to the allocator, so growth would say nothing.

    Returns:
        `None` where the system does not tell (it takes Linux's `/proc`).
    """
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not os.access(reset, os.W_OK):
        return None
    gc.collect()
    reset.write_text("5")
    run()
    return 1024 * _kilobytes(status, "VmHWM")


def _kilobytes(status: Path, field: str) -> int:
    line = next(x for x in status.read_text().splitlines() if x.startswith(f"{field}:"))
    return int(line.split()[1])
