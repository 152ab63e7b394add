"""Logs to attack recommenders on: generated ones, published ones, and one's own.

`load(name)` returns a `Dataset`; `DATASETS` lists the names. Published data is never part of this
package: it is found on this machine or downloaded from its publisher.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from recattack_gym.core.errors import ArgumentError, UnknownNameError
from recattack_gym.datasets.amazon import AMAZON_CLOTHING, AMAZON_PHONE
from recattack_gym.datasets.csv_files import read_csv, read_inter
from recattack_gym.datasets.dataset import Dataset, from_interactions
from recattack_gym.datasets.filmtrust import FILMTRUST
from recattack_gym.datasets.gowalla import GOWALLA
from recattack_gym.datasets.movielens import ML_1M, ML_100K
from recattack_gym.datasets.presets import PRESETS
from recattack_gym.datasets.rated import with_generated_ratings
from recattack_gym.datasets.source import Counts, FileSource, Source, SyntheticSource
from recattack_gym.datasets.split import Split, leave_one_out
from recattack_gym.datasets.steam import STEAM
from recattack_gym.datasets.synthetic import SyntheticConfig, generate

DATASETS: Mapping[str, Source] = MappingProxyType(
    {
        source.name: source
        for source in (
            *PRESETS,
            STEAM,
            ML_100K,
            ML_1M,
            AMAZON_PHONE,
            AMAZON_CLOTHING,
            GOWALLA,
            FILMTRUST,
        )
    }
)
"""Every dataset that has a name."""


def load(name: str, data_dir: str | Path | None = None, protocol: str | None = None) -> Dataset:
    """Return a dataset.

    Its files are looked for in `data_dir`, then in the folder that the environment variable
    `RECATTACK_DATA` names, then in the user cache; what none of them has is downloaded where the
    publisher offers a plain address. In each place the files may lie directly or in a folder
    called like the dataset.

    Args:
        name: A key of `DATASETS`, or the path of a `.csv`, `.tsv` or `.inter` file (also `.gz`); a
            CSV or TSV file then needs columns `user` and `item`, see `read_csv` for others.
        data_dir: A folder to look in first.
        protocol: `"poisonrec"` keeps exactly what PoisonRec's Table II counts (steam, ml-1m,
            amazon-phone, amazon-clothing); `None` keeps every event.

    Raises:
        UnknownNameError: If there is no such dataset.
        ArgumentError: If `data_dir` is no folder, or the dataset does not have this protocol.
        DatasetNotFoundError: If the files are nowhere; says where to get them and where to put them.
        DataError: If a file is damaged, altered or another edition.
    """
    if name in DATASETS:
        return DATASETS[name].load(data_dir, protocol)
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in (".csv", ".tsv", ".inter"):
        raise UnknownNameError("dataset", name, DATASETS)
    if protocol is not None:
        raise ArgumentError(f"protocol must be None for a file, got {protocol!r}")
    return read_inter(name) if suffix == ".inter" else read_csv(name)


__all__ = [
    "DATASETS",
    "Counts",
    "Dataset",
    "FileSource",
    "Source",
    "Split",
    "SyntheticConfig",
    "SyntheticSource",
    "from_interactions",
    "generate",
    "leave_one_out",
    "load",
    "read_csv",
    "read_inter",
    "with_generated_ratings",
]
