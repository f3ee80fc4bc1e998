"""Which prompts a list shows and in which order: filters, search and sort orders over a catalogue's arrays."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pyarrow.compute as pc

from m3po_dagster.inspector.catalogue import Catalogue, Recipe
from m3po_dagster.inspector.kept import Kept

PAGE_SIZE = 50
LONGEST_SEARCH = 500
ANY, WITH_PAIR, WITHOUT_PAIR = "", "pair", "none"
SORTS = {
    "": "as in the dataset",
    "gap": "MAS gap, small first",
    "-gap": "MAS gap, large first",
    "conf": "confidence gap, small first",
    "-conf": "confidence gap, large first",
    "score": "S(R_l), small first",
    "-score": "S(R_l), large first",
    "spread": "MAS spread of all candidates, small first",
    "-spread": "MAS spread of all candidates, large first",
    "best": "best MAS, small first",
    "-best": "best MAS, large first",
}
_KEPT_RESULTS = 16


class QueryError(ValueError):
    """A query that can't be answered; the message says which field and what is allowed."""


@dataclass(frozen=True)
class PromptQuery:
    """A list of prompts. Bounds are inclusive; they leave out prompts without a pair of `recipe`."""

    recipe: str = ""
    shard: str = ""
    q: str = ""
    reason: str = ANY
    gap_min: float | None = None
    gap_max: float | None = None
    conf_min: float | None = None
    conf_max: float | None = None
    sort: str = ""

    @classmethod
    def parse(cls, given: Mapping[str, str], catalogue: Catalogue) -> "PromptQuery":
        """From a page's query; without a recipe it is the study's last rule m3p, or the last that selects.

        Raises QueryError for names that the study lacks and for what is no number.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            text = given.get(field.name, "").strip()
            values[field.name] = _number(field.name, text) if field.default is None else text
        query = cls(**values)
        if not query.recipe and catalogue.recipes:
            query = replace(query, recipe=default_recipe(catalogue))
        allowed = {
            "recipe": set(catalogue.study.recipes) | {""},
            "shard": set(catalogue.study.shards) | {""},
            "sort": set(SORTS),
            "reason": {ANY, WITH_PAIR, WITHOUT_PAIR, *reasons(catalogue, query.recipe)},
        }
        for name, values_allowed in allowed.items():
            if getattr(query, name) not in values_allowed:
                if name == "reason":  # a reason of another recipe
                    query = replace(query, reason=ANY)
                    continue
                there = ", ".join(sorted(values_allowed - {""}))
                raise QueryError(f"there is no {name} {getattr(query, name)!r}; there are {there}")
        if len(query.q) > LONGEST_SEARCH:
            raise QueryError(f"a search has at most {LONGEST_SEARCH} characters")
        return query

    def url(self, **changes: object) -> str:
        """The query as a URL's query string, with other or further fields."""
        given = {field.name: getattr(self, field.name) for field in fields(self)} | changes
        return urlencode({name: value for name, value in given.items() if value not in ("", None)})


def default_recipe(catalogue: Catalogue) -> str:
    """The recipe shown when none is named: the last of rule m3p, or the last that selects pairs."""
    names = list(catalogue.recipes)
    m3p = [name for name in names if catalogue.study.recipes[name].selection.rule == "m3p"]
    return (m3p or names or [""])[-1]


def reasons(catalogue: Catalogue, recipe: str) -> list[str]:
    """The reasons of no pair that occur, in alphabetical order."""
    found = catalogue.recipes.get(recipe)
    if found is None:
        return []
    present = np.unique(found.reason[found.reason >= 0])
    return sorted(found.reasons[code] for code in present)


class PromptLists:
    """Runs queries; the last few results are kept, as paging and the way to the next prompt ask again."""

    def __init__(self) -> None:
        self._kept: Kept[np.ndarray] = Kept(_KEPT_RESULTS)

    def numbers(self, catalogue: Catalogue, query: PromptQuery) -> np.ndarray:
        """The numbers of the prompts that fit, in order."""
        return self._kept.get((catalogue.number, query), lambda: _run(catalogue, query))


def _run(catalogue: Catalogue, query: PromptQuery) -> np.ndarray:
    fits = np.ones(catalogue.size, dtype=bool)
    if query.shard:
        fits &= False
        for shard, begin in zip(catalogue.shards, catalogue.begins, strict=False):
            if shard.name == query.shard:
                fits[begin : begin + len(shard.prompt_ids)] = True
    recipe = catalogue.recipes.get(query.recipe)
    if recipe is not None:
        fits &= _recipe_filter(recipe, query)
    if query.q:
        fits &= _search(catalogue, query.q)
    numbers = np.flatnonzero(fits)
    name = query.sort.removeprefix("-")
    if name:
        key = _sort_key(catalogue, recipe, name)[numbers]
        # What has no value comes last in both directions.
        numbers = numbers[np.argsort(-key if query.sort.startswith("-") else key, kind="stable")]
    return numbers.astype(np.int32)


def _recipe_filter(recipe: Recipe, query: PromptQuery) -> np.ndarray:
    fits = np.ones(len(recipe.chosen), dtype=bool)
    if query.reason == WITH_PAIR:
        fits &= recipe.paired
    elif query.reason == WITHOUT_PAIR:
        fits &= ~recipe.paired
    elif query.reason:
        fits &= recipe.reason == recipe.reasons.index(query.reason)
    for values, low, high in (
        (recipe.mas_gap, query.gap_min, query.gap_max),
        (recipe.logp_gap, query.conf_min, query.conf_max),
    ):
        if low is not None:
            fits &= values >= low
        if high is not None:
            fits &= values <= high
    return fits


def _search(catalogue: Catalogue, text: str) -> np.ndarray:
    """Prompts whose question or image path holds the text whatever its letter case, or whose id begins with it."""
    found = pc.match_substring(catalogue.questions, text, ignore_case=True)
    found = pc.or_(found, pc.starts_with(catalogue.prompt_ids, text))
    found = pc.or_(found, pc.match_substring(catalogue.image_uris, text, ignore_case=True))
    return found.combine_chunks().to_numpy(zero_copy_only=False)


def _sort_key(catalogue: Catalogue, recipe: Recipe | None, name: str) -> np.ndarray:
    if name in ("spread", "best"):
        return catalogue.mas_spread if name == "spread" else catalogue.best_mas
    if recipe is None:
        return np.full(catalogue.size, np.nan)
    return {"gap": recipe.mas_gap, "conf": recipe.logp_gap, "score": recipe.score}[name]


def _number(name: str, text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise QueryError(f"{name}: {text!r} is no number")
    return value


def page_number(given: Mapping[str, str], total: int, size: int) -> tuple[int, int]:
    """The page asked for, kept within what there is, and the number of pages (at least 1). Raises QueryError."""
    pages = max(1, -(-total // size))
    return min(asked_page(given), pages), pages


def asked_page(given: Mapping[str, str]) -> int:
    """The page asked for, at least 1, whether or not there is one. Raises QueryError."""
    text = given.get("page", "1") or "1"
    if not text.isdecimal() or len(text) > 9:
        raise QueryError(f"page: {text!r} is no page number")
    return max(1, int(text))
