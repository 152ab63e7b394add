"""Amazon 2014 reviews, 5-core: every review counts as a click."""

import json
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np

from recattack_gym.core.errors import DataError
from recattack_gym.datasets.download import Download
from recattack_gym.datasets.records import read_compact, to_log
from recattack_gym.datasets.source import Counts, FileFormat, FileSource, ParsedLog
from recattack_gym.datasets.tables import TextFile

LICENCE = (
    "McAuley, UCSD: no explicit licence, customarily used for research; the reviews belong to their "
    "authors and Amazon. Do not redistribute."
)
CITATION = (
    "R. He, J. McAuley, 'Ups and Downs: Modeling the Visual Evolution of Fashion Trends with One-Class "
    "Collaborative Filtering', WWW 2016; J. McAuley et al., 'Image-based Recommendations on Styles and "
    "Substitutes', SIGIR 2015."
)
ADDRESS = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"


def read_reviews(path: Path, protocol: str | None) -> ParsedLog:  # noqa: ARG001
    """Read `reviews_*_5.json.gz`: one JSON object per line, with reviewerID, asin, unixReviewTime.

    Users and items are numbered in order of first appearance. Times are days, so ties are common:
    they keep the order of the file.
    """
    file = TextFile.at(path)
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    events = []
    for number, line in enumerate(file.lines("utf-8"), start=1):
        if not line.strip():
            continue
        try:
            review = json.loads(line)
            user, item, time = review["reviewerID"], review["asin"], review["unixReviewTime"]
            rating = review["overall"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{file.label}, line {number}: not a review with reviewerID, asin, overall and "
                f"unixReviewTime ({type(error).__name__}: {error})"
            ) from error
        if not (isinstance(user, str) and isinstance(item, str) and user and item):
            raise DataError(f"{file.label}, line {number}: reviewerID and asin must be text")
        if not all(type(value) in (int, float) and np.isfinite(value) for value in (time, rating)):
            raise DataError(
                f"{file.label}, line {number}: unixReviewTime and overall must be numbers"
            )
        events.append(
            (users.setdefault(user, len(users)), items.setdefault(item, len(items)), time, rating)
        )
    if not events:
        raise DataError(f"{file.label} has no events")
    columns = np.array(events, dtype=np.float64)
    log = to_log(
        columns[:, 0].astype(np.int64),
        columns[:, 1].astype(np.int64),
        ratings=columns[:, 3],
        timestamps=columns[:, 2],
    )
    return ParsedLog(log, tuple(items))


def read_copy(path: Path, protocol: str | None, *, has_time: bool) -> ParsedLog:  # noqa: ARG001
    """Read a compact copy: `interactions.csv.gz` (user, item and perhaps timestamp), in order of time."""
    table = read_compact(path, timestamp="real") if has_time else read_compact(path)
    times = table.reals["timestamp"] if has_time else None
    return ParsedLog(to_log(table.ids["user"], table.ids["item"], timestamps=times))


def _source(name: str, category: str, counts: Counts, folder: str, *, has_time: bool) -> FileSource:
    file = f"reviews_{category}_5.json.gz"
    return FileSource(
        name=name,
        description=f"Amazon reviews 2014, 5-core, {category.replace('_', ' ')}, in order of time.",
        licence=LICENCE,
        citation=CITATION,
        counts=MappingProxyType({None: counts, "poisonrec": counts}),
        folder=folder,
        homepage="https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
        formats=(
            FileFormat(files=(file,), read=read_reviews),
            FileFormat(files=("interactions.csv.gz",), read=partial(read_copy, has_time=has_time)),
        ),
        downloads=(Download(url=ADDRESS + file, file=file),),
    )


AMAZON_PHONE = _source(
    "amazon-phone",
    "Cell_Phones_and_Accessories",
    Counts(27_879, 10_429, 194_439),
    "amazon-cell-phones-5core",
    has_time=True,
)
AMAZON_CLOTHING = _source(
    "amazon-clothing",
    "Clothing_Shoes_and_Jewelry",
    Counts(39_387, 23_033, 278_677),
    "amazon-clothing-5core",
    has_time=False,
)
