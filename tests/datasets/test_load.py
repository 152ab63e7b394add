"""How a name becomes a dataset: the search order, the checks, and the messages."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from recattack_gym import datasets
from recattack_gym.core.errors import (
    ArgumentError,
    DataError,
    DatasetNotFoundError,
    UnknownNameError,
)
from recattack_gym.datasets import DATASETS, Counts, FileSource, load
from recattack_gym.datasets.filmtrust import FILMTRUST

ROWS = "1 7 4\n2 9 3\n2 7 1\n"
TOY = replace(FILMTRUST, counts=MappingProxyType({None: Counts(2, 2, 3)}), downloads=())


def put(folder: Path, rows: str = ROWS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ratings.txt").write_text(rows)
    return folder


def test_the_argument_comes_before_the_variable_and_the_variable_before_the_cache(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(own_cache / "filmtrust")
    assert TOY.locate() == own_cache / "filmtrust" / "ratings.txt"
    monkeypatch.setenv("RECATTACK_DATA", str(put(tmp_path / "variable")))
    assert TOY.locate() == tmp_path / "variable" / "ratings.txt"
    put(tmp_path / "argument")
    assert TOY.locate(tmp_path / "argument") == tmp_path / "argument" / "ratings.txt"
    assert str(tmp_path / "argument") in TOY.load(tmp_path / "argument", None).provenance


def test_what_the_argument_lacks_is_found_further_on(tmp_path: Path, own_cache: Path) -> None:
    put(own_cache / "filmtrust")
    assert TOY.locate(tmp_path) == own_cache / "filmtrust" / "ratings.txt"


@pytest.mark.parametrize("name", ["amazon-phone", "amazon-cell-phones-5core", "."])
def test_files_may_lie_in_a_folder_called_like_the_dataset(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    (folder / "interactions.csv.gz").touch()
    assert DATASETS["amazon-phone"].locate(tmp_path) == folder / "interactions.csv.gz"


def test_a_format_of_two_files_needs_both(tmp_path: Path) -> None:
    (tmp_path / "train.txt").touch()
    assert DATASETS["gowalla"].locate(tmp_path) is None
    (tmp_path / "test.txt").touch()
    assert DATASETS["gowalla"].locate(tmp_path) == tmp_path / "train.txt"


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    put(tmp_path, ROWS[: ROWS.rindex("2")])
    with pytest.raises(
        DataError,
        match=r"ratings\.txt has 2 users, 2 items, 2 events; filmtrust must have 2 users, 2 items, 3 events",
    ):
        TOY.load(tmp_path, None)


def test_a_dataset_says_where_it_comes_from_and_under_which_terms(tmp_path: Path) -> None:
    dataset = TOY.load(put(tmp_path), None)
    assert (dataset.name, dataset.protocol) == ("filmtrust", None)
    assert "IJCAI" in dataset.citation
    assert "licence" in dataset.licence
    assert "librec" in dataset.provenance


def test_a_missing_dataset_says_where_to_get_it_and_where_to_put_it(own_cache: Path) -> None:
    with pytest.raises(DatasetNotFoundError) as caught:
        load("steam")
    message = str(caught.value)
    assert "dataset 'steam' is not on this machine" in message
    assert "https://www.kaggle.com/datasets/tamber/steam-video-games" in message
    assert "steam-200k.csv" in message
    assert str(own_cache / "steam") in message
    assert "RECATTACK_DATA" in message
    assert isinstance(caught.value, FileNotFoundError)


def test_a_variable_that_names_nothing_is_named_in_the_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RECATTACK_DATA", "/no/such/folder")
    with pytest.raises(DatasetNotFoundError, match=r"RECATTACK_DATA.*'/no/such/folder'"):
        load("steam")


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="unknown dataset 'ml-1M'; did you mean 'ml-1m'"):
        load("ml-1M")


def test_a_data_dir_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="data_dir must be an existing folder, got"):
        load("steam", tmp_path / "none")


@pytest.mark.parametrize("name", ["ml-100k", "gowalla", "filmtrust", "synthetic"])
def test_a_protocol_that_does_not_describe_a_dataset_is_refused(name: str) -> None:
    with pytest.raises(
        ArgumentError, match=f"protocol must be one of None for dataset '{name}', got 'poisonrec'"
    ):
        load(name, protocol="poisonrec")


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(
        ArgumentError, match=r"protocol must be one of None, 'poisonrec'.*got 'other'"
    ):
        load("steam", protocol="other")


def test_the_path_of_a_table_is_a_name_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("user,item\n1,a\n")
    assert load(str(path)).name == "mine"
    (tmp_path / "mine.inter").write_text("user_id:token\titem_id:token\n1\ta\n1\tb\n")
    assert len(load(str(tmp_path / "mine.inter")).log) == 2
    with pytest.raises(ArgumentError, match="protocol must be None for a file"):
        load(str(path), protocol="poisonrec")


def test_the_registry_cannot_be_changed_and_knows_every_name() -> None:
    assert set(DATASETS) == {
        *(
            "synthetic",
            "synthetic-small",
            "synthetic-steam",
            "synthetic-clothing",
            "synthetic-large",
        ),
        *("steam", "ml-100k", "ml-1m", "amazon-phone", "amazon-clothing", "gowalla", "filmtrust"),
    }
    with pytest.raises(TypeError):
        DATASETS["mine"] = TOY  # type: ignore[index]  # the point of the test


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_dataset_states_terms_citation_and_size(name: str) -> None:
    source = DATASETS[name]
    assert source.name == name
    assert source.description
    assert source.licence
    assert source.citation
    assert None in source.counts


@pytest.mark.parametrize(
    "source",
    [entry for entry in DATASETS.values() if isinstance(entry, FileSource)],
    ids=lambda s: s.name,
)
def test_downloads_are_the_files_of_the_first_format(source: FileSource) -> None:
    if source.downloads:
        assert tuple(download.file for download in source.downloads) == source.formats[0].files
        assert all(download.url.startswith("https://") for download in source.downloads)


@pytest.mark.parametrize(
    "name", ["synthetic", "synthetic-small", "synthetic-steam", "synthetic-clothing"]
)
def test_a_generated_dataset_has_the_stated_size(name: str) -> None:
    dataset = load(name)
    assert Counts.of(dataset.log) == DATASETS[name].counts[None]
    assert dataset.name == name
    assert "seed 0" in dataset.provenance
    assert DATASETS[name].locate() is None
    assert DATASETS[name].fetch() is None


def test_public_names_exist() -> None:
    assert all(hasattr(datasets, name) for name in datasets.__all__)
    assert {"DATASETS", "Dataset", "Split", "load", "leave_one_out", "from_interactions"} <= set(
        datasets.__all__
    )


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, recattack_gym.datasets\n"
        "print([m for m in ('pandas', 'torch', 'numba', 'scipy', 'pooch', 'requests') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"
