"""The code location: assembles assets, jobs, sensors and resources for the study that M3PO_STUDY names."""

from pathlib import Path

import dagster as dg

from m3po_dagster.assets import (
    adapters,
    benchmarks,
    candidates,
    instructions,
    leaderboard,
    pairs,
    scores,
    sources,
    sweep,
)
from m3po_dagster.automation.jobs import jobs
from m3po_dagster.automation.sensors import schedules, sensors
from m3po_dagster.deployment import current_deployment
from m3po_dagster.home import store_root
from m3po_dagster.resources.generator import GeneratorResource
from m3po_dagster.resources.gpu import executor_of
from m3po_dagster.resources.judge import JudgeResource
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.resources.trainer import TrainerResource
from m3po_dagster.study import load_study, study_path

ASSET_MODULES = (sources, instructions, candidates, scores, pairs, sweep, adapters, benchmarks, leaderboard)


def build_definitions(study_file: Path, root: str) -> dg.Definitions:
    """The definitions of one study over one store, for the deployment that M3PO_DEPLOYMENT names.

    Raises StudyError for a study that can't be used, DeploymentError for such a deployment.
    """
    study_file = study_file.absolute()
    study, deployment = load_study(study_file), current_deployment()
    executor = executor_of(deployment, study_file, root)
    return dg.Definitions(
        assets=[asset for module in ASSET_MODULES for asset in module.assets(study)],
        resources={
            "study": StudyResource(path=str(study_file)),
            "store": StoreResource(root=root),
            "generator": GeneratorResource(),
            "judge": JudgeResource(),
            "trainer": TrainerResource(),
        },
        jobs=jobs(study, deployment, executor),
        sensors=sensors(study),
        schedules=schedules(study),
        executor=executor,
    )


defs = build_definitions(study_path(), store_root())
