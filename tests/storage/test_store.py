"""The store's life of an artifact: parts, commit, reuse; and what it refuses."""

import json
import logging
import os

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_samples import NUMBERS, PARTS, commit, key, numbers, reference, write_in_parts

from m3po_dagster.home import store_root
from m3po_dagster.storage.content import table_hash
from m3po_dagster.storage.errors import Busy, SchemaError, StoreError
from m3po_dagster.storage.fingerprint import file_sha256
from m3po_dagster.storage.manifest import FORMAT
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.storage.tables import FILTERED_INSTRUCTIONS
from tests.rewritten import rewrite


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store")


def test_an_artifact_is_found_only_once_it_is_committed(store):
    with store.open(*key()) as draft:
        draft.write_part(0, numbers(0), NUMBERS)
        assert store.find(*key()) is None
    assert store.find(*key()) is None and list(store.list()) == []
    made = write_in_parts(store, lambda index: None)
    found = store.find(*key())
    assert found.manifest == made.manifest and found.key == key()
    assert found.table().equals(pa.concat_tables([numbers(index) for index in range(PARTS)]))
    assert [artifact.key for artifact in store.list()] == [key()]
    assert [artifact.key for artifact in store.list("other")] == []


def test_only_the_manifest_tables_and_files_stay(store):
    artifact = write_in_parts(store, lambda index: None)
    files = sorted(str(path.relative_to(artifact.folder)) for path in artifact.folder.rglob("*") if path.is_file())
    assert files == ["data.parquet", "files/note.txt", "manifest.json"]
    assert artifact.folder == store.root / "numbers" / "m3po,s0" / artifact.fingerprint


def test_the_manifest_tells_what_where_from_and_with_what(store):
    first = commit(store, "base")
    second = commit(store, "numbers", origin=first)
    manifest = json.loads(second.path("data.parquet").with_name("manifest.json").read_text())
    assert manifest["inputs"] == {"origin": reference(first)}
    assert manifest["settings"] == {"rows": 3} and manifest["code_version"] == "1"
    assert manifest["tables"]["data"]["rows"] == 3
    assert manifest["tables"]["data"]["bytes"] == second.path("data.parquet").stat().st_size
    columns = manifest["tables"]["data"]["columns"]
    assert {name: column["type"] for name, column in columns.items()} == {"name": "string", "value": "double"}
    assert manifest["tables"]["data"]["hash"] == table_hash(second.table())
    assert manifest["files"]["files/note.txt"]["sha256"] == file_sha256(second.path("files/note.txt"))
    assert manifest["libraries"]["pyarrow"] == pa.__version__
    assert {"torch", "transformers", "trl", "peft", "open_clip_torch", "dagster"} <= set(manifest["libraries"])


def test_the_data_version_is_the_content_and_nothing_else(store):
    def made(code: str, value: float, note: str, metadata: dict) -> str:
        with store.open(*key(code=code)) as draft:
            (draft.folder() / "note.txt").write_text(note)
            table = numbers(0).set_column(1, "value", pa.array([value] * 3))
            return draft.commit({"data": (table, NUMBERS)}, code_version=code, metadata=metadata).data_version

    base = made("1", 0.5, "x", {"seconds": 1})
    assert made("2", 0.5, "x", {"seconds": 2}) == base
    assert len({base, made("3", 0.25, "x", {}), made("4", 0.5, "y", {})}) == 3


def test_metadata_is_kept_and_has_no_nan(store):
    with store.open(*key()) as draft:
        metadata = {"rate": 2.5, "loss": float("nan"), "worst": [float("inf"), 1], "device": "cpu"}
        draft.commit({"data": (numbers(0), NUMBERS)}, code_version="1", metadata=metadata)
    assert store.find(*key()).manifest.metadata == {"rate": 2.5, "loss": None, "worst": [None, 1], "device": "cpu"}


