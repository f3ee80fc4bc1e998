"""A store to write studies into."""

import pytest

from tests.lineage.lineage_world import Wanted, World


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    # Waiting for the disk at every commit is most of the time, and no crash is tested here.
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    return World(tmp_path / "store")


@pytest.fixture
def wanted() -> Wanted:
    return Wanted()
