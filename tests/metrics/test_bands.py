"""Popularity bands and exposures, against walks through the items one by one."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recattack_gym.core import ArgumentError
from recattack_gym.metrics import BANDS, exposures, popularity_bands


def one_by_one(popularity: list[int]) -> list[str]:
    """Fill the head from above until it has a fifth, the tail from below while it has at most a fifth."""
    total = sum(popularity)
    ranked = sorted(range(len(popularity)), key=lambda item: (-popularity[item], item))
    band = dict.fromkeys(ranked, "middle")
    in_tail = 0
    for item in reversed(ranked):
        in_tail += popularity[item]
        if Fraction(in_tail) > Fraction(total, 5):
            break
        band[item] = "tail"
    in_head = 0
    for item in ranked:
        if Fraction(in_head) >= Fraction(total, 5):
            break
        in_head += popularity[item]
        band[item] = "head"
    return [band[item] for item in range(len(popularity))]


@given(st.lists(st.integers(0, 12) | st.integers(0, 1000), max_size=30))
def test_bands_are_those_found_item_by_item(popularity: list[int]) -> None:
    bands = popularity_bands(np.array(popularity, dtype=np.int64))
    assert [BANDS[band] for band in bands] == one_by_one(popularity)


def test_the_head_has_a_fifth_of_the_clicks_and_the_tail_at_most_one() -> None:
    # 20 clicks: 4 are a fifth. Item 2 alone has 8; items 0, 5, 4 have 1 + 2 + 0 <= 4, with item 3 it is 6.
    assert popularity_bands(np.array([1, 6, 8, 3, 0, 2])).tolist() == [2, 1, 0, 1, 2, 2]
    # five equal items: one is a fifth, and the lower id counts as more popular
    assert popularity_bands(np.array([3, 3, 3, 3, 3])).tolist() == [0, 1, 1, 1, 2]
    assert popularity_bands(np.zeros(3, dtype=np.int64)).tolist() == [2, 2, 2]
    assert popularity_bands(np.array([7])).tolist() == [0]


@given(st.lists(st.lists(st.integers(-1, 6), min_size=3, max_size=3), max_size=12))
def test_exposures_are_counted_place_by_place(lists: list[list[int]]) -> None:
    shown = np.array(lists, dtype=np.int64).reshape(-1, 3)
    counted = [
        sum(item in places for places in ([p] for row in lists for p in row)) for item in range(7)
    ]
    assert exposures(shown, 7).tolist() == counted


def test_wrong_arguments_are_refused() -> None:
    for wrong in (np.array([1, -1]), np.array([[1]]), np.array([0.5])):
        with pytest.raises(ArgumentError, match="popularity must be an array of whole numbers"):
            popularity_bands(wrong)
    for wrong in (np.array([[0, 5]]), np.array([[-2, 0]]), np.array([0, 1])):
        with pytest.raises(ArgumentError, match="shown must hold lists of item ids below 5"):
            exposures(wrong, 5)
