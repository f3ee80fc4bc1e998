"""The rules of VQA accuracy: tables worked out by hand from the public scripts, and laws over odd strings."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from m3po_dagster.evaluation.rules.contractions import CONTRACTIONS
from m3po_dagster.evaluation.rules.vqa import (
    VQA_RULES,
    normalise_evalai,
    normalise_official,
    normalise_vlmevalkit,
    vqa_accuracy,
)
from tests.evaluation import vqa_oracle

PIECES = [
    *"aA1٣².,'s-;/?!()@:$% \t\n\u00a0",
    *("the", "one", "None", "dont", "Im", "somebody'd", "'s", "...", "1,0", " - ", "unanswerable", "." * 33),
]
ODD = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@pytest.mark.parametrize(
    ("answer", "official"),
    [
        # A mark is a space, unless it stands beside a space somewhere: then it goes everywhere.
        ("red-blue", "red blue"),
        ("red-blue - green", "redblue green"),
        ("yes/no", "yes no"),
        ("-5", "5"),
        ("@home", "home"),
        # A comma between two digits anywhere deletes every mark; Unicode's digits are digits.
        ("1,000", "1000"),
        ("1,000 red-blue", "1000 redblue"),
        ("red,blue", "red blue"),
        ("٣,٣ red-blue", "٣٣ redblue"),
        # Periods: gone where no digit follows, kept where one does, whatever stands before.
        ("1. red", "1 red"),
        ("a 1.5 l bottle.", "1.5 l bottle"),
        (".5", ".5"),
        ("p.m.", "pm"),
        ("v.2", "v.2"),
        ("." * 33, "."),
        ("." * 32 + "5", "." + "5"),
        # Kept: apostrophes, colons, per cent, currency, hash, asterisk.
        ("5:30 100% $5 #1 **red**", "5:30 100% $5 #1 **red**"),
        ("'red'", "'red'"),
        # Words.
        ("None", "0"),
        ("zero", "0"),
        ("Ten eleven", "10 eleven"),
        ("twenty-one", "twenty 1"),
        ("A red circle", "red circle"),
        ("THE", ""),
        ("a.", ""),
        ("an the a", ""),
        ("dont", "don't"),
        ("DONT", "don't"),
        ("Im", "im"),
        ("somebody'd", "somebodyd"),
        ("let's", "let's"),
        ("wont the", "won't"),
        # White space: any of it between words, once they are split.
        (" red\n\tcircle ", "red circle"),
        ("red\u00a0circle", "red circle"),
        # A line feed counts as the space beside a mark.
        ("red-\nblue-green", "red bluegreen"),
        ("", ""),
        ("?", ""),
        ("Unanswerable.", "unanswerable"),
    ],
)
def test_the_official_reading_of_odd_answers(answer, official):
    assert normalise_official(answer) == official


@pytest.mark.parametrize(
    ("answer", "official", "evalai", "vlmevalkit"),
    [
        ("1. red", "1 red", "1 red", "1. red"),
        ("5.", "5", "5", "5."),
        ("a.1.b", "a.1b", "a.1b", "a.1.b"),
        ("dog's", "dog's", "dog 's", "dog's"),
        ("she's here", "she's here", "she 's here", "she's here"),
        ("let's", "let's", "let 's", "let's"),
        ("red,blue", "red blue", "redblue", "red blue"),
        ("yes?no", "yes no", "yesno", "yes no"),
        ("1,000 red-blue", "1000 redblue", "1000 red blue", "1000 redblue"),
        ("it,s", "it s", "its", "it s"),
        ("Red Circle.", "red circle", "red circle", "red circle"),
    ],
)
def test_where_the_tools_part(answer, official, evalai, vlmevalkit):
    assert (normalise_official(answer), normalise_evalai(answer), normalise_vlmevalkit(answer)) == (
        official,
        evalai,
        vlmevalkit,
    )


@pytest.mark.parametrize("rule", VQA_RULES)
@given(text=ODD)
@example(text="." * 40)
@example(text="1,٣ -a")
def test_normalising_is_what_reading_letter_by_letter_gives(rule, text):
    assert VQA_RULES[rule].normalise(text) == vqa_oracle.NORMALISED[rule](text)


@pytest.mark.parametrize("rule", VQA_RULES)
@given(data=st.data(), people=st.integers(1, 12))
def test_accuracy_is_the_mean_over_leaving_out_each_person(rule, data, people):
    texts = data.draw(st.lists(ODD, min_size=1, max_size=3))
    references = data.draw(st.lists(st.sampled_from(texts), min_size=people, max_size=people))
    answer = data.draw(st.sampled_from(texts) | ODD)
    accuracy = vqa_accuracy(answer, references, rule)
    assert accuracy == pytest.approx(vqa_oracle.accuracy(answer, references, rule), abs=1e-12)
    assert 0 <= accuracy <= 1
    shuffled = data.draw(st.permutations(references))
    assert vqa_accuracy(answer, shuffled, rule) == accuracy


@pytest.mark.parametrize(("agree", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (5, 1), (9, 1), (10, 1)])
@pytest.mark.parametrize("rule", VQA_RULES)
def test_with_ten_people_accuracy_is_three_tenths_a_person(rule, agree, accuracy):
    references = ["red"] * agree + ["blue"] * (10 - agree)
    assert vqa_accuracy("red", references, rule) == pytest.approx(accuracy)


def test_people_who_gave_the_same_answer_are_still_different_people():
    """The official script on VizWiz's records, which have no id, leaves all three out together: 0.7."""
    assert vqa_accuracy("red", ["red"] * 3 + ["blue"] * 7) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("references", "answer", "official", "others"),
    [
        (["yes"] * 10, "Yes", 0, 1),
        (["yes"] * 10, "yes.", 0, 1),
        (["yes"] * 10, " yes\n", 1, 1),
        (["Yes"] * 10, "yes", 0, 1),
        (["Yes"] * 10, "Yes", 1, 1),
        # Agreed once the ends are stripped; not agreed when one differs in case alone.
        (["yes"] * 9 + ["\tyes "], "Yes", 0, 1),
        (["yes"] * 9 + ["Yes"], "yes.", 1, 1),
        (["a circle"] * 10, "circle", 0, 1),
        # An article alone is nothing, and so is an empty answer.
        (["the"] * 9 + ["a"], "", 1, 1),
        (["the"] * 10, "", 0, 1),
        (["red"] * 10, "", 0, 0),
        (["0"] * 5 + ["none"] * 5, "zero", 1, 1),
    ],
)
def test_agreed_references_are_compared_raw_by_the_official_rule_alone(references, answer, official, others):
    found = {rule: vqa_accuracy(answer, references, rule) for rule in VQA_RULES}
    assert found == {"official": official, "lmms-eval": others, "vlmevalkit": others, "evalai": others}


def test_the_contraction_table_has_unreachable_entries_and_never_more_than_one_step():
    unreachable = {word for word in CONTRACTIONS if word != word.lower()}
    assert unreachable == {"Id've", "I'dve", "Im", "Ive"} and len(CONTRACTIONS) == 120
    assert {word: normalise_official(word) for word in CONTRACTIONS if word not in unreachable} == {
        word: full for word, full in CONTRACTIONS.items() if word not in unreachable
    }


def test_the_page_s_table_is_what_the_rules_say():
    page = (Path(__file__).parents[3] / "docs" / "scoring-vqa.md").read_text()
    table = page.split("| answer | official | evalai, lmms-eval | vlmevalkit |")[1].split("\n\n")[0]
    rows = [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert len(rows) >= 10
    for answer, *readings in rows:
        rules = (normalise_official, normalise_evalai, normalise_vlmevalkit)
        assert [rule(answer) or "(empty)" for rule in rules] == readings
