"""An inspection's counts against files whose every record is known, and its memory against the number of records."""

import gc
import io
import weakref
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from m3po_dagster.datasets.fetching import Fetcher
from m3po_dagster.datasets.image_survey import NO_FOLDER, RECORDS_AN_IMAGE, prefix_of
from m3po_dagster.datasets.inspection import (
    STARTS_WITH_ASSISTANT,
    TOKEN_WITHOUT_IMAGE,
    Inspection,
    inspect_records,
)
from m3po_dagster.datasets.inspection_facts import SHOWN_KINDS, facts_of
from m3po_dagster.datasets.record import DatasetError, Malformed, Record
from m3po_dagster.datasets.row import IMAGE_TOO_LARGE, IMAGE_UNDECODABLE
from m3po_dagster.datasets.settings import JsonArraySource, WebDatasetSource
from m3po_dagster.datasets.tallies import MOST_KINDS
from m3po_dagster.method.filtering import FilterSettings, filter_rows, questions
from tests.method.source_rows import row

ORIENTATION = 0x0112
ALL_OFF = FilterSettings(**dict.fromkeys(FilterSettings.model_fields, False))


def a_record(number: int, image: str | None, *texts: str, first: str = "human", **more) -> Record:
    other = {"human": "gpt", "gpt": "human"}
    speakers = [first if place % 2 == 0 else other[first] for place in range(len(texts))]
    return Record(number, f"id{number}", image, tuple(zip(speakers, texts, strict=True)), f"sha{number}", **more)


def a_source(**settings) -> JsonArraySource:
    return JsonArraySource(format="llava_instruct", **settings)


def picture(path: Path, size=(40, 30), turned: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, "red")
    exif = Image.Exif()
    if turned:
        exif[ORIENTATION] = 6
    image.save(path, "JPEG", exif=exif)


def looked_over(tmp_path, *records, **options) -> Inspection:
    source = options.pop("source", None) or a_source(path=tmp_path / "a.json", image_root=tmp_path)
    return inspect_records(iter(records), source, questions, **options)


def test_turns_prompts_and_lengths_are_counted_exactly(tmp_path):
    picture(tmp_path / "a.jpg")
    found = looked_over(
        tmp_path,
        a_record(0, "a.jpg", "<image>\nWhat is it?", "A bus.", "Which colour?", "Red.", "Sure?"),
        a_record(1, "a.jpg", "Describe it.\n<image>", "A red bus stands there."),
        a_record(2, "gone.jpg", "Where is <image> it?"),
        a_record(3, None, "What is two and two?", "Four."),
        Malformed(4, "id4", "sha4", "conversations[3].from is 'system', expected 'human' or 'gpt'"),
        Malformed(5, "id5", "sha5", "conversations[12].from is 'tool', expected 'human' or 'gpt'"),
        Malformed(6, "#6", "sha6", "id is missing"),
        turns="each",
    )
    assert (found.records, found.text_only, found.multi_turn) == (7, 1, 1)
    assert found.human_turns == {"1": 3, "3-5": 1}
    assert found.image_token == {"prefix": 1, "suffix": 1, "inside": 1}
    assert found.prompts == {"first": 3, "last": 3, "each": 5} and found.usable == 4
    kind = "conversations[N].from is '...', expected '...' or '...'"
    assert found.malformed.counts == {kind: 2, "id is missing": 1}
    assert [example[:2] for example in found.malformed.examples[kind]] == [(4, "id4"), (5, "id5")]
    asked = ["What is it?", "Which colour?", "Sure?", "Describe it.", "Where is  it?"]
    assert found.questions.number == 5 and found.questions.bytes == sum(map(len, asked))
    answered = ["A bus.", "Red.", "A red bus stands there."]
    assert found.answers.number == 3 and found.answers.bytes == sum(map(len, answered))
    # What stands before the second and the third question of the first record.
    before = len("What is it?A bus.") * 2 + len("Which colour?Red.")
    assert found.prompt_bytes == pytest.approx((sum(map(len, asked)) + before) / 5)
    # "Sure?" alone is too short to tell.
    assert found.languages == {"en": 4, "unsure": 1}


