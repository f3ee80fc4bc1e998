import json
import re
from importlib.resources import files
from itertools import combinations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from m3po_dagster.method.known_images.known import NAMES, benchmarks_of, coco_id, known_benchmarks

# Number and sum of the ids: a digit that changes in a list is seen by nothing else.
IMAGES = {
    "llava_bench_coco": (30, 8_440_663),
    "mia_bench": (80, 24_730_605),
    "mme": (110, 30_940_347),
    "pope": (500, 151_807_514),
}
SHARED = {
    ("llava_bench_coco", "pope"): {506483},
    ("mia_bench", "mme"): {301867},
    ("mme", "pope"): {97994, 372819, 405205},
}

# Worded as in the benchmarks' own files.
POPE_QUESTIONS = [
    "Is there a snowboard in the image?",
    "Is there an umbrella in the image?",
    "Is there an elephant in the imange?",
    "Is there an traffic light in the image?",
    "Is there a skis in the image?",
    "Is there a potted plant in the image?",
    "Is there a tv in the image?",
    "Is there a hair drier in the image?",
]
MME_QUESTIONS = [
    "Is there a elephant in this image? Please answer yes or no.",
    "Is there a total of two person appear in the image? Please answer yes or no.",
    "Are there only one tennis racket in the picture? Please answer yes or no.",
    "Is there only one display device in the image?  Please answer yes or no.",
    "Is the cricket bat under the batter's body Please answer yes or no.",
    "Is the trash can under the cup in the image？ Please answer yes or no.",
    "Is the TV on the left of the bookshelf? Please answer yes or no.",
    "Is there a red bicycle with white handlebars in the image? Please answer yes or no.",
]
ORDINARY_QUESTIONS = [
    "What are the colors of the bus in the image?",
    "What feature can be seen on the back of the bus?",
    "Is the bus driving down the street or pulled off to the side?",
    "Is the person riding a motorbike or scooter?",
    "Is the little boy wearing any safety gear while riding his bike?",
    "How many people are visible in the image?",
    "What is the man doing in the image?",
    "What might be the reason behind this gathering?",
    "What is this photo about'?",
    "Describe the following image.",
    "Can you elaborate on the elements of the picture provided?",
    "What's happening in the scene?",
    "Is there anyone in the image?",
    "Is there anything unusual in the image?",
    "Is there a person visible in the image?",
    "Is there a red car in the image?",
    "Is there a dog in the image, and what is it doing?",
    "Is there a crowd of people in the image?",
    "Is there a clock on the wall?",
    "Are there any other objects in the image?",
    "Is there a cat in this picture?\nAnswer the question using a single word or phrase.",
    "Please answer yes or no: is the light on?",
]


def asked_by(question: str) -> set[str]:
    """The benchmarks with a template for the question, compared as docs/contamination.md says."""
    text = " ".join(question.split()).casefold()
    return {
        name
        for name, benchmark in known_benchmarks().items()
        if any(template.fullmatch(text) for template in benchmark.templates)
    }


def test_each_list_has_the_images_of_its_benchmark() -> None:
    known = known_benchmarks()
    assert {name: (len(listed.coco_ids), sum(listed.coco_ids)) for name, listed in known.items()} == IMAGES


def test_the_lists_share_the_images_that_their_benchmarks_share() -> None:
    known = known_benchmarks()
    shared = {(a, b): known[a].coco_ids & known[b].coco_ids for a, b in combinations(sorted(known), 2)}
    assert {pair: ids for pair, ids in shared.items() if ids} == SHARED


@pytest.mark.parametrize("name", NAMES)
def test_a_list_is_sorted_without_repeats_and_names_its_source(name: str) -> None:
    listed = json.loads((files("m3po_dagster.method.known_images") / f"{name}.json").read_text(encoding="utf-8"))
    assert listed["coco_ids"] == sorted(set(listed["coco_ids"]))
    assert all(0 < image < 600_000 for image in listed["coco_ids"])
    assert re.search(r"\b[\w-]+/[\w-]+ \S+ [0-9a-f]{40}\b", listed["source"])
    assert all(listed[field] for field in ("benchmark", "what", "licence", "why"))


