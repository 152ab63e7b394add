"""What `recattack bench kkt` measures: its settings, and everything that decides each measurement."""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import cast

from recattack_gym import __version__
from recattack_gym.core.sources import imported_files, source_digest
from recattack_gym.simulator.cache import code_hash
from recattack_gym.victims import VICTIMS

Row = Mapping[str, object]

DATASETS = ("ml-100k", "ml-1m-part")
SMOKE = "generated"
RATING_VICTIMS = ("ALS", "NuclearNorm")
"""Rating victims with a gradient: what LTS-MF leaves out has none."""
RMSE_GOALS = ((1, 0), (1, -1))
RATING_GOALS = ((0, 1), (-1, 1), (0, -1), (-1, -1))
GOALS = (*RMSE_GOALS, *RATING_GOALS)
"""(mu_1, mu_2) of the paper's panels, and by what each panel measures."""
ATTACKS = ("uniform", "pga", "sgld", "uniform+target", "pga+target", "sgld+target")
"""`+target`: every fake user rates the target, which the paper's do not."""
PART_USERS, PART_ITEMS = 1_000, 1_700
"""Of ml-1m, as in the paper's section 5."""
SETTINGS: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    "ml-100k": {},
    "ml-1m-part": {},
    SMOKE: {"ALS": {"embedding_size": 4, "reg": 2.0}, "NuclearNorm": {"reg": 6.0}},
}
BETA = 0.6
"""Of SGLD where nothing else is said, as in the paper."""
TARGET_AVERAGE = 0.8
"""Average clean prediction of the target item (section 5)."""


def all_pieces(args: argparse.Namespace) -> list[dict[str, object]]:
    """Return everything that decides each measurement: seed by seed, cheap victims first."""
    pieces: list[dict[str, object]] = []
    for victim in args.victims:
        pieces.append({**_base(args, victim), "kind": "gradient", "piece": f"{victim}-gradient"})
        for dataset in args.datasets:
            on = _on(args, victim, dataset)
            pieces.append({**on, "kind": "cost", "piece": f"{dataset}-{victim}-cost"})
    for seed in args.seeds:
        for victim in args.victims:
            for dataset in args.datasets:
                on = _on(args, victim, dataset)
                pieces += [{**on, "seed": seed, **piece} for piece in _attacks(args, victim)]
    distinct = {str(sorted(piece.items())): piece for piece in pieces}
    return list(distinct.values())


def _base(args: argparse.Namespace, victim: str) -> dict[str, object]:
    steps = args.nuclear_steps if victim == "NuclearNorm" else args.steps
    return {
        "version": __version__, "code": _code(victim), "victim": victim,
        "items_per_user": args.items_per_user, "steps": steps,
    }  # fmt: skip


def _on(args: argparse.Namespace, victim: str, dataset: str) -> dict[str, object]:
    config = VICTIMS[victim](SETTINGS[dataset].get(victim)).config
    name = f"{dataset}-{victim}-attack"
    return {
        **_base(args, victim), "dataset": dataset, "config": asdict(config), "kind": "attack",
        "piece": name,
    }  # fmt: skip


def _attacks(args: argparse.Namespace, victim: str) -> Iterator[dict[str, object]]:
    """Yield size, goal, attack and beta, sizes outermost: a uniform attack is one for all goals."""
    middle = sorted(args.sizes)[len(args.sizes) // 2]
    for size in args.sizes:
        for mu in GOALS:
            for attack in args.attacks:
                if mu[1] != 0 or not attack.endswith("+target"):
                    beta = BETA if attack.startswith("sgld") else None
                    yield {"mu": list(mu), "size": size, "attack": attack, "beta": beta}
            if victim == "ALS" and size == middle and mu not in RATING_GOALS[2:]:
                for beta in args.betas:
                    yield {"mu": list(mu), "size": size, "attack": "sgld", "beta": beta}


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


def goal_of(row: Row) -> tuple[int, int]:
    """Return (mu_1, mu_2)."""
    first, second = cast(list[int], row["mu"])
    return first, second


def number(row: Row, name: str) -> float:
    """Return a value as a number."""
    return float(str(row[name]))
