"""One JSON file per finished piece of a long benchmark, so that a killed run goes on where it was."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from recattack_gym.core.files import atomic_write

logger = logging.getLogger(__name__)


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
            stored = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be read and will be made again: %s", path, error)
            return None
        if stored.get("identity") != json.loads(json.dumps(identity)):
            return None
        result: dict[str, object] = stored["result"]
        return result

    def put(self, identity: Mapping[str, object], result: Mapping[str, object]) -> None:
        """Write the result of a piece, whole or not at all."""
        text = json.dumps({"identity": identity, "result": result}, indent=1)
        with atomic_write(self.path(identity)) as stream:
            stream.write(text.encode())