@pytest.mark.parametrize("image", ["COCO_val2014_000000310196.jpg", "coco/train2017/000000310196.jpg"])
def test_a_benchmark_image_is_known_under_its_name_in_a_training_set(image: str) -> None:
    assert coco_id(image) in known_benchmarks()["pope"].coco_ids


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("000000310196.jpg", 310196),
        ("COCO_val2014_000000310196.jpg", 310196),
        ("COCO_train2014_000000033471.jpg", 33471),
        ("coco/train2017/000000310196.jpg", 310196),
        ("C:\\data\\train2017\\000000310196.JPG", 310196),
        ("http://images.cocodataset.org/val2017/000000397133.jpg", 397133),
        ("https://example.org/val2017/000000397133.jpg?download=1#top", 397133),
        ("000000310196", 310196),
        ("000000310196.png", 310196),
        ("0001.png", None),
        ("2354786.jpg", None),
        ("sa_545504.jpg", None),
        ("GCC_train_000123456.jpg", None),
        ("GCC_train_000000123456.jpg", None),
        ("VizWiz_val_00000001.jpg", None),
        ("0000000310196.jpg", None),
        ("00000310196.jpg", None),
        ("000000310196_crop.jpg", None),
        ("000000310196.tar.gz", None),
        ("COCO_val_000000310196.jpg", None),
        ("COCO_val2014_310196.jpg", None),
        ("xCOCO_val2014_000000310196.jpg", None),
        ("000000310196/image.jpg", None),
        ("000000310196.jpg/", None),
        ("٠٠٠٠٠٠٣١٠١٩٦.jpg", None),
        ("000000310196.jpg?v=1", 310196),
        ("", None),
    ],
)
def test_coco_id(name: str, expected: int | None) -> None:
    assert coco_id(name) == expected


@given(
    image=st.integers(1, 999_999),
    folder=st.sampled_from(
        ["", "coco/train2017/", "/data/coco/val2014/", "D:\\coco\\", "./", "https://example.org/a/"]
    ),
    prefix=st.sampled_from(["", "COCO_train2014_", "COCO_val2014_", "COCO_test2015_", "COCO_val2017_"]),
    extension=st.sampled_from(["", ".jpg", ".JPG", ".jpeg", ".png", ".webp"]),
)
def test_every_dress_of_an_id_gives_it_back(image: int, folder: str, prefix: str, extension: str) -> None:
    assert coco_id(f"{folder}{prefix}{image:012}{extension}") == image


@given(st.text() | st.from_regex(r"[/\\.:?#0-9_COa-z]*", fullmatch=True))
@example("http://[")
@example("000000310196.jpg\n")
@example("\x00")
def test_any_name_has_an_id_of_twelve_digits_or_none(name: str) -> None:
    image = coco_id(name)
    assert image is None or f"{image:012}" in name


@pytest.mark.parametrize("question", POPE_QUESTIONS)
def test_a_question_of_pope_is_known(question: str) -> None:
    assert asked_by(question) == {"pope"}


@pytest.mark.parametrize("question", MME_QUESTIONS)
def test_a_question_of_mme_is_known(question: str) -> None:
    assert asked_by(question) == {"mme"}


@pytest.mark.parametrize("question", ORDINARY_QUESTIONS)
def test_an_ordinary_question_is_of_no_benchmark(question: str) -> None:
    assert asked_by(question) == set()


def test_spacing_and_case_hide_no_question() -> None:
    assert asked_by("  is there a\tSnowboard in the image?\n") == {"pope"}


def test_benchmarks_are_given_by_name_in_the_order_asked_for() -> None:
    assert list(known_benchmarks()) == list(NAMES) == sorted(IMAGES)
    assert list(known_benchmarks(["pope", "mme"])) == ["pope", "mme"]
    assert known_benchmarks([]) == {}
    assert known_benchmarks(["mme"])["mme"] is known_benchmarks()["mme"]


def test_an_unknown_benchmark_is_refused_with_the_names_of_the_known() -> None:
    with pytest.raises(ValueError, match=r"'chair'.*known benchmarks are: llava_bench_coco, mia_bench, mme, pope"):
        known_benchmarks(["pope", "chair"])


def test_the_benchmarks_of_a_name_are_all_that_list_its_id():
    lists = known_benchmarks()
    two = {"pope": 310196, "again": 310196}
    assert benchmarks_of("coco/train2017/000000310196.jpg", {**lists, "again": lists["pope"]}) == two
    assert benchmarks_of("coco/train2017/000000000001.jpg", lists) == {}
    assert benchmarks_of("310196.jpg", lists) == {}
