"""What clean training visits in an epoch: the same genuine examples with and without fake users.

Full retraining repeats the seed of the clean fit, so that before and after differ by the poison alone.
An equal seed is not enough for that, since a draw that depends on how many events there are changes
for everyone. So every event has a key of its own, a counter-based function of (seed, epoch, event):
fake users' events, which stand at the end of the log, fall in between the others and leave their order,
their batches and their negatives as they were.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_words

VISITS, NEGATIVES = 16, 1 << 20
"""First streams of clean training: the order of the events and their negatives, one per epoch each."""

_DIGITS = 4
"""Leading binary digits of a number of batches; the others are zero."""


class Epoch(NamedTuple):
    """The examples of an epoch; batch `b` is `batch_indptr[b]:batch_indptr[b + 1]`."""

    users: NDArray[np.int32]
    """Shape `(S,)`."""
    items: NDArray[np.int32]
    """Clicked items, shape `(S,)`."""
    negatives: NDArray[np.int32]
    """Items that were not clicked, shape `(S, n_negatives)`."""
    batch_indptr: NDArray[np.int64]
    """Shape `(n_batches + 1,)`."""


def visit_order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """Return the order in which an epoch visits `n` events, or users; shape `(n,)`.

    Those that are added at the end fall in between and leave the order of the others as it was.
    """
    return _order_and_keys(seed, epoch, n)[0]


def visit_batches(
    seed: int, epoch: int, n: int, batch_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the order in which an epoch visits `n` events, or users, and where batches begin and end.

    Which batch an event belongs to depends on its key and on the number of batches, not on its place:
    one that is added makes one batch longer instead of pushing one event out of each batch that follows.
    The number of batches is rounded to four binary digits, so that few more events seldom change it.

    Args:
        seed: In `[0, 2**63)`.
        epoch: From 0.
        n: How many are visited.
        batch_size: What batches have on average, up to 6 % more or less; up to a half where they are few.

    Returns:
        Shapes `(n,)` and `(n_batches + 1,)`; no batch is empty.
    """
    order, keys = _order_and_keys(seed, epoch, n)
    n_batches = max(1, round(n / batch_size))
    unit = 1 << max(0, n_batches.bit_length() - _DIGITS)
    n_batches = (n_batches + unit // 2) // unit * unit
    first_keys = [(batch << 64) // n_batches for batch in range(n_batches)]
    bounds = np.searchsorted(keys, np.array(first_keys, dtype=np.uint64))
    return order, np.unique(np.append(bounds, n)).astype(np.int64)


def clean_epochs(
    log: Interactions,
    seed: int,
    *,
    epochs: int,
    batch_size: int,
    n_negatives: int,
    below: int,
    popular: float = 0.0,
) -> Iterator[Epoch]:
    """Yield the examples of each epoch of clean training in batches.

    Args:
        log: What to train on; every click is used once per epoch.
        seed: What all draws are made from.
        epochs: How many.
        batch_size: Clicks per batch, about; see `visit_batches`.
        n_negatives: Items per click.
        below: Uniform negatives are drawn from `[0, below)`.
        popular: Share of the negatives that are drawn by popularity.
    """
    from recattack_gym.victims.kernels import draw_negatives

    for epoch in range(epochs):
        order, batch_indptr = visit_batches(seed, epoch, len(log), batch_size)
        negatives = np.empty((len(log), n_negatives), dtype=np.int32)
        stream = NEGATIVES + epoch
        draw_negatives(
            order, log.user_ids, log.item_ids, *log.seen, seed, stream, below, popular, negatives
        )
        users, items = (ids[order].astype(np.int32) for ids in (log.user_ids, log.item_ids))
        yield Epoch(users, items, negatives, batch_indptr)


def _order_and_keys(seed: int, epoch: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Sort random words, whose last bits are replaced by what they belong to."""
    n_bits = np.uint64(max(n - 1, 1).bit_length())
    words = counter_words(seed, VISITS + epoch, np.arange(n)) >> n_bits << n_bits
    keys = np.sort(words | np.arange(n, dtype=np.uint64))
    return (keys & ((np.uint64(1) << n_bits) - np.uint64(1))).astype(np.int64), keys
