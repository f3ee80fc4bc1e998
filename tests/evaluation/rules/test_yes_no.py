import string
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings

from m3po_dagster.evaluation.rules.yes_no import MME_RULES, POPE_RULES, starts_with_yes_or_no, vlmevalkit
from tests.evaluation import yes_no_oracles as oracles

MANY = hypothesis_settings(max_examples=500)


@pytest.mark.parametrize(
    ("answer", "official", "lmms_eval", "kit"),
    [
        ("Yes", "yes", "yes", "yes"),
        ("yes.", "yes", "yes", "yes"),
        ("No, there is none", "no", "no", "no"),
        ("not sure", "no", "no", "other"),
        ("know", "no", "no", "other"),
        ("nothing", "no", "no", "other"),
        ("none", "no", "no", "other"),
        ("Eyes", "yes", "yes", "other"),
        ("Y", "other", "yes", "other"),
        ("n.", "other", "no", "other"),
        ("y .", "other", "other", "other"),
        (" yes", "yes", "yes", "yes"),
        ("  yes", "other", "yes", "yes"),
        ("\n\n\n\nno", "other", "no", "no"),
        ("**Yes**", "other", "other", "other"),
        ("*Yes", "yes", "yes", "other"),
        ("Answer: yes", "other", "other", "yes"),
        ("Answer:yes", "other", "other", "other"),
        ("...no", "other", "no", "no"),
        ("", "other", "other", "other"),
        ("\n\nno", "no", "no", "no"),
        ("noyes", "no", "no", "other"),
        ("yes and no", "yes", "yes", "other"),
        ("Yes-no", "yes", "yes", "other"),
        ("yes/", "yes", "yes", "yes"),
        ("'yes'", "yes", "yes", "other"),
        ("It is 1,000: no-one", "other", "other", "other"),
        ("It is 1000: no-one", "other", "other", "no"),
        ("No. 5", "no", "no", "no"),
        ("No.5", "no", "no", "other"),
        ("yes" + "." * 32, "yes", "yes", "yes"),
        ("yes" + "." * 33, "yes", "yes", "other"),
    ],
)
def test_mme_answers_by_each_rule(answer, official, lmms_eval, kit):
    expected = {"official": official, "lmms-eval": lmms_eval, "vlmevalkit": kit}
    assert {name: rule(answer) for name, rule in MME_RULES.items()} == expected


@pytest.mark.parametrize(
    ("answer", "official", "lmms_eval", "kit"),
    [
        ("There is a dog. No cat.", "yes", "other", "no"),
        ("Mr. Smith is not here", "yes", "other", "other"),
        ("not sure", "no", "other", "other"),
        ("Yes\nbut not", "no", "other", "yes"),
        ("yes  no", "no", "other", "other"),
        ("", "yes", "other", "other"),
        ("NO", "yes", "no", "no"),
        ("Nope", "yes", "other", "other"),
        ("None", "yes", "other", "other"),
        ("no!", "yes", "other", "no"),
        ("no\t", "yes", "no", "no"),
        ("\u00a0No", "yes", "no", "no"),
        ("no\0", "yes", "other", "other"),
        ("I cannot see", "yes", "other", "other"),
        ("No, there is no dog.", "no", "other", "no"),
        ("No", "no", "no", "no"),
        ("No\nthere is a dog", "yes", "other", "no"),
        ("Yes, there is a dog.", "yes", "other", "yes"),
        ("It is not. Yes.", "no", "other", "yes"),
        ("no,", "no", "other", "no"),
        ("n,o", "no", "other", "other"),
        ("n, o", "yes", "other", "other"),
        ("not.", "no", "other", "other"),
        ("yes.", "yes", "other", "yes"),
        (" YES \n", "yes", "yes", "yes"),
        ("yes 1,2 no-no", "yes", "other", "yes"),
    ],
)
def test_pope_answers_by_each_rule(answer, official, lmms_eval, kit):
    expected = {"official": official, "lmms-eval": lmms_eval, "vlmevalkit": kit}
    assert {name: rule(answer) for name, rule in POPE_RULES.items()} == expected


@MANY
@given(oracles.ANSWERS)
@example("\u0130no")
@example("ye\u017f")
@example(".y.")
def test_mme_rules_are_the_letters_rules(answer):
    assert {name: rule(answer) for name, rule in MME_RULES.items()} == {
        name: rule(answer) for name, rule in oracles.MME.items()
    }


@MANY
@given(oracles.ANSWERS)
@example(".no")
@example("yes 1,2!no")
@example("no" + "." * 40)
def test_pope_rules_are_the_letters_rules(answer):
    assert {name: rule(answer) for name, rule in POPE_RULES.items()} == {
        name: rule(answer) for name, rule in oracles.POPE.items()
    }


def test_vlmevalkit_keeps_apostrophe_colon_and_symbols_on_a_word():
    kept = {mark for mark in string.punctuation if vlmevalkit(f"yes{mark}") == "other"}
    assert kept == set("#$%&'*:^|~")


@pytest.mark.parametrize(
    ("answer", "formed"),
    [("Yes", True), (" no, nothing", True), ("YES.", True), ("No\n", True)]
    + [(text, False) for text in ("Nothing", "Yesterday", "", "There is", "**Yes**", "Y", "no_one")],
)
def test_format_is_yes_or_no_as_the_first_word(answer, formed):
    assert starts_with_yes_or_no(answer) is formed


def test_the_page_shows_what_the_rules_make_of_odd_answers():
    answers = (
        *("Yes", "NO", "no.", "not sure", "I cannot see", "Nope", "Eyes", "Y", "**Yes**", "**No**"),
        *("Answer: yes", "", "There is a dog. No cat.", "No\nthere is a dog", "yes and no"),
    )
    head = ["answer", *(f"MME {name}" for name in MME_RULES), *(f"POPE {name}" for name in POPE_RULES), "in the format"]
    lines = [head, ["---"] * len(head)]
    for answer in answers:
        readings = [rule(answer) for rules in (MME_RULES, POPE_RULES) for rule in rules.values()]
        shown = answer.replace("\n", "\\n")
        lines.append(
            [f"`{shown}`" if shown else "(empty)", *readings, "yes" if starts_with_yes_or_no(answer) else "no"]
        )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    page = Path(__file__).parents[3] / "docs" / "scoring.md"
    assert table in page.read_text(encoding="utf-8"), f"{page} must hold this table:\n{table}"
