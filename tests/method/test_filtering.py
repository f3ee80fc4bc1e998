import hashlib
import json
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m3po_dagster.datasets.row import (
    IMAGE_MISSING,
    IMAGE_NOT_FETCHED,
    IMAGE_OUTSIDE,
    IMAGE_TOO_LARGE,
    IMAGE_UNDECODABLE,
    IMAGE_URL,
    ImageFacts,
    SourceRow,
)
from m3po_dagster.method.filtering import FilterSettings, ImagesSeen, filter_rows
from m3po_dagster.storage.tables import DROPPED, FILTERED_INSTRUCTIONS
from tests.method.source_rows import drop_counts, image, row, said

DEFAULT = FilterSettings()
OFF = FilterSettings(**dict.fromkeys(FilterSettings.model_fields, False))
PROBLEMS = (IMAGE_OUTSIDE, IMAGE_MISSING, IMAGE_UNDECODABLE, IMAGE_TOO_LARGE, IMAGE_URL, IMAGE_NOT_FETCHED)


def run(rows, chosen=DEFAULT, turns="first", **more):
    return filter_rows(rows, chosen, turns=turns, **more)


def dropped_by(result):
    """(filter, reason) of everything that was dropped, with how many."""
    return {(drops.filter, drops.reason): drops.count for drops in result.drops if drops.count}


def test_a_kept_row_is_a_row_of_the_table():
    (kept,) = run([row("<image>\nWhat is it?", record=4)]).kept
    sha256 = hashlib.sha256(b"a.png").hexdigest()
    canonical = json.dumps([sha256, [["user", "What is it?"]]], separators=(",", ":"))
    assert kept == {
        "prompt_id": hashlib.sha256(canonical.encode()).hexdigest()[:32],
        "image_name": "a.png",
        "image_uri": "a.png",
        "image_sha256": sha256,
        "width": 640,
        "height": 480,
        "messages": [{"role": "user", "text": "What is it?"}],
        "reference": "A bus.",
        "source": "toy",
        "source_id": "id4",
        "turn": 0,
    }
    assert set(FILTERED_INSTRUCTIONS.schema.names) <= set(kept)
    pa.Table.from_pylist([kept], FILTERED_INSTRUCTIONS.schema).validate(full=True)


@pytest.mark.parametrize("chosen", [DEFAULT, OFF], ids=["on", "off"])
@pytest.mark.parametrize(
    ("bad", "reason", "detail"),
    [
        (row(refused="conversations is missing"), "malformed record", "conversations is missing (id id0)"),
        (row(uri=None), "text-only", "the record has no image (id id0)"),
        *[
            (row(facts=ImageFacts(problem=problem, detail="a.png is no good")), problem, "a.png is no good (id id0)")
            for problem in PROBLEMS
        ],
        (row(facts=ImageFacts(sha256="0" * 64)), "image not examined", "hash, size or perceptual hash of a.png"),
        (row(()), "no human turn", "conversations has no human turn"),
        (row((("gpt", "A bus."),)), "no human turn", "conversations has no human turn"),
        (row((("human", "Hm?"), ("human", "What?"))), "turns don't alternate", "conversations[1].from is 'human'"),
        (row("<image>\n \t\n"), "instruction empty", "conversations[0].value has no text"),
    ],
)
def test_what_makes_no_prompt_is_dropped_whatever_is_switched_off(bad, reason, detail, chosen):
    result = run([bad], chosen)
    assert not result.kept
    (dropped,) = result.dropped
    assert (dropped["item_id"], dropped["reason"]) == ("toy#0", reason)
    assert dropped["detail"].startswith(detail) and dropped["detail"].endswith(" (id id0)")
    assert dropped_by(result) == {("required", reason): 1}
    pa.Table.from_pylist(result.dropped, DROPPED.schema).validate(full=True)


LOOP = "What is in the picture? " * 12
EACH_FILTER = {
    "image_size": [row(uri="small.png", facts=image("small", 111, 111))],
    "image_aspect": [row(uri="long.png", facts=image("long", 640, 200))],
    "instruction_length": [row("Eh?", uri="short.png")],
    "language": [row("Was ist auf diesem Bild zu sehen?", uri="german.png")],
    "repetition": [row(LOOP, uri="loop.png")],
    "exact_duplicate": [row(record=7), row("what  IS it?", record=8)],
    "near_duplicate": [
        row(uri="one.png", facts=image("one", phash=0xF0F0)),
        row(uri="two.png", facts=image("2", phash=0xF0F3)),
    ],
    "contamination": [row(uri="COCO_val2014_000000310196.jpg")],
}


def test_every_filter_has_a_case_here():
    assert list(EACH_FILTER) == list(FilterSettings.model_fields)


@pytest.mark.parametrize("name", EACH_FILTER)
def test_a_filter_drops_what_it_is_for_and_nothing_when_it_is_off(name):
    on, off = run(EACH_FILTER[name]), run(EACH_FILTER[name], FilterSettings(**{name: False}))
    assert [by for by, _ in dropped_by(on)] == [name]
    assert len(on.dropped) == 1
    assert len(on.kept) == len(EACH_FILTER[name]) - 1
    assert (len(off.kept), off.dropped) == (len(EACH_FILTER[name]), [])


