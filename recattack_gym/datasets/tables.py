"""Columns out of a text table, strictly: a right array or a `DataError` with file, line and reason.

pandas' C parser does the reading; it is fast and it is lenient (`"1.0"` and `"True"` pass as
integers, short rows are padded). So columns are read without telling it the wanted type, the type
that it found is judged afterwards, and only if something is wrong does a slow second pass with
the `csv` module look for the offending line.
"""

import csv
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.errors import DataError, DatasetNotFoundError

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["id", "label", "text", "real"]
"""`"id"`: whole numbers >= 0; `"label"`: ids that may be text; `"text"`: text taken as it is;
`"real"`: finite numbers."""
MISSING_MARKS = frozenset(
    (
        "#N/A",
        "#NA",
        "-NaN",
        "-nan",
        "<NA>",
        "N/A",
        "NA",
        "NULL",
        "NaN",
        "None",
        "n/a",
        "nan",
        "null",
    )
)
"""What pandas and databases write for a value that is not there."""
BLOCK_BYTES = 2**20
WHOLE = re.compile(r"-?\d+")
FRACTION = re.compile(r"[+-]?\d+\.\d*")
NEGATIVE = re.compile(r"-\d+")


@dataclass(frozen=True, slots=True)
class TextFile:
    """A text file on disk or inside an archive."""

    label: str
    """What messages call it."""
    open: Callable[[], IO[bytes]]
    """Opens the uncompressed bytes."""

    @classmethod
    def at(cls, path: Path) -> "TextFile":
        """Return the file at `path`; a name that ends in `.gz` is decompressed."""
        if not path.is_file():
            raise DatasetNotFoundError(f"path must be an existing file, got {str(path)!r}")
        if path.suffix == ".gz":
            return cls(str(path), lambda: io.BufferedReader(gzip.open(path)))
        return cls(str(path), lambda: path.open("rb"))

    @classmethod
    def in_zip(cls, archive: Path, member: str) -> "TextFile":
        """Return the member of a zip archive whose path ends with `member`."""
        label = f"{archive}/{member}"
        with _damage_reported(str(archive)), zipfile.ZipFile(archive) as opened:
            names = [name for name in opened.namelist() if f"/{name}".endswith(f"/{member}")]
        if not names:
            raise DataError(f"{archive} does not contain {member}; get the archive again")
        return cls(label, lambda: io.BytesIO(_read_member(archive, names[0])))

    def replaced(self, old: bytes, new: bytes) -> "TextFile":
        """Return the file with every `old` turned into `new`, which must not occur in it yet."""

        def opened() -> IO[bytes]:
            with _damage_reported(self.label), self.open() as stream:
                content = stream.read()
            if new in content:
                line = content[: content.index(new)].count(b"\n") + 1
                raise DataError(
                    f"{self.label}, line {line}: {new.decode()!r} has no place in this file"
                )
            return io.BytesIO(content.replace(old, new))

        return TextFile(self.label, opened)

    def lines(self, encoding: str) -> list[str]:
        """Return all lines without their ends; for small files."""
        with _damage_reported(self.label), self.open() as stream:
            content = stream.read()
        try:
            return content.decode(encoding).splitlines()
        except UnicodeDecodeError as error:
            raise self.undecodable(encoding) from error

    def undecodable(self, encoding: str) -> DataError:
        """Return the error that names the first line which is not text in `encoding`."""
        with _damage_reported(self.label), self.open() as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    line.decode(encoding)
                except UnicodeDecodeError as error:
                    return DataError(
                        f"{self.label}, line {number}: not {encoding} text ({error.reason}); "
                        "save the file as UTF-8"
                    )
        return DataError(f"{self.label} is not {encoding} text; save the file as UTF-8")


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How a table is written."""

    sep: str = ","
    """One character between fields."""
    header: bool = True
    """Whether the first line names the columns; without it columns are called `"0"`, `"1"`, ..."""
    quoted: bool = False
    """Whether a field may be written in double quotes."""
    encoding: str = "utf-8-sig"
    """UTF-8 with or without a byte order mark."""


@dataclass(frozen=True, slots=True)
class Labels:
    """A column of ids that may be text, numbered in order of first appearance."""

    codes: NDArray[np.int64]
    """Shape `(n_rows,)`."""
    names: tuple[str, ...]
    """The label of each code."""


@dataclass(frozen=True, slots=True)
class Table:
    """The wanted columns of a table, by kind and name; all of shape `(n_rows,)`."""

    ids: dict[str, NDArray[np.int64]]
    """Columns of kind `"id"`."""
    reals: dict[str, NDArray[np.float64]]
    """Columns of kind `"real"`."""
    labels: dict[str, Labels]
    """Columns of kind `"label"` and `"text"`."""


def read_table(file: TextFile, kinds: Mapping[str, Kind], layout: Layout) -> Table:
    """Read columns of a table.

    Args:
        file: Where the table is.
        kinds: The wanted columns and what they hold; other columns are ignored.
        layout: How the table is written.

    Raises:
        DataError: If the file is empty, damaged or not text, a column is missing, a row has too few
            or too many fields, or a value is not of its kind.
    """
    _refuse_zero_bytes(file)
    names = column_names(file, layout)
    missing = [name for name in kinds if name not in names]
    if missing:
        raise DataError(
            f"{file.label} has no column {missing[0]!r}; its columns are {', '.join(names)}"
        )
    as_text = _text_columns(file, names, kinds, layout)
    frame = _parse(file, names, layout, as_text)
    if frame is None:
        raise _first_fault(file, names, kinds, layout)
    if len(frame) == 0:
        raise DataError(f"{file.label} has no events")
    late_text = [
        name
        for name, kind in kinds.items()
        if kind == "label" and name not in as_text and frame[name].dtype.kind != "i"
    ]
    if late_text:
        frame = _parse(file, names, layout, as_text + late_text)
    table = Table({}, {}, {})
    for name, kind in kinds.items():
        if frame is None or not _take_column(table, name, frame.pop(name), kind):
            raise _first_fault(file, names, kinds, layout)
    if frame is not None and _may_be_misshapen(frame, table, names[-1], layout):
        fault = _find_fault(file, names, {}, layout)
        if fault is not None:
            raise fault
    return table


def column_names(file: TextFile, layout: Layout) -> list[str]:
    """Return the names of a table's columns, or their positions where it has no header.

    Raises:
        DataError: If the file is empty or damaged, or two columns have one name.
    """
    with _damage_reported(file.label):
        first = next(_rows(file, layout), None)
    if first is None:
        raise DataError(f"{file.label} is empty")
    if any("\0" in field for field in first[1]):
        raise _zero_byte(file, first[0])
    if not layout.header:
        return [str(position) for position in range(len(first[1]))]
    names = [name.strip() for name in first[1]]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{file.label}, line {first[0]}: two columns are called {twice[0]!r}")
    return names


def _refuse_zero_bytes(file: TextFile) -> None:
    """Raise `DataError` at a zero byte: pandas 2 would end the field there."""
    n_lines = 1
    with _damage_reported(file.label), file.open() as stream:
        while block := stream.read(BLOCK_BYTES):
            if b"\0" in block:
                line = n_lines + block[: block.index(b"\0")].count(b"\n")
                raise _zero_byte(file, line)
            n_lines += block.count(b"\n")


def _zero_byte(file: TextFile, line: int) -> DataError:
    return DataError(f"{file.label}, line {line}: has a zero byte; save the file as UTF-8 text")


def _text_columns(
    file: TextFile, names: list[str], kinds: Mapping[str, Kind], layout: Layout
) -> list[str]:
    """Return the columns to read as text: those that must be, and labels that do not start as numbers."""
    with _damage_reported(file.label):
        rows = _rows(file, layout)
        first = next(islice(rows, int(layout.header), None), (0, []))[1]
    sample = dict(zip(names, first, strict=False))
    return [
        name
        for name, kind in kinds.items()
        if kind == "text"
        or (kind == "label" and not WHOLE.fullmatch(sample.get(name, "0").strip()))
    ]


def _parse(
    file: TextFile, names: list[str], layout: Layout, as_text: Sequence[str]
) -> "pd.DataFrame | None":
    """Parse the whole table, or return `None` where pandas refuses it."""
    import warnings

    import pandas as pd

    with _damage_reported(file.label), file.open() as stream, warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        warnings.simplefilter("ignore", pd.errors.DtypeWarning)
        try:
            return pd.read_csv(
                stream,
                sep=layout.sep,
                header=0 if layout.header else None,
                names=names,
                index_col=False,
                na_filter=False,
                dtype=dict.fromkeys(as_text, "category"),
                quoting=csv.QUOTE_MINIMAL if layout.quoted else csv.QUOTE_NONE,
                encoding=layout.encoding,
                engine="c",
            )
        except UnicodeDecodeError as error:
            raise file.undecodable(layout.encoding) from error
        except (pd.errors.ParserError, pd.errors.ParserWarning, OverflowError):
            return None


def _may_be_misshapen(frame: "pd.DataFrame", table: Table, last: str, layout: Layout) -> bool:
    """Tell whether a slow look is due: a row may lack fields, or repeat the header.

    pandas pads short rows; that shows in the wanted columns unless they all lie further left.
    """
    short_row = last in frame and frame[last].dtype.kind == "O" and bool((frame[last] == "").any())
    header_is_label = all(name in labels.names for name, labels in table.labels.items())
    return short_row or (layout.header and not table.ids and not table.reals and header_is_label)


def _take_column(table: Table, name: str, column: "pd.Series", kind: Kind) -> bool:
    """Put the column into the table; return `False` if some value is not of its kind."""
    if kind == "real":
        if column.dtype.kind not in "iuf":
            return False
        table.reals[name] = column.to_numpy(dtype=np.float64)
        return bool(np.isfinite(table.reals[name]).all())
    if column.dtype.kind == "i":
        ids = column.to_numpy(dtype=np.int64)
        if kind == "id":
            table.ids[name] = ids
        else:
            table.labels[name] = _number(ids)
        return bool(ids.min() >= 0)
    labels = None if kind == "id" else _number_text(column, kind)
    if labels is not None:
        table.labels[name] = labels
    return labels is not None


def _number(ids: NDArray[np.int64]) -> Labels:
    import pandas as pd

    codes, distinct = pd.factorize(ids)
    return Labels(codes.astype(np.int64), tuple(str(label) for label in distinct))


def _number_text(column: "pd.Series", kind: Kind) -> Labels | None:
    """Number the labels of a categorical column; `None` if one of them is not of the kind."""
    import pandas as pd

    labels = [str(label) for label in column.cat.categories]
    if any(_value_fault(label, kind) for label in labels):
        return None
    if kind == "label":
        labels = [label.strip() for label in labels]
    merged, distinct = pd.factorize(np.array(labels, dtype=object))
    codes, seen = pd.factorize(merged[column.cat.codes.to_numpy()])
    return Labels(codes.astype(np.int64), tuple(str(distinct[code]) for code in seen))


def _label_fault(label: str) -> str | None:
    """Say why a label cannot be an id, or return `None`."""
    if not label or label in MISSING_MARKS:
        return "is missing"
    if NEGATIVE.fullmatch(label):
        return "must not be negative"
    if FRACTION.fullmatch(label):
        return "must be a whole number or text, not a decimal number"
    if "\n" in label or "\r" in label:
        return "must not contain a line break (is a quote left open?)"
    return None


def _value_fault(text: str, kind: Kind) -> str | None:
    """Say why a field is not of its kind, or return `None`."""
    if kind == "text":
        return None if text else "is missing"
    text = text.strip()
    if kind == "label":
        return _label_fault(text)
    try:
        number = float(text) if kind == "real" else int(text)
    except ValueError:
        return "must be a number" if kind == "real" else "must be a whole number"
    if kind == "real":
        return None if np.isfinite(number) else "must be a finite number"
    if number < 0:
        return "must not be negative"
    return None if number < 2**63 else "must be smaller than 2**63"


def _rows(file: TextFile, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and fields of every row that is not blank."""
    with file.open() as stream, io.TextIOWrapper(stream, layout.encoding, newline="") as text:
        reader = csv.reader(
            text,
            delimiter=layout.sep,
            quoting=csv.QUOTE_MINIMAL if layout.quoted else csv.QUOTE_NONE,
        )
        try:
            for row in reader:
                if row and (len(row) > 1 or row[0].strip()):
                    yield reader.line_num, row
        except UnicodeDecodeError as error:
            raise file.undecodable(layout.encoding) from error
        except csv.Error as error:
            raise DataError(f"{file.label}, line {reader.line_num}: {error}") from error


