"""Files: whole or not at all, also when the disk is full, the process is stopped or bytes rot."""

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from recattack_gym.core import ArtifactError
from recattack_gym.core.files import atomic_write, read_arrays, write_arrays


@contextmanager
def disk_with(n_bytes: int) -> Iterator[None]:
    """Let no file grow beyond `n_bytes`, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_file_appears_whole_in_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.bin"
    with atomic_write(path) as stream:
        stream.write(b"123")
        assert not path.exists()
    assert path.read_bytes() == b"123"
    assert list(path.parent.iterdir()) == [path]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    with atomic_write(tmp_path / "file") as stream:
        stream.write(b"1")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "file")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("error", [ValueError("oops"), KeyboardInterrupt(), SystemExit(1)])
def test_an_error_on_the_way_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_write(path) as stream:
            stream.write(b"half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with disk_with(1000), pytest.raises(OSError, match="File too large"), atomic_write(path) as out:
        out.write(b"x" * 100_000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_write(path) as stream:
        stream.write(b"new")
    assert path.read_bytes() == b"new"


def test_a_disk_that_fails_at_the_last_moment_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def failing(descriptor: int) -> None:
        raise OSError(28, f"No space left on device {descriptor}")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="No space left"), atomic_write(path) as stream:
        stream.write(b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"), atomic_write(tmp_path / "file" / "x") as stream:
        stream.write(b"1")


@pytest.mark.parametrize("compress", [False, True])
def test_arrays_and_header_come_back(tmp_path: Path, *, compress: bool) -> None:
    path = tmp_path / "x.npz"
    arrays = {"a": np.arange(6.0).reshape(2, 3), "empty": np.zeros((0, 2), np.int64)}
    write_arrays(path, {"n": 1, "text": "é"}, arrays, compress=compress)
    header, back = read_arrays(path, "test")
    assert header == {"n": 1, "text": "é"}
    assert sorted(back) == ["a", "empty"]
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_arrays(tmp_path / name, {"n": 1}, {"a": np.arange(3)})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


@pytest.mark.parametrize("compress", [False, True])
def test_every_flipped_byte_is_noticed_or_harmless(tmp_path: Path, *, compress: bool) -> None:
    path = tmp_path / "x.npz"
    write_arrays(path, {"n": 1}, {"a": np.arange(40)}, compress=compress)
    whole = path.read_bytes()
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 0xFF
        path.write_bytes(broken)
        try:
            header, arrays = read_arrays(path, "test")
        except ArtifactError as error:
            assert "x.npz" in str(error)  # noqa: PT017  # most bytes are noticed, a few are slack
            continue
        assert header == {"n": 1}
        for name, array in arrays.items():  # a lost member is the caller's to miss
            assert name == "a"
            np.testing.assert_array_equal(array, np.arange(40))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"(40,)", b"(20,)"),  # half an array is read without reaching the end's checksum
        (b"<i8", b"<u8"),
        (b"\x00\x00\x08\x00", b"\x00\x00\x0c\x00"),  # bzip2
        (b"\x00\x00\x08\x00", b"\x00\x00\x0e\x00"),  # lzma
    ],
)
def test_a_file_that_reads_well_but_differently_is_refused(
    tmp_path: Path, old: bytes, new: bytes
) -> None:
    path = tmp_path / "x.npz"
    write_arrays(path, {"n": 1}, {"a": np.arange(40)}, compress=old.endswith(b"\x08\x00"))
    whole = path.read_bytes()
    assert old in whole
    path.write_bytes(whole.replace(old, new))
    with pytest.raises(ArtifactError, match=r"x\.npz is (a damaged|not a readable) test file"):
        read_arrays(path, "test")


def test_an_object_array_is_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, header=np.array([print], dtype=object))
    with pytest.raises(ArtifactError, match=r"x\.npz is not a readable test file: .*allow_pickle"):
        read_arrays(path, "test")
