"""Jobs with plain names for the launchpad: score a shard, re-select a recipe, train and benchmark a recipe, everything.

Each does what `m3po run` does with the same choice: it brings what was chosen, and what that stands on, up to date in
order, run by run, and leaves alone what is fresh. The runs it starts carry its id in a tag.
"""

from enum import Enum

import dagster as dg
from pydantic import Field

from m3po_dagster.automation.selected import Choice, run_selection
from m3po_dagster.automation.spread import everything_spread
from m3po_dagster.deployment import Deployment, Kind
from m3po_dagster.graph import upstream_of
from m3po_dagster.resources import gpu
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.runner import Selection
from m3po_dagster.study import Study

EVERYTHING = "The whole study, or the part that is chosen, brought up to date in order: what `m3po run` does."


def jobs(study: Study, deployment: Deployment, executor: dg.ExecutorDefinition) -> list[dg.JobDefinition]:
    """The four jobs; shards and recipes to choose from are the study's, where the steps run is the deployment's."""
    shard_name = Enum("ShardName", {name: name for name in study.shards})
    recipe_name = Enum("RecipeName", {name: name for name in study.recipes})
    first_shard, last_recipe = study.shards[0], list(study.recipes)[-1]

    class ShardChoice(dg.Config):
        shard: shard_name = Field(shard_name(first_shard), description="the shard of the dataset to score")

    class RecipeChoice(dg.Config):
        recipe: recipe_name = Field(recipe_name(last_recipe), description="the recipe of the study")

    def job(
        name: str, step_name: str, description: str, config: type[dg.Config], choose, kind: Kind
    ) -> dg.JobDefinition:
        def run(context: dg.OpExecutionContext, config, study: StudyResource, store: StoreResource):
            ask_judge = isinstance(config, Choice) and config.ask_judge
            run_selection(context, study, store, choose(config), ask_judge=ask_judge)

        run.__annotations__["config"] = config
        step = dg.op(
            name=step_name,
            description=description,
            pool=gpu.pool_of(kind),
            tags=gpu.op_tags(deployment, kind),
            retry_policy=gpu.retry_policy(deployment),
        )(run)

        @dg.job(name=name, description=description, executor_def=executor)
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
            "sampling",
        ),
        job(
            "reselect_recipe",
            "reselect",
            "The preference pairs of one recipe over all shards (section 3.5). Loads no model: it fails where scores "
            "are not up to date.",
            RecipeChoice,
            lambda config: Selection(("recipe_config", "preference_pairs"), recipes=(config.recipe.value,)),
            "light",
        ),
        job(
            "train_and_benchmark_recipe",
            "train_and_benchmark",
            "One recipe from its pairs to its benchmark scores (sections 3.5, 3.6 and 4), and whatever these stand on.",
            RecipeChoice,
            lambda config: Selection(upstream_of("benchmark_scores"), recipes=(config.recipe.value,)),
            "training",
        ),
        everything_spread(deployment, executor, EVERYTHING)
        if deployment.clustered
        else job("everything", "bring_up_to_date", EVERYTHING, Choice, Choice.selection, "sampling"),
    ]
