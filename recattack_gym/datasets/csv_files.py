"""One's own data: tables with named columns, and RecBole's atomic files."""

from pathlib import Path

import numpy as np

from recattack_gym.core.errors import ArgumentError, DataError
from recattack_gym.core.interactions import Interactions
from recattack_gym.datasets.dataset import Dataset, from_interactions
from recattack_gym.datasets.tables import Kind, Layout, TextFile, column_names, read_table

SEPARATORS = ("\t", ",", ";", "|")


def read_csv(
    path: str | Path,
    *,
    user: str | int = "user",
    item: str | int = "item",
    rating: str | int | None = None,
    timestamp: str | int | None = None,
    sep: str | None = None,
) -> Dataset:
    """Read a log from a CSV or TSV file, gzipped or not.

    User and item ids are labels: whole numbers or any text. They are numbered in order of first
    appearance, and `item_names` keeps the items' labels. Spaces around a label are dropped. Refused,
    since they are nearly always damage: empty labels, marks of missing values (`NaN`, `null`, `None`,
    ...), negative numbers (often a mark of "unknown") and decimal numbers such as `17.0` (a whole
    number that went through a column with gaps).

    Args:
        path: The file; UTF-8, with or without a byte order mark.
        user: Name of the column of users, or its position (from 0) in a file without header.
        item: Column of items, likewise.
        rating: Column of ratings, or `None` for clicks.
        timestamp: Column of times, any unit; each user's events are then sorted by it (equal times
            keep the order of the file). `None` keeps the order of the file.
        sep: The character between fields; `None` finds out from the first line (tab, comma,
            semicolon or bar).

    Raises:
        ArgumentError: If the columns are neither all names nor all positions, or `sep` is wrong.
        DataError: If the file is missing, empty, damaged, not UTF-8, lacks a column, or has a wrong
            value; says file, line and reason.
    """
    roles = {"user": user, "item": item, "rating": rating, "timestamp": timestamp}
    columns = {role: column for role, column in roles.items() if column is not None}
    header = not all(type(column) is int for column in columns.values())
    if header and not all(isinstance(column, str) for column in columns.values()):
        raise ArgumentError(
            f"user, item, ... must be all column names or all positions, got {columns}"
        )
    if len(set(columns.values())) < len(columns):
        raise ArgumentError(
            f"user, item, rating and timestamp must be different columns, got {columns}"
        )
    if sep is not None and (not isinstance(sep, str) or len(sep) != 1 or sep in '"\r\n'):
        raise ArgumentError(f"sep must be one character, or None to find out, got {sep!r}")
    names = {role: str(column) for role, column in columns.items()}
    file = TextFile.at(Path(path))
    layout = _find_layout(file, list(names.values()), sep, header=header)
    return _read_labelled(Path(path), file, names, layout)


def read_inter(path: str | Path) -> Dataset:
    """Read a RecBole atomic file: tabs, a header such as `user_id:token  item_id:token  timestamp:float`.

    Ids are labels as in `read_csv`; `rating:float` and `timestamp:float` are used where present.

    Raises:
        DataError: If the file is missing, damaged, or not such a file; says file, line and reason.
    """
    file = TextFile.at(Path(path))
    layout = Layout(sep="\t")
    found = column_names(file, layout)
    wanted = {
        "user": "user_id:token",
        "item": "item_id:token",
        "rating": "rating:float",
        "timestamp": "timestamp:float",
    }
    names = {
        role: name for role, name in wanted.items() if name in found or role in ("user", "item")
    }
    return _read_labelled(Path(path), file, names, layout)


def _read_labelled(path: Path, file: TextFile, names: dict[str, str], layout: Layout) -> Dataset:
    kinds: dict[str, Kind] = {
        name: "label" if role in ("user", "item") else "real" for role, name in names.items()
    }
    table = read_table(file, kinds, layout)
    users, items = table.labels[names["user"]], table.labels[names["item"]]
    reals = {
        f"{role}s": table.reals[names[role]] for role in ("rating", "timestamp") if role in names
    }
    user_ids, item_ids = users.codes, items.codes
    if "timestamps" in reals:
        order = np.lexsort((reals["timestamps"], user_ids))
        user_ids, item_ids = user_ids[order], item_ids[order]
        reals = {name: column[order] for name, column in reals.items()}
    log = Interactions(user_ids, item_ids, len(users.names), len(items.names), **reals)
    return from_interactions(
        log,
        name=path.name.split(".")[0],
        item_names=items.names,
        provenance=f"read from {path}",
        licence="not stated",
        description="A log of one's own.",
    )


def _find_layout(file: TextFile, wanted: list[str], sep: str | None, *, header: bool) -> Layout:
    """Return the layout under which the first line has the wanted columns."""
    if sep is not None:
        return Layout(sep=sep, header=header, quoted=True)
    layouts = [Layout(sep=sep, header=header, quoted=True) for sep in SEPARATORS]
    found = [column_names(file, layout) for layout in layouts]
    for layout, names in zip(layouts, found, strict=True):
        if set(wanted) <= set(names):
            return layout
    names = max(found, key=len)
    missing = next(name for name in wanted if name not in names)
    raise DataError(f"{file.label} has no column {missing!r}; its columns are {', '.join(names)}")
