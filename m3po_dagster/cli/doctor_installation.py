"""`m3po doctor installation`: will a study run here?"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m3po_dagster.cli.doctor_report import report
from m3po_dagster.cli.options import JsonOption, StudyOption, explained
from m3po_dagster.study import DEFAULT_STUDY

if TYPE_CHECKING:
    from m3po_dagster.doctor.findings import Finding
    from m3po_dagster.study import Study


def check(
    study: StudyOption = DEFAULT_STUDY,
    constraints: Annotated[
        Path | None, typer.Option(help="A pip constraints file to compare with; default: the one of the checkout.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check packages, torch and GPUs, the study's files and models, served judges, disk space, the event log.

    Nothing is sampled, judged or downloaded. Exits with 1 when the study would fail here.
    """
    from m3po_dagster.study import load_study
    from m3po_dagster.study_errors import StudyError

    with explained(StudyError):
        loaded = load_study(study)
    report(_findings(loaded, constraints), {"study": loaded.name}, as_json)


def _findings(study: "Study", constraints: Path | None) -> "Iterator[Finding]":
    from m3po_dagster.doctor.devices import check_devices
    from m3po_dagster.doctor.endpoints import check_endpoints
    from m3po_dagster.doctor.findings import ok, problem
    from m3po_dagster.doctor.models import check_models
    from m3po_dagster.doctor.packages import check_packages, constraints_file
    from m3po_dagster.doctor.places import check_event_log, check_places
    from m3po_dagster.home import dagster_home, store_root
    from m3po_dagster.study_reference import missing_paths

    yield from check_packages(constraints or constraints_file())
    yield from check_devices(study.model)
    missing = {key: path for key, path in missing_paths(study).items() if not key.endswith((".model", "model.path"))}
    for key, path in missing.items():
        yield problem(key, f"{path} is not here", "Correct the path, or put the file there")
    if not missing:
        yield ok("data", "every file and folder that the study names is here")
    yield from check_models(study)
    yield from check_endpoints(study)
    yield from check_places(store_root(), dagster_home())
    yield check_event_log()
