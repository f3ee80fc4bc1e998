"""`m3po judge ledger`."""

import json
from pathlib import Path

import duckdb
import pytest
import typer
from ledger_samples import COST, turn
from typer.testing import CliRunner

from m3po_dagster.cli.judge_ledger import ledger as command
from m3po_dagster.method.alignment.ledger import FOLDER, Ledger
from m3po_dagster.storage.s3 import Bucket
from tests.s3_server import s3_server

app = typer.Typer()
app.command()(command)


def call(store: Path | str, *arguments: str, code: int = 0):
    result = CliRunner().invoke(app, ["--store", str(store), *arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def store(tmp_path):
    kept = Ledger(tmp_path / FOLDER)
    kept.add(turn(1))
    kept.add(turn(1, 1, purpose="repair", at="2026-01-02T10:30:00.000+00:00"))
    kept.add(turn(2, run="r2", model="it's", scorer="other", prompt_tokens=1_000_000))
    kept.add(turn(3, study="second", cost=None))
    return tmp_path


def test_it_sums_by_study_run_and_model(store):
    lines = call(store).stdout.splitlines()
    (row,) = [line for line in lines if "r1" in line and "scenes" in line]
    cells = [cell.strip() for cell in row.strip("│┃| ").split("│")]
    assert cells == [
        *("scenes", "r1", "org/vlm", "2", "1", "200", "80", "20", f"{2 * COST:.4f}"),
        *("2026-01-01 00:00", "2026-01-02 10:30"),
    ]
    assert "4 replies, 1,000,300 prompt tokens (160 cached), 40 completion tokens, cost 0.7500" in lines
    assert not any("can't be read" in line for line in lines)


def test_json_and_its_query_run_in_duckdb(store):
    found = json.loads(call(store, "--json").stdout)
    assert [(row["study"], row["run"], row["model"], row["requests"]) for row in found["rows"]] == [
        ("scenes", "r1", "org/vlm", 2),
        ("scenes", "r2", "it's", 1),
        ("second", "r1", "org/vlm", 1),
    ]
    assert found["total"]["requests"] == 4 and found["total"]["unreadable"] == 0
    assert found["query"] in call(store).stdout
    assert duckdb.sql(found["query"]).fetchall() == [("llm_judge", "org/vlm", 3, 2 * COST), ("other", "it's", 1, COST)]


def test_a_torn_line_is_counted(store):
    (store / FOLDER / "org-vlm" / "killed.jsonl").write_bytes(turn(9).to_line()[:-5])
    assert "1 lines can't be read" in call(store).stdout
    found = json.loads(call(store, "--json").stdout)
    assert found["total"]["requests"] == 4 and found["total"]["unreadable"] == 1
    assert sum(count for *_, count, _ in duckdb.sql(found["query"]).fetchall()) == 4


def test_an_empty_ledger_and_a_missing_store(tmp_path):
    assert f"No reply is kept in {tmp_path / FOLDER}." in call(tmp_path).stdout
    assert json.loads(call(tmp_path, "--json").stdout)["rows"] == []
    assert list(tmp_path.iterdir()) == []
    assert "error: there is no store" in call(tmp_path / "none", code=1).stderr


def test_a_ledger_in_a_folder_has_nothing_to_compact(store):
    assert f"--compact is for a ledger in a bucket: {store / FOLDER}" in call(store, "--compact", code=2).stderr


@pytest.mark.slow
def test_a_ledger_in_a_bucket_is_summed_queried_and_compacted_as_one_in_a_folder(store, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("M3PO_CACHE", str(tmp_path_factory.mktemp("cache")))
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        server.bucket("cli")
        bucket = Bucket("s3://cli/store/ledger")
        for path in (store / FOLDER).rglob("*.jsonl"):
            first, rest = path.read_bytes().partition(b"\n")[::2]
            folder, name = path.parent.name, path.stem
            size = len(first) + 1
            bucket.put(f"{folder}/{name}.{0:010d}-{size:010d}.jsonl", first + b"\n")
            if rest:
                bucket.put(f"{folder}/{name}.{size:010d}-{size + len(rest):010d}.jsonl", rest)
        found, plain = (json.loads(call(place, "--json").stdout) for place in ("s3://cli/store", store))
        assert found["folder"] == "s3://cli/store/ledger"
        assert found["rows"] == plain["rows"] and found["total"] == plain["total"]
        assert duckdb.sql(found["query"]).fetchall() == duckdb.sql(plain["query"]).fetchall()
        said = call("s3://cli/store", "--compact")
        assert "3 objects merged to 2; 0 traces" in said.stderr and "4 replies" in said.stdout
        assert "No reply is kept in s3://cli/other/ledger." in call("s3://cli/other").stdout
