"""`recattack bench gp`: attacks through surrogates with and without Gradient Passing, both sides in one run.

Three questions of "Accelerating the Surrogate Retraining for Poisoning Attacks against Recommender Systems"
(RecSys 2024): how near is a surrogate to the victim after so many epochs (JS@50), how strong is the attack
at equal epochs, and what does equal strength cost. Each finished piece is one JSON file, so a run that was
killed goes on where it was.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
from joblib import delayed
from numpy.typing import NDArray
from tqdm import tqdm

from agents.attackers import ATTACKERS
from agents.benchmark.gp_figure import draw_gp
from agents.benchmark.gp_platform import Lab, lab, lists_of, strength, trained_victim
from agents.benchmark.gp_report import report
from agents.benchmark.gp_speed import measure_speed
from agents.benchmark.store import ResultStore
from agents.benchmark.workers import share_the_machine, workers
from agents.gradient.attack import GroupAttackerConfig, SurrogateAttacker
from agents.gradient.baselines import bandwagon_sets, random_sets
from agents.gradient.gradient_passing import GradientPassing
from agents.gradient.graph import InteractionGraph
from agents.gradient.surrogates import Surrogate, SurrogateConfig
from agents.interruption import raise_if_interrupted
from agents.reports import versions
from recattack_gym import __version__
from recattack_gym.core import ArgumentError, UnknownNameError
from recattack_gym.core.checks import as_count, as_real
from recattack_gym.core.sources import imported_files, source_digest
from recattack_gym.metrics import list_jaccard

GRADIENT_ATTACKERS = ("dpa2dl", "rapu-r", "pga-implicit", "revadv")
BASELINES = ("none", "random-sets", "bandwagon-sets")
"""What needs no surrogate: no attack at all, and GP-lab's two rules of thumb."""
MODELS: Mapping[str, SurrogateConfig] = MappingProxyType(
    {
        "mf-bce": SurrogateConfig(loss="bce", reg=1e-2, batch_size=1 << 12),
        "mf-bpr": SurrogateConfig(loss="bpr", reg=1e-3, batch_size=1 << 14),
        "lightgcn-bpr": SurrogateConfig(model="lightgcn", loss="bpr", reg=1e-5, batch_size=1 << 14),
        "lightgcn-bce": SurrogateConfig(model="lightgcn", loss="bce", reg=1e-3, batch_size=1 << 12),
    }
)
"""Recommenders, with GP-lab's settings on Gowalla."""
VICTIM = "mf-bce"
"""What attacks are injected into: the surrogate's twin of GP-lab."""
SMOKE = {
    "datasets": ["synthetic"],
    "seeds": [0],
    "models": ["mf-bce"],
    "similarity_epochs": [1, 2],
    "learning_rates": [0.01],
    "epochs": [1],
    "gp_epochs": [1],
    "descent_epochs": [6],
    "descent_gp_epochs": [6],
    "attack_epochs": 3,
    "victim_epochs": 10,
    "patience": 10,
}
"""What `--smoke` runs: everything, small."""
_MEASURING = 1
"""Of what `run_piece` measures; to be raised when that changes."""
_DECISIVE = (
    "agents",
    "recattack_gym.core.random",
    "recattack_gym.metrics",
    "recattack_gym.victims.kernels",
)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One thing to measure."""

    kind: str
    """`"victim"`, `"similarity"`, `"attack"` or `"speed"`."""
    dataset: str
    seed: int
    name: str
    """A key of `MODELS`, or of the attackers and `BASELINES`."""
    is_passing: bool = False
    """Whether the surrogate passes gradients."""
    epochs: tuple[int, ...] = ()
    """Similarity: after which epochs; an attack: of each retraining."""
    learning_rate: float = 0.0
    """Of the surrogate whose similarity is measured."""
    attack_epochs: int = 0
    """Steps of attackers that descend."""
    group_size: int = 0
    """Fake users per retraining of attackers that make them group by group."""
    batch_size: int = 0
    """Draws per step of everything that learns from draws; 0 for those of `MODELS`."""
    victim_learning_rate: float = 0.0
    victim_epochs: int = 0
    patience: int = 0
    k: int = 50
    """Length of lists."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `recattack bench gp`."""

    def several(name: str, default: Sequence[object], kind: type, text: str) -> None:
        shown = " ".join(map(str, default))
        help_ = f"{text} ({shown})"
        parser.add_argument(name, nargs="+", type=kind, default=list(default), help=help_)

    several("--datasets", ("gowalla", "ml-1m"), str, "logs; of gowalla its 15-core")
    several("--attackers", GRADIENT_ATTACKERS, str, "attackers with surrogates")
    several(
        "--models",
        ("mf-bce", "mf-bpr"),
        str,
        f"recommenders whose similarity is measured, of {' '.join(MODELS)}",
    )
    several("--seeds", (0,), int, "targets, surrogates and victims")
    several("--similarity-epochs", (1, 5, 10, 50), int, "when JS is measured")
    several("--learning-rates", (0.001, 0.01), float, "of surrogates; each point takes the better")
    several("--epochs", (1, 4, 8), int, "of a retraining of dpa2dl and rapu-r, without passing")
    several("--gp-epochs", (1,), int, "the same with passing")
    several("--descent-epochs", (10, 50), int, "of a retraining of the others, without passing")
    several("--descent-gp-epochs", (10,), int, "the same with passing")
    parser.add_argument("--attack-epochs", type=int, default=30, help="steps of the others (30)")
    parser.add_argument(
        "--group-size",
        type=int,
        default=1,
        help="fake users per retraining of dpa2dl and rapu-r (1)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=0,
        help="draws per step of surrogates and victims (0: 4,096 of BCE, 16,384 of BPR, as published)",
    )
    parser.add_argument(
        "--victim-learning-rate",
        type=float,
        default=0.001,
        help="of the victims (0.001, as published)",
    )
    parser.add_argument("--victim-epochs", type=int, default=300, help="longest training (300)")
    parser.add_argument(
        "--patience", type=int, default=30, help="epochs without a better NDCG@k that end it (30)"
    )
    parser.add_argument("--k", type=int, default=50, help="length of the lists (50)")
    parser.add_argument("--no-attacks", action="store_true", help="leave attacks out")
    parser.add_argument("--no-similarity", action="store_true", help="leave similarity out")
    parser.add_argument("--no-speed", action="store_true", help="leave speed out")
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--out", type=Path, default=Path("recattack-results/gp"))
    parser.add_argument("--report-only", action="store_true", help="run nothing, show what exists")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw pictures there")
    parser.add_argument("--smoke", action="store_true", help="everything, small: under a minute")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure what is missing, and report everything that was asked for and exists."""
    if args.smoke:
        for name, value in SMOKE.items():
            setattr(args, name, value)
    pieces = pieces_of(args)
    folder = args.out.resolve()
    store = ResultStore(folder)
    if not args.report_only:
        measure(pieces, folder, n_jobs=as_count("--jobs", args.jobs))
    rows = [
        {"piece": asdict(piece), **found}
        for piece in pieces
        if (found := store.get(identity(piece))) is not None
    ]
    pictures = []
    if args.figures is not None:
        for dataset in dict.fromkeys(args.datasets):
            own = [row for row in rows if row["piece"]["dataset"] == dataset]  # type: ignore[index]
            if any(row["piece"]["kind"] in ("similarity", "attack") for row in own):  # type: ignore[index]
                path = args.figures / f"gp-{dataset}.png"
                draw_gp(own, dataset, path)
                pictures.append(path)
    text, summary = report(rows)
    done = f"{len(rows)} of {len(pieces)} pieces are in {args.out}"
    drawn = [f"drawn: {path}" for path in pictures]
    return {
        "table": "\n\n".join([text, done, *drawn]),
        **summary,
        "n_pieces": len(pieces),
        "n_finished": len(rows),
        "figures": [str(path) for path in pictures],
    }


def pieces_of(args: argparse.Namespace) -> list[Piece]:
    """Return what the options ask for.

    Raises:
        UnknownNameError: If an attacker or a model is unknown.
        ArgumentError: If a number is out of range.
    """
    for name in args.attackers:
        if name not in GRADIENT_ATTACKERS:
            raise UnknownNameError("attacker", name, GRADIENT_ATTACKERS)
    for name in args.models:
        if name not in MODELS:
            raise UnknownNameError("model", name, MODELS)
    lists_ = ("similarity_epochs", "epochs", "gp_epochs", "descent_epochs", "descent_gp_epochs")
    for option in (*lists_, "attack_epochs", "group_size", "victim_epochs", "patience", "k"):
        value = getattr(args, option)
        for each in value if isinstance(value, list) else [value]:
            as_count(f"--{option.replace('_', '-')}", each)
    for seed in args.seeds:
        as_count("--seeds", seed, at_least=0)
    for rate in args.learning_rates:
        as_real("--learning-rates", rate, above=0.0)
    as_real("--victim-learning-rate", args.victim_learning_rate, above=0.0)
    as_count("--batch-size", args.batch_size, at_least=0)
    if not args.datasets:
        raise ArgumentError("--datasets must name at least one")
    pieces: list[Piece] = []
    for dataset in args.datasets:
        for seed in args.seeds:
            base = Piece(
                kind="victim",
                dataset=dataset,
                seed=seed,
                name=VICTIM,
                batch_size=args.batch_size,
                victim_learning_rate=args.victim_learning_rate,
                victim_epochs=args.victim_epochs,
                patience=args.patience,
                k=args.k,
            )
            if not args.no_similarity:
                pieces += _similarity_pieces(base, args)
            if not args.no_attacks:
                pieces += _attack_pieces(base, args)
        if not args.no_speed:
            pieces.append(Piece(kind="speed", dataset=dataset, seed=args.seeds[0], name="speed"))
    return pieces


def _similarity_pieces(base: Piece, args: argparse.Namespace) -> list[Piece]:
    epochs = tuple(sorted(args.similarity_epochs))
    pieces = []
    for name in args.models:
        pieces.append(replace(base, name=name))
        pieces += [
            replace(
                base, kind="similarity", name=name, is_passing=p, epochs=epochs, learning_rate=rate
            )
            for rate in args.learning_rates
            for p in (False, True)
        ]
    return pieces


def _attack_pieces(base: Piece, args: argparse.Namespace) -> list[Piece]:
    pieces = [replace(base, kind="attack", name=name) for name in BASELINES]
    for name in args.attackers:
        is_group = issubclass(ATTACKERS[name].config_class, GroupAttackerConfig)
        prefix = "" if is_group else "descent_"
        for option, is_passing in ((f"{prefix}epochs", False), (f"{prefix}gp_epochs", True)):
            pieces += [
                replace(
                    base,
                    kind="attack",
                    name=name,
                    is_passing=is_passing,
                    epochs=(epochs,),
                    attack_epochs=0 if is_group else args.attack_epochs,
                    group_size=args.group_size if is_group else 0,
                )
                for epochs in getattr(args, option)
            ]
    return pieces


def identity(piece: Piece) -> dict[str, object]:
    """Return everything that decides the result of a piece, as plain JSON values."""
    passing = "-gp" if piece.is_passing else ""
    return {
        "piece": f"{piece.dataset}-{piece.kind}-{piece.name}{passing}-{piece.seed}",
        "version": __version__,
        "code": _code(),
        "measuring": _MEASURING,
        "log": _log_hash(piece.dataset),
        **{name: value for name, value in asdict(piece).items() if name != "epochs"},
        "epochs": list(piece.epochs),
    }


@lru_cache(maxsize=1)
def _code() -> str:
    """Return a digest of the sources that decide what is measured, but not of how it is reported."""
    files = imported_files("agents.benchmark.gp_platform", _DECISIVE)
    files |= imported_files("agents.benchmark.gp_speed", _DECISIVE)
    for name in GRADIENT_ATTACKERS:
        files |= imported_files(ATTACKERS[name].__module__, _DECISIVE)
    return source_digest(files)[:16]


@lru_cache(maxsize=8)
def _log_hash(dataset: str) -> str:
    return lab(dataset).train.content_hash


def measure(pieces: Sequence[Piece], folder: Path, *, n_jobs: int) -> None:
    """Measure the pieces that are not stored yet, victims first, `n_jobs` at a time.

    Args:
        pieces: What to measure.
        folder: Of the `ResultStore`.
        n_jobs: Processes, each on one thread.

    Raises:
        KeyboardInterrupt: If interrupted; finished pieces are kept.
    """
    store = ResultStore(folder)
    missing = [piece for piece in pieces if store.get(identity(piece)) is None]
    for is_first in (True, False):
        some = [piece for piece in missing if (piece.kind == "victim") == is_first]
        with workers(n_jobs, "loky") as parallel:
            results = parallel(delayed(run_piece)(piece, folder, n_jobs) for piece in some)
            name = "victims" if is_first else "pieces"
            for _ in tqdm(results, total=len(some), desc=name, unit="piece"):
                raise_if_interrupted()


def run_piece(piece: Piece, folder: Path, n_jobs: int = 1) -> dict[str, object]:
    """Measure one piece, or return its stored result."""
    share_the_machine(n_jobs)
    store = ResultStore(folder)
    done = store.get(identity(piece))
    if done is not None:
        return done
    own = lab(piece.dataset)
    if piece.kind == "victim":
        result = _victim(piece, own)
    elif piece.kind == "similarity":
        victim = run_piece(_victim_of(piece), folder)
        result = _similarity(piece, own, np.array(victim["lists"], dtype=np.int64))
    elif piece.kind == "speed":
        result = measure_speed(own, piece.seed)
    else:
        result = _attack(piece, own)
    result["versions"] = versions()
    store.put(identity(piece), result)
    return result


def _victim_of(piece: Piece) -> Piece:
    return replace(
        piece, kind="victim", is_passing=False, epochs=(), learning_rate=0.0, attack_epochs=0
    )


def _surrogate_config(piece: Piece) -> SurrogateConfig:
    """Return the settings of the model of a piece as a surrogate."""
    config = MODELS[piece.name]
    return replace(config, batch_size=piece.batch_size or config.batch_size)


def _victim_config(piece: Piece) -> SurrogateConfig:
    """Return the settings of the victim of a piece: its model's, or what attacks are injected into."""
    model = replace(piece, name=VICTIM) if piece.kind == "attack" else piece
    return replace(_surrogate_config(model), learning_rate=piece.victim_learning_rate)


