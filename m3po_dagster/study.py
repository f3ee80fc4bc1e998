"""The study file: what is wanted. Typed, validated, every field described; unknown keys are refused.

    study = load_study("studies/easy_scenes.yaml")

Relative paths in a study are relative to the study file. `extends: other.yaml` starts from another study and replaces
what is given, mapping by mapping; null in the place of one of its mappings, such as a recipe, leaves that out.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, Field, Tag, ValidationError, field_validator, model_validator

from m3po_dagster.automation.settings import AutomationSettings
from m3po_dagster.datasets.settings import DatasetSettings
from m3po_dagster.equal_recipes import first_equals
from m3po_dagster.evaluation.leaderboard_settings import LeaderboardSettings
from m3po_dagster.evaluation.preference_settings import PreferenceSettings, ServedAssessorSettings
from m3po_dagster.evaluation.settings import BenchmarkSettings
from m3po_dagster.export.licences import LicenceSettings
from m3po_dagster.method.alignment.blip2_itm import Blip2ItmSettings
from m3po_dagster.method.alignment.budget import BudgetSettings, check_priced
from m3po_dagster.method.alignment.clip import ClipScorerSettings
from m3po_dagster.method.alignment.ensemble import EnsembleSettings
from m3po_dagster.method.alignment.hf_clip import HfClipScorerSettings
from m3po_dagster.method.alignment.judge_settings import ServedJudgeSettings
from m3po_dagster.method.alignment.llm_judge import LlmJudgeSettings
from m3po_dagster.method.alignment.mas import MasSettings
from m3po_dagster.method.alignment.quality import QualitySettings
from m3po_dagster.method.alignment.reference import ReferenceSettings
from m3po_dagster.method.alignment.reward_model import RewardModelSettings
from m3po_dagster.method.alignment.vqascore import VqaScoreSettings
from m3po_dagster.method.filtering import FilterSettings
from m3po_dagster.method.generation.generator_settings import GeneratorSettings, TransformersSettings
from m3po_dagster.method.generation.settings import (
    BY_KIND_OF_N,
    FixedN,
    ModelSettings,
    RoundSettings,
    SamplingSettings,
)
from m3po_dagster.method.optimization.lora import FOUR_BITS_ON_A_CPU
from m3po_dagster.method.optimization.pair_records import check_whole
from m3po_dagster.method.optimization.rlhf_settings import RlhfSettings
from m3po_dagster.method.optimization.settings import DpoSettings, SftSettings
from m3po_dagster.method.optimization.trainer_settings import LocalTrainerSettings, TrainerSettings
from m3po_dagster.method.selection import SelectionSettings
from m3po_dagster.settings import PartitionName, Settings
from m3po_dagster.study_errors import StudyError, explain
from m3po_dagster.world.judge import SceneJudgeSettings

DEFAULT_STUDY = Path("studies/easy_scenes.yaml")
BASE_RECIPE = "base"
EVERY_ANSWER = "every_answer"
MOST_RECIPES = 99
"""Dagster skips an edge of 100 or more partitions when it looks for what is stale."""
OWNER = re.compile(r"team:[A-Za-z0-9_.-]+|[A-Za-z0-9][A-Za-z0-9._%+-]*@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}")

SingleScorerSettings = Annotated[
    ClipScorerSettings
    | HfClipScorerSettings
    | Blip2ItmSettings
    | VqaScoreSettings
    | RewardModelSettings
    | ReferenceSettings
    | LlmJudgeSettings
    | SceneJudgeSettings,
    Field(discriminator="kind"),
]
ScorerSettings = Annotated[SingleScorerSettings | EnsembleSettings[SingleScorerSettings], Field(discriminator="kind")]
AssessorSettings = Annotated[
    ServedAssessorSettings
    | ClipScorerSettings
    | HfClipScorerSettings
    | Blip2ItmSettings
    | VqaScoreSettings
    | RewardModelSettings
    | SceneJudgeSettings,
    Field(discriminator="kind"),
]
AnyBenchmarkSettings = Annotated[BenchmarkSettings | PreferenceSettings[AssessorSettings], Field(discriminator="kind")]
TrainingSettings = Annotated[DpoSettings | SftSettings | RlhfSettings, Field(discriminator="kind")]


def _owner(value: str) -> str:
    if not OWNER.fullmatch(value):
        raise ValueError("an owner is an e-mail address, or a team as team:NAME")
    return value


class AdaptiveSettings(RoundSettings):
    """Adaptive N: samples are drawn in rounds until a prompt's pair is settled (section 4.9)."""

    scorer: ScorerSettings = Field(
        description="the cheap scorer whose calibrated value stands in for MAS between rounds; its weight is not used"
    )

    @field_validator("scorer")
    @classmethod
    def _loaded_here(cls, scorer: ScorerSettings) -> ScorerSettings:
        if scorer.served:
            raise ValueError(
                "a served judge can't score between rounds: sampling would wait for it, and change with what it "
                "answers; name a scorer whose model is loaded here"
            )
        return scorer


