"""`recattack bench defense`: which defence helps, against what, and at what price.

Two settings. On PoisonRec's platforms the attacks of `recattack bench table3` are injected into the victim
that they were made against, defended by detectors that keep suspicious accounts out of training, by robust
training, or by both. In the setting of the papers on robust training (`defense_field`), victims are trained
from scratch on a log with 1 % fake users. Everything that is measured is one JSON file in the folder
`defense` of `--out`, so a run that was killed goes on where it was.
"""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from agents.attackers import ATTACKERS
from agents.benchmark.cells import ENTRIES, Cell
from agents.benchmark.defense_field import (
    FIELD_ATTACKERS,
    NO_ATTACK,
    Attack,
    Trial,
    attack_of,
    plan_of,
    read_trials,
    run_trials,
    trained_part,
    trials_of,
)
from agents.benchmark.defense_figure import draw_defense
from agents.benchmark.defense_plans import (
    Outcome,
    attack_all,
    evaluate_all,
    log_of,
    n_wanted,
    read_attacks,
    read_outcomes,
    seen_by_detectors,
)
from agents.benchmark.defense_report import (
    FieldRow,
    Learned,
    PlanRow,
    Seen,
    field_means,
    platform_means,
    report,
    what_was_told,
)
from agents.benchmark.field_learners import LEARNERS
from agents.benchmark.gp_platform import lab
from agents.benchmark.page import write_page
from agents.benchmark.plans import Plan, add_plan_options, plans_of
from agents.benchmark.protections import (
    CLICK_DETECTORS,
    NONE,
    Protection,
    default_labels,
    protections_of,
    trainings,
)
from agents.benchmark.store import ResultStore
from agents.benchmark.table3 import check_places
from agents.interruption import raise_if_interrupted
from agents.search import SearchAttacker
from recattack_gym.core import ArgumentError, DatasetNotFoundError, UnknownNameError
from recattack_gym.core.checks import as_count
from recattack_gym.core.files import atomic_write
from recattack_gym.victims import VICTIMS
from recattack_gym.victims.base import Retrain

logger = logging.getLogger(__name__)

