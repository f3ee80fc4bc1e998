import json
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from m3po_dagster.evaluation.pope import Pope, says_yes
from m3po_dagster.evaluation.question import BenchmarkError
from m3po_dagster.evaluation.settings import PopeSettings

SPLITS = ("random", "popular", "adversarial")


def build(folder, images=6, splits=SPLITS, questions_an_image=4):
    """POPE's files: the ids repeat across splits, each image has as many yes as no."""
    (folder / "images").mkdir(exist_ok=True)
    for number in range(images):
        (folder / "images" / f"COCO_{number}.jpg").write_bytes(b"x")
    labels = {}
    for split in splits:
        rows = [
            {
                "question_id": number + 1,
                "image": f"COCO_{number // questions_an_image}.jpg",
                "text": f"Is there a {split} {number} in the image?",
                "label": ("yes", "no")[number % 2],
            }
            for number in range(images * questions_an_image)
        ]
        labels[split] = folder / f"coco_pope_{split}.json"
        labels[split].write_text("\n".join(map(json.dumps, rows)) + "\n")
    return Pope(PopeSettings(labels=labels, image_root=folder / "images"))


def values(pope, questions, answers):
    return {metric.metric: metric.value for metric in pope.score(questions, answers, resamples=20)}


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("There is a dog. No cat.", True),
        ("Mr. Smith is not here", True),
        ("not sure", False),
        ("Yes\nbut not", False),
        ("yes  no", False),
        ("", True),
        ("NO", True),
        ("Nope", True),
        ("None", True),
        ("no!", True),
        ("I cannot see", True),
        ("No, there is no dog.", False),
        ("No", False),
        ("No\nthere is a dog", True),
        ("Yes, there is a dog.", True),
        ("It is not. Yes.", False),
        ("no,", False),
    ],
)
def test_published_examples_of_the_official_rule(answer, yes):
    assert says_yes(answer) is yes


def letters_rule(text):
    """The rule told letter by letter."""
    word, words = "", []
    for letter in text + " ":
        if letter == ".":
            words.append(word)
            break
        if letter == " ":
            words.append(word)
            word = ""
        elif letter != ",":
            word += letter
    return not any(item in ("No", "not", "no") for item in words)


@given(st.text(st.sampled_from(list("noNotYes.,\n\t !")), max_size=30))
@example("n,o")
@example(".no")
def test_the_rule_is_the_letters_rule(text):
    assert says_yes(text) == letters_rule(text)


def oracle(questions, answers, split):
    """The published definitions, counted one question at a time; None where the official script divides by zero."""
    tp = fp = tn = fn = 0
    for question in questions:
        if not question.question_id.startswith(split + "/"):
            continue
        if letters_rule(answers[question.question_id]):
            tp, fp = tp + (question.expected == "yes"), fp + (question.expected == "no")
        else:
            tn, fn = tn + (question.expected == "no"), fn + (question.expected == "yes")
    precision = tp / (tp + fp) if tp + fp else None
    recall = tp / (tp + fn)
    f1 = 2 * precision * recall / (precision + recall) if precision else None
    total = tp + fp + tn + fn
    return {
        "accuracy": (tp + tn) / total,
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "yes_ratio": (tp + fp) / total,
    }


@given(st.integers(0, 10_000))
def test_metrics_are_the_published_definitions(tmp_path_factory, seed):
    pope = build(tmp_path_factory.mktemp("pope"), images=3)
    questions = pope.load()
    chance = random.Random(seed)
    replies = ["Yes.", "No.", "There is not", "no", "Yes, a dog", ""]
    answers = {question.question_id: chance.choice(replies) for question in questions}
    found = values(pope, questions, answers)
    expected = {split: oracle(questions, answers, split) for split in SPLITS}
    for split in SPLITS:
        for name, value in expected[split].items():
            assert found[f"{split}/{name}"] == pytest.approx(100 * (value or 0))
    for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
        assert found[name] == pytest.approx(100 * sum(expected[split][name] or 0 for split in SPLITS) / 3)


