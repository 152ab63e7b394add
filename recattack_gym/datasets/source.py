"""Where a named dataset comes from, which files hold it, and how it is found on this machine."""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from recattack_gym.core.errors import ArgumentError, DataError, DatasetNotFoundError
from recattack_gym.core.interactions import Interactions
from recattack_gym.datasets.dataset import Dataset
from recattack_gym.datasets.download import Download
from recattack_gym.datasets.synthetic import SyntheticConfig, generate

_LOGGER = logging.getLogger(__name__)
ENVIRONMENT_VARIABLE = "RECATTACK_DATA"
POISONREC_MIN_EVENTS, POISONREC_BELOW_EVENTS = 3, 1000


@dataclass(frozen=True, slots=True)
class Counts:
    """The size of a log, as published."""

    n_users: int
    n_items: int
    n_events: int

    @classmethod
    def of(cls, log: Interactions) -> "Counts":
        """Return the size of `log`."""
        return cls(log.n_users, log.n_items, len(log))

    def __str__(self) -> str:
        """Return the three numbers in words."""
        return f"{self.n_users:,} users, {self.n_items:,} items, {self.n_events:,} events"


@dataclass(frozen=True, slots=True)
class ParsedLog:
    """What a reader makes of a file."""

    log: Interactions
    item_names: tuple[str, ...] | None = None