def _find_fault(
    file: TextFile, names: list[str], kinds: Mapping[str, Kind], layout: Layout
) -> DataError | None:
    """Return the error about the first row that is not as it should be, if there is one."""
    wanted = [(names.index(name), name, kind) for name, kind in kinds.items()]
    with _damage_reported(file.label):
        rows = _rows(file, layout)
        if layout.header:
            next(rows)
        for line, fields in rows:
            where = f"{file.label}, line {line}"
            if len(fields) != len(names):
                return DataError(f"{where}: has {len(fields)} fields instead of {len(names)}")
            if layout.header and [field.strip() for field in fields] == names:
                return DataError(f"{where}: repeats the header; remove the line")
            for position, name, kind in wanted:
                reason = _value_fault(fields[position], kind)
                if reason:
                    column = name if layout.header else f"column {name}"
                    return DataError(f"{where}: {column} {reason}, got {fields[position]!r}")
    return None


def _first_fault(
    file: TextFile, names: list[str], kinds: Mapping[str, Kind], layout: Layout
) -> DataError:
    fault = _find_fault(file, names, kinds, layout)
    if fault is not None:
        return fault
    return DataError(f"{file.label} cannot be read as a table of {', '.join(names)} with {layout}")


@contextmanager
def _damage_reported(label: str) -> Iterator[None]:
    """Turn what a damaged archive or an unreadable file raises into `DataError`."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise DataError(f"{label} is cut off or damaged ({error}); get the file again") from error
    except OSError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{label} cannot be read: {error}") from error


def _read_member(archive: Path, member: str) -> bytes:
    with _damage_reported(str(archive)), zipfile.ZipFile(archive) as opened:
        return opened.read(member)
