"""Damaged, odd and hostile files: a `DataError` that says file, line and reason, or a right result."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from recattack_gym.core.errors import ArgumentError, DataError, DatasetNotFoundError
from recattack_gym.datasets import Dataset, read_csv, read_inter

GOOD = "user,item,rating,time\n7,b,4,30\n9,a,3,10\n7,a,5,20\n"


def written(folder: Path, content: str | bytes, name: str = "log.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def sequences(dataset: Dataset) -> list[list[str]]:
    assert dataset.item_names is not None
    log = dataset.log
    return [[dataset.item_names[i] for i in log.items_of(user)] for user in range(log.n_users)]


def test_a_plain_file_is_read_in_its_own_order(tmp_path: Path) -> None:
    dataset = read_csv(written(tmp_path, GOOD))
    assert sequences(dataset) == [["b", "a"], ["a"]]
    assert dataset.name == "log"
    assert dataset.log.timestamps is None
    assert dataset.log.ratings is None
    assert str(tmp_path) in dataset.provenance


def test_times_sort_each_users_events_and_ratings_go_along(tmp_path: Path) -> None:
    dataset = read_csv(written(tmp_path, GOOD), rating="rating", timestamp="time")
    assert sequences(dataset) == [["a", "b"], ["a"]]
    assert dataset.log.timestamps is not None
    assert dataset.log.timestamps.tolist() == [20, 30, 10]
    assert dataset.log.ratings is not None
    assert dataset.log.ratings.tolist() == [5, 4, 3]


def test_equal_times_keep_the_order_of_the_file(tmp_path: Path) -> None:
    rows = "".join(f"1,{item},5\n" for item in "zyxwvutsrqponmlkjihgfedcba")
    dataset = read_csv(written(tmp_path, f"user,item,time\n{rows}"), timestamp="time")
    assert "".join(sequences(dataset)[0]) == "zyxwvutsrqponmlkjihgfedcba"


def test_ids_are_numbered_in_order_of_first_appearance(tmp_path: Path) -> None:
    dataset = read_csv(written(tmp_path, "user,item\nz,30\nb,5\nz,5\na,4\n"))
    assert dataset.log.user_ids.tolist() == [0, 0, 1, 2]
    assert dataset.item_names == ("30", "5", "4")
    assert dataset.log.item_ids.tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("content", "result"),
    [
        ("user,item\r\n1,a\r\n2,b\r\n", [["a"], ["b"]]),
        ("\ufeffuser,item\n1,a\n", [["a"]]),
        ("user,item\n1,a", [["a"]]),
        ("user,item\n\n1,a\n\n\n2,b\n\n", [["a"], ["b"]]),
        ("user;item\n1;a,b\n", [["a,b"]]),
        ("user\titem\n1\ta b\n", [["a b"]]),
        ("user|item\n1|a\n", [["a"]]),
        ('user,item\n1,"a, or b"\n', [["a, or b"]]),
        ('user,item\n1,"say ""a"""\n', [['say "a"']]),
        ("user,item\n1, a\n 1,a \n", [["a", "a"]]),
        ("user,item\nu1,1\nu1,2\n", [["1", "2"]]),
        ("user,item\n12345678901234567890,a\n", [["a"]]),
        ("user,item\nJosé,日本\n", [["日本"]]),
        ("user,item\n1,a\n1,a\n1,a\n", [["a", "a", "a"]]),
        ("other,item,user\nx,a,1\n,b,1\n", [["a", "b"]]),
    ],
)
def test_odd_but_right_files_are_read_right(
    tmp_path: Path, content: str, result: list[list[str]]
) -> None:
    assert sequences(read_csv(written(tmp_path, content))) == result


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", r"log\.csv is empty"),
        ("\n\n", r"log\.csv is empty"),
        ("user,item\n", r"log\.csv has no events"),
        ("user,thing\n1,2\n", r"log\.csv has no column 'item'; its columns are user, thing"),
        ("1,2\n3,4\n", r"log\.csv has no column 'user'; its columns are 1, 2"),
        ("user,item,user\n1,2,3\n", r"line 1: two columns are called 'user'"),
        ("user,item\n1,2\nuser,item\n3,4\n", r"line 3: repeats the header; remove the line"),
        ("user,item\na,b\nuser,item\n", r"line 3: repeats the header"),
        ("user,item\n1,2\n3\n", r"line 3: has 1 fields instead of 2"),
        ("user,item\n1,2\n3,4,5\n", r"line 3: has 3 fields instead of 2"),
        ("user,item\n1,2,9\n3,4,9\n", r"line 2: has 3 fields instead of 2"),
        ("user,item,x\n1,2,9\n3,4\n", r"line 3: has 2 fields instead of 3"),
        ("user,item,x\n1,2,a\n3,4\n", r"line 3: has 2 fields instead of 3"),
        ("user,item\n1,2\n-3,4\n", r"line 3: user must not be negative, got '-3'"),
        ("user,item\n1,a\n3,-4\n", r"line 3: item must not be negative, got '-4'"),
        ("user,item\n1,2\n,4\n", r"line 3: user is missing, got ''"),
        ("user,item\n1,2\n3, \n", r"line 3: item is missing, got ' '"),
        ("user,item\n1,2\nNaN,4\n", r"line 3: user is missing, got 'NaN'"),
        ("user,item\n1,2\n3,null\n", r"line 3: item is missing, got 'null'"),
        ("user,item\n1.0,2\n2.0,4\n", r"line 2: user must be a whole number or text.*got '1\.0'"),
        ("user,item\n1,2\n3,4.5\n", r"line 3: item must be a whole number or text.*got '4\.5'"),
        ('user,item\n1,"2\n3,4\n5,6\n', r"log\.csv"),
        ('user,item\n1,"2\n3,4\n5,6"\n', r"line 4: item must not contain a line break"),
        ("user,item\n1,a\x00b\n", r"line 2: has a zero byte"),
    ],
)
def test_a_bad_file_is_refused_with_line_and_reason(
    tmp_path: Path, content: str, reason: str
) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        read_csv(written(tmp_path, content))
    assert str(tmp_path / "log.csv") in str(caught.value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("five", "time must be a number, got 'five'"),
        ("", "time must be a number, got ''"),
        ("nan", "time must be a finite number, got 'nan'"),
        ("inf", "time must be a finite number, got 'inf'"),
        ("1e999", "time must be a finite number, got '1e999'"),
        ("True", "time must be a number, got 'True'"),
        ("2014-01-01", "time must be a number, got '2014-01-01'"),
    ],
)
def test_text_in_a_number_is_refused(tmp_path: Path, value: str, reason: str) -> None:
    content = f"user,item,time\n1,a,1\n1,b,{value}\n"
    with pytest.raises(DataError, match=f"line 3: {reason}"):
        read_csv(written(tmp_path, content), timestamp="time")


