"""How the official tools, lmms-eval and VLMEvalKit read an answer to a yes/no question. They disagree.

None of them strips Markdown or understands a sentence; each is told here as its source has it, to the letter.
"""

import re
from collections.abc import Callable, Mapping
from typing import Literal

from m3po_dagster.evaluation.rules.punctuation import LONE_PERIOD, strip_punctuation

Reading = Literal["yes", "no", "other"]
"""What a rule makes of an answer; "other" is neither, and always wrong."""

_STARTS_WITH_YES_OR_NO = re.compile(r"\s*(?:yes|no)\b", re.IGNORECASE)
_PREFIX = 4


def mme_official(answer: str) -> Reading:
    """MME's eval_tool: "yes", else "no", anywhere in the first four characters, in lower case and not stripped.

    So "not sure" and "know" are a no, "Eyes" is a yes, "Y", "**Yes**" and "Answer: yes" are other. The tool leaves the
    line's "\\n" on the answer, which changes nothing: a line end is part of neither word.
    """
    start = answer.lower()[:_PREFIX]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def mme_lmms_eval(answer: str) -> Reading:
    """lmms-eval (75571cf, mme/utils.py): lower case, stripped, every "." deleted; then "y", "n", or MME's own rule."""
    text = answer.lower().strip().replace(".", "")
    return {"y": "yes", "n": "no"}.get(text) or mme_official(text)


def pope_official(answer: str) -> Reading:
    """POPE's evaluate.py (3df3ba1): no if "No", "no" or "not" is a word of the first sentence, otherwise yes.

    A sentence ends at the first ".", commas are deleted, words are parted by single spaces and by nothing else. So the
    empty answer, "NO", "Nope" and "no!" are a yes.
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def pope_lmms_eval(answer: str) -> Reading:
    """lmms-eval (75571cf, pope/utils.py): the whole answer is "yes" or "no" once lowered and stripped, else other."""
    text = answer.lower().strip()
    return text if text in ("yes", "no") else "other"


def vlmevalkit(answer: str) -> Reading:
    """VLMEvalKit (e8e78f0, yorn.py): "yes" or "no" is a word and the other is not, after its punctuation step.

    Its optional language model, which may read the rest, is not asked: other stands for its Unknown.
    """
    words = set(strip_punctuation(answer.lower(), LONE_PERIOD).split())
    said = words & {"yes", "no"}
    return said.pop() if len(said) == 1 else "other"


def starts_with_yes_or_no(answer: str) -> bool:
    """Whether the answer has the format that is asked for: yes or no, in any case, is its first word."""
    return _STARTS_WITH_YES_OR_NO.match(answer) is not None


MME_RULES: Mapping[str, Callable[[str], Reading]] = {
    "official": mme_official,
    "lmms-eval": mme_lmms_eval,
    "vlmevalkit": vlmevalkit,
}
POPE_RULES: Mapping[str, Callable[[str], Reading]] = {
    "official": pope_official,
    "lmms-eval": pope_lmms_eval,
    "vlmevalkit": vlmevalkit,
}
