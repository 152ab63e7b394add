"""The ranking rule and candidate lists, against sorting one list at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from recattack_gym.core import ArgumentError, Interactions
from recattack_gym.victims.ranking import (
    CandidateLists,
    best_first,
    count_exposure,
    seen_mask,
    top_k,
)


def ranked_plainly(scores: list[float], items: list[int], allowed: list[bool], k: int) -> list[int]:
    """Sort one list by the rule: higher score first, equal scores by lower id."""
    order = sorted((-s, i) for s, i, ok in zip(scores, items, allowed, strict=True) if ok)
    shown = [item for _, item in order[:k]]
    return shown + [-1] * (k - len(shown))


@st.composite
def lists(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    """Draw scores with many ties, distinct ids in any order, and a mask."""
    n_rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = rng.integers(-2, 3, (n_rows, width)).astype(np.float32)
    if draw(st.booleans()):
        items = np.tile(np.sort(rng.permutation(20)[:width]), (n_rows, 1))
    else:
        items = np.stack([rng.permutation(20)[:width] for _ in range(n_rows)])
    return scores, items, rng.random((n_rows, width)) < draw(st.sampled_from([0.0, 0.5, 1.0]))


@given(lists(), st.integers(1, 12))
def test_top_k_equals_sorting_each_row(
    drawn: tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]], k: int
) -> None:
    scores, items, allowed = drawn
    shown = top_k(scores, items, allowed, k)
    assert shown.tolist() == [
        ranked_plainly(s, i, a, k)
        for s, i, a in zip(scores.tolist(), items.tolist(), allowed.tolist(), strict=True)
    ]


@given(lists())
def test_best_first_is_top_k_of_everything(
    drawn: tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]],
) -> None:
    scores, items, _ = drawn
    everything = np.ones(items.shape, dtype=np.bool_)
    expected = top_k(scores, items, everything, items.shape[1])
    np.testing.assert_array_equal(best_first(scores, items), expected)


def test_a_tie_between_a_target_and_an_original_item_goes_to_the_original() -> None:
    scores = np.zeros((1, 4), np.float32)
    shown = top_k(scores, np.array([[9, 2, 7, 4]]), np.ones((1, 4), np.bool_), 2)
    assert shown.tolist() == [[2, 4]]


def test_top_k_refuses_shapes_that_differ() -> None:
    with pytest.raises(ArgumentError, match="must have one shape"):
        top_k(np.zeros((1, 2), np.float32), np.zeros((1, 3), int), np.ones((1, 2), np.bool_), 1)


def test_exposure_counts_lists_that_contain_each_target() -> None:
    shown = np.array([[1, 2, -1], [2, 9, 1], [-1, -1, -1]])
    assert count_exposure(shown, np.array([9, 1, 5])).tolist() == [1, 2, 0]


@pytest.fixture
def log() -> Interactions:
    """Three users: 0 has 1 and 2, 1 has nothing, 2 has 5 twice."""
    return Interactions(np.array([0, 0, 2, 2]), np.array([1, 2, 5, 5]), n_users=3, n_items=7)


@given(st.lists(st.integers(0, 2), max_size=5))
def test_the_seen_mask_equals_a_loop(users: list[int]) -> None:
    log = Interactions(np.array([0, 0, 2, 2]), np.array([1, 2, 5, 5]), n_users=3, n_items=7)
    mask = seen_mask(log, np.array(users, dtype=np.int64))
    assert mask.tolist() == [[item in log.items_of(u) for item in range(7)] for u in users]


def test_lists_put_targets_last_and_never_show_a_seen_target(log: Interactions) -> None:
    lists = CandidateLists(log, np.array([[0, 4], [1, 2], [3, 1]]), np.array([5, 6, 2]), 2)
    items, allowed = lists.block(np.array([2, 0]))
    assert items.tolist() == [[3, 1, 5, 6, 2], [0, 4, 5, 6, 2]]
    assert allowed.tolist() == [[True, True, False, True, True], [True, True, True, True, False]]
    assert lists.eligible.tolist() == [
        [True, True, False],
        [True, True, True],
        [False, True, True],
    ]
    assert lists.n_users == 3


def test_without_lists_the_whole_catalogue_is_ranked_but_for_seen_items(log: Interactions) -> None:
    lists = CandidateLists(log, None, np.array([5]), 2)
    items, allowed = lists.block(np.array([2, 1]))
    assert lists.all_ids is None
    assert items.tolist() == [list(range(7))] * 2
    assert allowed.tolist() == [[item != 5 for item in range(7)], [True] * 7]


def test_lists_cannot_be_changed(log: Interactions) -> None:
    lists = CandidateLists(log, np.array([[0], [1], [3]]), np.array([6]), 2)
    assert lists.item_ids is not None
    for array in (lists.item_ids, lists.target_items):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
