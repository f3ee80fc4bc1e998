"""`m3po select` as a person and as a script use it: what it prints, what it writes, and every refusal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner, Result

from m3po_dagster.cli.select import select
from m3po_dagster.method.selection import DROPPED_SCHEMA, PAIRS_SCHEMA, SelectionSettings, select_pairs
from tests.method.selection_tables import random_table

app = typer.Typer()
app.command()(select)


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """The worked example, a prompt with one candidate, and one whose candidates are equally good."""
    path = tmp_path / "scores.parquet"
    table = {
        "prompt_id": ["example"] * 3 + ["lonely"] + ["equal"] * 2,
        "candidate_id": ["first", "second", "third", "only", "one", "other"],
        "mas": [0.9, 0.7, 0.3, 1.0, 0.5, 0.5],
        "sum_logp": [-1.2, -1.1, -5.0, -1.0, -1.0, -2.0],
        "n_tokens": [1] * 6,
        "finish_reason": ["stop"] * 6,
        "style": [0.0, 0.5, 1.0, 0.0, 0.25, 0.75],
    }
    pq.write_table(pa.table(table), path)
    return path


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def run_json(*arguments: object) -> dict:
    def no_token(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout, parse_constant=no_token)


def refused(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2
    assert not result.stdout
    assert "Traceback" not in result.stderr
    return result.stderr


def test_the_worked_example_as_json(scores):
    answer = run_json(scores, "--alpha", "0.5", "--delta", "0.1")
    (pair,) = answer["pairs"]
    assert list(pair) == ["prompt_id", "chosen_id", "rejected_id", "m3p_score", "mas_gap", "logp_gap"]
    assert (pair["prompt_id"], pair["chosen_id"], pair["rejected_id"]) == ("example", "first", "second")
    assert pair["m3p_score"] == pytest.approx(0.2)
    assert [(row["prompt_id"], row["reason"]) for row in answer["dropped"]] == [
        ("lonely", "one_distinct_candidate"),
        ("equal", "no_loser_above_min_gap"),
    ]
    assert answer["stats"]["pairs"] == 1 and answer["stats"]["prompts"] == 3
    assert answer == run_json(scores)


def test_the_worked_example_as_a_table(scores):
    output = run(scores).stdout
    assert ["example", "first", "second", "0.2", "0.2", "-0.1"] in [line.split() for line in output.splitlines()]
    assert ["one_distinct_candidate", "1"] in [line.split() for line in output.splitlines()]
    assert ["prompts", "3"] in [line.split() for line in output.splitlines()]


def test_a_long_result_is_cut_to_its_head(tmp_path):
    size = 25
    table = {
        "prompt_id": [n for n in range(size) for _ in range(2)],
        "candidate_id": range(2 * size),
        "mas": [1, 0] * size,
        "sum_logp": [-1.0] * (2 * size),
        "n_tokens": [1] * (2 * size),
    }
    pq.write_table(pa.table({name: list(values) for name, values in table.items()}), tmp_path / "s.parquet")
    assert "... and 15 more" in run(tmp_path / "s.parquet").stdout
    assert len(run_json(tmp_path / "s.parquet")["pairs"]) == size


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--alpha", "0"], ["first", "third"]),
        (["--min-gap", "0.3"], ["first", "third"]),
        (["--alpha", "0.1", "--delta", "5"], ["first", "third"]),
        (["--allow-bonus"], ["first", "second"]),
        (["--confidence", "sum"], ["first", "second"]),
        (["--rule", "flipped"], ["second", "first"]),
        (["--rule", "best_only"], ["first", None]),
        (["--rule", "reward_max_min", "--reward", "style"], ["third", "first"]),
        (["--min-chosen-mas", "0.95"], None),
    ],
)
def test_options_reach_the_rule(scores, options, expected):
    pairs = {row["prompt_id"]: [row["chosen_id"], row["rejected_id"]] for row in run_json(scores, *options)["pairs"]}
    assert pairs.get("example") == expected


def test_the_seed_moves_the_draws(tmp_path):
    table = {
        "prompt_id": [f"p{n}" for n in range(40) for _ in range(4)],
        "candidate_id": [f"p{n}:{k}" for n in range(40) for k in range(4)],
        "mas": [1.0, 0.75, 0.5, 0.25] * 40,
        "sum_logp": [-1.0] * 160,
        "n_tokens": [1] * 160,
    }
    path = tmp_path / "s.parquet"
    pq.write_table(pa.table(table), path)
    draws = [run_json(path, "--rule", "vanilla", "--seed", seed)["pairs"] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] == run_json(path, "--rule", "vanilla")["pairs"]
    assert draws[0] != draws[2]


def test_out_writes_pairs_and_dropped_prompts(scores, tmp_path):
    out = tmp_path / "pairs.parquet"
    result = run(scores, "--out", out)
    assert f"wrote {out}" in result.stdout.replace("\n", " ")
    assert pq.read_table(out).schema == PAIRS_SCHEMA
    assert pq.read_table(out)["chosen_id"].to_pylist() == ["first"]
    dropped = pq.read_table(tmp_path / "pairs.dropped.parquet")
    assert dropped.schema == DROPPED_SCHEMA
    assert dropped["prompt_id"].to_pylist() == ["lonely", "equal"]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["pairs.dropped.parquet", "pairs.parquet", "scores.parquet"]
    assert run_json(scores, "--out", out)["stats"]["pairs"] == 1  # said on stderr, so stdout stays one object


def test_out_replaces_an_older_file_only_by_a_whole_one(scores, tmp_path):
    out = tmp_path / "pairs.parquet"
    out.write_bytes(b"older")
    (tmp_path / "pairs.dropped.parquet").mkdir()
    assert "it is a folder" in refused(scores, "--out", out)
    assert out.read_bytes() == b"older"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("where", ["missing/pairs.parquet", "."])
def test_an_out_that_cant_be_written(scores, tmp_path, where):
    assert "can't write" in refused(scores, "--out", tmp_path / where)


def test_a_full_disk_leaves_nothing_behind(scores, tmp_path):
    """A file-size limit of 0 bytes fails the write as a full disk does."""
    out = tmp_path / "out"
    out.mkdir()
    code = (
        "import resource, signal, sys, typer\n"
        "from m3po_dagster.cli.select import select\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "app = typer.Typer(); app.command()(select); app()\n"
    )
    command = [sys.executable, "-c", code, str(scores), "--out", str(out / "pairs.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 2
    assert "can't write" in done.stderr and "Traceback" not in done.stderr
    assert list(out.iterdir()) == []


def test_out_may_not_be_the_input(scores):
    before = scores.read_bytes()
    assert "is the score table itself" in refused(scores, "--out", scores)
    assert scores.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--alpha", "-1"], "alpha = -1.0: Input should be greater than or equal to 0"),
        (["--delta", "nan"], "delta = nan: Input should be a finite number"),
        (["--alpha", "much"], "--alpha"),
        (["--rule", "best"], "rule = best: Input should be 'm3p'"),
        (["--confidence", "median"], "confidence = median"),
        (["--rule", "vanilla", "--alpha", "1"], "rule vanilla does not use alpha"),
        (["--rule", "vanilla", "--allow-bonus"], "rule vanilla does not use allow_bonus"),
        (["--rule", "reward_max_min"], "rule reward_max_min needs reward"),
        (["--rule", "reward_max_min", "--reward", "charm"], "column charm is missing; the file has prompt_id"),
        (["--seed", "3"], "rule m3p does not use seed"),
        (["--score", "charm"], "column charm is missing; the file has prompt_id"),
        (["--noise-seed", "3"], "noise_seed does nothing without score_noise"),
        (["--max-pairs", "3"], "rule m3p does not use max_pairs"),
        (["--candidates", "0"], "candidates = 0: Input should be greater than or equal to 1"),
    ],
)
def test_an_option_without_sense_is_refused(scores, options, words):
    assert words in refused(scores, *options)


def test_a_file_that_is_no_table_is_refused(tmp_path):
    assert "no such file" in refused(tmp_path / "scores.parquet")
    assert "a folder, not a file" in refused(tmp_path)
    csv = tmp_path / "scores.csv"
    csv.write_text("prompt_id,mas\n1,2\n")
    assert f"{csv}: not a readable Parquet file" in refused(csv)


def test_a_bad_table_is_refused_with_file_column_and_row(scores):
    table = pq.read_table(scores)
    pq.write_table(table.set_column(1, "candidate_id", pa.array(["x"] * 6)), scores)
    assert f"{scores}: column candidate_id: 'x' is in rows 0 and 1" in refused(scores)
    pq.write_table(table.drop(["sum_logp"]), scores)
    assert f"{scores}: column sum_logp is missing; the file has prompt_id" in refused(scores)


def test_scores_that_are_no_numbers_still_give_valid_json(scores):
    table = pq.read_table(scores)
    mas = pa.array([float("nan"), float("inf"), -float("inf"), None, float("nan"), 1.0])
    pq.write_table(table.set_column(table.column_names.index("mas"), "mas", mas), scores)
    answer = run_json(scores)
    assert answer["pairs"] == []
    assert {row["reason"] for row in answer["dropped"]} == {"no_scored_candidate", "one_distinct_candidate"}
    assert answer["stats"]["mean_mas_gap"] is None


def test_an_empty_table_is_an_empty_result(scores):
    pq.write_table(pq.read_table(scores).slice(0, 0), scores)
    answer = run_json(scores)
    assert (answer["pairs"], answer["dropped"], answer["stats"]["prompts"]) == ([], [], 0)
    assert ["pairs", "0"] in [line.split() for line in run(scores).stdout.splitlines()]


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (["--score", "style", "--score-noise", "0.5"], {"score": "style", "score_noise": 0.5}),
        (["--score-noise", "0.5", "--noise-seed", "2"], {"score_noise": 0.5, "noise_seed": 2}),
        (["--candidates", "6", "--max-length-difference", "1"], {"candidates": 6, "max_length_difference": 1}),
        (["--rule", "margin_pairs", "--max-pairs", "3"], {"rule": "margin_pairs", "max_pairs": 3}),
        (["--rule", "every_answer"], {"rule": "every_answer"}),
        (["--rule", "longest"], {"rule": "longest"}),
    ],
    ids=str,
)  # fmt: skip
def test_every_later_option_is_that_of_the_settings(tmp_path, options, settings):
    """And several pairs of a prompt are all printed and all written."""
    table, path, out = random_table(1, prompts=30), tmp_path / "scores.parquet", tmp_path / "pairs.parquet"
    pq.write_table(table, path)
    answer = run_json(path, *options, "--out", out)
    expected = select_pairs(table, SelectionSettings(**settings))
    assert pq.read_table(out) == expected.pairs
    assert [row["chosen_id"] for row in answer["pairs"]] == expected.pairs["chosen_id"].to_pylist() != []
    assert answer["stats"] == expected.stats
