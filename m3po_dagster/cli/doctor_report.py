"""How the commands of `m3po doctor` print what they found."""

import json
from collections.abc import Iterable
from typing import Any

import typer

from m3po_dagster.cli.options import fail
from m3po_dagster.doctor.findings import Finding

_MARKS = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}


def report(findings: Iterable[Finding], facts: dict[str, Any], as_json: bool) -> None:
    """Prints each finding as it comes, or all as one JSON object with `facts`; exits with 1 when one is a problem."""
    found = []
    for finding in findings:
        found.append(finding)
        if not as_json:
            typer.echo(f"{_MARKS[finding.level]} {finding}")
    if as_json:
        typer.echo(json.dumps({**facts, "findings": [vars(finding) for finding in found]}))
    problems = sum(finding.level == "problem" for finding in found)
    if problems:
        fail(f"{problems} problem{'s' if problems > 1 else ''} found", status=1)