def test_constant_answers_on_balanced_questions(tmp_path):
    pope = build(tmp_path)
    questions = pope.load()
    yes = values(pope, questions, {question.question_id: "Yes" for question in questions})
    no = values(pope, questions, {question.question_id: "No" for question in questions})
    right = values(pope, questions, {question.question_id: question.expected for question in questions})
    assert (yes["accuracy"], yes["precision"], yes["recall"], yes["yes_ratio"]) == (50, 50, 100, 100)
    assert yes["f1"] == pytest.approx(200 / 3)
    assert (no["accuracy"], no["precision"], no["recall"], no["f1"], no["yes_ratio"]) == (50, 0, 0, 0, 0)
    assert (right["accuracy"], right["f1"], right["yes_ratio"]) == (100, 100, 50)


def test_the_mean_over_splits_is_unweighted(tmp_path):
    pope = build(tmp_path, images=2)
    lines = pope.settings.labels["random"].read_text().splitlines()
    pope.settings.labels["random"].write_text("\n".join(lines[:2]))
    questions = pope.load()
    found = values(pope, questions, {question.question_id: "Yes" for question in questions})
    right = {question.question_id: question.expected for question in questions if question.group == "random"}
    all_yes = {question.question_id: "Yes" for question in questions}
    found = values(pope, questions, all_yes | right)
    assert found["accuracy"] == pytest.approx((100 + 50 + 50) / 3)


@pytest.mark.parametrize(
    ("answer", "compliant"),
    [("Yes", 100), (" no, nothing", 100), ("YES.", 100), ("Nothing", 0), ("Yesterday", 0), ("", 0), ("There is", 0)],
)
def test_format_is_yes_or_no_as_the_first_word(tmp_path, answer, compliant):
    pope = build(tmp_path, images=1)
    questions = pope.load()
    assert values(pope, questions, {question.question_id: answer for question in questions})["format"] == compliant


def test_ids_are_unique_across_splits_and_answers_join_on_them(tmp_path):
    pope = build(tmp_path)
    questions = pope.load()
    assert len(questions) == 72
    assert len({question.question_id for question in questions}) == 72
    assert questions[0].question_id == "random/1"
    answers = {
        question.question_id: random.Random(question.question_id).choice(["Yes", "No"]) for question in questions
    }
    shuffled = dict(random.Random(0).sample(sorted(answers.items()), len(answers)))
    mixed = random.Random(1).sample(questions, len(questions))
    assert pope.score(questions, answers) == pope.score(mixed, shuffled)
    assert (pope.notes(questions), pope.score(questions, answers)[0].n) == ([], 24)
    with pytest.raises(BenchmarkError, match="missing: random/1"):
        pope.per_question(questions, {name: text for name, text in answers.items() if name != "random/1"})


def test_fewer_splits_are_said(tmp_path):
    pope = build(tmp_path, splits=("random", "popular"))
    assert pope.notes(pope.load()) == ["the mean is over 2 of 3 splits: random, popular"]


GOOD = {"question_id": 1, "image": "COCO_0.jpg", "text": "Is there a dog?", "label": "yes"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected one JSON object a line"),
        (GOOD | {"question_id": 1}, "line 1 too"),
        (GOOD | {"question_id": None}, "question_id is 'None'"),
        (GOOD | {"question_id": float("nan")}, "question_id is 'nan'"),
        (GOOD | {"question_id": 2, "label": "maybe"}, "label is 'maybe', expected 'yes' or 'no'"),
        ({"question_id": 2, "image": "COCO_0.jpg", "text": "?"}, "label is missing"),
        (GOOD | {"question_id": 2, "text": 3}, "text is '3'"),
        (GOOD | {"question_id": 2, "image": "none.jpg"}, "no image none.jpg"),
        (GOOD | {"question_id": 2, "image": "../coco_pope_random.json"}, "not a path below the image root"),
        (GOOD | {"question_id": 2, "image": "a\0"}, "image is"),
    ],
)
def test_a_malformed_label_is_an_error_with_file_and_line(tmp_path, line, said):
    pope = build(tmp_path, images=1, splits=("random",))
    path = pope.settings.labels["random"]
    path.write_text(json.dumps(GOOD) + "\n\n" + (line if isinstance(line, str) else json.dumps(line)))
    with pytest.raises(BenchmarkError) as error:
        pope.load()
    assert said in str(error.value)
    assert f"{path}, line 3" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe", None])
def test_a_file_without_questions_is_an_error_that_names_it(tmp_path, content):
    pope = build(tmp_path, images=1)
    path = pope.settings.labels["popular"]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BenchmarkError, match="coco_pope_popular"):
        pope.load()