@pytest.mark.parametrize(
    ("record", "problem", "prompts"),
    [
        (a_record(0, "a.jpg", "Hello.", "What is it?", "A bus.", first="gpt"), STARTS_WITH_ASSISTANT, (1, 1, 1)),
        (a_record(0, "a.jpg", "Hello.", first="gpt"), "no human turn", (0, 0, 0)),
        (Record(0, "id0", "a.jpg", (("gpt", "Hello."), ("gpt", "Hello?")), "sha"), "turns don't alternate", (0, 0, 0)),
        (
            Record(0, "id0", "a.jpg", (("human", "One?"), ("human", "Two?")), "sha"),
            "turns don't alternate",
            (0, 0, 0),
        ),
        (a_record(0, "a.jpg", "<image>\n"), "instruction empty", (0, 0, 0)),
        (a_record(0, "a.jpg", "<ima<image>ge>"), "instruction empty", (0, 0, 0)),
        (a_record(0, "a.jpg", "What?", "", "And?", "Yes."), "turn before it empty", (1, 0, 1)),
        (a_record(0, "a.jpg", "What?", "This.", "", "Yes.", "So?"), "turn before it empty", (1, 0, 1)),
        (a_record(0, "a.jpg", *["What?"] * 600), "too much before it", (1, 0, 129)),
        (a_record(0, None, "<image>\nWhat?"), TOKEN_WITHOUT_IMAGE, (0, 0, 0)),
    ],
)
def test_problems_of_a_record_and_what_is_left_to_ask(tmp_path, record, problem, prompts):
    found = looked_over(tmp_path, record)
    assert found.problems.counts[problem] == 1 and found.problems.examples[problem] == [(0, "id0")]
    assert tuple(found.prompts[which] for which in ("first", "last", "each")) == prompts


def test_images_are_counted_by_folder_and_only_the_sample_is_opened(tmp_path):
    for name in ("coco/train2017/1.jpg", "coco/train2017/2.jpg"):
        picture(tmp_path / name)
    picture(tmp_path / "elsewhere" / "3.jpg", size=(64, 20))
    source = a_source(path=tmp_path / "mix.json", image_root=tmp_path, folders={"sam/images": tmp_path / "elsewhere"})
    images = ["coco/train2017/1.jpg"] * 3 + ["coco/train2017/2.jpg", "sam/images/3.jpg", "sam/images/4.jpg"]
    images += ["vg/VG_100K/5.jpg", "../out.jpg", "/etc/hostname", "6.jpg"]
    records = [a_record(n, image, "What?") for n, image in enumerate(images)]
    found = looked_over(tmp_path, *records, source=source).images
    assert found.distinct.number == 8 and found.distinct.times() == {1: 7, 3: 1}
    assert found.records_missing == 3 and found.missing.number == 3
    assert found.prefixes.counts == {
        "coco/train2017": 4,
        "sam/images": 2,
        "vg/VG_100K": 1,
        "..": 1,
        "/etc": 1,
        NO_FOLDER: 1,
    }
    assert found.missing_prefixes.counts == {"sam/images": 1, "vg/VG_100K": 1, NO_FOLDER: 1}
    assert sum(found.outside.counts.values()) == 2
    assert found.prefix_folder("sam/images") == tmp_path / "elsewhere"
    assert found.prefix_folder("coco/train2017") == tmp_path / "coco" / "train2017"
    assert found.prefix_folder("vg/VG_100K") is None and found.prefix_folder("..") is None
    assert sorted(found.sizes) == [(40, 30), (40, 30), (64, 20)]


