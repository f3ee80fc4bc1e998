"""ms-swift's layout, loaded by that tool's documented rules."""

import pytest
from tool_rules import ms_swift_example


@pytest.mark.parametrize(("mode", "count"), [("copy", 4), ("reference", 3)])
def test_every_row_is_taken(world, exported, load, mode, count):
    out, tally = exported("ms-swift", mode)
    files = sorted(str(path) for path in (out / "data").glob("*.jsonl"))
    rows = [ms_swift_example(row, out) for row in load("json", data_files=files)]
    assert len(rows) == tally.written == count
    assert rows[1] == {
        "texts": ["Be brief.", "<image>Is there a circle?", "Yes.", "What color?", "red"],
        "rejected": "blue",
        "images": rows[0]["images"],
    }
    if mode == "copy":
        assert rows[2]["texts"] == [f"<image>{world.pairs['s2'][0].turns[0][1]}", "ein Kreis \u00e9"]
    else:
        assert rows[0]["images"] == [str(world.images / "wide.png")]


def test_paths_of_copies_are_found_from_the_folder_alone(exported, load):
    out, _ = exported("ms-swift")
    rows = load(str(out))
    assert all(not row["images"][0].startswith("/") and (out / row["images"][0]).is_file() for row in rows)
