"""What a person sees of a table in the Dagster UI: previews, histograms, curves, thumbnails. Small, drawn on demand."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow as pa

CELL_CHARACTERS = 80


def preview(table: pa.Table, rows: int = 5, columns: Sequence[str] | None = None) -> dg.MarkdownMetadataValue:
    """The first rows as a Markdown table; long cells are shortened and say so by an ellipsis."""
    shown = table.select(list(columns)) if columns else table
    return markdown_table(shown.slice(0, rows).to_pylist(), shown.column_names)


def markdown_table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> dg.MarkdownMetadataValue:
    """Rows as a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(name)) for name in columns) + " |" for row in rows]
    return dg.MetadataValue.md("\n".join(lines))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 3] + "..."


def counts(numbers: Mapping[str, int]) -> dg.MarkdownMetadataValue:
    """Reason -> count, most frequent first."""
    rows = [{"reason": name, "count": number} for name, number in sorted(numbers.items(), key=lambda item: -item[1])]
    return markdown_table(rows, ["reason", "count"]) if rows else dg.MetadataValue.md("none")


def histogram(values: np.ndarray, title: str, bins: int = 30) -> dg.MarkdownMetadataValue:
    """A histogram of the finite values as a small picture."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return dg.MetadataValue.md("no values")

    def draw(axes) -> None:
        axes.hist(finite, bins=bins, color="#4f43dd")
        axes.set_title(f"{title} (n = {len(finite)}, mean {finite.mean():.3g})", fontsize=9)

    return _figure(draw)


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, x: str
) -> dg.MarkdownMetadataValue:
    """Named (x, y) lines as a small picture."""

    def draw(axes) -> None:
        for name, (xs, ys) in lines.items():
            axes.plot(xs, ys, label=name, marker="." if len(xs) < 15 else None)
        axes.set_xlabel(x, fontsize=8)
        axes.set_title(title, fontsize=9)
        if len(lines) > 1:
            axes.legend(fontsize=7)

    return _figure(draw)


def _figure(draw) -> dg.MarkdownMetadataValue:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 2.4), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.tick_params(labelsize=7)
    draw(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return _picture(buffer.getvalue())


def thumbnails(paths: Sequence[Path], side: int = 96) -> dg.MarkdownMetadataValue:
    """The images side by side, each at most `side` pixels high."""
    from PIL import Image

    opened = []
    for path in paths:
        with Image.open(path) as image:
            small = image.convert("RGB")
            small.thumbnail((2 * side, side))
            opened.append(small)
    if not opened:
        return dg.MetadataValue.md("no images")
    strip = Image.new("RGB", (sum(image.width + 4 for image in opened), side), "white")
    left = 0
    for image in opened:
        strip.paste(image, (left, 0))
        left += image.width + 4
    buffer = io.BytesIO()
    strip.save(buffer, format="png")
    return _picture(buffer.getvalue())


def _picture(png: bytes) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"![](data:image/png;base64,{base64.b64encode(png).decode()})")


def column_schema(schema: pa.Schema) -> dg.TableSchema:
    """A table's columns with their descriptions, as the UI shows them."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                field.name,
                str(field.type),
                description=field.metadata[b"description"].decode(),
                constraints=dg.TableColumnConstraints(nullable=field.nullable),
            )
            for field in schema
        ]
    )
