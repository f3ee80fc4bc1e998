"""Pictures in the Dagster UI: histograms, curves, intervals, thumbnails. Drawn on demand and small.

Dagster shows them as Markdown with the picture inside, a click away from the metadata's row. Few colours and thumbnails
keep a picture to some kilobytes: an event log holds thousands of them.
"""

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np

from m3po_dagster.assets.display import as_markdown
from m3po_dagster.evaluation.panels import Draw, draw_panels
from m3po_dagster.image_files import FORMATS
from m3po_dagster.s3_files.ahead import ahead

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

# Told apart by people who see few colours, and on white and grey alike.
COLOURS = ("#4f43dd", "#d1552b", "#1b8a6b", "#b0309a", "#8a6d00", "#3f6f9f")
GREY = "#8b8fa3"
# Lines that lie on each other show through.
DASHES = ("-", "--", "-.", ":")
PANEL_INCHES = (3.2, 2.2)
HEAT_MAP_INCHES = (4.6, 4.2)
PANELS_A_ROW = 3
COLOURS_KEPT = 64
COLOURS_OF_LINES = 16
DOTS_PER_INCH = 100
WIDEST = 960
FEW_POINTS = 15
THUMBNAIL_SIDE = 96
GALLERY_TEXT = 300
SHEET_SIDE, SHEET_GAP = 72, 4

Lines = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Named lines: x and y each, a null where nothing is known."""


@dataclass(frozen=True)
class Interval:
    """A value with its interval; `stands_out` gives it the strong colour."""

    label: str
    value: float
    low: float | None
    high: float | None
    stands_out: bool


def histograms(values: Mapping[str, Iterable[float | None]], bins: int = 30) -> dg.MarkdownMetadataValue:
    """A histogram of the known values of each name, side by side."""

    def draw(found: np.ndarray) -> Callable[["Axes"], None]:
        def on(axes: "Axes") -> None:
            edges: int | np.ndarray = bins
            if _whole(found) and np.ptp(found) < bins:
                # A bar a number, the number in its middle.
                edges = np.arange(found.min() - 0.5, found.max() + 1)
                axes.xaxis.get_major_locator().set_params(integer=True)
            axes.hist(found, bins=edges, color=COLOURS[0], rwidth=0.9)
            axes.yaxis.get_major_locator().set_params(integer=True)

        return on

    panels = {}
    for name, given in values.items():
        found = _numbers(given)
        found = found[np.isfinite(found)]
        if len(found):
            panels[f"{name}\nn = {len(found):,}, mean {found.mean():.3g}"] = draw(found)
    return _panels(panels)


def curves(figures: Mapping[str, Lines], x: str) -> dg.MarkdownMetadataValue:
    """Named lines over the same x, a panel a figure; a figure of which nothing is known has none."""

    def draw(lines: Lines, legend: bool) -> Callable[["Axes"], None]:
        def on(axes: "Axes") -> None:
            for number, (name, (xs, ys)) in enumerate(lines.items()):
                colour, dashes = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
                marker = "." if len(xs) < FEW_POINTS else None
                axes.plot(_numbers(xs), _numbers(ys), dashes, label=name, marker=marker, color=colour, linewidth=1.2)
            axes.set_xlabel(x, fontsize=8)
            if all(_whole(_numbers(xs)) for xs, _ in lines.values()):
                axes.xaxis.get_major_locator().set_params(integer=True)
            if legend and len(lines) > 1:
                axes.legend(fontsize=7)

        return on

    known = {title: lines for title, lines in figures.items() if any(_known(ys) for _, ys in lines.values())}
    return _panels({title: draw(lines, number == 0) for number, (title, lines) in enumerate(known.items())})


def intervals(figures: Mapping[str, Sequence[Interval]], zero: bool) -> dg.MarkdownMetadataValue:
    """Values with their intervals, a row a label, a panel a figure; `zero` draws the line that a difference is from."""

    def draw(rows: Sequence[Interval]) -> Callable[["Axes"], None]:
        def on(axes: "Axes") -> None:
            for place, row in enumerate(rows):
                colour = COLOURS[0] if row.stands_out else GREY
                ends = [row.value if end is None else end for end in (row.low, row.high)]
                # Float noise around equal values would otherwise be magnified to fill the panel.
                axes.plot(np.round(ends, 6), (place, place), color=colour, linewidth=2)
                axes.plot(round(row.value, 6), place, "o", color=colour, markersize=4)
            if zero:
                axes.axvline(0, color="black", linewidth=0.6)
            axes.set_yticks(range(len(rows)), [row.label for row in rows])
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.margins(x=0.1)
            # Room for 0.00012 five times over is in no panel.
            axes.locator_params(axis="x", nbins=4)
            axes.ticklabel_format(axis="x", scilimits=(-2, 4), useMathText=False)
            axes.xaxis.get_offset_text().set_fontsize(7)

        return on

    return _panels({title: draw(rows) for title, rows in figures.items() if rows})


def figure_picture(figure: "Figure | None") -> dg.MarkdownMetadataValue:
    """A figure that was drawn elsewhere, at most WIDEST pixels wide."""
    if figure is None:
        return dg.MetadataValue.md("no values")
    figure.set_dpi(min(DOTS_PER_INCH, WIDEST // figure.get_figwidth()))
    # Of many panels: as PNG in all colours it would be twice as large.
    few = _drawn(figure).quantize(COLOURS_OF_LINES).convert("RGB")
    return dg.MetadataValue.md(_markdown(few, "webp", lossless=True, quality=100))


def heat_map(title: str, names: Sequence[str], values: np.ndarray) -> dg.MarkdownMetadataValue:
    """(n, n) shares between 0 and 1 as a square of colours, row and column named alike; nothing where none is known."""
    if not np.isfinite(values).any():
        return dg.MetadataValue.md("no values")

    def on(axes: "Axes") -> None:
        drawn = axes.imshow(values, cmap="viridis", vmin=min(0.5, float(np.nanmin(values))), vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(labelsize=6)
        axes.figure.colorbar(drawn, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)

    return _panels({title: on}, inches=HEAT_MAP_INCHES)


def thumbnails(paths: Iterable[Path]) -> dg.MarkdownMetadataValue:
    """The images that can be read, side by side."""
    paths = list(paths)
    with ahead(paths):
        shown = " ".join(picture for path in paths if (picture := thumbnail(path)))
    return dg.MetadataValue.md(shown or "no image can be read")


def contact_sheet(paths: Iterable[Path], columns: int = 8) -> dg.MarkdownMetadataValue:
    """The images that can be read as one picture, a grid of `columns`, each fitted into a square cell."""
    from PIL import Image

    paths = list(paths)
    with ahead(paths):
        cells = [small for path in paths if (small := _small(path, SHEET_SIDE)) is not None]
    if not cells:
        return dg.MetadataValue.md("no image can be read")
    pitch = SHEET_SIDE + SHEET_GAP
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (min(columns, len(cells)) * pitch - SHEET_GAP, rows * pitch - SHEET_GAP), "white")
    for number, cell in enumerate(cells):
        cell.thumbnail((SHEET_SIDE, SHEET_SIDE))
        left, top = number % columns * pitch, number // columns * pitch
        sheet.paste(cell, (left + (SHEET_SIDE - cell.width) // 2, top + (SHEET_SIDE - cell.height) // 2))
    return dg.MetadataValue.md(_markdown(sheet, "webp", quality=80))


def gallery(
    columns: Sequence[str], rows: Iterable[tuple[Path | None, Sequence[str | float]]]
) -> dg.MarkdownMetadataValue:
    """Images with what belongs to them: a thumbnail a row, or none, and its texts, which may come from anywhere.

    A text is on one line and cut after GALLERY_TEXT characters.
    """
    lines = [["image", *columns], ["---"] * (len(columns) + 1)]
    for path, cells in rows:
        picture = thumbnail(path) or "can't be read" if path else ""
        lines.append([picture, *(_text(cell) for cell in cells)])
    if len(lines) == 2:
        return dg.MetadataValue.md("nothing to show")
    return dg.MetadataValue.md("\n".join(f"| {' | '.join(line)} |" for line in lines))


def _text(cell: str | float) -> str:
    return f"{cell:.3g}" if isinstance(cell, float) else as_markdown(str(cell), GALLERY_TEXT)


def thumbnail(path: Path, side: int = THUMBNAIL_SIDE) -> str:
    """Markdown of the image, upright, at most `side` pixels high and twice that wide; empty when it can't be read."""
    small = _small(path, side)
    if small is None:
        return ""
    small.thumbnail((2 * side, side))
    return _markdown(small, "webp", quality=80)


