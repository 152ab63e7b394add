"""Cells of a comparison: one attacker against one victim on one dataset with one seed, each a JSON file."""

import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np

from agents.attackers import ATTACKERS
from agents.base import Attacker
from agents.benchmark.published import TABLE3
from agents.benchmark.sidecars import read_sidecar, sidecar_identity, write_sidecar
from agents.benchmark.store import ResultStore
from agents.interruption import raise_if_interrupted
from agents.recording import RecordingView
from agents.reports import MEASURED, Stopwatch, attack_fields, versions
from agents.search import SearchAttacker
from recattack_gym import __version__
from recattack_gym.core import FakeProfiles, UnknownNameError
from recattack_gym.core.sources import imported_files, source_digest
from recattack_gym.datasets import Dataset, load
from recattack_gym.simulator import PlatformSimulator, PlatformView
from recattack_gym.simulator.cache import code_hash
from recattack_gym.victims import VICTIMS

logger = logging.getLogger(__name__)

ABLATION: Mapping[str, tuple[str, Mapping[str, object]]] = MappingProxyType(
    {
        "poisonrec-small-batches": (
            "poisonrec",
            {"batch_size": 16, "n_examples": 16, "n_epochs": 6},
        ),
        "poisonrec-warm-up-only": (
            "poisonrec-warm",
            {
                "batch_size": 32,
                "n_examples": 32,
                "n_epochs": 3,
                "recombined": 0.0,
                "imitation_weight": 0.0,
            },
        ),
        "poisonrec-warm-not-imitating": ("poisonrec-warm", {"imitation_weight": 0.0}),
        "poisonrec-warm-not-recombining": ("poisonrec-warm", {"recombined": 0.0}),
        "poisonrec-warm-without-warm-up": ("poisonrec-warm", {"warm_up": 0}),
        "poisonrec-path": ("poisonrec", {"clip": "path"}),
    }
)
"""What `poisonrec-warm` is made of, and more of it; run when asked for by name."""
ENTRIES: Mapping[str, tuple[str, Mapping[str, object]]] = MappingProxyType(
    {
        **ABLATION,
        **{name: (name, {}) for name in ATTACKERS},
        "dpa2dl-gp": ("dpa2dl", {"gradient_passing": True}),
        "rapu-r-gp": ("rapu-r", {"gradient_passing": True}),
        "pga-implicit-gp": ("pga-implicit", {"gradient_passing": True}),
        "revadv-gp": ("revadv", {"gradient_passing": True}),
        "poisonrec-random": ("poisonrec", {"action_space": "bcbt-random"}),
        "poisonrec-bplain": ("poisonrec", {"action_space": "bplain"}),
        "poisonrec-plain": ("poisonrec", {"action_space": "plain"}),
        "sb3-ppo-grouped": ("sb3-ppo", {"actions": "grouped"}),
        "sb3-ppo-flat": ("sb3-ppo", {"actions": "flat"}),
    }
)
"""What can be compared: a label, the name of an attacker, and its settings beside the query budget."""

_DECISIVE = ("agents", "recattack_gym.core.random", "recattack_gym.core.groups")
"""Packages and modules that decide what an attacker does."""
_BESIDE = tuple(name for name in MEASURED if name != "side_effects")
"""What `attack_fields` returns that is kept beside a result and not in it."""
_MEASURING = 1
"""Of what `run_cell` measures; to be raised when that changes."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One attack to measure."""

    dataset: str
    """Name of the dataset."""
    protocol: str | None
    """Its preprocessing preset."""
    victim: str
    """A name from `VICTIMS`."""
    entry: str
    """A label from `ENTRIES`."""
    seed: int
    """Seed of the platform and of the attacker."""
    n_queries: int
    """Budget of attackers that query; the others have none."""
    n_draws: int
    """Plans of attackers that do not query; theirs are averaged."""
    is_full: bool
    """Whether the plan is also evaluated by full retraining."""

    @property
    def label(self) -> str:
        """What reports call the dataset: its name, and its protocol if that is not the usual one."""
        usual = "poisonrec" if self.dataset in TABLE3 else None
        suffix = "" if self.protocol == usual else f"-{self.protocol or 'no-protocol'}"
        return f"{self.dataset}{suffix}"

    @property
    def platform(self) -> tuple[str, str | None, str, int]:
        """What decides the platform."""
        return self.dataset, self.protocol, self.victim, self.seed


