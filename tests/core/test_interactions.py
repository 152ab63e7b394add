"""Interactions: grouped by user, immutable, and every derived table against a plain loop."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recattack_gym.core import ArgumentError, Interactions


def log_of(pairs: list[tuple[int, int]], n_users: int = 5, n_items: int = 6) -> Interactions:
    users, items = zip(*pairs, strict=True) if pairs else ((), ())
    return Interactions(
        np.array(users, dtype=np.int64), np.array(items, dtype=np.int64), n_users, n_items
    )


PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=30)


@given(PAIRS)
def test_every_derived_table_equals_a_plain_loop(pairs: list[tuple[int, int]]) -> None:
    log = log_of(pairs)
    assert len(log) == len(pairs)
    for user in range(5):
        mine = [item for someone, item in pairs if someone == user]
        assert log.items_of(user).tolist() == mine
        indptr, seen = log.seen
        assert seen[indptr[user] : indptr[user + 1]].tolist() == sorted(set(mine))
        assert log.has(user, np.arange(6)).tolist() == [item in mine for item in range(6)]
    assert log.item_popularity.tolist() == [sum(i == item for _, i in pairs) for item in range(6)]
    assert log.indptr[-1] == len(pairs)


@given(PAIRS)
def test_events_keep_their_order_within_a_user_and_carry_their_columns(
    pairs: list[tuple[int, int]],
) -> None:
    times = np.arange(len(pairs), dtype=np.float64)
    log = log_of(pairs)
    timed = Interactions(
        np.array([u for u, _ in pairs], dtype=np.int64),
        np.array([i for _, i in pairs], dtype=np.int64),
        5,
        6,
        timestamps=times,
        ratings=-times,
    )
    assert timed.timestamps is not None
    assert timed.ratings is not None
    np.testing.assert_array_equal(timed.item_ids, log.item_ids)
    np.testing.assert_array_equal(timed.ratings, -timed.timestamps)
    for user in range(5):
        assert (np.diff(timed.timestamps[timed.user_ids == user]) > 0).all()


def test_nothing_can_be_changed_not_even_through_the_arrays_it_was_made_from() -> None:
    users, items = np.array([0, 1]), np.array([2, 3])
    log = Interactions(users, items, 2, 4)
    users[0], items[0] = 1, 0
    assert (log.user_ids.tolist(), log.item_ids.tolist()) == ([0, 1], [2, 3])
    arrays = (log.user_ids, log.item_ids, log.indptr, log.item_popularity, *log.seen)
    for array in arrays:
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(FrozenInstanceError):
        log.n_items = 9  # type: ignore[misc]  # frozen on purpose


def test_the_hash_is_of_the_content() -> None:
    log = log_of([(0, 1), (1, 2), (0, 3)])
    assert log.content_hash == log_of([(0, 1), (0, 3), (1, 2)]).content_hash
    others = [
        log_of([(0, 3), (1, 2), (0, 1)]),
        log_of([(0, 1), (1, 2), (0, 3)], n_items=7),
        log_of([(0, 1), (1, 2), (0, 3)], n_users=6),
        Interactions(log.user_ids, log.item_ids, 5, 6, ratings=np.zeros(3)),
        Interactions(log.user_ids, log.item_ids, 5, 6, timestamps=np.zeros(3)),
    ]
    assert len({other.content_hash for other in [log, *others]}) == 6


def test_has_broadcasts_its_arguments() -> None:
    log = log_of([(0, 1), (4, 5)])
    assert log.has(np.array([[0], [4]]), np.array([1, 5])).tolist() == [
        [True, False],
        [False, True],
    ]
    assert log_of([]).has(0, np.arange(3)).tolist() == [False] * 3


def test_fake_users_come_after_the_genuine_ones_and_change_nobody_else() -> None:
    log = Interactions(np.array([0, 1]), np.array([2, 3]), 3, 6, timestamps=np.array([1.0, 2.0]))
    poisoned = log.with_fake_users(np.array([[5, 5, 0], [1, 2, 3]]))
    assert poisoned.n_users == 5
    assert poisoned.items_of(3).tolist() == [5, 5, 0]
    assert poisoned.items_of(4).tolist() == [1, 2, 3]
    assert [poisoned.items_of(user).tolist() for user in range(3)] == [[2], [3], []]
    assert poisoned.timestamps is None
    assert len(log) == 2


def rated_log() -> Interactions:
    return Interactions(np.array([1, 0]), np.array([2, 3]), 3, 6, ratings=np.array([2.0, 5.0]))


def test_a_rated_log_keeps_its_ratings_and_a_fake_click_is_its_top_rating() -> None:
    poisoned = rated_log().with_fake_users(np.array([[5, 0], [1, 1]]))
    assert poisoned.ratings is not None
    assert poisoned.ratings.tolist() == [5.0, 2.0, 5.0, 5.0, 5.0, 5.0]
    assert poisoned.item_ids.tolist() == [3, 2, 5, 0, 1, 1]


def test_fake_users_rate_what_they_like_on_the_scale_of_the_log() -> None:
    poisoned = rated_log().with_fake_users(np.array([[5, 0]]), np.array([[2.0, 3.25]]))
    assert poisoned.ratings is not None
    assert poisoned.ratings.tolist() == [5.0, 2.0, 2.0, 3.25]


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ([[1.5, 3.0]], r"scale, \[2, 5\], got 1.5"),
        ([[2.0, 5.5]], r"got 5.5"),
        ([[2.0]], r"shape \(1, 2\), got \(1, 1\)"),
        ([[2.0, float("nan")]], "ratings must be finite"),
    ],
)
def test_fake_ratings_off_the_scale_are_refused(ratings: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        rated_log().with_fake_users(np.array([[5, 0]]), np.array(ratings))


def test_fake_ratings_on_a_log_of_clicks_are_refused() -> None:
    with pytest.raises(ArgumentError, match="ratings must be None"):
        log_of([(0, 0)]).with_fake_users(np.array([[1]]), np.array([[1.0]]))
    assert log_of([(0, 0)]).with_fake_users(np.array([[1]])).ratings is None


@pytest.mark.parametrize("profiles", [[[6]], [[-1]], [0], [[0.5]], [[[0]]]])
def test_profiles_that_do_not_fit_the_catalogue_are_refused(profiles: object) -> None:
    with pytest.raises(ArgumentError, match="profiles must"):
        log_of([(0, 0)]).with_fake_users(np.array(profiles))


def test_a_catalogue_grows_but_never_shrinks() -> None:
    log = log_of([(0, 5)])
    assert log.with_catalogue(8).item_popularity.tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    assert log.with_catalogue(6).content_hash == log.content_hash
    with pytest.raises(ArgumentError, match="n_items must be >= 6"):
        log.with_catalogue(5)


def test_select_keeps_what_is_true_in_every_column() -> None:
    log = Interactions(
        np.array([0, 0, 1]), np.array([1, 2, 3]), 2, 4, np.arange(3.0), np.arange(3.0) + 5
    )
    kept = log.select(np.array([True, False, True]))
    assert kept.item_ids.tolist() == [1, 3]
    assert kept.timestamps is not None
    assert kept.ratings is not None
    assert (kept.timestamps.tolist(), kept.ratings.tolist()) == ([0, 2], [5, 7])
    for wrong in (np.array([True]), np.array([1, 0, 1])):
        with pytest.raises(ArgumentError, match="keep must be a bool array of shape"):
            log.select(wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user_ids": [0, 2]}, r"user_ids must lie in \[0, 2\), got 2 at index \(1,\)"),
        ({"user_ids": [0, -1]}, "user_ids must lie in"),
        ({"item_ids": [0, 3]}, "item_ids must lie in"),
        ({"item_ids": [0]}, r"item_ids must have shape \(2\), got \(1,\)"),
        ({"user_ids": [0.0, 1.0]}, "user_ids must hold whole numbers"),
        ({"item_ids": ["a", "b"]}, "item_ids must hold whole numbers"),
        ({"n_users": 0}, "n_users must be a whole number >= 1, got 0"),
        ({"n_items": 2.0}, "n_items must be a whole number"),
        ({"timestamps": [1.0]}, r"timestamps must have shape \(2,\)"),
        ({"timestamps": [1.0, np.nan]}, "timestamps must be finite, got nan"),
        ({"ratings": [1.0, np.inf]}, "ratings must be finite, got inf"),
    ],
)
def test_a_malformed_log_is_refused(changes: dict[str, object], message: str) -> None:
    good = {"user_ids": [0, 1], "item_ids": [0, 2], "n_users": 2, "n_items": 3}
    with pytest.raises(ArgumentError, match=message):
        Interactions(**{**good, **changes})  # type: ignore[arg-type]  # wrong on purpose
