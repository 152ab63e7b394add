"""The publishers' own formats and the compact copies, on small files written here."""

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from recattack_gym.core.errors import DataError
from recattack_gym.datasets import amazon, filmtrust, gowalla, movielens, steam
from recattack_gym.datasets.source import ParsedLog, Reader, poisonrec_protocol


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def put_zip(folder: Path, name: str, members: dict[str, str]) -> Path:
    path = folder / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content.encode("latin-1"))
    return path


def sequences(parsed: ParsedLog) -> list[list[int]]:
    return [parsed.log.items_of(user).tolist() for user in range(parsed.log.n_users)]


# User 3 rated movie 50 at time 9 and, later in the file but earlier in time, 20 and 10 (a tie).
U_DATA = "3\t50\t5\t9\n1\t10\t4\t7\n3\t20\t2\t8\n3\t10\t1\t8\n"
U_ITEM = "10|Amélie (2001)|x\n20|Heat, The (1995)|x\n30|Unrated (1990)|x\n"
BY_TIME = [[0], [1, 0, 2]]


def test_movielens_100k_is_sorted_by_time_and_ties_keep_the_order_of_the_file(
    tmp_path: Path,
) -> None:
    parsed = movielens.read_100k(put(tmp_path, "u.data", U_DATA), None)
    assert sequences(parsed) == BY_TIME
    assert parsed.item_names is None
    assert parsed.log.ratings is not None
    assert parsed.log.ratings.tolist() == [4, 2, 1, 5]
    assert parsed.log.timestamps is not None
    assert parsed.log.timestamps.tolist() == [7, 8, 8, 9]


def test_movielens_100k_takes_names_from_the_file_beside_it(tmp_path: Path) -> None:
    put(tmp_path, "u.item", U_ITEM.encode("latin-1"))
    parsed = movielens.read_100k(put(tmp_path, "u.data", U_DATA), None)
    assert parsed.item_names == ("Amélie (2001)", "Heat, The (1995)", "movie 50")


def test_movielens_100k_is_read_from_the_publishers_archive(tmp_path: Path) -> None:
    path = put_zip(
        tmp_path,
        "ml-100k.zip",
        {"ml-100k/README": "", "ml-100k/u.data": U_DATA, "ml-100k/u.item": U_ITEM},
    )
    parsed = movielens.read_100k(path, None)
    assert sequences(parsed) == BY_TIME
    assert parsed.item_names is not None
    assert parsed.item_names[0] == "Amélie (2001)"


RATINGS_DAT = U_DATA.replace("\t", "::")
MOVIES_DAT = "10::Amélie (2001)::Comedy\n20::Heat, The (1995)::Crime\n50::Who: What (1999)::Drama\n"


def test_movielens_1m_is_read_from_a_file_and_from_the_archive(tmp_path: Path) -> None:
    archive = put_zip(
        tmp_path, "ml-1m.zip", {"ml-1m/ratings.dat": RATINGS_DAT, "ml-1m/movies.dat": MOVIES_DAT}
    )
    from_archive = movielens.read_1m(archive, None)
    from_file = movielens.read_1m(put(tmp_path, "ratings.dat", RATINGS_DAT), None)
    assert sequences(from_file) == sequences(from_archive) == BY_TIME
    assert from_archive.item_names == ("Amélie (2001)", "Heat, The (1995)", "Who: What (1999)")
    assert from_file.log.content_hash == from_archive.log.content_hash


def test_the_copy_of_movielens_1m_orders_exact_ties_like_the_original(tmp_path: Path) -> None:
    original = movielens.read_1m(put(tmp_path, "ratings.dat", RATINGS_DAT), None)
    copy = put(
        tmp_path,
        "interactions.csv.gz",
        "user,item,rating,timestamp,ts_exact,row\n"
        "1,10,4,7,1,1\n3,10,1,8,1,3\n3,20,2,8,1,2\n3,50,5,9,1,0\n",
    )
    assert movielens.read_1m_copy(copy, None).log.content_hash == original.log.content_hash


def test_the_copy_of_movielens_1m_keeps_its_order_where_times_are_interpolated(
    tmp_path: Path,
) -> None:
    copy = put(
        tmp_path,
        "interactions.csv.gz",
        "user,item,rating,timestamp,ts_exact,row\n3,10,1,8,0,3\n3,20,2,8,1,2\n3,50,5,9,1,0\n",
    )
    assert sequences(movielens.read_1m_copy(copy, None)) == [[0, 1, 2]]


STEAM_CSV = (
    '9,"Sir, You Hunt",purchase,1.0,0\n'
    '9,"Sir, You Hunt",play,2.5,0\n'
    '4,"Sir, You Cook",purchase,1.0,0\n'
    '9,"Sir",purchase,1.0,0\n'
    '4,"Spore",purchase,1.0,0\n'
)


def test_steam_keeps_both_events_of_a_game_in_the_order_of_the_file(tmp_path: Path) -> None:
    parsed = steam.read_publisher(put(tmp_path, "steam-200k.csv", STEAM_CSV), None)
    assert parsed.item_names == ("Sir, You Hunt", "Sir, You Cook", "Sir", "Spore")
    assert sequences(parsed) == [[1, 3], [0, 0, 2]]  # user 4, then user 9