def test_drops_list_the_filters_in_order_with_three_examples_and_zeros():
    rows = [row("Eh?", record=number, uri=f"{number}.png") for number in range(5)]
    result = run([*rows, *EACH_FILTER["language"]])
    filters = [drops.filter for drops in result.drops]
    assert list(dict.fromkeys(filters)) == ["required", *FilterSettings.model_fields]
    assert filters == sorted(filters, key=["required", *FilterSettings.model_fields].index)
    by_reason = {drops.reason: drops for drops in result.drops}
    short = by_reason["instruction too short"]
    assert (short.count, [item for item, _ in short.examples]) == (5, ["toy#0", "toy#1", "toy#2"])
    assert short.examples[0][1] == "3 characters, min_characters is 4 (id id0)"
    assert by_reason["other language"].count == 1
    assert by_reason["repeats itself"].count == 0
    assert sum(drops.count for drops in result.drops) == len(result.dropped)
    assert drop_counts(result) == {"instruction too short": 5, "other language": 1}


def test_a_filter_that_is_off_is_not_listed():
    assert {drops.filter for drops in run([row()], OFF).drops} == {"required"}


def test_the_first_filter_that_refuses_counts_the_prompt():
    everything_wrong = row("Warum? " * 300, uri="COCO_val2014_000000310196.jpg", facts=image("wrong", 100, 5000))
    order = []
    chosen = {}
    while len(order) < 5:
        (found,) = dropped_by(run([everything_wrong], FilterSettings(**chosen))).items()
        order.append(found[0][0])
        chosen[found[0][0]] = False
    assert order == ["image_size", "image_aspect", "instruction_length", "language", "repetition"]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"image_size": {"min_side": 480}}, None),
        ({"image_size": {"min_side": 481}}, "image too small"),
        ({"image_size": {"max_side": 640}}, None),
        ({"image_size": {"max_side": 639}}, "image side too long"),
        ({"image_aspect": {"max_aspect": 640 / 480}}, None),
        ({"image_aspect": {"max_aspect": 1.33}}, "image too elongated"),
        ({"instruction_length": {"min_characters": 11}}, None),
        ({"instruction_length": {"min_characters": 12}}, "instruction too short"),
        ({"instruction_length": {"max_characters": 11}}, None),
        ({"instruction_length": {"max_characters": 10}}, "instruction too long"),
    ],
)
def test_bounds_are_inclusive_and_spaces_at_the_ends_do_not_count(chosen, expected):
    result = run([row("  What is it?\n")], FilterSettings(**chosen))
    assert drop_counts(result) == ({expected: 1} if expected else {})


@pytest.mark.parametrize("turned", [False, True])
def test_upright_and_lying_images_are_measured_alike(turned):
    size = (480, 640) if turned else (640, 480)
    result = run([row(facts=image("a", *size))], FilterSettings(image_size={"min_side": 481}))
    assert drop_counts(result) == {"image too small": 1}
    assert f"{size[0]}x{size[1]}, min_side is 481" in result.dropped[0]["detail"]


def test_duplicates_are_of_image_content_and_normalised_turns_across_sources():
    asked = [
        row("What is it?", 0),
        row("<image>\nwhat  IS it?", 1),
        row("What is it?", 2, uri="copy.png", facts=image("a.png")),
        row("What is it?", 3, uri="b.png"),
        row("What was it?", 4),
        row("What is it?", 5, source="other"),
        row(said("What is it?", "A bus.", "What is it?"), 6),
    ]
    result = run(asked)
    assert [kept["source_id"] for kept in result.kept] == ["id0", "id3", "id4"]
    assert [dropped["item_id"] for dropped in result.dropped] == ["toy#1", "toy#2", "other#5", "toy#6"]
    assert all("as toy#0 (id" in dropped["detail"] for dropped in result.dropped)
    verbatim = run(asked, FilterSettings(exact_duplicate=False))
    assert [kept["source_id"] for kept in verbatim.kept] == ["id0", "id1", "id3", "id4"]
    assert dropped_by(verbatim) == {("required", "same prompt"): 3}


def test_two_spellings_of_one_character_are_one_prompt_to_the_letter():
    composed, decomposed = row("Is it a café?"), row("Is it a cafe\u0301?", 1)
    result = run([composed, decomposed], OFF)
    assert [kept["messages"][0]["text"] for kept in result.kept] == ["Is it a café?"]
    assert drop_counts(result) == {"same prompt": 1}


def test_the_turns_before_a_question_are_part_of_what_is_asked():
    first, second = said("What is it?", "A bus.", "And why?"), said("What is it?", "A car.", "And why?")
    assert len(run([row(first), row(second, 1)], turns="last").kept) == 2
    assert len(run([row(first), row(first, 1)], turns="last").kept) == 1


