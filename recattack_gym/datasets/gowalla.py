"""Gowalla: check-ins at places, the 10-core of NGCF and LightGCN; it has no time."""

from pathlib import Path
from types import MappingProxyType

import numpy as np

from recattack_gym.core.errors import DataError
from recattack_gym.datasets.download import Download
from recattack_gym.datasets.records import to_log
from recattack_gym.datasets.source import Counts, FileFormat, FileSource, ParsedLog
from recattack_gym.datasets.tables import Layout, TextFile, read_table

ADDRESS = "https://raw.githubusercontent.com/gusye1234/LightGCN-PyTorch/master/data/gowalla/"


def read_publisher(path: Path, protocol: str | None) -> ParsedLog:  # noqa: ARG001
    """Read `train.txt` and `test.txt`: one line per user, `user item item ...`.

    A user's events are the training items, then the test items. The published split is random, so
    the order of training items means nothing; they are sorted, as in the compact copy.
    """
    users, items = [], []
    for part in ("train.txt", "test.txt"):
        file = TextFile.at(path.with_name(part))
        for number, line in enumerate(file.lines("utf-8"), start=1):
            if not line.strip():
                continue
            try:
                user, *clicked = map(int, line.split())
            except ValueError as error:
                raise DataError(
                    f"{file.label}, line {number}: must hold whole numbers ({error})"
                ) from error
            if min(user, *clicked, 0) < 0:
                raise DataError(f"{file.label}, line {number}: an id must not be negative")
            clicked = sorted(clicked) if part == "train.txt" else clicked
            users.append(np.full(len(clicked), user, dtype=np.int64))
            items.append(np.array(clicked, dtype=np.int64))
    if not sum(map(len, users)):
        raise DataError(f"{path} and test.txt have no events")
    return ParsedLog(to_log(np.concatenate(users), np.concatenate(items)))


def read_copy(path: Path, protocol: str | None) -> ParsedLog:  # noqa: ARG001
    """Read a compact copy: `interactions.csv.gz` (user, item, split)."""
    file = TextFile.at(path)
    table = read_table(file, {"user": "id", "item": "id", "split": "label"}, Layout())
    split = table.labels["split"]
    if not set(split.names) <= {"train", "test"}:
        raise DataError(f"{file.label}: split must be train or test, got {', '.join(split.names)}")
    is_test = np.array([name == "test" for name in split.names])[split.codes]
    order = np.argsort(is_test, kind="stable")
    return ParsedLog(to_log(table.ids["user"][order], table.ids["item"][order]))


GOWALLA = FileSource(
    name="gowalla",
    description=(
        "1,027,370 check-ins at places, 10-core, without time: each user's training places of the "
        "NGCF/LightGCN split come first, then the test places."
    ),
    licence="SNAP states no explicit licence; research use with citation is customary.",
    citation=(
        "E. Cho, S. A. Myers, J. Leskovec, 'Friendship and Mobility', KDD 2011; split of X. Wang et al., "
        "'Neural Graph Collaborative Filtering', SIGIR 2019."
    ),
    counts=MappingProxyType({None: Counts(29_858, 40_981, 1_027_370)}),
    folder="gowalla-lightgcn",
    homepage="https://github.com/gusye1234/LightGCN-PyTorch/tree/master/data/gowalla",
    formats=(
        FileFormat(files=("train.txt", "test.txt"), read=read_publisher),
        FileFormat(files=("interactions.csv.gz",), read=read_copy),
    ),
    downloads=(
        Download(
            url=ADDRESS + "train.txt",
            file="train.txt",
            known_hash="md5:5eec1eb2edb8dd648377d348b8e136cf",
        ),
        Download(
            url=ADDRESS + "test.txt",
            file="test.txt",
            known_hash="md5:c04e2c4bcd2389f53ed8281816166149",
        ),
    ),
)
