"""One JSON file per finished piece of a long benchmark, so that a killed run goes on where it was."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from recattack_gym.core.files import atomic_write

logger = logging.getLogger(__name__)


def read_result(path: Path) -> tuple[dict[str, object], dict[str, object]]:
    """Return identity and result from the file of a finished piece.

    Raises:
        OSError: If there is no such file, or it cannot be read.
        ValueError: If it is damaged, or holds something else.
    """
    content = json.loads(path.read_text())
    known, result = (
        content.get(name) if isinstance(content, dict) else None for name in ("identity", "result")
    )
    if not (isinstance(known, dict) and isinstance(result, dict)):
        raise ValueError("it must hold an identity and a result")  # noqa: TRY004  # damaged, like bad JSON
    return known, result


class ResultStore:
    """Finished pieces in a folder, each under a hash of everything that determines it.

    Args:
        folder: Made if missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, identity: Mapping[str, object]) -> Path:
        """Return the file of one piece."""
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / f"{identity.get('piece', 'piece')}-{digest}.json"

    def get(self, identity: Mapping[str, object]) -> dict[str, object] | None:
        """Return the result of a finished piece, or `None`; a damaged file counts as unfinished."""
        path = self.path(identity)
        try:
            known, result = read_result(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be read and will be made again: %s", path, error)
            return None
        return result if known == json.loads(json.dumps(identity)) else None

    def put(self, identity: Mapping[str, object], result: Mapping[str, object]) -> None:
        """Write the result of a piece, whole or not at all."""
        text = json.dumps({"identity": identity, "result": result}, indent=1)
        with atomic_write(self.path(identity)) as stream:
            stream.write(text.encode())
