"""Keep these tests away from the user's own data and cache, unless they ask for real data."""

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Point the user cache at an empty folder, and skip or isolate from `RECATTACK_DATA`."""
    cache = tmp_path / "cache"
    monkeypatch.setattr("recattack_gym.datasets.source.cache_folder", lambda: cache)
    if request.node.get_closest_marker("real_data") is None:
        monkeypatch.delenv("RECATTACK_DATA", raising=False)
    elif not Path(os.environ.get("RECATTACK_DATA") or "/nowhere").is_dir():
        pytest.skip("RECATTACK_DATA names no folder with the published data sets")
    return cache
