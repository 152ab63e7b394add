"""Clean victims on disk: reused, never trusted blindly, never needed."""

import logging
from pathlib import Path

import numpy as np
import pytest

from recattack_gym.core import Interactions
from recattack_gym.simulator.cache import cache_folder, code_hash, fit_cached
from recattack_gym.victims import BPR, ItemPop

LOG = Interactions(np.repeat(np.arange(10), 4), np.arange(40) % 13, 10, 14)
CONFIG = {"epochs": 2, "embedding_size": 4}


def test_the_second_fit_is_read_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fit_cached(BPR(CONFIG), LOG, n_new_items=1, seed=5, cache_dir=tmp_path)

    def no_fit(*_: object) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(BPR, "_fit", no_fit)
    second = fit_cached(BPR(CONFIG), LOG, n_new_items=1, seed=5, cache_dir=tmp_path)
    for name, array in first.state.items():
        np.testing.assert_array_equal(array, second.state[name])


@pytest.mark.parametrize("change", ["seed", "config", "log", "new items"])
def test_anything_else_is_another_file(tmp_path: Path, change: str) -> None:
    fit_cached(BPR(CONFIG), LOG, n_new_items=1, seed=5, cache_dir=tmp_path)
    fit_cached(
        BPR({**CONFIG, "epochs": 3} if change == "config" else CONFIG),
        LOG.select(np.arange(40) != 7) if change == "log" else LOG,
        n_new_items=0 if change == "new items" else 1,
        seed=6 if change == "seed" else 5,
        cache_dir=tmp_path,
    )
    assert len(list((tmp_path / "victims").iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"not a zip", b"PK\x03\x04 half of one"])
def test_a_damaged_file_is_reported_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    good = fit_cached(BPR(CONFIG), LOG, n_new_items=1, seed=5, cache_dir=tmp_path)
    (path,) = (tmp_path / "victims").iterdir()
    path.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        again = fit_cached(BPR(CONFIG), LOG, n_new_items=1, seed=5, cache_dir=tmp_path)
    assert "unusable" in caplog.text
    np.testing.assert_array_equal(
        good.score(np.arange(3), np.ones((3, 2), int)),
        again.score(np.arange(3), np.ones((3, 2), int)),
    )
    assert path.stat().st_size > len(damage)


def test_a_truncated_file_is_replaced(tmp_path: Path) -> None:
    fit_cached(BPR(CONFIG), LOG, n_new_items=1, seed=5, cache_dir=tmp_path)
    (path,) = (tmp_path / "victims").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    fit_cached(BPR(CONFIG), LOG, n_new_items=1, seed=5, cache_dir=tmp_path)
    assert path.read_bytes() == whole


def test_a_full_disk_costs_only_the_caching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    victim = fit_cached(ItemPop(), LOG, n_new_items=1, seed=0, cache_dir=tmp_path)
    assert victim.recommend(np.arange(2), 1).shape == (2, 1)
    assert "could not cache" in caplog.text
    assert list((tmp_path / "victims").iterdir()) == []


def test_the_folder_is_the_argument_then_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECATTACK_CACHE", str(tmp_path / "variable"))
    assert cache_folder(None) == tmp_path / "variable"
    assert cache_folder(tmp_path / "argument") == tmp_path / "argument"
    monkeypatch.delenv("RECATTACK_CACHE")
    assert "recattack-gym" in str(cache_folder(None))


def test_an_edited_victim_is_fitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_cached(ItemPop(), LOG, n_new_items=1, seed=0, cache_dir=tmp_path)
    monkeypatch.setattr("recattack_gym.simulator.cache.code_hash", lambda _: "edited")
    fit_cached(ItemPop(), LOG, n_new_items=1, seed=0, cache_dir=tmp_path)
    assert len(list((tmp_path / "victims").iterdir())) == 2


def test_the_code_of_a_victim_of_ones_own_counts() -> None:
    class Mine(ItemPop):
        name = "Mine"

    assert code_hash(Mine) != code_hash(ItemPop)  # this file is not in the package
    assert code_hash(BPR) != code_hash(ItemPop)


def test_a_victim_typed_into_an_interpreter_is_not_cached(tmp_path: Path) -> None:
    class Mine(ItemPop):
        name = "Mine"

    Mine.__module__ = "no.such.module"
    assert code_hash(Mine) is None
    victim = fit_cached(Mine(), LOG, n_new_items=1, seed=0, cache_dir=tmp_path)
    assert victim.recommend(np.arange(2), 1).shape == (2, 1)
    assert not (tmp_path / "victims").exists()
