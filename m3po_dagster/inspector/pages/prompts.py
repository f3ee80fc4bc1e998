"""The list of prompts, one prompt, and one answer as plain text."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

import numpy as np
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from m3po_dagster.inspector.catalogue import Catalogue
from m3po_dagster.inspector.prompt import PromptView, read_prompt
from m3po_dagster.inspector.query import (
    ANY,
    PAGE_SIZE,
    SORTS,
    WITH_PAIR,
    WITHOUT_PAIR,
    PromptQuery,
    page_number,
    reasons,
)
from m3po_dagster.inspector.reselect import pick
from m3po_dagster.inspector.site import NotFound, Site
from m3po_dagster.inspector.text import words
from m3po_dagster.inspector.tokens import SHADES, Piece
from m3po_dagster.inspector.tune import described, no_sliders, point
from m3po_dagster.method.selection_settings import SelectionSettings

ORDERS = {"mas": "best MAS first", "k": "as sampled", "logp": "likeliest first", "s": "highest S first"}


SHOWN_TOKENS = 2000


@dataclass(frozen=True)
class Row:
    """A prompt in the list."""

    prompt_id: str
    shard: str
    question: str
    image_sha256: str
    candidates: int
    best_mas: float
    mas_gap: float
    logp_gap: float
    score: float
    chosen: int
    rejected: int
    more: int  # pairs beside this one
    reason: str


def _rows(catalogue: Catalogue, query: PromptQuery, numbers: np.ndarray) -> list[Row]:
    found = catalogue.recipes.get(query.recipe)
    rows = []
    for number in map(int, numbers):
        place = catalogue.place(number)
        shard, position = place.shard, place.position
        code = -1 if found is None else int(found.reason[number])
        rows.append(
            Row(
                prompt_id=shard.prompt_ids[position].as_py(),
                shard=shard.name,
                question=shard.questions[position].as_py(),
                image_sha256=shard.image_hashes[position].as_py(),
                candidates=int(shard.n_candidates[position]),
                best_mas=float(shard.best_mas[position]),
                mas_gap=np.nan if found is None else float(found.mas_gap[number]),
                logp_gap=np.nan if found is None else float(found.logp_gap[number]),
                score=np.nan if found is None else float(found.score[number]),
                chosen=-1 if found is None else int(found.chosen[number]),
                rejected=-1 if found is None else int(found.rejected[number]),
                more=0 if found is None else int(found.more[number]),
                reason="" if found is None or code < 0 else found.reasons[code],
            )
        )
    return rows


def prompt_list(site: Site):
    """GET /prompts"""

    @site.page
    def view(request: Request, catalogue: Catalogue) -> Response:
        query = PromptQuery.parse(request.query_params, catalogue)
        numbers = site.prompts.numbers(catalogue, query)
        page, pages = page_number(request.query_params, len(numbers), PAGE_SIZE)
        shown = numbers[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
        states = {ANY: "any", WITH_PAIR: "with a pair", WITHOUT_PAIR: "without a pair"}
        states |= {name: words(name) for name in reasons(catalogue, query.recipe)}
        return site.render(
            "prompts.html",
            here="prompts",
            study_name=catalogue.study.name,
            query=query,
            rows=_rows(catalogue, query, shown),
            total=len(numbers),
            page=page,
            pages=pages,
            recipes=list(catalogue.recipes),
            shards=[shard.name for shard in catalogue.shards],
            states=states,
            sorts=SORTS,
            missing=catalogue.missing,
            stale=catalogue.stale,
        )

    return view


def prompt_page(site: Site):
    """GET /prompts/{prompt_id}"""

    @site.page
    def view(request: Request, catalogue: Catalogue) -> Response:
        query = PromptQuery.parse(request.query_params, catalogue)
        number = _number(request, catalogue)
        prompt = read_prompt(catalogue, number, query.recipe)
        order = request.query_params.get("order", "mas")
        _sort(prompt, order)
        selection = catalogue.study.recipes[query.recipe].selection if query.recipe in catalogue.recipes else None
        pieces, tokens_problem = _pieces(site, prompt)
        moved, moved_k = _moved(site, catalogue, query.recipe, number, request.query_params)
        before, after, at = _neighbours(site, catalogue, query, number)
        return site.render(
            "prompt.html",
            here="prompts",
            study_name=catalogue.study.name,
            query=query,
            prompt=prompt,
            order=order if order in ORDERS else "mas",
            orders=ORDERS,
            way=_way(query, request.query_params, order, moved),
            kept=[item for item in parse_qsl(_way(query, request.query_params, "", moved)) if item[0] != "recipe"],
            selection=selection,
            details=described(selection),
            recipes=list(catalogue.recipes),
            pieces=pieces,
            tokens_problem=tokens_problem,
            shades=SHADES,
            moved=moved,
            moved_k=moved_k,
            before=before,
            after=after,
            at=at,
            why_stale=_why_stale(catalogue, query.recipe, prompt.shard),
        )

    return view


def _way(query: PromptQuery, given: Mapping[str, str], order: str, moved: SelectionSettings | None) -> str:
    """What the links to the prompts before and after carry: the list, the order of candidates, the sliders' point."""
    point = {name: given.get(name, "") for name in ("alpha", "delta")} if moved else {}
    return query.url(order=order if order in ORDERS and order != "mas" else "", **point)


