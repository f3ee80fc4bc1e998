"""What the inspector keeps: the last results, and an index on disk that does not grow without end."""

import os

from m3po_dagster.inspector.curves import HEIGHT, WIDTH, chart
from m3po_dagster.inspector.kept import Kept
from m3po_dagster.inspector.tokens import SHADES, shade
from m3po_dagster.inspector.watch import prune


def test_the_last_results_are_kept_and_the_one_asked_for_longest_ago_goes():
    made = []

    def make(key):
        return lambda: made.append(key) or key.upper()

    kept = Kept(2)
    assert [kept.get(key, make(key)) for key in "abab"] == list("ABAB") and made == ["a", "b"]
    kept.get("a", make("a"))
    kept.get("c", make("c"))
    assert kept.get("a", make("a")) == "A" and made == ["a", "b", "c"]
    kept.get("b", make("b"))
    assert made == ["a", "b", "c", "b"]


def test_what_is_lacking_is_made_in_one_go():
    asked = []

    def make(keys):
        asked.append(list(keys))
        return [key.upper() for key in keys]

    kept = Kept(3)
    assert kept.get_all(["a", "b"], make) == ["A", "B"]
    assert kept.get_all(["c", "a", "d"], make) == ["C", "A", "D"]
    assert kept.get_all(["d", "c"], make) == ["D", "C"] and asked == [["a", "b"], ["c", "d"]]
    # More than are kept: all come, the last ones stay.
    assert kept.get_all(list("vwxyz"), make) == list("VWXYZ") and kept.get_all(list("xyz"), make) == list("XYZ")
    assert asked[2:] == [list("vwxyz")]


def test_the_files_used_longest_ago_are_removed(tmp_path):
    for age, name in enumerate(["new", "middle", "old"]):
        path = tmp_path / f"fronts-{name}.npz"
        path.write_bytes(bytes(100))
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    (tmp_path / "other").write_bytes(bytes(1000))
    prune(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fronts-middle.npz", "fronts-new.npz", "other"]
    prune(tmp_path / "absent", 0)


def test_a_chart_stays_in_its_box_and_marks_the_point():
    found = chart("x", [0.0, 1.0, 0.5], {0.1: [1.0, 3.0, 2.0], 0.2: [None, 5.0, None]}, (2.0, 4.0))
    points = [tuple(map(float, point.split(","))) for line in found.lines for point in line.points.split()]
    assert len(points) == 4 and [line.name for line in found.lines] == ["0.1", "0.2"]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in [*points, found.mark])
    assert [x for x, _ in points[:3]] == sorted(x for x, _ in points[:3])
    heights = {value: y for value, (_, y) in zip([1.0, 2.0, 3.0, 5.0], points, strict=True)}
    assert heights[1.0] > heights[2.0] > heights[3.0] > found.mark[1] > heights[5.0]
    assert chart("x", [0.0], {0.1: [None]}, (0.0, None)).mark is None


def test_shades_part_at_their_bounds():
    assert [shade(bound) for bound in SHADES] == [0, 1, 2, 3, 4]
    assert shade(0.0) == 0 and shade(-99.0) == 5 and shade(None) is None and shade(float("nan")) is None
