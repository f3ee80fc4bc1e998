"""A small real project for the judge's commands: the embedded world, its models, candidates made by Dagster."""

import json
from pathlib import Path

import dagster as dg
import yaml
from typer.testing import CliRunner, Result

from m3po_dagster.cli.main import app
from m3po_dagster.definitions import build_definitions
from m3po_dagster.home import SETTINGS
from m3po_dagster.resources.study import StoreResource
from m3po_dagster.runner import Outcome, Runner, Selection
from m3po_dagster.study import load_study
from m3po_dagster.world.judge import JUDGE_FOLDER
from m3po_dagster.world.write import write_world

UP_TO_CANDIDATES = (
    "source_dataset",
    "base_model",
    "sampling_scorer",
    "benchmark_data",
    "filtered_instructions",
    "candidates",
)


PROBE = 4 * 3
"""Requests of a probe of a judge that grades three answers at once: four images, three times."""


class JudgeProject:
    """A study file, a store and a Dagster home in one folder; commands run in this process."""

    def __init__(self, folder: Path, scorers: list[dict] | None = None) -> None:
        self.folder, self.study = folder, folder / "study.yaml"
        self.scorers = scorers or [
            {"kind": "scene_judge", "model": str(JUDGE_FOLDER)},
            {"kind": "clip", "model": str(JUDGE_FOLDER), "tiles": 2, "weight": 1},
        ]
        write_world(folder / "world", prompts=12, scenes_per_split=10)
        self.write()

    def write(self, **judge: object) -> None:
        """Writes the study, its judge changed."""
        instructions, test = self.folder / "world" / "instructions", self.folder / "world" / "benchmarks" / "test"
        study = {
            "name": "small",
            "dataset": {
                "shards": 2,
                "sources": {
                    "scenes": {
                        "format": "llava_instruct",
                        "path": str(instructions / "llava_instruct.json"),
                        "image_root": str(instructions / "images"),
                    }
                },
            },
            "filters": {"image_size": {"min_side": 64}, "near_duplicate": False, "contamination": False},
            "model": {"path": str(JUDGE_FOLDER.parent / "llava"), "device": "cpu"},
            "generation": {"n": 4, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 40},
            "judge": {"scorers": self.scorers, **judge},
            "recipes": {"base": {}},
            "benchmarks": {
                "chair": {"kind": "chair", "path": str(test / "chair.jsonl"), "image_root": str(test / "images")}
            },
        }
        self.study.write_text(yaml.safe_dump(json.loads(json.dumps(study))))

    def call(self, *arguments: object, code: int = 0) -> Result:
        """Runs `m3po ARGUMENTS --study ...` and sees that it ends with this exit code."""
        environment = {"M3PO_STORE": str(self.folder / "store"), "DAGSTER_HOME": str(self.folder / "home")}
        result = CliRunner().invoke(
            app, [*(str(argument) for argument in arguments), "--study", str(self.study)], env=environment
        )
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == code, result.output
        return result

    def run(self, *assets: str) -> list[Outcome]:
        """What `m3po run` does with these assets alone."""
        home, root = self.folder / "home", str(self.folder / "store")
        home.mkdir(exist_ok=True)
        (home / "dagster.yaml").write_text(SETTINGS)
        # Not through the command: it takes the definitions that a process has once loaded, maybe another study's.
        definitions = build_definitions(self.study, root)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            runner = Runner(definitions, load_study(self.study), StoreResource(root=root), instance)
            return list(runner.bring_up_to_date(Selection(assets=assets)))