class GenerationSettings(SamplingSettings):
    """How the N candidates of a prompt are drawn."""

    n: Annotated[FixedN | Annotated[AdaptiveSettings, Tag("rounds")], BY_KIND_OF_N] = Field(
        32, description="N, samples a prompt, 1 to 1024; or the rounds of an adaptive N"
    )

    @property
    def scorer(self) -> ScorerSettings | None:
        """What scores between rounds; None with a fixed N."""
        return None if isinstance(self.n, int) else self.n.scorer


class ConfidenceSettings(Settings):
    """Where log P(R | I, Q) comes from (section 3.4)."""

    source: Literal["recorded", "rescored"] = Field(
        "recorded",
        description="recorded: the log-probs noted while sampling, no extra forward; rescored: a separate pass",
    )


class JudgeSettings(MasSettings[ScorerSettings]):
    """The external assessor (section 3.3): MAS is the weighted mean of its calibrated scorers."""

    max_unscored: float = Field(
        0.05, ge=0, le=1, description="largest share of unscored candidates; once there are more, the step stops"
    )
    budget: BudgetSettings = Field(
        default_factory=BudgetSettings, description="what served scorers may cost; without limits unless it names some"
    )
    quality: QualitySettings = Field(
        default_factory=QualitySettings, description="how the judge itself is checked, shard by shard"
    )

    @model_validator(mode="after")
    def _priced(self) -> "JudgeSettings":
        check_priced(self.budget, {scorer.name: scorer.prices for scorer in self.assessors if scorer.served})
        return self


class Recipe(Settings):
    """How pairs are chosen and trained on. A recipe without selection and training is the base model itself."""

    description: str = Field("", description="one line for the leaderboard and the docs")
    selection: SelectionSettings | None = Field(None, description="how R_w and R_l are picked (section 3.5)")
    training: TrainingSettings | None = Field(None, description="how the adapter is trained (section 3.6)")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,), min_length=1, description="training seeds; each gives an adapter of its own"
    )

    @model_validator(mode="after")
    def _complete(self) -> "Recipe":
        if (self.selection is None) != (self.training is None):
            raise ValueError("a recipe has both selection and training, or neither (the base model)")
        if self.training and self.training.kind == "dpo" and self.selection.rule == "best_only":
            raise ValueError("rule best_only gives no rejected answer, which DPO needs; use it with training kind sft")
        weighed = self.training and self.training.kind == "dpo" and self.training.pair_weight == "mas_gap"
        if weighed and not self.selection.prefers_higher_mas:
            raise ValueError(
                f"training.pair_weight mas_gap needs pairs whose chosen answer has the higher MAS, and rule "
                f"{self.selection.rule} by {self.selection.ranks_by} makes others: use pair_weight none, or a rule "
                "that prefers the answer of higher MAS"
            )
        if self.training and (self.training.kind == "rlhf") != (self.selection.rule == EVERY_ANSWER):
            raise ValueError(
                f"rule {EVERY_ANSWER} keeps every scored answer, which training kind rlhf needs for its proxy reward "
                f"and no other kind can use: here rule {self.selection.rule} meets kind {self.training.kind}"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("a seed stands twice")
        return self

    @property
    def trains(self) -> bool:
        """Whether the recipe makes an adapter."""
        return self.training is not None


class AnswerSettings(Settings):
    """How benchmark questions are answered: greedily."""

    max_new_tokens: int = Field(64, ge=1, description="an answer is cut after this many tokens")
    questions_per_batch: int = Field(128, ge=1, description="questions in flight at once")


class SweepSettings(Settings):
    """The grid of selection_sweep (the paper's Tables 5 and 6), computed without any training."""

    alpha: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0.0, 0.1, 0.25, 0.5, 0.75, 1.0), min_length=1, description="values of alpha"
    )
    delta: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0.0, 0.1, 0.2, 0.3), min_length=1, description="values of delta"
    )


