"""How commands end where a place can't be written: one sentence that names the option."""

from pathlib import Path

import pytest
import typer

from m3po_dagster.cli.options import writing_to


@pytest.mark.parametrize(
    ("out", "why"),
    [
        ("file", "is there and no folder: name another one"),
        ("file/below", "can't be written (Not a directory): name another folder"),
        ("/proc/x", "can't be written (No such file or directory): name another folder"),
    ],
)
def test_a_place_that_can_not_be_written(tmp_path, monkeypatch, capsys, out, why):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    with pytest.raises(typer.Exit) as ended, writing_to(Path(out)):
        Path(out).mkdir(parents=True, exist_ok=True)
    assert ended.value.exit_code == 1 and capsys.readouterr().err == f"error: --out {out} {why}\n"
    assert Path("file").read_text() == "mine"