def test_the_sample_is_decoded_as_a_prompt_opens_it(tmp_path):
    picture(tmp_path / "turned.jpg", size=(40, 30), turned=True)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "turned.jpg").read_bytes()[:200])
    Image.new("1", (3000, 2000)).save(tmp_path / "large.png")
    names = ("turned.jpg", "cut.jpg", "large.png")
    found = looked_over(tmp_path, *(a_record(n, name, "What?") for n, name in enumerate(names)), max_megapixels=5)
    assert found.images.sizes == [(30, 40)]
    assert sum(look.turned for look in found.images.looked) == 1
    assert found.images.troubles.counts == {IMAGE_UNDECODABLE: 1, IMAGE_TOO_LARGE: 1}
    assert found.usable == 3


def test_all_records_of_the_sample_s_images_are_held_and_beyond_the_bound_counted(tmp_path):
    names = [f"{number}.jpg" for number in range(6)]
    for name in names:
        picture(tmp_path / name)
    # In turns, so that the sample changes while records of its images still come.
    records = [a_record(n, names[n % 6], "What?") for n in range(6 * (RECORDS_AN_IMAGE + 3))]
    found = looked_over(tmp_path, *records, sample=4).images
    assert len(found.looked) == 4
    for look in found.looked:
        (name,) = {record.image for record in look.sampled.records}
        numbers = [record.record for record in look.sampled.records]
        assert numbers == list(range(names.index(name), 6 * RECORDS_AN_IMAGE, 6)) and look.sampled.beyond == 3


def test_no_image_of_a_sample_of_none_is_opened(tmp_path, monkeypatch):
    picture(tmp_path / "a.jpg")
    monkeypatch.setattr("PIL.Image.open", lambda *_, **__: pytest.fail("an image was opened"))
    found = looked_over(tmp_path, a_record(0, "a.jpg", "What?"), sample=0)
    assert found.usable == 1 and found.images.looked == []


def test_urls_are_counted_by_host_and_usable_where_the_study_allows_them(tmp_path):
    source = a_source(path=tmp_path / "a.json", image_root=tmp_path, fetch_from=("Good.example", "b.example:81"))
    allowed = ["https://good.example/a.jpg", "http://B.example:81/b.jpg"]
    other_port = ["http://good.example:8080/b.jpg", "http://b.example/b.jpg"]
    refused = [
        "ftp://good.example/a.jpg",
        "http://me:secret@good.example/",
        "http://[broken",
        "data:image/png;base64,AA",
    ]
    urls = allowed + other_port + refused
    found = looked_over(tmp_path, *(a_record(n, url, "What?") for n, url in enumerate(urls)), source=source)
    assert found.images.hosts.counts == {
        "good.example": 3,
        "b.example:81": 1,
        "good.example:8080": 1,
        "b.example": 1,
        "(no host)": 1,
        "data:": 1,
    }
    assert found.prompts["first"] == 8 and found.usable == 2
    with Fetcher(source.fetch_from, tmp_path) as fetcher:
        assert [url for url in urls if fetcher.allows(url)] == allowed


def test_images_inside_the_files_are_known_by_their_bytes(tmp_path):
    def content(colour: str) -> bytes:
        made = io.BytesIO()
        Image.new("RGB", (20, 10), colour).save(made, "PNG")
        return made.getvalue()

    red, blue = content("red"), content("blue")
    records = [
        a_record(n, name, "What?", image_bytes=bytes_)
        for n, (name, bytes_) in enumerate([(None, red), ("x.png", red), ("x.png", blue), (None, b"no image")])
    ]
    source = WebDatasetSource(format="webdataset", path=tmp_path / "a.tar", image_root=tmp_path / "out")
    found = looked_over(tmp_path, *records, source=source)
    assert found.images.inside_file == 4 and found.images.distinct.number == 3
    assert found.images.sizes == [(20, 10), (20, 10)] and sum(found.images.troubles.counts.values()) == 1
    rows = [row for look in found.images.looked if look.facts.problem is None for row in look.rows("s")]
    assert [(row.record, bool(row.image_uri)) for row in sorted(rows, key=lambda row: row.record)] == [
        (0, True),
        (1, True),
        (2, True),
    ]
    assert all(record.image_bytes is None for look in found.images.looked for record in look.sampled.records)
    assert not (tmp_path / "out").exists()


