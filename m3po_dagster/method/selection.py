"""Preference pair selection (section 3.5): a table of scored candidates in, pairs and reasons for no pair out.

    result = select_pairs(table, SelectionSettings(alpha=0.5, delta=0.1))
    result.pairs, result.dropped, result.stats

`selection_matrix` lays the table out, `selection_rules` chooses, `selection_reasons` says why there is no pair,
`selection_sweep` covers a grid of alpha and delta.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from m3po_dagster.method.selection_draws import balanced
from m3po_dagster.method.selection_ids import ScoreTableError, first_repeated, ids_as_strings
from m3po_dagster.method.selection_matrix import ScoreMatrix
from m3po_dagster.method.selection_reasons import LENGTH_BALANCE
from m3po_dagster.method.selection_rules import Choice, choose
from m3po_dagster.method.selection_settings import (
    RULES_WITH_LOSER_SCORE,
    RULES_WITHOUT_REJECTED,
    SelectionSettings,
)
from m3po_dagster.method.selection_sweep import NO_PAIR_SCHEMA, OVERLAP_SCHEMA, SWEEP_SCHEMA, SweepResult, sweep

__all__ = [
    "DROPPED_SCHEMA",
    "NO_PAIR_SCHEMA",
    "OVERLAP_SCHEMA",
    "PAIRS_SCHEMA",
    "SWEEP_SCHEMA",
    "ScoreTableError",
    "SelectionResult",
    "SelectionSettings",
    "SweepResult",
    "pair_id",
    "select_pairs",
    "sweep",
]

PAIRS_SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("chosen_id", pa.string(), nullable=False),
        pa.field("rejected_id", pa.string()),
        pa.field("chosen_mas", pa.float64()),
        pa.field("m3p_score", pa.float64()),
        pa.field("mas_gap", pa.float64()),
        pa.field("logp_gap", pa.float64()),
        pa.field("ref_chosen_logp", pa.float64(), nullable=False),
        pa.field("ref_rejected_logp", pa.float64()),
    ]
)
DROPPED_SCHEMA = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class SelectionResult:
    """What became of every prompt: rows of `pairs` or a row of `dropped`, in the order of the prompts' first rows.

    pairs: PAIRS_SCHEMA, one row a prompt, or several, the best first (margin_pairs: the widest gap; every_answer: the
    highest score). chosen_mas and mas_gap are of MAS or of the score that stands for it, noise included: what the
    recipe's judge said. mas_gap, logp_gap and the reference log-probs are of chosen against rejected as written, so
    `flipped` has negative gaps; m3p_score is S of the pair that m3p chose. Without a rejected candidate (`best_only`,
    `every_answer`) all its columns are null.
    dropped: DROPPED_SCHEMA, one of `selection_reasons.REASONS` each.
    stats: counts, shares and means; shares and means are None where nothing is there to average.
    """

    pairs: pa.Table
    dropped: pa.Table
    stats: dict[str, Any]


def select_pairs(table: pa.Table, settings: SelectionSettings) -> SelectionResult:
    """Choose a prompt's pairs from a table of candidates (equations 1 to 3, or a rival rule).

    Columns: prompt_id, candidate_id (strings or integers), mas (null: unscored), sum_logp (nats), n_tokens; optional k,
    text, finish_reason, and the score columns that the settings name. Rows may be in any order.
    Raises ScoreTableError for a table that can't be used (see `ScoreMatrix.from_table`) or a repeated candidate id.
    """
    candidate_ids = _candidate_ids(table)
    matrix = ScoreMatrix.from_table(table, settings)
    size = len(matrix.lengths)
    tied = np.zeros(size, dtype=bool)
    choices: list[Choice] = []
    reasons: dict[int, tuple[str, str]] = {}
    prompts = [np.empty(0, np.int64)]
    for block in matrix.blocks():
        here = slice(block.start, block.start + len(block.value))
        choice = choose(block, matrix.prompt_ids[here], settings)
        choices.append(choice)
        prompts.append(choice.row + block.start)
        tied[here] = choice.tied
        reasons |= {block.start + row: reason for row, reason in choice.reasons.items()}
    chosen = _Chosen(
        np.concatenate(prompts),
        *(
            np.concatenate([np.empty(0, kind), *(getattr(choice, name) for choice in choices)])
            for name, kind in (("chosen", np.int64), ("rejected", np.int64), ("score", np.float64))
        ),
    )
    pairs, length_difference = _pairs(matrix, candidate_ids, chosen, settings)
    if settings.rule == "margin_pairs":
        stays = balanced(length_difference, pairs["pair_id"].to_pylist(), settings.seed)
        lost = np.setdiff1d(chosen.prompt, chosen.prompt[stays])
        reasons |= {int(prompt): (LENGTH_BALANCE, _one_sided(length_difference, chosen, prompt)) for prompt in lost}
        pairs, length_difference = pairs.filter(pa.array(stays)), length_difference[stays]
    order = sorted(reasons)
    dropped = pa.table(
        [
            matrix.prompt_ids.take(pa.array(order, pa.int64())),
            pa.array([reasons[prompt][0] for prompt in order], pa.string()),
            pa.array([reasons[prompt][1] for prompt in order], pa.string()),
        ],
        schema=DROPPED_SCHEMA,
    )
    stats = {
        "prompts": size,
        "pairs": pairs.num_rows,
        "dropped": len(reasons),
        "dropped_by_reason": dict(sorted(Counter(reason for reason, _ in reasons.values()).items())),
        **matrix.counts,
        "top_tie_share": _share(tied),
        **_statistics(pairs, length_difference, settings),
    }
    return SelectionResult(pairs, dropped, stats)


@dataclass(frozen=True)
class _Chosen:
    """M pairs over all blocks: prompt of the matrix, columns of its candidates (-1: none), S."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    score: np.ndarray