def _victim(piece: Piece, own: Lab) -> dict[str, object]:
    start = time.process_time()
    victim, fields = trained_victim(
        own,
        None,
        _victim_config(piece),
        seed=_seed(piece, 0),
        max_epochs=piece.victim_epochs,
        patience=piece.patience,
        k=piece.k,
    )
    shown = lists_of(victim, np.arange(own.train.n_users), piece.k)
    return {**fields, "cpu_seconds": time.process_time() - start, "lists": shown.tolist()}


def _similarity(piece: Piece, own: Lab, wanted: NDArray[np.int64]) -> dict[str, object]:
    config = replace(
        _surrogate_config(piece),
        learning_rate=piece.learning_rate,
        passing=GradientPassing() if piece.is_passing else None,
    )
    model = Surrogate(InteractionGraph.of(own.train), config, seed=_seed(piece, 1))
    users = np.arange(own.train.n_users)
    alike, seconds = [], []
    for epoch in piece.epochs:
        while model.n_epochs < epoch:
            raise_if_interrupted()
            model.train_epoch()
        alike.append(list_jaccard(lists_of(model, users, piece.k), wanted))
        seconds.append(model.training_seconds)
    return {"js": alike, "cpu_seconds": seconds}


def make_attacker(piece: Piece) -> SurrogateAttacker:
    """Return the attacker of a piece."""
    settings: dict[str, object] = {
        "epochs": piece.epochs[0],
        "gradient_passing": piece.is_passing,
    }
    if piece.group_size:
        settings["group_size"] = piece.group_size
        if piece.batch_size:
            settings["batch_size"] = piece.batch_size
    if piece.attack_epochs:
        settings["attack_epochs"] = piece.attack_epochs
        settings["click_targets"] = False  # as in GP-lab
    if piece.name == "revadv":
        settings["unrolled_epochs"] = min(5, piece.epochs[0])
    attacker = ATTACKERS[piece.name](settings)
    assert isinstance(attacker, SurrogateAttacker)  # noqa: S101  # of GRADIENT_ATTACKERS
    return attacker


