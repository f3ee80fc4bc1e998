from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from m3po_dagster.assets.instructions import prompts_of
from m3po_dagster.assets.pictures import thumbnail
from m3po_dagster.image_files import FORMATS, ImageOutsideRoot, ImageRoot, locate
from m3po_dagster.method.filtering import PROMPT_ID_CHARACTERS
from m3po_dagster.method.prompt import Message, Prompt
from m3po_dagster.storage.tables import FILTERED_INSTRUCTIONS
from m3po_dagster.study import Study, load_study


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "images"
    (folder / "coco").mkdir(parents=True)
    (folder / "coco" / "1.jpg").write_bytes(b"inside")
    (tmp_path / "secret.jpg").write_bytes(b"outside")
    return folder


@pytest.mark.parametrize("uri", ["coco/1.jpg", "./coco/1.jpg", "coco//1.jpg"])
def test_a_path_below_the_root_is_located(root, uri):
    assert locate(root, uri).read_bytes() == b"inside"


def test_a_missing_file_is_located_too(root):
    assert locate(root, "coco/none.jpg") == root / "coco" / "none.jpg"


@pytest.mark.parametrize(
    "uri", ["../secret.jpg", "coco/../../secret.jpg", "coco/../coco/1.jpg", "/etc/hostname", "a\0b"]
)
def test_paths_that_climb_are_refused(root, uri):
    with pytest.raises(ImageOutsideRoot):
        locate(root, uri)


def test_links_are_followed_inside_and_refused_when_they_lead_out(root):
    (root / "in.jpg").symlink_to(root / "coco" / "1.jpg")
    (root / "out.jpg").symlink_to(root.parent / "secret.jpg")
    (root / "folder").symlink_to(root.parent)
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    assert locate(root, "in.jpg").read_bytes() == b"inside"
    for uri in ("out.jpg", "folder/secret.jpg", "loop.jpg"):
        with pytest.raises(ImageOutsideRoot):
            locate(root, uri)


def test_a_root_that_is_itself_a_link_is_fine(root):
    link = root.parent / "link"
    link.symlink_to(root)
    assert locate(link, "coco/1.jpg").read_bytes() == b"inside"


def test_a_root_of_many_images_resolves_a_folder_once_and_still_sees_each_link(root, monkeypatch):
    for number in range(2, 30):
        (root / "coco" / f"{number}.jpg").write_bytes(b"inside")
    (root / "coco" / "out.jpg").symlink_to(root.parent / "secret.jpg")
    resolved, real = [], Path.resolve
    monkeypatch.setattr(Path, "resolve", lambda self, strict=False: resolved.append(self) or real(self, strict))
    images = ImageRoot(root)
    for number in range(1, 30):
        assert images.locate(f"coco/{number}.jpg").read_bytes() == b"inside"
    with pytest.raises(ImageOutsideRoot, match="leads out"):
        images.locate("coco/out.jpg")
    assert resolved == [root, root / "coco", root / "coco" / "out.jpg"]


def prompts_table(*uris: str) -> pa.Table:
    rows = [
        {
            "prompt_id": f"{number:0{PROMPT_ID_CHARACTERS}x}",
            "source": "easy_scenes",
            "source_id": str(number),
            "turn": 0,
            "image_name": None,
            "image_uri": uri,
            "image_sha256": "0" * 64,
            "width": 8,
            "height": 8,
            "messages": [{"role": "user", "text": "What is it?"}],
            "reference": None,
        }
        for number, uri in enumerate(uris)
    ]
    return pa.Table.from_pylist(rows, schema=FILTERED_INSTRUCTIONS.schema)


@pytest.fixture
def study(root) -> Study:
    study = load_study(Path(__file__).parents[1] / "studies" / "easy_scenes.yaml")
    source = study.dataset.sources["easy_scenes"].model_copy(update={"image_root": root})
    dataset = study.dataset.model_copy(update={"sources": {"easy_scenes": source}})
    return study.model_copy(update={"dataset": dataset})


@pytest.mark.parametrize("uri", ["/etc/hostname", "coco/../../secret.jpg", "out.jpg"])
def test_no_step_gets_a_prompt_whose_image_a_store_puts_outside_the_root(root, study, uri):
    (root / "out.jpg").symlink_to(root.parent / "secret.jpg")
    assert [prompt.image_path for prompt in prompts_of(prompts_table("coco/1.jpg"), study)] == [root / "coco" / "1.jpg"]
    with pytest.raises(ImageOutsideRoot, match=f"image_uri of prompt {1:0{PROMPT_ID_CHARACTERS}x}"):
        prompts_of(prompts_table("coco/1.jpg", uri), study)


def test_an_image_of_another_format_is_opened_nowhere(tmp_path):
    for kind in (*FORMATS, "PPM", "SGI"):
        path = tmp_path / f"{kind}.png"
        Image.new("RGB", (8, 8), "red").save(path, format=kind)
        allowed = kind in FORMATS
        assert bool(thumbnail(path)) is allowed
        prompt = Prompt("p", path, (Message("user", "?"),))
        if allowed:
            assert prompt.open_image().size == (8, 8)
        else:
            with pytest.raises(OSError, match="cannot identify"):
                prompt.open_image()
