"""Write files whole or not at all, and read them whole or not at all."""

import io
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from recattack_gym.core.errors import ArtifactError

Array = NDArray[Any]
"""Of whatever dtype; a file says which."""

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How members of our files are stored; another method is a flipped bit."""


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` that replaces it when the block ends without an error.

    An interrupted or failed write leaves what was at `path` untouched and no temporary file behind.

    Raises:
        OSError: If the folder cannot be made or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_arrays(
    path: Path, header: Mapping[str, object], arrays: Mapping[str, Array], *, compress: bool = False
) -> None:
    """Write named arrays and a JSON header to an `.npz` file, whole or not at all.

    Args:
        path: The file; its folder is made if need be.
        header: Plain JSON values.
        arrays: Any names but `"header"`.
        compress: Whether to deflate, for files that people send each other.

    Raises:
        OSError: If the folder cannot be made or the disk is full.
    """
    text = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    save = np.savez_compressed if compress else np.savez
    with atomic_write(path) as stream:
        save(stream, header=text, **arrays)  # type: ignore[arg-type]  # allow_pickle is no array


def read_arrays(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read what `write_arrays` wrote; checks every byte against its checksum and never unpickles.

    Args:
        path: The file.
        kind: What the caller calls such a file, for the message.

    Returns:
        The header (any JSON values: they are the caller's to check) and the arrays by name.

    Raises:
        ArtifactError: If the file is missing, damaged, or something else.
    """
    try:
        content = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path} must be a readable {kind} file: {error}") from error
    try:
        with zipfile.ZipFile(content) as archive:
            damaged = [m.filename for m in archive.infolist() if m.compress_type not in _METHODS]
            damaged = damaged or [name for name in [archive.testzip()] if name is not None]
        if damaged:
            raise ArtifactError(
                f"{path} is a damaged {kind} file: {damaged[0]!r} is not as written"
            )
        content.seek(0)
        with np.load(content, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(arrays.pop("header").tobytes().decode())
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        KeyError,
        ValueError,
        AttributeError,
        RuntimeError,  # zipfile: a flipped bit says encrypted, or (NotImplementedError) a later version
    ) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{path} is not a readable {kind} file: {error}") from error
    if not isinstance(header, dict):
        raise ArtifactError(f"{path} is not a {kind} file: its header is {type(header).__name__}")
    return header, arrays
