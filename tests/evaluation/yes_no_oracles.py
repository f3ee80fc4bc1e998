"""The rules for yes/no answers told once more, letter by letter, from the tools' own descriptions."""

from itertools import pairwise

from hypothesis import strategies as st

PIECES = (
    *("yes", "no", "not", "Yes", "No", "NO", "YES", "nO", "y", "N", "e", "s", "know", "Eyes", "there"),
    *(".", ",", " ", "  ", "\n", "\t", "\r", "\0", "\x1c", "\u2028", "\u00a0", "!", "?", "-", "*", "'", ":", '"'),
    *(";", "/", "[", "]", "{", "}", "(", ")", "=", "+", "\\", "_", ">", "<", "@", "`"),
    *("1", ",2", "1,2", ".5", "\u0660", "\u0130", "\u017f", "\u03a3", "\U0001f600"),
)
ANSWERS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.text(st.sampled_from("No not no . , yes NO\n\t"), max_size=30),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
"""Answers that a model can write, most of them odd."""


def mme_official(answer):
    """The tool sees the line's end; it looks for the words at each place that leaves them inside four characters."""
    line = [letter for character in answer + "\n" for letter in character.lower()]
    if line[0:3] == ["y", "e", "s"] or line[1:4] == ["y", "e", "s"]:
        return "yes"
    if any(line[at : at + 2] == ["n", "o"] for at in range(3)):
        return "no"
    return "other"


def mme_lmms_eval(answer):
    letters = _inner([letter for character in answer for letter in character.lower()])
    letters = [letter for letter in letters if letter != "."]
    if letters == ["y"]:
        return "yes"
    if letters == ["n"]:
        return "no"
    return mme_official("".join(letters))


def pope_official(answer):
    word, words = "", []
    for letter in answer + " ":
        if letter == ".":
            words.append(word)
            break
        if letter == " ":
            words.append(word)
            word = ""
        elif letter != ",":
            word += letter
    return "no" if any(item in ("No", "not", "no") for item in words) else "yes"


def pope_lmms_eval(answer):
    letters = _inner(list(answer))
    for word in ("yes", "no"):
        if len(letters) == len(word) and all(a in (b, b.upper()) for a, b in zip(letters, word, strict=True)):
            return word
    return "other"


def vlmevalkit(answer):
    """Marks are judged on the text as it was; periods on what is left, the first 32 that no digit touches."""
    text = answer.lower()
    pairs = set(pairwise(text))
    comma_inside_a_number = any(
        text[at] == "," and text[at - 1].isdecimal() and text[at + 1].isdecimal() for at in range(1, len(text) - 1)
    )
    cleaned = ""
    for letter in text:
        if letter not in list('@<>-_\\+=)(}{"][/;`,?!'):
            cleaned += letter
        elif not (comma_inside_a_number or (letter, " ") in pairs or (" ", letter) in pairs):
            cleaned += " "
    words, deleted = [""], 0
    for at, letter in enumerate(cleaned):
        touched = cleaned[at - 1 : at].isdecimal() or cleaned[at + 1 : at + 2].isdecimal()
        if letter == "." and not touched and deleted < 32:
            deleted += 1
        elif letter.isspace():
            words.append("")
        else:
            words[-1] += letter
    yes, no = words.count("yes") > 0, words.count("no") > 0
    return "other" if yes == no else "yes" if yes else "no"


MME = {"official": mme_official, "lmms-eval": mme_lmms_eval, "vlmevalkit": vlmevalkit}
POPE = {"official": pope_official, "lmms-eval": pope_lmms_eval, "vlmevalkit": vlmevalkit}


def _inner(letters):
    """Without the white space at both ends."""
    while letters and letters[0].isspace():
        letters = letters[1:]
    while letters and letters[-1].isspace():
        letters = letters[:-1]
    return letters
