"""Images out of a dataset's own files: named by their bytes, written whole, once."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from m3po_dagster.datasets import unpacking
from m3po_dagster.datasets.unpacking import unpack


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [("PNG", ".png"), ("JPEG", ".jpg"), ("WEBP", ".webp"), ("GIF", ".gif"), ("BMP", ".bmp"), ("TIFF", ".tif")],
)
def test_the_suffix_is_of_the_content(tmp_path, kind, suffix):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, format=kind)
    uri = unpack(buffer.getvalue(), tmp_path)
    assert uri.endswith(suffix) and (tmp_path / uri).read_bytes() == buffer.getvalue()


@given(st.lists(st.binary(max_size=50), max_size=8))
def test_equal_bytes_are_one_file_and_nothing_else_is_left(tmp_path_factory, contents):
    root = tmp_path_factory.mktemp("unpacked")
    uris = [unpack(content, root) for content in contents]
    assert [(root / uri).read_bytes() for uri in uris] == contents
    assert len([path for path in root.rglob("*") if path.is_file()]) == len(set(contents))


def test_a_file_cut_short_is_written_again_and_a_whole_one_is_not(tmp_path, monkeypatch):
    path = tmp_path / unpack(b"whole", tmp_path)
    monkeypatch.setattr(unpacking.os, "replace", lambda *_: pytest.fail("a whole file was written again"))
    unpack(b"whole", tmp_path)
    monkeypatch.undo()
    path.write_bytes(b"wh")
    unpack(b"whole", tmp_path)
    assert path.read_bytes() == b"whole"


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unpacking.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        unpack(b"x", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
