import hashlib
import io
import struct
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import imagehash
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from m3po_dagster.datasets.image_facts import PixelRoom, look_at
from m3po_dagster.datasets.row import IMAGE_TOO_LARGE, IMAGE_UNDECODABLE, ImageFacts
from m3po_dagster.method.prompt import Message, Prompt

MEGAPIXELS = 80.0


def png_header(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def promising(width, height):
    chunk = b"IDAT" + zlib.compress(b"\0" * 100)
    body = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png_header(width, height) + body


def truncated(kind):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, kind)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


def text_bomb():
    chunk = b"zTXt" + b"k\0\0" + zlib.compress(b"x" * 80_000_000)
    body = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png_header(16, 16) + body


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", IMAGE_UNDECODABLE),
        (b"GIF is what this claims to be", IMAGE_UNDECODABLE),
        (truncated("PNG"), IMAGE_UNDECODABLE),
        (truncated("JPEG"), IMAGE_UNDECODABLE),
        (text_bomb(), IMAGE_UNDECODABLE),
        (promising(12_000, 12_000), IMAGE_TOO_LARGE),
        (promising(400_000, 400_000), IMAGE_TOO_LARGE),
        (b"P6 16 16 255\n" + b"x" * 768, IMAGE_UNDECODABLE),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", IMAGE_UNDECODABLE),
    ],
)
def test_hostile_images_are_told_by_their_problem(tmp_path, content, expected):
    (tmp_path / "bad.png").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        facts = look_at(tmp_path / "bad.png", MEGAPIXELS)
    assert facts == ImageFacts(sha256=hashlib.sha256(content).hexdigest(), problem=expected, detail=facts.detail)
    assert facts.detail and str(tmp_path) not in facts.detail


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 255))
def test_no_bytes_are_an_error(tmp_path_factory, tail, at, value):
    path = tmp_path_factory.mktemp("fuzz") / "a.png"
    buffer = io.BytesIO()
    Image.new("RGB", (12, 12), "red").save(buffer, "PNG")
    content = bytearray(buffer.getvalue() + tail)
    content[at % len(content)] = value
    path.write_bytes(bytes(content))
    facts = look_at(path, MEGAPIXELS)
    assert facts.sha256 == hashlib.sha256(content).hexdigest()
    assert (facts.problem is None) == (facts.phash is not None) == (facts.width is not None)


def test_what_passes_opens_as_a_prompt_with_the_stated_size_and_looks(tmp_path):
    upright = Image.effect_noise((40, 20), 50).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    upright.save(tmp_path / "turned.jpg", exif=exif)
    upright.convert("L").save(tmp_path / "gray.png")
    upright.convert("RGBA").save(tmp_path / "alpha.png")
    upright.convert("P").save(tmp_path / "palette.gif")
    upright.convert("CMYK").save(tmp_path / "cmyk.jpg")
    sizes = {}
    for name in ("turned.jpg", "gray.png", "alpha.png", "palette.gif", "cmyk.jpg"):
        facts = look_at(tmp_path / name, MEGAPIXELS)
        image = Prompt("0" * 32, tmp_path / name, (Message("user", "?"),)).open_image()
        assert (image.mode, image.size) == ("RGB", (facts.width, facts.height))
        assert facts.phash == int(str(imagehash.phash(image)), 16)
        assert (facts.problem, facts.detail) == (None, None)
        sizes[name] = image.size
    assert sizes == dict.fromkeys(sizes, (40, 20)) | {"turned.jpg": (20, 40)}


@pytest.mark.parametrize(("megapixels", "problem"), [(200e-6, None), (199e-6, IMAGE_TOO_LARGE)])
def test_the_bound_of_pixels_is_inclusive(tmp_path, megapixels, problem):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.png")
    assert look_at(tmp_path / "a.png", megapixels).problem == problem


def test_what_is_known_of_a_file_does_not_depend_on_where_it_lies(tmp_path):
    for name, content in (("text", b"no image"), ("cut", truncated("PNG")), ("bomb", promising(12_000, 12_000))):
        found = []
        for place in ("a", "some/where/else"):
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            path = tmp_path / place / f"{place[0]}{name}.png"
            path.write_bytes(content)
            found.append(look_at(path, MEGAPIXELS))
        assert found[0] == found[1] and found[0].problem


def test_large_images_wait_for_room_and_one_larger_than_all_goes_alone():
    room, inside, most = PixelRoom(100), [], []

    def decode(pixels: int) -> None:
        with room.of(pixels):
            inside.append(pixels)
            most.append(sum(inside))
            time.sleep(0.005)
            inside.remove(pixels)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(decode, [60, 40, 60, 10, 250, 30, 90, 5] * 3))
    assert max(one for one in most if one != 250) <= 100 and most.count(250) == 3
