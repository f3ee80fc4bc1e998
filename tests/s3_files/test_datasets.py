"""Datasets of every format in a bucket of a real service: the same rows, and few requests."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from m3po_dagster.cli.main import app
from m3po_dagster.datasets.image_survey import ImageSurvey
from m3po_dagster.datasets.images import DatasetImages
from m3po_dagster.datasets.readers import read_source
from m3po_dagster.datasets.row import IMAGE_MISSING, IMAGE_OUTSIDE
from m3po_dagster.datasets.settings import PACKED, DatasetSettings
from m3po_dagster.identity import Identities
from m3po_dagster.inspector.pictures import picture as shown_picture
from m3po_dagster.method.alignment.judge_image import JudgeImage
from m3po_dagster.s3_files.path import BucketError, as_path
from m3po_dagster.storage.file_facts import FileFacts
from m3po_dagster.storage.fingerprint import file_sha256
from tests.datasets.dataset_files import dataset, picture, record, rows_of
from tests.datasets.sources import FORMATS, MAX_RECORD_BYTES, PAIRS, Pair, source, write
from tests.s3_files.uploads import BUCKET, be_impatient, requests, uploaded

pytestmark = pytest.mark.slow
IMAGES = 12
STUDY = Path(__file__).parents[2] / "studies" / "easy_scenes.yaml"


def moved(settings: DatasetSettings, folder, root) -> DatasetSettings:
    """The dataset as its study names it in the bucket."""
    return DatasetSettings.model_validate_json(
        settings.model_dump_json(exclude_unset=True).replace(str(folder), str(root))
    )


@pytest.fixture
def toy(tmp_path):
    """A dataset on this machine: images, one of them twice, one missing, one no image, one outside."""
    for number in range(IMAGES):
        picture(tmp_path / "toy" / "images" / f"coco/{number}.png", number)
    (tmp_path / "toy" / "images" / "broken.png").write_bytes(b"no image")
    (tmp_path / "toy" / "images" / "LICENSE.txt").write_text("mine")
    names = [*(f"coco/{number}.png" for number in range(IMAGES)), "coco/0.png", "none.png", "broken.png", "../x.png"]
    return dataset(tmp_path / "toy", [record(number, name) for number, name in enumerate(names)], shards=2)


@pytest.fixture
def remote(toy, server, own_cache, tmp_path, request):
    return moved(toy, tmp_path / "toy", uploaded(server, tmp_path / "toy", request.node.name))


def identity(dataset: DatasetSettings) -> dict:
    """What the dataset is, looked at anew."""
    return Identities(file_sha256).dataset(SimpleNamespace(dataset=dataset))


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_records_come_out_of_a_bucket(tmp_path, server, own_cache, format):
    here = tmp_path / "here"
    here.mkdir()
    path = write(format, here)
    root = uploaded(server, here, f"records/{format}")
    there = source(format, root / path.relative_to(here))
    assert list(read_source(there, MAX_RECORD_BYTES)) == list(read_source(source(format, path), MAX_RECORD_BYTES))


def test_rows_and_refusals_are_those_of_the_same_folder_here(toy, remote):
    assert rows_of(remote) == rows_of(toy)
    problems = [row.image.problem for row in rows_of(remote)]
    assert problems[IMAGES:] == [None, IMAGE_MISSING, "image undecodable", IMAGE_OUTSIDE]


def test_each_image_is_looked_at_and_fetched_once_and_never_again(remote, tmp_path, own_cache, monkeypatch):
    memory = FileFacts(tmp_path / "facts.sqlite")
    with requests() as asked:
        first = rows_of(remote, memory)
        # 13 files and a missing one are looked at; 13 and the dataset's own file are fetched.
        assert asked == {"HeadObject": IMAGES + 2, "GetObject": IMAGES + 2}
    shutil.rmtree(own_cache)
    monkeypatch.setenv("M3PO_CACHE_GB", "1")  # as another process, which knows of no object
    with requests() as asked:
        assert rows_of(remote, memory) == first
        assert asked["GetObject"] == 1  # the dataset's own file


def test_the_identity_is_listed_and_tells_a_changed_image(remote, toy, server):
    first = identity(remote)
    with requests() as asked:
        assert identity(remote) == first
        assert asked["GetObject"] == 0 and asked["ListObjectsV2"] <= 4
    # Where it lies, and the times of its images, are all that differs from the same dataset here.
    here, there = identity(toy)["sources"]["toy"], first["sources"]["toy"]
    assert {**here, "images": ""} == {**there, "images": ""}
    root = remote.sources["toy"].image_root
    server.client().put_object(Bucket=BUCKET, Key=f"{root.key}/README.txt", Body=b"no image")
    server.client().put_object(Bucket=BUCKET, Key=f"{root.key}/.m3po/fetched/x", Body=b"hidden")
    assert identity(remote) == first
    server.client().put_object(Bucket=BUCKET, Key=f"{root.key}/coco/3.png", Body=b"another")
    assert identity(remote)["sources"]["toy"]["images"] != there["images"]


def test_what_a_study_names_and_is_not_there_is_no_empty_dataset(remote):
    lost = remote.sources["toy"].model_copy(update={"path": as_path(f"s3://{BUCKET}/nothing.json")})
    with pytest.raises(ValueError, match=r"s3://data/nothing\.json: no such dataset file"):
        rows_of(remote.model_copy(update={"sources": {"toy": lost}}))
    for place, error, said in (
        (
            f"s3://{BUCKET}/nowhere",
            FileNotFoundError,
            "s3://data/nowhere does not exist .dataset.sources.toy.image_ro",
        ),
        ("s3://not-there/images", BucketError, "make the bucket not-there"),
    ):
        lost = remote.sources["toy"].model_copy(update={"image_root": as_path(place)})
        with pytest.raises(error, match=said):
            identity(remote.model_copy(update={"sources": {"toy": lost}}))


def test_an_outage_ends_the_reading_and_drops_no_record(remote, monkeypatch):
    be_impatient(monkeypatch)
    remote.sources["toy"].path.read_bytes()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("M3PO_CACHE_GB", "1")
    with pytest.raises(BucketError, match=f"s3://{BUCKET}/"):
        rows_of(remote)


@pytest.mark.parametrize("format", sorted(PACKED))
def test_packed_images_are_unpacked_into_the_bucket_once(tmp_path, server, own_cache, format, monkeypatch):
    drawn = [
        Pair(str(number), f"{number}.png", picture(tmp_path / f"{number}.png", number).read_bytes(), "What?", "A bus.")
        for number in range(len(PAIRS))
    ]
    here = tmp_path / "here"
    here.mkdir()
    path = write(format, here, drawn)
    root = uploaded(server, here, f"packed/{format}")
    more = {"shards": 2}
    local = DatasetSettings(sources={"toy": source(format, path)}, **more)
    there = DatasetSettings(sources={"toy": source(format, root / path.relative_to(here))}, **more)
    with requests() as asked:
        assert rows_of(there) == rows_of(local)
        assert asked["PutObject"] == len(drawn)
    first = identity(there)
    monkeypatch.setenv("M3PO_CACHE_GB", "1")
    with requests() as asked:
        rows = rows_of(there)
        assert asked["PutObject"] == 0
    assert identity(there) == first
    images = DatasetImages(there)
    assert [images.locate("toy", row.image_uri).read_bytes() for row in rows] == [pair.data for pair in drawn]


def test_an_inspection_lists_the_images_instead_of_looking_at_each(toy, remote, tmp_path):
    def survey(settings) -> ImageSurvey:
        found = ImageSurvey(settings.sources["toy"], 4, 80.0, tmp_path)
        for one in read_source(settings.sources["toy"], MAX_RECORD_BYTES):
            found.add(one)
        found.decode()
        return found

    here = survey(toy)
    with requests() as asked:
        there = survey(remote)
        assert asked == {"ListObjectsV2": 1, "GetObject": 1 + 4}
    assert there.records_missing == here.records_missing == 1
    assert there.sizes == here.sizes and len(there.sizes) >= 3


def test_judges_and_pages_see_the_same_image(toy, remote):
    here = DatasetImages(toy).locate("toy", "coco/1.png")
    there = DatasetImages(remote).locate("toy", "coco/1.png")
    assert JudgeImage(there, None, "auto").part() == JudgeImage(here, None, "auto").part()
    assert JudgeImage(there, None, "auto").sha256 == JudgeImage(here, None, "auto").sha256
    assert JudgeImage(there, None, "auto").size == (24, 16)
    assert shown_picture(there, "coco/1.png") == shown_picture(here, "coco/1.png")
    with pytest.raises(OSError, match=r"s3://data/.*none\.png"):
        JudgeImage(DatasetImages(remote).locate("toy", "none.png"), None, "auto")
    broken = DatasetImages(remote).locate("toy", "broken.png")
    with pytest.raises(OSError, match=r"s3://data/.*broken\.png"):
        JudgeImage(broken, None, "auto").part()


def test_a_record_can_name_no_object_beside_the_root(remote, server, tmp_path):
    server.client().put_object(Bucket=BUCKET, Key="secret.png", Body=b"mine")
    root = remote.sources["toy"].image_root
    names = ["../../secret.png", "/secret.png", f"s3:/{BUCKET}/secret.png"]
    content = json.dumps([record(number, name) for number, name in enumerate(names)]).encode()
    server.client().put_object(Bucket=BUCKET, Key=f"{root.key}/hostile.json", Body=content)
    hostile = remote.sources["toy"].model_copy(update={"path": root / "hostile.json"})
    rows = rows_of(remote.model_copy(update={"sources": {"toy": hostile}}))
    assert [row.image.problem for row in rows] == [IMAGE_OUTSIDE, IMAGE_OUTSIDE, IMAGE_MISSING]


def test_inspecting_a_url_tells_what_inspecting_the_folder_does(toy, remote):
    told = []
    for one in (toy.sources["toy"], remote.sources["toy"]):
        command = ["data", "inspect", str(one.path), "--image-root", str(one.image_root), "--json"]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 1 and "the filters drop every prompt" in done.stderr, "the pictures are tiny ones"
        text = done.stdout.replace(str(one.image_root), "ROOT").replace(str(one.path), "FILE")
        told.append(json.loads(text))
    assert told[0] == told[1] and told[1]["sources"]["data"]["prompts"]["with an image in place"] == IMAGES + 2


def test_inspecting_a_url_that_is_not_there_names_the_url(server, own_cache):
    done = CliRunner().invoke(app, ["data", "inspect", f"s3://{BUCKET}/nothing.json"])
    assert done.exit_code == 1 and f"s3://{BUCKET}/nothing.json: no such file or folder" in done.stderr
    done = CliRunner().invoke(app, ["data", "inspect", "s3://key:hush@data/x.json"], env={"COLUMNS": "200"})
    assert done.exit_code == 2 and "holds credentials" in done.stderr and "hush" not in done.stderr


def test_a_study_s_missing_object_is_not_in_the_bucket(server, own_cache, tmp_path):
    study = tmp_path / "study.yaml"
    source = f"sources: {{easy_scenes: {{path: 's3://{BUCKET}/none.json', image_root: ./gone}}}}"
    study.write_text(f"extends: {STUDY}\ndataset: {{{source}}}\n")
    for command in (["study", "check"], ["run", "--plan"]):
        said = CliRunner().invoke(app, [*command, "--study", str(study)]).output
        assert f"not in the bucket: dataset.sources.easy_scenes.path: s3://{BUCKET}/none.json" in said
        assert f"not on this machine: dataset.sources.easy_scenes.image_root: {tmp_path / 'gone'}" in said
