"""Partitions read from the study: shard, recipe, and shard x recipe."""

import dagster as dg

from m3po_dagster.graph import Stage
from m3po_dagster.study import Study


def partitions_of(stage: Stage, study: Study) -> dg.PartitionsDefinition | None:
    """The partitions definition of a stage; None when it has no partitions."""
    single = {
        "shard": dg.StaticPartitionsDefinition(study.shards),
        "recipe": dg.StaticPartitionsDefinition(list(study.recipes)),
    }
    match stage.dimensions:
        case ():
            return None
        case (dimension,):
            return single[dimension]
    return dg.MultiPartitionsDefinition({dimension: single[dimension] for dimension in stage.dimensions})
