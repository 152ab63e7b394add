"""Measure the effects of attacks that `recattack bench table3` keeps: detectors, quality, who is shown.

A new cell has them from the start (`cells.run_cell`); this is for those that were stored without, or with
what other code measured. Nothing is attacked: the stored plan is injected once more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from joblib import delayed
from tqdm import tqdm

from agents.benchmark.cells import platform_simulator
from agents.benchmark.published import TABLE3
from agents.benchmark.rows import Row
from agents.benchmark.sidecars import write_sidecar
from agents.benchmark.sources import is_here
from agents.benchmark.workers import share_the_machine, workers
from agents.interruption import raise_if_interrupted
from agents.reports import measured_fields
from recattack_gym.core import ArtifactError, FakeProfiles
from recattack_gym.simulator import PlatformSimulator
from recattack_gym.simulator.effects import EffectsMeter
from recattack_gym.victims import VICTIMS

Platform = tuple[str, str | None, str, int]
"""As `Cell.platform`: dataset, protocol, victim, seed."""


@dataclass(frozen=True)
class Piece:
    """One attack whose effects are wanted."""

    path: Path
    """Of its result, wherever a worker runs."""
    identity: Mapping[str, object]
    """What decides its effects: `sidecars.sidecar_identity`."""
    target_items: object
    """What it was made for, as its result says."""

    @classmethod
    def of(cls, row: Row) -> "Piece":
        """Return what is wanted of a finished cell."""
        return cls(row.path.resolve(), row.effects_identity, row.result["target_items"])


def measure_missing(rows: Sequence[Row], *, n_jobs: int, backend: str = "loky") -> int:
    """Measure the effects of the attacks that have none by this code, `n_jobs` at a time; keep each at once.

    Datasets come in the paper's order, and of each the cheap victims first, so that a run that is stopped has
    most of what it could have. A platform's attacks are one worker's, who fits its victim and makes the clean
    lists once.

    Args:
        rows: Finished cells; those on datasets that are not on this machine are left out.
        n_jobs: Processes, each on one thread.
        backend: As in `workers`.

    Returns:
        How many were measured.

    Raises:
        ArtifactError: If a plan is missing, or not what its result says.
        KeyboardInterrupt: If interrupted; what was measured is kept.
    """
    missing: dict[Platform, list[Piece]] = {}
    for row in rows:
        if not row.has_current_effects and is_here(row.cell.dataset):
            missing.setdefault(row.cell.platform, []).append(Piece.of(row))
    tasks = [(platform, missing[platform]) for platform in sorted(missing, key=_place)]
    n_missing = sum(map(len, missing.values()))
    with (
        workers(n_jobs, backend) as run_tasks,
        tqdm(total=n_missing, desc="detectors and side effects", unit="cell") as progress,
    ):
        for n_measured in run_tasks(delayed(_measure_all)(*task, n_jobs) for task in tasks):
            progress.update(int(str(n_measured)))
            raise_if_interrupted()
    return n_missing


def _measure_all(platform: Platform, pieces: Sequence[Piece], n_jobs: int) -> int:
    """Measure all pieces of a platform, each kept when it is done; return how many they are."""
    share_the_machine(n_jobs)
    simulator = platform_simulator(platform)
    meter = EffectsMeter(simulator)
    for piece in pieces:
        raise_if_interrupted()
        measure(piece, simulator, meter)
    return len(pieces)


def measure(piece: Piece, simulator: PlatformSimulator, meter: EffectsMeter) -> None:
    """Measure the effects of one attack and keep them beside its result.

    Args:
        piece: The attack.
        simulator: Its platform.
        meter: Of that platform.

    Raises:
        ArtifactError: If the plan is missing, damaged, not what the result says, or of another platform.
    """
    plan_file = piece.path.with_suffix(".npz")
    plan = FakeProfiles.load(plan_file)
    if plan.content_hash != piece.identity["profiles"]:
        raise ArtifactError(
            f"{plan_file} must be the plan that {piece.path.name} is about, but is another: "
            "remove both to have it made again"
        )
    targets = simulator.target_items.tolist()
    if piece.target_items != targets:
        raise ArtifactError(
            f"{plan_file} must be a plan for the targets {targets} of the platform, "
            f"got one for {piece.target_items}: remove it and {piece.path.name}"
        )
    write_sidecar(piece.path, piece.identity, measured_fields(simulator, plan, meter))


def _place(platform: Platform) -> tuple[int, str, int, int]:
    """Return when a platform's turn is."""
    dataset, _, victim, seed = platform
    known = list(TABLE3)
    turn = known.index(dataset) if dataset in known else len(known)
    return turn, dataset, list(VICTIMS).index(victim), seed