def test_images_of_benchmarks_are_counted_once_an_image(tmp_path):
    def known(uri: str) -> dict[str, int]:
        return {"POPE": 310196} if uri.endswith("000000310196.jpg") else {}

    images = ["000000310196.jpg", "coco/train2017/000000310196.jpg", "000000000001.jpg"]
    found = looked_over(tmp_path, *(a_record(n, image, "What?") for n, image in enumerate(images)), known=known)
    assert {name: ids.number for name, ids in found.known.items()} == {"POPE": 1}


def test_languages_are_those_of_the_questions(tmp_path):
    asked = {
        "What is the man in the picture doing?": "en",
        "Was macht der Mann auf dem Bild gerade?": "de",
        "画像の男性は何をしていますか？": "ja",
        "2 + 2 = ?": "no letters",
    }
    found = looked_over(tmp_path, *(a_record(n, "a.jpg", text) for n, text in enumerate(asked)))
    assert found.languages == dict.fromkeys(asked.values(), 1)


@pytest.mark.parametrize("kinds", [SHOWN_KINDS, SHOWN_KINDS + 1, MOST_KINDS, MOST_KINDS + 5])
def test_what_the_facts_do_not_list_they_count(tmp_path, kinds):
    """As many kinds of mistakes, folders and hosts; the first is there three times, any other once."""
    records = []
    for number in [0, 0, *range(kinds)]:
        word = "".join(chr(ord("a") + int(digit)) for digit in str(number))
        records.append(Malformed(len(records), "id", "sha", f"{word} is missing"))
        records += [a_record(len(records), image, "What?") for image in (f"{word}/x/1.jpg", f"http://{word}/1.jpg")]
    source = JsonArraySource(format="llava_instruct", path=tmp_path / "a.json", image_root=tmp_path)
    facts = facts_of(looked_over(tmp_path, *records, source=source), source)
    malformed, images = facts["malformed"], facts["images"]
    listed = [
        ([kind["records"] for kind in malformed["kinds"]], malformed["other kinds"]),
        ([prefix["records"] for prefix in images["prefixes"]], images["other prefixes"]),
        (list(images["URLs"]["hosts"].values()), images["URLs"]["other hosts"]),
    ]
    for shown, others in listed:
        assert shown == [3] + [1] * (SHOWN_KINDS - 1)
        assert others == {
            "number": min(kinds, MOST_KINDS) - SHOWN_KINDS,
            "exact": kinds <= MOST_KINDS,
            "records": kinds - SHOWN_KINDS,
        }


def test_images_of_many_numbers_of_records_are_all_counted(tmp_path):
    numbers = range(1, SHOWN_KINDS + 4)
    records = [a_record(0, f"{number}.jpg", "What?") for number in numbers for _ in range(number)]
    source = JsonArraySource(format="llava_instruct", path=tmp_path / "a.json", image_root=tmp_path)
    facts = facts_of(looked_over(tmp_path, *records, source=source), source)
    counted = facts["images"]["records an image"]
    assert counted == {**{str(number): 1 for number in numbers[:SHOWN_KINDS]}, f"{SHOWN_KINDS + 1} and more": 3}


def test_ids_that_repeat(tmp_path):
    records = [Record(n, "the same", "a.jpg", (("human", "What?"),), f"sha{n}") for n in range(3)]
    assert looked_over(tmp_path, *records).ids.repeats == 2


def test_a_broken_file_stops_it(tmp_path):
    def broken():
        yield a_record(0, "a.jpg", "What?")
        raise DatasetError("a.json, character 7: cut short")

    with pytest.raises(DatasetError, match="character 7"):
        inspect_records(broken(), a_source(path=tmp_path / "a.json", image_root=tmp_path), questions)