def test_poisonrecs_steam_cuts_titles_at_the_first_comma(tmp_path: Path) -> None:
    """`"Sir` (cut) and `"Sir"` (whole) stay two items, as when lines are split at commas."""
    parsed = steam.read_publisher(put(tmp_path, "steam-200k.csv", STEAM_CSV), "poisonrec")
    assert parsed.log.n_items == 3
    assert sequences(parsed) == [[0, 2], [0, 0, 1]]
    assert parsed.item_names == ("Sir", "Sir", "Spore")


@pytest.mark.parametrize("protocol", [None, "poisonrec"])
def test_the_copy_of_steam_gives_the_same_log(tmp_path: Path, protocol: str | None) -> None:
    original = steam.read_publisher(put(tmp_path, "steam-200k.csv", STEAM_CSV), protocol)
    put(
        tmp_path,
        "items.csv.gz",
        'item,title,naive,naive_item\n0,"Sir, You Hunt",x,0\n1,"Sir, You Cook",x,0\n2,Sir,x,1\n3,Spore,x,2\n',
    )
    events = "user,item,behavior,value,row\n4,1,p,1,2\n4,3,p,1,4\n9,0,p,1,0\n9,0,p,2,1\n9,2,p,1,3\n"
    copy = steam.read_copy(put(tmp_path, "interactions.csv.gz", events), protocol)
    assert copy.log.content_hash == original.log.content_hash
    assert copy.item_names == original.item_names


def test_titles_that_differ_by_a_space_are_two_games(tmp_path: Path) -> None:
    rows = '1,"Spore",purchase,1.0,0\n1,"Spore ",purchase,1.0,0\n'
    assert steam.read_publisher(put(tmp_path, "steam-200k.csv", rows), None).log.n_items == 2


def test_steam_is_read_from_an_archive(tmp_path: Path) -> None:
    path = put_zip(tmp_path, "steam-video-games.zip", {"steam-200k.csv": STEAM_CSV})
    assert len(steam.read_publisher(path, None).log) == 5


def test_a_copy_of_steam_without_a_title_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "items.csv.gz", "item,title\n0,Spore\n")
    path = put(tmp_path, "interactions.csv.gz", "user,item\n4,0\n4,1\n")
    with pytest.raises(DataError, match=r"items\.csv\.gz has no title for item 1"):
        steam.read_copy(path, None)


def a_review(user: str, item: str, time: int) -> str:
    return json.dumps({"reviewerID": user, "asin": item, "overall": 4.0, "unixReviewTime": time})


def test_reviews_are_numbered_by_appearance_and_sorted_by_time(tmp_path: Path) -> None:
    lines = [
        a_review("B", "y", 20),
        a_review("A", "x", 5),
        a_review("B", "x", 10),
        a_review("B", "z", 10),
    ]
    path = put(tmp_path, "reviews_Some_5.json.gz", "\n".join(lines) + "\n")
    parsed = amazon.read_reviews(path, None)
    assert parsed.item_names == ("y", "x", "z")
    assert sequences(parsed) == [[1, 2, 0], [1]]  # B, then A; the tie keeps the order of the file


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"reviewerID": "A", "asin": "x", "overall": 3}', "KeyError: 'unixReviewTime'"),
        (
            '{"reviewerID": 5, "asin": "x", "overall": 3, "unixReviewTime": 1}',
            "reviewerID and asin must be text",
        ),
        (
            '{"reviewerID": "A", "asin": "x", "overall": NaN, "unixReviewTime": 1}',
            "unixReviewTime and overall must be numbers",
        ),
    ],
)
def test_a_bad_review_is_refused_with_its_line(tmp_path: Path, line: str, reason: str) -> None:
    path = put(tmp_path, "reviews_Some_5.json.gz", f"{a_review('A', 'x', 1)}\n{line}\n")
    with pytest.raises(DataError, match=rf"reviews_Some_5\.json\.gz, line 2: .*{reason}"):
        amazon.read_reviews(path, None)


def test_gowalla_puts_training_places_before_test_places(tmp_path: Path) -> None:
    put(tmp_path, "test.txt", "0 4 3\n1\n")
    parsed = gowalla.read_publisher(put(tmp_path, "train.txt", "0 2 1\n1 0\n"), None)
    assert sequences(parsed) == [[1, 2, 4, 3], [0]]
    assert parsed.log.n_items == 5


def test_the_copy_of_gowalla_gives_the_same_log(tmp_path: Path) -> None:
    put(tmp_path, "test.txt", "0 4 3\n1\n")
    original = gowalla.read_publisher(put(tmp_path, "train.txt", "0 2 1\n1 0\n"), None)
    rows = "user,item,split\n0,1,train\n0,2,train\n0,4,test\n0,3,test\n1,0,train\n"
    copy = gowalla.read_copy(put(tmp_path, "interactions.csv.gz", rows), None)
    assert copy.log.content_hash == original.log.content_hash


