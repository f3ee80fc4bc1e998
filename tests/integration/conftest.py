"""A small study over the embedded world and its committed models, run for real by Dagster."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import duckdb
import pytest
import yaml
from browser import browser, page  # noqa: F401  (fixtures)
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from m3po_dagster.current import held_heads
from m3po_dagster.definitions import build_definitions
from m3po_dagster.graph import STAGES, Part, Standing, all_parts, standings
from m3po_dagster.resources.study import StoreResource
from m3po_dagster.runner import EVERYTHING, Outcome, Runner, Selection
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.study import Study, load_study

WEIGHTS = Path(__file__).parents[2] / "m3po_dagster" / "world" / "weights"
# The scenes are small and drawn alike, and ask what POPE asks.
SCENE_FILTERS = {
    "image_size": {"min_side": 64},
    "near_duplicate": False,
    "contamination": {"images": False, "templates": False},
}


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """The embedded world's files, a few prompts and scenes of them."""
    from m3po_dagster.world.write import write_world

    folder = tmp_path_factory.mktemp("world") / "easy_scenes"
    write_world(folder, prompts=24, scenes_per_split=10)
    return folder


@pytest.fixture(scope="session")
def small_study(world) -> dict:
    """The study as a mapping, to be changed and written by a test."""
    test = world / "benchmarks" / "test"
    dpo = {"kind": "dpo", "learning_rate": 3e-4, "lora": {"r": 4, "alpha": 8}}
    return {
        "name": "small",
        "dataset": {
            "shards": 2,
            "sources": {
                "scenes": {
                    "format": "llava_instruct",
                    "path": str(world / "instructions" / "llava_instruct.json"),
                    "image_root": str(world / "instructions" / "images"),
                }
            },
        },
        "filters": SCENE_FILTERS,
        "model": {"path": str(WEIGHTS / "llava"), "device": "cpu"},
        "generation": {
            "n": 8,
            "temperature": 1.0,
            "top_p": 1.0,
            "max_new_tokens": 40,
            "prompts_per_batch": 4,
            "part_seconds": 0.01,
        },
        "judge": {
            "scorers": [
                {"kind": "scene_judge", "name": "scene_judge", "model": str(WEIGHTS / "judge")},
                {"kind": "clip", "name": "clip", "model": str(WEIGHTS / "judge"), "tiles": 2, "weight": 0},
            ]
        },
        "recipes": {
            "base": {},
            "sft": {"selection": {"rule": "best_only"}, "training": {"kind": "sft", "lora": {"r": 4, "alpha": 8}}},
            "m3po": {"selection": {"rule": "m3p", "alpha": 0.5}, "training": dpo},
        },
        "benchmarks": {
            "pope": {
                "kind": "pope",
                "labels": {"random": str(test / "pope" / "coco_pope_random.json")},
                "image_root": str(test / "images"),
            },
            "chair": {"kind": "chair", "path": str(test / "chair.jsonl"), "image_root": str(test / "images")},
        },
    }


@dataclass
class Project:
    """A study file, a store and a Dagster home in one folder."""

    folder: Path

    @property
    def study_file(self) -> Path:
        return self.folder / "study.yaml"

    def ledger(self, folder: str = "ledger") -> list[dict]:
        """The replies of served judges that the store keeps, read as anybody reads them."""
        files = f"{self.root}/{folder}/*/*.jsonl"
        return duckdb.sql(f"SELECT * FROM read_json('{files}')").to_arrow_table().to_pylist()

    @property
    def root(self) -> str:
        return str(self.folder / "store")

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.root)

    def write(self, settings: dict) -> None:
        """Writes the study file."""
        # Through JSON: a mapping that stands twice would become a YAML alias.
        self.study_file.write_text(yaml.safe_dump(json.loads(json.dumps(settings))))

    def load(self) -> Study:
        """The study as the file has it now."""
        return load_study(self.study_file)

    def environment(self) -> dict[str, str]:
        """What a subprocess needs to work on this project."""
        return {
            **os.environ,
            "DAGSTER_HOME": str(self.folder / "home"),
            "M3PO_STORE": self.root,
            "M3PO_STUDY": str(self.study_file),
        }

    def instance(self) -> dg.DagsterInstance:
        """The project's Dagster instance: a real one on disk."""
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        if not (home / "dagster.yaml").exists():
            (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        return dg.DagsterInstance.from_config(str(home))

    def definitions(self) -> dg.Definitions:
        """The definitions for the study as it is now."""
        return build_definitions(self.study_file, self.root)

    def run(self, selection: Selection = EVERYTHING, ask_judge: bool = False) -> list[Outcome]:
        """What `m3po run` does."""
        with self.instance() as instance:
            runner = Runner(self.definitions(), self.load(), StoreResource(root=self.root), instance)
            return list(runner.bring_up_to_date(selection, ask_judge=ask_judge))

    def standings(self) -> list[Standing]:
        """What `m3po status` shows."""
        with self.instance() as instance:
            heads = held_heads(instance, self.store)
        return standings(self.load(), StoreResource(root=self.root).identities(), heads)

    def unsettled(self) -> list[Standing]:
        """What is not fresh."""
        return [item for item in self.standings() if item.state != "fresh"]

    def dagster_staleness(self) -> dict[Part, StaleStatus]:
        """What Dagster itself says of every part."""
        graph = self.definitions().resolve_asset_graph()
        with self.instance() as instance:
            context = LoadingContextForTest(instance)
            resolver = CachingStaleStatusResolver(instance, graph, context)
            return {part: resolver.get_status(dg.AssetKey(part[0]), part[1] or None) for part in all_parts(self.load())}

    def events(self) -> dict[tuple[str, str], int]:
        """Number of materialisations of every part in Dagster's event log."""
        found: dict[tuple[str, str], int] = {}
        with self.instance() as instance:
            for asset in STAGES:
                for record in instance.fetch_materializations(dg.AssetKey(asset), limit=1000).records:
                    part = (asset, record.asset_materialization.partition or "")
                    found[part] = found.get(part, 0) + 1
        return found


@pytest.fixture(scope="session")
def made(tmp_path_factory, small_study) -> Project:
    """A project whose study has been run once; tests copy it before they change anything."""
    project = Project(tmp_path_factory.mktemp("made"))
    project.write(small_study)
    outcomes = project.run()
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    return project


@pytest.fixture
def copy_of_made(made, tmp_path) -> Project:
    """A copy of the run project, free to change: same results, same event log."""
    import shutil

    shutil.copytree(made.folder, tmp_path / "project")
    return Project(tmp_path / "project")


@pytest.fixture
def fresh(tmp_path, small_study) -> Project:
    """A project that nothing was run in."""
    project = Project(tmp_path)
    project.write(small_study)
    return project
