"""Tables as a person sees them in the Dagster UI, and text of any origin made safe to show.

Answers of models and texts of datasets are untrusted. A table's cells are shown as plain text, so most of them need no
care; where a text stands beside a picture the whole is Markdown, and the text goes through `as_markdown`.
"""

import re
from collections.abc import Mapping, Sequence

import dagster as dg
import pyarrow as pa

CELL_CHARACTERS = 120
PREVIEW_ROWS = 5

_SPECIAL = re.compile(r"[^\w .,;:'?/+=%-]|_")
_LINK_STARTS = re.compile(r"(?<=:)(?=//)|(?<=@)|(?<=www)(?=\.)", re.IGNORECASE)
_WORD_JOINER = "\u2060"


def preview(
    table: pa.Table, rows: int = PREVIEW_ROWS, columns: Sequence[str] | None = None, cell: int = CELL_CHARACTERS
) -> dg.TableMetadataValue:
    """The first rows; cells longer than `cell` characters are shortened and say so by an ellipsis."""
    shown = table.select(list(columns)) if columns else table
    return rows_table(shown.slice(0, rows).to_pylist(), column_schema(shown.schema), cell)


def rows_table(
    rows: Sequence[Mapping[str, object]], columns: Sequence[str] | dg.TableSchema, cell: int = CELL_CHARACTERS
) -> dg.TableMetadataValue:
    """Rows as a table whose cells are plain text."""
    if not isinstance(columns, dg.TableSchema):
        columns = dg.TableSchema(columns=[dg.TableColumn(name) for name in columns])
    names = [column.name for column in columns.columns]
    records = [dg.TableRecord({name: _cell(row.get(name), cell) for name in names}) for row in rows]
    return dg.MetadataValue.table(records=records, schema=columns)


def _cell(value: object, cell: int) -> str | int | float | bool | None:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return shortened(str(value), cell)


def counts(numbers: Mapping[str, int]) -> dg.TableMetadataValue:
    """Reason -> count, most frequent first."""
    rows = [{"reason": name, "count": number} for name, number in sorted(numbers.items(), key=lambda item: -item[1])]
    return rows_table(rows, ["reason", "count"])


def shortened(text: str, characters: int) -> str:
    """`text` on one line of at most so many characters, an ellipsis where it was cut.

    A character that shows as nothing, or turns its neighbours round, shows as U+FFFD.
    """
    line = "".join(char if char.isprintable() else "\ufffd" for char in " ".join(text.split()))
    return line if len(line) <= characters else f"{line[: characters - 1]}\u2026"


def as_markdown(text: str, characters: int = CELL_CHARACTERS) -> str:
    """`text` as Markdown that shows exactly it: no picture, link, HTML, code or emphasis, no end of a table's cell.

    A picture in a model's answer would be fetched from wherever the answer says, by whoever looks at it.
    """
    # GFM makes links of bare addresses after it has resolved entities, so an address is broken up, invisibly.
    apart = _LINK_STARTS.sub(_WORD_JOINER, shortened(text, characters))
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", apart)


def column_schema(schema: pa.Schema) -> dg.TableSchema:
    """A table's columns with their descriptions, as the UI shows them."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                field.name,
                str(field.type),
                description=(field.metadata or {}).get(b"description", b"").decode() or None,
                constraints=dg.TableColumnConstraints(nullable=field.nullable),
            )
            for field in schema
        ]
    )
