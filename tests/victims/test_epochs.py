"""Clean training's order, batches and negatives: what fakes at the end of the log leave as it was."""

import numpy as np
import pytest
from numpy.typing import NDArray

from recattack_gym.core import Interactions
from recattack_gym.victims.epochs import clean_epochs, visit_batches, visit_order
from recattack_gym.victims.kernels import draw_growing, stream_key

N_NEW = 3


def test_added_clicks_leave_the_order_of_the_others_as_it_was() -> None:
    before, after = visit_order(3, 5, 1_000), visit_order(3, 5, 1_013)
    np.testing.assert_array_equal(np.sort(after), np.arange(1_013))
    np.testing.assert_array_equal(after[after < 1_000], before)
    assert not np.array_equal(visit_order(3, 6, 1_000), before)
    assert not np.array_equal(visit_order(4, 5, 1_000), before)


def test_added_clicks_leave_the_others_in_their_batches() -> None:
    order, bounds = visit_batches(3, 5, 1_000, 70)
    longer_order, longer_bounds = visit_batches(3, 5, 1_013, 70)
    assert len(bounds) == len(longer_bounds) == 15
    for batch in range(14):
        before = order[bounds[batch] : bounds[batch + 1]]
        after = longer_order[longer_bounds[batch] : longer_bounds[batch + 1]]
        np.testing.assert_array_equal(after[after < 1_000], before)
    np.testing.assert_array_equal(order, visit_order(3, 5, 1_000))


@pytest.mark.parametrize("n", [1, 2, 3, 17, 1_000, 100_003])
@pytest.mark.parametrize("batch_size", [1, 2, 10, 1_024, 10**6])
def test_batches_have_about_their_size_and_none_is_empty(n: int, batch_size: int) -> None:
    order, bounds = visit_batches(1, 0, n, batch_size)
    assert np.array_equal(np.sort(order), np.arange(n))
    assert (bounds[0], bounds[-1]) == (0, n)
    sizes = np.diff(bounds)
    assert sizes.min() > 0
    if n >= 20 * batch_size > 40:
        assert 0.9 * batch_size < sizes.mean() < 1.1 * batch_size
        assert sizes.max() < batch_size + 6.0 * batch_size**0.5
    if batch_size > n:
        assert len(sizes) == 1


def test_few_more_clicks_seldom_change_the_number_of_batches() -> None:
    numbers = [len(visit_batches(1, 0, n, 10)[1]) for n in range(10_000, 11_000, 5)]
    assert np.count_nonzero(np.diff(numbers)) <= 4


def test_a_draw_below_a_growing_number_changes_only_where_it_meets_what_was_added() -> None:
    key = stream_key(5, 1)
    counters = range(4_000)
    few = np.array([draw_growing(key, c, 600) for c in counters])
    more = np.array([draw_growing(key, c, 610) for c in counters])
    changed = few != more
    assert (more[changed] >= 600).all()
    assert 0 < changed.mean() < 0.05
    assert few.max() == 599
    counts = np.bincount(few, minlength=600)
    assert ((counts - 4_000 / 600) ** 2 / (4_000 / 600)).sum() < 750  # chi-squared, 599 degrees
    assert {draw_growing(key, c, 1) for c in counters} == {0}
    assert {draw_growing(key, c, 4) for c in counters} == {0, 1, 2, 3}


@pytest.mark.parametrize("popular", [0.0, 0.5])
def test_an_epoch_has_every_click_once_with_negatives_that_its_user_has_not_seen(
    small_log: Interactions, popular: float
) -> None:
    below = small_log.n_items - N_NEW
    epochs = list(
        clean_epochs(
            small_log, 5, epochs=2, batch_size=9, n_negatives=4, below=below, popular=popular
        )
    )
    for users, items, negatives, _ in epochs:
        pairs = np.lexsort((items, users))
        expected = np.lexsort((small_log.item_ids, small_log.user_ids))
        np.testing.assert_array_equal(users[pairs], small_log.user_ids[expected])
        np.testing.assert_array_equal(items[pairs], small_log.item_ids[expected])
        assert negatives.shape == (len(small_log), 4)
        assert not small_log.has(users[:, None], negatives).any()
        assert set(np.unique(negatives)) == set(range(below))
    assert not np.array_equal(epochs[0].users, epochs[1].users)


@pytest.mark.parametrize("popular", [0.0, 0.5])
def test_fake_users_leave_the_examples_of_genuine_ones_as_they_were(
    small_log: Interactions, popular: float
) -> None:
    log = small_log.with_fake_users(np.array([[24, 3, 3], [5, 26, 1]]))

    def examples(of: Interactions) -> NDArray[np.int64]:
        epoch = next(
            clean_epochs(of, 5, epochs=1, batch_size=40, n_negatives=2, below=24, popular=popular)
        )
        batches = np.repeat(np.arange(len(epoch.batch_indptr) - 1), np.diff(epoch.batch_indptr))
        table = np.column_stack([epoch.users, epoch.items, batches, epoch.negatives])
        return table[epoch.users < small_log.n_users]

    before, after = examples(small_log), examples(log)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    is_same = before[:, 3:] == after[:, 3:]
    assert is_same.all() if popular == 0.0 else 0.9 < is_same.mean() < 1.0
