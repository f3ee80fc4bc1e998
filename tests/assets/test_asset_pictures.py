"""The pictures in the UI: decoded, measured, small; what can't be drawn is said in words."""

import base64
import io
import itertools
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from m3po_dagster.assets import pictures
from m3po_dagster.assets.pictures import (
    Interval,
    curves,
    gallery,
    heat_map,
    histograms,
    intervals,
    thumbnail,
    thumbnails,
)

PICTURE = re.compile(r"!\[\]\(data:image/(png|webp);base64,([A-Za-z0-9+/=]+)\)")


def pictures_in(markdown: str) -> list[Image.Image]:
    """Every picture of a text, decoded."""
    return [Image.open(io.BytesIO(base64.b64decode(data))) for _, data in PICTURE.findall(markdown)]


def only_picture(value) -> Image.Image:
    (picture,) = pictures_in(value.md_str)
    assert PICTURE.fullmatch(value.md_str)
    return picture


def colours(picture: Image.Image) -> int:
    return len(picture.convert("RGB").getcolors(1 << 24))


def test_every_histogram_has_a_panel_and_few_bytes():
    rng = np.random.default_rng(0)
    one = histograms({"a": rng.normal(size=5000)})
    six = histograms({f"panel {i}": rng.normal(size=5000) for i in range(6)})
    assert only_picture(one).size == (320, 220)
    assert only_picture(six).size == (960, 440)
    assert colours(only_picture(one)) > 3
    assert len(one.md_str) < 8_000 and len(six.md_str) < 30_000


def test_a_histogram_is_of_what_is_known():
    known = histograms({"a": [1.0, 2.0, 4.0]})
    assert histograms({"a": [1.0, None, 2.0, float("nan"), 4.0, float("inf")]}).md_str == known.md_str
    assert histograms({"a": [1.0, 2.0, 5.0]}).md_str != known.md_str
    assert histograms({"a": [1.0, 2.0, 4.0], "nothing": [None]}).md_str == known.md_str
    assert histograms({"a": [None, float("nan")], "b": []}).md_str == "no values"


@pytest.mark.parametrize("values", [[5, 5, 5], [0, 31], [-1e300, 1e300], [1e-320, 2e-320], list(range(40))])
def test_any_spread_can_be_drawn(values):
    assert colours(only_picture(histograms({"$x$ _y_ \\alpha": values}))) > 2


def test_curves_leave_out_what_nothing_is_known_of():
    both = curves({"loss": {"seed 0": ([1, 2, 3], [3.0, None, 1.0]), "seed 1": ([1, 2, 3], [2.0, 2.0, 2.0])}}, "step")
    assert only_picture(both).size == (320, 220)
    with_empty = {"loss": {"seed 0": ([1, 2], [3.0, 1.0])}, "margin": {"seed 0": ([1, 2], [None, None])}}
    assert only_picture(curves(with_empty, "step")).size == (320, 220)
    assert curves({"margin": {"seed 0": ([], [])}}, "step").md_str == "no values"


def test_a_curve_of_many_steps_is_no_bigger():
    steps = list(range(20_000))
    losses = np.random.default_rng(0).normal(size=20_000).tolist()
    assert len(curves({"loss": {"seed 0": (steps, losses)}}, "step").md_str) < 12_000


def test_intervals_show_what_stands_out():
    def drawn(stands_out: bool):
        return only_picture(intervals({"POPE": [Interval("m3po", 1.0, 0.5, 1.5, stands_out)]}, zero=True))

    assert drawn(True).convert("RGB").tobytes() != drawn(False).convert("RGB").tobytes()
    assert intervals({"POPE": []}, zero=True).md_str == "no values"
    assert only_picture(intervals({"x": [Interval("a", 0.0, None, None, False)]}, zero=False)).size == (320, 220)


def test_thumbnails_are_small_upright_and_of_any_mode(tmp_path):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 1600, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("L", (10, 10), 90).save(tmp_path / "grey.png")
    Image.new("RGBA", (300, 100), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    (turned,) = pictures_in(thumbnail(tmp_path / "turned.jpg"))
    assert turned.height == 96 and turned.width == 54
    (grey,) = pictures_in(thumbnail(tmp_path / "grey.png"))
    assert grey.size == (10, 10)
    (clear,) = pictures_in(thumbnail(tmp_path / "clear.png"))
    assert clear.size == (192, 64)
    assert len(thumbnail(tmp_path / "turned.jpg")) < 12_000


def test_an_image_that_cannot_be_read_is_left_out(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "good.png")
    paths = [tmp_path / name for name in ("broken.png", "good.png", "none.png")]
    assert len(pictures_in(thumbnails(paths).md_str)) == 1
    assert thumbnails([tmp_path / "none.png"]).md_str == "no image can be read"


def test_a_gallery_has_one_row_an_entry_whatever_the_texts_say(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "good.png")
    hostile = "![](http://evil.example/x.png) | a\n| b"
    rows = [
        (tmp_path / "good.png", ("What?", hostile, 0.123456)),
        (None, ("", "x" * 1000, 1.0)),
        (tmp_path / "no", ("", "", 0.0)),
    ]
    text = gallery(("question", "answer", "MAS"), rows).md_str
    lines = text.splitlines()
    assert len(lines) == 5 and all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in lines)
    assert len(pictures_in(text)) == 1 and text.count("![](") == 1 and "0.123 |" in lines[2]
    assert "x" * 299 + "&#8230;" in lines[3]
    assert lines[4].startswith("| can't be read |")
    assert gallery(("a",), []).md_str == "nothing to show"


def test_a_heat_map_tells_high_shares_from_low_and_stays_small():
    values = np.full((24, 24), 0.6)
    np.fill_diagonal(values, 1.0)
    names = [f"{alpha:g} / {delta:g}" for alpha in range(6) for delta in range(4)]
    drawn = heat_map("share", names, values)
    assert len(drawn.md_str) < 30_000
    picture = only_picture(drawn).convert("RGB")
    assert picture.size == (460, 420)
    # The two most frequent colours beside white: the diagonal is yellow, the rest is not.
    colours = sorted(picture.getcolors(1 << 20), reverse=True)
    strong = [colour for _, colour in colours if max(colour) - min(colour) > 60][:40]
    assert any(red > 200 and green > 200 and blue < 100 for red, green, blue in strong)
    assert any(blue > red for red, _, blue in strong)
    assert heat_map("share", ["a"], np.array([[np.nan]])).md_str == "no values"


@pytest.mark.parametrize("values", [[1.3187e-4], [-0.0074, 0.0034], [-1e-5, 3e-5], [0.4, 1.2], [-3e6, 2e6]])
def test_the_numbers_under_an_interval_stand_apart(monkeypatch, values):
    drawn = []
    monkeypatch.setattr(pictures, "_panels", lambda panels: drawn.extend(panels.values()))
    rows = [Interval(f"KL, seed {seed}", value, None, None, True) for seed, value in enumerate(values)]
    intervals({"KL": rows}, zero=True)
    figure = Figure(figsize=pictures.PANEL_INCHES, dpi=pictures.DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(labelsize=7)
    drawn[0](axes)
    FigureCanvasAgg(figure).draw()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
    assert len(boxes) >= 2
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
