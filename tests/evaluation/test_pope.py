import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.evaluation.pope import Pope
from m3po_dagster.evaluation.question import BenchmarkError
from m3po_dagster.evaluation.settings import PopeSettings
from tests.evaluation.yes_no_oracles import POPE, pope_official

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


def values(pope, questions, answers, rule="official"):
    return {metric.metric: metric.value for metric in pope.score(questions, answers, rule, resamples=20)}


def oracle(questions, answers, split):
    """The published definitions, counted one question at a time; None where the official script divides by zero."""
    tp = fp = tn = fn = 0
    for question in questions:
        if not question.question_id.startswith(split + "/"):
            continue
        if pope_official(answers[question.question_id]) == "yes":
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


def lmms_eval(pairs):
    """lmms-eval's own lists: precision and recall see only answers that are yes or no, the yes-ratio only labels."""
    read = [(POPE["lmms-eval"](answer), label) for answer, label in pairs]
    hits = read.count(("yes", "yes"))
    predicted, found = hits + read.count(("yes", "no")), hits + read.count(("no", "yes"))
    precision, recall = hits / predicted if predicted else 0, hits / found if found else 0
    return {
        "accuracy": sum(given == label for given, label in read) / len(read),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0,
        "yes_ratio": [label for _, label in read].count("yes") / len(read),
    }


def vlmevalkit(pairs):
    """VLMEvalKit's 0/1 columns: Unknown is a 0 of the prediction, and no right answer."""
    truth = [label == "yes" for _, label in pairs]
    read = [POPE["vlmevalkit"](answer) for answer, _ in pairs]
    predicted = [given == "yes" for given in read]
    hits = sum(a and b for a, b in zip(truth, predicted, strict=True))
    precision = hits / sum(predicted) if sum(predicted) else 0
    recall = hits / sum(truth) if sum(truth) else 0
    return {
        "accuracy": sum(given == label for given, (_, label) in zip(read, pairs, strict=True)) / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0,
        "yes_ratio": sum(predicted) / len(pairs),
    }


@pytest.mark.parametrize("tool", [lmms_eval, vlmevalkit])
@given(st.integers(0, 10_000))
def test_metrics_of_other_rules_are_what_their_tools_count(tmp_path_factory, tool, seed):
    pope = build(tmp_path_factory.mktemp("pope"), images=3, splits=("random",))
    questions = pope.load()
    chance = random.Random(seed)
    replies = ["Yes", " NO ", "Yes.", "not sure", "no, none", "I cannot see", "yes and no", ""]
    answers = {question.question_id: chance.choice(replies) for question in questions}
    found = values(pope, questions, answers, tool.__name__.replace("_", "-"))
    for name, share in tool([(answers[one.question_id], one.expected) for one in questions]).items():
        assert found[f"random/{name}"] == pytest.approx(100 * share)


def test_rules_disagree_about_the_very_same_answers(tmp_path):
    """A model that says "Yes." and "No." is right by the official rule and wrong throughout by lmms-eval's."""
    pope = build(tmp_path)
    questions = pope.load()
    answers = {question.question_id: f"{question.expected.capitalize()}." for question in questions}
    accuracy = {rule: values(pope, questions, answers, rule)["accuracy"] for rule in pope.rules}
    assert accuracy == {"official": 100, "lmms-eval": 0, "vlmevalkit": 100}
    readings = {rule: pope.reading(questions[0], "Yes.", rule) for rule in pope.rules}
    assert readings == {"official": "yes", "lmms-eval": "other", "vlmevalkit": "yes"}
    shares = {rule: values(pope, questions, answers, rule)["format"] for rule in pope.rules}
    assert set(shares.values()) == {100}


def test_a_rule_that_pope_lacks_is_refused(tmp_path):
    pope = build(tmp_path)
    questions = pope.load()
    answers = {question.question_id: "Yes" for question in questions}
    for call in (lambda: pope.score(questions, answers, "evalai"), lambda: pope.reading(questions[0], "Yes", "evalai")):
        with pytest.raises(BenchmarkError, match="pope has no rule 'evalai'; it has official, lmms-eval, vlmevalkit"):
            call()


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