def test_a_file_in_another_encoding_is_refused_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "user,item\n1,a\nJosé,b\n".encode("latin-1"))
    with pytest.raises(
        DataError, match=r"log\.csv, line 3: not utf-8-sig text .* save the file as UTF-8"
    ):
        read_csv(path)


@pytest.mark.parametrize(
    ("encoding", "reason"),
    [("utf-16", "not utf-8-sig text"), ("utf-16-le", "has a zero byte; save the file as UTF-8")],
)
def test_a_utf_16_file_is_refused(tmp_path: Path, encoding: str, reason: str) -> None:
    with pytest.raises(DataError, match=rf"log\.csv, line 1: {reason}"):
        read_csv(written(tmp_path, GOOD.encode(encoding)))


def test_a_bad_byte_far_down_a_large_file_is_found(tmp_path: Path) -> None:
    rows = b"1,2\n" * 300_000
    with pytest.raises(DataError, match=r"line 300002: not utf-8-sig text"):
        read_csv(written(tmp_path, b"user,item\n" + rows + b"3,\xe9\n"))


def test_a_word_far_down_a_column_of_numbers_makes_them_labels(tmp_path: Path) -> None:
    """Beyond the block in which pandas guesses types, where it would warn of mixed ones."""
    rows = "".join(f"{n % 100},{n % 7}\n" for n in range(400_000))
    dataset = read_csv(written(tmp_path, f"user,item\n{rows}x,3\n"))
    assert dataset.log.n_users == 101
    assert dataset.item_names == ("0", "1", "2", "3", "4", "5", "6")


