import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.method.filtering.repetition import repetition_share, repetitive
from m3po_dagster.method.filtering.settings import RepetitionFilter

DEFAULT = RepetitionFilter()

ORDINARY = [
    "What is it?",
    "no",
    "Is it a cat or is it a dog?",
    "What is the man on the left doing and what is the man on the right doing?",
    "Is the man on the left? Is the man on the right? Is the man in the middle?",
    "What is the person doing?\nA. riding a bike\nB. riding a horse\nC. riding a skateboard\nD. riding a bus\nAnswer "
    "with the option's letter from the given choices directly.",
    "Which one is true?\nA. The dog is to the left of the cat.\nB. The dog is to the right of the cat.\nC. The cat is "
    "behind the dog.\nD. There is no cat.",
    "The man is ________. Fill in the blank with one word.",
    "Is this a very very very very big dog?",
    "Read the number on the sign: is it 1000000000 or 10000000?",
    "Count the bottles, the glasses, the plates, the forks, the knives, the spoons and the people at the table.",
    "Describe the image in detail. " * 2,
    "这张图片里有什么？请详细描述这张图片。",
    "เขากำลังทำอะไรอยู่ในภาพนี้",
]
DEGENERATE = [
    "aaaaaaaaaaaaaaaaaaaaaaaa",
    "hahahahahahahahahahahahahaha",
    "????????????????????",
    "dog dog dog dog dog dog dog dog",
    "what is this what is this what is this what is this",
    "Describe the image in detail. " * 5,
    "What is it? The the the the the the the the the the the the the the",
    "What is iiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiii",
    "这是什么这是什么这是什么这是什么",
    "ABC\n" * 40,
]


@pytest.mark.parametrize("question", ORDINARY)
def test_ordinary_questions_stay(question):
    assert repetitive(question, DEFAULT) is None


@pytest.mark.parametrize("question", DEGENERATE)
def test_degenerate_text_goes(question):
    assert repetitive(question, DEFAULT).reason == "repeats itself"


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0),
        (" \n ", 0),
        ("one two three four five", 0),
        ("one two three four one two three four", 1 / 2),
        ("One two THREE four  one\ntwo three FOUR", 1 / 2),
        ("one two three four one two three", 0),
        ("a b c d a b c d a b c d", 8 / 12),
        ("a b c d e a b c d f", 4 / 10),
        ("xxxxxxxxx y", 0),
        ("xxxxxxxxxx y", 10 / 11),
        ("ababababababababababa c", 20 / 22),
        ("abcdefgh" * 10, 1),
        ("abcdefghi" * 10, 0),
        ("x " * 10, 9 / 10),
        ("一二三四一二三四", 1 / 2),
    ],
)
def test_the_share_is_that_of_the_characters_that_repeat(text, share):
    assert repetition_share(text, words=4, runs=10) == pytest.approx(share)


def test_the_bound_is_inclusive_and_the_settings_count():
    half = "one two three four one two three four"
    assert repetitive(half, RepetitionFilter(max_share=0.5)) is None
    dropped = repetitive(half, RepetitionFilter(max_share=0.49))
    assert dropped.detail == "50% of the characters repeat, max_share is 49%"
    assert repetitive("one two three one two three one two three", RepetitionFilter(words=3)).reason == "repeats itself"
    assert repetitive("ababab", RepetitionFilter(runs=3)).reason == "repeats itself"


WORDS = st.lists(st.text("abc", min_size=1, max_size=3), max_size=30)


@given(WORDS, st.integers(2, 5))
def test_words_are_counted_as_a_plain_search_counts_them(words, length):
    """`runs` is too high for any run here."""
    repeated = set()
    for start in range(len(words) - length + 1):
        sequence = words[start : start + length]
        if any(words[before : before + length] == sequence for before in range(start)):
            repeated.update(range(start, start + length))
    characters = sum(map(len, words))
    expected = sum(len(words[at]) for at in repeated) / characters if characters else 0
    assert repetition_share(" ".join(words), length, runs=1000) == pytest.approx(expected)


@given(st.text(st.characters(codec="utf-8"), max_size=60), st.integers(2, 6), st.integers(3, 12))
def test_a_share_is_a_share_and_a_text_said_again_is_mostly_repetition(text, words, runs):
    assert 0 <= repetition_share(text, words, runs) <= 1
    if len(text.split()) >= words and text.isascii():
        assert repetition_share(f"{text} {text} {text}", words, runs) > 0.6


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "unit", ["a", "ab ", "aaaaaaaab", "abcdefgh1", "the dog ", "一二", "a\u0300", "x" * 9 + "y", "\n", "İ"]
)
def test_a_million_characters_of_anything_take_linear_time(unit):
    text = unit * (1_000_000 // len(unit))
    assert 0 <= repetition_share(text, 4, 10) <= 1