class Study(Settings):
    """One study: a dataset, a base model, a judge, recipes and benchmarks."""

    name: PartitionName = Field(description="name of the study")
    description: str = Field("", description="what the study is for")
    owners: tuple[Annotated[str, AfterValidator(_owner)], ...] = Field(
        ("team:m3po",),
        description="who answers for the study, shown on every asset: e-mail addresses, or teams as team:NAME",
    )
    dataset: DatasetSettings = Field(description="image-instruction pairs (section 4.1)")
    filters: FilterSettings = Field(default_factory=FilterSettings, description="which pairs are kept (section 4.1)")
    model: ModelSettings = Field(description="the base LVLM")
    generator: GeneratorSettings = Field(
        default_factory=TransformersSettings,
        description="where the model runs that samples candidates and answers benchmarks: transformers, or server",
    )
    generation: GenerationSettings = Field(
        default_factory=GenerationSettings, description="how N candidates are sampled (section 3.2)"
    )
    confidence: ConfidenceSettings = Field(
        default_factory=ConfidenceSettings, description="log P(R | I, Q) (section 3.4)"
    )
    judge: JudgeSettings = Field(description="the Multimodal Alignment Score (section 3.3)")
    recipes: dict[PartitionName, Recipe] = Field(
        min_length=1, description="recipes by name; the one named base is the base model every other is compared with"
    )
    benchmarks: dict[PartitionName, AnyBenchmarkSettings] = Field(
        min_length=1, description="benchmarks by name (section 4.1)"
    )
    trainer: TrainerSettings = Field(
        default_factory=LocalTrainerSettings,
        description="where adapters are trained, and how often a training is saved: no result depends on it",
    )
    answers: AnswerSettings = Field(default_factory=AnswerSettings, description="how benchmark questions are answered")
    sweep: SweepSettings = Field(
        default_factory=SweepSettings,
        description="grid of selection_sweep (section 4.6), which trains nothing; `m3po sweep` adds recipes that do",
    )
    leaderboard: LeaderboardSettings = Field(
        default_factory=LeaderboardSettings, description="what recipes are compared with (section 4.3)"
    )
    automation: AutomationSettings = Field(
        default_factory=AutomationSettings, description="what Dagster's daemon starts by itself"
    )
    licences: LicenceSettings = Field(
        default_factory=LicenceSettings, description="under which licences things stand: for the cards of exports"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Study":
        base = self.recipes.get(BASE_RECIPE)
        if base is None or base.trains:
            raise ValueError(
                "recipes needs one named base, without selection and training: the others are compared with it"
            )
        columns = {scorer.name for scorer in self.judge.scorers} | {"mas"}
        for name, recipe in self.recipes.items():
            for score in recipe.selection.score_columns if recipe.selection else ():
                if score not in columns:
                    key = "reward" if recipe.selection.rule == "reward_max_min" else "score"
                    raise ValueError(
                        f"recipes.{name}.selection.{key}: {score!r} is no scorer; there are {sorted(columns)}"
                    )
        for name in self.leaderboard.compare_with or ():
            if name not in self.recipes:
                raise ValueError(
                    f"leaderboard.compare_with: there is no recipe {name!r}; there are {list(self.recipes)}"
                )
        if len(self.recipes) > MOST_RECIPES:
            raise ValueError(
                f"more than {MOST_RECIPES} recipes: Dagster would no longer follow staleness through the leaderboard"
            )
        return self

    @model_validator(mode="after")
    def _steps_can_be_divided(self) -> "Study":
        if self.trainer.processes > 1 and self.model.device_map == "auto":
            raise ValueError(
                "trainer.kind accelerate gives each process a GPU of its own, and model.device_map auto spreads the "
                "model over all of them: use device_map none (fsdp shards the model), or trainer kind local"
            )
        for name, recipe in self.recipes.items():
            if recipe.training and recipe.training.kind == "rlhf":
                if self.trainer.kind == "accelerate":
                    raise ValueError(
                        f"recipes.{name}.training: kind rlhf runs in one process: use trainer.kind local, or put this "
                        "recipe into a study of its own"
                    )
            elif recipe.training:
                try:
                    _, passes = self.trainer.division(recipe.training.batch_size)
                    if recipe.training.kind == "dpo":
                        check_whole(recipe.training.losses, passes * self.trainer.processes)
                except ValueError as error:
                    raise ValueError(f"recipes.{name}.training: {error}") from None
        return self

    @model_validator(mode="after")
    def _weights_can_be_trained(self) -> "Study":
        """What only the loaded model would tell comes after sampling, judging and selection."""
        for name, recipe in self.recipes.items():
            if not recipe.training or self.model.device != "cpu":
                continue
            if recipe.training.model_of(self.model).quantization == "4bit":
                raise ValueError(f"recipes.{name}.training: model.device is cpu, and {FOUR_BITS_ON_A_CPU}")
        return self

    @model_validator(mode="after")
    def _cascade_keeps_every_pair(self) -> "Study":
        """What a cascade leaves out has no MAS: no recipe and no point of the sweep may need it."""
        cascade = self.judge.cascade
        if cascade is None:
            return self
        if self.confidence.source == "rescored":
            raise ValueError(
                "judge.cascade goes by the log-probs noted while sampling, and confidence.source rescored selects by "
                "others: use recorded, or remove the cascade"
            )
        selections = {f"recipes.{name}.selection": recipe.selection for name, recipe in self.recipes.items()}
        # The sweep compares its grid with the default point.
        widest = max(*self.sweep.alpha, SelectionSettings().alpha)
        selections["sweep"] = SelectionSettings().model_copy(update={"alpha": widest})
        served = [scorer.name for scorer in self.judge.scorers if scorer.served]
        for key, selection in selections.items():
            why = cascade.why_not(selection, served) if selection else None
            if why:
                raise ValueError(
                    f"{key}: {why}; judge.cascade would change its pairs: widen the cascade, or remove either"
                )
        return self

    @model_validator(mode="after")
    def _preference_is_told_by_others(self) -> "Study":
        """Who picked the pairs is no witness of what they led to."""
        scorers = self.judge.assessors
        for name, settings in self.benchmarks.items():
            if settings.kind != "preference":
                continue
            key, same = f"benchmarks.{name}", settings.same_as(scorers)
            if not isinstance(settings.judge, ServedJudgeSettings):
                try:
                    settings.judge.resolved_calibration()
                except ValueError as error:
                    raise ValueError(f"{key}.judge: {error}; give the judge a `calibration` of its own here") from None
            if same and not settings.allow_same_judge:
                raise ValueError(
                    f"{key}.judge: its model is that of the scorer '{same}', which picks the pairs, and would prefer "
                    "what it picked: name another model, or set allow_same_judge: true"
                )
            if settings.allow_same_judge and not same:
                raise ValueError(f"{key}.allow_same_judge: its judge is none of the study's scorers: remove it")
        return self

    @model_validator(mode="after")
    def _judges_can_be_paid(self) -> "Study":
        """The budget of the study is that of all who are asked."""
        judges = self.benchmark_judges
        taken = {scorer.name for scorer in self.judge.assessors if scorer.served}
        for name, judge in judges.items():
            if judge.name in taken:
                raise ValueError(
                    f"benchmarks.{name}.judge.name: '{judge.name}' is the name of a served scorer too, and the ledger "
                    "could not tell what either spent: give it another `name`"
                )
        budget = self.judge.budget
        if budget != BudgetSettings() and not taken and not judges:
            raise ValueError("judge.budget: no judge is served, so there is nothing to pay: remove it")
        first: dict[str, tuple[str, ServedJudgeSettings]] = {}
        for name, judge in judges.items():
            other, same = first.setdefault(judge.name, (name, judge))
            if (same.model, same.base_url, same.prices) != (judge.model, judge.base_url, judge.prices):
                raise ValueError(
                    f"benchmarks.{name}.judge.name: '{judge.name}' is the judge of {other} too, which is another one, "
                    "and the ledger could not tell what either spent: give it another `name`"
                )
        check_priced(budget, {judge.name: judge.prices for judge in judges.values()})
        return self

    @property
    def benchmark_judges(self) -> dict[str, ServedJudgeSettings]:
        """The served judges of benchmarks, by the benchmark's name."""
        judges = {name: getattr(settings, "judge", None) for name, settings in self.benchmarks.items()}
        return {name: judge for name, judge in judges.items() if isinstance(judge, ServedJudgeSettings)}

    def same_as(self, recipe: str) -> str:
        """The first recipe in the study's order that comes to the same training; the recipe itself where none does.

        Its adapters and answers are those of all recipes that are the same.
        """
        return first_equals(self.recipes)[recipe]

    def aliases(self) -> dict[str, str]:
        """{recipe: the earlier recipe it is the same as}, of those that are."""
        return {name: first for name, first in first_equals(self.recipes).items() if name != first}

    @property
    def shards(self) -> list[str]:
        """Names of the dataset's shards."""
        from m3po_dagster.datasets.index import shard_names

        return shard_names(self.dataset.shards)


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice: the second would silently win."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    seen = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
        seen.add(key)
    # After the look for twins: a merged-in mapping (<<) may be overridden.
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_study(path: str | Path) -> Study:
    """Reads and validates a study file; its paths come back absolute.

    Raises StudyError, which names the file, the key and what is allowed.
    """
    path = Path(path)
    raw = _read(path, ())
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        raise StudyError(explain(error, Study, path)) from None


def study_path() -> Path:
    """The study file chosen by M3PO_STUDY, or the embedded one."""
    return Path(os.environ.get("M3PO_STUDY") or DEFAULT_STUDY)


def _read(path: Path, children: tuple[Path, ...]) -> dict:
    if path.resolve() in children:
        raise StudyError(f"{path}: extends itself through {' -> '.join(str(child) for child in children)}")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        raise StudyError(f"{path}: no such study file; name one with --study or M3PO_STUDY") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: can't be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        # Not the line itself, which may hold a key.
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise StudyError(f"{path}: not valid YAML: {error.problem or error.context}{where}") from None
    except yaml.YAMLError as error:
        raise StudyError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise StudyError(f"{path}: a study is a mapping of keys, this is {type(raw).__name__}")
    parent = raw.pop("extends", None)
    raw = _absolute(raw, path.resolve().parent)
    if parent is None:
        return raw
    if not isinstance(parent, str):
        raise StudyError(f"{path}: extends: name one study file")
    return _merge(_read(path.parent / parent, (*children, path.resolve())), raw)


def _merge(base: dict, over: dict) -> dict:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if value is None and isinstance(old, dict):
            del merged[key]
            continue
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _absolute(value, folder: Path):
    """Replaces every string that is a relative path (it starts with ./ or ../) by the absolute one."""
    if isinstance(value, dict):
        return {key: _absolute(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_absolute(item, folder) for item in value]
    if isinstance(value, str) and value.startswith(("./", "../")):
        return os.path.normpath(folder / value)
    return value