def _one_sided(length_difference: np.ndarray, chosen: _Chosen, prompt: int) -> str:
    mine = length_difference[np.searchsorted(chosen.prompt, prompt) : np.searchsorted(chosen.prompt, prompt, "right")]
    kind = "longer" if mine[0] > 0 else "shorter"
    return f"the chosen answer is the {kind} one in all {len(mine)}, as in too many pairs of the shard"


def _share(flags: np.ndarray) -> float | None:
    """The share of True; None for no flags."""
    return float(flags.mean()) if len(flags) else None


def _mean(values: np.ndarray) -> float | None:
    """The mean of what is known; None where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _pairs(
    matrix: ScoreMatrix, candidate_ids: pa.ChunkedArray, chosen: _Chosen, settings: SelectionSettings
) -> tuple[pa.Table, np.ndarray]:
    """The pairs table, and tokens of each chosen answer minus tokens of its rejected one (NaN without one)."""
    winner = matrix.starts[chosen.prompt] + chosen.chosen
    alone = settings.rule in RULES_WITHOUT_REJECTED
    loser = winner if alone else matrix.starts[chosen.prompt] + chosen.rejected

    def against_rejected(values: np.ndarray) -> np.ndarray:
        return np.full(len(values), np.nan) if alone else values

    confidence = matrix.sum_logp[winner], matrix.sum_logp[loser]
    if settings.confidence == "mean":
        confidence = confidence[0] / matrix.n_tokens[winner], confidence[1] / matrix.n_tokens[loser]
    chosen_ids = _take(candidate_ids, matrix, winner)
    rejected_ids = pa.nulls(len(loser), pa.string()) if alone else _take(candidate_ids, matrix, loser)
    pairs = pa.table(
        [
            pa.array(map(pair_id, chosen_ids.to_pylist(), rejected_ids.to_pylist()), pa.string()),
            matrix.prompt_ids.take(pa.array(chosen.prompt)),
            chosen_ids,
            rejected_ids,
            _nullable(matrix.mas[winner]),
            _nullable(chosen.score),
            _nullable(against_rejected(matrix.mas[winner] - matrix.mas[loser])),
            _nullable(against_rejected(confidence[0] - confidence[1])),
            pa.array(matrix.sum_logp[winner]),
            _nullable(against_rejected(matrix.sum_logp[loser])),
        ],
        schema=PAIRS_SCHEMA,
    )
    return pairs, against_rejected(matrix.n_tokens[winner] - matrix.n_tokens[loser])


def _statistics(pairs: pa.Table, length_difference: np.ndarray, settings: SelectionSettings) -> dict[str, float | None]:
    """Shares and means over the pairs."""
    alone = settings.rule in RULES_WITHOUT_REJECTED
    mas_gap, logp_gap = (pairs[name].to_numpy() for name in ("mas_gap", "logp_gap"))
    penalised = None
    if settings.rule in RULES_WITH_LOSER_SCORE:
        excess = (logp_gap if settings.rule == "m3p" else -logp_gap) - settings.delta
        penalised = _share((excess > 0) & (settings.alpha > 0))
    return {
        "active_penalty_share": penalised,
        "hard_negative_share": None if alone else _share(logp_gap < 0),
        "longer_rejected_share": None if alone else _share(length_difference < 0),
        "mean_mas_gap": _mean(mas_gap),
        "mean_logp_gap": _mean(logp_gap),
        "mean_length_difference": _mean(length_difference),
    }


def pair_id(chosen_id: str, rejected_id: str | None) -> str:
    """sha256 of both ids; the length in front keeps ("a", "bc") apart from ("ab", "c")."""
    return hashlib.sha256(f"{len(chosen_id)}:{chosen_id}{rejected_id or ''}".encode()).hexdigest()


def _nullable(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float64(), from_pandas=True)


def _take(candidate_ids: pa.ChunkedArray, matrix: ScoreMatrix, entries: np.ndarray) -> pa.Array:
    rows = entries if matrix.rows is None else matrix.rows[entries]
    return candidate_ids.take(pa.array(rows)).combine_chunks()


def _candidate_ids(table: pa.Table) -> pa.ChunkedArray:
    """The ids as strings, each there once: an id given twice would make two different answers one."""
    if "candidate_id" not in table.column_names:
        raise ScoreTableError(f"column candidate_id is missing; the table has {', '.join(table.column_names)}")
    ids = ids_as_strings(table.column("candidate_id"), "candidate_id")
    repeated = first_repeated(ids)
    if repeated:
        raise ScoreTableError(
            f"column candidate_id: {repeated[0]!r} is in rows {repeated[1]} and {repeated[2]}; "
            "ids must be unique in the whole table: prompt_id, a colon and k will do"
        )
    return ids
