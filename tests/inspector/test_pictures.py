"""Images: from below the root alone, images alone, never large."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from m3po_dagster.inspector import pictures
from m3po_dagster.inspector.pictures import PictureError, picture


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (30, 20), "red").save(folder / "sub" / "a.png")
    Image.new("RGB", (30, 20), "blue").save(tmp_path / "secret.png")
    return folder


def test_a_small_file_goes_out_as_it_is(root):
    content, kind = picture(root / "sub/a.png", "sub/a.png")
    assert content == (root / "sub" / "a.png").read_bytes() and kind == "image/png"


@pytest.mark.parametrize("name", ["sub", "absent.png", "x" * 5000])
def test_what_is_no_file_is_not_sent(root, name):
    with pytest.raises(PictureError):
        picture(root / name, name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("page.png", b"<html><script>alert(1)</script></html>"),
        ("drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'),
        ("empty.png", b""),
        ("half.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"),
        ("a.pdf", b"%PDF-1.4"),
        ("cut.png", "noise"),
    ],
)
def test_what_is_no_image_is_not_sent(root, name, content):
    if content == "noise":  # an image that goes on as markup where it was cut
        buffer = io.BytesIO()
        Image.effect_noise((60, 60), 90).save(buffer, format="PNG")
        content = buffer.getvalue()[:1500] + b"<html><script>alert(1)</script></html>"
    (root / name).write_bytes(content)
    with pytest.raises(PictureError, match="can't be read as an image"):
        picture(root / name, name)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGBA"), ("JPEG", "CMYK"), ("TIFF", "RGB"), ("BMP", "RGB"), ("PNG", "I;16"), ("PNG", "P"), ("PNG", "1")],
)
def test_large_images_and_other_formats_are_drawn_anew(root, kind, mode):
    Image.new(mode, (3000, 1500)).save(root / "large", format=kind)
    content, sent = picture(root / "large", "large", side=512)
    with Image.open(io.BytesIO(content)) as drawn:
        assert sent == "image/jpeg" and drawn.format == "JPEG" and drawn.size == (512, 256)


def test_a_turned_photograph_stands_upright(root):
    turned = Image.new("RGB", (2000, 1000))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(root / "turned.jpg", exif=exif)
    with Image.open(io.BytesIO(picture(root / "turned.jpg", "turned.jpg")[0])) as drawn:
        assert drawn.size == (512, 1024)


def test_too_much_is_refused(root, monkeypatch):
    monkeypatch.setattr(pictures, "LARGEST_PIXELS", 599)
    with pytest.raises(PictureError, match="30 x 20 pixels"):
        picture(root / "sub/a.png", "sub/a.png")
    monkeypatch.setattr(pictures, "LARGEST_FILE", 10)
    with pytest.raises(PictureError, match="more than 10"):
        picture(root / "sub/a.png", "sub/a.png")


def test_at_most_two_images_are_decoded_at_once(root, monkeypatch):
    Image.new("RGB", (1200, 1200)).save(root / "large.png")
    thumbnail, lock = Image.Image.thumbnail, threading.Lock()
    inside, most, two = 0, 0, threading.Barrier(2)

    def watched(image, size):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        two.wait(10)  # both places are taken: a third would be seen
        thumbnail(image, size)
        with lock:
            inside -= 1

    monkeypatch.setattr(Image.Image, "thumbnail", watched)
    with ThreadPoolExecutor(6) as pool:
        sizes = list(pool.map(lambda _: len(picture(root / "large.png", "large.png")[0]), range(6)))
    assert most == 2 and len(set(sizes)) == 1
