"""VQA accuracy: how the public tools score a short answer against the answers of several people (VizWiz, TextVQA).

They share the arithmetic and differ in what they make of the texts first. Each is told here as its source has it, to
the letter, oddities included.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from m3po_dagster.evaluation.rules.contractions import CONTRACTIONS
from m3po_dagster.evaluation.rules.punctuation import LONE_PERIOD, strip_punctuation

PERIOD_BEFORE_NO_DIGIT = re.compile(r"\.(?!\d)")
"""VQA, and those who copied it: their look back for a digit is mistyped as a look ahead that always holds."""

NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
ARTICLES = ("a", "an", "the")
_ENOUGH = 3


def one_line(text: str) -> str:
    """Line feeds and tabs become spaces, both ends are stripped; all that is done to answers when people agree."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def digits_and_articles(text: str) -> str:
    """Lower case, runs of whitespace one space; number words to ten and "none" as digits; a, an and the left out.

    Then the contraction table, word by word ("dont" -> "don't").
    """
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalise_official(answer: str) -> str:
    """VQA's vqaEval.py (GT-Vision-Lab/VQA a013f00): one line, punctuation, then digits and articles.

    A period goes wherever no digit follows it, the first 32 of them. Apostrophes, colons, "%", "$" and "#" stay.
    """
    return digits_and_articles(strip_punctuation(one_line(answer), PERIOD_BEFORE_NO_DIGIT))


def normalise_evalai(answer: str) -> str:
    """LLaVA's m4c_evaluator.py (c121f04), which says that it does as EvalAI does; lmms-eval (75571cf) has a copy.

    Lower case, every "," and "?" deleted and "'s" parted from its word, before the official steps: no comma between
    digits is left for these to see, which there delete every mark of the answer.
    """
    return normalise_official(answer.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def normalise_vlmevalkit(answer: str) -> str:
    """VLMEvalKit (e8e78f0, vqa_eval.py): the official steps with the look back mended, so "1." keeps its period."""
    return digits_and_articles(strip_punctuation(one_line(answer), LONE_PERIOD))


@dataclass(frozen=True)
class VqaRule:
    """What a tool makes of answers before it compares them."""

    normalise: Callable[[str], str]
    raw_if_agreed: bool = False  # nothing but `one_line` where all people gave the same text


VQA_RULES: dict[str, VqaRule] = {
    "official": VqaRule(normalise_official, raw_if_agreed=True),
    "lmms-eval": VqaRule(normalise_evalai),
    "vlmevalkit": VqaRule(normalise_vlmevalkit),
    "evalai": VqaRule(normalise_evalai),
}
"""Rules by name. lmms-eval and evalai give the same figures: lmms-eval's vizwiz_vqa/utils.py asks that processor."""


def normaliser(references: Sequence[str], rule: str) -> Callable[[str], str]:
    """What the rule does to an answer and to each of these references before it compares them."""
    asked = VQA_RULES[rule]
    agreed = len({one_line(reference) for reference in references}) == 1
    return one_line if asked.raw_if_agreed and agreed else asked.normalise


def vqa_accuracy(answer: str, references: Sequence[str], rule: str = "official") -> float:
    """Accuracy of one answer, 0 to 1, against the people's answers, each of which is told from others by its place.

    The mean, over leaving out each person, of min(1, others who said the same / 3): with ten people 0, .3, .6, .9 and 1
    for none to four who agree. The official script tells people apart by the whole record; VizWiz's records have no id,
    so there equal answers are left out together, which is a fault and not done here.
    """
    normalise = normaliser(references, rule)
    said = normalise(answer)
    agree = sum(normalise(reference) == said for reference in references)
    people = len(references)
    without_one_who_agrees, without_another = (min(1.0, others / _ENOUGH) for others in (agree - 1, agree))
    return (agree * without_one_who_agrees + (people - agree) * without_another) / people
