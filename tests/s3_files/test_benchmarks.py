"""Benchmarks in a bucket of a real service: the same questions, found by listing and not one by one."""

import json
from types import SimpleNamespace

import pytest

from m3po_dagster.evaluation.question import BenchmarkError
from m3po_dagster.evaluation.registry import load_questions
from m3po_dagster.evaluation.settings import ChairSettings, MmeSettings, PopeSettings
from m3po_dagster.identity import Identities
from m3po_dagster.storage.file_facts import FileFacts
from tests.datasets.dataset_files import picture
from tests.s3_files.uploads import BUCKET, requests, uploaded

pytestmark = pytest.mark.slow
IMAGES = 20


@pytest.fixture
def here(tmp_path):
    """POPE, MME in both layouts, and CHAIR with COCO's annotations, over drawn images."""
    folder = tmp_path / "here"
    for number in range(IMAGES):
        picture(folder / "images" / f"{number}.png", number)
    lines = [
        {"question_id": number, "image": f"{number % IMAGES}.png", "text": "Is there a dog?", "label": "yes"}
        for number in range(2 * IMAGES)
    ]
    for split in ("random", "popular"):
        (folder / f"{split}.json").write_text("\n".join(map(json.dumps, lines)))
    for category, images, texts in (("OCR", "OCR", "OCR"), ("scene", "scene/images", "scene/questions_answers_YN")):
        for number in range(4):
            picture(folder / "mme" / images / f"{number}.jpg", 100 + number)
            (folder / "mme" / texts).mkdir(parents=True, exist_ok=True)
            (folder / "mme" / texts / f"{number}.txt").write_text(f"Is it {category}?\tYes\nIs it a {number}?\tNo\n")
    (folder / "instances.json").write_text(
        json.dumps(
            {
                "images": [{"id": number, "file_name": f"{number}.png"} for number in range(IMAGES)],
                "categories": [{"id": 1, "name": "dog"}],
                "annotations": [{"image_id": number, "category_id": 1} for number in range(IMAGES)],
            }
        )
    )
    (folder / "chair.jsonl").write_text(
        "\n".join(json.dumps({"question_id": n, "image": f"{n}.png", "text": "Describe it."}) for n in range(IMAGES))
    )
    return folder


def benchmarks(root) -> dict:
    labels = {split: f"{root}/{split}.json" for split in ("random", "popular")}
    images = f"{root}/images"
    return {
        "pope": PopeSettings(labels=labels, image_root=images),
        "mme": MmeSettings(root=f"{root}/mme"),
        "chair": ChairSettings(path=f"{root}/chair.jsonl", image_root=images, instances=f"{root}/instances.json"),
    }


@pytest.fixture
def root(here, server, own_cache, request):
    return uploaded(server, here, request.node.name)


def test_the_questions_are_the_same_and_images_are_found_by_listing(here, root):
    for name, settings in benchmarks(root).items():
        with requests() as asked:
            questions = load_questions(settings)
            assert asked["ListObjectsV2"] <= 6 and asked["HeadObject"] <= 1, asked
        alike = [(q.question_id, q.image_uri, q.text, q.expected) for q in questions]
        local = load_questions(benchmarks(here)[name])
        assert alike == [(q.question_id, q.image_uri, q.text, q.expected) for q in local] and len(alike) > 10
        assert {q.image_path.read_bytes() for q in questions} == {q.image_path.read_bytes() for q in local}


def test_the_identity_is_that_of_the_same_files_here_and_fetches_each_image_once(here, root, tmp_path, monkeypatch):
    facts = FileFacts(tmp_path / "facts.sqlite")

    def identity(place) -> dict:
        return Identities(facts.sha256).benchmarks(SimpleNamespace(benchmarks=benchmarks(place)))

    with requests() as asked:
        there = identity(root)
        # Images of POPE and CHAIR; of MME images and texts; labels, questions and annotations.
        assert asked["GetObject"] == IMAGES + 16 + 4
    assert there == identity(here)
    monkeypatch.setenv("M3PO_CACHE_GB", "1")  # as another process, which knows of no object
    with requests() as asked:
        assert identity(root) == there
        assert asked["GetObject"] == 0


def test_an_image_that_is_missing_is_named(root, server):
    server.client().delete_object(Bucket=BUCKET, Key=f"{root.key}/images/3.png")
    with pytest.raises(BenchmarkError, match=r"s3://data/.*random\.json, line 4: no image 3\.png below s3://data/"):
        load_questions(benchmarks(root)["pope"])
    server.client().delete_object(Bucket=BUCKET, Key=f"{root.key}/mme/OCR/2.jpg")
    with pytest.raises(BenchmarkError, match=r"s3://data/.*/OCR/2\.txt: expected one image"):
        load_questions(benchmarks(root)["mme"])
