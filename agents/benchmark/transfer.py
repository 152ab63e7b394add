"""`recattack bench transfer`: attacks made against one victim, injected into the others.

An attacker may not know which ranker a platform runs. Attacks are those of `recattack bench table3`: what is
in `--out` is used, what is missing is made there. Each is then injected into every victim of the same dataset
and seed: the same log, target items and candidate lists, but that victim's own clean state. Every evaluation
is one JSON file in the folder `transfer` beside, so a run that was killed goes on where it was. Plans of
attackers that look at the log alone (Random, Popular...) do not depend on the victim that they were made
against, so their rows are equal; they are what a learner's have to be compared with.
"""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from joblib import delayed
from numpy.typing import NDArray
from tqdm import tqdm

from agents.benchmark.cells import fit_platform, platform_simulator
from agents.benchmark.page import write_page
from agents.benchmark.plans import (
    Plan,
    Platform,
    add_plan_options,
    check_plan,
    plans_of,
    platform_identity,
)
from agents.benchmark.store import ResultStore
from agents.benchmark.table3 import SMOKE
from agents.benchmark.transfer_figure import draw_transfer
from agents.benchmark.transfer_table import Evaluation, Matrix, matrices, report
from agents.benchmark.workers import share_the_machine, workers
from agents.interruption import raise_if_interrupted
from agents.reports import versions
from recattack_gym.core import FakeProfiles
from recattack_gym.core.files import atomic_write
from recattack_gym.simulator import PlatformSimulator
from recattack_gym.victims import VICTIMS
from recattack_gym.victims.base import Retrain

ATTACKERS = ("popular", "random-search", "poisonrec", "poisonrec-warm")
"""What is compared by default: a rule of thumb, which knows no victim, and learners."""
FOLDER = "transfer"
"""Where evaluations are, in the folder of the cells."""


