"""`recattack bench quality`: are the clean victims good recommenders? Measured beside `implicit`."""

import argparse
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from agents.benchmark.sources import dataset_or_synthetic
from agents.benchmark.store import ResultStore
from agents.benchmark.tables import markdown_table
from recattack_gym._version import __version__
from recattack_gym.core import Interactions, UnknownNameError
from recattack_gym.core.checks import as_count
from recattack_gym.datasets import Dataset, Split
from recattack_gym.metrics import hr_at_k, ndcg_at_k
from recattack_gym.simulator.cache import code_hash
from recattack_gym.victims import VICTIMS

logger = logging.getLogger(__name__)

REFERENCE = "implicit BPR"
REFERENCE_GRID = [
    {"learning_rate": rate, "regularization": reg, "iterations": iterations}
    for rate in (0.02, 0.05)
    for reg in (0.01, 0.03, 0.1)
    for iterations in (60, 150)
]
"""What the reference is tuned over, on the validation item; its defaults are 0.01, 0.01, 100."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `recattack bench quality`."""
    parser.add_argument("--datasets", nargs="+", default=["ml-100k", "steam", "ml-1m"])
    parser.add_argument("--victims", nargs="+", default=list(VICTIMS), help="default: all of them")
    parser.add_argument("--k", type=int, default=10, help="length of the lists")
    parser.add_argument("--seed", type=int, default=0, help="seed of training")
    parser.add_argument("--no-reference", action="store_true", help="leave implicit's BPR out")
    parser.add_argument(
        "--out", default="recattack-results/quality", help="finished pieces; resumes"
    )


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure, print a table, and return every number in it."""
    as_count("--k", args.k)
    for name in args.victims:
        if name not in VICTIMS:
            raise UnknownNameError("victim", name, VICTIMS)
    store = ResultStore(args.out)
    names = [*args.victims, *([] if args.no_reference else [REFERENCE])]
    results: dict[str, dict[str, dict[str, object]]] = {}
    with tqdm(total=len(names) * len(args.datasets), desc="bench quality") as progress:
        for source in args.datasets:
            dataset = dataset_or_synthetic(source)
            results[source] = {}
            for name in names:
                progress.set_postfix_str(f"{name} on {dataset.name}")
                results[source][name] = _piece(name, dataset, args, store)
                progress.update()
    header = ("model", "dataset", "HR valid", "HR test", "NDCG test", "fit s")
    rows = [
        (
            name,
            source,
            *(
                _as_float(result[key])
                for key in ("validation_hr", "test_hr", "test_ndcg", "fit_seconds")
            ),
        )
        for source, by_name in results.items()
        for name, result in by_name.items()
    ]
    return {
        "table": markdown_table(header, rows),
        "k": args.k,
        "seed": args.seed,
        "results": results,
    }


def _as_float(value: object) -> float:
    return float(str(value))


def _piece(
    name: str, dataset: Dataset, args: argparse.Namespace, store: ResultStore
) -> dict[str, object]:
    config = REFERENCE_GRID if name == REFERENCE else asdict(VICTIMS[name]().config)
    identity = {
        "piece": f"{dataset.name}-{name.replace(' ', '-')}",
        "version": __version__,
        "code": None if name == REFERENCE else code_hash(VICTIMS[name]),
        "log": dataset.log.content_hash,
        "config": config,
        "k": args.k,
        "seed": args.seed,
    }
    result = store.get(identity)
    if result is None:
        split = dataset.split
        measure = _reference if name == REFERENCE else _victim
        result = measure(name, split, args.k, args.seed)
        store.put(identity, result)
    return result


def _victim(name: str, split: Split, k: int, seed: int) -> dict[str, object]:
    start = time.perf_counter()
    victim = VICTIMS[name]().fit(split.train, np.random.default_rng(seed))
    seconds = time.perf_counter() - start
    shown = victim.recommend(np.arange(split.train.n_users), k)
    return {**_quality(shown, split), "fit_seconds": seconds, "config": asdict(victim.config)}


def _reference(name: str, split: Split, k: int, seed: int) -> dict[str, object]:
    logger.info("tuning %s over %d settings on the validation item", name, len(REFERENCE_GRID))
    tried = []
    for settings in REFERENCE_GRID:
        start = time.perf_counter()
        shown = _implicit_lists(split.train, settings, k, seed)
        seconds = time.perf_counter() - start
        tried.append({**_quality(shown, split), "fit_seconds": seconds, "config": settings})
    best = max(tried, key=lambda result: _as_float(result["validation_ndcg"]))
    return {**best, "n_tried": len(tried)}


def _implicit_lists(
    log: Interactions, settings: Mapping[str, float], k: int, seed: int
) -> NDArray[np.int64]:
    """Train implicit's BPR on the same log and return its top-k lists, seen items left out."""
    from implicit.bpr import BayesianPersonalizedRanking
    from scipy.sparse import csr_matrix

    indptr, items = log.seen
    ones = np.ones(len(items), dtype=np.float32)
    # Copies, because implicit wants to be able to write where it only reads.
    matrix = csr_matrix((ones, items.copy(), indptr.copy()), shape=(log.n_users, log.n_items))
    model = BayesianPersonalizedRanking(
        factors=64,
        learning_rate=settings["learning_rate"],
        regularization=settings["regularization"],
        iterations=int(settings["iterations"]),
        random_state=seed,
        num_threads=0,
    )
    model.fit(matrix, show_progress=False)
    users = np.arange(log.n_users)
    ids, scores = model.recommend(users, matrix, N=k, filter_already_liked_items=True)
    return np.where(np.isfinite(scores) & (scores > -1e30), ids, -1).astype(np.int64)


def _quality(shown: NDArray[np.int64], split: Split) -> dict[str, object]:
    """Return HR and NDCG on both held-out items, over the users on whom they can be measured."""
    validation = np.where(split.evaluable("validation"), split.validation_items, -1)
    test = np.where(split.evaluable("test"), split.test_items, -1)
    return {
        "validation_hr": hr_at_k(shown, validation),
        "validation_ndcg": ndcg_at_k(shown, validation),
        "test_hr": hr_at_k(shown, test),
        "test_ndcg": ndcg_at_k(shown, test),
        "n_users": int((test >= 0).sum()),
    }
