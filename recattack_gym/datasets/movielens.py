"""MovieLens: ratings of movies; every rating counts as a click."""

from pathlib import Path
from types import MappingProxyType

import numpy as np

from recattack_gym.datasets.download import Download
from recattack_gym.datasets.records import read_compact, to_log
from recattack_gym.datasets.source import Counts, FileFormat, FileSource, ParsedLog
from recattack_gym.datasets.tables import Layout, TextFile, read_table

LICENCE = (
    "GroupLens: research use, no endorsement implied, no redistribution without permission, no "
    "commercial use without permission."
)
CITATION = (
    "F. M. Harper, J. A. Konstan, 'The MovieLens Datasets: History and Context', ACM TiiS 5(4):19, "
    "2015, doi:10.1145/2827872."
)
NAMES_ENCODING = "latin-1"


def read_100k(path: Path, protocol: str | None) -> ParsedLog:  # noqa: ARG001
    """Read `u.data` (user, item, rating, time; tabs) and, where it is there, `u.item`."""
    events, names = _open_pair(path, "u.data", "u.item")
    return _read_ratings(events, Layout(sep="\t", header=False), names, "|")


def read_1m(path: Path, protocol: str | None) -> ParsedLog:  # noqa: ARG001
    """Read `ratings.dat` (user::item::rating::time) and, where it is there, `movies.dat`."""
    events, names = _open_pair(path, "ratings.dat", "movies.dat")
    return _read_ratings(events.replaced(b"::", b","), Layout(header=False), names, "::")


def read_100k_copy(path: Path, protocol: str | None) -> ParsedLog:  # noqa: ARG001
    """Read a compact copy: `interactions.csv.gz` (user, item, rating, timestamp)."""
    table = read_compact(path, rating="real", timestamp="real")
    log = to_log(
        table.ids["user"],
        table.ids["item"],
        ratings=table.reals["rating"],
        timestamps=table.reals["timestamp"],
    )
    return ParsedLog(log)


def read_1m_copy(path: Path, protocol: str | None) -> ParsedLog:  # noqa: ARG001
    """Read a compact copy, whose rows are in order of time but for the order of equal times.

    Where `ts_exact` says that the time is the publisher's, equal times are put into the order of
    `ratings.dat` (`row`), so that the copy and the original hold out the same items; where a time
    is interpolated, the order of the copy is all that is known.
    """
    table = read_compact(path, rating="real", timestamp="real", ts_exact="id", row="id")
    users, times, exact = table.ids["user"], table.reals["timestamp"], table.ids["ts_exact"] == 1
    same_moment = (users[1:] == users[:-1]) & (times[1:] == times[:-1]) & exact[1:] & exact[:-1]
    moment = np.concatenate([[0], np.cumsum(~same_moment)])
    order = np.lexsort((table.ids["row"], moment))
    log = to_log(
        users[order],
        table.ids["item"][order],
        ratings=table.reals["rating"][order],
        timestamps=times[order],
    )
    return ParsedLog(log)


def _read_ratings(events: TextFile, layout: Layout, names: TextFile | None, sep: str) -> ParsedLog:
    table = read_table(events, {"0": "id", "1": "id", "2": "real", "3": "real"}, layout)
    items = table.ids["1"]
    log = to_log(table.ids["0"], items, ratings=table.reals["2"], timestamps=table.reals["3"])
    return ParsedLog(log, _titles(names, sep, np.unique(items).tolist()))


def _open_pair(path: Path, events: str, names: str) -> tuple[TextFile, TextFile | None]:
    """Return the file of events and the file of names, from a zip archive or from a folder."""
    if path.suffix == ".zip":
        return TextFile.in_zip(path, events), TextFile.in_zip(path, names)
    beside = path.with_name(names)
    return TextFile.at(path), TextFile.at(beside) if beside.is_file() else None


def _titles(file: TextFile | None, sep: str, old_items: list[int]) -> tuple[str, ...] | None:
    """Return one title per item; an item that the file leaves out is called by its number."""
    if file is None:
        return None
    rows = [line.split(sep) for line in file.lines(NAMES_ENCODING)]
    titles = {row[0]: row[1] for row in rows if len(row) > 1}
    return tuple(titles.get(str(item), f"movie {item}") for item in old_items)


ML_100K = FileSource(
    name="ml-100k",
    description="100,000 ratings of movies, in order of time.",
    licence=LICENCE,
    citation=CITATION,
    counts=MappingProxyType({None: Counts(943, 1_682, 100_000)}),
    folder="ml-100k",
    homepage="https://grouplens.org/datasets/movielens/100k/",
    formats=(
        FileFormat(files=("ml-100k.zip",), read=read_100k),
        FileFormat(files=("u.data",), read=read_100k),
        FileFormat(files=("interactions.csv.gz",), read=read_100k_copy),
    ),
    downloads=(
        Download(
            url="https://files.grouplens.org/datasets/movielens/ml-100k.zip",
            file="ml-100k.zip",
            known_hash="sha256:50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        ),
    ),
)

ML_1M = FileSource(
    name="ml-1m",
    description="1,000,209 ratings of movies, in order of time.",
    licence=LICENCE,
    citation=CITATION,
    counts=MappingProxyType(
        {None: Counts(6_040, 3_706, 1_000_209), "poisonrec": Counts(5_999, 3_706, 949_316)}
    ),
    folder="ml-1m",
    homepage="https://grouplens.org/datasets/movielens/1m/",
    formats=(
        FileFormat(files=("ml-1m.zip",), read=read_1m),
        FileFormat(files=("ratings.dat",), read=read_1m),
        FileFormat(files=("interactions.csv.gz",), read=read_1m_copy),
    ),
    downloads=(
        Download(
            url="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
            file="ml-1m.zip",
            known_hash="sha256:a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        ),
    ),
)
