"""The statistics of a log, by hand."""

import numpy as np
import pytest

from recattack_gym.core.interactions import Interactions
from recattack_gym.datasets import from_interactions
from recattack_gym.datasets.statistics import describe, gini, main


def test_gini_is_zero_for_equal_amounts_and_almost_one_for_a_monopoly() -> None:
    assert gini(np.full(8, 3)) == pytest.approx(0)
    assert gini(np.array([0, 0, 0, 12])) == pytest.approx(3 / 4)
    # Mean absolute difference of (1, 3) is 1, their mean 2: 1 / (2 * 2).
    assert gini(np.array([1, 3])) == pytest.approx(1 / 4)


def test_the_next_item_ranker_knows_what_follows_what() -> None:
    """60 items in a circle: every user walks four steps of it, so that one item follows each."""
    n_items, n_users = 60, 300
    start = np.arange(n_users) * 7 % n_items
    items = (start[:, None] + np.arange(4)) % n_items
    users = np.repeat(np.arange(n_users), 4)
    row = describe(from_interactions(Interactions(users, items.ravel(), n_users, n_items)))
    assert row.hr_next_item == 1.0
    assert row.hr_neighbours == 1.0
    # All items are about equally popular: a list of 10 of the 57 unseen ones hits by chance.
    assert row.hr_popularity < 0.5
    assert (row.n_users, row.n_items, row.n_events) == (300, 60, 1200)
    assert (row.median_events, row.most_events) == (4, 4)
    assert row.density == pytest.approx(4 / 60)
    assert row.top_decile == pytest.approx(0.1)


def test_a_ranker_that_scores_everything_alike_gets_its_rank_by_chance() -> None:
    """One click each, all different: no ranker can tell the 30 items apart, the answer ranks 14th."""
    items = np.arange(30)
    log = Interactions(np.repeat(np.arange(10), 3), items, 10, 30)
    row = describe(from_interactions(log))
    assert row.hr_next_item == 0.0


def test_the_command_prints_one_row_per_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    main(["synthetic", "synthetic-small"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| dataset | users | items |")
    assert lines[2].startswith("| synthetic | 1,000 | 500 | 30,000 |")
    assert lines[3].removeprefix("| synthetic-small") == lines[2].removeprefix("| synthetic")
