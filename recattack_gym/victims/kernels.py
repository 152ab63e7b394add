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

_FINE = 1 << 20
"""Resolution of shares."""


_config: Any = numba.config  # its settings are attributes that are made at run time

SHARED_SOURCES = (
    "covisitation.py",
    "graph_kernel.py",
    "kernels.py",
    "neumf_kernel.py",
    "schedule.py",
)
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
    """Compile one kernel together with all that it calls.

    A kernel that was not inlined would be in the machine code of each of its callers, optimised anew for
    each; which copy a process then uses depends on the order in which it compiled or loaded them, and
    under `fastmath` the copies round differently.
    """
    given = _config.CACHE_DIR
    _config.CACHE_DIR = _CACHE_FOLDER  # read while decorating
    try:
        decorate = numba.njit(
            nogil=True, cache=True, fastmath=fastmath, error_model="numpy", forceinline=True
        )
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
def draw_growing(key: np.uint64, counter: int, below: int) -> np.int64:
    """Draw one integer in `[0, below)` that seldom changes as `below` grows.

    It is drawn below the next power of two, again and again until it is below `below`. So a larger
    `below` changes only what would otherwise have been drawn again, unless it passes a power of two.
    """
    mask = np.uint64(below - 1)
    for n_bits in (1, 2, 4, 8, 16, 32):
        mask |= mask >> np.uint64(n_bits)
    word = mix_word(key + (np.uint64(counter) + np.uint64(1)) * _GOLDEN)
    while (word & mask) >= np.uint64(below):
        word = mix_word(word + _GOLDEN)
    return np.int64(word & mask)


@compiled
def has_item(
    indptr: NDArray[np.int64], seen: NDArray[np.int32], user: int, item: np.int64
) -> np.bool_:
    """Tell whether a user has clicked an item, from `Interactions.seen`."""
    low, high = indptr[user], indptr[user + 1]
    while low < high:
        middle = (low + high) >> 1
        if seen[middle] < item:
            low = middle + 1
        else:
            high = middle
    return np.bool_(low < indptr[user + 1] and seen[low] == item)


@compiled
def draw_negative(
    indptr: NDArray[np.int64],
    seen: NDArray[np.int32],
    user: int,
    place: int,
    key: np.uint64,
    below: int,
    clicked: NDArray[np.int64],
    popular: float,
) -> np.int64:
    """Draw an item that a user has not seen (after `MAX_TRIES` draws: any item).

    Args:
        indptr: Of `Interactions.seen`, as the next one.
        seen: The distinct items of each user.
        user: Whose.
        place: Number of the draw; equal numbers give equal draws.
        key: From `stream_key`.
        below: Uniform negatives are drawn from `[0, below)`.
        clicked: The items of all events, shape `(n_events,)`.
        popular: Share of the draws that take the item of a random event; the others are uniform.
    """
    drawn = np.int64(0)
    limit = np.int64(popular * _FINE)
    for attempt in range(MAX_TRIES):
        counter = 2 * (place * MAX_TRIES + attempt)
        if limit > 0 and draw_below(key, counter + 1, _FINE) < limit:
            drawn = clicked[draw_growing(key, counter, len(clicked))]
        else:
            drawn = draw_below(key, counter, below)
        if not has_item(indptr, seen, user, drawn):
            break
    return drawn


@compiled
def draw_negatives(
    order: NDArray[np.int64],
    user_ids: NDArray[np.int64],
    item_ids: NDArray[np.int64],
    indptr: NDArray[np.int64],
    seen: NDArray[np.int32],
    seed: int,
    stream: int,
    below: int,
    popular: float,
    negatives: NDArray[np.int32],
) -> None:
    """Draw the negatives of events, which do not depend on when an event is visited.

    Args:
        order: Events, shape `(S,)`.
        user_ids: Of all events, as the next one.
        item_ids: What popular negatives are drawn from.
        indptr: Of `Interactions.seen`, as the next one.
        seen: The distinct items of each user.
        seed: What is drawn from.
        stream: Which use of the seed this is.
        below: See `draw_negative`.
        popular: See `draw_negative`.
        negatives: Written, shape `(S, n_negatives)`.
    """
    key = stream_key(seed, stream)
    n_negatives = negatives.shape[1]
    for s in range(len(order)):
        event = order[s]
        for j in range(n_negatives):
            negatives[s, j] = draw_negative(
                indptr,
                seen,
                user_ids[event],
                event * n_negatives + j,
                key,
                below,
                item_ids,
                popular,
            )


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
def dot(left: NDArray[np.float32], right: NDArray[np.float32]) -> np.float32:
    """Return the inner product of two vectors."""
    total = np.float32(0.0)
    for d in range(len(left)):
        total += left[d] * right[d]
    return total


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
