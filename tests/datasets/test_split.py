"""Leave-one-out, on logs that can be checked by hand and on any log."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recattack_gym.core.errors import ArgumentError
from recattack_gym.core.interactions import Interactions
from recattack_gym.datasets import from_interactions, leave_one_out


def a_log(sequences: list[list[int]], n_items: int = 6) -> Interactions:
    users = [user for user, items in enumerate(sequences) for _ in items]
    items = [item for sequence in sequences for item in sequence]
    return Interactions(
        np.array(users, dtype=np.int64),
        np.array(items, dtype=np.int64),
        len(sequences),
        n_items,
        timestamps=np.arange(len(items), dtype=np.float64),
    )


UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # busy machines
SEQUENCES = st.lists(st.lists(st.integers(0, 5), max_size=7), min_size=1, max_size=6)


def test_the_last_event_tests_and_the_one_before_validates() -> None:
    split = leave_one_out(a_log([[0, 1, 2, 3], [4, 5, 0]]))
    assert split.test_items.tolist() == [3, 0]
    assert split.validation_items.tolist() == [2, 5]
    assert split.train.items_of(0).tolist() == [0, 1]
    assert split.train.items_of(1).tolist() == [4]
    assert split.before_test.items_of(0).tolist() == [0, 1, 2]


def test_a_user_with_fewer_than_three_events_keeps_them_for_training() -> None:
    split = leave_one_out(a_log([[], [3], [1, 2], [0, 1, 2]]))
    assert split.test_items.tolist() == [-1, -1, -1, 2]
    assert split.validation_items.tolist() == [-1, -1, -1, 1]
    assert [split.train.items_of(user).tolist() for user in range(4)] == [[], [3], [1, 2], [0]]


@UNHURRIED
@given(SEQUENCES)
def test_the_parts_put_together_are_the_log_again(sequences: list[list[int]]) -> None:
    split = leave_one_out(a_log(sequences))
    for user, sequence in enumerate(sequences):
        held_out = [split.validation_items[user], split.test_items[user]]
        rest = [] if len(sequence) < 3 else held_out
        assert split.train.items_of(user).tolist() + rest == sequence
        assert split.before_test.items_of(user).tolist() + rest[1:] == sequence


@UNHURRIED
@given(SEQUENCES)
def test_a_user_is_evaluable_if_the_answer_is_new_to_her(sequences: list[list[int]]) -> None:
    split = leave_one_out(a_log(sequences))
    for user, sequence in enumerate(sequences):
        for which, place in (("validation", -2), ("test", -1)):
            expected = len(sequence) >= 3 and sequence[place] not in sequence[:place]
            assert split.evaluable(which)[user] == expected  # type: ignore[arg-type]  # a loop variable


def test_times_stay_with_their_events() -> None:
    split = leave_one_out(a_log([[0, 1, 2], [3, 4, 5, 0]]))
    assert split.train.timestamps is not None
    assert split.train.timestamps.tolist() == [0, 3, 4]


def test_evaluable_refuses_an_unknown_part() -> None:
    split = leave_one_out(a_log([[0, 1, 2]]))
    with pytest.raises(
        ArgumentError, match="which must be one of 'validation', 'test', got 'train'"
    ):
        split.evaluable("train")  # type: ignore[arg-type]  # the point of the test


def test_held_out_items_cannot_be_changed() -> None:
    split = leave_one_out(a_log([[0, 1, 2]]))
    with pytest.raises(ValueError, match="read-only"):
        split.test_items[0] = 5


def test_samples_count_one_held_out_event_per_user_who_has_events() -> None:
    assert from_interactions(a_log([[0, 1, 2, 3], [], [4], [5, 5]])).n_samples == 7 - 3


def test_a_dataset_computes_its_split_once() -> None:
    dataset = from_interactions(a_log([[0, 1, 2]]))
    assert dataset.split is dataset.split


def test_from_interactions_refuses_anything_else() -> None:
    with pytest.raises(ArgumentError, match=r"log must be an Interactions.*got list"):
        from_interactions([(0, 1)])  # type: ignore[arg-type]  # the point of the test


def test_item_names_must_fit_the_catalogue() -> None:
    with pytest.raises(
        ArgumentError, match="item_names must have one name for each of the 6 items, got 1"
    ):
        from_interactions(a_log([[0]]), item_names=("only one",))
