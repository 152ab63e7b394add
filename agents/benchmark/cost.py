"""`recattack bench cost`: seconds per evaluation against users, items, M, victim and mode."""

import argparse
import logging
import time
from functools import partial

import numpy as np
from tqdm import tqdm

from agents.benchmark.poisons import varied_poison
from agents.benchmark.tables import markdown_table
from agents.benchmark.timing import interleaved, peak_memory
from recattack_gym.core import UnknownNameError
from recattack_gym.core.checks import as_count
from recattack_gym.datasets import Dataset, SyntheticConfig, generate
from recattack_gym.simulator import PlatformSimulator
from recattack_gym.victims import VICTIMS

logger = logging.getLogger(__name__)

EVENTS_PER_USER = 25


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `recattack bench cost`."""
    parser.add_argument("--victims", nargs="+", default=list(VICTIMS), help="default: all of them")
    parser.add_argument("--users", type=int, nargs="+", default=[2000, 8000, 32000])
    parser.add_argument("--items", type=int, nargs="+", default=[2000, 16000])
    parser.add_argument("--sets", type=int, nargs="+", default=[1, 32], help="values of M")
    parser.add_argument("--repetitions", type=int, default=3, help="runs per median")
    parser.add_argument("--full", action="store_true", help="also time full retraining of one set")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure on generated logs of `EVENTS_PER_USER` events per user; print and return a table."""
    as_count("--repetitions", args.repetitions)
    for name in args.victims:
        if name not in VICTIMS:
            raise UnknownNameError("victim", name, VICTIMS)
    rows: list[tuple[object, ...]] = []
    sizes = [(users, items) for users in args.users for items in args.items]
    with tqdm(total=len(sizes) * len(args.victims), desc="bench cost") as progress:
        for users, items in sizes:
            config = SyntheticConfig(n_users=users, n_items=items, n_events=EVENTS_PER_USER * users)
            dataset = generate(config, np.random.default_rng(args.seed))
            for name in args.victims:
                progress.set_postfix_str(f"{name}, {users:,} users x {items:,} items")
                rows.append((name, users, items, *_measure(dataset, name, args)))
                progress.update()
    header = ["victim", "users", "items", "fit s", *(f"M = {m}: s" for m in args.sets), "peak MB"]
    if args.full:
        header.append("full, one set: s")
    records = [dict(zip(header, row, strict=True)) for row in rows]
    return {"table": markdown_table(header, rows), "rows": records, "seed": args.seed}


def _measure(dataset: Dataset, name: str, args: argparse.Namespace) -> list[object]:
    start = time.perf_counter()
    simulator = PlatformSimulator(dataset, name, seed=args.seed)
    seconds: list[object] = [time.perf_counter() - start]
    rng = np.random.default_rng(args.seed)
    popularity, targets = simulator.item_popularity, simulator.target_items
    poison = varied_poison(popularity, targets, (max(args.sets), 20, 20), rng)
    times = interleaved(
        {str(m): partial(simulator.exposure, poison[:m]) for m in args.sets}, args.repetitions
    )
    seconds += [times[str(m)].wall_seconds for m in args.sets]
    memory = peak_memory(lambda: simulator.exposure(poison))
    seconds.append(None if memory is None else round(memory / 1e6))
    if args.full:
        start = time.perf_counter()
        simulator.exposure(poison[:1], retrain="full")
        seconds.append(time.perf_counter() - start)
    return seconds
