"""Garbage collection: removes what nobody needs, and nothing else."""

import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_samples import NUMBERS, commit, key, numbers

from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.collect import reachable
from m3po_dagster.storage.manifest import InputRef
from m3po_dagster.storage.names import ArtifactKey
from m3po_dagster.storage.store import ArtifactStore


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store")


def keys(store: ArtifactStore) -> set[ArtifactKey]:
    return {artifact.key for artifact in store.list()}


def test_an_adapter_keeps_all_it_came_from(store):
    source = commit(store, "source_dataset", "")
    candidates = commit(store, "candidates", "s0", source=source)
    scores = [commit(store, name, "s0", candidates=candidates) for name in ("mas_table", "logprob_table")]
    pairs = commit(store, "preference_pairs", "m3po|s0", mas=scores[0], logp=scores[1])
    adapter = commit(store, "adapter", "m3po|0", pairs=pairs)
    unused = commit(store, "preference_pairs", "vanilla|s0", mas=scores[0])
    old_scores = commit(store, "mas_table", "s0", "old", candidates=candidates)
    everything = keys(store)

    would = store.gc(set(), dry_run=True, older_than=0)
    assert {removal.key for removal in would} == {unused.key, old_scores.key}
    assert sum(removal.bytes for removal in would) == sum(
        path.stat().st_size for gone in (unused, old_scores) for path in gone.folder.rglob("*") if path.is_file()
    )
    assert keys(store) == everything

    assert store.gc(set(), dry_run=False, older_than=0) == would
    assert keys(store) == everything - {unused.key, old_scores.key}
    assert adapter.key in keys(store) and not unused.folder.exists()
    assert store.gc(set(), dry_run=False, older_than=0) == []


def test_what_is_current_keeps_all_it_came_from(store):
    first, other = commit(store, "candidates", "s0"), commit(store, "candidates", "s1")
    scores = commit(store, "mas_table", "s0", candidates=first)
    gone = store.gc({tuple(scores.key)}, dry_run=False, older_than=0)
    assert [removal.key for removal in gone] == [other.key]
    assert keys(store) == {first.key, scores.key}


def test_young_things_and_work_under_way_stay(store):
    old, young = commit(store, code="old"), commit(store, code="young")
    with store.open(*key(code="left")) as draft:
        draft.write_part(0, numbers(0), NUMBERS)
    with store.open(*key(code="busy")) as busy:
        busy.write_part(0, numbers(0), NUMBERS)
        assert store.gc(set(), dry_run=False) == []
        assert {draft.key for draft in store.drafts()} == {key(code="left"), key(code="busy")}
        removed = store.gc({young.key}, dry_run=False, older_than=0)
        assert {(removal.key, removal.reason.split()[0]) for removal in removed} == {
            (old.key, "neither"),
            (key(code="left"), "abandoned"),
        }
        assert busy.parts() == [0] and busy.read_parts().equals(numbers(0))
    assert keys(store) == {young.key}


def test_a_draft_counts_by_its_last_change(store):
    with store.open(*key()) as draft:
        draft.write_part(0, numbers(0), NUMBERS)
    part = store.root / "numbers" / "m3po,s0" / key()[2] / "parts" / "00000.parquet"
    os.utime(part, (time.time() - 7200, time.time() - 7200))
    (info,) = store.drafts()
    assert (info.parts, info.bytes) == (1, part.stat().st_size)
    assert [removal.bytes for removal in store.gc(set(), dry_run=False, older_than=3600)] == [info.bytes]
    assert list(store.drafts()) == [] and not part.parent.parent.exists()


def test_a_draft_that_somebody_worked_on_since_it_was_looked_at_stays(store, monkeypatch):
    with store.open(*key()) as draft:
        draft.write_part(0, numbers(0), NUMBERS)
    part = store.root / "numbers" / "m3po,s0" / key()[2] / "parts" / "00000.parquet"
    os.utime(part, (time.time() - 7200, time.time() - 7200))
    assert [removal.key for removal in store.gc(set(), older_than=3600)] == [key()]
    lock = store._disk.lock

    def worked_on(folder: str):
        monkeypatch.undo()
        with store.open(*key()) as again:
            again.write_part(1, numbers(1), NUMBERS)
        return lock(folder)

    monkeypatch.setattr(store._disk, "lock", worked_on)
    assert store.gc(set(), dry_run=False, older_than=3600) == []
    with store.open(*key()) as draft:
        assert draft.parts() == [0, 1]


def test_a_dry_run_writes_nothing_and_leaves_out_what_somebody_holds(store, monkeypatch):
    old = commit(store, code="old")
    with store.open(*key(code="busy")) as busy:
        busy.write_part(0, numbers(0), NUMBERS)
        monkeypatch.setattr(store._disk, "lock", None)  # any call of it fails
        assert [removal.key for removal in store.gc(set(), older_than=0)] == [old.key]


def test_leftovers_of_a_killed_commit_go_and_the_artifact_stays(store):
    artifact = commit(store)
    (artifact.folder / "parts").mkdir()
    (artifact.folder / "parts" / "00000.parquet").write_bytes(b"left")
    removed = store.gc({artifact.key}, dry_run=False, older_than=0)
    assert [(removal.key, removal.bytes) for removal in removed] == [(artifact.key, 4)]
    assert store.find(*artifact.key).table().equals(numbers(1))
    assert store.gc({artifact.key}, older_than=0) == []


def test_what_is_not_the_stores_is_left_alone(store):
    commit(store)
    strangers = [
        store.root / ".cache" / "x",
        store.root / "notes.txt",
        store.root / "numbers" / "m3po,s0" / "mine" / "x",
    ]
    for path in strangers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert len(store.gc(set(), dry_run=False, older_than=0)) == 1
    assert all(path.exists() for path in strangers)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return commit(ArtifactStore(tmp_path_factory.mktemp("template")))


@settings(max_examples=50)
@given(st.data())
def test_reachable_is_the_closure_of_what_is_kept_and_of_adapters(template, data):
    """Against the plain definition: a needed one is a root, or an input of a needed one."""
    size = data.draw(st.integers(1, 8))
    assets = data.draw(
        st.lists(st.sampled_from(["candidates", "adapter", "lora_adapter"]), min_size=size, max_size=size)
    )
    names = [ArtifactKey(asset, str(index), "0" * 64) for index, asset in enumerate(assets)]
    edges = [data.draw(st.sets(st.integers(0, index), max_size=3)) - {index} for index in range(size)]
    kept = {names[index] for index in data.draw(st.sets(st.integers(0, size - 1)))}
    artifacts = []
    for name, inputs in zip(names, edges, strict=True):
        refs = {str(i): InputRef(**names[i]._asdict(), data_version="v") for i in inputs}
        artifacts.append(Artifact(name, template.manifest.model_copy(update={"inputs": refs}), template._disk))
    needed = {name for name in names if name in kept or "adapter" in name.asset}
    for index in reversed(range(size)):  # inputs come before what is made from them
        if names[index] in needed:
            needed |= {names[i] for i in edges[index]}
    assert reachable(artifacts, kept) == needed
