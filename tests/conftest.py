"""Keep tests away from the user's cache, and skip what needs data that is not on this machine."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Two processes of tests, each with as many OpenMP threads as there are cores, wait for each other most of
# the time. Read by torch and BLAS when they are loaded, in child processes too.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Point `RECATTACK_CACHE` at a folder of this session, for child processes too."""
    folder = tmp_path_factory.mktemp("recattack-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECATTACK_CACHE", str(folder))
        yield folder


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `real_data` where the published data sets are absent."""
    if item.get_closest_marker("real_data") is None:
        return
    folder = os.environ.get("RECATTACK_DATA")
    if folder is None:
        pytest.skip(
            "requires RECATTACK_DATA, the folder with the published data sets; it is not set"
        )
    if not Path(folder).is_dir():
        pytest.skip(
            f"requires RECATTACK_DATA, the folder with the published data sets; no {folder}"
        )
