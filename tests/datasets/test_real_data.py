"""The published data sets themselves; needs `RECATTACK_DATA`."""

import time

import numpy as np
import pytest

from recattack_gym.datasets import DATASETS, Counts, load

pytestmark = pytest.mark.real_data

TABLE_II = {  # PoisonRec, ICDE 2020: users, items, samples
    "steam": (6_506, 5_134, 180_721),
    "ml-1m": (5_999, 3_706, 943_317),
    "amazon-phone": (27_879, 10_429, 166_560),
    "amazon-clothing": (39_387, 23_033, 239_290),
}
PUBLISHED = ["steam", "ml-100k", "ml-1m", "amazon-phone", "amazon-clothing", "gowalla", "filmtrust"]


@pytest.mark.parametrize("name", TABLE_II)
def test_the_protocol_gives_the_numbers_of_table_ii(name: str) -> None:
    dataset = load(name, protocol="poisonrec")
    assert (dataset.log.n_users, dataset.log.n_items, dataset.n_samples) == TABLE_II[name]
    assert dataset.protocol == "poisonrec"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_log_has_its_published_size(name: str) -> None:
    log = load(name).log
    assert Counts.of(log) == DATASETS[name].counts[None]
    assert np.diff(log.indptr).min() >= 1
    assert log.item_popularity.min() >= 1


def test_the_protocol_leaves_items_without_events_in_the_catalogue() -> None:
    popularity = load("steam", protocol="poisonrec").log.item_popularity
    assert int((popularity == 0).sum()) == 5_134 - 5_049
    assert int((load("ml-1m", protocol="poisonrec").log.item_popularity == 0).sum()) == 15


@pytest.mark.parametrize("name", ["ml-100k", "ml-1m", "amazon-phone"])
def test_each_users_events_are_in_order_of_time(name: str) -> None:
    log = load(name).log
    assert log.timestamps is not None
    same_user = log.user_ids[1:] == log.user_ids[:-1]
    assert (np.diff(log.timestamps)[same_user] >= 0).all()


def test_steam_knows_its_games_and_their_repeats() -> None:
    dataset = load("steam")
    assert dataset.item_names is not None
    assert "Warhammer 40,000 Dawn of War - Game of the Year Edition" in dataset.item_names
    assert len(dataset.log.seen[1]) == 128_804
    split = dataset.split
    assert split.evaluable("test").sum() < (split.test_items >= 0).sum()


def test_movielens_1m_takes_less_than_three_seconds() -> None:
    start = time.process_time()
    load("ml-1m")
    assert time.process_time() - start < 3
