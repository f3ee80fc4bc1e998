"""What a step does about an object that it found damaged: by what the object turns out to be, read again in full."""

import sys
from pathlib import Path

import dagster as dg
import pytest

from m3po_dagster.materialise import _undamaged
from m3po_dagster.resources.study import StoreResource
from m3po_dagster.storage.errors import Damaged
from m3po_dagster.storage.store import ArtifactStore

sys.path.append(str(Path(__file__).parent / "storage"))
from store_samples import commit, key


class Attempt:
    """Finds an object damaged the first `times`, then gives a result."""

    def __init__(self, times: int) -> None:
        self.left, self.made = times, 0

    def __call__(self) -> str:
        self.made += 1
        if self.left:
            self.left -= 1
            raise Damaged("data.parquet", key(), "columns ['value'] are not what was committed")
        return "made"


@pytest.fixture
def root(tmp_path) -> str:
    return str(tmp_path / "store")


def test_an_object_that_is_whole_after_all_is_read_once_more(root):
    commit(ArtifactStore(root))
    attempt, said = Attempt(1), []
    assert _undamaged(attempt, ("scores", "s0"), StoreResource(root=root), said.append) == "made"
    assert attempt.made == 2 and "it is whole, read again in full" in said[0]
    assert ArtifactStore(root).quarantined() == []


def test_one_that_is_found_damaged_again_and_is_whole_is_never_called_gone(root):
    commit(ArtifactStore(root))
    attempt = Attempt(9)
    with pytest.raises(dg.Failure, match="it is whole, read again in full: check this machine") as met:
        _undamaged(attempt, ("scores", "s0"), StoreResource(root=root), lambda line: None)
    assert attempt.made == 2 and not met.value.metadata, "nothing is lost that could be made again"


@pytest.mark.parametrize("there", [True, False], ids=["damaged", "gone"])
def test_one_that_is_damaged_or_gone_is_lost(root, there):
    if there:
        path = commit(ArtifactStore(root)).folder / "data.parquet"
        path.write_bytes(path.read_bytes()[::-1])
    attempt = Attempt(9)
    with pytest.raises(dg.Failure, match="It was set aside in" if there else "It is gone") as met:
        _undamaged(attempt, ("scores", "s0"), StoreResource(root=root), lambda line: None)
    assert attempt.made == 1 and met.value.metadata
    assert len(ArtifactStore(root).quarantined()) == there