def test_each_turn_is_a_prompt_of_its_own_and_may_be_dropped_alone():
    result = run([row(said("What is it?", "A bus.", "Hm?", "What?", "Where does it go?"))], turns="each")
    assert [(kept["turn"], len(kept["messages"]), kept["reference"]) for kept in result.kept] == [
        (0, 1, "A bus."),
        (2, 5, None),
    ]
    (dropped,) = result.dropped
    assert (dropped["item_id"], dropped["reason"]) == ("toy#0.1", "instruction too short")


def test_filters_of_the_question_do_not_read_the_turns_before_it():
    history = said("Hm?", "Was ist das denn? " * 300, "What color is the bus?")
    assert len(run([row(history)], turns="last").kept) == 1


def test_a_record_that_fails_as_a_whole_is_one_item_where_each_turn_is_asked():
    broken = row((*said("What is it?", "A bus."), ("gpt", "No, a car.")))
    result = run([broken, row(uri=None, record=1)], turns="each")
    assert [dropped["item_id"] for dropped in result.dropped] == ["toy#0", "toy#1"]


def test_records_that_start_with_an_answer_are_counted():
    starts = (("gpt", "Hello."), *said("What is it?", "A bus."))
    result = run([row(starts), row("Where is it?", 1), row((("gpt", "Hello."),), 2)])
    assert (result.assistant_first, len(result.kept)) == (1, 2)


def test_progress_is_told_of_every_row():
    told = []
    run([row(record=number) for number in range(3)], progress=lambda *at: told.append(at))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_no_rows_are_no_error():
    result = run([])
    assert (result.kept, result.dropped) == ([], [])
    assert all(drops.count == 0 for drops in result.drops)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "text",
    [
        "is there a dog in the image? ",
        "<image>",
        "<im<image>age>\n",
        "a\u0315\u0300",
        "aaaaaaaab",
        "1 ",
        "这是什么",
        "\ufdfa",
        "W",
        "Please answer yes or no. ",
    ],
)
def test_a_million_characters_are_filtered_as_any_text_is(text):
    rows = [row(text * (1_000_000 // len(text)), record) for record in range(2)]
    result = run(rows, FilterSettings(instruction_length=False))
    assert len(result.kept) + len(result.dropped) == 2
    assert len(result.kept) < 2


TEXTS = st.one_of(
    st.sampled_from(
        ["What is it?", "WHAT is it?", "Why?", "", "Was ist das?", "<image>", "Is there a dog in the image?"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40),
)
SIZES = st.one_of(st.none(), st.integers(0, 2**31 - 1))
FACTS = st.one_of(
    st.sampled_from([image("a"), image("b"), image("c", phash=7), image("d", 100, 5000)]),
    st.builds(
        ImageFacts,
        sha256=st.sampled_from([None, "0" * 64, "1" * 64]),
        width=SIZES,
        height=SIZES,
        phash=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
        problem=st.sampled_from([None, None, *PROBLEMS]),
        detail=st.one_of(st.none(), TEXTS),
    ),
)
ROWS_OF_ANY_KIND = st.builds(
    SourceRow,
    source=st.sampled_from(["toy", "other"]),
    record=st.just(0),
    source_id=TEXTS,
    record_sha256=st.just("0" * 64),
    refused=st.one_of(st.none(), st.none(), TEXTS),
    conversation=st.one_of(
        st.none(), st.lists(st.tuples(st.sampled_from(["human", "gpt", "system", ""]), TEXTS), max_size=5).map(tuple)
    ),
    image_uri=st.one_of(st.none(), st.sampled_from(["a.png", "x/000000310196.jpg", "../a.png", ""]), TEXTS),
    image=FACTS,
)


@given(
    st.lists(ROWS_OF_ANY_KIND, max_size=8),
    st.sampled_from(["first", "last", "each"]),
    st.fixed_dictionaries({}, optional={name: st.just(False) for name in FilterSettings.model_fields}),
)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_rows_are_kept_or_dropped_whole_in_order_and_twice_the_same(made, turns, off):
    rows = [replace(one, record=number, source_id=f"id{number}") for number, one in enumerate(made)]
    result = run(rows, FilterSettings(**off), turns)
    kept = [(int(kept["source_id"][2:]), kept["turn"]) for kept in result.kept]
    items = [dropped["item_id"].partition("#")[2].partition(".") for dropped in result.dropped]
    dropped = [(int(record), turn) for record, _, turn in items]
    assert {record for record, _ in kept + dropped} == set(range(len(rows)))
    assert kept == sorted(set(kept)) and len(dropped) == len(set(dropped))
    assert [record for record, _ in dropped] == sorted(record for record, _ in dropped)
    if turns != "each":
        assert len(kept) + len(dropped) == len(rows)
    assert len({kept["prompt_id"] for kept in result.kept}) == len(kept)
    assert sum(drops.count for drops in result.drops) == len(dropped)
    pa.Table.from_pylist(result.kept, FILTERED_INSTRUCTIONS.schema).validate(full=True)
    pa.Table.from_pylist(result.dropped, DROPPED.schema).validate(full=True)
    again = run(rows, FilterSettings(**off), turns, images=ImagesSeen.of_rows(rows))
    assert (again.kept, again.dropped, again.drops) == (result.kept, result.dropped, result.drops)
