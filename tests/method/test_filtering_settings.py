import pytest
from pydantic import ValidationError

from m3po_dagster.method.filtering import FilterSettings
from m3po_dagster.method.known_images.known import NAMES
from m3po_dagster.study_errors import explain


@pytest.mark.parametrize(
    "bad",
    [
        {"image_size": {"min_side": 0}},
        {"image_size": {"min_side": 20, "max_side": 19}},
        {"image_aspect": {"max_aspect": 0.5}},
        {"image_aspect": {"max_aspect": float("nan")}},
        {"instruction_length": {"min_characters": 5, "max_characters": 4}},
        {"language": {"languages": []}},
        {"language": {"min_probability": 0}},
        {"repetition": {"max_share": float("nan")}},
        {"repetition": {"words": 1}},
        {"near_duplicate": {"distance": 11}},
        {"contamination": {"distance": -1}},
        {"image_size": None},
        {"image_size": "false"},
        {"exact_duplicate": {}},
        {"min_side": 64},
    ],
)
def test_settings_that_keep_nothing_or_mean_nothing_are_refused(bad):
    with pytest.raises(ValidationError):
        FilterSettings(**bad)


@pytest.mark.parametrize("name", FilterSettings.model_fields)
def test_each_filter_can_be_switched_off_and_survives_the_study_file(name):
    chosen = FilterSettings(**{name: False})
    assert getattr(chosen, name) is False
    assert FilterSettings.model_validate_json(chosen.model_dump_json()) == chosen


def test_every_published_list_counts_unless_others_are_named():
    assert FilterSettings().contamination.known == NAMES
    assert FilterSettings(contamination={"known": ["pope"]}).contamination.known == ("pope",)
    assert FilterSettings(contamination={"known": []}).contamination.known == ()


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (
            {"language": {"languages": ["English"]}},
            "language.languages: 'English' is no code .* did you mean en \\(English\\)\\?",
        ),
        ({"language": {"languages": ["en-GB"]}}, "did you mean en \\(English\\)\\?"),
        ({"language": {"languages": ["deu"]}}, "did you mean de \\(German\\)"),
        ({"language": {"languages": ["chinese"]}}, "did you mean zh \\(Chinese\\)"),
        ({"language": {"languages": ["en", "§"]}}, "'§' is no code .* 176 are"),
        ({"contamination": {"known": ["popee"]}}, "contamination.known: no list of images for 'popee'; .*pope"),
        ({"image_size": {"minside": 64}}, "image_size.minside: unknown key. Did you mean 'min_side'"),
        ({"repetition": None}, "repetition: write its settings, .*, or false, found None \\(questions that repeat"),
        ({"language": True}, "language: write its settings, .*, or false, found True \\(language of the question"),
    ],
)
def test_an_error_is_one_line_that_names_the_key_and_what_may_be_meant(bad, said, tmp_path):
    with pytest.raises(ValidationError) as raised:
        FilterSettings(**bad)
    told = explain(raised.value, FilterSettings, tmp_path)
    assert "\n" not in told
    with pytest.raises(ValueError, match=said):
        raise ValueError(told)
