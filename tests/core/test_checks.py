"""Checks at the public boundary: what passes unchanged, and what is refused with name, value and remedy."""

import numpy as np
import pytest

from recattack_gym.core import ArgumentError
from recattack_gym.core.checks import (
    as_choice,
    as_count,
    as_device,
    as_generator,
    as_ids,
    as_real,
)


@pytest.mark.parametrize("value", [1, 7, np.int64(3), np.uint8(2)])
def test_whole_numbers_are_counts(value: object) -> None:
    count = as_count("n", value)
    assert type(count) is int
    assert count == value


@pytest.mark.parametrize(
    "value", [0, -1, 1.0, 2.5, True, np.True_, "3", None, np.float64(2), np.array([1]), [1]]
)
def test_anything_else_is_no_count(value: object) -> None:
    with pytest.raises(ArgumentError, match=r"^n must be a whole number >= 1, got "):
        as_count("n", value)


def test_the_least_count_can_be_set() -> None:
    assert as_count("n", 0, at_least=0) == 0
    with pytest.raises(ArgumentError, match=">= 0, got -1"):
        as_count("n", -1, at_least=0)


@pytest.mark.parametrize("value", [0.5, 3, np.float32(0.25), np.int64(2)])
def test_finite_numbers_are_real(value: float) -> None:
    number = as_real("x", value)
    assert type(number) is float
    assert number == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.nan])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ArgumentError, match="x must be a finite number, got"):
        as_real("x", value)


@pytest.mark.parametrize("value", ["1", None, True, np.True_, [1.0], 1j])
def test_what_is_no_number_is_refused_with_its_type(value: object) -> None:
    with pytest.raises(ArgumentError, match=f"x must be a number, got .*{type(value).__name__}"):
        as_real("x", value)


def test_bounds_are_open_or_closed_as_their_names_say() -> None:
    assert as_real("x", 1.0, at_least=1.0) == 1.0
    assert as_real("x", 1.0, at_most=1.0) == 1.0
    with pytest.raises(ArgumentError, match=r"> 1\.0, got 1\.0"):
        as_real("x", 1.0, above=1.0)
    with pytest.raises(ArgumentError, match=r">= 0\.0 and <= 1\.0, got 1\.5"):
        as_real("x", 1.5, at_least=0.0, at_most=1.0)
    with pytest.raises(ArgumentError, match=r">= 0\.0, got -0\.1"):
        as_real("x", -0.1, at_least=0.0)


def test_a_choice_is_one_of_the_choices() -> None:
    assert as_choice("mode", "a", ("a", "b")) == "a"
    for wrong in ("A", "c", None, 1):
        with pytest.raises(ArgumentError, match="mode must be one of 'a', 'b', got"):
            as_choice("mode", wrong, ("a", "b"))


def test_ids_become_int64_of_the_shape_asked_for() -> None:
    ids = as_ids("ids", np.array([[0, 4]], dtype=np.uint8), below=5, shape=(None, 2))
    assert ids.dtype == np.int64
    assert ids.tolist() == [[0, 4]]
    assert as_ids("ids", [], below=5, shape=(None,)).dtype == np.int64
    assert as_ids("ids", np.zeros((0, 3)), below=5, shape=(None, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 5], r"must lie in \[0, 5\), got 5 at index \(1,\)"),
        ([-1], r"must lie in \[0, 5\), got -1 at index \(0,\)"),
        ([0.0], "must hold whole numbers .* got float64"),
        ([True], "must hold whole numbers .* got bool"),
        (["a"], "must hold whole numbers"),
        ([np.nan], "must hold whole numbers"),
        ([[0]], r"must have shape \(any\), got \(1, 1\)"),
        (3, r"must have shape \(any\), got \(\)"),
        ([[0], [0, 1]], "must be an array of whole numbers"),
        (np.array([2**63], dtype=np.uint64), r"must lie in \[0, 5\)"),
    ],
)
def test_what_is_no_id_is_refused_with_its_place(values: object, message: str) -> None:
    with pytest.raises(ArgumentError, match="^ids " + message):
        as_ids("ids", values, below=5, shape=(None,))  # type: ignore[arg-type]  # wrong on purpose


def test_a_fixed_length_is_checked() -> None:
    with pytest.raises(ArgumentError, match=r"must have shape \(any, 2\), got \(1, 3\)"):
        as_ids("ids", [[0, 0, 0]], below=1, shape=(None, 2))


@pytest.mark.parametrize("wrong", [None, 7, np.random, "rng"])
def test_only_a_numpy_generator_is_a_generator(wrong: object) -> None:
    rng = np.random.default_rng(0)
    assert as_generator("rng", rng) is rng
    with pytest.raises(ArgumentError, match=r"rng must be a numpy\.random\.Generator"):
        as_generator("rng", wrong)


@pytest.mark.parametrize("wrong", ["gpu", "cuda:x", "cpu:0", None, 0, "cuda:9999"])
def test_only_a_device_of_this_machine_is_a_device(wrong: object) -> None:
    assert as_device("cpu") == "cpu"
    with pytest.raises(ArgumentError, match=r"device .*'cpu'"):
        as_device(wrong)
