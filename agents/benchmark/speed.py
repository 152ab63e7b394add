"""`recattack bench speed`: the plain twin of every victim against its engine, in one run."""

import argparse
import logging
from dataclasses import asdict

import numpy as np

from agents.benchmark.poisons import varied_poison
from agents.benchmark.sources import dataset_or_synthetic
from agents.benchmark.tables import markdown_table
from agents.benchmark.timing import interleaved, peak_memory
from recattack_gym.core import UnknownNameError
from recattack_gym.core.checks import as_count
from recattack_gym.simulator import PlatformSimulator
from recattack_gym.victims import VICTIMS

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `recattack bench speed`."""
    parser.add_argument("--dataset", default="steam", help="log to measure on (default: steam)")
    parser.add_argument("--protocol", default=None, help="preprocessing preset, e.g. poisonrec")
    parser.add_argument("--victims", nargs="+", default=list(VICTIMS), help="default: all of them")
    parser.add_argument("--sets", type=int, default=32, help="poison sets per call, M")
    parser.add_argument("--n-fake-users", type=int, default=20, help="fake users per set, N")
    parser.add_argument("--profile-size", type=int, default=20, help="clicks per fake user, T")
    parser.add_argument("--repetitions", type=int, default=5, help="runs per median")
    parser.add_argument(
        "--plain-sets",
        type=int,
        default=4,
        help="sets that the plain side runs per repetition; its times are scaled up to --sets",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the platform and the poison")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure, print a table, and return `{"ratios": {victim: wall ratio}, "victims": ...}`."""
    for name in ("sets", "n_fake_users", "profile_size", "repetitions", "plain_sets"):
        as_count(f"--{name.replace('_', '-')}", getattr(args, name))
    for name in args.victims:
        if name not in VICTIMS:
            raise UnknownNameError("victim", name, VICTIMS)
    dataset = dataset_or_synthetic(args.dataset, args.protocol)
    n_plain = min(args.plain_sets, args.sets)
    results: dict[str, dict[str, object]] = {}
    for name in args.victims:
        logger.info("bench speed: %s on %s", name, dataset.name)
        results[name] = _measure(PlatformSimulator(dataset, name, seed=args.seed), args, n_plain)
    rows = [
        (
            name,
            float(str(result["plain_wall_seconds"])),
            float(str(result["engine_wall_seconds"])),
            float(str(result["ratio_wall"])),
            float(str(result["ratio_cpu"])),
            result["peak_memory_megabytes"],
            result["sets_equal"],
        )
        for name, result in results.items()
    ]
    header = ("victim", "plain s", "engine s", "ratio wall", "ratio CPU", "peak MB", "RecNum equal")
    return {
        "table": markdown_table(header, rows),
        "dataset": dataset.name,
        "sets": args.sets,
        "plain_sets": n_plain,
        "repetitions": args.repetitions,
        "ratios": {name: result["ratio_wall"] for name, result in results.items()},
        "victims": results,
    }


def _measure(
    simulator: PlatformSimulator, args: argparse.Namespace, n_plain: int
) -> dict[str, object]:
    victim, lists = simulator.victim, simulator.lists
    shape = (args.sets, args.n_fake_users, args.profile_size)
    poison = varied_poison(
        simulator.item_popularity, simulator.target_items, shape, np.random.default_rng(args.seed)
    )
    spread = np.linspace(0, args.sets - 1, n_plain).round().astype(np.int64)
    plain, engine = victim.engine(lists, backend="plain"), victim.engine(lists)
    slow = plain.exposure(poison[spread], args.seed).sum(axis=1)
    fast = engine.exposure(poison, args.seed).sum(axis=1)
    times = interleaved(
        {
            "plain": lambda: plain.exposure(poison[spread], args.seed),
            "engine": lambda: engine.exposure(poison, args.seed),
        },
        args.repetitions,
    )
    memory = peak_memory(lambda: engine.exposure(poison, args.seed))
    scale = args.sets / n_plain
    return {
        "plain_wall_seconds": times["plain"].wall_seconds * scale,
        "plain_cpu_seconds": times["plain"].cpu_seconds * scale,
        "engine_wall_seconds": times["engine"].wall_seconds,
        "engine_cpu_seconds": times["engine"].cpu_seconds,
        "ratio_wall": round(times["plain"].wall_seconds * scale / times["engine"].wall_seconds, 2),
        "ratio_cpu": round(times["plain"].cpu_seconds * scale / times["engine"].cpu_seconds, 2),
        "peak_memory_megabytes": None if memory is None else round(memory / 1e6, 1),
        "sets_equal": f"{int((slow == fast[spread]).sum())}/{n_plain}",
        "largest_difference": int(np.abs(slow - fast[spread]).max()),
        "config": asdict(victim.config),
    }
