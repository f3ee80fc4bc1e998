import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.method.filtering import language
from m3po_dagster.method.filtering.language import READ_CHARACTERS, other_language
from m3po_dagster.method.filtering.languages import LANGUAGES
from m3po_dagster.method.filtering.settings import LanguageFilter

ENGLISH = [
    "Why?",
    "Color?",
    "What is it?",
    "Is it day?",
    "How many?",
    "Describe.",
    "Cat or dog?",
    "Where?",
    "Who?",
    "bus?",
    "OCR this",
    "Age",
    "gender?",
    "Jersey number?",
    "tl;dr",
    "WHAT IS THIS",
    "Is it a Ferrari?",
    "Is the sushi on a plate?",
    "What is on the tatami",
    "What does 'Rue de la Paix' mean?",
    "What does the sign say: 'Achtung, Baustelle'?",
    "A. cat B. dog",
    "Count the zebras.",
    "what's the player's number?",
    "Describe the following image.\nBe brief.",
]
OTHERS = {
    "de": ["Was ist das?", "Warum?", "Beschreibe das Bild.", "Welche Farbe hat der Bus?", "Wie viele Hunde sind da?"],
    "fr": ["Qu'est-ce que c'est ?", "Décris l'image.", "De quelle couleur est le bus ?", "Combien de personnes ?"],
    "es": ["¿Qué es?", "¿Por qué?", "¿De qué color es el autobús?", "¿Cuántos perros hay?"],
    "it": ["Che cos'è?", "Perché?", "Descrivi l'immagine.", "Di che colore è l'autobus?"],
    "pt": ["O que é isso?", "Descreva a imagem.", "Qual é a cor do ônibus?"],
    "nl": ["Beschrijf de afbeelding.", "Wat is de kleur van de bus?"],
    "pl": ["Opisz obraz.", "Ile osób jest na zdjęciu?"],
    "tr": ["Bu nedir?", "Resmi açıkla."],
    "vi": ["Đây là gì?", "Mô tả hình ảnh."],
    "zh": ["这是什么？", "描述这张图片。", "公共汽车是什么颜色的？"],
    "ja": ["これは何ですか？", "画像を説明してください。"],
    "ko": ["이것은 무엇입니까?", "이미지를 설명하세요."],
    "ru": ["Что это?", "Почему?", "Опишите изображение."],
    "ar": ["ما هذا؟", "صف الصورة."],
    "he": ["מה זה?"],
    "el": ["Τι είναι αυτό;"],
    "hi": ["यह क्या है?", "इस चित्र का वर्णन करें।"],
    "th": ["นี่คืออะไร"],
}
FOREIGN = [(code, question) for code, questions in OTHERS.items() for question in questions]
ENGLISH_ONLY = LanguageFilter()


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the filter asked for the network")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    language._detector.cache_clear()


@pytest.mark.parametrize("question", ENGLISH)
def test_short_english_stays(question):
    assert other_language(question, ENGLISH_ONLY) is None


@pytest.mark.parametrize(("code", "question"), FOREIGN)
def test_other_languages_go_and_stay_where_they_are_accepted(code, question):
    dropped = other_language(question, ENGLISH_ONLY)
    assert dropped.reason == "other language"
    assert other_language(question, LanguageFilter(languages=("en", code))) is None


def test_the_table_is_of_many_languages():
    assert len(FOREIGN) >= 30 and len(OTHERS) >= 8


@pytest.mark.parametrize(
    "question", ["2", "2+2?", "12:30 / 14:15", "???", "", " \n\t", "👍", "_" * 30, "1" * 600 + " Warum?"]
)
def test_what_has_no_letters_has_no_language(question):
    assert other_language(question, ENGLISH_ONLY) is None


@pytest.mark.parametrize("question", ["Qzxv?", "zxqv", "TV?"])
def test_words_that_the_model_does_not_know_have_no_language(question):
    assert other_language(question, LanguageFilter(languages=("th",), min_probability=0.9)) is None


def test_nothing_is_asked_of_the_network(no_network):
    assert other_language("What is it?", ENGLISH_ONLY) is None
    assert other_language("Was ist das?", ENGLISH_ONLY).detail.startswith("German by ")
    assert language._detector.cache_info().misses == 1


def test_all_accepted_languages_count_together():
    def refused(*languages):
        return other_language("Hva er det?", LanguageFilter(languages=languages, min_probability=0.9)) is not None

    assert (refused("no"), refused("da"), refused("no", "da")) == (True, True, False)


def test_unlikely_languages_count_too():
    unlikely = tuple(code for code, _ in language._guesses("a cat", 176)[8:])
    assert other_language("A cat?", LanguageFilter(languages=unlikely)) is None
    assert other_language("A cat?", LanguageFilter(languages=unlikely, min_probability=0.9)) is not None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What's THIS,\n2 dogs?", "what's this dogs"),
        ("यह क्या है?", "यह क्या है"),
        ("นี่คืออะไร", "นี่คืออะไร"),
        ("' 12 '", ""),
    ],
)
def test_letters_and_their_marks_are_words_and_nothing_else_is(text, words):
    assert language._words(text) == words


def test_the_languages_are_those_of_the_model():
    model = language._detector()._get_model(low_memory=True)
    labels, _ = model.predict("zz", k=1000, threshold=-1.0)
    assert {label.removeprefix("__label__") for label in labels} == set(LANGUAGES)


def test_the_beginning_of_a_long_question_decides():
    question = "What is it? " * 100
    assert len(question) > READ_CHARACTERS
    assert other_language(question + "Was ist das? " * 1000, ENGLISH_ONLY) is None


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_no_text_is_an_error(question):
    dropped = other_language(question, ENGLISH_ONLY)
    assert dropped is None or dropped.detail.endswith(tuple("0123456789"))
