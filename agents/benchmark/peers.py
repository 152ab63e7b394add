"""`recattack bench peers`: one attack iteration in the unit in which other toolkits were measured.

The unit: ml-100k, ratings of 4 and more as clicks, 9 fake users of 51 clicks (46 fillers and 5
unpopular existing targets), an update of the warm model, then the top 50 of every genuine user from the
whole catalogue. The others update by 10 epochs over the whole poisoned log, we by the default
`retrain="finetune"`, which trains what the poison decides to the same end.
"""

import argparse
import logging
from functools import partial

import numpy as np
from numpy.typing import NDArray

from agents.benchmark.tables import markdown_table
from agents.benchmark.timing import interleaved
from recattack_gym.core import Interactions
from recattack_gym.core.checks import as_count
from recattack_gym.datasets import from_interactions, load
from recattack_gym.simulator import PlatformSimulator

logger = logging.getLogger(__name__)

PUBLISHED_CPU_SECONDS = {
    "ARLib GMF": "6.3-6.9",
    "ARLib LightGCN": "9.9-11.2",
    "ARLib NGCF": "17.4-19.5",
    "RecAD MF": "17-19",
    "GradientPassingAttack MF": "15-16",
}
"""CPU seconds of the same unit on a machine of this kind, as measured for this project's design."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `recattack bench peers`."""
    parser.add_argument("--victims", nargs="+", default=["BPR", "PMF", "NGCF"])
    parser.add_argument("--repetitions", type=int, default=5, help="runs per median")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure, print a table, and return it with CPU seconds and quality per victim."""
    as_count("--repetitions", args.repetitions)
    log = _liked(load("ml-100k").log)
    dataset = from_interactions(log)
    results: dict[str, dict[str, object]] = {}
    for name in args.victims:
        targets = _unpopular(dataset.split.train, np.random.default_rng(args.seed))
        simulator = PlatformSimulator(
            dataset,
            name,
            targets=targets.tolist(),
            n_candidates=None,
            k=50,
            seed=args.seed,
        )
        poison = _poison(simulator, np.random.default_rng(args.seed))
        times = interleaved({name: partial(simulator.exposure, poison)}, args.repetitions)
        effects = simulator.side_effects(poison)
        results[name] = {
            "cpu_seconds": times[name].cpu_seconds,
            "wall_seconds": times[name].wall_seconds,
            "clean_hr_at_50": effects.clean_hr_at_k,
            "poisoned_hr_at_50": float(effects.hr_at_k[0]),
            "rec_num": int(simulator.rec_num(poison)[0]),
            "clean_rec_num": simulator.clean_rec_num,
        }
    header = ("toolkit", "CPU s", "wall s", "HR@50 clean", "HR@50 poisoned")
    ours = [
        (
            f"recattack-gym {name}",
            *(
                result[key]
                for key in ("cpu_seconds", "wall_seconds", "clean_hr_at_50", "poisoned_hr_at_50")
            ),
        )
        for name, result in results.items()
    ]
    theirs = [(name, seconds, None, None, None) for name, seconds in PUBLISHED_CPU_SECONDS.items()]
    return {"table": markdown_table(header, [*ours, *theirs]), "victims": results}


def _liked(log: Interactions) -> Interactions:
    """Return the clicks that ratings of 4 and more stand for."""
    if log.ratings is None:
        return log
    return log.select(log.ratings >= 4.0)


def _unpopular(log: Interactions, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return 5 items of the least popular fifth of those that were clicked."""
    popularity = log.item_popularity
    clicked = np.flatnonzero(popularity)
    ranked = clicked[np.argsort(popularity[clicked], kind="stable")]
    return np.sort(rng.choice(ranked[: len(ranked) // 5], 5, replace=False))


def _poison(simulator: PlatformSimulator, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return one set of 9 fake users with 46 distinct random fillers and the 5 targets each."""
    fillers = np.setdiff1d(np.flatnonzero(simulator.item_popularity), simulator.target_items)
    rows = [
        rng.permutation(np.append(rng.choice(fillers, 46, replace=False), simulator.target_items))
        for _ in range(9)
    ]
    return np.stack(rows)[None]
