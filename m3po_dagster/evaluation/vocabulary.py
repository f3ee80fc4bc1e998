"""Which objects a text names, for CHAIR."""

import re
from collections.abc import Iterable, Mapping

_IRREGULAR = {
    "man": "men",
    "woman": "women",
    "child": "children",
    "goose": "geese",
    "mouse": "mice",
    "ox": "oxen",
    "calf": "calves",
    "knife": "knives",
}
_IN_COMPOUNDS = re.compile(r"(?:man|woman|child|knife)$")
_CONSONANT_Y = re.compile(r"[^aeiou\W]y$")
_HISSES = re.compile(r"(?:s|x|z|ch|sh)$")


class Vocabulary:
    """Every spelling of every object. A mention is a whole word or phrase in any case, plurals included.

    The longest spelling wins where several fit ("traffic light" is no "light"). The words of a phrase may be joined by
    hyphens: a "hot-dog" is no dog. A negated mention counts as a mention, as in the original.
    """

    def __init__(self, spellings: Mapping[str, str | None]):
        """`spellings` maps each spelling, folded, to its object, or to None where it is a name of nothing here."""
        self.object_of = dict(spellings)
        plurals = {form: spelling for spelling in spellings for form in _plurals(spelling) if form not in spellings}
        forms = {spelling: spelling for spelling in spellings} | plurals
        longest_first = sorted(forms, key=lambda form: (-len(form), form))
        phrases = "|".join(r"[\s-]+".join(map(re.escape, form.split())) for form in longest_first)
        self._singular = {_unhyphenated(form): spelling for form, spelling in forms.items()} | forms
        self._mention = re.compile(rf"(?<!\w)({phrases})(?!\w)")

    def spellings(self, text: str) -> list[str]:
        """The spellings that the text uses, in its order, each as often as it stands there."""
        found = (folded(match[1]) for match in self._mention.finditer(text.casefold()))
        return [self._singular.get(form) or self._singular[_unhyphenated(form)] for form in found]

    def mentions(self, text: str) -> list[str]:
        """The object of each mention, in the text's order."""
        named = (self.object_of[spelling] for spelling in self.spellings(text))
        return [name for name in named if name is not None]

    def objects(self, text: str) -> set[str]:
        """The objects that the text names."""
        return set(self.mentions(text))


def folded(text: str) -> str:
    """As spellings are compared: case folded, single spaces."""
    return " ".join(text.casefold().split())


def _unhyphenated(form: str) -> str:
    return folded(form.replace("-", " "))


def _plurals(spelling: str) -> Iterable[str]:
    """The plurals of a word or a phrase: never more than English makes, for "skies" are no skis."""
    last = spelling.split()[-1]
    before = spelling[: len(spelling) - len(last)]
    if last in _IRREGULAR:
        yield before + _IRREGULAR[last]
    elif match := _IN_COMPOUNDS.search(last):
        yield before + last[: match.start()] + _IRREGULAR[match[0]]
    elif _CONSONANT_Y.search(last):
        yield before + last[:-1] + "ies"
    else:
        hisses = _HISSES.search(last)
        if not hisses:
            yield spelling + "s"
        if hisses or last.endswith("o"):
            yield spelling + "es"