@pytest.mark.parametrize("line", ["1 x", "1 2.0", "-1 2", "1 -2"])
def test_a_bad_line_of_gowalla_is_refused(tmp_path: Path, line: str) -> None:
    put(tmp_path, "test.txt", "")
    path = put(tmp_path, "train.txt", f"0 2 1\n{line}\n")
    with pytest.raises(DataError, match=r"train\.txt, line 2: "):
        gowalla.read_publisher(path, None)


def test_filmtrust_is_read_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows = "2 9 3.5\n1 7 4\n2 7 0.5\n"
    from_file = filmtrust.read_publisher(put(tmp_path, "ratings.txt", rows), None)
    archive = put_zip(tmp_path, "filmtrust.zip", {"ratings.txt": rows, "trust.txt": ""})
    copy = put(tmp_path, "interactions.csv.gz", "user,item,rating\n1,7,4\n2,9,3.5\n2,7,0.5\n")
    assert sequences(from_file) == [[0], [1, 0]]
    assert from_file.log.ratings is not None
    assert from_file.log.ratings.tolist() == [4, 3.5, 0.5]
    assert filmtrust.read_publisher(archive, None).log.content_hash == from_file.log.content_hash
    assert filmtrust.read_copy(copy, None).log.content_hash == from_file.log.content_hash


NUMERIC = [
    (movielens.read_100k, "u.data", "\t", 4),
    (movielens.read_1m, "ratings.dat", "::", 4),
    (filmtrust.read_publisher, "ratings.txt", " ", 3),
]


@pytest.mark.parametrize(("read", "name", "sep", "width"), NUMERIC)
@pytest.mark.parametrize(
    ("position", "value", "reason"),
    [
        (0, "x", "must be a whole number, got 'x'"),
        (0, "-1", "must not be negative, got '-1'"),
        (1, "3.0", "must be a whole number, got '3.0'"),
        (1, "", "must be a whole number, got ''"),
        (1, "nan", "must be a whole number, got 'nan'"),
        (1, "True", "must be a whole number, got 'True'"),
        (1, "99999999999999999999", r"must be smaller than 2\*\*63"),
        (2, "good", "must be a number, got 'good'"),
        (2, "inf", "must be a finite number, got 'inf'"),
    ],
)
def test_a_wrong_value_in_a_publishers_file_is_refused(
    tmp_path: Path,
    read: Reader,
    name: str,
    sep: str,
    width: int,
    position: int,
    value: str,
    reason: str,
) -> None:
    good = ["1", "2", "3", "4"][:width]
    bad = [*good[:position], value, *good[position + 1 :]]
    path = put(tmp_path, name, f"{sep.join(good)}\n{sep.join(bad)}\n")
    with pytest.raises(DataError, match=rf"{name}, line 2: column {position} {reason}"):
        read(path, None)


@pytest.mark.parametrize(("read", "name", "sep", "width"), NUMERIC)
def test_a_row_that_is_cut_off_is_refused(
    tmp_path: Path, read: Reader, name: str, sep: str, width: int
) -> None:
    good = ["1", "2", "3", "4"][:width]
    path = put(tmp_path, name, f"{sep.join(good)}\n{sep.join(good[:-1])}")
    with pytest.raises(
        DataError, match=rf"{name}, line 2: has {width - 1} fields instead of {width}"
    ):
        read(path, None)


@pytest.mark.parametrize(
    ("read", "names"),
    [
        (movielens.read_100k, ("ml-100k.zip",)),
        (movielens.read_1m, ("ml-1m.zip",)),
        (steam.read_publisher, ("steam-video-games.zip",)),
        (filmtrust.read_publisher, ("filmtrust.zip",)),
    ],
)
def test_an_archive_that_is_cut_off_or_lacks_the_file_is_refused(
    tmp_path: Path, read: Callable[[Path, None], ParsedLog], names: tuple[str]
) -> None:
    path = put_zip(tmp_path, names[0], {"readme.txt": "nothing here"})
    with pytest.raises(DataError, match="does not contain"):
        read(path, None)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="is cut off or damaged"):
        read(path, None)


def test_the_separator_of_movielens_1m_must_not_hide_a_comma(tmp_path: Path) -> None:
    path = put(tmp_path, "ratings.dat", "1::2::3::4\n1,2::3::4\n")
    with pytest.raises(DataError, match=r"ratings\.dat, line 2: ',' has no place in this file"):
        movielens.read_1m(path, None)


def test_poisonrec_keeps_users_with_three_to_999_events_and_all_items(tmp_path: Path) -> None:
    lengths = {1: 2, 2: 3, 3: 999, 4: 1000}
    rows = "".join(f"{user} {item} 1\n" for user, n in lengths.items() for item in range(n))
    everything = filmtrust.read_publisher(put(tmp_path, "ratings.txt", rows), None)
    log = poisonrec_protocol(everything).log
    assert [len(log.items_of(user)) for user in range(log.n_users)] == [3, 999]
    assert log.n_items == 1000
    assert log.item_popularity[999] == 0