PLAN_ATTACKERS = (
    "popular",
    "middle",
    "random-search",
    "poisonrec",
    "poisonrec-warm",
    "evolution",
    "sb3-recurrent-ppo",
)
"""What is compared by default on PoisonRec's platforms: rules of thumb and learners."""
FOLDER = "defense"
"""Where results are, in the folder of the cells."""
SMOKE: Mapping[str, object] = {
    "datasets": ["synthetic"],
    "protocol": "none",
    "victims": ["ItemPop", "BPR"],
    "attackers": ["popular", "random-search"],
    "seeds": [0],
    "queries": 16,
    "draws": 1,
    "field_datasets": ["synthetic"],
    "field_victims": ["BPR"],
    "field_attackers": ["random-sets", "bandwagon-sets", "dpa2dl", "revadv", "poisonrec"],
    "field_queries": 8,
    "epochs": 1,
    "descent_epochs": 6,
    "attack_epochs": 2,
}
"""What `--smoke` runs: everything, small."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `recattack bench defense`."""
    add_plan_options(parser, datasets=("steam",), attackers=PLAN_ATTACKERS, seeds=(0, 1, 2))

    def several(name: str, default: Sequence[str], text: str) -> None:
        help_ = f"{text} (default: {' '.join(default)})"
        parser.add_argument(
            name, nargs="+", default=list(default), metavar="NAME", help=help_.replace("%", "%%")
        )

    known = ", ".join((*CLICK_DETECTORS, *trainings()))
    several("--defenses", default_labels(), f"{known}, or several of these joined by +")
    parser.add_argument(
        "--share", type=float, default=0.01, help="of all accounts, flagged by a detector (0.01)"
    )
    parser.add_argument(
        "--full", action="store_true", help="evaluate under full retraining, too (slow)"
    )
    parser.add_argument(
        "--adaptive",
        nargs="+",
        default=[],
        metavar="NAME",
        help="attackers that also attack the defended platforms themselves (default: none)",
    )
    parser.add_argument(
        "--adaptive-queries", type=int, default=400, help="budget of each of their attacks (400)"
    )
    several("--field-datasets", ("ml-1m", "gowalla"), "logs of the second setting")
    several("--field-victims", ("BPR",), "its victims")
    several(
        "--field-attackers",
        ("random-sets", "bandwagon-sets", "dpa2dl", "revadv", "poisonrec"),
        f"its attackers, of {', '.join(FIELD_ATTACKERS)}",
    )
    for name, default, text in (
        ("--epochs", 8, "of each retraining of the surrogate of dpa2dl and rapu-r"),
        ("--descent-epochs", 50, "the same of the other attackers with a surrogate"),
        ("--attack-epochs", 30, "steps of these"),
        ("--group-size", 1, "fake users per retraining of dpa2dl and rapu-r"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{text} ({default})")
    parser.add_argument(
        "--field-queries",
        type=int,
        default=400,
        help=f"budget of {', '.join(LEARNERS)} in the second setting (400)",
    )
    parser.add_argument("--no-plans", action="store_true", help="leave the first setting out")
    parser.add_argument("--no-field", action="store_true", help="leave the second setting out")
    parser.add_argument(
        "--write-docs",
        type=Path,
        metavar="FILE",
        help="write the report there (.md, and .json beside it)",
    )
    parser.add_argument("--smoke", action="store_true", help="everything, small: under a minute")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure what is missing, and report everything that was asked for and exists."""
    if args.smoke:
        for name, value in SMOKE.items():
            setattr(args, name, value)
    protections = protections_of(args.defenses, args.share)
    _check(args)
    check_places(args, is_adding=not args.report_only)
    folder = args.out.resolve() / FOLDER
    rows: list[PlanRow] = []
    adaptive: list[PlanRow] = []
    field: list[FieldRow] = []
    seen: list[Seen] = []
    learned: list[Learned] = []
    n_plan_pieces = n_trials = 0
    if not args.no_plans:
        rows, adaptive, seen, n_plan_pieces = _on_platforms(args, protections, folder)
    if not args.no_field:
        trials = trials_of(_attacks(args), args.field_victims, protections)
        field, more, learned = _in_the_field(args, trials, folder)
        seen, n_trials = seen + more, len(trials)
    text = report(rows, adaptive, field, seen, learned)
    pictures = _draw(rows, args.figures) if args.figures is not None else []
    everything: dict[str, object] = {
        "plans": rows,
        "adaptive": adaptive,
        "field": field,
        "visibility": seen,
        "learned": learned,
    }
    if args.write_docs is not None and (rows or field):
        _write_docs(args, text, everything, pictures)
    n_finished = len(rows) + len(adaptive) + len(field)
    done = f"{n_finished} of {n_plan_pieces + n_trials} results are in {folder}"
    return {
        "table": "\n\n".join([text, done, *(f"drawn: {path}" for path in pictures)]).strip(),
        **everything,
        **platform_means(rows),
        **field_means(field),
        "n_results": n_plan_pieces + n_trials,
        "n_finished": n_finished,
        "figures": [str(path) for path in pictures],
    }


def _check(args: argparse.Namespace) -> None:
    """Refuse, before anything is run, what would fail after it.

    Raises:
        UnknownNameError: If a name is unknown.
        ArgumentError: If a number is out of range, or nothing is asked for.
    """
    if args.no_plans and args.no_field:
        raise ArgumentError("--no-plans and --no-field must not both be given: nothing is left")
    for names, kind, known in (
        (args.field_victims, "victim", VICTIMS),
        (args.field_attackers, "attacker", FIELD_ATTACKERS),
        (args.adaptive, "attacker", ENTRIES),
    ):
        for name in names:
            if name not in known:
                raise UnknownNameError(kind, name, known)
    for name in args.adaptive:
        if not issubclass(ATTACKERS[ENTRIES[name][0]], SearchAttacker):
            raise ArgumentError(f"--adaptive must name attackers that query, got {name!r}")
    counts = (
        "adaptive_queries",
        "field_queries",
        "epochs",
        "descent_epochs",
        "attack_epochs",
        "group_size",
        "jobs",
    )
    for name in counts:
        as_count(f"--{name.replace('_', '-')}", getattr(args, name))
    for seed in args.seeds:
        as_count("--seeds", seed, at_least=0)


# -- PoisonRec's platforms -------------------------------------------------------------------------


def _on_platforms(
    args: argparse.Namespace, protections: Sequence[Protection], folder: Path
) -> tuple[list[PlanRow], list[PlanRow], list[Seen], int]:
    """Return rows of plans, of adaptive attacks, of their visibility, and how many rows were asked for."""
    plans = plans_of(args, is_full=args.full)
    retrains: tuple[Retrain, ...] = ("finetune", "full") if args.full else ("finetune",)
    cells = _adaptive_cells(args, plans)
    if not args.report_only:
        given = {"n_jobs": args.jobs, "backend": args.backend}
        evaluate_all(plans, protections, retrains, folder, **given)
        attack_all(cells, protections, folder, **given)
    store = ResultStore(folder)
    seen: list[Seen] = []
    for plan in tqdm(plans, desc="visibility", unit="plan"):
        raise_if_interrupted()
        found = seen_by_detectors(
            log_of(plan), plan.profiles, store, is_measuring=not args.report_only
        )
        cell = plan.cell
        seen += [
            {
                "dataset": cell.dataset,
                "victim": cell.victim,
                "attacker": cell.entry,
                "seed": cell.seed,
                "detector": detector,
                **numbers,
            }
            for detector, numbers in found.items()
        ]
    possible = sum(p.victim(cell.victim) is not None for cell in cells for p in protections)
    return (
        [_as_row(each) for each in read_outcomes(plans, protections, retrains, folder)],
        [_as_row(each) for each in read_attacks(cells, protections, folder)],
        seen,
        n_wanted(plans, protections, retrains) + possible,
    )


def _adaptive_cells(args: argparse.Namespace, plans: Sequence[Plan]) -> list[Cell]:
    """Return who attacks again, on the platforms that there are plans for."""
    platforms = dict.fromkeys(plan.cell.platform for plan in plans)
    some = {plan.cell.platform: plan.cell for plan in plans}
    return [
        replace(some[platform], entry=entry, n_queries=args.adaptive_queries, is_full=False)
        for platform in platforms
        for entry in args.adaptive
    ]


def _as_row(each: Outcome) -> PlanRow:
    names = (
        "rec_num", "clean_rec_num", "max_rec_num", "n_fake", "n_dropped", "n_genuine_flagged",
        "clean_n_flagged", "k", "clean_hr", "clean_ndcg", "hr", "ndcg",
    )  # fmt: skip
    return {
        "dataset": each.cell.dataset,
        "victim": each.cell.victim,
        "trained": each.protection.victim(each.cell.victim),
        "defense": each.protection.label,
        "attacker": each.cell.entry,
        "seed": each.cell.seed,
        "retrain": each.retrain,
        **{name: each.result[name] for name in names},
        "n_queries": each.result.get("n_queries"),
    }


# -- the setting of the papers on robust training --------------------------------------------------


def _attacks(args: argparse.Namespace) -> list[Attack]:
    """Return no attack and those that are asked for, on the datasets that are on this machine."""
    here = []
    for dataset in dict.fromkeys(args.field_datasets):
        try:
            lab(dataset)
        except DatasetNotFoundError as error:
            logger.warning("%s is left out: %s", dataset, error)
            continue
        here.append(dataset)
    return [
        attack_of(
            dataset,
            seed,
            name,
            epochs=args.epochs,
            descent_epochs=args.descent_epochs,
            attack_epochs=args.attack_epochs,
            group_size=args.group_size,
            victim=victim,
            n_queries=args.field_queries,
        )
        for dataset in here
        for seed in args.seeds
        for name in (NO_ATTACK, *dict.fromkeys(args.field_attackers))
        for victim in (dict.fromkeys(args.field_victims) if name in LEARNERS else ("",))
    ]


def _in_the_field(
    args: argparse.Namespace, trials: Sequence[Trial], folder: Path
) -> tuple[list[FieldRow], list[Seen], list[Learned]]:
    """Return rows of victims trained under attack, how visible attacks are, and what learners were told."""
    if not args.report_only:
        run_trials(trials, folder, n_jobs=args.jobs, backend=args.backend)
    results = read_trials(trials, folder)
    store = ResultStore(folder)
    names = ("t_hr", "t_ndcg", "recall", "ndcg", "n_fake", "n_dropped", "n_genuine_flagged")
    rows: list[FieldRow] = [
        {
            "dataset": trial.attack.dataset,
            "victim": trial.victim,
            "trained": trial.trained,
            "defense": trial.protection.label,
            "attacker": trial.attack.name,
            "seed": trial.attack.seed,
            **{name: result[name] for name in names},
            "t_hr_trained": result.get("t_hr_trained", result["t_hr"]),  # nobody was kept out
        }
        for trial, result in results
    ]
    seen: list[Seen] = []
    learned: list[Learned] = []
    for attack in dict.fromkeys(trial.attack for trial, _ in results):
        plan = plan_of(attack, folder)
        if plan is None:
            continue
        found = seen_by_detectors(
            lab(attack.dataset).train,
            trained_part(plan),
            store,
            is_measuring=not args.report_only,
        )
        who = {"dataset": attack.dataset, "attacker": attack.name, "seed": attack.seed}
        seen += [
            {**who, "victim": None, "detector": detector, **numbers}
            for detector, numbers in found.items()
        ]
        if attack.queried:
            learned.append({**who, "victim": attack.queried, **what_was_told(plan)})
    return rows, seen, learned


# -- writing ---------------------------------------------------------------------------------------


def _draw(rows: Sequence[PlanRow], folder: Path) -> list[Path]:
    """Draw one picture per dataset and way of retraining."""
    drawn = []
    for dataset, retrain in dict.fromkeys((row["dataset"], row["retrain"]) for row in rows):
        own = [row for row in rows if (row["dataset"], row["retrain"]) == (dataset, retrain)]
        if any(row["defense"] != NONE for row in own):
            path = folder / f"defense-{dataset}-{retrain}.png"
            draw_defense(own, path)
            drawn.append(path)
    return drawn


def _write_docs(
    args: argparse.Namespace,
    text: str,
    everything: Mapping[str, object],
    pictures: Sequence[Path],
) -> None:
    """Write the report with the command that made it, and the numbers behind it as JSON beside it."""
    words = [
        f"recattack bench defense --defenses {' '.join(args.defenses)} --share {args.share}",
        f"--seeds {' '.join(map(str, args.seeds))}",
    ]
    if args.no_plans:
        words.append("--no-plans")
    else:
        words.append(
            f"--datasets {' '.join(args.datasets)} --protocol {args.protocol} "
            f"--victims {' '.join(args.victims)} --attackers {' '.join(args.attackers)} "
            f"--queries {args.queries} --draws {args.draws}"
        )
        if args.archive is not None:
            words.append(f"--archive {args.archive}")
        if args.full:
            words.append("--full")
        if args.adaptive:
            words.append(
                f"--adaptive {' '.join(args.adaptive)} --adaptive-queries {args.adaptive_queries}"
            )
    if args.no_field:
        words.append("--no-field")
    else:
        words.append(
            f"--field-datasets {' '.join(args.field_datasets)} "
            f"--field-victims {' '.join(args.field_victims)} "
            f"--field-attackers {' '.join(args.field_attackers)} --epochs {args.epochs} "
            f"--descent-epochs {args.descent_epochs} --attack-epochs {args.attack_epochs} "
            f"--group-size {args.group_size} --field-queries {args.field_queries}"
        )
    command = " ".join([*words, "--jobs 2"])
    write_page(
        args.write_docs,
        title="Defences: what they stop, and what they cost",
        command=command,
        text=text,
        pictures=pictures,
    )
    with atomic_write(args.write_docs.with_suffix(".json")) as stream:
        stream.write(json.dumps({"command": command, **everything}, indent=0).encode())
