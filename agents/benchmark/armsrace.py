"""`recattack bench armsrace`: an attacker and a detector that learn in turns.

In every round an attacker learns against the platform as it is; then the platform's detector is retrained on
the fake users of all rounds so far, which audits are taken to find afterwards (`simulator.arms_race`).
Beside it stand a platform without a detector, and one whose detector has learnt once, from rules of thumb.
Every race is one JSON file in `--out`, so a run that was killed goes on where it was.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from agents.attackers import ATTACKERS
from agents.benchmark.armsrace_figure import draw_race
from agents.benchmark.armsrace_race import OPPONENTS, Race, read_races, run_races
from agents.benchmark.armsrace_report import RoundRow, final_means, report, rows_of
from agents.benchmark.page import write_page
from agents.benchmark.sources import is_here
from agents.benchmark.workers import BACKENDS
from recattack_gym.core import ArgumentError, DatasetNotFoundError, Knowledge, UnknownNameError
from recattack_gym.core.checks import as_count, as_real
from recattack_gym.core.files import atomic_write
from recattack_gym.defenses.held_out import RETRAINABLE
from recattack_gym.victims import VICTIMS

ATTACKERS_BY_DEFAULT = ("poisonrec", "evolution", "popular")
"""The paper's learner, a cheap one without a policy, and a rule of thumb as reference."""
SMOKE: Mapping[str, object] = {
    "dataset": "synthetic",
    "protocol": "none",
    "victims": ["CoVisitation"],
    "attackers": ["poisonrec", "random-search", "popular"],
    "seeds": [0, 1],
    "rounds": 3,
    "queries": 16,
    "draws": 2,
}
"""What `--smoke` runs: everything, small."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `recattack bench armsrace`."""

    def several(name: str, default: Sequence[object], text: str, **more: object) -> None:
        given = " ".join(map(str, default))
        parser.add_argument(
            name, nargs="+", default=list(default), help=f"{text} (default: {given})", **more  # type: ignore[arg-type]  # passed on
        )  # fmt: skip

    parser.add_argument("--dataset", default="steam", help="default: steam")
    parser.add_argument("--protocol", default="poisonrec", help='or "none" (default: poisonrec)')
    several("--victims", ("BPR", "CoVisitation"), "who is attacked", metavar="NAME")
    several(
        "--attackers",
        ATTACKERS_BY_DEFAULT,
        "black-box attackers that know no platform",
        metavar="NAME",
    )
    several("--opponents", OPPONENTS, "what defends", metavar="NAME", choices=OPPONENTS)
    several("--seeds", (0, 1, 2), "of platform, attacker and detector", metavar="SEED", type=int)
    for name, default, text in (
        ("--rounds", 6, "detectors, the first one included"),
        ("--queries", 96, "of each round, of attackers that query"),
        ("--draws", 4, "attacks of each round, of the others"),
        ("--max-attacks", 20, "past attacks that a detector learns from"),
        ("--jobs", 1, "processes"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{text} ({default})")
    parser.add_argument(
        "--detector", default="svm-quick", help=f"{', '.join(RETRAINABLE)} (default: svm-quick)"
    )
    parser.add_argument("--share", type=float, default=0.01, help="of all accounts, flagged (0.01)")
    parser.add_argument(
        "--audit-rate", type=float, default=1.0, help="share of past fake users that are found (1)"
    )
    parser.add_argument("--backend", default="loky", help=f"{' or '.join(BACKENDS)} (loky)")
    parser.add_argument(
        "--out", type=Path, default=Path("recattack-results/armsrace"), metavar="DIR",
        help="finished races; a run resumes from there",
    )  # fmt: skip
    parser.add_argument("--report-only", action="store_true", help="run nothing, show what exists")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw pictures there")
    parser.add_argument(
        "--write-docs", type=Path, metavar="FILE",
        help="write the report there (.md, and .json beside it)",
    )  # fmt: skip
    parser.add_argument("--smoke", action="store_true", help="everything, small: under a minute")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Run the races that are missing, and report everything that was asked for and exists."""
    if args.smoke:
        for name, value in SMOKE.items():
            setattr(args, name, value)
    _check(args)
    races, folder = races_of(args), args.out.resolve()
    if not args.report_only:
        run_races(races, folder, n_jobs=args.jobs, backend=args.backend)
    found = read_races(races, folder)
    rows = rows_of(found)
    text = report(rows)
    pictures = _draw(rows, args.figures) if args.figures is not None else []
    if args.write_docs is not None and rows:
        _write_docs(args, text, rows, pictures)
    done = f"{len(found)} of {len(races)} races are in {folder}"
    return {
        "table": "\n\n".join([text, done, *(f"drawn: {path}" for path in pictures)]).strip(),
        "rounds": rows,
        **final_means(rows),
        "n_races": len(races),
        "n_finished": len(found),
        "figures": [str(path) for path in pictures],
    }


def _check(args: argparse.Namespace) -> None:
    """Refuse, before anything is run, what would fail after it.

    Raises:
        UnknownNameError: If a name is unknown.
        ArgumentError: If a number is out of range, or an attacker is no black box.
        DatasetNotFoundError: If the dataset is not on this machine.
    """
    for names, kind, known in (
        (args.victims, "victim", VICTIMS),
        (args.attackers, "attacker", ATTACKERS),
        ([args.detector], "detector that can be retrained", RETRAINABLE),
        ([args.backend], "backend", BACKENDS),
    ):
        for name in names:
            if name not in known:
                raise UnknownNameError(kind, name, tuple(known))
    for name in args.attackers:
        needed = ATTACKERS[name].knowledge
        if needed is not Knowledge.BLACK_BOX:
            raise ArgumentError(
                f"--attackers must be black boxes, got {name!r}, which needs {needed}"
            )
    for name in ("rounds", "queries", "draws", "max_attacks", "jobs"):
        as_count(f"--{name.replace('_', '-')}", getattr(args, name))
    for seed in args.seeds:
        as_count("--seeds", seed, at_least=0)
    as_real("--share", args.share, above=0.0, at_most=0.5)
    as_real("--audit-rate", args.audit_rate, above=0.0, at_most=1.0)
    if not is_here(args.dataset):
        raise DatasetNotFoundError(
            f"--dataset {args.dataset!r} is not on this machine: see docs/datasets.md, "
            "or take a generated one such as synthetic-steam"
        )


def races_of(args: argparse.Namespace) -> list[Race]:
    """Return the races that the options ask for, cheap victims first."""
    protocol = None if args.protocol == "none" else args.protocol
    asked = product(
        sorted(dict.fromkeys(args.victims), key=list(VICTIMS).index),
        dict.fromkeys(args.seeds),
        dict.fromkeys(args.attackers),
        dict.fromkeys(args.opponents),
    )
    return [
        Race(
            dataset=args.dataset,
            protocol=protocol,
            victim=victim,
            attacker=attacker,
            opponent=opponent,
            seed=seed,
            n_rounds=args.rounds,
            n_queries=args.queries,
            n_draws=args.draws,
            detector=args.detector,
            share=args.share,
            max_attacks=args.max_attacks,
            audit_rate=args.audit_rate,
        )
        for victim, seed, attacker, opponent in asked
    ]


def _draw(rows: Sequence[RoundRow], folder: Path) -> list[Path]:
    """Draw one picture per victim."""
    drawn = []
    for dataset, victim in dict.fromkeys((row["dataset"], row["victim"]) for row in rows):
        path = folder / f"armsrace-{dataset}-{victim}.png"
        draw_race([row for row in rows if row["victim"] == victim], path)
        drawn.append(path)
    return drawn


def _write_docs(
    args: argparse.Namespace, text: str, rows: Sequence[RoundRow], pictures: Sequence[Path]
) -> None:
    """Write the report with the command that made it, and the numbers behind it as JSON beside it."""
    command = (
        f"recattack bench armsrace --dataset {args.dataset} --protocol {args.protocol} "
        f"--victims {' '.join(args.victims)} --attackers {' '.join(args.attackers)} "
        f"--opponents {' '.join(args.opponents)} --seeds {' '.join(map(str, args.seeds))} "
        f"--rounds {args.rounds} --queries {args.queries} --draws {args.draws} "
        f"--detector {args.detector} --share {args.share} --max-attacks {args.max_attacks} "
        f"--audit-rate {args.audit_rate} --jobs 2"
    )
    write_page(
        args.write_docs,
        title="The arms race: a detector retrained on past attacks",
        command=command,
        text=text,
        pictures=pictures,
    )
    with atomic_write(args.write_docs.with_suffix(".json")) as stream:
        stream.write(json.dumps({"command": command, "rounds": rows}, indent=0).encode())