def _attack(piece: Piece, own: Lab) -> dict[str, object]:
    task = own.task(piece.seed)
    rng = np.random.default_rng(_seed(piece, 2))
    fields: dict[str, object] = {"training_seconds": 0.0, "total_seconds": 0.0, "n_retrainings": 0}
    if piece.name == "none":
        profiles = None
    elif piece.name in BASELINES:
        make = random_sets if piece.name == "random-sets" else bandwagon_sets
        profiles = make(task, rng)
    else:
        attacker = make_attacker(piece)
        made = attacker.attack(task, rng)
        profiles = made.item_ids
        fields = {
            "training_seconds": made.training_seconds,
            "total_seconds": made.total_seconds,
            "n_retrainings": made.n_retrainings,
            "curve": list(made.curve),
            "config": asdict(attacker.config),
        }
    victim, trained = trained_victim(
        own,
        profiles,
        _victim_config(piece),
        seed=_seed(piece, 3),
        max_epochs=piece.victim_epochs,
        patience=piece.patience,
        k=piece.k,
    )
    return {
        **fields,
        **trained,
        "strength": strength(victim, own, task, piece.k),
        "target_items": task.target_items.tolist(),
        "n_fake_users": task.n_fake_users,
        "profile_size": task.profile_size,
    }


def _seed(piece: Piece, use: int) -> int:
    """Return the seed of one use; alike for all attackers and both sides, so that only these differ."""
    return int(np.random.default_rng([piece.seed, use]).integers(2**31))
