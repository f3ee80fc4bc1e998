"""Each kind of constraint against answers worked out by hand; laws that hold for any answer."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.evaluation.constraints.constraint import met_loosely, met_strictly, variants
from m3po_dagster.evaluation.constraints.registry import KINDS, read_constraints
from m3po_dagster.evaluation.question import BenchmarkError

KIND_NAMES = [one.model_fields["kind"].default for one in KINDS]

# Constraint, answer, whether it is met strictly, whether loosely.
TABLE = [
    ({"kind": "min_words", "n": 3}, "One two three.", True, True),
    ({"kind": "min_words", "n": 3}, "One, two -- !", False, False),
    ({"kind": "max_words", "n": 3}, "It's well-known: 3.5!", True, True),
    ({"kind": "max_words", "n": 3}, "Sure:\nA red circle", False, True),
    ({"kind": "max_words", "n": 3}, "one,two,three,four", False, False),
    ({"kind": "exact_words", "n": 2}, "red **circle**", True, True),
    ({"kind": "exact_words", "n": 2}, "red", False, False),
    ({"kind": "exact_words", "n": 3}, "Das हिन्दी भाषा", True, True),
    ({"kind": "min_sentences", "n": 2}, "It is red. it is round", True, True),
    ({"kind": "min_sentences", "n": 2}, "Mr. Smith, e.g. J. Smith, is 1.8 m tall.", False, False),
    ({"kind": "max_sentences", "n": 1}, "Here it is.\nIt is red.", False, True),
    ({"kind": "max_sentences", "n": 1}, 'He said "Go!" and left.', True, True),
    ({"kind": "max_sentences", "n": 1}, "It is red. it is round.", False, False),
    ({"kind": "exact_sentences", "n": 3}, "- Red\n- Blue\n- Green", True, True),
    ({"kind": "exact_sentences", "n": 2}, "他走了。她来了。", True, True),
    ({"kind": "exact_sentences", "n": 1}, "Really?! Yes.", False, False),
    ({"kind": "exact_paragraphs", "n": 2}, "One.\nStill one.\n \nTwo.", True, True),
    ({"kind": "exact_paragraphs", "n": 2}, "One.\nTwo.", False, False),
    ({"kind": "include_words", "words": ["red circle", "box"]}, "A RED  circle and a box.", True, True),
    ({"kind": "include_words", "words": ["red circle", "box"]}, "A red circle and boxes.", False, False),
    ({"kind": "exclude_words", "words": ["cat"]}, "A category of concatenation.", True, True),
    ({"kind": "exclude_words", "words": ["cat"]}, "A dog.\nNo cat!", False, True),
    ({"kind": "include_some", "words": ["one", "two"], "n": 2}, "one two", True, True),
    ({"kind": "include_some", "words": ["one", "two"], "n": 2}, "two two", False, False),
    ({"kind": "include_some", "words": ["Red", "red", "red  box", "RED BOX"], "n": 2}, "a red ball", False, False),
    ({"kind": "include_some", "words": ["Red", "red", "red  box", "RED BOX"], "n": 2}, "a red box", True, True),
    ({"kind": "word_times", "word": "red", "n": 2}, "Red, red.", True, True),
    ({"kind": "word_times", "word": "red", "n": 2}, "Red, reddish.", False, False),
    ({"kind": "language", "code": "de"}, "Auf dem Bild ist ein roter Kreis zu sehen.", True, True),
    ({"kind": "language", "code": "de"}, "The image shows a red circle.", False, False),
    ({"kind": "language", "code": "de"}, "123", False, False),
    ({"kind": "starts_with", "texts": ["Yes", "No"]}, " yes, it is.", True, True),
    ({"kind": "starts_with", "texts": ["Yes", "No"]}, "Nothing is there.", False, False),
    ({"kind": "starts_with", "texts": ["Yes", "No"]}, "**No.**", False, True),
    ({"kind": "ends_with", "text": "the end."}, "So it goes. The END.\n", True, True),
    ({"kind": "ends_with", "text": "the end."}, "The end.\nAnything else?", False, True),
    ({"kind": "ends_with", "text": "left"}, "It is cleft", False, False),
    ({"kind": "ends_with", "text": "left"}, "On the top-LEFT", True, True),
    ({"kind": "ends_with", "text": "left"}, "left", True, True),
    ({"kind": "ends_with", "text": "र"}, "घर", False, False),
    ({"kind": "ends_with", "text": "左边。"}, "他在左边。", True, True),
    ({"kind": "starts_with", "texts": ["是"]}, "是的。", True, True),
    ({"kind": "starts_with", "texts": ["क"]}, "का", False, False),
    ({"kind": "sentences_start_with", "text": "There is"}, "There is a dog. there is a cat.", True, True),
    ({"kind": "sentences_start_with", "text": "There is"}, "There is a dog. And there is a cat.", False, False),
    ({"kind": "sentences_start_with", "text": "There is"}, "There isn't.", False, False),
    ({"kind": "lowercase"}, "a red circle, 2 boxes", True, True),
    ({"kind": "lowercase"}, "42", False, False),
    ({"kind": "lowercase"}, "Sure!\na red circle", False, True),
    ({"kind": "uppercase"}, "A RED CIRCLE", True, True),
    ({"kind": "uppercase"}, "A RED circle", False, False),
    ({"kind": "no_commas"}, "red; blue", True, True),
    ({"kind": "no_commas"}, "red，blue", False, False),
    ({"kind": "bullets", "n": 2}, "- red\n  * blue\n-- no", True, True),
    ({"kind": "bullets", "n": 2}, "-red\n- blue", False, False),
    ({"kind": "bullets", "n": 2}, "* red\n* blue\n* green", False, True),
    ({"kind": "json"}, "[1, 2]", True, True),
    ({"kind": "json"}, "[]", True, True),
    ({"kind": "json", "keys": ["b", "a"]}, '```json\n{"a": 1, "b": 2}\n```', True, True),
    ({"kind": "json", "keys": ["a"]}, '{"a": 1, "b": 2}', False, False),
    ({"kind": "json", "keys": ["a"]}, '{"b": 2}', False, False),
    ({"kind": "json", "keys": ["a"]}, '["a"]', False, False),
    ({"kind": "json"}, 'Here:\n{"a": NaN}', False, False),
    ({"kind": "json"}, 'Here:\n{"a": 1}', False, True),
    ({"kind": "one_of", "options": ["Yes", "No"]}, "yes.", True, True),
    ({"kind": "one_of", "options": ["Yes", "No"]}, "Yes, it is", False, False),
    ({"kind": "one_of", "options": ["Yes", "No"]}, "*No*", False, True),
    ({"kind": "one_of", "options": ["+", "-"]}, "-", True, True),
    ({"kind": "quoted"}, '"A red circle."', True, True),
    ({"kind": "quoted"}, '"A" red circle.', False, False),
    ({"kind": "quoted"}, '"A circle" and "a box"', False, False),
    ({"kind": "quoted"}, "“A circle” and “a box”", False, False),
    ({"kind": "quoted"}, "“It's a box”", True, True),
]


def constraint(value: dict):
    return read_constraints([value], "here")[0]


@pytest.mark.parametrize(("value", "answer", "strict", "loose"), TABLE)
def test_an_answer_meets_it_or_not(value, answer, strict, loose):
    assert met_strictly(constraint(value), answer) is strict
    assert met_loosely(constraint(value), answer) is loose


def test_the_table_has_every_kind_met_and_not_met():
    for meets in (True, False):
        assert {value["kind"] for value, _, strict, _ in TABLE if strict is meets} == set(KIND_NAMES)


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "no_commas"},
        {"kind": "max_words", "n": 5},
        {"kind": "max_sentences", "n": 1},
        {"kind": "exclude_words", "words": ["x"]},
    ],
)
@pytest.mark.parametrize("empty", ["", " \n ", "*", "...", "- \n-"])
def test_an_answer_of_nothing_follows_nothing(value, empty):
    assert constraint(value).met(empty)
    assert not met_strictly(constraint(value), empty) and not met_loosely(constraint(value), empty)


def test_there_are_the_eight_variants_of_ifeval():
    assert variants("*a*\nb\nc*") == ("*a*\nb\nc*", "b\nc*", "*a*\nb", "b", "a\nb\nc", "b\nc", "a\nb", "b")


SAMPLES = [constraint(value) for value in {json.dumps(value): value for value, *_ in TABLE}.values()]


@given(st.text(alphabet=st.sampled_from("aA redRed.!?,;*-\n\"{}[]1。，'’é"), max_size=60))
def test_strict_is_never_easier_than_loose_and_nothing_breaks(answer):
    for one in SAMPLES:
        if met_strictly(one, answer):
            assert met_loosely(one, answer)


@given(st.text(max_size=80), st.integers(1, 8))
def test_exactly_is_at_least_and_at_most(answer, n):
    for what in ("words", "sentences"):
        least, most, exact = (constraint({"kind": f"{how}_{what}", "n": n}) for how in ("min", "max", "exact"))
        assert exact.met(answer) == (least.met(answer) and most.met(answer))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"kind": "max_words", "n": 1}, "Use at most 1 word."),
        ({"kind": "min_sentences", "n": 2}, "Write at least 2 sentences."),
        ({"kind": "include_words", "words": ["a", "b", "c"]}, 'Include "a", "b" and "c".'),
        ({"kind": "exclude_words", "words": ["a", "b"]}, 'Do not use "a" or "b".'),
        ({"kind": "language", "code": "de"}, "Answer in German."),
        ({"kind": "json", "keys": ["a"]}, 'Answer with a JSON object with "a" as its keys and nothing else.'),
        ({"kind": "one_of", "options": ["Yes", "No"]}, 'Answer with "Yes" or "No" and nothing else.'),
    ],
)
def test_it_says_itself_in_a_sentence(value, sentence):
    assert constraint(value).describe() == sentence


def test_every_kind_says_itself_in_one_line():
    sentences = [one.describe() for one in SAMPLES]
    assert all(said.endswith(".") and "\n" not in said and said[0].isupper() for said in sentences)


def test_json_gives_back_what_was_read():
    for one in SAMPLES:
        assert constraint(json.loads(one.model_dump_json())) == one


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "constraints: expected a list"),
        ([], "constraints: expected a list of at least one"),
        ([{"kind": "no_commas"}, {"kind": "max_words"}], "number 2, n: Field required"),
        ([{"kind": "max_words", "n": 0}], "number 1, n: .*greater than or equal to 1"),
        ([{"kind": "max_words", "n": True}], "number 1, n: .*integer"),
        ([{"kind": "max_words", "n": "3"}], "number 1, n: .*integer"),
        ([{"kind": "max_word", "n": 3}], "number 1: .*'max_word'.*'max_words'"),
        ([{"n": 3}], "number 1: .*'kind'"),
        (["max_words"], "number 1: .*valid dictionary"),
        ([{"kind": "no_commas", "n": 3}], "number 1, n: Extra"),
        ([{"kind": "include_words", "words": []}], "number 1, words: .*at least 1"),
        ([{"kind": "include_words", "words": [" "]}], r"number 1, words\.0: .*at least 1 char"),
        ([{"kind": "include_some", "words": ["a"], "n": 2}], "number 1: n is 2, and there are 1 different words"),
        (
            [{"kind": "include_some", "words": ["a b", "A  B"], "n": 2}],
            "number 1: n is 2, and there are 1 different words",
        ),
        ([{"kind": "language", "code": "eng"}], r"number 1: no language 'eng'; near it: en \(English\)"),
    ],
)
def test_an_error_names_the_constraint_and_its_field(values, message):
    with pytest.raises(BenchmarkError, match=f"^set.jsonl, line 3: .*{message}"):
        read_constraints(values, "set.jsonl, line 3")
