"""What a log looks like in numbers, and how far three simple rankers get on it.

`python -m recattack_gym.datasets.statistics NAME ...` prints a Markdown table; that of
`docs/datasets.md` is made so.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from recattack_gym.core.interactions import Interactions
from recattack_gym.datasets import Dataset, load

EVALUATED_USERS = 2_000
"""Users whose lists are computed, evenly spread; the standard error of a rate is at most 0.011."""
BLOCK_USERS = 200
"""Users ranked together; bounds memory."""
LIST_LENGTH = 10
COLUMNS = {
    "n_users": ("users", ",d"),
    "n_items": ("items", ",d"),
    "n_events": ("events", ",d"),
    "density": ("density", ".3%"),
    "median_events": ("events of the median user", ".0f"),
    "most_events": ("most", ",d"),
    "top_decile": ("share of the top tenth of items", ".2f"),
    "gini": ("Gini of popularity", ".2f"),
    "hr_popularity": ("HR@10 popularity", ".3f"),
    "hr_neighbours": ("HR@10 neighbours", ".3f"),
    "hr_next_item": ("HR@10 next item", ".3f"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """One row of the table."""

    n_users: int
    """Users."""
    n_items: int
    """Catalogue."""
    n_events: int
    """Events."""
    density: float
    """Distinct (user, item) pairs over all pairs."""
    median_events: float
    """Events of the median user."""
    most_events: int
    """Events of the busiest user."""
    top_decile: float
    """Share of events that fall on the most popular tenth of the catalogue."""
    gini: float
    """Gini coefficient of item popularity: 0 = all equal, 1 = one item takes all."""
    hr_popularity: float
    """HR@10 of the most popular unseen items; all HR@10 by full ranking of the test item."""
    hr_neighbours: float
    """HR@10 of item-based nearest neighbours (cosine of co-occurrence)."""
    hr_next_item: float
    """HR@10 of what most often follows the user's last item, ties by popularity."""


def describe(dataset: Dataset) -> Statistics:
    """Compute the statistics of a dataset."""
    log = dataset.log
    n_events = np.diff(log.indptr)
    popularity = np.sort(log.item_popularity)[::-1]
    users = np.flatnonzero(dataset.split.evaluable("test"))
    users = users[:: max(1, len(users) // EVALUATED_USERS)]
    hits = _hit_rates(dataset.split.before_test, users, dataset.split.test_items[users])
    return Statistics(
        n_users=log.n_users,
        n_items=log.n_items,
        n_events=len(log),
        density=len(log.seen[1]) / (log.n_users * log.n_items),
        median_events=float(np.median(n_events)),
        most_events=int(n_events.max()),
        top_decile=float(popularity[: max(1, log.n_items // 10)].sum() / len(log)),
        gini=gini(popularity),
        hr_popularity=hits[0],
        hr_neighbours=hits[1],
        hr_next_item=hits[2],
    )


def gini(amounts: NDArray[np.int64]) -> float:
    """Return the Gini coefficient of non-negative amounts, shape `(n,)`, whose sum is positive."""
    ascending = np.sort(amounts).astype(np.float64)
    n = len(ascending)
    ranks = np.arange(1, n + 1)
    return float(2 * (ranks * ascending).sum() / (n * ascending.sum()) - (n + 1) / n)


def _hit_rates(
    train: Interactions, users: NDArray[np.int64], answers: NDArray[np.int64]
) -> tuple[float, float, float]:
    """Return HR@10 of popularity, neighbours and next item for `users` and `answers`, `(n,)` each."""
    shape = (train.n_users, train.n_items)
    indptr, items = train.seen
    clicks = csr_array((np.ones(len(items)), items, indptr), shape=shape)
    popularity = np.asarray(clicks.sum(axis=0)).ravel()
    scaled = csr_array(clicks.multiply(1 / np.sqrt(np.maximum(popularity, 1))))
    consecutive = train.user_ids[1:] == train.user_ids[:-1]
    pairs = (train.item_ids[:-1][consecutive], train.item_ids[1:][consecutive])
    follows = csr_array(
        (np.ones(len(pairs[0])), pairs), shape=(train.n_items, train.n_items), dtype=np.float64
    )
    hits = np.zeros(3)
    for start in range(0, len(users), BLOCK_USERS):
        block = users[start : start + BLOCK_USERS]
        seen = clicks[block].toarray()
        last_items = train.item_ids[train.indptr[block + 1] - 1]
        rankers = (
            np.broadcast_to(popularity, seen.shape),
            (scaled.T @ (scaled @ (seen / np.sqrt(np.maximum(popularity, 1))).T)).T,
            follows[last_items].toarray() + popularity / (popularity.sum() + 1),
        )
        for ranker, scores in enumerate(rankers):
            masked = np.where(seen > 0, -np.inf, scores)
            hits[ranker] += _n_hits(masked, answers[start : start + BLOCK_USERS])
    rates = hits / max(1, len(users))
    return float(rates[0]), float(rates[1]), float(rates[2])


def _n_hits(scores: NDArray[np.float64], answers: NDArray[np.int64]) -> int:
    """Count the rows of `(n, n_items)` whose answer is in the list; ties count half."""
    own = scores[np.arange(len(answers)), answers][:, None]
    rank = (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2
    return int((rank < LIST_LENGTH).sum())


def table(rows: dict[str, Statistics]) -> str:
    """Return a Markdown table of statistics by dataset name."""
    lines = [
        "| dataset | " + " | ".join(title for title, _ in COLUMNS.values()) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for name, row in rows.items():
        values = asdict(row)
        cells = [format(values[field], style) for field, (_, style) in COLUMNS.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table for the named datasets; `NAME:PROTOCOL` applies a protocol."""
    parser = argparse.ArgumentParser(prog="python -m recattack_gym.datasets.statistics")
    parser.add_argument("names", nargs="*", default=["synthetic"], metavar="NAME[:PROTOCOL]")
    parser.add_argument("--data-dir", help="folder to look in first")
    options = parser.parse_args(arguments)
    rows = {}
    for entry in options.names:
        name, _, protocol = entry.partition(":")
        rows[entry] = describe(load(name, options.data_dir, protocol or None))
    sys.stdout.write(table(rows) + "\n")


if __name__ == "__main__":
    main()
