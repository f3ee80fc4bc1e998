"""MME results in the official tool's layout, against the tool's own computation told once more."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.evaluation.mme import COGNITION, PERCEPTION, Mme
from m3po_dagster.evaluation.question import BenchmarkError
from m3po_dagster.evaluation.results.mme_results import OFFICIAL_QUESTIONS, read_mme, score_mme
from m3po_dagster.evaluation.settings import MmeSettings
from tests.evaluation.yes_no_oracles import ANSWERS, mme_official

ONE_LINE = ANSWERS.map(lambda text: text.replace("\t", " ").replace("\n", " ").replace("\r", " "))


def write(folder, responses, categories=PERCEPTION + COGNITION, images=3):
    """Two lines an image; `responses` is called for each line with its ground truth."""
    folder.mkdir(exist_ok=True)
    for category in categories:
        lines = []
        for number in range(images):
            for label, what in (("Yes", "a train"), ("No", "no train")):
                question = f"Is there {what}?  Please answer yes or no."
                lines.append(f"{number:012}.jpg\t{question}\t{label}\t{responses(label)}\n")
        (folder / f"{category}.txt").write_text("".join(lines), encoding="utf-8", newline="")
    return folder


def scored(folder, rule="official"):
    return score_mme(*read_mme(folder), rule)


def official(folder):
    """The tool's arithmetic: the lines of the 14 files in twos, whatever they are about."""
    result = {"categories": {}}
    for part, categories in (("perception", PERCEPTION), ("cognition", COGNITION)):
        result[part] = 0
        for category in categories:
            with open(folder / f"{category}.txt", encoding="utf-8") as file:
                fields = [line.split("\t") for line in file.readlines()]
            right = [mme_official(response) == label.lower() for _, _, label, response in fields]
            acc = right.count(True) / len(right)
            pairs = [right[at : at + 2] for at in range(0, len(right), 2)]
            acc_plus = pairs.count([True, True]) / len(pairs)
            score = acc * 100 + acc_plus * 100
            result["categories"][category] = {"acc": acc, "acc_plus": acc_plus, "score": score}
            result[part] += score
    return result | {"total": result["perception"] + result["cognition"]}


def shuffle(folder, seed):
    for path in folder.iterdir():
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        random.Random(seed).shuffle(lines)
        path.write_text("\n".join(lines), encoding="utf-8")


def test_the_categories_are_those_of_the_release():
    assert tuple(OFFICIAL_QUESTIONS) == PERCEPTION + COGNITION
    assert sum(OFFICIAL_QUESTIONS.values()) == 2374


@given(st.lists(ONE_LINE, min_size=6, max_size=30), st.integers(0, 99))
def test_figures_are_the_official_tools_for_any_answers(tmp_path_factory, texts, seed):
    chance = random.Random(seed)
    folder = write(tmp_path_factory.mktemp("results"), lambda label: chance.choice([*texts, label, label]), images=2)
    assert scored(folder).as_json() == official(folder)


@given(st.integers(0, 10_000))
def test_the_order_of_lines_changes_nothing_and_scores_stay_in_range(tmp_path_factory, seed):
    chance = random.Random(seed)
    folder = write(tmp_path_factory.mktemp("results"), lambda label: chance.choice([label, "Yes", "No", "maybe"]))
    before = scored(folder)
    shuffle(folder, seed)
    assert scored(folder).as_json() == before.as_json()
    for one in before.categories.values():
        assert 0 <= one.acc_plus <= one.acc <= 1
        assert one.score == 100 * one.acc + 100 * one.acc_plus
    assert before.parts["total"] == pytest.approx(sum(one.score for one in before.categories.values()))


def test_an_image_is_paired_by_its_name_where_the_official_tool_takes_neighbours(tmp_path):
    """Lines sorted by ground truth: all Yes first. Always yes then looks like images with both right."""
    folder = write(tmp_path / "results", lambda label: "Yes", images=2)
    for path in folder.iterdir():
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[::2] + lines[1::2]))
    assert scored(folder).parts["total"] == 700
    assert official(folder)["total"] == 1400


@pytest.mark.parametrize("rule", Mme.rules)
@pytest.mark.parametrize("constant", ["Yes", "no", "No."])
def test_a_constant_answer_scores_500_and_200(tmp_path, constant, rule):
    found = scored(write(tmp_path / "results", lambda label: constant), rule).as_json()
    assert (found["perception"], found["cognition"], found["total"]) == (500, 200, 700)
    assert set(found) == {"perception", "cognition", "total", "categories"}
    assert all(one == {"acc": 0.5, "acc_plus": 0, "score": 50} for one in found["categories"].values())


def test_right_answers_score_2000_and_800(tmp_path):
    found = scored(write(tmp_path / "results", str))
    assert found.parts == {"perception": 2000, "cognition": 800, "total": 2800}
    assert found.shares == {"yes_ratio": 0.5, "other": 0, "format": 1}


def test_rules_read_the_same_files_differently(tmp_path):
    folder = write(tmp_path / "results", lambda label: f"...{label[0]}")
    assert {rule: scored(folder, rule).parts["total"] for rule in Mme.rules} == {
        "official": 0,
        "lmms-eval": 2800,
        "vlmevalkit": 0,
    }
    with pytest.raises(BenchmarkError, match="no rule 'evalai'"):
        scored(folder, "evalai")


