"""`recattack demo`: agents that learn to attack, beside the rules of thumb, in two minutes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from agents.attackers import ATTACKERS
from agents.benchmark.tables import markdown_table
from agents.heuristic import HEURISTICS
from agents.options import make_environment, resolved_config
from agents.reports import Report, Stopwatch, versions
from agents.training import TrainingConfig
from recattack_gym.core import ArgumentError
from recattack_gym.core.checks import as_count
from recattack_gym.core.files import atomic_write

ENV_ID = "recattack_gym:RecPoison-ALS-v0"
"""A victim whose fine-tuning gives nearly what training from scratch gives, here as on Steam."""
AGENT = "PPO (trained)"
POISONREC = {"PoisonRec (trained)": "poisonrec", "PoisonRec, warm start": "poisonrec-warm"}
"""Shown name and name in `ATTACKERS` of the learners beside Stable-Baselines3's PPO."""
LEARNERS = (AGENT, *POISONREC)
NO_ATTACK = "no attack"


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """What the demo runs; learners have their default settings, chosen on other seeds."""

    n_fake_users: int = 10
    """Accounts per attack."""
    profile_size: int = 10
    """Clicks per account: attacks a quarter as expensive as PoisonRec's, to fit two minutes."""
    n_queries: int = 640
    """Attacks that every learner may try per seed."""
    n_fresh: int = 32
    """Attacks drawn from a trained policy for its mean."""
    n_full: int = 4
    """Attacks of everybody, of those that the mean is of, that are repeated under full retraining."""

    def __post_init__(self) -> None:
        for name in ("n_fake_users", "profile_size", "n_queries", "n_fresh", "n_full"):
            as_count(name, getattr(self, name))
        most = min(self.n_fresh, self.n_queries)
        if self.n_full > most:
            raise ArgumentError(
                f"n_full must be at most n_fresh and n_queries, {most}, got {self.n_full}"
            )
        rollout = TrainingConfig().n_envs
        if self.n_queries % rollout:
            fewer = self.n_queries // rollout * rollout
            near = f"{fewer} or {fewer + rollout}" if fewer else str(rollout)
            raise ArgumentError(
                f"n_queries must be a multiple of {rollout}, since PPO learns from so many attacks "
                f"at a time, got {self.n_queries}: take {near}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedResult:
    """Everything measured on one platform."""

    seed: int
    """Seed of the platform (clean victim, candidate lists) and of all attackers."""
    clean_rec_num: int
    """RecNum without any attack."""
    max_rec_num: int
    """The largest RecNum there can be."""
    curves: Mapping[str, list[int]]
    """Learner -> RecNum of every attack that it tried, in order."""
    mean: Mapping[str, float]
    """Attacker -> mean RecNum: of a learner's fresh attacks, of all draws of a rule of thumb."""
    full: Mapping[str, float]
    """Attacker -> mean RecNum of the first `n_full` fresh attacks, trained from scratch."""
    best: Mapping[str, int]
    """Attacker -> largest RecNum among equally many attacks, `n_queries` each."""
    config: Mapping[str, object]
    """Every argument of the environment, and of every learner."""


def run_demo(
    out: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    config: DemoConfig | None = None,
    cache_dir: Path | None = None,
    show_progress: bool = True,
) -> Report:
    """Train agents per seed, compare them with the heuristics, and write a picture and the results.

    Every seed is another platform, and other agents. The comparison is on two footings: the mean RecNum
    of an attack (fresh ones from a trained policy, all draws of a heuristic), and the best of
    `n_queries` attacks (all that a learner tried, against as many draws of each
    heuristic, so that nobody may look at more results than the others). A few of the fresh attacks are
    repeated with `retrain="full"`: learners are paid by fine-tuning, which only stands for that.

    Args:
        out: Folder for `learning-curve.png` and `results.json`.
        seeds: Platforms, distinct.
        config: What to run; `None` for the defaults.
        cache_dir: Where fitted victims are kept.
        show_progress: Whether to draw a progress bar on standard error.

    Raises:
        ArgumentError: If a seed is negative or comes twice, or there is none.
    """
    config = config or DemoConfig()
    for seed in seeds:
        as_count("seeds", seed, at_least=0)
    if not seeds or len(set(seeds)) != len(seeds):
        raise ArgumentError(
            f"seeds must be one or more distinct numbers, since each is another platform, "
            f"got {list(seeds)}"
        )
    watch = Stopwatch()
    from agents.demo_figure import draw_learning_curves

    options: dict[str, object] = {
        "n_fake_users": config.n_fake_users,
        "profile_size": config.profile_size,
    }
    if cache_dir is not None:
        options["cache_dir"] = str(cache_dir)
    n_steps = (len(HEURISTICS) + len(LEARNERS)) * config.n_queries * len(seeds)
    with tqdm(total=n_steps, unit="attack", disable=not show_progress) as bar:
        results = [_run_seed(seed, config, options, bar) for seed in seeds]
    table, rows = _compare(results, config)
    figure, record = out / "learning-curve.png", out / "results.json"
    draw_learning_curves(results, figure)
    data: dict[str, object] = {
        "command": "demo",
        "env_id": ENV_ID,
        "seeds": list(seeds),
        "attackers": rows,
        "runs": [asdict(result) for result in results],
        "config": {"demo": asdict(config)},
        "figure": str(figure),
        **watch.fields(),
        "versions": versions(),
    }
    with atomic_write(record) as stream:
        stream.write(json.dumps(data, indent=1, allow_nan=False).encode())
    return Report(text=f"{table}\n\n{figure}\n{record}", data=data)


def _run_seed(
    seed: int, config: DemoConfig, options: Mapping[str, object], bar: "tqdm[NoReturn]"
) -> SeedResult:
    from agents.learner import Learner
    from agents.poisonrec.agent import PoisonRecAttacker
    from recattack_gym.core import Knowledge
    from recattack_gym.simulator import PlatformView

    options = {**options, "platform_seed": seed}
    bar.set_description(f"seed {seed}: fitting the victim")
    env = make_environment(ENV_ID, options)
    simulator = env.simulator
    view = PlatformView(simulator, env.budget, Knowledge.GRAY_BOX)
    mean: dict[str, float] = {NO_ATTACK: float(simulator.clean_rec_num)}
    fresh: dict[str, NDArray[np.int64]] = {}
    best: dict[str, int] = {NO_ATTACK: simulator.clean_rec_num}
    for name, attacker in HEURISTICS.items():
        bar.set_description(f"seed {seed}: {name}")
        draws: list[int] = []
        planner, rng = attacker(), np.random.default_rng(seed)
        while len(draws) < config.n_queries:
            n_draws = min(config.n_fresh, config.n_queries - len(draws))
            sets = np.stack([planner.plan(view, rng).item_ids for _ in range(n_draws)])
            fresh.setdefault(name, sets)
            draws += view.query(sets).tolist()
            bar.update(n_draws)
        mean[name], best[name] = float(np.mean(draws)), max(draws)
    bar.set_description(f"seed {seed}: {AGENT}")
    training = TrainingConfig(
        env_id=ENV_ID,
        env_options=options,
        total_steps=config.n_queries * config.n_fake_users * config.profile_size,
        seed=seed,
    )
    learner = Learner(training)
    learner.run(bar.update)
    rec_nums, fresh[AGENT] = learner.sample(config.n_fresh)
    mean[AGENT] = float(rec_nums.mean())
    curves = {AGENT: learner.progress.rec_nums}
    settings: dict[str, object] = {AGENT: asdict(training)}
    for name, key in POISONREC.items():
        bar.set_description(f"seed {seed}: {name}")
        attacker_class = ATTACKERS[key]
        assert issubclass(attacker_class, PoisonRecAttacker)  # noqa: S101  # both of POISONREC are
        own = attacker_class({"n_queries": config.n_queries}).config
        black_box = PlatformView(simulator, env.budget)
        agent = attacker_class.agent_class(black_box, own, seed=seed)
        agent.learn(on_step=lambda step: bar.update(len(step.rec_nums)))
        curves[name] = np.concatenate([step.rec_nums for step in agent.history]).tolist()
        fresh[name] = agent.sample(config.n_fresh)
        mean[name] = float(black_box.query(fresh[name]).mean())
        settings[name] = asdict(own)
    best |= {name: max(curve) for name, curve in curves.items()}
    full = {NO_ATTACK: float(simulator.clean_rec_num)}
    for name, sets in fresh.items():
        bar.set_description(f"seed {seed}: training from scratch on {name}")
        full[name] = float(simulator.rec_num(sets[: config.n_full], retrain="full").mean())
    return SeedResult(
        seed=seed,
        clean_rec_num=simulator.clean_rec_num,
        max_rec_num=simulator.max_rec_num,
        curves=curves,
        mean=mean,
        full=full,
        best=best,
        config={"env": resolved_config(env), "learners": settings},
    )


def _compare(
    results: Sequence[SeedResult], config: DemoConfig
) -> tuple[str, list[dict[str, object]]]:
    max_rec_num = float(np.mean([result.max_rec_num for result in results]))
    rows: list[dict[str, object]] = []
    for name in (NO_ATTACK, *HEURISTICS, *LEARNERS):
        means = np.array([result.mean[name] for result in results])
        fulls = np.array([result.full[name] for result in results])
        bests = np.array([result.best[name] for result in results])
        rows.append(
            {
                "attacker": name,
                "mean_rec_num": float(means.mean()),
                "mean_per_seed": means.tolist(),
                "share": float(means.mean() / max_rec_num),
                "full_rec_num": float(fulls.mean()),
                "full_per_seed": fulls.tolist(),
                "best_rec_num": float(bests.mean()),
                "best_per_seed": bests.tolist(),
                "n_queries": 0 if name == NO_ATTACK else config.n_queries,
            }
        )
    queries = f"best of {config.n_queries}"
    table = markdown_table(
        (
            "attacker",
            "RecNum",
            "of maximum",
            "smallest seed",
            "retrained in full",
            queries,
            "queries to learn",
        ),
        [
            (
                row["attacker"],
                f"{row['mean_rec_num']:.0f}",
                f"{row['share']:.1%}",
                f"{min(_floats(row['mean_per_seed'])):.0f}",
                f"{row['full_rec_num']:.0f}",
                f"{row['best_rec_num']:.0f}",
                config.n_queries if row["attacker"] in LEARNERS else 0,
            )
            for row in rows
        ],
    )
    return table, rows


def _floats(values: object) -> list[float]:
    return [float(value) for value in np.asarray(values, dtype=np.float64)]


def smoothed(curve: Sequence[int], window: int) -> NDArray[np.float64]:
    """Return the mean of the last `window` values at every place, of fewer at the start."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(curve, dtype=np.float64))])
    end = np.arange(1, len(curve) + 1)
    start = np.maximum(0, end - window)
    means: NDArray[np.float64] = (sums[end] - sums[start]) / (end - start)
    return means