def test_parquet_is_as_documented_and_other_tools_read_it(store):
    rows = 40_000
    table = pa.table({"name": [f"{i}" for i in range(rows)], "value": [float(i) for i in range(rows)]}, NUMBERS.schema)
    with store.open(*key(partition="a,b|c d")) as draft:
        path = draft.commit({"data": (table, NUMBERS)}, code_version="1").path("data.parquet")
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [16_384, 16_384, 7_232]
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert file.schema_arrow.field("value").metadata[b"description"] == b"the number"
    counted = duckdb.sql(f"SELECT count(*), sum(value), max(name) FROM read_parquet('{path}')").fetchall()
    assert counted == [(rows, sum(range(rows)), "9999")]


def test_nested_columns_survive_parts_and_commit(store):
    rows = [
        {
            "prompt_id": f"p{index}",
            "image_uri": "a.png",
            "image_sha256": "0",
            "width": 8,
            "height": 8,
            "messages": [{"role": "user", "text": "What is it?"}] * index,
            "reference": None,
            "source": "s",
            "source_id": "1",
            "turn": 0,
            "image_name": None,
        }
        for index in range(3)
    ]
    table = pa.Table.from_pylist(rows, schema=FILTERED_INSTRUCTIONS.schema)
    with store.open(*key()) as draft:
        draft.write_part(0, table.slice(0, 2), FILTERED_INSTRUCTIONS.schema)
        draft.write_part(1, table.slice(2), FILTERED_INSTRUCTIONS)
        artifact = draft.commit({"data": (draft.read_parts(), FILTERED_INSTRUCTIONS)}, code_version="1")
    read = artifact.table()
    assert read.schema == FILTERED_INSTRUCTIONS.schema and read.to_pylist() == rows
    assert {field.name: field.metadata[b"description"].decode() for field in read.schema} == (
        FILTERED_INSTRUCTIONS.describe()
    )
    assert artifact.manifest.tables["data"].hash == table_hash(table)


def test_columns_come_as_asked(store):
    artifact = commit(store)
    assert artifact.table(columns=["value"]).column_names == ["value"]
    assert artifact.table(columns=["value", "name"]).column_names == ["value", "name"]
    for wrong in (
        lambda: artifact.table("other"),
        lambda: artifact.table(columns=["other"]),
        lambda: artifact.path("o"),
    ):
        with pytest.raises(StoreError, match="it has"):
            wrong()


def test_a_second_writer_hears_who_is_at_work(store):
    with store.open(*key()) as draft:
        with pytest.raises(Busy, match=f"process {os.getpid()} on .* since 20") as caught, store.open(*key()):
            pass
        assert caught.value.pid == os.getpid()
        with store.open(*key(code="2")):
            pass
        draft.write_part(0, numbers(0), NUMBERS)
    with store.open(*key()) as draft:
        assert draft.parts() == [0]


def test_nothing_is_written_twice_or_after_the_end(store):
    artifact = commit(store)
    with store.open(*key()) as draft:
        assert draft.committed.manifest == artifact.manifest
        for write in (lambda: draft.write_part(0, numbers(0), NUMBERS), draft.parts, draft.folder):
            with pytest.raises(StoreError, match="never written twice"):
                write()
    with store.open(*key(code="2")) as draft:
        pass
    with pytest.raises(StoreError, match="closed"):
        draft.write_part(0, numbers(0), NUMBERS)
    assert store.find(*key()).manifest == artifact.manifest


def test_parts_cut_another_way_are_not_taken_for_these(store, caplog):
    with store.open(*key()) as draft:
        assert draft.parts(plan={"rows": 3}) == []
        draft.write_part(1, numbers(1), NUMBERS)
    with store.open(*key()) as draft:
        assert draft.parts(plan={"rows": 3}) == [1]
    with store.open(*key()) as draft:
        assert draft.parts(plan={"rows": 4}) == []
    assert "cut in another way" in caplog.text
    with store.open(*key()) as draft:
        assert draft.parts(plan={"rows": 3}) == []


def damage(path, how: str) -> None:
    content = path.read_bytes()
    if how == "another":
        pq.write_table(numbers(7), path)
    else:
        path.write_bytes({"truncated": content[:-20], "empty": b""}[how])