class _Text(str):
    """A text that can be referred to weakly."""

    __slots__ = ("__weakref__",)


def test_memory_holds_the_sample_and_no_other_record(tmp_path):
    """Records alive at once, counted through weak references: the one in hand, and those of the sample."""
    for number in range(40):
        picture(tmp_path / f"{number}.jpg", size=(8, 8))
    alive: weakref.WeakSet[_Text] = weakref.WeakSet()
    most = 0

    def records():
        nonlocal most
        for number in range(3000):
            text = _Text(f"What is picture number {number}?")
            alive.add(text)
            yield a_record(number, f"{number % 40}.jpg", text)
            del text
            if number % 500 == 0:
                gc.collect()
            most = max(most, len(alive))

    source = a_source(path=tmp_path / "a.json", image_root=tmp_path)
    found = inspect_records(records(), source, questions, sample=5)
    assert found.records == 3000
    # Of five images 64 of their 75 records each are held, five questions, and the record in hand.
    assert 5 * RECORDS_AN_IMAGE <= most <= 5 * RECORDS_AN_IMAGE + 5 + 2


conversations = st.lists(
    st.tuples(
        st.sampled_from(["human", "gpt"]),
        st.sampled_from(["", "<image>", "<ima<image>ge>", "What?", "\x1b[31m", "é" * 30]),
    ),
    min_size=1,
    max_size=6,
)
images = st.sampled_from([None, "a.jpg", "..", "a/../b", "x" * 400, "\t", "http://h/a", "~", "a\\b.jpg", "//x", "."])


@given(st.lists(st.tuples(images, conversations), max_size=8), st.sampled_from(["first", "last", "each"]))
def test_whatever_a_reader_gives_is_counted(tmp_path_factory, made, turns):
    root = tmp_path_factory.getbasetemp()
    records = [Record(n, f"id{n}", image, tuple(talk), f"sha{n}") for n, (image, talk) in enumerate(made)]
    source = a_source(path=root / "a.json", image_root=root)
    found = inspect_records(iter(records), source, questions, turns=turns, sample=2)
    assert found.records == len(made) == sum(found.human_turns.values())
    assert found.text_only == sum(image is None for image, _ in made)
    assert found.prompts["first"] <= len(made) and found.prompts["last"] <= found.prompts["first"]
    assert found.prompts["first"] <= found.prompts["each"]
    assert found.usable <= found.prompts[turns] == found.questions.number
    survey = found.images
    in_all = sum(survey.prefixes.counts.values()) + sum(survey.hosts.counts.values())
    assert in_all == len(made) - found.text_only
    facts = facts_of(found, source)
    assert facts["prompts"][turns] == found.prompts[turns]


@given(conversations)
def test_a_prompt_is_here_what_it_is_for_the_filters(tmp_path_factory, talk):
    folder = tmp_path_factory.getbasetemp()
    found = looked_over(folder, Record(0, "id0", "no.jpg", tuple(talk), "sha"))
    for which in ("first", "last", "each"):
        result = filter_rows([row(tuple(talk))], ALL_OFF, turns=which)
        assert found.prompts[which] == len(result.kept)
        reasons = {dropped["reason"] for dropped in result.dropped}
        assert reasons <= set(found.problems.counts) and (
            which != "each" or reasons | {STARTS_WITH_ASSISTANT} >= set(found.problems.counts)
        )


@pytest.mark.parametrize(
    ("uri", "prefix"),
    [
        ("000000033471.jpg", NO_FOLDER),
        ("coco/train2017/1.jpg", "coco/train2017"),
        ("sam/images/deep/1.jpg", "sam/images"),
        ("images/1.jpg", "images"),
        ("/etc/hostname", "/etc"),
        (".", NO_FOLDER),
    ],
)
def test_a_prefix_is_the_first_two_folders(uri, prefix):
    assert prefix_of(uri) == prefix