def make_attacker(cell: Cell) -> Attacker:
    """Return the attacker of a cell, with the cell's query budget if it queries.

    Raises:
        UnknownNameError: If there is no such entry.
    """
    if cell.entry not in ENTRIES:
        raise UnknownNameError("attacker", cell.entry, ENTRIES)
    name, settings = ENTRIES[cell.entry]
    attacker = ATTACKERS[name]
    if issubclass(attacker, SearchAttacker):
        settings = {**settings, "n_queries": cell.n_queries}
    return attacker(settings)


def identity(cell: Cell, *, log: str | None = None) -> dict[str, object]:
    """Return everything that decides the result of a cell, as plain JSON values.

    Args:
        cell: What to measure.
        log: Hash of the dataset's log where that is not on this machine; `None` loads it.

    Raises:
        UnknownNameError: If there is no such entry.
        DatasetNotFoundError: If the dataset is wanted and neither here nor to be had.
    """
    attacker = make_attacker(cell)
    is_search = isinstance(attacker, SearchAttacker)
    if log is None:
        log = _dataset(cell.dataset, cell.protocol).log.content_hash
    return {
        "piece": f"{cell.dataset}-{cell.victim}-{cell.entry}-{cell.seed}",
        "version": __version__,
        "victim": cell.victim,
        "victim_code": code_hash(VICTIMS[cell.victim]),
        "platform_code": _platform_code(),
        "measuring": _MEASURING,
        "victim_config": asdict(VICTIMS[cell.victim]().config),
        "dataset": cell.dataset,
        "protocol": cell.protocol,
        "log": log,
        "entry": cell.entry,
        "attacker": attacker.name,
        "attacker_code": _attacker_code(type(attacker)),
        "attacker_config": asdict(attacker.config),
        "seed": cell.seed,
        "n_draws": None if is_search else cell.n_draws,
        "is_full": cell.is_full,
    }


def profiles_path(store: ResultStore, cell_identity: Mapping[str, object]) -> Path:
    """Return where the plan of a cell is kept, beside its result."""
    return store.path(cell_identity).with_suffix(".npz")


def fit_platform(platform: tuple[str, str | None, str, int]) -> None:
    """Fit a clean victim, or find it in the cache, so that no two processes do it at once."""
    _simulator(platform)


def platform_simulator(platform: tuple[str, str | None, str, int]) -> PlatformSimulator:
    """Return the platform of cells; the last one is kept in this process."""
    return _simulator(platform)


def run_cell(cell: Cell, folder: Path) -> dict[str, object]:
    """Run one cell, or return its stored result.

    Args:
        cell: What to measure.
        folder: Of the `ResultStore`.

    Returns:
        Plain JSON values. `rec_num`: RecNum of the plan; for attackers that do not query the mean over
        draws. `best_of_draws`: theirs, over draws; `None` for the others. `policy_rec_num`: mean over the
        last batch of queries, for attackers that query. `curve`: RecNum of every query in order.
        `full_rec_num`: RecNum of the plan (for attackers that do not query of the first plan) under full
        retraining, to be compared with `finetune_rec_num`, the same plan's under fine-tuning. An attack
        that is stored with or without full retraining is not made again: only what is missing is added.
        What detectors and bands of items say of the plan is no part of it; it is written beside (`sidecars`).
    """
    store = ResultStore(folder)
    key = identity(cell)
    done = store.get(key)
    if done is not None:
        return done
    twin = _of_twin(cell, store)
    measured, profiles = _measure(cell) if twin is None else twin
    profiles.save(profiles_path(store, key))
    if all(name in measured for name in MEASURED):
        beside = sidecar_identity(key, profiles.content_hash)
        write_sidecar(store.path(key), beside, measured)
    result = {name: value for name, value in measured.items() if name not in _BESIDE}
    store.put(key, result)
    return result