@pytest.mark.parametrize("how", ["truncated", "empty", "another"])
def test_a_damaged_part_is_made_again(store, caplog, how):
    undisturbed = write_in_parts(ArtifactStore(store.root.with_name("other")), lambda index: None)
    with store.open(*key()) as draft:
        draft.parts(plan={"parts": PARTS})
        for index in range(2):
            draft.write_part(index, numbers(index), NUMBERS)
    damage(store.root / "numbers" / "m3po,s0" / key()[2] / "parts" / "00001.parquet", how)
    made = []
    with caplog.at_level(logging.WARNING):
        artifact = write_in_parts(store, made.append)
    assert made == [1, 2, 3] and "00001.parquet is damaged" in caplog.text
    assert artifact.data_version == undisturbed.data_version


@pytest.mark.parametrize("how", ["truncated", "no JSON", "field missing", "of another", "table gone", "table short"])
def test_a_commit_that_is_not_whole_is_none_and_is_made_again(store, caplog, how):
    artifact = commit(store)
    manifest, table = artifact.folder / "manifest.json", artifact.folder / "data.parquet"
    fields = json.loads(manifest.read_text())
    if how == "truncated":
        damage(manifest, "truncated")
    elif how == "no JSON":
        manifest.write_bytes(b"\xff")
    elif how == "field missing":
        manifest.write_text(json.dumps({name: value for name, value in fields.items() if name != "tables"}))
    elif how == "of another":
        rewrite(manifest, partition="m3po|s1")
    elif how == "table gone":
        table.unlink()
    else:
        damage(table, "truncated")
    assert store.find(*key()) is None
    assert str(manifest) in caplog.text and "does not count as committed" in caplog.text
    assert [draft.key for draft in store.drafts()] == [key()]
    with store.open(*key()):
        assert not manifest.exists()
    assert commit(store).data_version == artifact.data_version


def test_of_a_commit_that_does_not_count_is_warned_once_and_of_another_reason_again(store, caplog):
    artifact = commit(store)
    manifest, table = artifact.folder / "manifest.json", artifact.folder / "data.parquet"
    damage(table, "truncated")
    for _ in range(4):
        assert store.find(*key()) is None
    manifest.write_bytes(b"no JSON")
    for _ in range(4):
        assert store.find(*key()) is None
    warned = [record.getMessage() for record in caplog.records if "does not count" in record.getMessage()]
    assert len(warned) == 2 and len(set(warned)) == 2 and all(str(manifest) in line for line in warned)


@pytest.mark.parametrize("columns", [None, ["value"]])
def test_no_flipped_byte_changes_what_is_read(store, columns):
    artifact = commit(store)
    path, expected = artifact.path("data.parquet"), artifact.table(columns=columns)
    content = path.read_bytes()
    refused, places = 0, range(0, len(content), 2)
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            assert artifact.table(columns=columns).equals(expected)
        except StoreError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > len(places) / 4


def test_no_flipped_byte_changes_a_part(store):
    with store.open(*key()) as draft:
        draft.write_part(0, numbers(0), NUMBERS)
    path = store.root / "numbers" / "m3po,s0" / key()[2] / "parts" / "00000.parquet"
    content = path.read_bytes()
    remade, places = 0, range(0, len(content), 3)
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 128]) + content[place + 1 :])
        with store.open(*key()) as draft:
            if draft.parts():
                assert draft.read_parts().equals(numbers(0))
            else:
                assert not path.exists()
                remade += 1
    assert remade > len(places) / 4


def test_what_a_newer_version_wrote_is_left_alone(store):
    manifest = commit(store).folder / "manifest.json"
    manifest.write_text(json.dumps({"format": FORMAT + 1}))
    with pytest.raises(StoreError, match="upgrade"):
        store.find(*key())
    with pytest.raises(StoreError, match="upgrade"), store.open(*key()):
        pass
    assert manifest.exists()


def test_a_bad_table_is_never_committed(store):
    twice = pa.concat_tables([numbers(0), numbers(0)])
    with store.open(*key()) as draft:
        with pytest.raises(SchemaError, match=r"numbers: key \(name='0:0'\) comes 2 times"):
            draft.write_part(0, twice, NUMBERS)
        with pytest.raises(SchemaError, match="key"):
            draft.commit({"data": (twice, NUMBERS)}, code_version="1")
        with pytest.raises(StoreError, match="nothing to commit"):
            draft.commit(code_version="1")
        assert draft.parts() == []
    assert store.find(*key()) is None


