"""Answers as JSON lines against POPE's label files, against the official script told once more."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.evaluation.pope import Pope
from m3po_dagster.evaluation.question import BenchmarkError
from m3po_dagster.evaluation.results.pope_answers import read_pope, score_pope
from m3po_dagster.evaluation.settings import PopeSettings
from tests.evaluation.yes_no_oracles import ANSWERS, pope_official

KEYS = {"accuracy", "precision", "recall", "f1", "yes_ratio", "n"}
SPLITS = ("random", "popular", "adversarial")


def write_labels(folder, split="random", count=12):
    folder.mkdir(exist_ok=True)
    rows = [
        {"question_id": at + 1, "image": f"COCO_{at // 6}.jpg", "text": f"Is it {at}?", "label": ("yes", "no")[at % 2]}
        for at in range(count)
    ]
    path = folder / f"coco_pope_{split}.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_answers(folder, texts, name="answers.jsonl", key="answer", ids=None, **fields):
    path, ids = folder / name, ids or range(1, 1 + len(texts))
    rows = [{"question_id": one, **fields, key: text} for one, text in zip(ids, texts, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def scored(answers, labels, rule="official"):
    return score_pope([read_pope(answers, labels)], rule).as_json()


def official(answers, labels):
    """The script's arithmetic: both files line by line. None where it divides by zero."""
    texts = [json.loads(line)["answer"] for line in answers.read_text().split("\n") if line]
    truth = [json.loads(line)["label"] == "yes" for line in labels.read_text().split("\n") if line]
    said = [pope_official(text) == "yes" for text in texts]
    pairs = list(zip(said, truth, strict=True))
    tp, fp, fn = (pairs.count(kind) for kind in ((True, True), (True, False), (False, True)))
    if not tp:
        return None
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return {
        "accuracy": (tp + pairs.count((False, False))) / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "yes_ratio": said.count(True) / len(said),
        "n": len(pairs),
    }


