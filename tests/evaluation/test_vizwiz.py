import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.evaluation.comparison import difference, sampled
from m3po_dagster.evaluation.question import BenchmarkError
from m3po_dagster.evaluation.registry import benchmark
from m3po_dagster.evaluation.settings import VizwizSettings
from m3po_dagster.evaluation.vizwiz import Vizwiz, is_phrase
from tests.evaluation import vqa_oracle
from tests.evaluation.vizwiz_files import RECORDS, write_annotations, write_images

MEDICINE, BASIL, WHAT, LIGHT = (record["image"] for record in RECORDS)


def build(folder, records=RECORDS, **settings):
    images = write_images(folder, [record for record in records if "image" in record])
    return benchmark(VizwizSettings(annotations=write_annotations(folder, records), image_root=images, **settings))


def values(vizwiz, answers, rule="official"):
    return {item.metric: item.value for item in vizwiz.score(vizwiz.load(), answers, rule, resamples=20)}


def test_a_worked_example(tmp_path):
    answers = {MEDICINE: "Night time.", BASIL: "the basil", WHAT: "It is a can of soup.", LIGHT: "Yes"}
    # five of ten; three of ten; none; ten of ten, but compared raw: "Yes" is not "yes".
    assert values(build(tmp_path), answers) == {
        "accuracy": pytest.approx(100 * (1 + 0.9 + 0 + 0) / 4),
        "accuracy/other": pytest.approx(95),
        "accuracy/unanswerable": 0,
        "accuracy/yes/no": 0,
        "unanswerable_rate": 0,
        # Two of ten gave it; none; eight of ten; none.
        "constant_unanswerable": pytest.approx(100 * (0.6 + 0 + 1 + 0) / 4),
        "format": 50,
    }
    for rule in ("lmms-eval", "vlmevalkit", "evalai"):
        assert values(build(tmp_path), answers, rule)["accuracy"] == pytest.approx(100 * (1 + 0.9 + 0 + 1) / 4)


@pytest.mark.parametrize("rule", Vizwiz.rules)
def test_always_unanswerable_is_the_constant_baseline(tmp_path, rule):
    found = values(build(tmp_path), dict.fromkeys((MEDICINE, BASIL, WHAT, LIGHT), "Unanswerable"), rule)
    assert (found["accuracy"], found["unanswerable_rate"], found["format"]) == (
        found["constant_unanswerable"],
        100,
        100,
    )
    assert found["accuracy/unanswerable"] == 100


@given(seed=st.integers(0, 10_000), rule=st.sampled_from(Vizwiz.rules))
def test_metrics_are_the_means_of_the_oracles_accuracies(tmp_path_factory, seed, rule):
    vizwiz = build(tmp_path_factory.mktemp("vizwiz"))
    chance = random.Random(seed)
    replies = ["Night time", "basil leaves", "unanswerable", "Unanswerable.", "yes", "Yes.", "no", "", "a b c d e f"]
    answers = {record["image"]: chance.choice(replies) for record in RECORDS}
    shuffled = dict(chance.sample(sorted(answers.items()), len(answers)))
    found = values(vizwiz, shuffled, rule)
    expected = {
        record["image"]: vqa_oracle.accuracy(
            answers[record["image"]], [item["answer"] for item in record["answers"]], rule
        )
        for record in RECORDS
    }
    assert found["accuracy"] == pytest.approx(100 * sum(expected.values()) / 4)
    assert found["accuracy/other"] == pytest.approx(50 * (expected[MEDICINE] + expected[BASIL]))
    said = Counter(vqa_oracle.NORMALISED[rule](answer) for answer in answers.values())
    assert found["unanswerable_rate"] == 25 * said["unanswerable"]


def test_the_questions_end_as_llava_asks_or_as_the_study_says(tmp_path):
    first = build(tmp_path).load()[0]
    assert first.text == (
        "Can you tell me what this medicine is please?\n"
        "When the provided information is insufficient, respond with 'Unanswerable'.\n"
        "Answer the question using a single word or phrase."
    )
    assert (first.question_id, first.image_uri) == (MEDICINE, MEDICINE) and first.image_path.is_file()
    assert build(tmp_path, prompt_suffix=" Briefly.").load()[2].text == "What is this? Briefly."
    assert json.loads(first.expected) == {
        "answer_type": "other",
        "answers": [item["answer"] for item in RECORDS[0]["answers"]],
    }


