"""Keep the result files of a comparison in one file, to commit them and to go on from them elsewhere."""

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from recattack_gym.core import ArtifactError
from recattack_gym.core.files import atomic_write

_SUFFIXES = (".json", ".npz")
_EPOCH = (1980, 1, 1, 0, 0, 0)


def pack(paths: Iterable[Path], archive: Path) -> int:
    """Write result files into a zip archive, whole or not at all.

    The same files give the same bytes, whenever and wherever they were made.

    Args:
        paths: Results (`.json`) and plans (`.npz`); those that do not exist are left out.
        archive: Is replaced.

    Returns:
        How many files are in it.

    Raises:
        OSError: If a file cannot be read or the archive cannot be written.
    """
    there = sorted({path.name: path for path in paths if path.is_file()}.items())
    with atomic_write(archive) as stream, zipfile.ZipFile(stream, "w") as packed:
        for name, path in there:
            entry = zipfile.ZipInfo(name, date_time=_EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            packed.writestr(entry, path.read_bytes())
    return len(there)


def unpack(archive: Path, folder: Path) -> int:
    """Put the files of an archive into a folder, where there is none of the same name yet.

    Args:
        archive: What `pack` wrote.
        folder: Made if missing.

    Returns:
        How many files were added.

    Raises:
        ArtifactError: If the archive is missing, damaged, or holds anything but result files.
        OSError: If the folder cannot be written.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            contents = {name: packed.read(name) for name in packed.namelist()}
    except (
        OSError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        ValueError,  # a name that is no text
        RuntimeError,  # zipfile: a flipped bit says encrypted, or (NotImplementedError) a later version
    ) as error:
        raise ArtifactError(f"{archive} must be a readable archive of results: {error}") from error
    strange = [n for n in contents if PurePosixPath(n).name != n or not n.endswith(_SUFFIXES)]
    if strange:
        raise ArtifactError(
            f"{archive} must hold {' and '.join(_SUFFIXES)} files without folders, got {strange[0]!r}"
        )
    missing = {name: data for name, data in contents.items() if not (folder / name).exists()}
    for name, data in missing.items():
        with atomic_write(folder / name) as stream:
            stream.write(data)
    return len(missing)
