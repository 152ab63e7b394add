"""Finished cells of a comparison, read back from their result files."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agents.benchmark.cells import ENTRIES, Cell, identity
from agents.benchmark.published import TABLE3
from agents.benchmark.sidecars import is_sidecar, read_sidecar, sidecar_identity
from agents.benchmark.sources import is_here
from agents.benchmark.store import ResultStore, read_result
from recattack_gym.victims import VICTIMS

logger = logging.getLogger(__name__)

HEURISTIC_ENTRIES = ("random", "popular", "middle", "power-item")


@dataclass(frozen=True)
class Row:
    """A finished cell."""

    cell: Cell
    """What was asked for."""
    result: Mapping[str, object]
    """What `cells.run_cell` returned."""
    is_current: bool
    """Whether it was made by the code that is here now."""
    path: Path = Path()
    """The file that it is in."""
    effects_identity: Mapping[str, object] = field(default_factory=dict)
    """What decides the effects of its plan on the platform that is here now."""
    effects: Mapping[str, object] | None = None
    """What `agents.reports.measured_fields` returned, from the sidecar; `None` if that is missing."""
    has_current_effects: bool = False
    """Whether these were measured by the code that is here now."""

    @property
    def rec_num(self) -> float:
        """RecNum of the plan, or the mean over draws."""
        return float(str(self.result["rec_num"]))

    @property
    def curve(self) -> NDArray[np.int64]:
        """RecNum of every query, shape `(n_queries,)`."""
        curve = self.result["curve"]
        assert isinstance(curve, list)  # noqa: S101  # as run_cell writes it
        return np.array(curve, dtype=np.int64)

    def best_after(self, n_queries: int) -> int:
        """Return the best RecNum of the first `n_queries` queries."""
        return int(self.curve[:n_queries].max())


def read_rows(cells: Sequence[Cell], folder: Path) -> list[Row]:
    """Return the finished ones of some cells.

    A result that was made by other code than is here now is used where there is no current one, and
    marked, so that a comparison need not be repeated for a changed comment. Of a dataset that is not on this
    machine, the log that results were made from is taken for its log.

    Args:
        cells: What is wanted.
        folder: Of the `ResultStore`.
    """
    store = ResultStore(folder)
    stored: dict[tuple[object, ...], tuple[float, Path, Mapping[str, object]]] = {}
    logs: dict[tuple[str, str | None], str] = {}
    for path, known, result in _files(folder):
        key, age = _key(known), path.stat().st_mtime
        dataset, protocol = known["dataset"], known["protocol"]
        logs[str(dataset), None if protocol is None else str(protocol)] = str(known["log"])
        if key not in stored or stored[key][0] < age:
            stored[key] = age, path, result
    rows = []
    for cell in cells:
        elsewhere = None if is_here(cell.dataset) else logs.get((cell.dataset, cell.protocol))
        wanted = identity(cell, log=elsewhere)
        current = store.get(wanted)
        if current is not None:
            row = Row(cell, current, is_current=True, path=store.path(wanted))
        elif _key(wanted) in stored:
            _, path, result = stored[_key(wanted)]
            row = Row(cell, result, is_current=False, path=path)
        else:
            continue
        rows.append(_with_effects(row, wanted))
    return rows


def _with_effects(row: Row, cell_identity: Mapping[str, object]) -> Row:
    """Return the row with what was measured beside it, if it was."""
    about = sidecar_identity(cell_identity, row.result.get("profiles_hash"))
    found = read_sidecar(row.path, about)
    effects, is_current = (None, False) if found is None else found
    return replace(row, effects_identity=about, effects=effects, has_current_effects=is_current)


def cells_in(folder: Path, *, every_budget: bool = False) -> list[Cell]:
    """Return the cells that a folder has results of: per dataset, protocol, victim, attacker and seed one.

    Where there are several, with other budgets, it is the one with the most queries, most draws and
    full retraining.

    Args:
        folder: Of the `ResultStore`.
        every_budget: Whether cells that differ in queries or draws are all returned; of two that differ in
            full retraining alone it is still the one that has it, since that holds all of the other.
    """
    best: dict[tuple[object, ...], Cell] = {}
    for path, known, _ in _files(folder):
        config = known["attacker_config"]
        assert isinstance(config, Mapping)  # noqa: S101  # as `identity` writes it
        if known["entry"] not in ENTRIES or known["victim"] not in VICTIMS:
            logger.warning("%s is of an attacker or victim that is no more, and left out", path)
            continue
        cell = Cell(
            dataset=str(known["dataset"]),
            protocol=None if known["protocol"] is None else str(known["protocol"]),
            victim=str(known["victim"]),
            entry=str(known["entry"]),
            seed=int(str(known["seed"])),
            n_queries=int(config.get("n_queries", 1)),
            n_draws=int(str(known["n_draws"] or 1)),
            is_full=bool(known["is_full"]),
        )
        budget = (cell.n_queries, cell.n_draws) if every_budget else ()
        key = cell.dataset, cell.protocol, cell.victim, cell.entry, cell.seed, budget
        size = (cell.n_queries, cell.n_draws, cell.is_full)
        if key not in best or size > (best[key].n_queries, best[key].n_draws, best[key].is_full):
            best[key] = cell
    order = list(ENTRIES)
    return sorted(
        best.values(),
        key=lambda c: (
            _place(c.dataset),
            c.victim,
            order.index(c.entry),
            c.seed,
            c.n_queries,
            c.n_draws,
        ),
    )


def _place(dataset: str) -> tuple[int, str]:
    """Return where a dataset comes: in the paper's order, then by name."""
    known = list(TABLE3)
    return (known.index(dataset) if dataset in known else len(known)), dataset


def _files(folder: Path) -> Iterator[tuple[Path, Mapping[str, object], Mapping[str, object]]]:
    """Yield file, identity and result of every cell in a folder."""
    for path in sorted(folder.glob("*.json")):
        if is_sidecar(path):
            continue
        try:
            known, result = read_result(path)
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be read and is left out: %s", path, error)
            continue
        if "entry" in known:  # other benchmarks may keep theirs in the same folder
            yield path, known, result


def _key(identified: Mapping[str, object]) -> tuple[object, ...]:
    """Return what a cell is about, without the code that made it."""
    config = identified["attacker_config"]
    assert isinstance(config, Mapping)  # noqa: S101  # as `identity` writes it
    names = ("dataset", "protocol", "log", "victim", "entry", "seed", "n_draws", "is_full")
    return *(identified[name] for name in names), config.get("n_queries")


def by_platform(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, dict[int, float]]]:
    """Return RecNum: platform, then attacker, then seed."""
    found: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for row in rows:
        entries = found.setdefault((row.cell.label, row.cell.victim), {})
        entries.setdefault(row.cell.entry, {})[row.cell.seed] = row.rec_num
    return found


def means_of(
    by_entry: Mapping[str, Mapping[int, float]], entries: Sequence[str]
) -> dict[str, float]:
    """Return each attacker's mean over the seeds that all of `entries` have; nothing if there is none."""
    having = [set(by_entry.get(entry, ())) for entry in entries]
    seeds = set.intersection(*having) if having else set()
    if not seeds:
        return {}
    return {
        entry: float(np.mean([by_entry[entry][seed] for seed in sorted(seeds)]))
        for entry in entries
    }


def winners(means: Mapping[str, float], entries: Sequence[str]) -> list[str]:
    """Return the entries with the largest mean, all where they tie, and none where nobody has anything."""
    largest = max(means[entry] for entry in entries)
    return [entry for entry in entries if means[entry] == largest] if largest else []
