"""How `recattack bench kkt` measures: attacks, gradients against finite differences, and their cost."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from agents.benchmark.kkt_pieces import (
    GOALS,
    PART_ITEMS,
    PART_USERS,
    SETTINGS,
    SMOKE,
    TARGET_AVERAGE,
    Row,
    goal_of,
)
from agents.gradient.ratings import RATING_ATTACKS, Mimicry, PGAConfig, RatingAttack, mimicry
from agents.gradient.ratings.adjoints import (
    RatingGradient,
    carried,
    exact_gradient,
    rating_gradient,
    utility_gradient,
)
from agents.gradient.ratings.base import random_items
from recattack_gym.core import AttackBudget, FakeProfiles, Interactions
from recattack_gym.datasets import SyntheticConfig, generate, load, with_generated_ratings
from recattack_gym.simulator import RatingGoal, RatingPlatform
from recattack_gym.victims.least_squares import TOP, Linearised

PATH_STEPS = 4
"""Steps of PGA along which its gradients are compared with converged ones."""
_FEWEST, _LONG = 5, 5.0
"""Timed calls of a function, and CPU seconds after which that number is enough."""
PATH_GOALS = ((1, 0), (0, 1), (-1, 1))
"""Goals of these paths: one of each kind."""


@lru_cache(maxsize=2)
def log_of(dataset: str) -> Interactions:
    """Return the rated log of a dataset's name."""
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
def platform_of(dataset: str, victim: str, seed: int) -> RatingPlatform:
    """Return the platform with a victim trained on the clean log."""
    settings = SETTINGS[dataset].get(victim)
    return RatingPlatform(log_of(dataset), victim, victim_config=settings, seed=seed)


@lru_cache(maxsize=4)
def _clean_point(dataset: str, victim: str, seed: int) -> Linearised:
    """Retrain without fake users: how far predictions move for the sake of training alone."""
    platform = platform_of(dataset, victim, seed)
    return platform.victim.solve(platform.matrix, platform.clean.items)


def _target(platform: RatingPlatform, seed: int) -> int:
    return platform.item_near(TARGET_AVERAGE, np.random.default_rng(seed))


def measure_attack(piece: Row) -> dict[str, object]:
    """Attack, retrain and compare; of PGA and SGLD also the CPU time of the attack itself."""
    dataset, victim, seed = str(piece["dataset"]), str(piece["victim"]), int(str(piece["seed"]))
    platform = platform_of(dataset, victim, seed)
    target, mu = _target(platform, seed), goal_of(piece)
    goal = RatingGoal(availability=mu[0], integrity=mu[1], target_items=(target,))
    n_fakes = max(1, round(float(str(piece["size"])) * platform.n_users))
    budget = AttackBudget(n_fake_users=n_fakes, profile_size=int(str(piece["items_per_user"])))
    start = time.process_time()
    name, _, forced = str(piece["attack"]).partition("+")
    if name == "uniform":
        point, looks = _uniform(dataset, victim, seed, budget, forced)
    else:
        profiles = _attack_of(piece).attack(platform, goal, budget, np.random.default_rng(seed))
        seconds = time.process_time() - start
        point, looks = _injected(platform, profiles, seed)
    effect = platform.effect(point, goal)
    clean = platform.effect(_clean_point(dataset, victim, seed), goal)
    return {
        "target": target,
        "n_fake_users": n_fakes,
        "rmse": effect.rmse,
        "clean_rmse": clean.rmse,
        "average_rating": effect.average_rating,
        "clean_average_rating": clean.average_rating,
        "utility": effect.utility,
        "kkt_residual": effect.kkt_residual,
        "mimicry": asdict(looks),
        "cpu_seconds": None if name == "uniform" else seconds,
    }


@lru_cache(maxsize=2)
def _uniform(
    dataset: str, victim: str, seed: int, budget: AttackBudget, forced: str
) -> tuple[Linearised, Mimicry]:
    """Return what uniform ratings do to the victim, whatever the goal."""
    platform = platform_of(dataset, victim, seed)
    goal = RatingGoal(integrity=1.0, target_items=(_target(platform, seed),))
    attack = RATING_ATTACKS["uniform"]({"force_targets": bool(forced)})
    return _injected(
        platform, attack.attack(platform, goal, budget, np.random.default_rng(seed)), seed
    )


def _injected(
    platform: RatingPlatform, profiles: FakeProfiles, seed: int
) -> tuple[Linearised, Mimicry]:
    point = platform.retrain(profiles.item_ids, platform.shifted(profiles))
    return point, mimicry(platform, profiles, np.random.default_rng(seed))


def _attack_of(piece: Row) -> RatingAttack:
    name, _, forced = str(piece["attack"]).partition("+")
    settings: dict[str, object] = {"force_targets": bool(forced), "n_steps": piece["steps"]}
    if name == "sgld":
        settings["beta"] = piece["beta"]
    return RATING_ATTACKS[name](settings)


# -- the gradients ---------------------------------------------------------------------------------


