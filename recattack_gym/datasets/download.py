"""Download a published file: whole and as published, or not at all."""

import hashlib
import logging
import time
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from recattack_gym.core.errors import DataError

_LOGGER = logging.getLogger(__name__)
BLOCK_BYTES = 2**16


@dataclass(frozen=True, kw_only=True, slots=True)
class Download:
    """A file that its publisher offers at a plain address."""

    url: str
    """Address."""
    file: str
    """Name to save it under: one of `FileFormat.files` of the dataset's first format."""
    known_hash: str | None = None
    """`"sha256:..."` or `"md5:..."`; `None` where nobody published one: then the counts decide."""
    timeout: tuple[float, float] = (5.0, 20.0)
    """Seconds to wait for a connection, and for the next bytes."""
    pauses: tuple[float, ...] = (0.5, 2.0)
    """Seconds before each further attempt; `()` tries once."""

    def is_at(self, path: Path) -> bool:
        """Tell whether `path` is a file with the known content, or any file if none is known."""
        if not path.is_file():
            return False
        if self.known_hash is None:
            return True
        algorithm, digest = self.known_hash.split(":")
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, algorithm).hexdigest() == digest

    def fetch(self, folder: Path) -> Path:
        """Put the file into `folder` unless it is there; returns its path.

        The bytes go to a temporary file, which takes its final name only when it is complete and
        its hash is right; a failed or interrupted download leaves nothing behind.

        Raises:
            DataError: If the address cannot be reached, answers with an error or with other bytes,
                or the folder cannot be written to; after bounded retries.
        """
        path = folder / self.file
        if self.is_at(path):
            return path
        for pause in (*self.pauses, None):
            fault, is_worth_retrying = self._attempt(folder)
            if fault is None:
                return path
            reason = self._reason(fault)
            if pause is None or not is_worth_retrying:
                break
            _LOGGER.warning("Download of %s failed (%s); trying again.", self.url, reason)
            time.sleep(pause)
        raise DataError(f"{self.url} cannot be downloaded: {reason}") from fault

    def _attempt(self, folder: Path) -> tuple[Exception | None, bool]:
        """Try once; return what went wrong, if anything, and whether it may go better next time."""
        import pooch
        import requests

        try:
            pooch.retrieve(
                self.url, self.known_hash, fname=self.file, path=folder, downloader=self._stream
            )
        except requests.HTTPError as error:
            answer = error.response
            refused = answer is not None and answer.status_code < HTTPStatus.INTERNAL_SERVER_ERROR
            return error, not refused
        except (requests.RequestException, ValueError) as error:  # ValueError: another hash
            return error, True
        except OSError as error:  # the folder: full, or not ours
            return error, False
        return None, False

    def _stream(self, url: str, output_file: str, _pooch: object) -> None:
        """Write what `url` answers to `output_file`; pooch's own way leaves sockets open on errors."""
        import requests
        from tqdm import tqdm

        as_it_is = {"Accept-Encoding": "identity"}  # else a .gz might arrive decompressed
        with requests.get(url, stream=True, timeout=self.timeout, headers=as_it_is) as response:
            response.raise_for_status()
            size = int(response.headers.get("Content-Length", 0)) or None
            bar = tqdm(total=size, unit="B", unit_scale=True, desc=self.file)
            with bar, Path(output_file).open("wb") as stream:
                for block in response.iter_content(BLOCK_BYTES):
                    bar.update(stream.write(block))

    def _reason(self, fault: Exception) -> str:
        """Say in a few words what went wrong; requests' own words for "offline" fill a screen."""
        import requests

        if isinstance(fault, requests.Timeout) or "timed out" in str(fault):
            return f"no answer within {max(self.timeout):g} s"
        if isinstance(fault, requests.exceptions.ChunkedEncodingError):
            return "the connection broke off"
        if isinstance(fault, requests.ConnectionError):
            return "no connection (is this machine offline?)"
        return str(fault)
