"""What of a study decides its cost; the paper's own setting where no study is given (section 4.1)."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from m3po_dagster.cost.assumptions import Range, exactly
from m3po_dagster.equal_recipes import trained_once
from m3po_dagster.method.alignment.budget import PriceSettings
from m3po_dagster.method.alignment.scorer import ScorerSettings, group_size
from m3po_dagster.method.alignment.statements import StatementSettings
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.optimization.rlhf_settings import TOLD_BY

if TYPE_CHECKING:
    from m3po_dagster.study import Recipe, Study


@dataclass(frozen=True)
class ServedJudge:
    """A served scorer; `at_most`: a cascade or a referee's rule may ask it about fewer answers than all."""

    name: str
    group_size: int
    prices: PriceSettings | None
    at_most: bool = False


@dataclass(frozen=True)
class LocalScorer:
    """A scorer whose model is loaded here: views of each image, and whether it takes answers whole or by sentence."""

    name: str
    kind: str
    views: int
    unit: Literal["sentences", "answers"]


@dataclass(frozen=True)
class Sampled:
    """What simulated RLHF samples as it trains: `answers` to each of `prompts` at a step, cut at `max_new_tokens`.

    `reward_answers`: at most so many stored ones are read for its reward; `reference`: every sampled one is read once
    more for its KL.
    """

    prompts: int
    answers: int
    max_new_tokens: int
    reward_answers: int
    reference: bool


@dataclass(frozen=True)
class Training:
    """A recipe's training; `runs`: adapters, one a seed. `sampled`: None where it trains on what is there.

    `pairs`: pairs of a prompt that gives any, from the fewest to the most that the rule takes.
    """

    recipe: str
    kind: Literal["dpo", "sft", "rlhf"]
    epochs: int
    runs: int
    checkpointing: bool
    sampled: Sampled | None = None
    pairs: Range = field(default=exactly(1))

    @classmethod
    def of(cls, name: str, recipe: "Recipe") -> "Training":
        """The training of a recipe that trains."""
        settings, sampled = recipe.training, None
        if settings.kind == "rlhf":
            sampled = Sampled(
                settings.batch_size,
                settings.answers,
                settings.max_new_tokens,
                settings.reward_answers + settings.reward_answers // TOLD_BY,
                settings.beta > 0,
            )
        selection = recipe.selection
        return cls(
            recipe=name,
            kind=settings.kind,
            epochs=settings.epochs,
            runs=len(recipe.seeds),
            checkpointing=settings.gradient_checkpointing,
            sampled=sampled,
            pairs=Range(1, selection.max_pairs if selection.rule == "margin_pairs" else 1),
        )


@dataclass(frozen=True)
class Plan:
    """What is asked for. `samples`: N, or from the first round to the most; `rounds`: how often a prompt is read.

    `in_flight`: prompts sampled together; `served`: the model answers behind a server, which batches by itself.
    """

    name: str
    model: ModelSettings
    samples: Range
    rounds: Range
    max_new_tokens: int
    in_flight: int
    served: bool
    rescored: bool
    judges: tuple[ServedJudge, ...]
    scorers: tuple[LocalScorer, ...]
    trainings: tuple[Training, ...]

    @classmethod
    def of(cls, study: "Study") -> "Plan":
        """The plan of a study."""
        generation, judge = study.generation, study.judge
        sizes = generation.rounds
        return cls(
            name=study.name,
            model=study.model,
            samples=Range(sizes[0], generation.most),
            rounds=Range(1, len(sizes)),
            max_new_tokens=generation.max_new_tokens,
            in_flight=generation.prompts_per_batch,
            served=study.generator.kind == "server",
            rescored=study.confidence.source == "rescored",
            judges=tuple(
                ServedJudge(one.name, group_size(one), getattr(one, "charged", None), judge.may_ask_fewer)
                for one in judge.assessors
                if one.served
            ),
            scorers=tuple(_local(one) for one in judge.assessors if not one.served),
            trainings=tuple(Training.of(name, recipe) for name, recipe in trained_once(study.recipes).items()),
        )


def _local(scorer: ScorerSettings) -> LocalScorer:
    tiles = getattr(scorer, "tiles", 1)
    views = 0 if not scorer.looks_at_image else 1 if tiles == 1 else 1 + tiles * tiles
    unit = "sentences" if isinstance(scorer, StatementSettings) else "answers"
    return LocalScorer(scorer.name, scorer.kind, views, unit)


PAPER = Plan(
    name="the paper's setting (LLaVA-1.5-7B, N = 32)",
    model=ModelSettings(path="llava-hf/llava-1.5-7b-hf", dtype="bfloat16"),
    samples=exactly(32),
    rounds=exactly(1),
    max_new_tokens=512,
    in_flight=2,
    served=False,
    rescored=False,
    judges=(),
    scorers=(LocalScorer("clip", "clip", 1, "sentences"),),
    trainings=(
        Training("sft", "sft", 1, 3, False),
        Training("rlhf", "rlhf", 1, 3, False, Sampled(8, 8, 256, 25_000, True)),
        *(Training(name, "dpo", 1, 3, False) for name in ("vanilla", "rm_dpo", "m3po_alpha0", "m3po", "m3po_safe")),
    ),
)
"""That of studies/llava15_7b.yaml."""
