"""One prompt as its page shows it: conversation, candidates with every score, and how the recipe came to its pair."""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from m3po_dagster.inspector.catalogue import Catalogue, Place, Recipe
from m3po_dagster.inspector.rows import read_rows
from m3po_dagster.method.selection_matrix import ScoreMatrix
from m3po_dagster.method.selection_settings import MAS, SelectionSettings
from m3po_dagster.method.selection_winners import confidence_penalty, find_winners
from m3po_dagster.storage.artifact import Artifact

TEXT_COLUMNS = ("k", "text", "token_ids", "n_tokens", "finish_reason", "multiplicity")
LOGP_COLUMNS = ("sum_logp", "eos_logp", "n_tokens", "token_logps")
ID_COLUMNS = ("candidate_id", "prompt_id")
MAS_COLUMNS = (*ID_COLUMNS, "mas", "status", "words")
"""Columns of a MAS table that are no scorer and no sub-score."""


@dataclass
class CandidateView:
    """One candidate. `scores` are the scorers and sub-scores by name; `picked_by` says which recipes picked it."""

    k: int
    text: str
    n_tokens: int
    multiplicity: int
    finish_reason: str
    token_ids: list[int]
    token_logps: list[float | None] | None = None
    mas: float | None = None
    status: str | None = None
    words: str | None = None
    scores: dict[str, float | None] = field(default_factory=dict)
    sum_logp: float | None = None
    mean_logp: float | None = None
    eos_logp: float | None = None
    chosen_by: list[str] = field(default_factory=list)
    rejected_by: list[str] = field(default_factory=list)
    mark: str = ""  # "chosen" or "rejected" by the recipe shown
    gap: float | None = None  # MAS(R_w) - MAS, or what stands for it in the recipe
    penalty: float | None = None  # of equation 2; None where the candidate can't be R_l
    m3p_score: float | None = None  # S of equation 2


@dataclass(frozen=True)
class PromptView:
    """Everything on a prompt's page."""

    number: int
    prompt_id: str
    shard: str
    image_uri: str
    image_sha256: str
    width: int
    height: int
    messages: list[Mapping[str, str]]
    reference: str | None
    source: str
    source_id: str
    candidates: list[CandidateView]
    more_pairs: int  # of the recipe shown, beside the one that is marked
    reason: str  # why the recipe has no pair here; empty where it has one
    detail: str  # the figures that led to it

    @property
    def pair(self) -> list[CandidateView]:
        """R_w and, where there is one, R_l of the recipe shown."""
        return sorted((item for item in self.candidates if item.mark), key=lambda item: item.mark)


def read_prompt(catalogue: Catalogue, number: int, recipe: str) -> PromptView:
    """Reads a prompt's rows of all tables. Raises OSError, pa.ArrowException or StoreError."""
    place = catalogue.place(number)
    row = read_rows(place.shard.prompts.path("data.parquet"), place.position, 1).to_pylist()[0]
    candidates = _candidates(place)
    _mark_pairs(catalogue, number, recipe, candidates)
    settings = catalogue.study.recipes[recipe].selection if recipe in catalogue.recipes else None
    if settings is not None and settings.rule == "m3p" and place.shard.scored:
        _explain_scores(row["prompt_id"], candidates, settings)
    found = catalogue.recipes.get(recipe)
    reason, detail = _reason(found, place, number) if found is not None else ("", "")
    return PromptView(
        number=number,
        prompt_id=row["prompt_id"],
        shard=place.shard.name,
        image_uri=row["image_uri"],
        image_sha256=row["image_sha256"],
        width=row["width"],
        height=row["height"],
        messages=row["messages"],
        reference=row["reference"],
        source=row["source"],
        source_id=row["source_id"],
        candidates=candidates,
        more_pairs=0 if found is None else int(found.more[number]),
        reason=reason,
        detail=detail,
    )


def _reason(recipe: Recipe, place: Place, number: int) -> tuple[str, str]:
    if recipe.reason[number] < 0:
        return "", ""
    artifact = recipe.artifacts.get(place.shard.name)
    details = []
    if artifact is not None:
        mine = [("item_id", "=", place.shard.prompt_ids[place.position].as_py())]
        details = pq.read_table(artifact.path("dropped.parquet"), filters=mine)["detail"].to_pylist()
    return recipe.reasons[recipe.reason[number]], next(iter(details), None) or ""


