"""`m3po export` refuses what it can't mean, with a sentence and an exit status."""

import pytest
from typer.testing import CliRunner

from m3po_dagster.cli.main import app


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ([], "say what to write: --format trl, llama-factory, ms-swift or rlaif-v for pairs, --adapter, or --merge"),
        (["--format", "trl", "--merge"], "--format writes pairs"),
        (["--adapter", "--images", "copy"], "--images goes with --format"),
        (["--format", "trl", "--seed", "1"], "--seed goes with --adapter or --merge"),
        (["--format", "parquet"], "--format parquet: there are trl, llama-factory, ms-swift or rlaif-v"),
        (["--format", "rlaif-v", "--images", "copy"], "--images copy: rlaif-v takes embed"),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(tmp_path, options, why):
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["export", "m3po", "--out", str(out), *options])
    assert (done.exit_code, done.stdout) == (2, "") and why in done.stderr
    assert not out.exists()


def test_without_a_store_or_a_study_there_is_nothing_to_export(tmp_path):
    place = ["export", "m3po", "--format", "trl", "--out", str(tmp_path / "out"), "--store", str(tmp_path / "none")]
    done = CliRunner().invoke(app, place)
    assert done.exit_code == 1 and "there is no store" in done.stderr
    done = CliRunner().invoke(app, [*place, "--study", str(tmp_path / "none.yaml")])
    assert done.exit_code == 2 and "no such study file" in done.stderr
