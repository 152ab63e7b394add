"""`recattack bench fidelity`: does cheap fine-tuning order attacks as full retraining does?"""

import argparse
import logging
import multiprocessing
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from tqdm import tqdm

from agents.benchmark.poisons import KINDS, poison_set
from agents.benchmark.published import TABLE3_HEURISTICS, TABLE3_VICTIMS
from agents.benchmark.sources import dataset_or_synthetic
from agents.benchmark.store import ResultStore
from agents.benchmark.tables import markdown_table
from agents.heuristic import HEURISTICS
from recattack_gym._version import __version__
from recattack_gym.core import Knowledge, UnknownNameError
from recattack_gym.core.checks import as_count
from recattack_gym.datasets import Dataset
from recattack_gym.simulator import PlatformSimulator, PlatformView
from recattack_gym.simulator.cache import code_hash
from recattack_gym.victims import VICTIMS, Victim

logger = logging.getLogger(__name__)


RESEED_EVERY = 2
"""Of how many varied attacks one is also evaluated by full retraining from another seed.

With 2 these are the attacks of every second kind in `KINDS`.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `recattack bench fidelity`."""
    parser.add_argument("--dataset", default="steam", help="log to measure on (default: steam)")
    parser.add_argument("--protocol", default=None, help="preprocessing preset, e.g. poisonrec")
    parser.add_argument("--victims", nargs="+", default=list(VICTIMS), help="default: all of them")
    parser.add_argument("--attacks", type=int, default=32, help="varied attacks per victim")
    parser.add_argument("--draws", type=int, default=3, help="draws of each heuristic attack")
    parser.add_argument(
        "--seed", type=int, default=1000, help="seed of the platform and the attacks"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="processes; each takes one victim's attack"
    )
    parser.add_argument(
        "--out", default="recattack-results/fidelity", help="finished pieces; resumes"
    )


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure, print tables, and return them with every RecNum behind them."""
    for name in ("attacks", "draws", "jobs"):
        as_count(f"--{name}", getattr(args, name))
    for name in args.victims:
        if name not in VICTIMS:
            raise UnknownNameError("victim", name, VICTIMS)
    dataset = dataset_or_synthetic(args.dataset, args.protocol)
    pieces = [
        {
            "piece": f"{dataset.name}-{victim}-{kind}-{number}",
            "version": __version__,
            "code": code_hash(VICTIMS[victim]),
            "dataset": args.dataset,
            "protocol": args.protocol,
            "log": dataset.log.content_hash,
            "victim": victim,
            "config": asdict(VICTIMS[victim]().config),
            "seed": args.seed,
            "kind": kind,
            "number": number,
        }
        for victim in args.victims
        for kind, count in (("varied", args.attacks), *((name, args.draws) for name in HEURISTICS))
        for number in range(count)
    ]
    store = ResultStore(args.out)
    open_pieces = [piece for piece in pieces if store.get(piece) is None]
    _finish(open_pieces, store, args.jobs)
    done = {str(piece["piece"]): _required(store, piece) for piece in pieces}
    victims = {name: _summary(f"{dataset.name}-{name}", args, done) for name in args.victims}
    return {
        "table": "\n\n".join((_agreement_table(victims), _heuristics_table(dataset, victims))),
        "dataset": dataset.name,
        "protocol": dataset.protocol,
        "victims": victims,
        "spearman": {name: result["spearman"] for name, result in victims.items()},
    }


def _finish(pieces: list[dict[str, object]], store: ResultStore, jobs: int) -> None:
    progress = tqdm(total=len(pieces), desc="bench fidelity", unit="attack")
    with progress:
        if jobs == 1:
            for piece in pieces:
                store.put(piece, _measure(piece))
                progress.update()
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_thread) as pool:
            for piece, result in zip(pieces, pool.map(_measure, pieces), strict=True):
                store.put(piece, result)
                progress.update()


def _one_thread() -> None:
    import os

    import torch

    os.environ["RECATTACK_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


_simulators: dict[tuple[object, ...], PlatformSimulator] = {}


def _simulator(piece: Mapping[str, object]) -> PlatformSimulator:
    key = (piece["dataset"], piece["protocol"], piece["victim"], piece["seed"])
    if key not in _simulators:
        _simulators.clear()  # one at a time: pieces come victim by victim
        protocol = None if piece["protocol"] is None else str(piece["protocol"])
        dataset = dataset_or_synthetic(str(piece["dataset"]), protocol)
        _simulators[key] = PlatformSimulator(
            dataset, str(piece["victim"]), seed=int(str(piece["seed"]))
        )
    return _simulators[key]


_reseeded_victims: dict[PlatformSimulator, Victim] = {}


def _reseeded(simulator: PlatformSimulator) -> Victim:
    """Return the clean victim that the platform would have with another seed."""
    if simulator not in _reseeded_victims:
        _reseeded_victims.clear()
        clean = simulator.victim
        fresh = type(clean)(clean.config)
        rng = np.random.default_rng([simulator.seed, 1])
        fresh.fit(clean.log, rng, n_new_items=clean.n_new_items)
        _reseeded_victims[simulator] = fresh
    return _reseeded_victims[simulator]


def _measure(piece: Mapping[str, object]) -> dict[str, object]:
    simulator = _simulator(piece)
    seed, number = int(str(piece["seed"])), int(str(piece["number"]))
    rng = np.random.default_rng([seed, number])
    is_varied = piece["kind"] == "varied"
    if is_varied:
        profile = poison_set(
            KINDS[number % len(KINDS)],
            simulator.item_popularity,
            simulator.target_items,
            (20, 20),
            rng,
        )
    else:
        view = PlatformView(simulator, knowledge=Knowledge.GRAY_BOX)
        profile = HEURISTICS[str(piece["kind"])]().plan(view, rng).item_ids
    seconds = {}
    rec_num = {}
    for retrain in ("finetune", "full"):
        start = time.perf_counter()
        rec_num[retrain] = int(simulator.rec_num(profile, retrain=retrain)[0])
        seconds[retrain] = time.perf_counter() - start
    reseeded = None
    if is_varied and number % RESEED_EVERY == 0:
        engine = _reseeded(simulator).engine(simulator.lists, retrain="full")
        reseeded = int(engine.exposure(profile[None], seed).sum())
    return {
        "finetune": rec_num["finetune"],
        "full": rec_num["full"],
        "reseeded": reseeded,
        "finetune_seconds": seconds["finetune"],
        "full_seconds": seconds["full"],
        "clean_rec_num": simulator.clean_rec_num,
        "max_rec_num": simulator.max_rec_num,
    }


def _required(store: ResultStore, piece: Mapping[str, object]) -> dict[str, object]:
    result = store.get(piece)
    assert result is not None, f"{piece['piece']} was just written"  # noqa: S101  # cannot happen
    return result


def _summary(
    pieces: str, args: argparse.Namespace, done: Mapping[str, Mapping[str, object]]
) -> dict[str, object]:
    """Put the pieces of one victim together, whose names begin with `pieces`."""
    varied = [done[f"{pieces}-varied-{n}"] for n in range(args.attacks)]
    finetune, full = (_column(varied, mode) for mode in ("finetune", "full"))
    again = [result for result in varied if result["reseeded"] is not None]
    low, high = _bootstrap_interval(finetune, full, np.random.default_rng(args.seed))
    heuristics = {
        name: {
            mode: float(np.mean([done[f"{pieces}-{name}-{n}"][mode] for n in range(args.draws)]))
            for mode in ("finetune", "full")
        }
        for name in HEURISTICS
    }
    return {
        "spearman": _spearman(finetune, full),
        "spearman_low": low,
        "spearman_high": high,
        "level": float(finetune.sum() / full.sum()) if full.any() else None,
        "reseeded_spearman": _spearman(_column(again, "full"), _column(again, "reseeded")),
        "finetune": finetune.tolist(),
        "full": full.tolist(),
        "clean_rec_num": varied[0]["clean_rec_num"],
        "max_rec_num": varied[0]["max_rec_num"],
        "finetune_seconds": float(np.median(_column(varied, "finetune_seconds"))),
        "full_seconds": float(np.median(_column(varied, "full_seconds"))),
        "heuristics": heuristics,
    }


def _column(results: list[Mapping[str, object]], name: str) -> NDArray[np.float64]:
    return np.array([float(str(result[name])) for result in results])


def _spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Return Spearman's rank correlation, or `None` where one side does not vary."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)


def _bootstrap_interval(
    first: NDArray[np.float64], second: NDArray[np.float64], rng: np.random.Generator
) -> tuple[float | None, float | None]:
    draws = [rng.integers(len(first), size=len(first)) for _ in range(1000)]
    values = [_spearman(first[draw], second[draw]) for draw in draws]
    known = [value for value in values if value is not None]
    if not known:
        return None, None
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def _agreement_table(victims: Mapping[str, Mapping[str, object]]) -> str:
    """Set the agreement of fine-tuning beside that of two full retrainings from different seeds."""
    header = (
        "victim",
        "Spearman",
        "95 % low",
        "95 % high",
        "attacks",
        "finetune / full",
        "full, two seeds",
        "clean",
        "finetune min..max",
        "full min..max",
        "finetune s",
        "full s",
    )
    rows = []
    for name, result in victims.items():
        finetune, full = np.array(result["finetune"]), np.array(result["full"])
        rows.append(
            (
                name,
                result["spearman"],
                result["spearman_low"],
                result["spearman_high"],
                len(full),
                result["level"],
                result["reseeded_spearman"],
                result["clean_rec_num"],
                f"{finetune.min():,.0f}..{finetune.max():,.0f}",
                f"{full.min():,.0f}..{full.max():,.0f}",
                result["finetune_seconds"],
                result["full_seconds"],
            )
        )
    return markdown_table(header, rows)


def _heuristics_table(dataset: Dataset, victims: Mapping[str, Mapping[str, object]]) -> str:
    """Set the heuristics beside the paper's, which are about its own selection of users."""
    is_papers = dataset.protocol == "poisonrec"
    published = TABLE3_HEURISTICS.get(dataset.name, {}) if is_papers else {}
    header = ("victim", "attack", "finetune", "full", "paper")
    rows = []
    for victim, result in victims.items():
        heuristics: Mapping[str, Mapping[str, float]] = result["heuristics"]  # type: ignore[assignment]
        for attack, ours in heuristics.items():
            paper = None
            if attack in published and victim in TABLE3_VICTIMS:
                paper = published[attack][TABLE3_VICTIMS.index(victim)]
            rows.append((victim, attack, ours["finetune"], ours["full"], paper))
    return markdown_table(header, rows)
