"""A store to write studies into, and one study in it."""

import pytest

from tests.lineage.lineage_world import Wanted, World


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path / "store")


@pytest.fixture
def wanted() -> Wanted:
    return Wanted()
