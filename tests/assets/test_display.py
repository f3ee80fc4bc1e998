"""Tables in the UI, and untrusted text that must show as itself: read back by an independent Markdown parser."""

import re

import dagster as dg
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from m3po_dagster.assets.display import as_markdown, counts, preview, rows_table, shortened
from m3po_dagster.storage.tables import CANDIDATES, column

# GitHub's tables and strike-through, and HTML let through: whatever the parser takes for more than text is a leak.
PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
# What the UI's Markdown turns into links after parsing, wherever it stands in a text.
ADDRESSES = re.compile(r"https?://|www\.|[-.\w+]+@[-\w]+(\.[-\w]+)+", re.IGNORECASE)

HOSTILE = [
    "![](http://evil.example/pixel.png)",
    "a ![alt][ref] b\n\n[ref]: http://evil.example/x.png",
    "[click](javascript:alert(1)) <javascript:alert(1)>",
    "<img src=http://evil.example/x.png> <script>alert(1)</script> &lt;b&gt; <!-- x -->",
    "cell | other | third \\| \\\\| end \\",
    "`code` ``more`` ```fence``` ~~gone~~ *em* __strong__ _x_ $x$",
    "http://evil.example www.evil.example HTTPS://Evil.example someone@evil.example <http://evil.example>",
    "# head\n- list\n| --- | --- |\n***\n===",
    "\u202eright to left\u200b\x00\x1b[31m",
    "data:image/png;base64,AAAA",
    "&#33;&#91;&#93;(http&colon;//evil.example/x)",
    "www\u2060.evil.example [^1] [^1]: note ![^1]",
]


def shown(cell: str) -> tuple[list[list[str]], set[str]]:
    """The cells' texts by row as a Markdown table shows them, and the kinds of what stands in them."""
    tokens = PARSER.parse(f"| a | b |\n| --- | --- |\n| {cell} | next |")
    rows, kinds = [], set()
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            kinds |= {child.type for child in token.children}
            rows[-1].append("".join(child.content for child in token.children))
        elif not re.fullmatch(r"(table|thead|tbody|tr|th|td)_(open|close)", token.type):
            kinds.add(token.type)
    return rows, kinds


def holds(text: str) -> None:
    rows, kinds = shown(as_markdown(text))
    assert kinds <= {"text"}
    (cell, following) = rows[1]
    assert following == "next" and len(rows) == 2
    assert cell.replace("\u2060", "") == shortened(text, 120).replace("\u2060", "")
    assert ADDRESSES.search(cell) is None


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_shows_as_text(text):
    holds(text)


MARKUP = st.sampled_from("![]()<>`|\\*_~&#;:/@.w-+=ahtp \n\u2060x1")


@given(st.text(alphabet=MARKUP, max_size=60) | st.text(max_size=60))
def test_any_text_shows_as_itself(text):
    holds(text)


def test_the_parser_would_find_a_leak():
    """Unescaped, most of them are more than text, or other text, to it."""
    leaks = []
    for text in HOSTILE:
        line = shortened(text, 120)
        rows, kinds = shown(line)
        if kinds - {"text"} or rows[1][0] != line or ADDRESSES.search(line):
            leaks.append(text)
    assert len(leaks) >= 8


def test_plain_words_stay_readable_in_the_source():
    assert as_markdown("There is a red circle, isn't there? 50%") == "There is a red circle, isn't there? 50%"


def test_a_cut_says_so_and_what_is_invisible_shows():
    assert shortened("abcdef", 4) == "abc\u2026"
    assert shortened(" a\n\tb ", 9) == "a b"
    assert shortened("a\u202eb", 9) == "a\ufffdb"


def test_cells_are_plain_values_with_their_columns_described():
    table = pa.table(
        {
            "text": ["x" * 500, "![](http://evil.example)"],
            "ids": [[1, 2], [3]],
            "share": [0.123456789, None],
            "n": [1, 2],
            "yes": [True, False],
        }
    )
    table = table.cast(table.schema.set(0, column("text", pa.string(), "the answer")))
    value = preview(table)
    assert isinstance(value, dg.TableMetadataValue)
    assert value.records[0].data == {
        "text": "x" * 119 + "\u2026",
        "ids": "[1, 2]",
        "share": 0.1235,
        "n": 1,
        "yes": True,
    }
    assert value.records[1].data == {
        "text": "![](http://evil.example)",
        "ids": "[3]",
        "share": None,
        "n": 2,
        "yes": False,
    }
    described = {one.name: one.description for one in value.schema.columns}
    assert described["text"] == "the answer" and described["n"] is None


def test_a_preview_is_short_and_keeps_the_chosen_columns():
    rows = [dict.fromkeys(CANDIDATES.schema.names) | {"k": k} for k in range(50)]
    fields = [field.with_nullable(True) for field in CANDIDATES.schema]
    value = preview(pa.Table.from_pylist(rows, schema=pa.schema(fields)), columns=["k", "text"])
    assert [record.data for record in value.records] == [{"k": k, "text": None} for k in range(5)]
    assert [one.name for one in value.schema.columns] == ["k", "text"]


def test_counts_begin_with_the_most_frequent():
    records = counts({"rare": 1, "often": 9, "some": 4}).records
    assert [record.data for record in records] == [
        {"reason": "often", "count": 9},
        {"reason": "some", "count": 4},
        {"reason": "rare", "count": 1},
    ]
    assert list(counts({}).records) == []


def test_rows_may_lack_a_column():
    assert rows_table([{"a": 1}], ["a", "b"]).records[0].data == {"a": 1, "b": None}
