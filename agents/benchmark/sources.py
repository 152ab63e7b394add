"""Where a benchmark gets its log."""

import logging
from pathlib import Path

from recattack_gym.core import DatasetNotFoundError
from recattack_gym.datasets import DATASETS, Dataset, FileSource, load

logger = logging.getLogger(__name__)

STAND_INS = {"steam": "synthetic-steam", "amazon-clothing": "synthetic-clothing"}
"""Generated logs of the same size, for machines without the real one."""


def dataset_or_synthetic(name: str, protocol: str | None = None) -> Dataset:
    """Load a dataset, or a generated log of its size where it is not on this machine.

    Raises:
        DatasetNotFoundError: If there is no stand-in either.
    """
    try:
        return load(name, protocol=protocol)
    except DatasetNotFoundError:
        if name not in STAND_INS:
            raise
        logger.warning("%s is not on this machine; measuring on %s instead", name, STAND_INS[name])
        return load(STAND_INS[name])


def is_here(name: str) -> bool:
    """Tell whether a dataset can be loaded without downloading anything."""
    if name not in DATASETS:
        return Path(name).is_file()
    source = DATASETS[name]
    return not isinstance(source, FileSource) or source.locate() is not None