def measure_gradient(piece: Row) -> dict[str, object]:
    """Compare the exact gradient with finite differences."""
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


def measure_cost(piece: Row) -> dict[str, object]:
    """Time a gradient beside a sweep, and compare the paper's gradient, and PGA's, with the exact one."""
    platform = platform_of(str(piece["dataset"]), str(piece["victim"]), 0)
    target, rng = _target(platform, 0), np.random.default_rng(0)
    budget = AttackBudget(
        n_fake_users=max(1, platform.n_users // 20),
        profile_size=int(str(piece["items_per_user"])),
    )
    items = random_items(platform.n_items, budget, (target,), rng)
    point = platform.retrain(items, rng.uniform(-TOP, TOP, items.shape))
    cosines = {}
    for mu in GOALS:
        goal = RatingGoal(availability=mu[0], integrity=mu[1], target_items=(target,))
        exact = rating_gradient(platform, point, goal, "exact", tolerance=1e-10)
        paper = rating_gradient(platform, point, goal, "paper")
        cosines[f"{mu[0]}, {mu[1]}"] = _cosine(paper, exact)
    result: dict[str, object] = {
        "rank": point.items.shape[1],
        "cosine": cosines,
        "path_cosine": {
            f"{mu[0]}, {mu[1]}": _path_cosine(platform, mu, target, budget) for mu in PATH_GOALS
        },
        **_gradient_seconds(platform, items),
    }
    if piece["victim"] == "ALS":
        result["implicit_sweep_seconds"] = _implicit_sweep(platform, point.items.shape[1])
    return result


def _path_cosine(
    platform: RatingPlatform, mu: tuple[int, int], target: int, budget: AttackBudget
) -> float:
    """Return the smallest cosine of PGA's gradients to converged ones, on a path of a few steps."""
    rng, config = np.random.default_rng(0), PGAConfig()
    goal = RatingGoal(availability=mu[0], integrity=mu[1], target_items=(target,))
    items = random_items(platform.n_items, budget, (), rng)
    ratings, start, worst = rng.uniform(-TOP, TOP, items.shape), None, 1.0
    own = RatingGradient(
        platform, goal, tolerance=config.tolerance, max_iterations=config.gradient_iterations
    )
    converged = RatingGradient(platform, goal, tolerance=1e-8)
    for _ in range(PATH_STEPS):
        point = platform.retrain(items, ratings, start=start, tolerance=config.tolerance)
        start, slope = point.items, own.at(point)
        worst = min(worst, _cosine(slope, converged.at(point)) or 0.0)
        move = config.step_size * slope / np.sqrt((slope**2).mean())
        ratings = np.clip(ratings + move.reshape(items.shape), -TOP, TOP)
    return worst


def _gradient_seconds(platform: RatingPlatform, items: NDArray[np.int64]) -> dict[str, float]:
    """Time what a step of PGA adds to retraining, beside a sweep of ALS over the same ratings.

    The gradient is that of PGA's second step, (1, 0), as PGA takes it: the utility's derivative, the linear
    system from the first step's answer on, and reading the answer off at the fake ratings. The item blocks
    that it preconditions with are left over from retraining.
    """
    config, goal, rng = PGAConfig(), RatingGoal(availability=1.0), np.random.default_rng(1)
    ratings = rng.uniform(-TOP, TOP, items.shape)
    first = platform.retrain(items, ratings, tolerance=config.tolerance)
    slope, adjoint = exact_gradient(first, utility_gradient(platform, first, goal))
    move = config.step_size * slope.reshape(items.shape) / np.sqrt((slope**2).mean())
    ratings = np.clip(ratings + move, -TOP, TOP)
    point = platform.retrain(items, ratings, start=first.items, tolerance=config.tolerance)
    utility = utility_gradient(platform, point, goal)

    def step() -> None:
        exact_gradient(
            point, utility_gradient(platform, point, goal),
            tolerance=config.tolerance, max_iterations=config.gradient_iterations,
            start=carried(first.items, adjoint, point.items),
        )  # fmt: skip

    return _seconds({
        "sweep": lambda: Linearised.at(point.matrix, point.item_systems()[1], point.reg),
        "utility": lambda: utility_gradient(platform, point, goal),
        "step": step,
        "exact": lambda: exact_gradient(point, utility),
        "paper": lambda: rating_gradient(platform, point, goal, "paper"),
    })  # fmt: skip


def _cosine(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    size = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / size if size else None


def _seconds(functions: Mapping[str, Callable[[], object]], n: int = 15) -> dict[str, float]:
    """Return the median CPU time of each function, all in turn, n times after a first one; fewer if slow."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    began = time.process_time()
    for number in range(n + 1):
        if number > _FEWEST and time.process_time() - began > _LONG:
            break
        for name, function in functions.items():
            start = time.process_time()
            function()
            times[name].append(time.process_time() - start)
    return {f"{name}_seconds": float(np.median(own[1:])) for name, own in times.items()}


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
    "attack": measure_attack,
    "gradient": measure_gradient,
    "cost": measure_cost,
}
