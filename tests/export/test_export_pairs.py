"""What holds for every layout: whole or not at all, nothing overwritten, nothing lost silently, bounded memory."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
import pytest
from export_world import ExportWorld, asked, nothing
from hypothesis import given, settings
from hypothesis import strategies as st

from m3po_dagster.datasets.images import DatasetImages
from m3po_dagster.export import data_files
from m3po_dagster.export.folder import ExportError
from m3po_dagster.export.pairs import FORMATS, export_pairs, image_mode
from m3po_dagster.export.records import Tally, records_of
from m3po_dagster.method.prompt import Message

LAYOUTS = sorted(FORMATS)


def write(world, name, out, advance=nothing):
    layout = FORMATS[name]
    return export_pairs(world.shards, world.study, layout, image_mode(layout, None), out, advance)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_that_holds_anything_is_left_as_it_is(world, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(ExportError, match="holds files already"):
        write(world, name, out)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["mine.txt"]


def test_an_empty_folder_and_a_new_one_are_filled_and_a_file_is_refused(world, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert write(world, "trl", tmp_path / "empty").written == 4
    assert write(world, "trl", tmp_path / "new" / "below").written == 4
    with pytest.raises(ExportError, match="no folder"):
        write(world, "trl", tmp_path / "file")


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_interrupted_leaves_nothing(world, tmp_path, name):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(world, name, tmp_path / "out", stop)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_pair_written_or_dropped(world, tmp_path):
    seen = []
    write(world, "rlaif-v", tmp_path / "out", lambda done, total: seen.append((done, total)))
    assert seen == [(number, 4) for number in range(1, 5)]


def test_images_that_are_missing_changed_or_broken_are_counted_apart(tmp_path):
    world = ExportWorld(
        tmp_path,
        {
            "s0": [
                asked("A?"),
                asked("B?", image="turned.jpg"),
                asked("C?", image="nested/grey.webp"),
                asked("D?", image="broken.png"),
            ]
        },
    )
    (world.images / "turned.jpg").unlink()
    (world.images / "nested" / "grey.webp").write_bytes(b"another file")
    tally = write(world, "trl", tmp_path / "out")
    assert (tally.written, dict(tally.dropped)) == (
        1,
        {
            "its image file is missing": 1,
            "its image file is no longer the one that the pair was made with": 1,
            "its image file can't be decoded": 1,
        },
    )


def test_pairs_without_a_rejected_answer_are_no_export(tmp_path):
    world = ExportWorld(tmp_path, {"s0": [asked("A?", rejected=None), asked("B?", rejected=None)]})
    with pytest.raises(ExportError, match="'m3po' selects single answers, no pairs: none of its 2 has a rejected"):
        write(world, "trl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_where_no_folder_can_be_made_is_one_sentence_that_names_the_option(world, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (Path("/proc/x"), file / "below"):
        with pytest.raises(ExportError, match=rf"^--out {out} can't be written \(.*\): name another folder$"):
            write(world, "trl", out)
    assert file.read_text() == "mine"


def test_a_study_without_the_source_is_an_error_not_a_drop(world, tmp_path):
    sources = {"other": world.study.dataset.sources["pictures"]}
    dataset = world.study.dataset.model_copy(update={"sources": sources})
    study, layout = world.study.model_copy(update={"dataset": dataset}), FORMATS["trl"]
    with pytest.raises(ExportError, match="source 'pictures' is none of the study's"):
        export_pairs(world.shards, study, layout, "embed", tmp_path / "out", nothing)


@pytest.mark.parametrize(
    ("name", "mode"), [("trl", "copy"), ("llama-factory", "embed"), ("ms-swift", "embed"), ("rlaif-v", "reference")]
)
def test_an_image_mode_that_the_layout_has_not_is_refused(name, mode):
    with pytest.raises(ExportError, match=f"--images {mode}: {name} takes"):
        image_mode(FORMATS[name], mode)


@pytest.mark.parametrize(("limit", "groups"), [("ROW_GROUP_ROWS", [2, 2, 1]), ("ROW_GROUP_BYTES", [1, 1, 1, 1, 1])])
def test_a_row_group_is_all_that_is_held(tmp_path, monkeypatch, limit, groups):
    monkeypatch.setattr(data_files, limit, 2 if limit == "ROW_GROUP_ROWS" else 1)
    world = ExportWorld(tmp_path, {"s0": [asked(f"{number}?") for number in range(5)]})
    write(world, "trl", tmp_path / "out")
    file = pq.ParquetFile(tmp_path / "out" / "data" / "s0.parquet")
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == groups


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)


@settings(max_examples=25)
@given(texts=st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=3))
def test_any_text_comes_back_as_it_was(world, texts):
    (first, *_) = records_of(world.shards[0], DatasetImages(world.study.dataset), Tally())
    records = [replace(first, messages=(Message("user", q),), chosen=c, rejected=r) for q, c, r in texts]
    with TemporaryDirectory() as folder:
        written = {name: Path(folder, f"{name}{FORMATS[name].suffix}") for name in LAYOUTS}
        for name, path in written.items():
            with data_files.row_file(path, FORMATS[name].features()) as file:
                for record in records:
                    assert FORMATS[name].why_not(record) is None
                    image = "a.png" if FORMATS[name].features() is None else {"bytes": b"", "path": "a.png"}
                    file.write(FORMATS[name].row(record, image), 0)
        rows = {name: _read(path) for name, path in written.items()}
    assert [
        (row["prompt"][0]["content"], row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows["trl"]
    ] == texts
    assert [(row["question"], row["chosen"], row["rejected"]) for row in rows["rlaif-v"]] == texts
    tagged = [(f"<image>{question}", chosen, rejected) for question, chosen, rejected in texts]
    assert [(*(m["content"] for m in row["messages"]), row["rejected_response"]) for row in rows["ms-swift"]] == tagged
    assert [
        (row["conversations"][0]["value"], row["chosen"]["value"], row["rejected"]["value"])
        for row in rows["llama-factory"]
    ] == tagged


def _read(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]
