"""Compiled pieces that several victims share.

Importing this module loads numba; compiling happens at the first call of each kernel and is cached
on disk. Every kernel here works on one poison set, releases the GIL and allocates nothing, so that
`parallel.over_sets` can run one per thread.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
import scipy.linalg  # noqa: F401  # np.dot's BLAS, which can be held to one thread only once it is loaded
from numpy.typing import NDArray

from recattack_gym.core.errors import StateError
from recattack_gym.victims.schedule import MAX_TRIES, NEGATIVE

F = TypeVar("F", bound=Callable[..., Any])

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


_config: Any = numba.config  # its settings are attributes that are made at run time

SHARED_SOURCES = ("covisitation.py", "graph_kernel.py", "kernels.py", "schedule.py")
"""Files that kernels in other files take compiled functions or constants from."""


def cache_folder() -> Path:
    """Return where machine code is kept: a folder named by the content of the shared sources.

    Numba compiles again when a kernel's own file changes, not when a file changes that the kernel takes
    compiled functions from; the kernel would go on as before without a word. (Where the folder cannot
    be written to, numba falls back on the user's cache.)
    """
    here = Path(__file__).parent
    sources = b"".join((here / name).read_bytes() for name in SHARED_SOURCES)
    given = _config.CACHE_DIR  # from NUMBA_CACHE_DIR
    return (
        Path(given or here / "__pycache__") / f"kernels-{hashlib.sha256(sources).hexdigest()[:16]}"
    )


_CACHE_FOLDER = str(cache_folder())


def _compile(function: F, *, fastmath: bool) -> F:
    given = _config.CACHE_DIR
    _config.CACHE_DIR = _CACHE_FOLDER  # read while decorating
    try:
        decorate = numba.njit(nogil=True, cache=True, fastmath=fastmath, error_model="numpy")
        return cast(F, decorate(function))
    finally:
        _config.CACHE_DIR = given


def compiled(function: F) -> F:
    """Compile with numba: nogil, cached, vectorisable float arithmetic, NumPy division.

    NumPy's division rules matter: Python's zero-division check stops the vectoriser.
    """
    return _compile(function, fastmath=True)


def compiled_exactly(function: F) -> F:
    """Compile with numba as `compiled` does, but keep IEEE arithmetic: for whole numbers and infinities."""
    return _compile(function, fastmath=False)


def check_finite(*parameters: NDArray[np.float32]) -> None:
    """Refuse to count from what a diverged training left behind, as `Victim.score` does.

    Compiled arithmetic takes every number for finite, so lists made from others would mean nothing.

    Args:
        parameters: What fine-tuning has changed, any shapes.

    Raises:
        StateError: If one of the numbers is not finite.
    """
    for array in parameters:
        if not np.isfinite(array.sum(dtype=np.float64)):
            raise StateError(
                "fine-tuning diverged, a parameter is no finite number: lower finetune_learning_rate"
            )


@compiled
def mix_word(z: np.uint64) -> np.uint64:
    """Scramble one 64-bit word; the scalar twin of `core.random.mix`."""
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@compiled
def stream_key(seed: int, stream: int) -> np.uint64:
    """Return the key of one stream; `draw_below` wants it."""
    return mix_word(np.uint64(seed) + np.uint64(stream) * _GOLDEN)


@compiled
def draw_below(key: np.uint64, counter: int, below: int) -> np.int64:
    """Draw one integer in `[0, below)`; the scalar twin of `core.random.counter_integers`."""
    word = mix_word(key + (np.uint64(counter) + np.uint64(1)) * _GOLDEN) >> np.uint64(32)
    return np.int64((word * np.uint64(below)) >> np.uint64(32))


@compiled
def fill_examples(
    clicks: NDArray[np.int32],
    schedule_items: NDArray[np.int32],
    schedule_negatives: NDArray[np.int32],
    profile: NDArray[np.int64],
    seed: int,
    n_items: int,
    items: NDArray[np.int32],
    negatives: NDArray[np.int32],
) -> None:
    """Fill in one poison set; the compiled twin of `UpdateSchedule.examples`.

    Args:
        clicks: Shape `(S,)`, of the schedule, as the next two.
        schedule_items: Shape `(S,)`.
        schedule_negatives: Shape `(S, n_negatives)`.
        profile: Shape `(N, T)`.
        seed: The schedule's.
        n_items: The schedule's.
        items: Written, shape `(S,)`.
        negatives: Written, shape `(S, n_negatives)`.
    """
    profile_size = profile.shape[1]
    n_negatives = schedule_negatives.shape[1]
    key = stream_key(seed, NEGATIVE)
    for s in range(len(clicks)):
        click = clicks[s]
        if click < 0:
            items[s] = schedule_items[s]
            for j in range(n_negatives):
                negatives[s, j] = schedule_negatives[s, j]
            continue
        own = profile[click // profile_size]
        items[s] = own[click % profile_size]
        for j in range(n_negatives):
            place = (s * n_negatives + j) * MAX_TRIES
            drawn = np.int64(-1)
            for attempt in range(MAX_TRIES):
                drawn = draw_below(key, place + attempt, n_items)
                is_positive = False
                for t in range(profile_size):
                    if own[t] == drawn:
                        is_positive = True
                        break
                if not is_positive:
                    break
            negatives[s, j] = drawn


@compiled
def adam_rows(
    weights: NDArray[np.float32],
    gradient: NDArray[np.float32],
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    n: int,
    learning_rate: float,
    step: int,
) -> None:
    """Take one Adam step on the first `n` numbers of flat arrays and clear their gradient.

    Kingma & Ba, ICLR 2015, Algorithm 1, betas (0.9, 0.999), epsilon 1e-8, in the form of
    `torch.optim.Adam`. A row that has never had a gradient does not move under Adam, so running over
    the rows touched so far (a prefix, if rows are numbered by first touch) equals the dense update.

    Args:
        weights: Changed in place; the next three likewise.
        gradient: Set to zero afterwards.
        first: First moment.
        second: Second moment.
        n: Numbers, not rows.
        learning_rate: Step size.
        step: Counts from 1.
    """
    beta1, beta2 = np.float32(0.9), np.float32(0.999)
    rest1, rest2 = np.float32(0.1), np.float32(0.001)
    rate = np.float32(learning_rate / (1.0 - 0.9**step))
    unbias = np.float32(1.0 / np.sqrt(1.0 - 0.999**step))
    epsilon = np.float32(1e-8)
    for x in range(n):
        g = gradient[x]
        m = beta1 * first[x] + rest1 * g
        v = beta2 * second[x] + rest2 * g * g
        first[x] = m
        second[x] = v
        weights[x] -= rate * m / (np.sqrt(v) * unbias + epsilon)
        gradient[x] = np.float32(0.0)


@compiled
def adam_touched(
    weights: NDArray[np.float32],
    gradient: NDArray[np.float32],
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    touched: NDArray[np.int64],
    learning_rate: float,
    step: int,
) -> None:
    """Take one Adam step on the rows of a table that have had a gradient in this run.

    Args:
        weights: Shape `(n_rows, width)`; changed in place, as the next three.
        gradient: Shape `(n_rows, width)`; set to zero afterwards.
        first: Shape `(n_rows, width)`.
        second: Shape `(n_rows, width)`.
        touched: Distinct rows, in any order. Where they are many, all rows take the step, which is
            faster and changes nothing: the others have neither gradient nor moments.
        learning_rate: Step size.
        step: Counts from 1.
    """
    n_rows, width = weights.shape
    if 4 * len(touched) > n_rows:
        adam_rows(
            weights.reshape(-1),
            gradient.reshape(-1),
            first.reshape(-1),
            second.reshape(-1),
            n_rows * width,
            learning_rate,
            step,
        )
        return
    for row in touched:
        adam_rows(weights[row], gradient[row], first[row], second[row], width, learning_rate, step)


@compiled
def best_target(
    scores: NDArray[np.float32], target_items: NDArray[np.int64], eligible: NDArray[np.bool_]
) -> int:
    """Return the place of the target that ranks first for a user, or -1 if none is eligible.

    Args:
        scores: Shape `(n_targets,)`.
        target_items: Shape `(n_targets,)`.
        eligible: Shape `(n_targets,)`.
    """
    best = -1
    for z in range(len(scores)):
        if eligible[z] and (
            best < 0 or is_better(scores[z], target_items[z], scores[best], target_items[best])
        ):
            best = z
    return best


@compiled
def is_better(score: np.float32, item: int, other_score: np.float32, other_item: int) -> np.bool_:
    """Tell which of two items ranks first: the higher score, then the lower id."""
    return np.bool_(score > other_score or (score == other_score and item < other_item))


@compiled
def count_shown(
    candidate_scores: NDArray[np.float32],
    candidates: NDArray[np.int32],
    scores: NDArray[np.float32],
    target_items: NDArray[np.int64],
    eligible: NDArray[np.bool_],
    k: int,
    counts: NDArray[np.int64],
) -> None:
    """Add one user's list to the exposure of the targets.

    Args:
        candidate_scores: Shape `(C,)`: of the items that compete with the targets.
        candidates: Shape `(C,)`.
        scores: Shape `(n_targets,)`.
        target_items: Shape `(n_targets,)`.
        eligible: Shape `(n_targets,)`: the others are never shown.
        k: Length of the list.
        counts: Shape `(n_targets,)`; added to.
    """
    for z in range(len(scores)):
        if not eligible[z]:
            continue
        n_better = 0
        for c in range(len(candidates)):
            n_better += int(
                is_better(candidate_scores[c], candidates[c], scores[z], target_items[z])
            )
        for y in range(len(scores)):
            if eligible[y]:
                n_better += int(is_better(scores[y], target_items[y], scores[z], target_items[z]))
        counts[z] += int(n_better < k)
