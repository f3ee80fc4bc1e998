"""The code location: assembles assets and resources for the study that M3PO_STUDY names. Nothing else."""

import os
from pathlib import Path

import dagster as dg

from m3po_dagster.assets import adapters, benchmarks, candidates, instructions, pairs, scores, sources
from m3po_dagster.resources.generator import GeneratorResource
from m3po_dagster.resources.judge import JudgeResource
from m3po_dagster.resources.study import DEFAULT_STORE, StoreResource, StudyResource
from m3po_dagster.resources.trainer import TrainerResource
from m3po_dagster.study import load_study, study_path

ASSET_MODULES = (sources, instructions, candidates, scores, pairs, adapters, benchmarks)


def store_root() -> str:
    """The store named by M3PO_STORE, or the one in the project folder; a folder comes back absolute."""
    root = os.environ.get("M3PO_STORE") or DEFAULT_STORE
    return root if "://" in root else str(Path(root).absolute())


def build_definitions(study_file: Path, root: str) -> dg.Definitions:
    """The definitions of one study over one store. Raises StudyError for a study that can't be used."""
    study_file = study_file.absolute()
    study = load_study(study_file)
    return dg.Definitions(
        assets=[asset for module in ASSET_MODULES for asset in module.assets(study)],
        resources={
            "study": StudyResource(path=str(study_file)),
            "store": StoreResource(root=root),
            "generator": GeneratorResource(),
            "judge": JudgeResource(),
            "trainer": TrainerResource(),
        },
        # One process a run: a model loaded by one step is warm for the next.
        executor=dg.in_process_executor,
    )


defs = build_definitions(study_path(), store_root())
