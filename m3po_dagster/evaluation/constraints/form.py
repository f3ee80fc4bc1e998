"""Constraints on the form of an answer: how it begins and ends, its case, lists, JSON, a choice of options."""

import json
from typing import ClassVar, Literal

from pydantic import Field

from m3po_dagster.evaluation.constraints.constraint import About, Constraint
from m3po_dagster.evaluation.constraints.content import Text
from m3po_dagster.evaluation.constraints.text import bullets, cuts_a_word, listed, sentences

_FENCES = ("```json", "```JSON", "```")


class _AboutForm(Constraint):
    about: ClassVar[About] = "format"


class StartsWith(_AboutForm):
    """The answer starts with one of the texts, in any case; a word is not cut."""

    kind: Literal["starts_with"] = Field("starts_with", description="the answer starts with one of the texts")
    texts: tuple[Text, ...] = Field(min_length=1, description="the texts")

    def describe(self) -> str:
        return f"Start the answer with {listed(self.texts, 'or')}."

    def met(self, answer: str) -> bool:
        return any(_opens(answer.strip(), text) for text in self.texts)


class EndsWith(_AboutForm):
    """The answer ends with the text, in any case; nothing follows it, and a word is not cut."""

    kind: Literal["ends_with"] = Field("ends_with", description="the answer ends with the text")
    text: Text = Field(description="the text")

    def describe(self) -> str:
        return f'End the answer with "{self.text}" and write nothing after it.'

    def met(self, answer: str) -> bool:
        answer, text = answer.strip().casefold(), self.text.casefold()
        return answer.endswith(text) and not cuts_a_word(answer[: -len(text)][-1:], text[0])


class SentencesStartWith(_AboutForm):
    """Every sentence starts with the text, in any case."""

    kind: Literal["sentences_start_with"] = Field(
        "sentences_start_with", description="every sentence starts with the text"
    )
    text: Text = Field(description="the text")

    def describe(self) -> str:
        return f'Start every sentence with "{self.text}".'

    def met(self, answer: str) -> bool:
        found = sentences(answer)
        return bool(found) and all(_opens(sentence, self.text) for sentence in found)


class Lowercase(_AboutForm):
    """No capital letter stands in the answer, and a letter does."""

    kind: Literal["lowercase"] = Field("lowercase", description="the answer is all in lower case")

    def describe(self) -> str:
        return "Use lowercase letters only."

    def met(self, answer: str) -> bool:
        return answer.islower()


class Uppercase(_AboutForm):
    """No small letter stands in the answer, and a letter does."""

    kind: Literal["uppercase"] = Field("uppercase", description="the answer is all in capitals")

    def describe(self) -> str:
        return "Use capital letters only."

    def met(self, answer: str) -> bool:
        return answer.isupper()


class NoCommas(_AboutForm):
    """No comma stands in the answer, of whatever script."""

    kind: Literal["no_commas"] = Field("no_commas", description="the answer has no comma")

    def describe(self) -> str:
        return "Do not use any commas."

    def met(self, answer: str) -> bool:
        return not set(answer) & set(",，、،")


class Bullets(_AboutForm):
    """The answer has exactly n bullet points: lines that open with -, *, + or •."""

    kind: Literal["bullets"] = Field("bullets", description="the answer has exactly n bullet points")
    n: int = Field(ge=1, strict=True, description="how many")

    def describe(self) -> str:
        return f"Use exactly {self.n} bullet point{'' if self.n == 1 else 's'}, each on a line that starts with a dash."

    def met(self, answer: str) -> bool:
        return len(bullets(answer)) == self.n


class IsJson(_AboutForm):
    """The answer is JSON and nothing else; with keys, an object of just these. A code fence may stand around it."""

    marks_suffice: ClassVar[bool] = True
    kind: Literal["json"] = Field("json", description="the answer is valid JSON")
    keys: tuple[Text, ...] = Field((), description="the keys of the object; none: any JSON value")

    def describe(self) -> str:
        what = f"a JSON object with {listed(self.keys, 'and')} as its keys" if self.keys else "valid JSON"
        return f"Answer with {what} and nothing else."

    def met(self, answer: str) -> bool:
        try:
            value = json.loads(_unfenced(answer.strip()), parse_constant=_no_json)
        except (ValueError, RecursionError):
            return False
        return not self.keys or (isinstance(value, dict) and set(self.keys) == set(value))


class OneOf(_AboutForm):
    """The answer is one of the options and nothing else; case and a closing full stop don't matter."""

    marks_suffice: ClassVar[bool] = True
    kind: Literal["one_of"] = Field("one_of", description="the answer is one of the options and nothing else")
    options: tuple[Text, ...] = Field(min_length=2, description="the options")

    def describe(self) -> str:
        return f"Answer with {listed(self.options, 'or')} and nothing else."

    def met(self, answer: str) -> bool:
        return _bare(answer) in {_bare(option) for option in self.options}


class Quoted(_AboutForm):
    """The whole answer stands in one pair of double quotation marks; there are no others in it."""

    kind: Literal["quoted"] = Field("quoted", description="the whole answer stands in double quotation marks")

    def describe(self) -> str:
        return "Put the whole answer in double quotation marks."

    def met(self, answer: str) -> bool:
        text = answer.strip()
        return len(text) > 2 and text[0] in '"“' and text[-1] in '"”' and not set(text[1:-1]) & set('"“”')


def _opens(answer: str, text: str) -> bool:
    answer, text = answer.casefold(), text.casefold()
    return answer.startswith(text) and not cuts_a_word(text[-1], answer[len(text) : len(text) + 1])


def _unfenced(text: str) -> str:
    fence = next((fence for fence in _FENCES if text.startswith(fence)), None)
    return text.removeprefix(fence).removesuffix("```") if fence and text.endswith("```") else text


def _no_json(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _bare(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")
