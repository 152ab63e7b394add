"""`recattack bench kkt`: attacks on factorisation models through their optimality conditions.

The settings of Figures 1 to 3, 5 and 6 of Li, Wang, Singh & Vorobeychik, "Data Poisoning Attacks on
Factorization-Based Collaborative Filtering", NIPS 2016, on ml-100k and on a part of ml-1m of 1,000 users and
1,700 items: what fake users do to the victims' predictions (RMSE against the clean prediction, average
rating of a target), against their number, their goal (mu_1, mu_2) and beta; how well the paper's
gradient agrees with the exact one; how long a gradient takes. Every attack is one JSON file, so a run
that was killed goes on where it was.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from agents.benchmark.kkt_figure import draw_beta, draw_sizes
from agents.benchmark.store import ResultStore
from agents.benchmark.tables import markdown_table
from agents.gradient.ratings import RATING_ATTACKS, RatingAttack, mimicry
from agents.gradient.ratings.adjoints import exact_gradient, rating_gradient, utility_gradient
from agents.gradient.ratings.base import random_items
from agents.interruption import raise_if_interrupted
from recattack_gym import __version__
from recattack_gym.core import ArgumentError, AttackBudget, Interactions, UnknownNameError
from recattack_gym.core.checks import as_count
from recattack_gym.core.files import atomic_write
from recattack_gym.core.sources import imported_files, source_digest
from recattack_gym.datasets import SyntheticConfig, generate, load, with_generated_ratings
from recattack_gym.simulator import RatingGoal, RatingOutcome, RatingPlatform
from recattack_gym.simulator.cache import code_hash
from recattack_gym.victims import VICTIMS
from recattack_gym.victims.least_squares import TOP, Linearised
from recattack_gym.victims.rating_victim import RatingVictim

Row = Mapping[str, object]

DATASETS = ("ml-100k", "ml-1m-part")
SMOKE = "generated"
RATING_VICTIMS = tuple(name for name, kind in VICTIMS.items() if issubclass(kind, RatingVictim))
RMSE_GOALS = ((1, 0), (1, -1))
RATING_GOALS = ((0, 1), (-1, 1), (0, -1), (-1, -1))
GOALS = (*RMSE_GOALS, *RATING_GOALS)
"""(mu_1, mu_2) of the paper's panels, and by what each panel measures."""
ATTACKS = ("uniform", "pga", "sgld", "uniform+target", "pga+target")
"""`+target`: every fake user rates the target, which the paper's do not."""
PART_USERS, PART_ITEMS = 1_000, 1_700
"""Of ml-1m, as in the paper's section 5."""
SETTINGS: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    "ml-100k": {},
    "ml-1m-part": {},
    SMOKE: {"ALS": {"embedding_size": 4, "reg": 2.0}, "NuclearNorm": {"reg": 6.0}},
}
TARGET_AVERAGE = 0.8
"""Average clean prediction of the target item (section 5)."""
P_VALUE = 0.05


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
    pieces = _pieces(args)
    store = ResultStore(args.out)
    missing = [piece for piece in pieces if store.get(piece) is None]
    if not args.report_only:
        for piece in tqdm(missing, desc="bench kkt", unit="piece"):
            raise_if_interrupted()
            store.put(piece, MEASURES[str(piece["kind"])](piece))
    rows = [{**p, **r} for p in pieces if (r := store.get(p)) is not None]
    attacks = [row for row in rows if row["kind"] == "attack"]
    betas = [row for row in rows if row["kind"] == "beta"]
    pictures = _draw(attacks, betas, args.figures) if args.figures is not None else []
    text = _report(rows)
    if args.write_docs is not None:
        _write_docs(args, text, rows, pictures)
    return {
        "table": f"{text}\n\n{len(rows)} of {len(pieces)} pieces are in {args.out}",
        "n_pieces": len(pieces),
        "n_finished": len(rows),
        "victims": {name: _summary(name, rows) for name in args.victims},
        "claims": claims(attacks, betas),
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


# -- pieces ----------------------------------------------------------------------------------------


def _pieces(args: argparse.Namespace) -> list[dict[str, object]]:
    """Return everything that decides each measurement, cheap victims first."""
    pieces: list[dict[str, object]] = []
    middle = sorted(args.sizes)[len(args.sizes) // 2]
    for victim in args.victims:
        steps = args.nuclear_steps if victim == "NuclearNorm" else args.steps
        base = {
            "version": __version__, "code": _code(victim), "victim": victim,
            "items_per_user": args.items_per_user, "steps": steps,
        }  # fmt: skip
        pieces.append({**base, "kind": "gradient", "piece": f"{victim}-gradient"})
        for dataset in args.datasets:
            config = VICTIMS[victim](SETTINGS[dataset].get(victim)).config
            on = {**base, "dataset": dataset, "config": asdict(config)}
            pieces.append({**on, "kind": "cost", "piece": f"{dataset}-{victim}-cost"})
            for seed in args.seeds:
                for mu in GOALS:
                    for size in args.sizes:
                        for attack in args.attacks:
                            if attack.endswith("+target") and mu[1] == 0:
                                continue
                            pieces.append(
                                {**on, **_attack_piece("attack", mu, size, attack, seed, 0.6)}
                            )
                    if victim == "ALS" and mu not in RATING_GOALS[2:]:
                        pieces += [
                            {**on, **_attack_piece("beta", mu, middle, "sgld", seed, beta)}
                            for beta in args.betas
                        ]
    for piece in pieces:
        if "mu" in piece:
            piece["piece"] = (
                f"{piece['dataset']}-{piece['victim']}-{piece['kind']}-{piece['attack']}"
            )
    return pieces


def _attack_piece(
    kind: str, mu: tuple[int, int], size: float, attack: str, seed: int, beta: float
) -> dict[str, object]:
    return {
        "kind": kind, "mu": list(mu), "size": size, "attack": attack, "seed": seed,
        "beta": beta if attack == "sgld" else None,
    }  # fmt: skip


@lru_cache(maxsize=4)
def _code(victim: str) -> str:
    """Return a digest of what decides a result: attacks, metrics, platform and victim."""
    decisive = (
        "agents.gradient.ratings",
        "recattack_gym.core.random",
        "recattack_gym.metrics.ratings",
        "recattack_gym.simulator.ratings",
    )
    files = imported_files("agents.gradient.ratings", decisive)
    return f"{source_digest(files)}-{code_hash(VICTIMS[victim])}"


@lru_cache(maxsize=2)
def _log(dataset: str) -> Interactions:
    if dataset == SMOKE:
        config = SyntheticConfig(n_users=150, n_items=100, n_events=3_000, min_events=10)
        return with_generated_ratings(
            generate(config, np.random.default_rng(0)).log, np.random.default_rng(1)
        )
    if dataset == "ml-100k":
        return load("ml-100k").log
    return part_of(load("ml-1m").log, PART_USERS, PART_ITEMS, np.random.default_rng(0))


def part_of(
    log: Interactions, n_users: int, n_items: int, rng: np.random.Generator
) -> Interactions:
    """Return some users' ratings of the most rated items, both renumbered.

    Args:
        log: With ratings.
        n_users: Drawn among those with at least 20 ratings of these items (section 5).
        n_items: The most rated ones.
        rng: Source of the draw.
    """
    kept = np.sort(np.argsort(-log.item_popularity, kind="stable")[:n_items])
    part = log.select(np.isin(log.item_ids, kept))
    active = np.flatnonzero(np.diff(part.indptr) >= 20)
    users = np.sort(rng.choice(active, n_users, replace=False))
    part = part.select(np.isin(part.user_ids, users))
    return Interactions(
        np.searchsorted(users, part.user_ids), np.searchsorted(kept, part.item_ids), n_users, n_items,
        timestamps=part.timestamps, ratings=part.ratings,
    )  # fmt: skip


@lru_cache(maxsize=2)
def _platform(dataset: str, victim: str, seed: int) -> RatingPlatform:
    settings = SETTINGS[dataset].get(victim)
    return RatingPlatform(_log(dataset), victim, victim_config=settings, seed=seed)


@lru_cache(maxsize=4)
def _clean_outcome(dataset: str, victim: str, seed: int) -> RatingOutcome:
    """Retrain without fake users: how far predictions move for the sake of training alone."""
    platform = _platform(dataset, victim, seed)
    target = platform.item_near(TARGET_AVERAGE, np.random.default_rng(seed))
    return platform.outcome(None, RatingGoal(target_items=(target,)))


def _measure_attack(piece: Row) -> dict[str, object]:
    seed = int(str(piece["seed"]))
    platform = _platform(str(piece["dataset"]), str(piece["victim"]), seed)
    target = platform.item_near(TARGET_AVERAGE, np.random.default_rng(seed))
    mu = _mu(piece)
    goal = RatingGoal(availability=mu[0], integrity=mu[1], target_items=(target,))
    n_fakes = max(1, round(float(str(piece["size"])) * platform.n_users))
    budget = AttackBudget(n_fake_users=n_fakes, profile_size=int(str(piece["items_per_user"])))
    start = time.process_time()
    profiles = _attack_of(piece).attack(platform, goal, budget, np.random.default_rng(seed))
    seconds = time.process_time() - start
    clean = _clean_outcome(str(piece["dataset"]), str(piece["victim"]), seed)
    outcome = platform.outcome(profiles, goal)
    return {
        "target": target,
        "n_fake_users": n_fakes,
        "rmse": outcome.rmse,
        "clean_rmse": clean.rmse,
        "average_rating": outcome.average_rating,
        "clean_average_rating": clean.average_rating,
        "utility": outcome.utility,
        "kkt_residual": outcome.kkt_residual,
        "mimicry": asdict(mimicry(platform, profiles)),
        "cpu_seconds": seconds,
    }


def _attack_of(piece: Row) -> RatingAttack:
    name, _, forced = str(piece["attack"]).partition("+")
    settings: dict[str, object] = {"force_targets": True} if forced else {}
    if name != "uniform":
        settings["n_steps"] = piece["steps"]
    if name == "sgld":
        settings["beta"] = piece["beta"]
    return RATING_ATTACKS[name](settings)


# -- the gradients ---------------------------------------------------------------------------------


def _measure_gradient(piece: Row) -> dict[str, object]:
    return {"fd_error": finite_difference_error(str(piece["victim"]), seed=0)}


def finite_difference_error(victim: str, *, seed: int, n_checked: int = 6) -> float:
    """Return the worst relative error of the exact gradient against finite differences.

    On a generated log of 40 users and 30 items, converged fits, the three kinds of goal, some fake
    ratings of each: the largest difference over the largest derivative. Central differences of fourth order.

    Args:
        victim: `"ALS"` or `"NuclearNorm"`.
        seed: Of log and fake users.
        n_checked: Fake ratings that are moved, per goal.
    """
    rng = np.random.default_rng(seed)
    size = SyntheticConfig(n_users=40, n_items=30, n_events=400, n_topics=3)
    log = with_generated_ratings(generate(size, rng).log, rng)
    settings: dict[str, object] = {"reg": 3.0 if victim == "NuclearNorm" else 1.0}
    settings |= {"tolerance": 1e-11, **({"embedding_size": 3} if victim == "ALS" else {})}
    platform = RatingPlatform(log, victim, victim_config=settings)
    items = random_items(log.n_items, AttackBudget(n_fake_users=4, profile_size=6), (), rng)
    ratings = rng.uniform(-TOP, TOP, items.shape)
    point = platform.retrain(items, ratings)
    worst = 0.0
    for mu in ((1.0, 0.0), (0.0, 1.0), (-1.0, 1.0)):
        goal = RatingGoal(availability=mu[0], integrity=mu[1], target_items=(int(items[0, 0]), 3))
        exact = rating_gradient(platform, point, goal, "exact", tolerance=1e-13)
        places = rng.choice(len(exact), n_checked, replace=False)
        slopes = np.array(
            [_slope(platform, point, goal, items, ratings, int(place)) for place in places]
        )
        worst = max(worst, float(np.abs(exact[places] - slopes).max() / np.abs(slopes).max()))
    return worst


def _slope(
    platform: RatingPlatform,
    point: Linearised,
    goal: RatingGoal,
    items: NDArray[np.int64],
    ratings: NDArray[np.float64],
    place: int,
    step: float = 1e-3,
) -> float:
    def utility(moved: float) -> float:
        other = ratings.copy()
        other.flat[place] += moved
        again = platform.retrain(items, other, start=point.items)
        return platform.utility(platform.prediction(again), goal)

    near, far = (utility(h * step) - utility(-h * step) for h in (1, 2))
    return (8.0 * near - far) / (12.0 * step)


def _measure_cost(piece: Row) -> dict[str, object]:
    """Time a gradient beside a sweep, and compare the paper's gradient with the exact one."""
    platform = _platform(str(piece["dataset"]), str(piece["victim"]), 0)
    target = platform.item_near(TARGET_AVERAGE, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    budget = AttackBudget(
        n_fake_users=max(1, platform.n_users // 20),
        profile_size=int(str(piece["items_per_user"])),
    )
    items = random_items(platform.n_items, budget, (target,), rng)
    point = platform.retrain(items, rng.uniform(-TOP, TOP, items.shape))
    cosines, loose = {}, {}
    for mu in GOALS:
        goal = RatingGoal(availability=mu[0], integrity=mu[1], target_items=(target,))
        exact = rating_gradient(platform, point, goal, "exact", tolerance=1e-10)
        name = f"{mu[0]}, {mu[1]}"
        cosines[name] = _cosine(rating_gradient(platform, point, goal, "paper"), exact)
        loose[name] = _cosine(rating_gradient(platform, point, goal, "exact"), exact)
    goal = RatingGoal(availability=1.0)
    utility = utility_gradient(platform, point, goal)
    sweep = _seconds(lambda: Linearised.at(point.matrix, point.item_systems()[1], point.reg))
    result: dict[str, object] = {
        "rank": point.items.shape[1],
        "cosine": cosines,
        "cosine_at_tolerance_0.001": loose,
        "sweep_seconds": sweep,
        "utility_seconds": _seconds(lambda: utility_gradient(platform, point, goal)),
        "exact_seconds": _seconds(lambda: exact_gradient(point, utility)),
        "paper_seconds": _seconds(lambda: rating_gradient(platform, point, goal, "paper")),
    }
    if piece["victim"] == "ALS":
        result["implicit_sweep_seconds"] = _implicit_sweep(platform, point.items.shape[1])
    return result


def _cosine(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    size = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / size if size else None


def _seconds(function: Callable[[], object], n: int = 5) -> float:
    function()
    times = []
    for _ in range(n):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return float(np.median(times))


def _implicit_sweep(platform: RatingPlatform, k: int) -> float | None:
    """Return the CPU time of one iteration of `implicit`'s ALS on as many pairs, or `None` without it."""
    try:
        from implicit.cpu.als import AlternatingLeastSquares
    except ModuleNotFoundError:
        return None
    from scipy.sparse import csr_matrix

    ones = csr_matrix(platform.matrix.sparse(np.ones(len(platform.matrix.ratings))))

    def fit(iterations: int) -> float:
        start = time.process_time()
        model = AlternatingLeastSquares(
            factors=k, regularization=8.0, iterations=iterations, use_cg=False, num_threads=1,
            dtype=np.float64, random_state=0,
        )  # fmt: skip
        model.fit(ones, show_progress=False)
        return time.process_time() - start

    fit(1)
    return (fit(12) - fit(2)) / 10.0


MEASURES: Mapping[str, Callable[[Row], dict[str, object]]] = {
    "attack": _measure_attack,
    "beta": _measure_attack,
    "gradient": _measure_gradient,
    "cost": _measure_cost,
}


# -- what comes of it ------------------------------------------------------------------------------


def claims(attacks: Sequence[Row], betas: Sequence[Row]) -> list[dict[str, object]]:
    """Return the paper's claims with how many of the measured cases bear each out."""
    cells: dict[tuple[object, ...], dict[tuple[tuple[int, int], str], Row]] = {}
    for row in attacks:
        where = (row["dataset"], row["victim"], row["size"], row["seed"])
        cells.setdefault(where, {})[(_mu(row), str(row["attack"]))] = row

    def count(
        text: str, *wanted: tuple[tuple[int, int], str, str], sign: int = 1
    ) -> dict[str, object]:
        """Count the cells in which the values named by `wanted` fall (or rise, for sign -1)."""
        cases = []
        for cell in cells.values():
            if all((mu, attack) in cell for mu, attack, _ in wanted):
                values = [sign * _number(cell[(mu, attack)], what) for mu, attack, what in wanted]
                cases.append(all(a > b for a, b in pairwise(values)))
        return {"claim": text, "holds": sum(cases), "cases": len(cases)}

    rows = [
        count(
            f"({mu[0]}, {mu[1]}): RMSE of PGA > SGLD > uniform",
            (mu, "pga", "rmse"), (mu, "sgld", "rmse"), (mu, "uniform", "rmse"),
        )
        for mu in RMSE_GOALS
    ]  # fmt: skip
    rows.append(count(
        "PGA's RMSE is lower at (1, -1) than at (1, 0)",
        ((1, 0), "pga", "rmse"), ((1, -1), "pga", "rmse"),
    ))  # fmt: skip
    for mu in RATING_GOALS:
        sign, word = (1, "above") if mu[1] > 0 else (-1, "below")
        for attack, floor in (
            ("pga", "uniform"), ("sgld", "uniform"), ("pga+target", "uniform+target")
        ):  # fmt: skip
            rows.append(count(
                f"({mu[0]}, {mu[1]}): average rating of {attack} {word} {floor}",
                (mu, attack, "average_rating"), (mu, floor, "average_rating"), sign=sign,
            ))  # fmt: skip
    rows += [
        count(
            f"{attack} lowers the target less at (-1, -1) than at (0, -1)",
            ((0, -1), attack, "average_rating"), ((-1, -1), attack, "average_rating"), sign=-1,
        )
        for attack in ("pga", "pga+target")
    ]  # fmt: skip
    for test in ("t_rating", "t_rate", "ks", "chi_square"):
        for attack, is_small in (("pga", True), ("sgld", False)):
            own = [row for row in attacks if row["attack"] == attack]
            claim = f"{attack}: p {'<' if is_small else '>='} {P_VALUE} in {test}"
            holds = sum((_p_value(row, test) < P_VALUE) == is_small for row in own)
            rows.append({"claim": claim, "holds": holds, "cases": len(own)})
    rows += _claims_on_beta(betas)
    return rows


def _claims_on_beta(betas: Sequence[Row]) -> list[dict[str, object]]:
    """Count in how many panels the largest beta has more effect, and smaller p, than the smallest."""
    panels: dict[tuple[object, object, tuple[int, int]], list[Row]] = {}
    for row in betas:
        mu = _mu(row)
        panels.setdefault((row["dataset"], row["seed"], mu), []).append(row)
    effect, p_falls = [], []
    for (_, _, mu), rows in panels.items():
        ends = sorted(rows, key=lambda row: _number(row, "beta"))
        low, high = ends[0], ends[-1]
        what = "rmse" if mu in RMSE_GOALS else "average_rating"
        effect.append(_number(high, what) > _number(low, what))
        p_falls.append(_p_value(high, "t_rating") < _p_value(low, "t_rating"))
    return [
        {
            "claim": "RMSE or average rating grows from the smallest to the largest beta",
            "holds": sum(effect), "cases": len(effect),
        },
        {
            "claim": "p of the t-test falls from the smallest to the largest beta",
            "holds": sum(p_falls), "cases": len(p_falls),
        },
    ]  # fmt: skip


def _number(row: Row, name: str) -> float:
    return float(str(row[name]))


def _mu(row: Row) -> tuple[int, int]:
    first, second = cast(list[int], row["mu"])
    return first, second


def _p_value(row: Row, test: str) -> float:
    return _number(cast(Row, row["mimicry"]), test)


def _summary(victim: str, rows: Sequence[Row]) -> dict[str, object]:
    """Return what the last line says of a victim: RMSE at (1, 0) and the largest size, and fd_error."""
    own = [r for r in rows if r["victim"] == victim]
    found = [r for r in own if r["kind"] == "attack" and r["mu"] == [1, 0]]
    largest = [r for r in found if r["size"] == max(_number(r, "size") for r in found)]
    by_attack: dict[str, float | None] = {}
    if largest:
        by_attack["clean"] = float(np.mean([_number(r, "clean_rmse") for r in largest]))
    for attack in dict.fromkeys(str(r["attack"]) for r in largest):
        by_attack[attack] = float(
            np.mean([_number(r, "rmse") for r in largest if r["attack"] == attack])
        )
    errors = [_number(r, "fd_error") for r in own if r["kind"] == "gradient"]
    costs = {
        str(r["dataset"]): {k: r[k] for k in r if k.endswith("_seconds")}
        for r in own
        if r["kind"] == "cost"
    }
    cosines = {str(r["dataset"]): r["cosine"] for r in own if r["kind"] == "cost"}
    return {
        "rmse": by_attack, "fd_error": max(errors, default=None), "cosine": cosines, "seconds": costs,
    }  # fmt: skip


def _report(rows: Sequence[Row]) -> str:
    attacks = [row for row in rows if row["kind"] == "attack"]
    betas = [row for row in rows if row["kind"] == "beta"]
    costs = [row for row in rows if row["kind"] == "cost"]
    parts = ["### Effect\n\n" + _effect_table(attacks)] if attacks else []
    if attacks:
        found = [(c["claim"], f"{c['holds']} of {c['cases']}") for c in claims(attacks, betas)]
        parts.append("### Claims\n\n" + markdown_table(("claim", "holds in"), found))
        parts.append("### Mimicry\n\n" + _mimicry_table([*attacks, *betas]))
    if costs:
        parts.append("### The paper's gradient beside the exact one\n\n" + _cosine_table(costs))
        parts.append("### Cost\n\n" + _cost_table(costs))
    errors = [
        (r["victim"], f"{_number(r, 'fd_error'):.2g}") for r in rows if r["kind"] == "gradient"
    ]
    if errors:
        parts.append(
            "### Finite differences\n\n" + markdown_table(("victim", "worst error"), errors)
        )
    return "\n\n".join(parts)


def _effect_table(attacks: Sequence[Row]) -> str:
    """One line per dataset, victim, goal and size: RMSE or average rating without and with each attack."""
    names = [name for name in ATTACKS if any(row["attack"] == name for row in attacks)]
    groups: dict[tuple[object, object, tuple[int, int], object], list[Row]] = {}
    for row in attacks:
        key = (row["dataset"], row["victim"], _mu(row), row["size"])
        groups.setdefault(key, []).append(row)
    lines = []
    for (dataset, victim, mu, size), group in groups.items():
        what = "rmse" if mu in RMSE_GOALS else "average_rating"
        values = {
            name: float(np.mean([_number(r, what) for r in group if r["attack"] == name]))
            for name in names
            if any(r["attack"] == name for r in group)
        }
        clean = float(np.mean([_number(r, f"clean_{what}") for r in group]))
        label = f"{mu[0]}, {mu[1]}"
        cells = [f"{values[name]:.3f}" if name in values else None for name in names]
        lines.append(
            (dataset, victim, label, f"{float(str(size)):.0%}", what, f"{clean:.3f}", *cells)
        )
    return markdown_table(("dataset", "victim", "mu", "fakes", "measured", "clean", *names), lines)


def _mimicry_table(rows: Sequence[Row]) -> str:
    """Median p-values by dataset, victim, attack and beta."""
    tests = ("t_rating", "t_rate", "ks", "chi_square")
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        key = (row["dataset"], row["victim"], row["attack"], row["beta"])
        groups.setdefault(key, []).append(row)
    lines = [
        (*key, *(f"{np.median([_p_value(r, t) for r in group]):.2g}" for t in tests))
        for key, group in groups.items()
    ]
    return markdown_table(("dataset", "victim", "attack", "beta", *tests), lines)


def _cosine_table(costs: Sequence[Row]) -> str:
    goals = [f"{mu[0]}, {mu[1]}" for mu in GOALS]
    lines = [
        (row["dataset"], row["victim"], label, *(cast(Row, row[field])[goal] for goal in goals))
        for row in costs
        for field, label in (
            ("cosine", "paper"), ("cosine_at_tolerance_0.001", "exact, tolerance 0.001")
        )
    ]  # fmt: skip
    return markdown_table(("dataset", "victim", "gradient", *goals), lines)


def _cost_table(costs: Sequence[Row]) -> str:
    names = ("sweep", "utility", "exact", "paper", "implicit_sweep")
    lines = []
    for row in costs:
        seconds = [row.get(f"{name}_seconds") for name in names]
        ratio = (_number(row, "exact_seconds") + _number(row, "utility_seconds")) / max(
            _number(row, "sweep_seconds"), 1e-9
        )
        lines.append((row["dataset"], row["victim"], row["rank"], *seconds, ratio))
    heads = ("sweep s", "G V, G'U s", "exact s", "paper s", "implicit sweep s")
    return markdown_table(("dataset", "victim", "rank", *heads, "exact / sweep"), lines)


def _draw(attacks: Sequence[Row], betas: Sequence[Row], folder: Path) -> list[Path]:
    drawn = []
    for dataset in dict.fromkeys(str(row["dataset"]) for row in attacks):
        path = folder / f"kkt-{dataset}.png"
        draw_sizes([r for r in attacks if r["dataset"] == dataset], RMSE_GOALS, ATTACKS, path)
        drawn.append(path)
    for dataset in dict.fromkeys(str(row["dataset"]) for row in betas):
        path = folder / f"kkt-{dataset}-beta.png"
        draw_beta([r for r in betas if r["dataset"] == dataset], RMSE_GOALS, path)
        drawn.append(path)
    return drawn


def _write_docs(
    args: argparse.Namespace, text: str, rows: Sequence[Row], pictures: Sequence[Path]
) -> None:
    """Write the report with the command that made it, and every number behind it as JSON beside it."""
    numbers = {
        name: " ".join(map(str, getattr(args, name))) for name in ("sizes", "betas", "seeds")
    }
    command = (
        f"recattack bench kkt --datasets {' '.join(args.datasets)} --victims {' '.join(args.victims)} "
        f"--attacks {' '.join(args.attacks)} --sizes {numbers['sizes']} --betas {numbers['betas']} "
        f"--seeds {numbers['seeds']} --items-per-user {args.items_per_user} --steps {args.steps} "
        f"--nuclear-steps {args.nuclear_steps}"
    )
    shown = "\n".join(
        f"![{path.stem}]({os.path.relpath(path, args.write_docs.parent)})\n" for path in pictures
    )
    page = (
        "# KKT attacks on factorisation models\n\nGenerated by the command below from its result files; do "
        "not edit. [benchmarks.md](../benchmarks.md) discusses it.\n\n"
        f"```console\n$ {command}\n```\n\n{text}\n\n{shown}"
    )
    with atomic_write(args.write_docs) as stream:
        stream.write(f"{page.rstrip()}\n".encode())
    with atomic_write(args.write_docs.with_suffix(".json")) as stream:
        stream.write(json.dumps({"command": command, "pieces": rows}, indent=0).encode())
