"""Downloads against a server on this machine that also cuts off, corrupts, stalls and refuses.

After every failure nothing half-written may remain, and the next attempt must work.
"""

import hashlib
import http.server
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from recattack_gym.core.errors import DataError, DatasetNotFoundError
from recattack_gym.datasets import Counts, FileSource
from recattack_gym.datasets.download import Download
from recattack_gym.datasets.filmtrust import FILMTRUST, read_publisher
from recattack_gym.datasets.source import FileFormat

CONTENT = b"".join(f"{n % 40} {n} 3.5\n".encode() for n in range(40_000))
COUNTS = Counts(40, 40_000, 40_000)
HASH = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `CONTENT`, once for each planned behaviour, then well."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: list[str] = []
        self.n_requests = 0
        self.stalls = threading.Event()
        self.release = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/ratings.txt"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing about clients that give up; that is what these tests make them do."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the server plans."""

    server: Server

    def do_GET(self) -> None:
        self.server.n_requests += 1
        behaviour = self.server.plan.pop(0) if self.server.plan else "good"
        if behaviour.isdigit():
            self.send_error(int(behaviour))
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        half = len(CONTENT) // 2
        if behaviour == "good":
            self.wfile.write(CONTENT)
        elif behaviour == "corrupt":
            self.wfile.write(CONTENT[:half] + b"x" + CONTENT[half + 1 :])
        else:
            self.wfile.write(CONTENT[:half])
            self.wfile.flush()
            if behaviour == "stall":
                self.server.stalls.set()
                self.server.release.wait(30)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "*")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


def a_download(url: str, known_hash: str | None = HASH) -> Download:
    return Download(
        url=url, file="ratings.txt", known_hash=known_hash, timeout=(2.0, 0.3), pauses=(0.01, 0.01)
    )


def a_source(download: Download) -> FileSource:
    return replace(
        FILMTRUST,
        counts=MappingProxyType({None: COUNTS}),
        formats=(FileFormat(files=("ratings.txt",), read=read_publisher),),
        downloads=(download,),
    )


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_dataset_is_downloaded_once(server: Server, own_cache: Path) -> None:
    source = a_source(a_download(server.url))
    first, second = source.load(None, None), source.load(None, None)
    assert first.log.content_hash == second.log.content_hash
    assert server.n_requests == 1
    assert left_behind(own_cache) == ["ratings.txt"]
    assert source.locate() == source.fetch() == own_cache / "filmtrust" / "ratings.txt"


def test_the_terms_are_shown_before_the_download(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    a_source(a_download(server.url)).load(None, None)
    assert "Downloading filmtrust. Terms of use: No explicit licence" in caplog.text


def test_progress_is_shown(
    server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    a_download(server.url).fetch(tmp_path)
    assert "100%" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["cut", "corrupt", "stall", "500", "503"])
def test_a_passing_fault_is_survived(server: Server, tmp_path: Path, fault: str) -> None:
    server.plan = [fault, fault]
    path = a_download(server.url).fetch(tmp_path)
    assert path.read_bytes() == CONTENT
    assert left_behind(tmp_path) == ["ratings.txt"]
    assert server.n_requests == 3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("cut", "the connection broke off"),
        ("corrupt", "hash"),
        ("stall", "no answer within 2 s"),
        ("500", "500 Server Error"),
    ],
)
def test_a_lasting_fault_leaves_nothing_behind_and_a_later_call_works(
    server: Server, own_cache: Path, fault: str, reason: str
) -> None:
    source = a_source(a_download(server.url))
    server.plan = [fault] * 3
    with pytest.raises(DatasetNotFoundError, match=reason) as caught:
        source.load(None, None)
    assert server.n_requests == 3
    assert "librec" in str(caught.value)
    assert str(own_cache / "filmtrust") in str(caught.value)
    assert left_behind(own_cache) == []
    server.release.set()
    assert len(source.load(None, None).log) == COUNTS.n_events


def test_a_page_that_is_not_there_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    server.plan = ["404"]
    with pytest.raises(DataError, match="404"):
        a_download(server.url).fetch(tmp_path)
    assert server.n_requests == 1
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("fault", ["corrupt", "cut"])
def test_without_a_published_hash_the_counts_decide(
    server: Server, own_cache: Path, fault: str
) -> None:
    source = a_source(a_download(server.url, known_hash=None))
    server.plan = [fault] * 3
    with pytest.raises(DataError):
        source.load(None, None)
    assert left_behind(own_cache) == []
    server.plan = []
    assert Counts.of(source.load(None, None).log) == COUNTS


def test_a_cached_file_that_was_damaged_is_downloaded_again(
    server: Server, own_cache: Path
) -> None:
    source = a_source(a_download(server.url))
    path = source.fetch()
    path.write_bytes(CONTENT[: CONTENT.index(b"\n") + 1])
    assert source.locate() is None
    assert len(source.load(None, None).log) == COUNTS.n_events
    assert left_behind(own_cache) == ["ratings.txt"]


def test_a_users_own_file_is_never_downloaded_over(server: Server, tmp_path: Path) -> None:
    mine = tmp_path / "ratings.txt"
    mine.write_bytes(CONTENT[: CONTENT.index(b"\n") + 1])
    with pytest.raises(
        DataError, match="has 1 users, 1 items, 1 events; filmtrust must have 40 users"
    ):
        a_source(a_download(server.url)).load(tmp_path, None)
    assert server.n_requests == 0
    assert mine.read_bytes() == CONTENT[: CONTENT.index(b"\n") + 1]


def test_a_machine_without_network_hears_so_quickly() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/ratings.txt"
    source = a_source(replace(a_download(url), pauses=Download(url=url, file="x").pauses))
    start = time.monotonic()
    with pytest.raises(DatasetNotFoundError, match="no connection \\(is this machine offline"):
        source.load(None, None)
    assert time.monotonic() - start < 10


def test_a_cache_that_cannot_be_written_is_named(server: Server, own_cache: Path) -> None:
    own_cache.write_text("a file where the folder should be")
    with pytest.raises(DatasetNotFoundError, match="cannot be downloaded"):
        a_source(a_download(server.url)).load(None, None)


def test_a_full_disk_is_named_and_leaves_nothing_behind(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pooch.core.shutil.move", no_space)
        with pytest.raises(DataError, match="No space left on device"):
            a_download(server.url).fetch(tmp_path)
    assert left_behind(tmp_path) == []
    assert a_download(server.url).fetch(tmp_path).read_bytes() == CONTENT


def test_an_interrupted_download_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    """Ctrl-C half-way, in a process of its own."""
    server.plan = ["stall"]
    code = (
        "import sys; from pathlib import Path\n"
        "from recattack_gym.datasets.download import Download\n"
        "Download(url=sys.argv[1], file='ratings.txt', known_hash=sys.argv[2]).fetch(Path(sys.argv[3]))"
    )
    child = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", code, server.url, HASH, str(tmp_path)],
        stderr=subprocess.PIPE,
        # a shell lets commands in the background, and so their children, ignore SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert server.stalls.wait(20)
    deadline = time.monotonic() + 10
    while not left_behind(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left_behind(tmp_path)
    child.send_signal(signal.SIGINT)
    _, output = child.communicate(timeout=20)
    assert b"KeyboardInterrupt" in output
    assert left_behind(tmp_path) == []
    server.release.set()
    assert a_download(server.url).fetch(tmp_path).read_bytes() == CONTENT
