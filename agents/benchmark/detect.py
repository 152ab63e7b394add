"""`recattack bench detect`: which detectors find which attacks, learnt on other attacks.

Every detector of the registry that can read the log, against every attack: AUC, average precision, recall
at 1 % false positives. Supervised detectors never see what they are tested on: other genuine users, other
plans, other targets, other seeds; in the column "unseen" not even an attack of that name. On ml-100k the
figures of PCA-VarSelect's paper are repeated under its own protocol. Finished pieces are files; a run that
was killed goes on where it was.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from agents.benchmark import detect_cases
from agents.benchmark.detect_cases import CLICKED, RATED, SMOKE, Case, World, log_of, world_of
from agents.benchmark.detect_report import report, summary, write_docs
from agents.benchmark.store import ResultStore
from agents.interruption import raise_if_interrupted
from agents.reports import versions
from agents.shilling import Known, ShillingConfig, rating_profiles
from recattack_gym import __version__
from recattack_gym.core import (
    ArgumentError,
    AttackBudget,
    AttackGoal,
    DatasetNotFoundError,
    UnknownNameError,
)
from recattack_gym.core.checks import as_count
from recattack_gym.core.sources import imported_files, source_digest
from recattack_gym.defenses import DETECTORS, Detector, SupervisedDetector
from recattack_gym.metrics import average_precision, detection_auc, precision_at_n, recall_at_fpr

logger = logging.getLogger(__name__)

ARCHIVE = Path("docs/results/table3.zip")
SETTINGS: Mapping[str, Mapping[str, object]] = {
    "gru-attention": {"epochs": 8, "embedding_size": 32, "hidden_size": 32}
}
"""Other than the defaults, to be done in minutes."""
SMOKE_SETTINGS: Mapping[str, Mapping[str, object]] = {
    "gru-attention": {"epochs": 2, "embedding_size": 8, "hidden_size": 8},
    "svm": {"c_grid": (1.0,), "gamma_grid": (0.1,)},
    "svm-tia": {"c_grid": (1.0,), "gamma_grid": (0.1,)},
    "svm-clicks": {"c_grid": (1.0,), "gamma_grid": (0.1,)},
}
ON_RATINGS = tuple(name for name in DETECTORS if name not in ("gru-attention", "svm-clicks"))
"""Filler ratings have no order, so the sequence detector has nothing to read in them."""
ON_CLICKS = tuple(name for name, kind in DETECTORS.items() if not kind.needs_ratings)
N_FOLDS: Mapping[str, int] = {"steam": 5}
"""Groups that a dataset's many attacks are left out in, an idea's attacks together; elsewhere one by one."""
REFERENCE_KINDS = ("random", "average", "bandwagon", "average-over-popular")
REFERENCE_FILLERS = (0.01, 0.03, 0.05, 0.1, 0.25, 0.4)
REFERENCE_FAKES = 94


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `recattack bench detect`."""
    several = parser.add_argument
    several("--datasets", nargs="+", default=["ml-100k", "filmtrust", "steam"],
            help=f"{' '.join((*RATED, *CLICKED))} (ml-100k filmtrust steam)")  # fmt: skip
    several("--detectors", nargs="+", default=list(DETECTORS), help="default: all")
    several("--seeds", nargs="+", type=int, default=[0, 1, 2], help="halves and attacks (0 1 2)")
    several("--attack-size", type=float, default=0.05,
            help="fake users per genuine user, of attacks planned here (0.05)")  # fmt: skip
    several("--archive", type=Path, default=ARCHIVE, metavar="FILE",
            help=f"plans of bench table3 for steam ({ARCHIVE})")  # fmt: skip
    several("--out", default="recattack-results/detect", help="finished pieces; resumes")
    several("--write-docs", type=Path, metavar="FILE", help="write what was found there (.json)")
    several("--report-only", action="store_true", help="measure nothing, report what there is")
    several("--smoke", action="store_true", help="everything, small: under a minute")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure what is missing and report everything that was asked for and exists."""
    if args.smoke:
        args.datasets, args.seeds = list(SMOKE), [0]
    _check(args)
    store, pieces, skipped = ResultStore(args.out), pieces_of(args), dict[str, str]()
    if not args.report_only:
        missing = [piece for piece in pieces if store.get(piece) is None]
        for piece in tqdm(missing, desc="bench detect", unit="piece"):
            raise_if_interrupted()
            dataset = str(piece["dataset"])
            if dataset in skipped:
                continue
            try:
                found = measure(piece, archive=str(args.archive))
            except DatasetNotFoundError as error:
                skipped[dataset] = str(error)
                logger.warning("%s is not measured: %s", dataset, error)
                continue
            store.put(piece, found)
    rows = [
        {"dataset": piece["dataset"], "seed": piece["seed"], "detector": piece["detector"], **row}
        for piece in pieces
        if (result := store.get(piece)) is not None
        for row in _rows(result)
    ]
    text = report(rows)
    if args.write_docs is not None:
        write_docs(args, rows, versions())
    n_finished = sum(store.get(piece) is not None for piece in pieces)
    return {
        "table": f"{text}\n\n{n_finished} of {len(pieces)} pieces are in {args.out}",
        "n_pieces": len(pieces),
        "n_finished": n_finished,
        "skipped": skipped,
        "detectors": summary(rows),
    }


def _rows(result: Mapping[str, object]) -> list[dict[str, object]]:
    rows = result["rows"]
    assert isinstance(rows, list)  # noqa: S101  # as `measure` writes it
    return rows


def _check(args: argparse.Namespace) -> None:
    for name, known in (("datasets", (*RATED, *CLICKED)), ("detectors", tuple(DETECTORS))):
        for given in getattr(args, name):
            if given not in known:
                raise UnknownNameError(name.removesuffix("s"), given, known)
    for seed in args.seeds:
        as_count("--seeds", seed, at_least=0)
    if not 0 < args.attack_size <= 1:
        raise ArgumentError(f"--attack-size must lie in (0, 1], got {args.attack_size}")


def pieces_of(args: argparse.Namespace) -> list[dict[str, object]]:
    """Return everything that decides each measurement."""
    pieces: list[dict[str, object]] = []
    for dataset in args.datasets:
        able = ON_RATINGS if dataset in RATED else ON_CLICKS
        for detector in (name for name in args.detectors if name in able):
            settings = (SMOKE_SETTINGS if args.smoke else SETTINGS).get(detector, {})
            config = asdict(DETECTORS[detector](dict(settings)).config)
            pieces += [
                {
                    "version": __version__, "code": _code(), "kind": "attacks", "dataset": dataset,
                    "detector": detector, "config": config, "seed": seed,
                    "attack_size": args.attack_size, "piece": f"{dataset}-{detector}-{seed}",
                    **({"n_folds": N_FOLDS[dataset]} if dataset in N_FOLDS else {}),
                }
                for seed in args.seeds
            ]  # fmt: skip
    if "ml-100k" in args.datasets:
        pieces += [
            {
                "version": __version__, "code": _code(), "kind": "reference", "dataset": "ml-100k",
                "detector": detector, "config": asdict(DETECTORS[detector]().config), "seed": seed,
                "piece": f"reference-{detector}-{seed}",
            }
            for detector in ("popularity", "pca-varselect")
            if detector in args.detectors
            for seed in args.seeds
        ]  # fmt: skip
    return pieces


@lru_cache(maxsize=1)
def _code() -> str:
    """Return a digest of what decides a result: detectors, attacks, metrics and this protocol."""
    decisive = ("recattack_gym.defenses", "agents.shilling", "recattack_gym.metrics.detection")
    files = imported_files("recattack_gym.defenses", decisive)
    files |= imported_files("agents.shilling", decisive)
    return source_digest([*files, str(detect_cases.__file__)])[:16]


def measure(piece: Mapping[str, object], *, archive: str) -> dict[str, object]:
    """Return what one detector finds on one dataset with one seed.

    Args:
        piece: From `pieces_of`.
        archive: Plans for steam.
    """
    if piece["kind"] == "reference":
        return {"rows": _reference_rows(piece)}
    dataset, seed = str(piece["dataset"]), int(str(piece["seed"]))
    plans = archive if dataset == "steam" else None
    world = world_of(dataset, seed, float(str(piece["attack_size"])), plans)
    return {"rows": _attack_rows(piece, world, seed)}


def _attack_rows(piece: Mapping[str, object], world: World, seed: int) -> list[dict[str, object]]:
    """Return one row per attack and way of learning: "none", "seen", "unseen", and for FAP "told"."""
    name = str(piece["detector"])
    settings = piece["config"]
    assert isinstance(settings, Mapping)  # noqa: S101  # as `pieces_of` writes it
    kind = DETECTORS[name]
    tests = {attack: world.testing_case(attack) for attack in world.testing}
    if not issubclass(kind, SupervisedDetector):
        detector = kind(settings)
        return [{"attack": a, "learnt": "none", **_found(detector, t)} for a, t in tests.items()]

    def learnt(case: Case) -> Detector:
        return kind(settings).fit(case.log, case.is_fake, np.random.default_rng(seed))

    rows = []
    everything = learnt(world.training_case())
    for group in groups_of(list(tests), int(str(piece.get("n_folds", len(tests))))):
        raise_if_interrupted()
        others = learnt(world.training_case(without=group))
        for attack in group:
            test = tests[attack]
            rows.append({"attack": attack, "learnt": "seen", **_found(everything, test)})
            rows.append({"attack": attack, "learnt": "unseen", **_found(others, test)})
            if name == "fap":
                told = learnt(world.told_case(attack))
                rows.append({"attack": attack, "learnt": "told", **_found(told, test)})
    order = list(tests)
    return sorted(rows, key=lambda row: order.index(str(row["attack"])))


def groups_of(attacks: Sequence[str], n_groups: int) -> list[list[str]]:
    """Return attacks in groups of about equal size; those of one idea are in one group."""
    ideas: list[list[str]] = []
    for attack in attacks:
        kin = detect_cases.kin_of(attack)
        home = next((idea for idea in ideas if kin & set(idea)), None)
        if home is None:
            ideas.append([attack])
        else:
            home.append(attack)
    groups: list[list[str]] = [[] for _ in range(min(n_groups, len(ideas)))]
    for idea in sorted(ideas, key=len, reverse=True):
        min(groups, key=len).extend(idea)
    return groups


def _found(detector: Detector, case: Case) -> dict[str, object]:
    scores, is_fake = detector.scores(case.log), case.is_fake
    n_fake = int(is_fake.sum())
    return {
        "auc": detection_auc(scores, is_fake),
        "average_precision": average_precision(scores, is_fake),
        "recall_at_1": recall_at_fpr(scores, is_fake, 0.01),
        "precision_at_n": precision_at_n(scores, is_fake, n_fake),
        "n_fake": n_fake,
        "n_genuine": len(is_fake) - n_fake,
    }


def _reference_rows(piece: Mapping[str, object]) -> list[dict[str, object]]:
    """Repeat the protocol of PCA-VarSelect's paper: all users, 10 % fake ones, one target."""
    seed, log = int(str(piece["seed"])), log_of("ml-100k")
    known, detector = Known.of(log), DETECTORS[str(piece["detector"])](dict(_config(piece)))
    rng = np.random.default_rng(seed)
    rare = np.flatnonzero((log.item_popularity >= 5) & (log.item_popularity < 45))
    rows: list[dict[str, object]] = []
    for kind in REFERENCE_KINDS:
        for filler in REFERENCE_FILLERS:
            config = ShillingConfig(n_selected=1, popular_rate=0.4)
            n_selected = 1 if kind == "bandwagon" else 0
            size = 1 + n_selected + round(filler * log.n_items)
            if kind == "average-over-popular" and size - 1 > int(0.4 * (log.n_items - 1)):
                continue
            goal = AttackGoal(target_items=(int(rng.choice(rare)),))
            budget = AttackBudget(n_fake_users=REFERENCE_FAKES, profile_size=size)
            plan = rating_profiles(kind, known, goal, budget, rng, config)
            poisoned = log.with_fake_users(plan.item_ids, plan.ratings)
            case = Case(poisoned, np.arange(poisoned.n_users) >= log.n_users)
            rows.append(
                {"attack": kind, "filler": filler, "learnt": "none", **_found(detector, case)}
            )
    return rows


def _config(piece: Mapping[str, object]) -> Mapping[str, object]:
    config = piece["config"]
    assert isinstance(config, Mapping)  # noqa: S101  # as `pieces_of` writes it
    return config
