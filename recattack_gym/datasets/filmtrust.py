"""FilmTrust: ratings of films, in the order of the file (the data has no time)."""

from pathlib import Path
from types import MappingProxyType

from recattack_gym.datasets.download import Download
from recattack_gym.datasets.records import read_compact, to_log
from recattack_gym.datasets.source import Counts, FileFormat, FileSource, ParsedLog
from recattack_gym.datasets.tables import Layout, TextFile, read_table


def read_publisher(path: Path, protocol: str | None) -> ParsedLog:  # noqa: ARG001
    """Read `ratings.txt` (user, item, rating; spaces), or a zip that holds it."""
    file = TextFile.in_zip(path, "ratings.txt") if path.suffix == ".zip" else TextFile.at(path)
    table = read_table(file, {"0": "id", "1": "id", "2": "real"}, Layout(sep=" ", header=False))
    return ParsedLog(to_log(table.ids["0"], table.ids["1"], ratings=table.reals["2"]))


def read_copy(path: Path, protocol: str | None) -> ParsedLog:  # noqa: ARG001
    """Read a compact copy: `interactions.csv.gz` (user, item, rating)."""
    table = read_compact(path, rating="real")
    return ParsedLog(to_log(table.ids["user"], table.ids["item"], ratings=table.reals["rating"]))


FILMTRUST = FileSource(
    name="filmtrust",
    description="35,497 ratings of films from 0.5 to 4, in file order.",
    licence="No explicit licence; the publisher (G. Guo, 2013) asks for a citation.",
    citation=(
        "G. Guo, J. Zhang, N. Yorke-Smith, 'A Novel Bayesian Similarity Measure for Recommender "
        "Systems', IJCAI 2013."
    ),
    counts=MappingProxyType({None: Counts(1_508, 2_071, 35_497)}),
    folder="filmtrust",
    homepage="https://guoguibing.github.io/librec/datasets.html",
    formats=(
        FileFormat(files=("filmtrust.zip",), read=read_publisher),
        FileFormat(files=("ratings.txt",), read=read_publisher),
        FileFormat(files=("interactions.csv.gz",), read=read_copy),
    ),
    downloads=(
        Download(
            url="https://guoguibing.github.io/librec/datasets/filmtrust.zip", file="filmtrust.zip"
        ),
    ),
)
