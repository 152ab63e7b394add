"""The parts that benchmarks are made of."""

import time
from pathlib import Path

import numpy as np
import pytest

from agents.benchmark.poisons import KINDS, poison_set, varied_poison
from agents.benchmark.published import TABLE3_HEURISTICS, TABLE3_VICTIMS
from agents.benchmark.sources import dataset_or_synthetic
from agents.benchmark.store import ResultStore
from agents.benchmark.tables import markdown_table
from agents.benchmark.timing import interleaved, peak_memory
from recattack_gym.core import DatasetNotFoundError
from recattack_gym.datasets import Dataset, load

POPULARITY = np.array([50, 40, 30, 20, 10, 5, 4, 3, 2, 1, 0, 0])
TARGETS = np.array([10, 11])


def test_varied_poison_takes_the_kinds_in_turn() -> None:
    poison = varied_poison(POPULARITY, TARGETS, (2 * len(KINDS), 6, 7), np.random.default_rng(0))
    assert poison.shape == (16, 6, 7)
    assert poison.min() >= 0
    assert poison.max() < len(POPULARITY)
    for m in (KINDS.index("targets"), KINDS.index("one_target")):
        assert np.isin(poison[[m, m + len(KINDS)]], TARGETS).all()
    assert len(np.unique(poison[KINDS.index("one_target")])) == 1


def test_fillers_come_from_where_the_kind_says() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        popular, niche = (
            np.setdiff1d(poison_set(kind, POPULARITY, TARGETS, (20, 20), rng), TARGETS)
            for kind in ("popular", "niche")
        )
        assert popular.tolist() == [0]
        assert niche.tolist() == [5, 6, 7, 8, 9]


def test_poison_depends_on_the_generator_alone() -> None:
    first, second = (
        varied_poison(POPULARITY, TARGETS, (8, 3, 3), np.random.default_rng(5)) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_a_table_reads_as_markdown() -> None:
    table = markdown_table(("name", "value"), [("a", 1234567), ("bb", 0.12345), ("c", None)])
    assert table.splitlines() == [
        "| name |     value |",
        "|------|----------:|",
        "| a    | 1,234,567 |",
        "| bb   |     0.123 |",
        "| c    |         - |",
    ]


def test_a_finished_piece_is_found_again_and_another_is_not(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    identity: dict[str, object] = {"piece": "x", "seed": 1, "config": {"a": [1, 2]}}
    assert store.get(identity) is None
    store.put(identity, {"rec_num": 5})
    assert store.get(identity) == {"rec_num": 5}
    assert store.get({**identity, "seed": 2}) is None


def test_a_damaged_piece_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = ResultStore(tmp_path)
    store.put({"piece": "x"}, {"rec_num": 5})
    store.path({"piece": "x"}).write_text('{"identity": {"piece"')
    assert store.get({"piece": "x"}) is None
    assert "made again" in caplog.text


def test_sides_are_timed_in_turn() -> None:
    order: list[str] = []

    def slow() -> None:
        order.append("slow")
        time.sleep(0.02)

    times = interleaved({"slow": slow, "fast": lambda: order.append("fast")}, repetitions=3)
    assert order == ["slow", "fast"] * 4
    assert times["slow"].wall_seconds >= 0.02
    assert times["slow"].cpu_seconds < times["slow"].wall_seconds
    assert times["fast"].repetitions == 3


def test_peak_memory_sees_an_array_that_is_gone_again() -> None:
    def allocate() -> None:
        np.ones(30_000_000).sum()

    idle, busy = peak_memory(lambda: None), peak_memory(allocate)
    if idle is None or busy is None:
        pytest.skip("this system does not tell its peak memory")
    assert 200e6 < busy - idle < 600e6


def test_the_published_table_is_whole() -> None:
    for rows in TABLE3_HEURISTICS.values():
        assert set(rows) == {"random", "popular", "middle", "power-item"}
        assert all(len(row) == len(TABLE3_VICTIMS) for row in rows.values())


def test_a_generated_log_stands_in_for_steam(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def without_published_data(name: str, protocol: str | None = None) -> Dataset:
        if not name.startswith("synthetic"):
            raise DatasetNotFoundError(f"{name} is not here")
        return load(name, protocol=protocol)

    monkeypatch.setattr("agents.benchmark.sources.load", without_published_data)
    assert dataset_or_synthetic("steam").name == "synthetic-steam"
    assert "measuring on synthetic-steam instead" in caplog.text
    with pytest.raises(DatasetNotFoundError):
        dataset_or_synthetic("ml-1m")
