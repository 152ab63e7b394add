"""What GRU4Rec trains on: sessions, the batches they come in, sampled items, and dropout.

All of it is a function of counters, so that fake clicks at the end of a log leave the rest nearly as it was.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.interactions import Interactions
from recattack_gym.core.random import counter_integers, counter_words
from recattack_gym.victims.epochs import visit_batches
from recattack_gym.victims.schedule import MAX_TRIES

OFFSET, SESSION_ORDER, SESSION_NEGATIVE, DROPOUT = 1 << 21, 17, 19, 20
"""Streams of the counter-based generator."""

_BUCKET = 16
"""Clean training sorts this many batches at a time by length, so that little is padded."""


def cut(
    log: Interactions, session_length: int, seed: int = 0, epoch: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut every user's sequence into sessions; return where they start in the log, and their lengths.

    Cuts are counted from the end of each sequence, so that the last session is the one that is read when
    scoring; with an epoch, longer sequences are cut at places that differ from epoch to epoch.
    """
    sizes = np.diff(log.indptr)
    shift = -sizes % session_length
    if epoch is not None:
        users = np.arange(log.n_users) + (epoch << 32)
        drawn = counter_integers(seed, OFFSET, users, session_length)
        shift = np.where(sizes > session_length, drawn, shift)
    places = np.arange(len(log)) - log.indptr[log.user_ids] + shift[log.user_ids]
    is_start = (places % session_length == 0) | (np.diff(log.user_ids, prepend=-1) != 0)
    starts = np.flatnonzero(is_start)
    return starts, np.diff(starts, append=len(log))


def bucketed(
    lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield batches of sessions in random order, with sessions of like length together.

    A batch comes with a number that it keeps if sessions are added; then its first and its last sessions
    may change places with the neighbouring batches of like lengths.
    """
    order, groups = visit_batches(seed, epoch, len(lengths), batch_size * _BUCKET)
    batches: dict[int, NDArray[np.int64]] = {}
    for group, (start, end) in enumerate(pairwise(groups)):
        rows = order[start:end]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        n_batches = max(1, round(len(rows) / batch_size))
        bounds = np.arange(n_batches + 1) * len(rows) // n_batches
        for b, (first, last) in enumerate(pairwise(bounds)):
            batches[(group << 12) + b] = rows[first:last]
    numbers = np.array(list(batches))
    words = counter_words(seed, (SESSION_ORDER << 32) + epoch, numbers)
    return ((number, batches[number]) for number in numbers[np.argsort(words)].tolist())


def sampling_table(
    log: Interactions, *, alpha: float, new_items_as_negatives: bool
) -> "SamplingTable":
    """Return what clean training draws from: every item in proportion to its clicks to the power `alpha`."""
    items = log.item_ids
    none_yet = np.zeros(log.n_items, dtype=np.int64)
    added = rises(items, none_yet, alpha, first=0.0 if new_items_as_negatives else 1.0)
    if new_items_as_negatives:
        items = np.concatenate([np.arange(log.n_items), items])
        added = np.concatenate([np.ones(log.n_items), added])
    return SamplingTable(items, np.cumsum(added))


def rises(
    items: NDArray[np.int64], before: NDArray[np.int64], alpha: float, *, first: float
) -> NDArray[np.float64]:
    """Return what each further click adds to its item's weight; shape of `items`.

    Args:
        items: Clicked items, one after another.
        before: Clicks that each item has had before, shape `(n_items,)`.
        alpha: An item's weight is its number of clicks to this power.
        first: What an item's first click adds: 1, or 0 if items without click count as if they had one.
    """
    order = np.argsort(items, kind="stable")
    counts = np.bincount(items, minlength=len(before))
    earlier = np.empty(len(items), dtype=np.int64)  # clicks on the item before this one
    earlier[order] = np.arange(len(items)) - (np.cumsum(counts) - counts)[items[order]]
    earlier += before[items]
    further = (earlier + 1.0) ** alpha - earlier**alpha
    added: NDArray[np.float64] = np.where(earlier > 0, further, first)
    return added


@dataclass(frozen=True, eq=False)
class SamplingTable:
    """Draws items in proportion to a power of their clicks, such that added clicks change few draws.

    Every click adds what the power rises by, in the order of the log. Draws are places below a power
    of two, again until they lie in the table: so clicks at its end take nothing but places that would
    have been drawn again, unless the table outgrows the power of two.

    Attributes:
        items: Shape `(n_entries,)`.
        ends: Shape `(n_entries,)`: entry `e` has the places from `ends[e - 1]` to `ends[e]`.
    """

    items: NDArray[np.int64]
    ends: NDArray[np.float64]

    def draw(self, n: int, seed: int, step: int) -> NDArray[np.int64]:
        """Draw the `n` items of a step."""
        size = table_size(self.ends[-1])
        places = np.full(n, np.inf)
        attempt = 0
        while (again := np.flatnonzero(places >= self.ends[-1])).size:
            counters = (step * MAX_TRIES + attempt) * n + again
            places[again] = draw_places(counters, seed, size)
            attempt += 1
        return self.items[np.searchsorted(self.ends, places, side="right")]


def table_size(end: float) -> float:
    """Return the power of two below which places are drawn."""
    return float(2.0 ** np.ceil(np.log2(end)))


def draw_places(counters: NDArray[np.int64], seed: int, size: float) -> NDArray[np.float64]:
    """Draw a place in `[0, size)` for each counter; shape of `counters`."""
    words = counter_words(seed, SESSION_NEGATIVE << 32, counters) >> np.uint64(11)
    return words.astype(np.float64) * (size * 2.0**-53)


def draw_dropout(
    starts: NDArray[np.int64], width: int, d: int, dropout: float, seed: int, epoch: int
) -> NDArray[np.float32] | None:
    """Draw what the inputs of sessions are multiplied by, click by click; shape `(B, width, d)`."""
    if not dropout:
        return None
    n_words = -(-d // 4)  # a word has four draws
    clicks = starts[:, None, None] + np.arange(width)[:, None]
    counters = clicks * n_words + np.arange(n_words)
    draws = counter_words(seed, (DROPOUT << 32) + epoch, counters).view(np.uint16)[:, :, :d]
    is_kept = draws >= round(dropout * 2**16)
    return is_kept * np.float32(1.0 / (1.0 - dropout))


def padded(
    item_ids: NDArray[np.int64], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the slices of `item_ids` as rows, filled up with -1; shape `(n, longest)`."""
    columns = np.arange(lengths.max(initial=0))
    places = np.minimum(starts[:, None] + columns, len(item_ids) - 1)
    return np.where(columns < lengths[:, None], item_ids[places], -1)


def log_weights(probability: NDArray[np.float64], n_negatives: int) -> NDArray[np.float32]:
    """Return minus the log of how often each item is expected in a sample; 0 if never."""
    expected = np.where(probability > 0.0, n_negatives * probability, 1.0)
    return -np.log(expected).astype(np.float32)