def test_a_folder_begins_empty_and_holds_only_its_own_files(store, tmp_path):
    with store.open(*key()) as draft:
        (draft.folder() / "checkpoint").write_text("half")
    with store.open(*key()) as draft:
        assert list(draft.folder().iterdir()) == []
        (draft.folder() / "deep").mkdir()
        (draft.folder() / "deep" / "weights").write_text("whole")
        (tmp_path / "outside").write_text("x")
        (draft.folder() / "link").symlink_to(tmp_path / "outside")
        with pytest.raises(StoreError, match="link"):
            draft.commit(code_version="1")
        (draft.folder() / "link").unlink()
        for name in ("parts", "scratch", "lock", "../x"):
            with pytest.raises(StoreError, match="folder"):
                draft.folder(name)
        artifact = draft.commit(code_version="1")
    assert list(artifact.manifest.files) == ["files/deep/weights"]
    assert (artifact.path("files") / "deep" / "weights").read_text() == "whole"


def test_scratch_is_left_to_the_next_attempt_and_gone_at_commit(store):
    with store.open(*key()) as draft:
        (draft.scratch("whole") / "deep").mkdir()
        (draft.scratch("whole") / "deep" / "checkpoint").write_text("step 7")
    with store.open(*key()) as draft:
        assert (draft.scratch("whole") / "deep" / "checkpoint").read_text() == "step 7"
        (draft.folder() / "weights").write_text("whole")
        artifact = draft.commit(code_version="1")
    assert list(artifact.manifest.files) == ["files/weights"]
    assert sorted(path.name for path in artifact.folder.iterdir()) == ["files", "manifest.json"]


def test_prefixes_find_one_artifact_or_say_why_not(store):
    first, second = commit(store, code="1"), commit(store, code="2")
    assert store.resolve(first.fingerprint[:12]).key == first.key
    with pytest.raises(StoreError, match="no artifact"):
        store.resolve("0000000")
    with pytest.raises(StoreError, match="too short"):
        store.resolve(first.fingerprint[:3])
    twin = store.root / "numbers" / "m3po,s1" / first.fingerprint
    twin.parent.mkdir()
    os.rename(first.folder, twin)
    rewrite(twin / "manifest.json", partition="m3po|s1")
    with store.open("numbers", "m3po|s0", first.fingerprint) as draft:
        draft.commit({"data": (numbers(1), NUMBERS)}, code_version="1")
    with pytest.raises(StoreError, match=r"fits 2 artifacts: numbers\[m3po\|s0\] .*, numbers\[m3po\|s1\]"):
        store.resolve(first.fingerprint[:8])
    assert store.resolve(second.fingerprint).key == second.key


def test_a_root_is_a_local_folder_or_its_url(tmp_path, monkeypatch):
    made = commit(ArtifactStore(tmp_path / "a b%20c"))
    assert ArtifactStore((tmp_path / "a b%20c").as_uri()).find(*made.key) is not None
    monkeypatch.chdir(tmp_path)
    assert ArtifactStore("a b%20c").root == tmp_path / "a b%20c"
    for url in ("mock://x", "nonsense://x", "https://host/x", "S3://bucket/x"):
        with pytest.raises(StoreError, match=rf"{url} .*; give a local folder, or s3://bucket/prefix$"):
            ArtifactStore(url)


@pytest.mark.parametrize("root", ["s3:/bucket/x", "file:/folder"])
def test_a_url_with_one_slash_is_refused_and_never_made_a_folder(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("M3PO_STORE", root)
    for given in (root, store_root()):
        with pytest.raises(StoreError, match=rf"^{root} has one slash where a URL has two: write s3://bucket/prefix"):
            ArtifactStore(given)
    assert ArtifactStore(f"./{root}").root == tmp_path / root


def test_unsafe_names_never_touch_the_disk(store):
    for wrong in (key(partition="../x"), key(asset="../x"), ("numbers", "s0", "../x")):
        with pytest.raises(StoreError):
            store.find(*wrong)
        with pytest.raises(StoreError), store.open(*wrong):
            pass
    assert not store.root.exists()
