"""Steam: purchases and plays of games, in the order of the file (the data has no time)."""

from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.errors import DataError
from recattack_gym.datasets.records import read_compact, to_log
from recattack_gym.datasets.source import Counts, FileFormat, FileSource, ParsedLog
from recattack_gym.datasets.tables import Layout, TextFile, read_table

CSV_NAME = "steam-200k.csv"


def read_publisher(path: Path, protocol: str | None) -> ParsedLog:
    """Read `steam-200k.csv` (user, title, behaviour, hours, 0; no header), or a zip that holds it."""
    file = TextFile.in_zip(path, CSV_NAME) if path.suffix == ".zip" else TextFile.at(path)
    layout = Layout(header=False, quoted=True)
    table = read_table(file, {"0": "id", "1": "text"}, layout)
    games = table.labels["1"]
    return _assemble(table.ids["0"], games.codes, games.names, protocol)


def read_copy(path: Path, protocol: str | None) -> ParsedLog:
    """Read a compact copy: `interactions.csv.gz` and `items.csv.gz` (item, title)."""
    events = read_compact(path)
    titles_file = TextFile.at(path.with_name("items.csv.gz"))
    titles = read_table(titles_file, {"item": "id", "title": "text"}, Layout(quoted=True))
    n_titles = len(titles.ids["item"])
    if not np.array_equal(titles.ids["item"], np.arange(n_titles)):
        raise DataError(f"{titles_file.label}: items must be numbered 0, 1, 2, ... in this order")
    items = events.ids["item"]
    if items.max() >= n_titles:
        raise DataError(f"{titles_file.label} has no title for item {items.max()} of {path}")
    labels = titles.labels["title"]
    names = tuple(labels.names[code] for code in labels.codes)
    return _assemble(events.ids["user"], items, names, protocol)


def _assemble(
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    titles: tuple[str, ...],
    protocol: str | None,
) -> ParsedLog:
    if protocol != "poisonrec":
        return ParsedLog(to_log(users, items), titles)
    naive_titles = [_cut_at_comma(title) for title in titles]
    distinct = tuple(dict.fromkeys(naive_titles))
    number = {title: item for item, title in enumerate(distinct)}
    naive_item = np.array([number[title] for title in naive_titles], dtype=np.int64)
    return ParsedLog(
        to_log(users, naive_item[items]), tuple(title.strip('"') for title in distinct)
    )


def _cut_at_comma(title: str) -> str:
    """Return what `line.split(",")[1]` makes of a quoted title: the quotes belong to the text."""
    return f'"{title}"'.split(",")[0]


STEAM = FileSource(
    name="steam",
    description=(
        "200,000 purchases and plays of games, in file order; a game that was bought and played occurs "
        "twice. protocol='poisonrec': PoisonRec's Table II, whose 5,134 items come from cutting titles "
        "at their first comma."
    ),
    licence="Kaggle lists it under ODbL 1.0 (please confirm there); from public Steam data, by Tamber.",
    citation="Tamber, 'Steam Video Games', Kaggle, 2017, tamber/steam-video-games.",
    counts=MappingProxyType(
        {None: Counts(12_393, 5_155, 200_000), "poisonrec": Counts(6_506, 5_134, 187_227)}
    ),
    folder="steam-200k",
    homepage="https://www.kaggle.com/datasets/tamber/steam-video-games",
    formats=(
        FileFormat(files=(CSV_NAME,), read=read_publisher),
        FileFormat(files=("steam-video-games.zip",), read=read_publisher),
        FileFormat(files=("interactions.csv.gz", "items.csv.gz"), read=read_copy),
    ),
)
