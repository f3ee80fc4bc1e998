import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.evaluation.mme import COGNITION, NOISE, PERCEPTION, Mme
from m3po_dagster.evaluation.question import BenchmarkError
from m3po_dagster.evaluation.settings import MmeSettings

ASK = "Please answer yes or no."


def build(root, categories, images=3, nested=()):
    """MME's folders: texts beside the images, or in the categories named by `nested` in folders of their own."""
    for category in categories:
        pictures, texts = root / category, root / category
        if category in nested:
            pictures, texts = root / category / "images", root / category / "questions_answers_YN"
        pictures.mkdir(parents=True)
        texts.mkdir(exist_ok=True)
        for number in range(images):
            (pictures / f"{number:012}.jpg").write_bytes(b"x")
            lines = f"Is there a train?  {ASK}\tYes\nIs there a {category}? {ASK}\tNo\n"
            (texts / f"{number:012}.txt").write_text(lines)
    return Mme(MmeSettings(root=root))


def values(mme, questions, answers, rule="official"):
    return {metric.metric: metric.value for metric in mme.score(questions, answers, rule, resamples=20)}


def test_both_published_layouts_give_the_same_questions(tmp_path):
    flat = build(tmp_path / "flat", ("existence", "landmark"))
    mixed = build(tmp_path / "mixed", ("existence", "landmark"), nested=("landmark",))
    one, other = flat.load(), mixed.load()
    assert [(q.question_id, q.text, q.expected) for q in one] == [(q.question_id, q.text, q.expected) for q in other]
    assert other[0].question_id == "existence/000000000000.jpg/0"
    assert (other[0].text, other[0].expected) == (f"Is there a train?  {ASK}", "Yes")
    assert other[-1].image_uri == "landmark/images/000000000002.jpg"
    assert all(question.image_path.is_file() for question in one + other)
    answers = {question.question_id: random.Random(question.question_id).choice(["Yes", "No"]) for question in one}
    assert values(flat, one, answers) == values(mixed, other, answers)


@pytest.mark.parametrize("constant", ["Yes", "no", "not sure"])
def test_a_constant_answer_scores_50_a_category(tmp_path, constant):
    mme = build(tmp_path, PERCEPTION + COGNITION, images=2, nested=("artwork", "celebrity", "OCR"))
    questions = mme.load()
    assert len(questions) == 14 * 2 * 2
    found = values(mme, questions, {question.question_id: constant for question in questions})
    assert all(found[f"{category}/score"] == 50 for category in PERCEPTION + COGNITION)
    assert (found["perception"], found["cognition"], found["total"]) == (500, 200, 700)
    assert mme.notes(questions) == [NOISE]


def test_right_answers_score_2000_and_800(tmp_path):
    mme = build(tmp_path, PERCEPTION + COGNITION, images=1)
    questions = mme.load()
    found = values(mme, questions, {question.question_id: question.expected for question in questions})
    assert (found["perception"], found["cognition"], found["total"], found["yes_ratio"]) == (2000, 800, 2800, 50)


@given(st.integers(0, 10_000))
def test_scores_are_the_published_sums(tmp_path_factory, seed):
    """Counted as the published tool does: two lines an image, category by category."""
    mme = build(tmp_path_factory.mktemp("mme"), ("existence", "OCR", "code_reasoning"))
    questions = mme.load()
    chance = random.Random(seed)
    answers = {question.question_id: chance.choice(["Yes", "No", "maybe"]) for question in questions}
    found = values(mme, questions, answers)
    total = 0
    for category in ("existence", "OCR", "code_reasoning"):
        rows = [question for question in questions if question.question_id.startswith(category + "/")]
        right = [answers[question.question_id] == question.expected for question in rows]
        both = [first and second for first, second in zip(right[::2], right[1::2], strict=True)]
        score = 100 * sum(right) / len(right) + 100 * sum(both) / len(both)
        assert found[f"{category}/score"] == pytest.approx(score)
        assert found[f"{category}/score"] == found[f"{category}/accuracy"] + found[f"{category}/accuracy_plus"]
        total += score
    assert found["total"] == pytest.approx(total) == pytest.approx(found["perception"] + found["cognition"])
    assert found["other"] == pytest.approx(100 * list(answers.values()).count("maybe") / len(answers))


def test_rules_disagree_about_the_very_same_answers(tmp_path):
    mme = build(tmp_path, ("existence", "OCR"))
    questions = mme.load()
    answers = {question.question_id: f"   {question.expected}" for question in questions}
    found = {rule: values(mme, questions, answers, rule) for rule in mme.rules}
    assert {rule: one["total"] for rule, one in found.items()} == {"official": 0, "lmms-eval": 400, "vlmevalkit": 400}
    assert {rule: one["other"] for rule, one in found.items()} == {"official": 100, "lmms-eval": 0, "vlmevalkit": 0}
    assert {one["format"] for one in found.values()} == {100}
    assert [mme.reading(questions[0], "   Yes", rule) for rule in mme.rules] == ["other", "yes", "yes"]