@given(st.lists(ANSWERS, min_size=12, max_size=12))
def test_figures_are_the_official_scripts_for_any_answers(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("pope")
    answers, labels = write_answers(folder, texts), write_labels(folder)
    found, expected = scored(answers, labels), official(answers, labels)
    assert set(found) == KEYS
    assert all(0 <= found[name] <= 1 for name in KEYS - {"n"})
    if expected is None:
        assert (found["precision"], found["f1"]) == (0, 0)
    else:
        assert found == pytest.approx(expected)


def test_constant_answers_on_balanced_labels_are_half_right(tmp_path):
    labels = write_labels(tmp_path)
    yes = scored(write_answers(tmp_path, ["Yes"] * 12), labels)
    assert yes == {"accuracy": 0.5, "precision": 0.5, "recall": 1, "f1": pytest.approx(2 / 3), "yes_ratio": 1, "n": 12}
    no = scored(write_answers(tmp_path, ["No"] * 12), labels)
    assert no == {"accuracy": 0.5, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0, "n": 12}


@given(st.integers(0, 10_000))
def test_answers_join_on_ids_whatever_the_order_and_the_kind_of_id(tmp_path_factory, seed):
    folder, chance = tmp_path_factory.mktemp("pope"), random.Random(seed)
    labels = write_labels(folder)
    texts = [chance.choice(["Yes", "No", "not sure", "yes."]) for _ in range(12)]
    answers = write_answers(folder, texts)
    order = chance.sample(range(12), 12)
    ids = [chance.choice([int, str])(at + 1) for at in order]
    mixed = write_answers(folder, [texts[at] for at in order], "mixed.jsonl", ids=ids)
    for rule in Pope.rules:
        assert scored(mixed, labels, rule) == scored(answers, labels, rule)


def test_llavas_key_is_read_when_popes_own_is_absent(tmp_path):
    labels, texts = write_labels(tmp_path), ["Yes", "No"] * 6
    llava = write_answers(tmp_path, texts, "llava.jsonl", key="text", prompt="Is there a dog?", metadata={})
    assert scored(llava, labels) == scored(write_answers(tmp_path, texts), labels)
    both = tmp_path / "both.jsonl"
    both.write_text(
        "\n".join(
            json.dumps({"question_id": at + 1, "prompt": "?", "text": "?", "answer": texts[at]}) for at in range(12)
        )
    )
    assert scored(both, labels) == scored(llava, labels)


def test_a_label_file_is_no_file_of_answers_though_its_text_is_text(tmp_path):
    labels = write_labels(tmp_path)
    with pytest.raises(BenchmarkError, match=r"random\.json, line 1: question_id 1 has no 'answer'"):
        scored(labels, labels)


def test_several_splits_and_their_unweighted_mean(tmp_path):
    pairs = []
    for split, count, texts in (("random", 12, ["Yes", "No"] * 6), ("popular", 4, ["No"] * 4)):
        pairs.append((write_answers(tmp_path, texts, f"{split}.jsonl"), write_labels(tmp_path, split, count)))
    found = score_pope([read_pope(*pair) for pair in pairs], "official").as_json()
    assert list(found) == ["splits", "mean"]
    assert found["splits"] == {pair[1].stem: scored(*pair) for pair in pairs}
    assert found["mean"] == {"accuracy": 0.75, "precision": 0.5, "recall": 0.5, "f1": 0.5, "yes_ratio": 0.25, "n": 16}


def test_rules_read_the_same_answers_differently(tmp_path):
    labels = write_labels(tmp_path)
    answers = write_answers(tmp_path, ["Yes.", "No."] * 6)
    assert {rule: scored(answers, labels, rule)["accuracy"] for rule in Pope.rules} == {
        "official": 1,
        "lmms-eval": 0,
        "vlmevalkit": 1,
    }
    with pytest.raises(BenchmarkError, match="no rule 'evalai'"):
        scored(answers, labels, "evalai")


def test_the_benchmark_and_answers_in_the_official_layout_score_alike(tmp_path):
    labels = {split: write_labels(tmp_path, split) for split in SPLITS}
    for number in range(2):
        (tmp_path / f"COCO_{number}.jpg").write_bytes(b"x")
    pope = Pope(PopeSettings(labels=labels, image_root=tmp_path))
    questions, chance = pope.load(), random.Random(2)
    answers = {one.question_id: chance.choice(["Yes", "No.", "not sure", "no!"]) for one in questions}
    pairs = []
    for split, path in labels.items():
        mine = [answers[one.question_id] for one in questions if one.group == split]
        pairs.append(read_pope(write_answers(tmp_path, mine, f"{split}.jsonl"), path))
    for rule in pope.rules:
        metrics = {metric.metric: metric.value / 100 for metric in pope.score(questions, answers, rule, resamples=10)}
        found = score_pope(pairs, rule)
        assert {name: metrics[name] for name in found.mean if name != "n"} == pytest.approx(
            {name: share for name, share in found.mean.items() if name != "n"}
        )
        for split in SPLITS:
            for name, share in found.splits[f"coco_pope_{split}"].items():
                assert name == "n" or metrics[f"{split}/{name}"] == pytest.approx(share)


def test_missing_and_extra_answers_are_both_named_with_their_lines(tmp_path):
    labels = write_labels(tmp_path)
    answers = write_answers(tmp_path, ["Yes"] * 12, ids=[*range(1, 10), 20, 11, 21])
    with pytest.raises(BenchmarkError) as error:
        scored(answers, labels)
    assert str(error.value) == (
        f"{answers}: 2 of 12 answers are missing: 10 ({labels}, line 10), 12 ({labels}, line 12); "
        f"2 answers belong to no question of {labels}: 20 ({answers}, line 10), 21 ({answers}, line 12)"
    )
    answers.write_text("")
    with pytest.raises(BenchmarkError, match=r"12 of 12 answers are missing: 1 .*, 5 \([^,]*, line 5\), \.\.\.$"):
        scored(answers, labels)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"question_id": 1, "answer": "No"}', "question_id 1 is answered in {path}, line 1 too"),
        ('{"question_id": "1", "answer": "No"}', "question_id 1 is answered in {path}, line 1 too"),
        ('{"question_id": 2}', "question_id 2 has no 'answer'"),
        ('{"question_id": 2, "answer": null}', "the answer of question_id 2 is 'None', no text"),
        ('{"question_id": 2, "prompt": "?", "text": 7}', "the text of question_id 2 is '7', no text"),
        ('{"question_id": 2, "prompt": "?"}', "question_id 2 has no 'answer'"),
        ('{"question_id": 2, "text": "No"}', "question_id 2 has no 'answer'"),
        ('{"question_id": 2, "prompt": "?", "text": "No", "label": "no"}', "question_id 2 has no 'answer'"),
        ('{"question_id": "2\\udc00", "answer": "No"}', r"question_id holds '\udc00', half a surrogate pair"),
        ('{"answer": "Yes"}', "question_id is 'None'"),
        ('{"question_id": 2, "answer": "Ye', "not valid JSON"),
        ("[]", "expected one JSON object a line"),
    ],
)
def test_a_malformed_answer_is_named_with_file_and_line(tmp_path, line, said):
    labels, path = write_labels(tmp_path, count=2), tmp_path / "answers.jsonl"
    path.write_text('{"question_id": 1, "answer": "Yes"}\n\n' + line)
    with pytest.raises(BenchmarkError) as error:
        scored(path, labels)
    assert str(error.value).startswith(f"{path}, line 3: ")
    assert said.format(path=path) in str(error.value)


def test_files_that_are_not_there_are_named(tmp_path):
    labels, answers = write_labels(tmp_path), write_answers(tmp_path, ["Yes"] * 12)
    for pair in ((tmp_path / "none", labels), (answers, tmp_path / "none")):
        with pytest.raises(BenchmarkError, match="none: no such file"):
            scored(*pair)
    labels.write_text('{"question_id": 1, "image": "a", "text": "?", "label": "maybe"}')
    with pytest.raises(BenchmarkError, match=r"random\.json, line 1: label is 'maybe', expected 'yes' or 'no'"):
        scored(answers, labels)
