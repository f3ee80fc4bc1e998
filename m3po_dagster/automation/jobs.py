"""Jobs with plain names for the launchpad: score a shard, re-select a recipe, train and benchmark a recipe, everything.

Each does what `m3po run` does with the same choice: it brings what was chosen, and what that stands on, up to date in
order, run by run, and leaves alone what is fresh. The runs it starts carry its id in a tag.
"""

from enum import Enum
from pathlib import Path

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError
from pydantic import Field

from m3po_dagster import run_tags
from m3po_dagster.assets.options import MODEL_POOL
from m3po_dagster.current import held_heads
from m3po_dagster.graph import label, standings, upstream_of
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.runner import Runner, Selection
from m3po_dagster.study import Study


def jobs(study: Study) -> list[dg.JobDefinition]:
    """The four jobs; shards and recipes to choose from are the study's."""
    shard_name = Enum("ShardName", {name: name for name in study.shards})
    recipe_name = Enum("RecipeName", {name: name for name in study.recipes})
    first_shard, last_recipe = study.shards[0], list(study.recipes)[-1]

    class ShardChoice(dg.Config):
        shard: shard_name = Field(shard_name(first_shard), description="the shard of the dataset to score")

    class RecipeChoice(dg.Config):
        recipe: recipe_name = Field(recipe_name(last_recipe), description="the recipe of the study")

    class Choice(dg.Config):
        """Empty lists mean all."""

        assets: list[str] = Field([], description="only these assets, by name; empty: all")
        shards: list[str] = Field([], description="only these shards; empty: all")
        recipes: list[str] = Field([], description="only these recipes; empty: all")

    def job(
        name: str, step_name: str, description: str, config: type[dg.Config], choose, pool: str | None = MODEL_POOL
    ) -> dg.JobDefinition:
        def run(context: dg.OpExecutionContext, config, study: StudyResource, store: StoreResource):
            run_selection(context, study, store, choose(config))

        run.__annotations__["config"] = config
        step = dg.op(name=step_name, description=description, pool=pool)(run)

        @dg.job(name=name, description=description, executor_def=dg.in_process_executor)
        def launched():
            step()

        return launched

    return [
        job(
            "score_shard",
            "score",
            "Everything up to MAS and log-probs of one shard (sections 3.2 to 3.4): filters, samples and scores what "
            "is not up to date.",
            ShardChoice,
            lambda config: Selection(upstream_of("mas_table", "logprob_table"), shards=(config.shard.value,)),
        ),
        job(
            "reselect_recipe",
            "reselect",
            "The preference pairs of one recipe over all shards (section 3.5). Loads no model: it fails where scores "
            "are not up to date.",
            RecipeChoice,
            lambda config: Selection(("recipe_config", "preference_pairs"), recipes=(config.recipe.value,)),
            pool=None,
        ),
        job(
            "train_and_benchmark_recipe",
            "train_and_benchmark",
            "One recipe from its pairs to its benchmark scores (sections 3.5, 3.6 and 4), and whatever these stand on.",
            RecipeChoice,
            lambda config: Selection(upstream_of("benchmark_scores"), recipes=(config.recipe.value,)),
        ),
        job(
            "everything",
            "bring_up_to_date",
            "The whole study, or the part that is chosen, brought up to date in order: what `m3po run` does.",
            Choice,
            lambda config: Selection(config.assets, config.shards, config.recipes),
        ),
    ]


def chosen(selection: Selection) -> dict[str, list[str]]:
    """What a selection is narrowed to, by dimension."""
    return {"shard": list(selection.shards), "recipe": list(selection.recipes)}


def run_selection(
    context: dg.OpExecutionContext, study: StudyResource, store: StoreResource, selection: Selection
) -> None:
    """Brings the selection up to date. Raises dg.Failure for a name the study hasn't, and when a run failed."""
    from m3po_dagster.definitions import build_definitions

    loaded = study.load()
    try:
        selection.refuse_unknown(loaded)
    except ValueError as error:
        raise dg.Failure(str(error), allow_retries=False) from None
    tags = {run_tags.STUDY: loaded.name}
    tags |= {run_tags.of_dimension(kind): names[0] for kind, names in chosen(selection).items() if len(names) == 1}
    context.instance.add_run_tags(context.run_id, tags)
    runner = Runner(
        build_definitions(Path(study.path), store.root),
        loaded,
        store,
        context.instance,
        tags={run_tags.STARTED_BY: context.run_id},
    )
    failures = []
    try:
        for outcome in runner.bring_up_to_date(selection):
            what = f"{' '.join(outcome.assets)}{f'[{outcome.partition}]' if outcome.partition else ''}"
            context.log.info(f"{what}: {outcome.error or 'done'} ({outcome.seconds:.1f} s, run {outcome.run_id})")
            failures += [f"{what}: {outcome.error}"] if outcome.error else []
    except KeyboardInterrupt:
        raise DagsterExecutionInterruptedError from None
    if failures:
        raise dg.Failure(f"{len(failures)} runs failed, the first: {failures[0]}", allow_retries=False)
    heads = held_heads(context.instance, store.open())
    left = [
        item
        for item in standings(loaded, store.identities(), heads)
        if selection.owes(*item.part) and item.state != "fresh"
    ]
    if left:
        first = f"{label(left[0].part)} is {left[0].state}: {left[0].why}"
        raise dg.Failure(
            f"{len(left)} of the parts asked for are not up to date, the first: {first}", allow_retries=False
        )
