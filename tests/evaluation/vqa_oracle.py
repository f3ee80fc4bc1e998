"""VQA accuracy told letter by letter and person by person, without a regular expression, a table or a closed form."""

from m3po_dagster.evaluation.rules.contractions import CONTRACTIONS

MARKS = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]
NUMBER_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def cleaned(text):
    return "".join(" " if letter in "\n\t" else letter for letter in text).strip()


def without_marks(text):
    beside = [text[i : i + 2] for i in range(len(text))]
    all_go = any(
        text[i].isdecimal() and text[i + 1] == "," and text[i + 2].isdecimal() for i in range(max(0, len(text) - 2))
    )
    kept = []
    for letter in text:
        if letter not in MARKS:
            kept.append(letter)
        elif not (all_go or letter + " " in beside or " " + letter in beside):
            kept.append(" ")
    return "".join(kept)


def without_periods(text, looks_back):
    kept, removed = [], 0
    for i, letter in enumerate(text):
        after = i + 1 < len(text) and text[i + 1].isdecimal()
        before = looks_back and i > 0 and text[i - 1].isdecimal()
        if letter == "." and not after and not before and removed < 32:
            removed += 1
        else:
            kept.append(letter)
    return "".join(kept)


def in_words(text):
    said = []
    for word in text.lower().split():
        word = "0" if word == "none" else str(NUMBER_WORDS.index(word)) if word in NUMBER_WORDS else word
        if word not in ("a", "an", "the"):
            said.append(CONTRACTIONS.get(word, word))
    return " ".join(said)


def official(text):
    return in_words(without_periods(without_marks(cleaned(text)), looks_back=False))


def vlmevalkit(text):
    return in_words(without_periods(without_marks(cleaned(text)), looks_back=True))


def evalai(text):
    text = "".join(letter for letter in text.lower() if letter not in ",?")
    return official(" 's".join(text.split("'s")))


NORMALISED = {"official": official, "lmms-eval": evalai, "vlmevalkit": vlmevalkit, "evalai": evalai}


def accuracy(answer, references, rule):
    answer, references = cleaned(answer), [cleaned(reference) for reference in references]
    if rule != "official" or len(set(references)) > 1:
        answer, references = NORMALISED[rule](answer), [NORMALISED[rule](reference) for reference in references]
    total = 0.0
    for left_out in range(len(references)):
        others = references[:left_out] + references[left_out + 1 :]
        total += min(1, others.count(answer) / 3)
    return total / len(references)
