"""`recattack bench kkt`: attacks on factorisation models through their optimality conditions.

The settings of Figures 1 to 3, 5 and 6 of Li, Wang, Singh & Vorobeychik, "Data Poisoning Attacks on
Factorization-Based Collaborative Filtering", NIPS 2016, on ml-100k and on a part of ml-1m of 1,000 users and
1,700 items: what fake users do to the victims' predictions (RMSE against the clean prediction, average
rating of a target), against their number, their goal (mu_1, mu_2) and beta; how well the paper's
gradient agrees with the exact one; how long a gradient takes. Every attack is one JSON file, so a run
that was killed goes on where it was.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from agents.benchmark.kkt_measure import MEASURES
from agents.benchmark.kkt_pieces import ATTACKS, DATASETS, RATING_VICTIMS, SMOKE, all_pieces
from agents.benchmark.kkt_report import (
    attacks_of,
    betas_of,
    claims,
    draw,
    report,
    summary,
    write_docs,
)
from agents.benchmark.store import ResultStore
from agents.interruption import raise_if_interrupted
from recattack_gym.core import ArgumentError, UnknownNameError
from recattack_gym.core.checks import as_count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `recattack bench kkt`."""
    several = parser.add_argument
    several("--datasets", nargs="+", default=list(DATASETS), help=" ".join(DATASETS))
    several("--victims", nargs="+", default=list(RATING_VICTIMS), help="default: both")
    several("--attacks", nargs="+", default=list(ATTACKS), help="default: all")
    several(
        "--sizes", nargs="+", type=float, default=[0.01, 0.03, 0.1],
        help="fake users per genuine user (0.01 0.03 0.1)",
    )  # fmt: skip
    several(
        "--betas", nargs="+", type=float, default=[0.0, 0.1, 0.6, 2.0, 10.0],
        help="of SGLD against ALS, at the middle size (0 0.1 0.6 2 10)",
    )  # fmt: skip
    several("--seeds", nargs="+", type=int, default=[0], help="platforms and attacks (0)")
    several("--items-per-user", type=int, default=25, help="the paper's B (25)")
    several("--steps", type=int, default=15, help="of PGA and SGLD against ALS (15)")
    several("--nuclear-steps", type=int, default=8, help="the same against NuclearNorm (8)")
    several("--out", default="recattack-results/kkt", help="finished pieces; resumes")
    several("--figures", type=Path, metavar="DIR", help="draw pictures there")
    several("--write-docs", type=Path, metavar="FILE", help="write the report there (.md, .json)")
    several("--report-only", action="store_true", help="measure nothing, report what there is")
    several("--smoke", action="store_true", help="everything, small: under a minute")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure what is missing and report everything that was asked for and exists."""
    if args.smoke:
        args.datasets, args.sizes, args.betas = [SMOKE], [0.1], [0.0, 0.6]
        args.items_per_user, args.steps, args.nuclear_steps = 10, 5, 5
    _check(args)
    pieces = all_pieces(args)
    store = ResultStore(args.out)
    missing = [piece for piece in pieces if store.get(piece) is None]
    if not args.report_only:
        for piece in tqdm(missing, desc="bench kkt", unit="piece"):
            raise_if_interrupted()
            store.put(piece, MEASURES[str(piece["kind"])](piece))
    rows = [{**p, **r} for p in pieces if (r := store.get(p)) is not None]
    pictures = draw(rows, args.figures) if args.figures is not None else []
    text = report(rows)
    if args.write_docs is not None:
        write_docs(args, text, rows, pictures)
    return {
        "table": f"{text}\n\n{len(rows)} of {len(pieces)} pieces are in {args.out}",
        "n_pieces": len(pieces),
        "n_finished": len(rows),
        "victims": {name: summary(name, rows) for name in args.victims},
        "claims": claims(attacks_of(rows), betas_of(rows)),
        "figures": [str(path) for path in pictures],
    }


def _check(args: argparse.Namespace) -> None:
    for name, known in (
        ("datasets", (*DATASETS, SMOKE)), ("victims", RATING_VICTIMS), ("attacks", ATTACKS)
    ):  # fmt: skip
        for given in getattr(args, name):
            if given not in known:
                raise UnknownNameError(name.removesuffix("s"), given, known)
    for name in ("items_per_user", "steps", "nuclear_steps"):
        as_count(f"--{name.replace('_', '-')}", getattr(args, name))
    for size in args.sizes:
        if not 0 < size <= 1:
            raise ArgumentError(f"--sizes must lie in (0, 1], got {size}")
    for beta in args.betas:
        if not beta >= 0:
            raise ArgumentError(f"--betas must be >= 0, got {beta}")
