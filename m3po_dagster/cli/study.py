"""`m3po study`: check, schema, reference."""

import json
from pathlib import Path
from typing import Annotated

import typer

from m3po_dagster.cli.options import JsonOption, StudyOption, explained, fail, where_missing
from m3po_dagster.s3_files.path import BucketError
from m3po_dagster.study import DEFAULT_STUDY

app = typer.Typer(no_args_is_help=True)


@app.command()
def check(
    study: StudyOption = DEFAULT_STUDY,
    files: Annotated[bool, typer.Option("--files", help="Also fail when a file it names is not here.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Validate a study file; say what it asks for and which of its files are not there."""
    from m3po_dagster.study import load_study
    from m3po_dagster.study_errors import StudyError
    from m3po_dagster.study_reference import missing_paths

    with explained(StudyError):
        loaded = load_study(study)
    with explained(BucketError, status=1):
        missing = missing_paths(loaded)
    n = loaded.generation.n
    facts = {
        "study": loaded.name,
        "valid": True,
        "shards": len(loaded.shards),
        "candidates a prompt": n if isinstance(n, int) else f"{n.first} to {n.max}",
        "scorers": [scorer.name for scorer in loaded.judge.scorers],
        "recipes": list(loaded.recipes),
        "benchmarks": list(loaded.benchmarks),
        "missing": missing,
    }
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        typer.echo(f"{study}: valid")
        for name, value in facts.items():
            if name not in ("valid", "missing"):
                typer.echo(f"  {name}: {', '.join(value) if isinstance(value, list) else value}")
        for key, path in missing.items():
            typer.echo(f"  {where_missing(path)}: {key}: {path}")
    if files and missing:
        fail(f"{study}: {len(missing)} of the files it names are not here", status=1)


@app.command()
def schema() -> None:
    """Print the JSON schema of a study file, for editors and other programs."""
    from m3po_dagster.study import Study

    typer.echo(json.dumps(Study.model_json_schema(), indent=2))


@app.command()
def reference(
    out: Annotated[Path | None, typer.Option("--out", help="Write to this file instead of printing.")] = None,
) -> None:
    """Print the reference of the study file, section by section, in Markdown."""
    from m3po_dagster.study_reference import reference as text

    if out:
        with explained(OSError, status=1):
            out.write_text(text(), encoding="utf-8")
    else:
        typer.echo(text())
