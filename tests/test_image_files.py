import pytest

from m3po_dagster.image_files import ImageOutsideRoot, locate


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