def test_a_gzip_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = "\n".join(f"{user},{item}" for user, item in rng.integers(9_999, size=(5_000, 2)))
    whole = gzip.compress(f"user,item\n{rows}\n".encode())
    path = written(tmp_path, whole, "log.csv.gz")
    assert len(read_csv(path).log) == 5_000
    for length in (len(whole) - 4, len(whole) // 2, 5):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"log\.csv\.gz is cut off or damaged"):
            read_csv(path)


def test_a_gzip_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(GOOD.encode() * 100))
    whole[len(whole) // 2] ^= 1
    with pytest.raises(DataError):
        read_csv(written(tmp_path, bytes(whole), "log.csv.gz"))


def test_a_text_file_that_is_called_gz_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"log\.csv\.gz is cut off or damaged"):
        read_csv(written(tmp_path, GOOD, "log.csv.gz"))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(DatasetNotFoundError, match="path must be an existing file, got"):
            read_csv(path)


def test_one_user_is_a_log_like_any_other(tmp_path: Path) -> None:
    dataset = read_csv(written(tmp_path, "user,item\n5,a\n5,b\n5,c\n5,d\n"))
    assert (dataset.log.n_users, dataset.n_samples) == (1, 3)
    assert dataset.split.test_items.tolist() == [3]
    assert dataset.split.train.items_of(0).tolist() == [0, 1]


def test_a_file_without_header_is_read_by_position(tmp_path: Path) -> None:
    dataset = read_csv(written(tmp_path, "9 3 7\n9 1 4\n"), user=0, item=2, timestamp=1, sep=" ")
    assert sequences(dataset) == [["4", "7"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"user": 0}, "all column names or all positions"),
        ({"user": "item"}, "must be different columns"),
        ({"sep": "::"}, "sep must be one character"),
        ({"sep": ""}, "sep must be one character"),
        ({"item": True, "user": 0}, "all column names or all positions"),
    ],
)
def test_wrong_arguments_are_refused(
    tmp_path: Path, arguments: dict[str, str | int], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        read_csv(written(tmp_path, GOOD), **arguments)  # type: ignore[arg-type]  # the point of the test


def test_a_position_beyond_the_last_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no column '5'"):
        read_csv(written(tmp_path, "1,2\n"), user=0, item=5)


INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


def test_a_recbole_file_is_read_in_order_of_time(tmp_path: Path) -> None:
    path = written(tmp_path, f"{INTER}u\tx\t4\t20\nu\ty\t5\t10\n", "toy.inter")
    dataset = read_inter(path)
    assert sequences(dataset) == [["y", "x"]]
    assert dataset.log.ratings is not None
    assert dataset.log.ratings.tolist() == [5, 4]


def test_a_recbole_file_may_leave_out_rating_and_time(tmp_path: Path) -> None:
    path = written(tmp_path, "item_id:token\tuser_id:token\nx\tu\ny\tu\n", "toy.inter")
    assert sequences(read_inter(path)) == [["x", "y"]]


def test_quotes_mean_nothing_in_a_recbole_file(tmp_path: Path) -> None:
    path = written(tmp_path, 'user_id:token\titem_id:token\nu\t"x\nu\ty\n', "toy.inter")
    assert sequences(read_inter(path)) == [['"x', "y"]]


def test_a_recbole_file_without_items_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "user_id:token\trating:float\nu\t3\n", "toy.inter")
    with pytest.raises(DataError, match="has no column 'item_id:token'"):
        read_inter(path)


@pytest.mark.slow
def test_ten_million_rows_are_read_in_seconds(tmp_path: Path) -> None:
    n_rows = 10_000_000
    path = tmp_path / "large.csv"
    index = np.arange(100_000)
    block = "".join(f"{n % 9973},{n * 7 % 4999},{n}\n" for n in index).encode()
    with path.open("wb") as stream:
        stream.write(b"user,item,time\n")
        for _ in range(n_rows // len(index)):
            stream.write(block)
    log = read_csv(path, timestamp="time").log
    assert (len(log), log.n_users, log.n_items) == (n_rows, 9_973, 4_999)
    assert log.user_ids[:3].tolist() == [0, 0, 0]
    assert log.items_of(1)[0] == 1