def _small(path: Path, side: int) -> "Image.Image | None":
    """The image, upright, read no larger than `side` needs; None when it can't be read."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=FORMATS) as image:
            image.draft("RGB", (4 * side, 2 * side))
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, Image.DecompressionBombError):
        return None


def _panels(panels: Mapping[str, Draw], inches: tuple[float, float] = PANEL_INCHES) -> dg.MarkdownMetadataValue:
    if not panels:
        return dg.MetadataValue.md("no values")
    from matplotlib.figure import Figure

    wide = 2 if len(panels) == 4 else min(len(panels), PANELS_A_ROW)
    high = -(-len(panels) // wide)
    figure = Figure(figsize=(inches[0] * wide, inches[1] * high), dpi=DOTS_PER_INCH, layout="constrained")
    draw_panels(figure, panels, wide)
    return dg.MetadataValue.md(_markdown(_drawn(figure).quantize(COLOURS_KEPT), "png", optimize=True))


def _drawn(figure: "Figure") -> "Image.Image":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _markdown(image: "Image.Image", kind: str, **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return f"![](data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()})"


def _numbers(values: Iterable[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _known(values: Iterable[float | None]) -> bool:
    return bool(np.isfinite(_numbers(values)).any())


def _whole(values: np.ndarray) -> bool:
    return bool((values == np.floor(values)).all())
