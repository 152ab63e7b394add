"""`recattack bench table3`: every attacker against every victim, beside PoisonRec's Table III.

Cells run in processes of their own: on this machine (`--backend loky`, joblib's) or on a Ray cluster
(`--backend ray`; docs/benchmarks.md says how). Each finished cell is one JSON file, so a run that was killed
goes on where it was, and loses at most the cells that were running.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from joblib import delayed
from tqdm import tqdm

from agents.attackers import ATTACKERS
from agents.benchmark.archive import pack, unpack
from agents.benchmark.cells import (
    ENTRIES,
    Cell,
    fit_platform,
    identity,
    in_order,
    run_cell,
)
from agents.benchmark.comparison import report
from agents.benchmark.effects import measure_missing
from agents.benchmark.figures import (
    draw_anytime,
    draw_heat_map,
    draw_learning,
    draw_target_shares,
)
from agents.benchmark.page import write_page
from agents.benchmark.published import TABLE3_VICTIMS
from agents.benchmark.rows import Row, cells_in, read_rows
from agents.benchmark.sidecars import sidecar_path
from agents.benchmark.sources import STAND_INS, dataset_or_synthetic
from agents.benchmark.store import ResultStore
from agents.benchmark.workers import BACKENDS, share_the_machine, workers
from agents.interruption import raise_if_interrupted
from recattack_gym.core import ArgumentError, DatasetNotFoundError, UnknownNameError
from recattack_gym.core.checks import as_choice, as_count
from recattack_gym.victims import VICTIMS

logger = logging.getLogger(__name__)

DATASETS = ("steam", "ml-1m", "amazon-phone", "amazon-clothing")
"""Of PoisonRec's evaluation."""
DEFAULT_ATTACKERS = (
    "random", "popular", "middle", "power-item", "conslop", "appgrad", "random-search", "cross-entropy",
    "evolution", "poisonrec", "poisonrec-entropy", "poisonrec-warm", "sb3-ppo", "sb3-a2c",
    "sb3-recurrent-ppo", "poisonrec-random", "poisonrec-bplain", "poisonrec-plain", "sb3-ppo-grouped",
    "sb3-ppo-flat",
)  # fmt: skip
"""What is compared unless told otherwise: the paper's and what asks within a query budget."""
ACTION_SPACE_ENTRIES = ("poisonrec", "poisonrec-random", "poisonrec-bplain", "poisonrec-plain")
"""Those of PoisonRec's Figures 4 and 5."""
SMOKE = {
    "datasets": ["synthetic"],
    "victims": ["ItemPop", "CoVisitation", "BPR"],
    "attackers": ["random", "popular", "poisonrec"],
    "seeds": [0, 1],
    "queries": 64,
    "draws": 2,
    "protocol": "none",
}
"""What `--smoke` runs: everything, small."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `recattack bench table3`."""
    parser.add_argument(
        "--datasets", nargs="+", metavar="NAME", help=f"default: {' '.join(DATASETS)}"
    )
    parser.add_argument("--protocol", default="poisonrec", help='or "none" (default: poisonrec)')
    parser.add_argument(
        "--victims", nargs="+", metavar="NAME", help=f"default: {' '.join(TABLE3_VICTIMS)}"
    )
    parser.add_argument(
        "--attackers",
        nargs="+",
        default=list(DEFAULT_ATTACKERS),
        metavar="NAME",
        help=f"{', '.join(ENTRIES)} (default: {' '.join(DEFAULT_ATTACKERS)})",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument(
        "--queries", type=int, default=1600, help="budget of every attacker that queries (1600)"
    )
    parser.add_argument(
        "--draws", type=int, default=8, help="plans of the others, which are averaged (8)"
    )
    parser.add_argument(
        "--no-full", action="store_true", help="do not retrain victims from scratch on the plans"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--backend", default="loky", help=f"{' or '.join(BACKENDS)} (loky)")
    parser.add_argument("--out", type=Path, default=Path("recattack-results/table3"))
    parser.add_argument("--report-only", action="store_true", help="run nothing, show what exists")
    parser.add_argument(
        "--effects",
        action=argparse.BooleanOptionalAction,
        help="measure detectors and side effects of attacks that are stored without; it is done unless "
        "--report-only is given or --no-effects",
    )
    parser.add_argument(
        "--archive",
        type=Path,
        metavar="FILE",
        help="results in this .zip count as finished, and it is rewritten with what is finished then, unless "
        "--report-only is given without --effects",
    )
    parser.add_argument(
        "--everything",
        action="store_true",
        help="with --report-only: report all that exists, whatever the other options ask for but --datasets "
        "and --victims, where these are given",
    )
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw pictures there")
    parser.add_argument(
        "--write-docs",
        type=Path,
        metavar="FILE",
        help="write the report there",
    )
    parser.add_argument("--smoke", action="store_true", help="everything, small: under a minute")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Run what is missing, and report everything that was asked for and exists."""
    if args.smoke:
        for name, value in SMOKE.items():
            setattr(args, name, value)
    if args.everything and not args.report_only:
        raise ArgumentError("--everything must go with --report-only: it says what to report")
    asked_for = [] if args.everything else cells_of(args)
    check_places(args, is_adding=not args.report_only or bool(args.effects))
    if args.archive is not None and (args.report_only or args.archive.exists()):
        unpack(args.archive, args.out)
    cells = _existing(args.out, args.datasets, args.victims) if args.everything else asked_for
    if not args.report_only:
        run_cells(cells, args.out, n_jobs=args.jobs, backend=args.backend)
    rows = read_rows(cells, args.out)
    is_measuring = not args.report_only if args.effects is None else args.effects
    if is_measuring and measure_missing(rows, n_jobs=args.jobs, backend=args.backend):
        rows = read_rows(cells, args.out)
    if args.archive is not None and (is_measuring or not args.report_only):
        everything = read_rows(cells_in(args.out, every_budget=True), args.out)
        pack((file for row in everything for file in _files_of(row)), args.archive)
    text = report(rows) if rows else ""
    pictures = _draw(rows, args.figures) if args.figures is not None else []
    if args.write_docs is not None and rows:
        write_page(
            args.write_docs,
            title="PoisonRec's Table III, repeated",
            command=_command(args),
            text=text,
            pictures=pictures,
        )
    minutes = sum(float(str(row.result["cpu_seconds"])) for row in rows) / 60
    done = f"{len(rows)} of {len(cells)} cells are in {args.out}; attacking took {minutes:.0f} CPU minutes"
    return {
        "table": f"{text}\n\n{done}",
        "n_cells": len(cells),
        "n_finished": len(rows),
        "rec_num": [
            {
                "dataset": row.cell.dataset,
                "victim": row.cell.victim,
                "attacker": row.cell.entry,
                "seed": row.cell.seed,
                "rec_num": row.rec_num,
                "full_rec_num": row.result["full_rec_num"],
                "n_queries": row.result["n_queries"],
                "is_current": row.is_current,
                "effects": row.effects,
            }
            for row in rows
        ],
        "figures": [str(path) for path in pictures],
    }


def check_places(args: argparse.Namespace, *, is_adding: bool) -> None:
    """Refuse, before anything is run, what could not be written after it.

    Args:
        args: With `out`, `archive`, `figures` and `write_docs`.
        is_adding: Whether something is added to the results that are there.

    Raises:
        ArgumentError: If a folder or a file that is asked for cannot be made.
    """
    if args.out.exists() and not args.out.is_dir():
        raise ArgumentError(f"--out must name a folder, got the file {args.out}")
    if is_adding or args.archive is not None:
        _check_folder("--out must name a folder", args.out)
    if args.figures is not None:
        _check_folder("--figures must name a folder", args.figures)
    for option, path, is_written in (
        ("--archive", args.archive, is_adding),
        ("--write-docs", args.write_docs, True),
    ):
        if path is not None and is_written:
            if path.is_dir():
                raise ArgumentError(f"{option} must name a file, got the folder {path}")
            _check_folder(f"{option} must name a file in a folder", path.parent)


def _check_folder(told: str, folder: Path) -> None:
    """Make a folder, and see whether a file can be made in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ArgumentError(
            f"{told} that can be written to, got {folder}: {error.strerror}"
        ) from error


def _files_of(row: Row) -> tuple[Path, Path, Path]:
    """Return the files of a finished cell: its result, its plan, and what was measured beside."""
    return row.path, row.path.with_suffix(".npz"), sidecar_path(row.path)


def _draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw every picture of every dataset that there are rows for."""
    drawn = []
    for dataset in dict.fromkeys(row.cell.label for row in rows):
        own = [row for row in rows if row.cell.label == dataset]
        asking = [row for row in own if row.result["curve"]]
        attackers = [row for row in asking if row.cell.entry in ATTACKERS]
        spaces = [row for row in asking if row.cell.entry in ACTION_SPACE_ENTRIES]
        for name, draw, some in (
            ("heat-map", draw_heat_map, own),
            ("anytime", draw_anytime, attackers),
            ("learning", draw_learning, spaces),
            ("target-shares", draw_target_shares, spaces),
        ):
            several = len({row.cell.entry for row in some}) > 1
            if some and (several or draw is not draw_learning):
                path = folder / f"table3-{dataset}-{name}.png"
                draw(some, path)
                drawn.append(path)
    return drawn


def _existing(
    folder: Path, datasets: Sequence[str] | None, victims: Sequence[str] | None
) -> list[Cell]:
    """Return the cells that a folder has; of some datasets and victims, or of all."""
    return [
        cell
        for cell in cells_in(folder)
        if (datasets is None or cell.dataset in datasets)
        and (victims is None or cell.victim in victims)
    ]


def _command(args: argparse.Namespace) -> str:
    """Return the command that reports these cells."""
    if args.everything:
        given = "--report-only --everything" + "".join(
            f" --{name} {' '.join(some)}"
            for name, some in (("datasets", args.datasets), ("victims", args.victims))
            if some
        )
    else:
        given = (
            f"--datasets {' '.join(args.datasets or DATASETS)} --protocol {args.protocol} "
            f"--victims {' '.join(args.victims or TABLE3_VICTIMS)} --attackers {' '.join(args.attackers)} "
            f"--seeds {' '.join(map(str, args.seeds))} --queries {args.queries} --draws {args.draws} "
            f"{'--no-full ' if args.no_full else ''}--jobs 2"
        )
    places = "".join(
        f" --{name.replace('_', '-')} {getattr(args, name)}"
        for name in ("archive", "figures", "write_docs")
        if getattr(args, name) is not None
    )
    return f"recattack bench table3 {given}{places}"


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """Return the cells that the options ask for, on the datasets that are on this machine.

    Raises:
        UnknownNameError: If a victim or an attacker is unknown.
        ArgumentError: If a number is out of range, or no dataset is here.
    """
    victims = args.victims or TABLE3_VICTIMS
    for victim in victims:
        if victim not in VICTIMS:
            raise UnknownNameError("victim", victim, VICTIMS)
    for entry in args.attackers:
        if entry not in ENTRIES:
            raise UnknownNameError("attacker", entry, ENTRIES)
    for name in ("queries", "draws", "jobs"):
        as_count(f"--{name}", getattr(args, name))
    for seed in args.seeds:
        as_count("--seeds", seed, at_least=0)
    as_choice("--backend", args.backend, BACKENDS)
    return [
        Cell(
            dataset=dataset,
            protocol=protocol,
            victim=victim,
            entry=entry,
            seed=seed,
            n_queries=args.queries,
            n_draws=args.draws,
            is_full=not args.no_full,
        )
        for dataset, protocol in datasets_here(args.datasets or DATASETS, args.protocol)
        for victim in victims
        for entry in args.attackers
        for seed in args.seeds
    ]


def datasets_here(names: Sequence[str], protocol: str) -> list[tuple[str, str | None]]:
    """Return which of some datasets there are on this machine, each with its protocol.

    A generated log that stands in for a dataset goes by its own name, so that nobody takes its numbers
    for the dataset's.

    Args:
        names: Datasets.
        protocol: Of all of them; `"none"` for none.

    Raises:
        UnknownNameError: If there is no such dataset.
        ArgumentError: If none is here.
    """
    wanted = None if protocol == "none" else protocol
    found: list[tuple[str, str | None]] = []
    for name in names:
        try:
            dataset = dataset_or_synthetic(name, wanted)
        except DatasetNotFoundError as error:
            logger.warning("%s is left out: %s", name, error)
            continue
        is_stand_in = dataset.name == STAND_INS.get(name)
        found.append((dataset.name, None) if is_stand_in else (name, wanted))
    if not found:
        raise ArgumentError(
            f"--datasets must name one that is on this machine, got {', '.join(names)}: "
            "see `recattack data info NAME`"
        )
    return list(dict.fromkeys(found))


def run_cells(cells: Sequence[Cell], folder: Path, *, n_jobs: int, backend: str = "loky") -> None:
    """Run the cells that are not stored yet, `n_jobs` at a time, with a progress bar.

    Args:
        cells: What to measure.
        folder: Where results are and go.
        n_jobs: Processes, each on one thread.
        backend: `"loky"` for processes of this machine, `"ray"` for a Ray cluster.

    Raises:
        ArgumentError: If Ray is asked for and not installed.
        KeyboardInterrupt: If interrupted; finished cells are kept.
    """
    folder = folder.resolve()  # a worker may run elsewhere
    store = ResultStore(folder)
    missing = [cell for cell in in_order(cells) if store.get(identity(cell)) is None]
    platforms = list(dict.fromkeys(cell.platform for cell in missing))
    with workers(n_jobs, backend) as parallel:
        fits = parallel(delayed(_fit)(platform, n_jobs) for platform in platforms)
        for _ in tqdm(fits, total=len(platforms), desc="clean victims", unit="fit"):
            raise_if_interrupted()
        attacks = parallel(delayed(_run)(cell, folder, n_jobs) for cell in missing)
        for _ in tqdm(attacks, total=len(missing), desc="attacks", unit="cell"):
            raise_if_interrupted()


def _fit(platform: tuple[str, str | None, str, int], n_jobs: int) -> None:
    share_the_machine(n_jobs)
    fit_platform(platform)


def _run(cell: Cell, folder: Path, n_jobs: int) -> None:
    share_the_machine(n_jobs)
    run_cell(cell, folder)
