"""Checks of arguments at the public boundary, with one wording for all of them."""

import math
import re
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recattack_gym.core.errors import ArgumentError

T = TypeVar("T", bound=str)


def as_count(name: str, value: object, *, at_least: int = 1) -> int:
    """Return `value` as an int, or raise `ArgumentError` unless it is a whole number >= `at_least`."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise ArgumentError(
            f"{name} must be a whole number >= {at_least}, got {value!r} ({type(value).__name__})"
        )
    if value < at_least:
        raise ArgumentError(f"{name} must be a whole number >= {at_least}, got {value}")
    return int(value)


def as_real(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
) -> float:
    """Return `value` as a finite float within the bounds, or raise `ArgumentError`."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        raise ArgumentError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    number = float(value)
    if not math.isfinite(number) or number <= above or number < at_least or number > at_most:
        bounds = [f"> {above}"] if above > -math.inf else []
        bounds += [f">= {at_least}"] if at_least > -math.inf else []
        bounds += [f"<= {at_most}"] if at_most < math.inf else []
        raise ArgumentError(
            f"{name} must be a finite number {' and '.join(bounds)}".rstrip() + f", got {value!r}"
        )
    return number


def as_numbers(name: str, values: object) -> NDArray[np.float64]:
    """Return `values` as an array of finite floats of any shape, or raise `ArgumentError`."""
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{name} must be an array of numbers: {error}") from error
    if not np.isfinite(array).all():
        raise ArgumentError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}")
    return array


def as_choice(name: str, value: object, choices: tuple[T, ...]) -> T:
    """Return the member of `choices` that equals `value`, or raise `ArgumentError`."""
    for choice in choices:
        if value == choice:
            return choice
    raise ArgumentError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def as_ids(
    name: str, values: ArrayLike, *, below: int, shape: tuple[int | None, ...]
) -> NDArray[np.int64]:
    """Return `values` as an int64 array of ids in `[0, below)`.

    Args:
        name: What the caller calls the argument.
        values: Whole numbers; floats, booleans and text are refused, even where they are whole.
        below: One more than the largest id allowed.
        shape: The expected shape; `None` stands for any length.

    Raises:
        ArgumentError: If dtype, shape or range is wrong; names the first offending position.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise ArgumentError(f"{name} must be an array of whole numbers: {error}") from error
    wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
    if array.ndim != len(shape) or any(
        want is not None and have != want for have, want in zip(array.shape, shape, strict=True)
    ):
        raise ArgumentError(f"{name} must have shape {wanted}, got {array.shape}")
    if array.size == 0 and array.dtype == np.float64:
        return np.zeros(array.shape, dtype=np.int64)
    if not np.issubdtype(array.dtype, np.integer):
        raise ArgumentError(f"{name} must hold whole numbers (an integer dtype), got {array.dtype}")
    bad = (array < 0) | (array >= below)
    if bad.any():
        where = tuple(int(x) for x in np.argwhere(bad)[0])
        raise ArgumentError(f"{name} must lie in [0, {below}), got {array[where]} at index {where}")
    return array.astype(np.int64, copy=False)


def as_generator(name: str, rng: object) -> np.random.Generator:
    """Return `rng` if it is a NumPy generator, or raise `ArgumentError`."""
    if not isinstance(rng, np.random.Generator):
        raise ArgumentError(
            f"{name} must be a numpy.random.Generator (numpy.random.default_rng(seed)), got {rng!r}"
        )
    return rng


def as_device(device: object) -> str:
    """Return the name of a torch device that this machine has, or raise `ArgumentError`."""
    if device == "cpu":
        return "cpu"
    if not isinstance(device, str) or not re.fullmatch(r"cuda(:\d+)?|mps", device):
        raise ArgumentError(f"device must be 'cpu', 'cuda', 'cuda:<n>' or 'mps', got {device!r}")
    import torch

    kind, _, index = device.partition(":")
    is_here = (
        torch.backends.mps.is_available()
        if kind == "mps"
        else torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count()
    )
    if not is_here:
        raise ArgumentError(f"device {device!r} is not available on this machine: use 'cpu'")
    return device
