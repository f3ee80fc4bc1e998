"""`check_store`: everything wrong with a store and its event log is one finding, and nothing else is."""

import os
import sys
from pathlib import Path

import pytest

from m3po_dagster.doctor.store import OLD_SECONDS, check_store
from m3po_dagster.graph import Head
from m3po_dagster.storage.store import ArtifactStore
from tests.rewritten import rewrite

sys.path.append(str(Path(__file__).parents[1] / "storage"))
from store_samples import NUMBERS, commit, key, numbers


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


def heads_of(*artifacts) -> dict:
    return {(one.key.asset, one.key.partition): Head(one.fingerprint, one.data_version) for one in artifacts}


def check(store, heads, content=True, repair=False):
    return check_store(store, heads, content, repair, lambda done, of: None)


def spoil(path: Path) -> None:
    """Another content of the same size."""
    path.write_bytes(path.read_bytes()[::-1])


def test_a_sound_store_has_one_finding_that_says_so(store):
    first = commit(store)
    second = commit(store, "more", first=first)
    told = []
    found = check_store(store, heads_of(first, second), True, False, lambda done, of: told.append((done, of)))
    (only,) = found.findings
    assert only.level == "ok" and "all 2" in only.what
    assert len(found.survey.whole) == 2 and found.survey.formats == {2: 2} and told == [(1, 2), (2, 2)]
    assert found.survey.bytes == first.manifest.bytes + second.manifest.bytes
    assert found.survey.libraries["pyarrow"] == {first.manifest.libraries["pyarrow"]: 2}


@pytest.mark.parametrize(
    ("spoilt", "quick_sees_it"),
    [("data.parquet", False), ("files/note.txt", False), ("manifest.json", True)],
)
def test_damage_is_found_by_hash_and_repaired_by_setting_it_aside(store, spoilt, quick_sees_it):
    artifact, other = commit(store), commit(store, "more")
    heads = heads_of(artifact, other)
    spoil(artifact.folder / spoilt)
    assert bool(check(store, heads, content=False).survey.damaged) == quick_sees_it
    (found, *_) = check(store, heads).findings
    assert found.level == "problem" and str(artifact.key) in str(found) and "--repair" in found.do
    assert artifact.folder.exists() and store.quarantined() == [], "looking changes nothing"

    repaired = check(store, heads, repair=True)
    assert list(repaired.repaired) == [artifact.key] and len(repaired.quarantine) == 1
    assert [finding.level for finding in repaired.findings] == ["note"]
    gone = check(store, heads)
    assert [(finding.level, finding.about) for finding in gone.findings] == [("problem", "numbers[m3po|s0]")]
    assert "gone from the store" in gone.findings[0].what
    commit(store)
    assert [finding.level for finding in check(store, heads).findings] == ["ok"]


def test_what_dagster_has_with_another_content_is_a_problem(store):
    artifact = commit(store)
    heads = {("numbers", "m3po|s0"): Head(artifact.fingerprint, "0" * 64)}
    (found,) = check(store, heads).findings
    assert found.level == "problem" and "Dagster has content 000000000000" in found.what


def test_no_event_log_is_a_note_and_so_is_what_lies_about(store):
    first = commit(store)
    second = commit(store, "more", first=first)
    (second.folder / "parts").mkdir()
    (second.folder / "parts" / "00000.parquet").write_bytes(b"x")
    (second.folder / "data.parquet.tmp").write_bytes(b"x")
    for code in ("old", "new"):
        with store.open(*key(code=code)) as draft:
            draft.write_part(0, numbers(0), NUMBERS)
    old = store.root / "numbers" / "m3po,s0" / key(code="old")[2]
    for path in old.rglob("*"):
        os.utime(path, (0, path.stat().st_mtime - 2 * OLD_SECONDS))
    (first.folder / "manifest.json").unlink()
    found = check(store, {})
    assert {finding.level for finding in found.findings} == {"note"}
    said = "\n".join(map(str, found.findings))
    assert "its event log knows no artifact" in said
    assert "unfinished: 1 parts" in said and "m3po store gc` removes it" in said and "the next one, goes on" in said
    assert "2 files beside what was committed" in said
    assert "no longer in the store" in said and str(first.key) in said


@pytest.mark.parametrize("spoilt", ["damaged", "of a later format"])
def test_what_is_there_and_can_not_be_used_is_not_told_as_gone_of_what_follows(store, spoilt):
    first = commit(store)
    commit(store, "more", first=first)
    if spoilt == "damaged":
        os.truncate(first.folder / "data.parquet", 10)
    else:
        rewrite(first.folder / "manifest.json", format=99)
    found = check(store, {})
    assert [finding.about for finding in found.findings if finding.level == "problem"] == [str(first.key)]
    assert "no longer in the store" not in "\n".join(map(str, found.findings))


def test_a_later_format_is_a_problem_and_never_set_aside(store):
    artifact = commit(store)
    rewrite(artifact.folder / "manifest.json", format=99)
    found = check(store, {}, repair=True)
    assert found.findings[0].level == "problem" and "upgrade" in str(found.findings[0])
    assert found.repaired == {} and (artifact.folder / "manifest.json").exists()


def test_what_somebody_writes_is_not_set_aside(store):
    artifact = commit(store)
    spoil(artifact.folder / "data.parquet")
    with store.open(*key()) as holder:
        assert holder.committed
        found = check(store, {}, repair=True)
    assert found.repaired == {} and "being written by process" in str(found.findings[0])