@pytest.mark.parametrize("rule", Mme.rules)
def test_format_does_not_follow_the_rule(tmp_path, rule):
    mme = build(tmp_path, ("existence",), images=2)
    questions = mme.load()
    answers = dict(zip([one.question_id for one in questions], ["Yes", "no!", "nothing", "Y"], strict=True))
    assert values(mme, questions, answers, rule)["format"] == 50


def test_a_rule_that_mme_lacks_is_refused(tmp_path):
    mme = build(tmp_path, ("existence",))
    questions = mme.load()
    answers = {question.question_id: "Yes" for question in questions}
    for call in (lambda: mme.score(questions, answers, "evalai"), lambda: mme.reading(questions[0], "Yes", "evalai")):
        with pytest.raises(BenchmarkError, match="mme has no rule 'evalai'; it has official, lmms-eval, vlmevalkit"):
            call()


def test_one_image_name_in_two_categories_is_two_images(tmp_path):
    mme = build(tmp_path, ("existence", "count"), images=1)
    questions = mme.load()
    answers = {question.question_id: question.expected for question in questions}
    answers["count/000000000000.jpg/1"] = "Yes"
    found = values(mme, questions, answers)
    assert (found["existence/accuracy_plus"], found["count/accuracy_plus"]) == (100, 0)
    assert (found["existence/score"], found["count/score"]) == (200, 50)


def test_a_category_that_mme_does_not_know_counts_in_total_alone_and_is_said(tmp_path):
    mme = build(tmp_path, ("existence", "corners"))
    questions = mme.load()
    found = values(mme, questions, {question.question_id: question.expected for question in questions})
    assert (found["perception"], found["total"]) == (200, 400)
    assert "cognition" not in found
    assert mme.notes(questions) == [
        NOISE,
        "perception is the sum of 1 of 10 official categories: existence",
        "counted in total alone, being no categories of MME: corners",
    ]


def test_every_resample_keeps_the_categories_as_they_are(tmp_path):
    """One image a category: resampling across categories would lose some and double others."""
    mme = build(tmp_path, ("existence", "count", "OCR"), images=1)
    questions = mme.load()
    answers = {question.question_id: question.expected for question in questions}
    answers |= {name: "other" for name in answers if name.startswith("OCR")}
    for metric in mme.score(questions, answers, resamples=50):
        assert metric.ci_low == metric.value == metric.ci_high


def test_files_beside_the_questions_are_ignored(tmp_path):
    mme = build(tmp_path, ("existence",), images=1)
    (tmp_path / "readme.txt").write_text("not a category")
    (tmp_path / "._readme.txt").write_bytes(b"\xff")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "existence" / "unasked.jpg").write_bytes(b"x")
    (tmp_path / "existence" / "._000000000000.txt").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "existence" / "._000000000000.jpg").write_bytes(b"\x00\x05\x16\x07")
    assert len(mme.load()) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("Is it?\tYes\n", "1 questions, MME has 2"),
        ("Is it?\tYes\nIs it?\tNo\nIs it?\tNo\n", "3 questions, MME has 2"),
        ("Is it? Yes\nIs it?\tNo", "line 1: expected a question, a tab and Yes or No"),
        ("Is it?\tYes\n\nIs it?\tMaybe", "line 3: expected"),
        ("Is it?\tYes\n\tNo", "line 2: expected"),
        ("image\tIs it?\tYes\tNo\n", "line 1: expected"),
        ("", "0 questions"),
    ],
)
def test_a_malformed_text_file_is_named(tmp_path, content, said):
    mme = build(tmp_path, ("existence",))
    path = tmp_path / "existence" / "000000000001.txt"
    path.write_text(content)
    with pytest.raises(BenchmarkError) as error:
        mme.load()
    assert str(path) in str(error.value)
    assert said in str(error.value)


def test_missing_and_ambiguous_images_and_folders_are_errors(tmp_path):
    mme = build(tmp_path, ("existence",), images=1)
    (tmp_path / "existence" / "000000000000.png").write_bytes(b"x")
    with pytest.raises(BenchmarkError, match="expected one image of that name"):
        mme.load()
    for name in ("000000000000.png", "000000000000.jpg"):
        (tmp_path / "existence" / name).unlink()
    with pytest.raises(BenchmarkError, match="found none"):
        mme.load()
    (tmp_path / "existence" / "000000000000.txt").unlink()
    with pytest.raises(BenchmarkError, match="no category folder"):
        mme.load()
    (tmp_path / "existence" / "images").mkdir()
    with pytest.raises(BenchmarkError, match="no questions_answers_YN"):
        mme.load()
    with pytest.raises(BenchmarkError, match="no such folder"):
        Mme(MmeSettings(root=tmp_path / "none")).load()