def _why_stale(catalogue: Catalogue, recipe: str, shard: str) -> str:
    """What is wrong with the recipe's pairs in the shard; empty where they are up to date."""
    found = catalogue.recipes.get(recipe)
    return found.why_stale if found is not None and shard in found.stale else ""


def answer_text(site: Site):
    """GET /prompts/{prompt_id}/answers/{k}: an answer as it is, as plain text."""

    @site.page
    def view(request: Request, catalogue: Catalogue) -> Response:
        prompt = read_prompt(catalogue, _number(request, catalogue), "")
        k = request.path_params["k"]
        for candidate in prompt.candidates:
            if str(candidate.k) == k:
                return PlainTextResponse(candidate.text.encode("utf-8", "replace"))
        raise NotFound(f"Prompt {prompt.prompt_id} has no candidate {k}.")

    return view


def _pieces(site: Site, prompt: PromptView) -> tuple[dict[int, list[Piece]], str]:
    """The shaded tokens of each candidate whose token log-probs are known, by k; and why there are none."""
    known = [
        candidate
        for candidate in prompt.candidates
        if candidate.token_logps and len(candidate.token_ids) == len(candidate.token_logps)
    ]
    if not known:
        return {}, "no candidate here has log-probs of its tokens" if prompt.candidates else ""
    decoder = site.watch.decoder
    if decoder is None or decoder.problem:
        return {}, decoder.problem if decoder else "the model's tokenizer is still being loaded"
    found = {}
    for candidate in known:
        shaded = decoder.pieces(candidate.token_ids[:SHOWN_TOKENS], candidate.token_logps[:SHOWN_TOKENS])
        if _spells("".join(piece.text for piece in shaded), candidate.text, len(shaded) == len(candidate.token_ids)):
            found[candidate.k] = shaded
    return found, ""


def _spells(tokens: str, text: str, whole: bool) -> bool:
    """Whether tokens stand for the text, white space aside: what does not is not shown in its place.

    Special tokens may come before and after it; tokens that are not the whole answer spell its beginning.
    """
    spelled, wanted = "".join(tokens.split()), "".join(text.split())
    return wanted in spelled if whole else wanted.startswith(spelled)


def _number(request: Request, catalogue: Catalogue) -> int:
    prompt_id = request.path_params["prompt_id"]
    number = catalogue.find(prompt_id)
    if number is None:
        raise NotFound(f"The study {catalogue.study.name} has no prompt {prompt_id}.")
    return number


def _sort(prompt: PromptView, order: str) -> None:
    """Candidates without the figure come last; equal ones stay as sampled."""
    figure = {"k": lambda item: -item.k, "logp": lambda item: item.mean_logp, "s": lambda item: item.m3p_score}
    key = figure.get(order, lambda item: item.mas)
    prompt.candidates.sort(key=lambda item: item.k)
    prompt.candidates.sort(key=lambda item: -value if (value := key(item)) is not None else float("inf"))


def _moved(site: Site, catalogue: Catalogue, recipe: str, number: int, given: Mapping[str, str]):
    """The point named in the address and the k that it would pick as R_l; (None, -1) without one."""
    if not (given.get("alpha") or given.get("delta")) or recipe not in catalogue.recipes:
        return None, -1
    if no_sliders(catalogue, recipe):
        return None, -1
    moved = point(catalogue, recipe, given)
    fronts = site.watch.fronts(catalogue, moved)
    place = catalogue.place(number)
    if fronts is None or not place.shard.scored:
        return None, -1
    scored = [shard for shard in catalogue.shards if shard.scored]
    front = fronts[scored.index(place.shard)]
    at = np.flatnonzero(front.prompt == place.position)
    return moved, int(front.k[pick(front, moved)[at[0]]]) if len(at) else -1


def _neighbours(site: Site, catalogue: Catalogue, query: PromptQuery, number: int):
    """Ids of the prompts before and after in the list that the query gives, and the place in it from 1 (0: not in)."""
    numbers = site.prompts.numbers(catalogue, query)
    at = np.flatnonzero(numbers == number)
    if not len(at):
        return None, None, (0, len(numbers))
    place = int(at[0])

    def prompt_id(index: int) -> str | None:
        if not 0 <= index < len(numbers):
            return None
        found = catalogue.place(int(numbers[index]))
        return found.shard.prompt_ids[found.position].as_py()

    return prompt_id(place - 1), prompt_id(place + 1), (place + 1, len(numbers))