def _of_twin(cell: Cell, store: ResultStore) -> tuple[dict[str, object], FakeProfiles] | None:
    """Return result and plan from the cell that differs in full retraining alone, if it is stored."""
    key = identity(replace(cell, is_full=not cell.is_full))
    stored, plan_file = store.get(key), profiles_path(store, key)
    if stored is None or not plan_file.is_file():
        return None
    plan = FakeProfiles.load(plan_file)
    about = sidecar_identity(key, plan.content_hash)
    beside = read_sidecar(store.path(key), about)
    if beside is not None and beside[1]:
        write_sidecar(store.path(identity(cell)), about, beside[0])
    if cell.is_full:
        simulator = _simulator(cell.platform)
        stored = {**stored, "full_rec_num": _full_rec_num(simulator, plan)}
    return stored, plan


def _full_rec_num(simulator: PlatformSimulator, plan: FakeProfiles) -> int:
    return int(simulator.rec_num(plan, retrain="full")[0])


def _measure(cell: Cell) -> tuple[dict[str, object], FakeProfiles]:
    simulator = _simulator(cell.platform)
    simulator.rec_num(np.zeros((1, 20, 20), dtype=np.int64))  # machine code is no part of an attack
    attacker = make_attacker(cell)
    view = RecordingView(
        PlatformView(simulator, knowledge=attacker.knowledge), lambda _: raise_if_interrupted()
    )
    rng = np.random.default_rng([cell.seed, zlib.crc32(cell.entry.encode())])
    is_search = isinstance(attacker, SearchAttacker)
    watch = Stopwatch()
    plans = [attacker.plan(view, each) for each in rng.spawn(1 if is_search else cell.n_draws)]
    spent = watch.fields()
    plan = plans[0]
    rec_nums = simulator.rec_num(np.stack([each.item_ids for each in plans]))
    last_batch = view.rec_nums[-view.batch_sizes[-1] :] if view.batch_sizes else []
    fields = attack_fields(simulator, plan)
    finetune = int(str(fields["rec_num"]))
    result = {
        **fields,
        "rec_num": float(rec_nums.mean()),
        "share": float(rec_nums.mean()) / simulator.max_rec_num,
        "best_of_draws": None if is_search else int(rec_nums.max()),
        "n_draws": len(plans),
        "policy_rec_num": float(np.mean(last_batch)) if last_batch else None,
        "finetune_rec_num": finetune,
        "full_rec_num": _full_rec_num(simulator, plan) if cell.is_full else None,
        "target_share": float(np.isin(plan.item_ids, simulator.target_items).mean()),
        "knowledge": str(attacker.knowledge),
        "n_queries": view.n_queries,
        "batch_sizes": view.batch_sizes,
        "curve": view.rec_nums,
        "target_shares": [round(share, 4) for share in view.target_shares],
        **spent,
        "config": asdict(attacker.config),
        "seed": cell.seed,
        "versions": versions(),
    }
    return result, plan


@lru_cache(maxsize=4)
def _dataset(name: str, protocol: str | None) -> Dataset:
    return load(name, protocol=protocol)


@lru_cache(maxsize=1)
def _simulator(platform: tuple[str, str | None, str, int]) -> PlatformSimulator:
    dataset, protocol, victim, seed = platform
    return PlatformSimulator(_dataset(dataset, protocol), victim, seed=seed)


def _attacker_code(attacker: type[Attacker]) -> str:
    """Return a digest of the sources that decide what an attacker does: what it imports of `agents`."""
    return source_digest(imported_files(attacker.__module__, _DECISIVE))[:16]


def _platform_code() -> str:
    """Return a digest of the sources that decide candidate lists and what is counted in them."""
    packages = ("recattack_gym.simulator", "recattack_gym.metrics", "recattack_gym.core.random")
    return source_digest(imported_files("recattack_gym.simulator.platform", packages))[:16]


def in_order(cells: Sequence[Cell]) -> Iterator[Cell]:
    """Yield cells platform by platform, cheap victims first, so that a worker can keep its platform."""
    order = list(VICTIMS)
    yield from sorted(cells, key=lambda cell: (cell.dataset, order.index(cell.victim), cell.seed))