@pytest.mark.parametrize(
    ("answer", "phrase"),
    [
        ("red", True),
        ("Red.", True),
        ("a red circle at night", True),
        ("red circle\n", True),
        ("one two three four five six", False),
        ("There is a red circle.", False),
        ("It is!", False),
        ("red\nblue", False),
        ("", False),
        (" \n", False),
    ],
)
def test_a_phrase_is_a_few_words_in_one_line_and_no_sentence(answer, phrase):
    assert is_phrase(answer) is phrase


def test_reading_is_the_text_that_is_compared(tmp_path):
    vizwiz = build(tmp_path)
    medicine, _, _, light = vizwiz.load()
    assert vizwiz.reading(medicine, "The night-time medicine.") == "night time medicine"
    assert vizwiz.reading(light, " Yes.\n") == "Yes."
    assert vizwiz.reading(light, " Yes.\n", "evalai") == "yes"
    with pytest.raises(BenchmarkError, match="no rule 'mine'"):
        vizwiz.reading(light, "yes", "mine")
    with pytest.raises(BenchmarkError, match="no rule 'mine'"):
        values(vizwiz, dict.fromkeys((MEDICINE, BASIL, WHAT, LIGHT), ""), "mine")


def test_two_recipes_are_compared_over_the_same_images(tmp_path):
    vizwiz = build(tmp_path)
    questions = vizwiz.load()
    silent, right = ({question.question_id: text for question in questions} for text in ("", "unanswerable"))
    sides = {"right": [vizwiz.per_question(questions, right)], "silent": [vizwiz.per_question(questions, silent)]}
    both = sampled(vizwiz.metrics, sides, resamples=50)
    accuracy, constant, rate = (
        difference(both["right"], both["silent"], metric)
        for metric in ("accuracy", "constant_unanswerable", "unanswerable_rate")
    )
    assert accuracy.value == pytest.approx(100 * 1.6 / 4)
    assert constant.value == 0
    assert rate.significant


def test_references_other_than_ten_are_said(tmp_path):
    records = [RECORDS[0], RECORDS[1] | {"answers": RECORDS[1]["answers"][:3]}]
    vizwiz = build(tmp_path, records)
    assert vizwiz.notes(vizwiz.load()) == ["1 of 2 questions have other than 10 references"]
    assert build(tmp_path).notes(build(tmp_path).load()) == []


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ([], "expected an object"),
        ({"question": "?"}, "image is missing"),
        (RECORDS[0] | {"image": MEDICINE}, "the image stands in"),
        ({key: value for key, value in RECORDS[1].items() if key != "answers"}, "no answers. A test split's"),
        (RECORDS[1] | {"answers": []}, "answers: expected a list"),
        (RECORDS[1] | {"answers": ["basil"]}, "answers: expected a list"),
        (RECORDS[1] | {"answers": [{"answer": 3}]}, "answers: expected a list"),
        (RECORDS[1] | {"answers": {"answer": "basil"}}, "answers: expected a list"),
        ({key: value for key, value in RECORDS[1].items() if key != "answer_type"}, "answer_type is missing"),
        (RECORDS[1] | {"question": " "}, "question is ' '"),
        (RECORDS[1] | {"image": "gone.jpg"}, "no image gone.jpg"),
        (RECORDS[1] | {"image": "../val.json"}, "below the image root"),
    ],
)
def test_a_malformed_record_is_an_error_that_names_it(tmp_path, record, said):
    images = write_images(tmp_path)
    path = write_annotations(tmp_path, [RECORDS[0], record])
    with pytest.raises(BenchmarkError) as error:
        Vizwiz(VizwizSettings(annotations=path, image_root=images)).load()
    assert said in str(error.value) and f"{path}, record 2" in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"), [("{}", "one JSON array"), ("[1", "not valid JSON"), ("[]", "no records")]
)
def test_a_file_of_something_else_is_an_error_that_names_it(tmp_path, content, said):
    path = write_annotations(tmp_path, content)
    with pytest.raises(BenchmarkError, match=said) as error:
        Vizwiz(VizwizSettings(annotations=path, image_root=tmp_path)).load()
    assert str(path) in str(error.value)