def test_fewer_categories_are_summed_and_the_missing_named(tmp_path):
    found = scored(write(tmp_path / "results", str, ("OCR", "count", "existence")))
    assert list(found.categories) == ["existence", "count", "OCR"]
    assert found.parts == {"perception": 600, "cognition": 0, "total": 600}
    missing = [name for name in PERCEPTION + COGNITION if name not in found.categories]
    assert found.as_json()["missing"] == found.missing == missing
    assert found.notes() == [
        "perception is the sum of 3 of 10 categories; missing: position, color, posters, celebrity, scene, landmark, "
        "artwork",
        f"cognition is the sum of 0 of 4 categories; missing: {', '.join(COGNITION)}",
        "not the number of questions of MME's release: existence 6 of 60, count 6 of 60, OCR 6 of 40",
    ]


def test_a_whole_release_has_no_notes(tmp_path):
    folder = tmp_path / "results"
    for category, number in OFFICIAL_QUESTIONS.items():
        write(folder, str, (category,), images=number // 2)
    found = scored(folder)
    assert (found.notes(), found.missing) == ([], [])


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\n\n"),
        lambda text: text.rstrip("\n"),
        lambda text: text.replace("Yes\n", "Yes\tand a tab\tor two\n"),
        lambda text: text.replace("\tYes\t", "\tYES\t").replace("\tNo\t", "\tno\t"),
    ],
)
def test_harmless_differences_change_no_figure(tmp_path, change):
    chance = random.Random(3)
    folder = write(tmp_path / "results", lambda label: chance.choice([label, "Yes"]))
    before = scored(folder).as_json()
    for path in folder.iterdir():
        text = path.read_text()
        assert change(text) != text
        path.write_text(change(text), encoding="utf-8", newline="")
    assert scored(folder).as_json() == before


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("a.jpg\tq\tYes\tYes\n", "MME asks 2 questions an image, but a.jpg has 1 (line 1)"),
        ("a\tq\tYes\tYes\na\tr\tNo\tNo\nb\tq\tYes\tNo\n", "b has 1 (line 3)"),
        ("a\tq\tYes\t1\na\tr\tNo\t2\na\ts\tNo\t3\n", "a has 3 (line 1, 2, 3)"),
        ("a\tq\tYes\tYes\n\na\tq\tyes\tNo\n", "line 3: a and its question stand in line 1 too"),
        ("a\tq\tYes\tYes\na\tr\tNo\n", "line 2: expected image, question, ground truth and response"),
        ("a\tq\tYes\tYes\nand so\na\tr\tNo\tNo\n", "line 2: expected image, question, ground truth and response"),
        ("a\tq\tYes\tYes\n \n", "line 2: expected image, question, ground truth and response"),
        ("a\tq\tMaybe\tYes\n", "line 1: the ground truth of a is 'Maybe', expected Yes or No"),
        ("a\tq\tr\tYes\tYes\n", "line 1: the ground truth of a is 'r'"),
        ("\tq\tYes\tYes\n", "line 1: the image is empty"),
        ("a\t\tYes\tYes\n", "line 1: the question is empty"),
        ("", "no answers"),
        ("\n\n", "no answers"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_file_that_is_not_whole_is_named_with_its_line(tmp_path, lines, said):
    path = write(tmp_path / "results", str) / "color.txt"
    path.write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    with pytest.raises(BenchmarkError) as error:
        scored(path.parent)
    assert str(error.value).startswith(str(path))
    assert said in str(error.value)


def test_one_text_with_both_ground_truths_is_two_questions_as_for_the_official_tool(tmp_path):
    folder = write(tmp_path / "results", lambda label: "Yes")
    for path in folder.iterdir():
        path.write_text(path.read_text().replace("no train", "a train"))
    found = scored(folder)
    assert found.as_json() == official(folder)
    assert found.parts == {"perception": 500, "cognition": 200, "total": 700}


def test_files_that_are_no_category_are_named_and_other_kinds_left_alone(tmp_path):
    folder = write(tmp_path / "results", str)
    for name in ("calculation.py", "README.md", ".hidden.txt"):
        (folder / name).write_text("no results")
    (folder / "old.txt").mkdir()
    assert scored(folder).parts["total"] == 2800
    (folder / "old.txt").rmdir()
    (folder / "colour.txt").write_text("")
    with pytest.raises(BenchmarkError, match=r"no categories of MME: colour\.txt; there are existence, count"):
        scored(folder)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(BenchmarkError, match=r"no <category>\.txt"):
        scored(folder)
    with pytest.raises(BenchmarkError, match="no such folder"):
        scored(tmp_path / "none")


def test_the_benchmark_and_its_results_in_the_official_layout_score_alike(tmp_path):
    """The published questions, answered, written as the official tool reads them, and scored from there."""
    for category in PERCEPTION + COGNITION:
        (tmp_path / "mme" / category).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "mme" / category / f"{number}.jpg").write_bytes(b"x")
            (tmp_path / "mme" / category / f"{number}.txt").write_text("Is it a train?\tYes\nIs it a bus?\tNo\n")
    mme = Mme(MmeSettings(root=tmp_path / "mme"))
    questions, chance = mme.load(), random.Random(5)
    answers = {one.question_id: chance.choice(["Yes.", "no", " yes", "none"]) for one in questions}
    (tmp_path / "results").mkdir()
    for one in questions:
        with open(tmp_path / "results" / f"{one.group}.txt", "a", encoding="utf-8") as file:
            file.write(f"{one.image_path.name}\t{one.text}\t{one.expected}\t{answers[one.question_id]}\n")
    for rule in mme.rules:
        metrics = {metric.metric: metric.value for metric in mme.score(questions, answers, rule, resamples=10)}
        found = scored(tmp_path / "results", rule)
        assert {name: metrics[name] for name in found.parts} == pytest.approx(found.parts)
        assert {name: metrics[name] / 100 for name in found.shares} == pytest.approx(dict(found.shares))
        for name, one in found.categories.items():
            assert metrics[f"{name}/score"] == pytest.approx(one.score)
