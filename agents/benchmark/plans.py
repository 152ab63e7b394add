"""Attacks that `recattack bench table3` keeps beside its results: which are asked for, and their clicks."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from agents.benchmark.archive import unpack
from agents.benchmark.cells import ENTRIES, Cell, identity, profiles_path
from agents.benchmark.published import TABLE3_VICTIMS
from agents.benchmark.sidecars import PLATFORM_PARTS
from agents.benchmark.store import ResultStore
from agents.benchmark.table3 import cells_of, run_cells
from agents.benchmark.workers import BACKENDS
from recattack_gym.core import ArgumentError, ArtifactError, FakeProfiles

Platform = tuple[str, str | None, str, int]
"""As `Cell.platform`: dataset, protocol, victim, seed."""


@dataclass(frozen=True)
class Plan:
    """An attack and the platform that it was made against."""

    cell: Cell
    """What was asked for; its victim is the one that the attack was made against."""
    profiles: FakeProfiles
    """What it clicks."""

    def platform_of(self, victim: str) -> Platform:
        """Return the platform of `victim` with the log, targets and lists that the plan was made for."""
        return self.cell.dataset, self.cell.protocol, victim, self.cell.seed


def add_plan_options(
    parser: argparse.ArgumentParser,
    *,
    datasets: Sequence[str],
    attackers: Sequence[str],
    seeds: Sequence[int],
) -> None:
    """Declare the options that say which plans, as `table3` has them.

    Args:
        parser: Gets the options.
        datasets: Default of `--datasets`.
        attackers: Default of `--attackers`.
        seeds: Default of `--seeds`.
    """

    def several(name: str, default: Sequence[object], metavar: str, **more: object) -> None:
        parser.add_argument(name, nargs="+", default=list(default), metavar=metavar, **more)  # type: ignore[arg-type]  # passed on

    several("--datasets", datasets, "NAME", help=f"default: {' '.join(datasets)}")
    parser.add_argument("--protocol", default="poisonrec", help='or "none" (default: poisonrec)')
    several("--victims", TABLE3_VICTIMS, "NAME", help="default: those of PoisonRec's Table III")
    known = ", ".join(ENTRIES)
    several("--attackers", attackers, "NAME", help=f"{known} (default: {' '.join(attackers)})")
    several("--seeds", seeds, "SEED", type=int, help=f"default: {' '.join(map(str, seeds))}")
    parser.add_argument(
        "--queries", type=int, default=1600, help="budget of every attacker that queries (1600)"
    )
    parser.add_argument(
        "--draws", type=int, default=8, help="of the others, as in table3; the first is used (8)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--backend", default="loky", help=f"{' or '.join(BACKENDS)} (loky)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("recattack-results/table3"),
        metavar="DIR",
        help="results of `recattack bench table3`, whose attacks are used and not made again",
    )
    parser.add_argument(
        "--archive", type=Path, metavar="FILE", help="table3's: results in it count as finished"
    )
    parser.add_argument("--report-only", action="store_true", help="run nothing, show what exists")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw pictures there")


def plans_of(args: argparse.Namespace, *, is_full: bool) -> list[Plan]:
    """Return the plans that the options ask for; those that are missing are made, unless `--report-only`.

    Args:
        args: What `add_plan_options` declares.
        is_full: Whether cells that are made for it also measure full retraining; those that exist serve
            either way.

    Raises:
        UnknownNameError: If a victim or an attacker is unknown.
        ArgumentError: If a number is out of range, or no dataset is here.
        ArtifactError: If a plan is not what its result says, or the archive cannot be read.
    """
    if args.archive is not None:
        unpack(args.archive, args.out)
    cells = cells_of(argparse.Namespace(**{**vars(args), "no_full": not is_full}))
    found = {cell: read_plan(cell, args.out) for cell in cells}
    missing = [cell for cell, profiles in found.items() if profiles is None]
    if missing and not args.report_only:
        run_cells(missing, args.out, n_jobs=args.jobs, backend=args.backend)
        found |= {cell: read_plan(cell, args.out) for cell in missing}
    return [Plan(cell, profiles) for cell, profiles in found.items() if profiles is not None]


def read_plan(cell: Cell, folder: Path) -> FakeProfiles | None:
    """Return the plan of a finished cell, or `None` if there is none yet.

    What a cell measures beside does not matter: a plan is the same with and without full retraining.

    Raises:
        ArtifactError: If the file is missing, damaged, or not the plan that the result is about.
    """
    store = ResultStore(folder)
    for is_full in (cell.is_full, not cell.is_full):
        key = identity(replace(cell, is_full=is_full))
        result = store.get(key)
        if result is None:
            continue
        path = profiles_path(store, key)
        profiles = FakeProfiles.load(path)
        if profiles.content_hash != result["profiles_hash"]:
            raise ArtifactError(
                f"{path} must be the plan that {store.path(key).name} is about, but is another: "
                "remove both to have it made again"
            )
        return profiles
    return None


def check_plan(profiles: FakeProfiles, *, n_items: int, target_items: Sequence[int]) -> None:
    """Refuse a plan where its ids would mean other items than those it was made for.

    Args:
        profiles: With a header that says which, as `Attacker.plan` writes.
        n_items: Size of the catalogue here, targets included.
        target_items: Their ids here.

    Raises:
        ArgumentError: If the header says otherwise, or nothing.
    """
    here = {"n_items": n_items, "target_items": list(target_items)}
    for name, value in here.items():
        if profiles.header.get(name) != value:
            raise ArgumentError(
                f"{name} of the plan must be that of the platform, {value}, "
                f"got {profiles.header.get(name)}"
            )


@lru_cache(maxsize=256)
def platform_identity(platform: Platform) -> Mapping[str, object]:
    """Return everything that decides a platform, as plain JSON values."""
    dataset, protocol, victim, seed = platform
    cell = Cell(
        dataset=dataset,
        protocol=protocol,
        victim=victim,
        entry="random",  # any: what is about the attacker is left out
        seed=seed,
        n_queries=1,
        n_draws=1,
        is_full=False,
    )
    whole = identity(cell)
    return {name: whole[name] for name in PLATFORM_PARTS}
