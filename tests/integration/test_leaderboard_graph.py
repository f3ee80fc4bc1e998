"""The leaderboard of a run study: what is in the store, what the command writes, and the page in a real browser."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from m3po_dagster.current import read_heads
from m3po_dagster.device_use import processor

M3PO = [sys.executable, "-c", "from m3po_dagster.cli.main import main; main()"]


@pytest.fixture(scope="module")
def board(made):
    """The leaderboard in the store."""
    with made.instance() as instance:
        head = read_heads(instance, ["leaderboard"])["leaderboard", ""]
    return made.store.find("leaderboard", "", head.fingerprint)


def test_every_recipe_is_compared_with_base_and_m3po(board):
    rows = board.table().to_pylist()
    assert {(row["recipe"], row["against"]) for row in rows} == {
        (recipe, against) for recipe in ("base", "sft", "m3po") for against in ("base", "m3po")
    }
    for row in rows:
        assert (row["difference"] is None) == (row["recipe"] == row["against"])
        # One training seed a recipe: nothing is known of another.
        assert row["interval_over"] in (None, "images")


def test_costs_are_those_of_the_manifests(made, board):
    rows = {(row["stage"], row["part"]): row for row in board.table("costs").to_pylist()}
    shared = {("candidates", ""), ("mas_table", ""), ("logprob_table", "")}
    trained = {("adapter", "sft|0"), ("adapter", "m3po|0")}
    answered = {("benchmark_answers", recipe) for recipe in ("base", "sft", "m3po")}
    assert rows.keys() == shared | trained | answered
    assert {row["device"] for row in rows.values()} == {processor()}
    assert all(row["peak_memory"] > 50_000_000 and row["lost"] == 0 for row in rows.values())
    assert {rows[key]["recipes"] for key in shared} == {2} and {rows[key]["objects"] for key in shared | answered} == {
        2
    }
    seconds = [made.store.find(*key).manifest.seconds for key in keys_of(made, "candidates")]
    assert rows["candidates", ""]["device_hours"] == pytest.approx(sum(seconds) / 3600)


def keys_of(made, asset):
    with made.instance() as instance:
        return [(*part, head.fingerprint) for part, head in read_heads(instance, [asset]).items()]


def test_the_command_writes_what_the_store_holds(made, board, tmp_path):
    out = tmp_path / "a" / "folder"
    ended = subprocess.run(
        [*M3PO, "leaderboard", "--out", str(out)], env=made.environment(), capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    names = {"leaderboard.md", "leaderboard.html", "leaderboard.parquet", "costs.parquet"}
    assert {Path(line).name for line in ended.stdout.split()} == names == {path.name for path in out.iterdir()}
    assert pq.read_table(out / "leaderboard.parquet").equals(board.table())
    assert pq.read_table(out / "costs.parquet").num_rows == board.table("costs").num_rows
    assert (out / "leaderboard.html").read_bytes() == board.path("files/leaderboard.html").read_bytes()
    assert (out / "leaderboard.md").read_text().startswith("# small: the leaderboard")


@pytest.mark.slow
def test_the_command_prints_or_writes_one_format(made, board, tmp_path):
    def said(*arguments):
        command = [*M3PO, "leaderboard", *arguments]
        return subprocess.check_output(command, env=made.environment(), text=True, timeout=300)

    assert said().strip() == board.path("files/leaderboard.md").read_text().strip()
    assert said("--format", "html").strip() == board.path("files/leaderboard.html").read_text().strip()
    said("--format", "html", "--out", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["leaderboard.html"]


def test_a_place_that_can_not_be_written_is_one_sentence(made, board, tmp_path):
    from m3po_dagster.cli.main import app

    (tmp_path / "file").write_text("mine")
    environment = {name: made.environment()[name] for name in ("DAGSTER_HOME", "M3PO_STORE", "M3PO_STUDY")}
    for out, why in ((tmp_path / "file", "is there and no folder"), (Path("/proc/x"), "can't be written")):
        ended = CliRunner().invoke(app, ["leaderboard", "--out", str(out)], env=environment)
        assert ended.exit_code == 1 and ended.stderr.startswith(f"error: --out {out} {why}"), ended.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_parquet_can_not_be_printed():
    from m3po_dagster.cli.main import app

    ended = CliRunner().invoke(app, ["leaderboard", "--format", "parquet"])
    assert ended.exit_code == 2 and "name a folder with --out" in ended.stderr


@pytest.mark.slow
def test_the_page_in_a_browser_without_a_network(board, page):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.context.set_offline(True)
    page.goto(board.path("files/leaderboard.html").as_uri())
    assert page.console_errors == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert page.locator("#headlines tbody tr").count() == 3
    assert page.locator("#against-m3po tbody tr").count() == 2
    assert page.locator("#every tbody tr").count() == len(board.table())
    widths = page.locator("img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert len(widths) == board.path("files/leaderboard.html").read_text().count("<img ") > 0
    assert min(widths) > 200
    # The page itself does not scroll sideways, however wide its tables.
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.locator("summary").click()
    assert page.locator("#every").is_visible()
