"""Attacks of `recattack bench table3` on defended platforms: what is measured, and how it is kept."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
from joblib import delayed
from tqdm import tqdm

from agents.base import Attacker
from agents.benchmark.cells import Cell, identity, make_attacker, platform_simulator, profiles_path
from agents.benchmark.plans import Plan, Platform, check_plan, platform_identity
from agents.benchmark.protections import (
    CLICK_DETECTORS,
    Protection,
    defended_code,
    detector_identity,
)
from agents.benchmark.store import ResultStore
from agents.benchmark.workers import share_the_machine, workers
from agents.interruption import raise_if_interrupted
from agents.recording import RecordingView
from agents.reports import versions
from recattack_gym.core import ArgumentError, FakeProfiles, Interactions
from recattack_gym.core.sources import imported_files, source_digest
from recattack_gym.datasets import Dataset, load
from recattack_gym.defenses import DETECTORS
from recattack_gym.simulator import (
    DefendedSimulator,
    PlatformSimulator,
    PlatformView,
    make_simulator,
)
from recattack_gym.simulator.visibility import visibility
from recattack_gym.victims import VICTIMS
from recattack_gym.victims.base import Retrain

_MEASURING = 1
"""Of what is measured here; to be raised when that changes."""


@dataclass(frozen=True)
class Piece:
    """One plan on one platform with one defence."""

    key: Mapping[str, object]
    """What decides it: `evaluation_identity`."""
    profiles: FakeProfiles
    """What is injected."""


@dataclass(frozen=True)
class Outcome:
    """A plan on a platform with a defence, measured."""

    cell: Cell
    """The attack, and the plain victim that it was made against."""
    protection: Protection
    """What the platform did about it."""
    retrain: Retrain
    """How the victim was retrained."""
    result: Mapping[str, object]
    """What `evaluate` returned."""

    def number(self, name: str) -> float:
        """Return a measured number, `nan` if it was not measured."""
        value = self.result[name]
        return float("nan") if value is None else float(str(value))


def evaluate_all(
    plans: Sequence[Plan],
    protections: Sequence[Protection],
    retrains: Sequence[Retrain],
    folder: Path,
    *,
    n_jobs: int,
    backend: str = "loky",
) -> None:
    """Inject every plan into the platform that it was made for, with every defence; skip what is stored.

    Args:
        plans: The attacks.
        protections: The defences; where a victim has no robust form, those that need it are left out.
        retrains: How victims are retrained.
        folder: Of the `ResultStore`.
        n_jobs: Processes, each on one thread.
        backend: As in `workers`.

    Raises:
        ArgumentError: If a plan does not fit a platform.
        KeyboardInterrupt: If interrupted; finished evaluations are kept.
    """
    store = ResultStore(folder)
    missing: dict[tuple[Platform, Protection, Retrain], dict[Path, Piece]] = {}
    for plan, protection, retrain in product(plans, protections, retrains):
        platform = platform_of(plan.cell, protection)
        if platform is None:
            continue
        key = evaluation_identity(platform, protection, plan.profiles, retrain)
        if store.get(key) is None:  # equal plans are one piece
            pieces = missing.setdefault((platform, protection, retrain), {})
            pieces[store.path(key)] = Piece(key, plan.profiles)
    order = list(VICTIMS)
    tasks = sorted(missing.items(), key=lambda task: order.index(task[0][0][2]))  # cheap ones first
    with workers(n_jobs, backend) as run_tasks:
        finished = run_tasks(
            delayed(_evaluate)(*where, list(pieces.values()), folder, n_jobs)
            for where, pieces in tasks
        )
        for _ in tqdm(finished, total=len(tasks), desc="defended platforms", unit="platform"):
            raise_if_interrupted()


def _evaluate(
    platform: Platform,
    protection: Protection,
    retrain: Retrain,
    pieces: Sequence[Piece],
    folder: Path,
    n_jobs: int,
) -> None:
    share_the_machine(n_jobs)
    store = ResultStore(folder)
    simulator = defended_simulator(platform, protection)
    # Full retraining takes as long for many plans together as one by one, and may be interrupted between them
    size = len(pieces) if retrain == "finetune" else 1
    for start in range(0, len(pieces), size):
        raise_if_interrupted()
        some = pieces[start : start + size]
        results = evaluate(simulator, [piece.profiles for piece in some], retrain)
        for piece, result in zip(some, results, strict=True):
            store.put(piece.key, result)


def platform_of(cell: Cell, protection: Protection) -> Platform | None:
    """Return the platform of a cell with its victim as a defence trains it; `None` if it cannot."""
    victim = protection.victim(cell.victim)
    return None if victim is None else (cell.dataset, cell.protocol, victim, cell.seed)


def defended_simulator(platform: Platform, protection: Protection) -> PlatformSimulator:
    """Return a platform that screens as a defence says; its victim is already the one that is trained."""
    if not protection.detectors:
        return platform_simulator(platform)
    dataset, protocol, victim, seed = platform
    return make_simulator(
        {
            "dataset": _dataset(dataset, protocol),
            "victim": victim,
            "seed": seed,
            "defense": protection.screenings,
        }
    )


@lru_cache(maxsize=4)
def _dataset(name: str, protocol: str | None) -> Dataset:
    return load(name, protocol=protocol)


def evaluate(
    simulator: PlatformSimulator, plans: Sequence[FakeProfiles], retrain: Retrain
) -> list[dict[str, object]]:
    """Inject plans of one shape into a platform, each alone.

    Args:
        simulator: The platform, defended or not.
        plans: With the header that `Attacker.plan` writes.
        retrain: How the platform retrains.

    Returns:
        Plain JSON values for each. `clean_...`: without any attack. `n_dropped`: fake users kept out of
        training; `n_genuine_flagged`: genuine users flagged in the poisoned log, also those who are weighed
        down and take part; `clean_n_flagged`: those kept out of training in the clean one. `hr` and `ndcg`
        after the attack are measured where the platform retrains as its environments do, and `None`
        otherwise.

    Raises:
        ArgumentError: If a plan was made for other items or targets, or the plans differ in shape.
    """
    targets = simulator.target_items.tolist()
    for plan in plans:
        check_plan(plan, n_items=simulator.n_items, target_items=targets)
    shapes = {plan.item_ids.shape for plan in plans}
    if len(shapes) != 1:
        raise ArgumentError(
            f"plans must be at least one, and of one shape, got shapes {sorted(shapes)}"
        )
    batch = np.stack([plan.item_ids for plan in plans])
    n_dropped = n_flagged = np.zeros(len(plans), dtype=np.int64)
    clean_flagged = 0
    if isinstance(simulator, DefendedSimulator):
        exposure, screened = simulator.screened_exposure(batch, retrain=retrain)
        n_dropped, n_flagged = screened.n_dropped, screened.n_genuine_flagged
        clean_flagged = int(simulator.genuine_dropped.sum())
    else:
        exposure = simulator.exposure(batch, retrain=retrain)
    effects = simulator.side_effects(batch) if retrain == simulator.retrain else None
    return [
        {
            "rec_num": int(exposure[number].sum()),
            "target_exposure": exposure[number].tolist(),
            "clean_rec_num": simulator.clean_rec_num,
            "max_rec_num": simulator.max_rec_num,
            "n_fake": batch.shape[1],
            "n_dropped": int(n_dropped[number]),
            "n_genuine_flagged": int(n_flagged[number]),
            "clean_n_flagged": clean_flagged,
            "k": simulator.k,
            "clean_hr": None if effects is None else effects.clean_hr_at_k,
            "clean_ndcg": None if effects is None else effects.clean_ndcg_at_k,
            "hr": None if effects is None else float(effects.hr_at_k[number]),
            "ndcg": None if effects is None else float(effects.ndcg_at_k[number]),
            "versions": versions(),
        }
        for number in range(len(plans))
    ]


def evaluation_identity(
    platform: Platform, protection: Protection, profiles: FakeProfiles, retrain: Retrain
) -> dict[str, object]:
    """Return everything that decides an evaluation, as plain JSON values; not who made the plan."""
    dataset, _, victim, seed = platform
    return {
        "piece": f"{dataset}-{victim}-{seed}-{retrain}-{'-'.join(protection.detectors) or 'unscreened'}",
        **platform_identity(platform),
        "retrain": retrain,
        "screening": protection.identity(),
        "defended_code": defended_code() if protection.detectors else None,
        "measuring": _MEASURING,
        "profiles": profiles.content_hash,
    }


def read_outcomes(
    plans: Sequence[Plan],
    protections: Sequence[Protection],
    retrains: Sequence[Retrain],
    folder: Path,
) -> list[Outcome]:
    """Return the finished ones of all evaluations of some plans.

    Args:
        plans: The attacks.
        protections: The defences.
        retrains: How victims are retrained.
        folder: Of the `ResultStore`.
    """
    store = ResultStore(folder)
    found = []
    for retrain, plan, protection in product(retrains, plans, protections):
        platform = platform_of(plan.cell, protection)
        if platform is None:
            continue
        result = store.get(evaluation_identity(platform, protection, plan.profiles, retrain))
        if result is not None:
            found.append(Outcome(plan.cell, protection, retrain, result))
    return found


def n_wanted(
    plans: Sequence[Plan], protections: Sequence[Protection], retrains: Sequence[Retrain]
) -> int:
    """Return how many evaluations `read_outcomes` finds when all are finished."""
    possible = product(plans, protections)
    return len(retrains) * sum(platform_of(plan.cell, each) is not None for plan, each in possible)


# -- visibility ------------------------------------------------------------------------------------


def seen_by_detectors(
    log: Interactions, profiles: FakeProfiles, store: ResultStore, *, is_measuring: bool
) -> dict[str, dict[str, float]]:
    """Return how visible a plan is to every click detector, measured or stored.

    Args:
        log: Genuine events over the catalogue of the plan.
        profiles: The plan.
        store: Where it is kept.
        is_measuring: Whether what is not stored is measured; else it is left out.

    Returns:
        Detector -> `auc`, `average_precision` and `recall` with 1 % of the genuine users flagged.
    """
    found = {}
    for name in CLICK_DETECTORS:
        key = {
            "piece": f"visibility-{name}",
            "log": log.content_hash,
            "profiles": profiles.content_hash,
            "detector": detector_identity(name),
            "code": _visibility_code(),
            "measuring": _MEASURING,
        }
        result = store.get(key)
        if result is None and is_measuring:
            seen = visibility(log, profiles, DETECTORS[name]())
            result = {
                "auc": float(seen.auc[0]),
                "average_precision": float(seen.average_precision[0]),
                "recall": float(seen.recall[0]),
            }
            store.put(key, result)
        if result is not None:
            found[name] = {each: float(str(value)) for each, value in result.items()}
    return found


@lru_cache(maxsize=1)
def _visibility_code() -> str:
    packages = ("recattack_gym.simulator.visibility", "recattack_gym.metrics.detection")
    files = imported_files("recattack_gym.simulator.visibility", packages)
    files |= imported_files("recattack_gym.metrics.detection", packages)
    return source_digest(files)[:16]


@lru_cache(maxsize=4)
def _log(dataset: str, protocol: str | None, n_items: int) -> Interactions:
    return _dataset(dataset, protocol).split.train.with_catalogue(n_items)


def log_of(plan: Plan) -> Interactions:
    """Return the log that a plan was made for, over a catalogue with its target items."""
    n_items = int(str(plan.profiles.header["n_items"]))
    return _log(plan.cell.dataset, plan.cell.protocol, n_items)


# -- attackers that adapt --------------------------------------------------------------------------


def attack_all(
    cells: Sequence[Cell],
    protections: Sequence[Protection],
    folder: Path,
    *,
    n_jobs: int,
    backend: str = "loky",
) -> None:
    """Let attackers attack the defended platforms themselves, with their queries; skip what is stored.

    Args:
        cells: Attackers with their budget, and plain victims.
        protections: The defences, none among them.
        folder: Of the `ResultStore`.
        n_jobs: Processes, each on one thread.
        backend: As in `workers`.

    Raises:
        KeyboardInterrupt: If interrupted; finished attacks are kept.
    """
    missing = list(_missing_attacks(cells, protections, ResultStore(folder)))
    with workers(n_jobs, backend) as run_tasks:
        finished = run_tasks(delayed(_attack)(*task, folder, n_jobs) for task in missing)
        for _ in tqdm(finished, total=len(missing), desc="adaptive attacks", unit="attack"):
            raise_if_interrupted()


def _missing_attacks(
    cells: Sequence[Cell], protections: Sequence[Protection], store: ResultStore
) -> Iterator[tuple[Cell, Protection]]:
    for cell, protection in product(cells, protections):
        key = adaptive_identity(cell, protection)
        if key is not None and store.get(key) is None:
            yield cell, protection


def _attack(cell: Cell, protection: Protection, folder: Path, n_jobs: int) -> None:
    share_the_machine(n_jobs)
    platform, key = platform_of(cell, protection), adaptive_identity(cell, protection)
    assert platform is not None  # noqa: S101  # of _missing_attacks
    assert key is not None  # noqa: S101
    simulator = defended_simulator(platform, protection)
    attacker = make_attacker(cell)
    plan, n_queries = attack(simulator, attacker, cell)
    (result,) = evaluate(simulator, [plan], "finetune")
    store = ResultStore(folder)
    plan.save(profiles_path(store, key))
    store.put(key, {**result, "n_queries": n_queries, "profiles_hash": plan.content_hash})


def attack(
    simulator: PlatformSimulator, attacker: Attacker, cell: Cell
) -> tuple[FakeProfiles, int]:
    """Let an attacker attack a platform as `bench table3` does, and count its queries.

    What it sees of a defended platform is RecNum, after screening.
    """
    view = RecordingView(
        PlatformView(simulator, knowledge=attacker.knowledge), lambda _: raise_if_interrupted()
    )
    rng = np.random.default_rng([cell.seed, zlib.crc32(cell.entry.encode())])
    return attacker.plan(view, rng.spawn(1)[0]), view.n_queries


def adaptive_identity(cell: Cell, protection: Protection) -> dict[str, object] | None:
    """Return everything that decides an adaptive attack; `None` if there is no such platform."""
    victim = protection.victim(cell.victim)
    if victim is None:
        return None
    whole = identity(replace(cell, victim=victim))
    return {
        **whole,
        "piece": f"adaptive-{whole['piece']}-{'-'.join(protection.detectors) or 'unscreened'}",
        "screening": protection.identity(),
        "defended_code": defended_code() if protection.detectors else None,
        "measuring": [whole["measuring"], _MEASURING],
    }


def read_attacks(
    cells: Sequence[Cell], protections: Sequence[Protection], folder: Path
) -> list[Outcome]:
    """Return the finished ones of all adaptive attacks; see `attack_all`."""
    store = ResultStore(folder)
    found = []
    for cell, protection in product(cells, protections):
        key = adaptive_identity(cell, protection)
        result = None if key is None else store.get(key)
        if result is not None:
            found.append(Outcome(cell, protection, "finetune", result))
    return found
