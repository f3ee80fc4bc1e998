"""A small file that promises more pixels than memory has: one image that can't be read, wherever it is opened."""

import io
import struct
import zlib

import pytest
from tiny_llava import tiny_prompts

from m3po_dagster.method.alignment.clip import ClipScorerSettings
from m3po_dagster.method.alignment.scorer import UNREADABLE_IMAGE
from m3po_dagster.method.image_url import data_url
from m3po_dagster.world.judge import JUDGE_FOLDER

SIDE = 50_000


@pytest.fixture
def prompts(tmp_path):
    """The first one's image is the bomb."""
    found = tiny_prompts(tmp_path, 2)
    found[0].image_path.write_bytes(bomb())
    return found


def bomb() -> bytes:
    """A PNG of 7.5 GB of black; its rows come packed a thousand times smaller, and are never unpacked."""
    content = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    content.seek(0, io.SEEK_END)
    rows = zlib.compress(bytes(1 << 20))
    for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")):
        content.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return content.getvalue()


def test_whoever_opens_it_gets_the_error_of_a_file(prompts):
    assert prompts[0].image_path.stat().st_size < 2000
    for opened in (prompts[0].open_image, lambda: data_url(prompts[0].image_path)):
        with pytest.raises(OSError, match=rf"{prompts[0].image_path}: Image size \({SIDE**2} pixels\) exceeds limit"):
            opened()


def test_it_costs_a_scorer_one_prompt(prompts):
    scored = ClipScorerSettings(model=str(JUDGE_FOLDER), tiles=2).build().score([(one, ["Yes."]) for one in prompts])
    assert [score.reason == UNREADABLE_IMAGE for (score,) in scored] == [True, False]
