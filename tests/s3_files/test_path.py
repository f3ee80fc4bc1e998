"""A path of a bucket, as far as nothing is asked of the service."""

import json
import pickle
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from m3po_dagster.cli.main import app
from m3po_dagster.identity import portable
from m3po_dagster.image_files import ImageFolders, ImageOutsideRoot, locate
from m3po_dagster.method.alignment.judge_image import ImageUrls
from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.settings import ModelSettings, SamplingSettings
from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.optimization.job import Job, read_job, write_job
from m3po_dagster.method.prompt import Message, Prompt
from m3po_dagster.s3_files.path import BucketError, DataPath, S3Path, as_path
from m3po_dagster.settings import Settings
from tests.sampling import sample
from tests.tiny_llava import tiny_llava

ROOT = as_path("s3://data/coco")
DEFAULT = Path(__file__).parents[2] / "studies" / "easy_scenes.yaml"


class Named(Settings):
    path: DataPath


def test_it_is_a_path_whose_text_is_the_url():
    path = ROOT / "train2017" / "000000000009.jpg"
    assert isinstance(path, Path) and str(path) == "s3://data/coco/train2017/000000000009.jpg"
    assert (path.bucket, path.key, path.name, path.suffix) == (
        "data",
        "coco/train2017/000000000009.jpg",
        "000000000009.jpg",
        ".jpg",
    )
    assert path.parent.parent == ROOT and path in {ROOT / "train2017/000000000009.jpg"}
    assert path.relative_to(ROOT) == PurePosixPath("train2017/000000000009.jpg")
    assert path.is_relative_to(ROOT) and not ROOT.is_relative_to(path) and not ROOT.is_relative_to("/data")
    assert path.is_absolute() and path.resolve() is path.absolute() is path and not path.is_symlink()
    assert pickle.loads(pickle.dumps(path)) == path and json.loads(json.dumps(path, default=str)) == str(path)


@given(st.lists(st.from_regex(r"[a-z#?%+ é.]{1,8}", fullmatch=True).filter(lambda part: part.strip(".")), min_size=1))
def test_whatever_a_key_is_made_of_comes_back(parts):
    path = ROOT.joinpath(*parts)
    assert path.key == "/".join(["coco", *parts]) and S3Path(str(path)) == path
    assert as_path(path) is path and path.relative_to(ROOT).parts == tuple(parts)


def test_a_study_names_a_bucket_or_a_folder():
    assert Named(path="s3://data/coco").path == ROOT and type(Named(path="/data/coco").path) is type(Path())
    assert Named(path=ROOT).path == ROOT
    assert Named.model_validate_json(Named(path=ROOT).model_dump_json()) == Named(path=ROOT)


@pytest.mark.parametrize("url", ["s3://", "s3://data/../other", "s3://data//x", "s3://data/x?versionId=1"])
def test_a_url_that_names_no_bucket_is_refused(url):
    with pytest.raises(ValidationError, match="s3://"):
        Named(path=url)


def test_a_url_with_a_secret_is_refused_without_repeating_it():
    with pytest.raises(ValueError, match="AWS_ACCESS_KEY_ID") as refused:
        as_path("s3://key:hush@data/x")
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("uri", ["../secret.jpg", "a/../../secret.jpg", "/etc/passwd", "s3:/../x", "a\0b"])
def test_an_image_never_leads_out_of_its_prefix(uri):
    with pytest.raises(ImageOutsideRoot):
        locate(ROOT, uri)


def test_a_url_in_a_record_is_a_name_below_the_root_like_any_other():
    assert str(locate(ROOT, "s3://other/x.jpg")) == "s3://data/coco/s3:/other/x.jpg"


def test_prefixes_may_lie_in_buckets_and_folders():
    folders = ImageFolders(ROOT, {"sam/images": Path("/data/sam"), "ocr": as_path("s3://texts/ocr")})
    assert folders.locate("sam/images/1.jpg") == Path("/data/sam/1.jpg")
    assert str(folders.locate("ocr/1.jpg")) == "s3://texts/ocr/1.jpg"
    assert str(folders.locate("train2017/1.jpg")) == "s3://data/coco/train2017/1.jpg"


def test_where_a_file_lies_is_no_part_of_what_it_is():
    assert portable(Named(path="s3://data/a/labels.json")) == portable(Named(path="/mnt/labels.json"))


@pytest.mark.parametrize("write", ["write_text", "write_bytes", "mkdir", "unlink", "touch", "rmdir"])
def test_files_are_not_changed(write):
    with pytest.raises(PermissionError, match="s3://data/coco/x"):
        getattr(ROOT / "x", write)(*(["x"] if write == "write_text" else [b"x"] if write == "write_bytes" else []))


@pytest.mark.parametrize("name", ["n" * 1100, "half \ud800"])
def test_a_name_that_no_object_can_have_is_missing_and_never_asked_for(nobody, name):
    assert not (ROOT / name).is_file()
    with pytest.raises(FileNotFoundError):
        (ROOT / name).read_bytes()


def test_an_outage_is_no_missing_file(nobody):
    path = ROOT / "1.jpg"
    for ask in (path.is_file, path.read_bytes, path.exists, lambda: list(ROOT.iterdir())):
        with pytest.raises(BucketError, match=r"s3://data.*AWS_ENDPOINT_URL_S3"):
            ask()


def test_images_in_a_bucket_have_an_address_where_the_bucket_is_served():
    urls = ImageUrls(folder="s3://data/coco", address="https://images.example.org/coco/")
    assert urls.of(ROOT / "a b.jpg") == "https://images.example.org/coco/a%20b.jpg"
    assert urls.of(Path("/data/coco/a.jpg")) is None
    assert ImageUrls(folder="/data", address="https://images.example.org").of(ROOT / "a.jpg") is None


@pytest.mark.slow
def test_an_outage_is_no_fault_of_the_prompts(nobody, tmp_path):
    loaded = load_model(ModelSettings(path=str(tiny_llava(tmp_path)), device="cpu"))
    prompts = [Prompt(f"p{number}", ROOT / f"{number}.jpg", (Message("user", "What is it?"),)) for number in range(2)]
    with pytest.raises(BucketError, match=r"s3://data/coco/0\.jpg"):
        sample(loaded, prompts, SamplingSettings(n=2, max_new_tokens=4), [0, 2])


def test_a_launched_training_gets_the_urls(tmp_path):
    prompt = Prompt("p", ROOT / "1.jpg", (Message("user", "What is it?"),))
    example = PreferenceExample("p|0|1", prompt, (5,), (6,), -1.0, -2.0)
    settings = {"model": {"path": "llava"}, "training": {"kind": "dpo"}, "seed": 0, "out": tmp_path}
    settings |= {"checkpoints": None, "checkpoint_minutes": 1.0, "pass_size": 1}
    job = Job.model_validate(settings | {"processes": 1, "owner": 1, "owner_started": 0.0})
    write_job(tmp_path, job, [example])
    (read,) = read_job(tmp_path)[1]
    assert read == example and isinstance(read.prompt.image_path, S3Path)


def test_a_command_says_that_a_bucket_can_not_be_asked(nobody, tmp_path):
    study = tmp_path / "study.yaml"
    source = "sources: {easy_scenes: {image_root: 's3://data/images'}}"
    study.write_text(f"extends: {DEFAULT.absolute()}\ndataset: {{{source}}}\n")
    for command in (["study", "check", "--study", str(study)], ["run", "--plan", "--study", str(study)]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 1, done.output
        assert "can't look at s3://data/images" in done.output and "Traceback" not in done.output
