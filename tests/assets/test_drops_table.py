"""The table of drops on the page of filtered_instructions, as docs/filters.md describes it."""

from dataclasses import asdict

from m3po_dagster.assets.instructions import drops_table
from m3po_dagster.method.filtering import FilterSettings, filter_rows
from tests.method.source_rows import row


def table(**settings) -> list[tuple[str, str, int]]:
    rows = [row("Eh?", 0, uri="a.png"), row("What is it?", 1, uri="b.png"), row(refused="id is missing", record=2)]
    result = filter_rows([*rows, row("What is it?", 3, uri="b.png")], FilterSettings(**settings), turns="first")
    shown = drops_table([asdict(drops) for drops in result.drops])
    return [tuple(record.data[name] for name in ("filter", "reason", "dropped")) for record in shown.records]


def test_a_row_for_each_reason_with_drops_and_one_for_a_filter_without():
    assert table() == [
        ("required", "malformed record", 1),
        ("image_size", "image too small, image side too long", 0),
        ("image_aspect", "image too elongated", 0),
        ("instruction_length", "instruction too short", 1),
        ("language", "other language", 0),
        ("repetition", "repeats itself", 0),
        ("exact_duplicate", "exact duplicate", 1),
        ("near_duplicate", "near-duplicate image", 0),
        (
            "contamination",
            "benchmark image (COCO id), benchmark image (same file), benchmark image (looks the same), "
            "benchmark question",
            0,
        ),
    ]


def test_required_comes_again_in_the_place_of_exact_duplicate():
    filters = [name for name, _, _ in table(exact_duplicate=False, near_duplicate=False)]
    assert filters[0] == "required" and filters[-3:] == ["repetition", "required", "contamination"]