Reader = Callable[[Path, str | None], ParsedLog]
"""From the first file of a format, and the protocol, to the log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFormat:
    """One way in which a dataset lies on disk."""

    files: tuple[str, ...]
    """File names that must all be in one folder; the reader gets the path of the first."""
    read: Reader
    """Parses them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source(ABC):
    """A dataset that has a name."""

    name: str
    """What `load` calls it."""
    description: str
    """What the events are."""
    licence: str
    """The publisher's terms in short."""
    citation: str
    """What the publisher asks a publication to cite."""
    counts: Mapping[str | None, Counts]
    """Protocol -> size of the log; `None` is the whole file."""

    @abstractmethod
    def load(self, data_dir: str | Path | None, protocol: str | None) -> Dataset:
        """Return the dataset; see `recattack_gym.datasets.load`."""

    @abstractmethod
    def locate(self, data_dir: str | Path | None = None) -> Path | None:
        """Return the file that `load` would read without downloading, or `None`."""

    @abstractmethod
    def fetch(self) -> Path | None:
        """Download the dataset into the user cache unless it is there; return its first file.

        Raises:
            DatasetNotFoundError: If the publisher offers no plain address, or it cannot be reached.
        """

    def _check_protocol(self, protocol: str | None) -> None:
        if protocol not in self.counts:
            known = ", ".join(repr(name) for name in self.counts)
            raise ArgumentError(
                f"protocol must be one of {known} for dataset {self.name!r}, got {protocol!r}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticSource(Source):
    """A dataset that is generated with a fixed seed."""

    config: SyntheticConfig
    """Size and shape."""
    seed: int = 0
    """Seed of the generator."""

    def load(self, data_dir: str | Path | None, protocol: str | None) -> Dataset:  # noqa: ARG002
        """Generate the dataset; needs no file."""
        self._check_protocol(protocol)
        dataset = generate(self.config, np.random.default_rng(self.seed), name=self.name)
        return replace(dataset, provenance=f"{dataset.provenance}, seed {self.seed}")

    def locate(self, data_dir: str | Path | None = None) -> Path | None:  # noqa: ARG002
        """Return `None`: there is no file."""
        return None

    def fetch(self) -> Path | None:
        """Return `None`: there is nothing to download."""
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class FileSource(Source):
    """A dataset that somebody published."""

    folder: str
    """Another name that the dataset's folder may have."""
    homepage: str
    """Where a person finds the files."""
    formats: tuple[FileFormat, ...]
    """Accepted files; the first one found is read."""
    downloads: tuple[Download, ...] = ()
    """The files of the first format, where the publisher offers them at plain addresses."""

    def load(self, data_dir: str | Path | None, protocol: str | None) -> Dataset:
        """Find, else download, and parse the dataset; then check its size."""
        self._check_protocol(protocol)
        found = self._find(data_dir)
        path, file_format = found or (self.fetch(), self.formats[0])
        try:
            parsed = self._read(path, file_format, protocol)
        except DataError:
            if found is None:
                for download in self.downloads:
                    path.with_name(download.file).unlink(missing_ok=True)
            raise
        return Dataset(
            name=self.name,
            log=parsed.log,
            item_names=parsed.item_names,
            protocol=protocol,
            provenance=f"read from {path}; published at {self.homepage}",
            licence=self.licence,
            citation=self.citation,
            description=self.description,
        )

    def locate(self, data_dir: str | Path | None = None) -> Path | None:
        """Return the file that `load` would read without downloading, or `None`."""
        found = self._find(data_dir)
        return found[0] if found else None

    def fetch(self) -> Path:
        """Download the dataset into the user cache unless it is there; return its first file."""
        if not self.downloads:
            raise self._not_found("The publisher offers no plain address to download it from.")
        folder = cache_folder() / self.name
        if not all(download.is_at(folder / download.file) for download in self.downloads):
            _LOGGER.warning("Downloading %s. Terms of use: %s", self.name, self.licence)
        try:
            for download in self.downloads:
                download.fetch(folder)
        except DataError as error:
            raise self._not_found(f"{error}.") from error
        return folder / self.formats[0].files[0]

    def _read(self, path: Path, file_format: FileFormat, protocol: str | None) -> ParsedLog:
        parsed = file_format.read(path, protocol)
        parsed = poisonrec_protocol(parsed) if protocol == "poisonrec" else parsed
        counts = Counts.of(parsed.log)
        if counts != self.counts[protocol]:
            raise DataError(
                f"{path} has {counts}; {self.name} must have {self.counts[protocol]}: "
                "the file is cut off, altered or another edition; get it again"
            )
        return parsed

    def _find(self, data_dir: str | Path | None) -> tuple[Path, FileFormat] | None:
        for base in search_path(data_dir):
            for file_format in self.formats:
                for folder in (base / self.name, base / self.folder, base):
                    if all((folder / file).is_file() for file in file_format.files):
                        if base == cache_folder() and not self._is_intact(folder, file_format):
                            continue
                        return folder / file_format.files[0], file_format
        return None

    def _is_intact(self, folder: Path, file_format: FileFormat) -> bool:
        """Tell whether cached files still are what was downloaded; files of other formats pass."""
        return file_format is not self.formats[0] or all(
            download.is_at(folder / download.file) for download in self.downloads
        )

    def _not_found(self, reason: str) -> DatasetNotFoundError:
        wanted = " or ".join(" and ".join(entry.files) for entry in self.formats)
        value = os.environ.get(ENVIRONMENT_VARIABLE)
        set_to = f" (now {value!r})" if value else ""
        return DatasetNotFoundError(
            f"dataset {self.name!r} is not on this machine. {reason} Get {wanted} from {self.homepage} "
            f"and put it into {cache_folder() / self.name}, or into a folder that the argument data_dir "
            f"or the environment variable {ENVIRONMENT_VARIABLE}{set_to} names."
        )


def search_path(data_dir: str | Path | None) -> list[Path]:
    """Return the folders to look in: the argument, the environment variable, the user cache.

    Raises:
        ArgumentError: If `data_dir` is given and is no folder.
    """
    folders = []
    if data_dir is not None:
        if not Path(data_dir).is_dir():
            raise ArgumentError(f"data_dir must be an existing folder, got {str(data_dir)!r}")
        folders.append(Path(data_dir))
    if os.environ.get(ENVIRONMENT_VARIABLE):
        folders.append(Path(os.environ[ENVIRONMENT_VARIABLE]))
    return [*folders, cache_folder()]


def cache_folder() -> Path:
    """Return the folder of downloaded datasets in the user cache."""
    import platformdirs

    return platformdirs.user_cache_path("recattack-gym") / "datasets"


def poisonrec_protocol(parsed: ParsedLog) -> ParsedLog:
    """Keep what PoisonRec's Table II counts.

    Song et al., "PoisonRec: An Adaptive Data Poisoning Framework for Attacking Black-box
    Recommender Systems", ICDE 2020, Table II: users with 3 <= events < 1000 stay and get new ids
    in the old order; the catalogue stays whole, so that some items have no event left. The paper
    does not state the rule; it is the one that gives all twelve numbers of the table.
    """
    log = parsed.log
    n_events = np.diff(log.indptr)
    kept = (n_events >= POISONREC_MIN_EVENTS) & (n_events < POISONREC_BELOW_EVENTS)
    new_ids = np.cumsum(kept) - 1
    selected = log.select(kept[log.user_ids])
    log = replace(selected, user_ids=new_ids[selected.user_ids], n_users=int(kept.sum()))
    return ParsedLog(log, parsed.item_names)
