"""The first page: the study, how far it was made, and how many prompts have pairs or why not."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from m3po_dagster.inspector.catalogue import Catalogue
from m3po_dagster.inspector.site import Site
from m3po_dagster.inspector.tune import described


@dataclass(frozen=True)
class ShardRow:
    """A shard's counts."""

    name: str
    prompts: int
    candidates: int
    scored: bool


@dataclass(frozen=True)
class RecipeRow:
    """A recipe's counts; `same_as` names the earlier recipe that it comes to the same training as."""

    name: str
    description: str
    same_as: str
    rule: str
    detail: str
    pairs: int  # prompts with a pair
    more: int  # pairs beside the first of their prompt
    reasons: list[tuple[str, int]]
    by_shard: list[tuple[str, int]]
    stale: tuple[str, ...]
    sliders: bool
    answered: bool


def shard_rows(catalogue: Catalogue) -> list[ShardRow]:
    """One row a shard that has prompts."""
    return [
        ShardRow(shard.name, len(shard.prompt_ids), int(shard.n_candidates.sum()), shard.scored)
        for shard in catalogue.shards
    ]


def recipe_rows(catalogue: Catalogue) -> list[RecipeRow]:
    """One row a recipe of the study."""
    rows, aliases = [], catalogue.study.aliases()
    for name, settings in catalogue.study.recipes.items():
        found, selection = catalogue.recipes.get(name), settings.selection
        counts: Counter[str] = Counter()
        by_shard = []
        if found is not None:
            codes, numbers = np.unique(found.reason[found.reason >= 0], return_counts=True)
            counts.update({found.reasons[code]: int(number) for code, number in zip(codes, numbers, strict=True)})
            for shard, begin in zip(catalogue.shards, catalogue.begins, strict=False):
                here = found.paired[begin : begin + len(shard.prompt_ids)]
                by_shard.append((shard.name, int(np.count_nonzero(here))))
        rows.append(
            RecipeRow(
                name=name,
                description=settings.description,
                same_as=aliases.get(name, ""),
                rule=selection.rule if selection else "",
                detail=described(selection),
                pairs=0 if found is None else int(np.count_nonzero(found.paired)),
                more=0 if found is None else int(found.more.sum()),
                reasons=counts.most_common(),
                by_shard=by_shard,
                stale=() if found is None else found.stale,
                sliders=selection is not None and selection.rule == "m3p",
                answered=name in catalogue.scores,
            )
        )
    return rows


def overview(site: Site):
    """GET /"""

    @site.page
    def view(request: Request, catalogue: Catalogue) -> Response:
        return site.render(
            "overview.html",
            here="overview",
            study_name=catalogue.study.name,
            study=catalogue.study,
            prompts=catalogue.size,
            shards=shard_rows(catalogue),
            recipes=recipe_rows(catalogue),
            missing=catalogue.missing,
            stale=catalogue.stale,
        )

    return view