def _candidates(place: Place) -> list[CandidateView]:
    shard = place.shard
    start, count = int(shard.first_row[place.position]), int(shard.n_candidates[place.position])
    if not count:
        return []

    def rows(artifact: Artifact | None, wanted: Callable[[str], bool]) -> list[dict[str, Any]]:
        if artifact is None:
            return [{}] * count
        columns = [name for name in artifact.manifest.tables["data"].columns if wanted(name)]
        return read_rows(artifact.path("data.parquet"), start, count, columns).to_pylist()

    # Log-probs of tokens stand in both tables when they were recorded while sampling.
    texts_wanted = TEXT_COLUMNS if shard.logprobs else (*TEXT_COLUMNS, "token_logps")
    # Most of the time goes into unpacking, which other threads can do meanwhile.
    with ThreadPoolExecutor(2) as pool:
        judged = pool.submit(rows, shard.mas, lambda name: name not in ID_COLUMNS)
        known = pool.submit(rows, shard.logprobs, lambda name: name in LOGP_COLUMNS)
        texts = rows(shard.candidates, lambda name: name in texts_wanted)
        tables = zip(texts, judged.result(), known.result(), strict=True)
    found = []
    for text, outside, inside in tables:
        total = inside.get("sum_logp")
        found.append(
            CandidateView(
                k=text["k"],
                text=text["text"],
                n_tokens=text["n_tokens"],
                multiplicity=text["multiplicity"],
                finish_reason=text["finish_reason"],
                token_ids=text["token_ids"],
                token_logps=inside.get("token_logps") or text.get("token_logps"),
                mas=outside.get("mas"),
                status=outside.get("status"),
                words=outside.get("words"),
                scores={name: value for name, value in outside.items() if name not in MAS_COLUMNS},
                sum_logp=total,
                mean_logp=None if total is None else total / inside["n_tokens"],
                eos_logp=inside.get("eos_logp"),
            )
        )
    return found


def _mark_pairs(catalogue: Catalogue, number: int, recipe: str, candidates: list[CandidateView]) -> None:
    by_k = {candidate.k: candidate for candidate in candidates}
    for name, pairs in catalogue.recipes.items():
        for k, kind in ((int(pairs.chosen[number]), "chosen"), (int(pairs.rejected[number]), "rejected")):
            candidate = by_k.get(k)
            if candidate is None:
                continue
            if name == recipe:
                candidate.mark = kind
            else:
                (candidate.chosen_by if kind == "chosen" else candidate.rejected_by).append(name)


def _explain_scores(prompt_id: str, candidates: list[CandidateView], settings: SelectionSettings) -> None:
    """Notes gap, penalty and S of equation 2 with each candidate that could be R_l."""
    if not candidates:
        return
    table = pa.table(
        {
            "prompt_id": [prompt_id] * len(candidates),
            "candidate_id": [f"{prompt_id}:{candidate.k}" for candidate in candidates],
            "k": pa.array([candidate.k for candidate in candidates], pa.int32()),
            "text": pa.array([candidate.text for candidate in candidates], pa.string()),
            settings.score: pa.array([_score(candidate, settings) for candidate in candidates], pa.float64()),
            "sum_logp": pa.array([candidate.sum_logp for candidate in candidates], pa.float64()),
            "n_tokens": pa.array([candidate.n_tokens for candidate in candidates], pa.int32()),
            "finish_reason": pa.array([candidate.finish_reason for candidate in candidates], pa.string()),
        }
    )
    matrix = ScoreMatrix.from_table(table, settings)
    (block,) = matrix.blocks()
    winners = find_winners(block, settings)
    if not winners.found[0]:
        return
    confidence = block.confidence(settings.confidence)[0]
    penalty = confidence_penalty(confidence[winners.column[0]] - confidence, settings)
    for entry, row in enumerate(range(len(candidates)) if matrix.rows is None else matrix.rows):
        candidate = candidates[int(row)]
        if not math.isnan(winners.gap[0, entry]):
            candidate.gap = float(winners.gap[0, entry])
        if winners.losers[0, entry]:
            candidate.penalty = float(penalty[entry])
            candidate.m3p_score = candidate.gap - settings.alpha * candidate.penalty


def _score(candidate: CandidateView, settings: SelectionSettings) -> float | None:
    return candidate.mas if settings.score == MAS else candidate.scores.get(settings.score)
