"""Which rules agree about an answer, and how much of a long reading is shown."""

import json

from m3po_dagster.evaluation.rules.vqa import VQA_RULES
from m3po_dagster.evaluation.settings import VizwizSettings
from m3po_dagster.evaluation.vizwiz import Vizwiz
from m3po_dagster.inspector.readings import question_of, readings

QUESTION = {
    "question_id": "0.jpg",
    "image_uri": "red.png",
    "question": "What is this?",
    "expected": json.dumps({"answer_type": "other", "answers": ["dog"] * 10}),
}
START = "dog " * 100
OTHERS = [rule for rule in VQA_RULES if rule != "official"]


def test_rules_that_part_only_at_the_end_of_a_long_answer_do_not_agree(tmp_path):
    item = Vizwiz(VizwizSettings(annotations=tmp_path / "val.json", image_root=tmp_path))
    question = question_of(QUESTION, tmp_path)
    assert readings(item, question, START + "two") == (
        ("official", START + "two"),
        (", ".join(OTHERS), START + "2"),
    )
    assert readings(item, question, START + "cat") == ((", ".join(VQA_RULES), START + "cat"),)


def test_the_page_shows_the_beginning_of_a_long_reading_and_marks_the_cut(made_study, client):
    made_study.settings["benchmarks"] = {
        "pope": {"kind": "vizwiz", "annotations": "./none.json", "image_root": "./images"}
    }
    made_study.write()
    made_study.add_answers("base", {0: [START + "two"]}, [QUESTION])
    client.watch.settle()
    page = client.get("/answers").text
    assert f'read by official: <strong dir="auto">{START[:200]} …</strong>' in page
    assert f'read by {", ".join(OTHERS)}: <strong dir="auto">{START[:200]} …</strong>' in page
    made_study.add_answers("base", {0: ["a dog"]}, [QUESTION])
    client.watch.settle()
    assert '<strong dir="auto">dog</strong>' in client.get("/answers").text