@dataclass(frozen=True)
class Piece:
    """One evaluation on a platform."""

    key: Mapping[str, object]
    """What decides it: `evaluation_identity`."""
    profiles: FakeProfiles
    """What is injected."""
    retrain: Retrain
    """How the victim is retrained."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `recattack bench transfer`."""
    add_plan_options(parser, datasets=("steam",), attackers=ATTACKERS, seeds=(0, 1, 2))
    parser.add_argument(
        "--full", action="store_true", help="evaluate under full retraining, too (slow)"
    )
    parser.add_argument(
        "--write-docs",
        type=Path,
        metavar="FILE",
        help="write the report there (.md, and .json beside it)",
    )
    parser.add_argument("--smoke", action="store_true", help="everything, small: under a minute")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Make and evaluate what is missing, and report everything that was asked for and exists."""
    if args.smoke:
        for name, value in SMOKE.items():
            setattr(args, name, value)
    made = plans_of(args, is_full=args.full)
    retrains: tuple[Retrain, ...] = ("finetune", "full") if args.full else ("finetune",)
    folder = args.out.resolve() / FOLDER
    if not args.report_only:
        evaluate_all(made, args.victims, retrains, folder, n_jobs=args.jobs, backend=args.backend)
    found = read_evaluations(made, args.victims, retrains, folder)
    tables = matrices(found)
    pictures = _draw(tables, args.figures) if args.figures is not None else []
    text = report(tables)
    rows = [_as_row(each) for each in found]
    if args.write_docs is not None and found:
        _write_docs(args, text, rows, pictures)
    n_wanted = len(made) * len(args.victims) * len(retrains)
    done = f"{len(found)} of {n_wanted} evaluations of {len(made)} attacks are in {folder}"
    return {
        "table": f"{text}\n\n{done}".strip(),
        "n_attacks": len(made),
        "n_evaluations": n_wanted,
        "n_finished": len(found),
        "transfer": rows,
        "shares": [
            {
                "dataset": matrix.dataset,
                "attacker": matrix.attacker,
                "retrain": matrix.retrain,
                "victims": list(matrix.victims),
                "made_against_by_injected_into": _as_json(matrix.shares),
            }
            for matrix in tables
        ],
        "figures": [str(path) for path in pictures],
    }


def evaluate_all(
    made: Sequence[Plan],
    victims: Sequence[str],
    retrains: Sequence[Retrain],
    folder: Path,
    *,
    n_jobs: int,
    backend: str = "loky",
) -> None:
    """Inject every plan into every victim, platform by platform, `n_jobs` at a time; skip what is stored.

    Args:
        made: The plans.
        victims: Names of those that they are injected into.
        retrains: How these are retrained.
        folder: Of the `ResultStore`.
        n_jobs: Processes, each on one thread.
        backend: As in `workers`.

    Raises:
        ArgumentError: If a plan does not fit a platform.
        KeyboardInterrupt: If interrupted; finished evaluations are kept.
    """
    store = ResultStore(folder)
    missing: dict[Platform, dict[Path, Piece]] = {}
    for plan, victim, retrain in product(made, victims, retrains):
        platform = plan.platform_of(victim)
        key = evaluation_identity(platform, plan.profiles, retrain)
        if store.get(key) is None:  # equal plans are one piece
            pieces = missing.setdefault(platform, {})
            pieces[store.path(key)] = Piece(key, plan.profiles, retrain)
    order = sorted(
        missing, key=lambda platform: list(VICTIMS).index(platform[2])
    )  # cheap ones first
    tasks = [(platform, list(missing[platform].values())) for platform in order]
    with workers(n_jobs, backend) as run_tasks:
        fits = run_tasks(delayed(_fit)(platform, n_jobs) for platform, _ in tasks)
        for _ in tqdm(fits, total=len(tasks), desc="clean victims", unit="fit"):
            raise_if_interrupted()
        finished = run_tasks(delayed(_evaluate)(*task, folder, n_jobs) for task in tasks)
        for _ in tqdm(finished, total=len(tasks), desc="injections", unit="platform"):
            raise_if_interrupted()


def _fit(platform: Platform, n_jobs: int) -> None:
    share_the_machine(n_jobs)
    fit_platform(platform)


def _evaluate(platform: Platform, pieces: Sequence[Piece], folder: Path, n_jobs: int) -> None:
    share_the_machine(n_jobs)
    store = ResultStore(folder)
    simulator = platform_simulator(platform)
    for piece in pieces:
        raise_if_interrupted()
        store.put(piece.key, evaluate(simulator, piece.profiles, piece.retrain))


def evaluate(
    simulator: PlatformSimulator, profiles: FakeProfiles, retrain: Retrain
) -> dict[str, object]:
    """Inject a plan into a platform that it need not have been made against.

    Args:
        simulator: The platform.
        profiles: With the header that `Attacker.plan` writes.
        retrain: How the platform retrains.

    Returns:
        Plain JSON values; `lists` is a digest of the users' candidate lists.

    Raises:
        ArgumentError: If the plan was made for other items or targets.
    """
    targets = simulator.target_items.tolist()
    check_plan(profiles, n_items=simulator.n_items, target_items=targets)
    exposure = simulator.exposure(profiles, retrain=retrain)[0]
    return {
        "rec_num": int(exposure.sum()),
        "target_exposure": exposure.tolist(),
        "clean_rec_num": simulator.clean_rec_num,
        "max_rec_num": simulator.max_rec_num,
        "target_items": targets,
        "n_items": simulator.n_items,
        "lists": lists_digest(simulator),
        "versions": versions(),
    }


def lists_digest(simulator: PlatformSimulator) -> str:
    """Return a hex digest of what is ranked for every user: equal on platforms that can be compared."""
    candidates = simulator.candidates
    digest = hashlib.sha256(f"{simulator.n_users} {simulator.n_items} {simulator.k}".encode())
    digest.update(b"-" if candidates is None else np.ascontiguousarray(candidates).tobytes())
    return digest.hexdigest()[:16]


def evaluation_identity(
    platform: Platform, profiles: FakeProfiles, retrain: Retrain
) -> dict[str, object]:
    """Return everything that decides an evaluation, as plain JSON values; not who made the plan."""
    dataset, _, victim, seed = platform
    return {
        "piece": f"{dataset}-{victim}-{seed}-{retrain}",
        **platform_identity(platform),
        "retrain": retrain,
        "profiles": profiles.content_hash,
    }


def read_evaluations(
    made: Sequence[Plan], victims: Sequence[str], retrains: Sequence[Retrain], folder: Path
) -> list[Evaluation]:
    """Return the finished ones of all evaluations of some plans.

    Args:
        made: The plans.
        victims: Names of those that they are injected into.
        retrains: How these are retrained.
        folder: Of the `ResultStore`.
    """
    store = ResultStore(folder)
    found = []
    for retrain, plan, victim in product(retrains, made, victims):
        key = evaluation_identity(plan.platform_of(victim), plan.profiles, retrain)
        result = store.get(key)
        if result is not None:
            found.append(Evaluation(plan, victim, retrain, result))
    return found


def _draw(tables: Sequence[Matrix], folder: Path) -> list[Path]:
    """Draw one picture per dataset and way of retraining."""
    drawn = []
    for dataset, retrain in dict.fromkeys((m.dataset, m.retrain) for m in tables):
        path = folder / f"transfer-{dataset}-{retrain}.png"
        draw_transfer([m for m in tables if (m.dataset, m.retrain) == (dataset, retrain)], path)
        drawn.append(path)
    return drawn


def _as_row(each: Evaluation) -> dict[str, object]:
    cell = each.plan.cell
    return {
        "dataset": cell.dataset,
        "attacker": cell.entry,
        "seed": cell.seed,
        "made_against": cell.victim,
        "injected_into": each.tested_on,
        "retrain": each.retrain,
        "rec_num": each.rec_num,
        "clean_rec_num": each.clean_rec_num,
        "max_rec_num": each.result["max_rec_num"],
        "profiles": each.plan.profiles.content_hash,
    }


def _as_json(shares: NDArray[np.float64]) -> list[list[float | None]]:
    """Return rows of numbers; JSON has no NaN."""
    return [[round(float(x), 4) if np.isfinite(x) else None for x in row] for row in shares]


def _write_docs(
    args: argparse.Namespace,
    text: str,
    rows: Sequence[Mapping[str, object]],
    pictures: Sequence[Path],
) -> None:
    """Write the report with the command that made it, and the figures behind it as JSON beside it."""
    command = (
        f"recattack bench transfer --datasets {' '.join(args.datasets)} --protocol {args.protocol} "
        f"--victims {' '.join(args.victims)} --attackers {' '.join(args.attackers)} "
        f"--seeds {' '.join(map(str, args.seeds))} --queries {args.queries} --draws {args.draws} "
        f"{'--full ' if args.full else ''}--jobs 2"
    )
    write_page(
        args.write_docs,
        title="Attacks on victims that they were not made against",
        command=command,
        text=text,
        pictures=pictures,
    )
    with atomic_write(args.write_docs.with_suffix(".json")) as stream:
        stream.write(json.dumps({"command": command, "evaluations": rows}, indent=0).encode())
