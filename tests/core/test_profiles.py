"""Fake profiles: the budget they state, their file, and every way in which a file can be wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from recattack_gym.core import (
    ArgumentError,
    ArtifactError,
    AttackBudget,
    FakeProfiles,
    as_profile_batch,
)

HEADER = {"attacker": "Random", "seed": 3, "target_items": [7, 8], "config": {"a": None}}


def profiles() -> FakeProfiles:
    return FakeProfiles(np.array([[1, 7, 1], [2, 8, 3]]), header=HEADER)


@given(
    arrays(np.int64, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.integers(0, 99))
)
def test_profiles_spend_exactly_their_budget(clicks: np.ndarray) -> None:
    made = FakeProfiles(clicks)
    assert made.budget == AttackBudget(n_fake_users=clicks.shape[0], profile_size=clicks.shape[1])
    assert made.budget.n_clicks == clicks.size


def test_profiles_are_immutable_copies() -> None:
    clicks, ratings = np.array([[1, 2]]), np.array([[5.0, 1.0]])
    made = FakeProfiles(clicks, ratings)
    clicks[0, 0], ratings[0, 0] = 9, 9
    assert made.ratings is not None
    assert (made.item_ids.tolist(), made.ratings.tolist()) == ([[1, 2]], [[5.0, 1.0]])
    for array in (made.item_ids, made.ratings):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2],), r"item_ids must have shape \(any, any\)"),
        (([[1.0]],), "item_ids must hold whole numbers"),
        (([[-1]],), "item_ids must lie in"),
        (([[2**31]],), "item_ids must lie in"),
        ((np.zeros((0, 3), int),), "item_ids must hold at least one click"),
        (([[1]], [[1.0, 2.0]]), r"ratings must have shape \(1, 1\)"),
        (([[1]], [[np.nan]]), "ratings must be finite"),
        (([[1]], None, {"f": print}), "header must hold plain JSON values"),
        (([[1]], None, {"x": np.int64(1)}), "header must hold plain JSON values"),
    ],
)
def test_malformed_profiles_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        FakeProfiles(*arguments)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("ratings", [None, np.array([[1.0, 5.0, 2.5], [0.5, 3.0, 4.0]])])
def test_a_loaded_file_is_what_was_saved(tmp_path: Path, ratings: np.ndarray | None) -> None:
    made = FakeProfiles(profiles().item_ids, ratings, HEADER)
    made.save(tmp_path / "new folder" / "attack.npz")
    loaded = FakeProfiles.load(tmp_path / "new folder" / "attack.npz")
    np.testing.assert_array_equal(loaded.item_ids, made.item_ids)
    assert loaded.header == HEADER
    assert loaded.content_hash == made.content_hash
    if ratings is None:
        assert loaded.ratings is None
    else:
        np.testing.assert_array_equal(loaded.ratings, ratings)


def test_the_hash_is_of_clicks_and_ratings_but_not_of_the_header() -> None:
    made = profiles()
    assert made.content_hash == FakeProfiles(made.item_ids).content_hash
    others = [
        made,
        FakeProfiles(made.item_ids[::-1]),
        FakeProfiles(made.item_ids.reshape(3, 2)),
        FakeProfiles(made.item_ids, np.zeros((2, 3))),
    ]
    assert len({other.content_hash for other in others}) == 4


def rewrite(path: Path, header: dict[str, object], changes: dict[str, object]) -> None:
    with np.load(path) as archive:
        content: dict[str, object] = {name: archive[name] for name in archive.files}
        merged = {**json.loads(archive["header"].tobytes()), **header}
    content["header"] = np.frombuffer(json.dumps(merged).encode(), dtype=np.uint8)
    content.update(changes)
    kept = {name: array for name, array in content.items() if array is not None}
    np.savez(path, **kept)  # type: ignore[arg-type]  # allow_pickle is no array


@pytest.mark.parametrize(
    ("header", "changes", "message"),
    [
        ({"format": 2}, {}, "another format version"),
        ({"format": None}, {}, "another format version"),
        ({}, {"item_ids": np.array([[1, 7, 1], [2, 8, 4]])}, "was altered"),
        ({"content_hash": "0"}, {}, "was altered"),
        ({}, {"item_ids": None}, "does not hold fake profiles"),
        ({}, {"item_ids": np.array([[0.5]])}, "does not hold fake profiles"),
        ({}, {"ratings": np.array([[0.5]])}, "does not hold fake profiles"),
        ({}, {"header": None}, "is not a readable profiles file"),
        ({}, {"header": np.frombuffer(b"[1]", np.uint8)}, "its header is list"),
        ({}, {"header": np.frombuffer(b"{", np.uint8)}, "is not a readable profiles file"),
        ({}, {"header": np.frombuffer(b"\xff\xfe", np.uint8)}, "is not a readable profiles file"),
        ({}, {"item_ids": np.array([[None]], dtype=object)}, "is not a readable profiles file"),
    ],
    ids=str,
)
def test_a_file_with_wrong_content_is_refused(
    tmp_path: Path, header: dict[str, object], changes: dict[str, object], message: str
) -> None:
    path = tmp_path / "attack.npz"
    profiles().save(path)
    rewrite(path, header, changes)
    with pytest.raises(ArtifactError, match=rf"attack\.npz.*{message}"):
        FakeProfiles.load(path)


def test_a_damaged_file_is_refused_or_reads_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "attack.npz"
    made = profiles()
    made.save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        try:
            loaded = FakeProfiles.load(path)
        except ArtifactError:
            continue
        assert loaded.content_hash == made.content_hash
        assert loaded.header == HEADER
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"attack\.npz"):
            FakeProfiles.load(path)


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "array"])
def test_what_is_no_profiles_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "attack.npz"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("user,item\n1,2\n")
    elif kind == "array":
        with path.open("wb") as stream:
            np.save(stream, np.zeros(3))
    with pytest.raises(ArtifactError, match=r"attack\.npz"):
        FakeProfiles.load(path)


def test_a_batch_is_three_dimensional_and_within_the_catalogue() -> None:
    one = profiles()
    for given_as in (one, one.item_ids, one.item_ids.tolist(), one.item_ids[None]):
        batch = as_profile_batch(given_as, 9)
        assert batch.dtype == np.int64
        assert batch.flags.c_contiguous
        np.testing.assert_array_equal(batch, one.item_ids[None])
    strided = np.tile(one.item_ids, (4, 1, 1)).transpose(0, 2, 1)
    assert as_profile_batch(strided, 9).flags.c_contiguous
    with pytest.raises(ArgumentError, match=r"profiles must lie in \[0, 8\), got 8 at index"):
        as_profile_batch(one, 8)
