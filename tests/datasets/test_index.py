"""A dataset's rows: images found, looked at once, never outside their folders; shards that never move."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.datasets import image_looks, index
from m3po_dagster.datasets.image_looks import ImageLooks
from m3po_dagster.datasets.index import shard_names, shard_of
from m3po_dagster.datasets.record import Record
from m3po_dagster.datasets.row import IMAGE_MISSING, IMAGE_OUTSIDE, IMAGE_URL
from m3po_dagster.storage.file_facts import FileFacts
from tests.datasets.dataset_files import TURNS, dataset, picture, record, rows_of


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def folder(tmp_path):
    for number in range(8):
        picture(tmp_path / "images" / f"{number}.png", number)
    return tmp_path


def test_every_record_is_a_row_with_what_is_known_of_its_image(folder):
    settings = dataset(folder, [record(1, "1.png"), record(2), "broken", record(3, "none.png")])
    one, text, broken, missing = rows_of(settings)
    assert (one.source, one.record, one.source_id, one.image_uri) == ("toy", 0, "1", "1.png")
    assert (one.image.sha256, one.image.width, one.image.height) == (sha256(folder / "images" / "1.png"), 24, 16)
    assert one.image.problem is None and one.refused is None and one.conversation[0][0] == "human"
    assert (text.image_uri, text.image.sha256) == (None, None)
    assert broken.refused and broken.source_id == "#2" and broken.conversation is None
    assert (missing.image.problem, missing.image.detail) == (IMAGE_MISSING, "no file none.png")


def test_nothing_outside_the_folders_is_opened_and_a_url_is_refused(folder, monkeypatch):
    picture(folder / "secret.png", 9)
    (folder / "images" / "link.png").symlink_to(folder / "secret.png")
    (folder / "images" / "folder").mkdir()
    opened = []
    real = image_looks.look_at
    monkeypatch.setattr(image_looks, "look_at", lambda path, *rest: opened.append(path.name) or real(path, *rest))
    outside = ["../secret.png", str(folder / "secret.png"), "link.png"]
    other = ["folder", "x" * 5000, "http://127.0.0.1:1/a.png", "file:///etc/passwd", "data:image/png;base64,AAAA"]
    records = [record(1, "1.png"), record(2, "./1.png"), *(record(3, uri) for uri in [*outside, *other])]
    told = []
    rows = rows_of(dataset(folder, records), progress=lambda *done: told.append(done))
    assert opened == ["1.png"] and told[-1] == (len(records), 0)
    problems = [row.image.problem for row in rows]
    expected = [None] * 2 + [IMAGE_OUTSIDE] * 3 + [IMAGE_MISSING] * 2 + [IMAGE_URL] * 3
    assert problems == expected


def test_prefixes_have_folders_of_their_own_and_the_longest_counts(folder):
    elsewhere, sam = folder / "elsewhere", folder / "sam"
    picture(elsewhere / "a.png", 1), picture(sam / "a.png", 2), picture(folder / "images" / "other" / "a.png", 3)
    uris = ["coco/train2017/a.png", "coco/train2017/sam/a.png", "other/a.png", "coco/train2017/../../secret.png"]
    folders = {"coco/train2017": elsewhere, "coco/train2017/sam": sam}
    rows = rows_of(dataset(folder, [record(n, uri) for n, uri in enumerate(uris)], folders=folders))
    files = [elsewhere / "a.png", sam / "a.png", folder / "images" / "other" / "a.png"]
    assert [row.image.sha256 for row in rows] == [*map(sha256, files), None]
    assert rows[3].image.problem == IMAGE_OUTSIDE


def test_an_image_is_decoded_once_and_never_again_while_it_stays(folder, monkeypatch):
    monkeypatch.setattr("m3po_dagster.storage.file_facts._SETTLED_NS", -1)
    opened = []
    real = image_looks.look_at
    monkeypatch.setattr(image_looks, "look_at", lambda path, *rest: opened.append(path.name) or real(path, *rest))
    (folder / "images" / "bad.png").write_bytes(b"no image")
    records = [record(n, f"{n % 3}.png") for n in range(9)] + [record(9, "bad.png")]
    first = rows_of(dataset(folder, records), FileFacts(folder / "facts.sqlite"))
    assert sorted(opened) == ["0.png", "1.png", "2.png", "bad.png"]
    assert rows_of(dataset(folder, records), FileFacts(folder / "facts.sqlite")) == first
    assert len(opened) == 4
    picture(folder / "images" / "1.png", 700)
    changed = rows_of(dataset(folder, records), FileFacts(folder / "facts.sqlite"))
    assert opened[4:] == ["1.png"] and changed[1].image.sha256 != first[1].image.sha256
    rows_of(dataset(folder, records, max_megapixels=1), FileFacts(folder / "facts.sqlite"))
    assert len(opened) == 9, "another bound is another look"


def test_several_sources_come_in_the_study_s_order(folder):
    other = folder / "other"
    other.mkdir()
    picture(other / "images" / "1.png", 1)
    first = dataset(folder, [record(1, "1.png")])
    second = dataset(other, [record(1, "1.png")])
    both = first.model_copy(update={"sources": {"b": first.sources["toy"], "a": second.sources["toy"]}})
    rows = rows_of(both)
    assert [row.source for row in rows] == ["b", "a"]
    assert shard_of(rows[0], 99) == shard_of(rows[1], 99), "one image, whatever its source"


@given(st.lists(st.integers(0, 7), min_size=1, max_size=30), st.integers(1, 99), st.integers(0, 30))
def test_an_image_has_one_shard_and_more_records_move_none(tmp_path_factory, images, shards, cut):
    folder = tmp_path_factory.mktemp("index")
    for number in set(images):
        # Half of the names hold the other half's pixels.
        picture(folder / "images" / f"{number}.png", number % 4)
    records = [record(position, f"{number}.png") for position, number in enumerate(images)]
    rows = rows_of(dataset(folder, records, shards))
    assert rows_of(dataset(folder, records[:cut], shards)) == rows[:cut]
    placed = {(row.image.sha256, shard_of(row, shards)) for row in rows}
    assert len(placed) == len({row.image.sha256 for row in rows})
    assert {shard for _, shard in placed} <= set(shard_names(shards))


def test_shards_are_evenly_filled(folder):
    records = [{"id": str(number), "conversations": TURNS} for number in range(4000)]
    sizes = Counter(shard_of(row, 8) for row in rows_of(dataset(folder, records)))
    assert set(sizes) == set(shard_names(8))
    assert 400 < min(sizes.values()) <= max(sizes.values()) < 600


def test_take_is_a_seeded_subset_whatever_the_order_of_the_file(folder):
    records = [{"id": str(n % 20), "conversations": [{"from": "human", "value": f"{n}?"}]} for n in range(60)]
    taken = rows_of(dataset(folder, ["broken", *records], take=25))
    good = [row for row in taken if row.refused is None]
    assert len(good) == 25 and len(taken) == 26
    assert [row.record for row in taken] == sorted(row.record for row in taken)
    again = rows_of(dataset(folder, records[::-1], take=25))
    assert {row.record_sha256 for row in again} == {row.record_sha256 for row in good}
    other = rows_of(dataset(folder, records, take=25, seed=1))
    assert {row.record_sha256 for row in other} != {row.record_sha256 for row in good}
    fewer = rows_of(dataset(folder, records, take=10))
    assert {row.record_sha256 for row in fewer} < {row.record_sha256 for row in good}
    assert len(rows_of(dataset(folder, records, take=1000))) == 60
    equal = [records[0]] * 10
    assert len(rows_of(dataset(folder, equal, take=3))) == 3


def test_few_bytes_wait_however_large_the_images_inside_the_files_are(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "BYTES_HELD", 1000)
    content = picture(tmp_path / "one.png", 1).read_bytes()
    settings = dataset(tmp_path, [])
    held = []

    def packed(source, max_bytes):
        for number in range(12):
            turns = (("human", "What?"),)
            yield Record(number, str(number), f"{number}.png", turns, "0", content + bytes(400) + bytes([number]))

    monkeypatch.setattr(index, "records_of", packed)
    real = ImageLooks.at
    monkeypatch.setattr(
        ImageLooks, "at", lambda looks, paths: held.append(len(paths := list(paths))) or real(looks, paths)
    )
    rows = rows_of(settings)
    assert [row.image_name for row in rows] == [f"{number}.png" for number in range(12)]
    assert max(held) <= 3 and sum(held) == 12


def test_a_broken_file_says_where(folder):
    settings = dataset(folder, [record(1)])
    path = settings.sources["toy"].path
    path.write_text(json.dumps([record(1), record(2)])[:-30])
    with pytest.raises(ValueError, match=r"data\.json.*record 1"):
        rows_of(settings)
