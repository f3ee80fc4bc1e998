"""Adaptive N: samples are drawn in rounds until a prompt's pair is settled (paper, section 4.9).

After each round the M3P selection (section 3.5) picks R_w and R_l from all samples so far, with the score of a cheap
internal scorer standing in for MAS and the log-probs recorded while sampling. A prompt stops when its last rounds
changed nothing that matters, or brought no answer that was not there before.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa

from m3po_dagster.method.alignment.scorer import Batch
from m3po_dagster.method.generation.candidates import Candidate, distinct
from m3po_dagster.method.generation.samples import Sample
from m3po_dagster.method.generation.settings import RoundSettings
from m3po_dagster.method.prompt import Prompt
from m3po_dagster.method.selection_matrix import Block, ScoreMatrix
from m3po_dagster.method.selection_rules import choose
from m3po_dagster.method.selection_settings import SelectionSettings
from m3po_dagster.method.selection_winners import find_winners

SETTLED, NO_NEW_ANSWER, MAX = "pair settled", "no new answer", "max reached"


@dataclass(frozen=True)
class Lead:
    """How a prompt's candidates stand after a round.

    `pair`: k of R_w and R_l, None without a pair. `top_gap`: MAS(R_w) less the MAS of the next that could be R_w;
    `s_gap`: S(R_l) less the S of the next loser. Where there is no next, its score counts as 0.
    """

    distinct: int
    pair: tuple[int, int] | None
    top_gap: float = 0.0
    s_gap: float = 0.0


def settled(history: Sequence[Lead], settings: RoundSettings) -> str | None:
    """Why a prompt with these leads, one a round, needs no further round; None when it does.

    Each of its last `patience` rounds must have been quiet: it kept the pair and moved neither gap by more than
    `tolerance`, or it brought no new distinct answer.
    """
    rounds = list(pairwise(history))[-settings.patience :]
    if len(rounds) < settings.patience:
        return None
    if all(new.distinct == old.distinct for old, new in rounds):
        return NO_NEW_ANSWER
    return SETTLED if all(_quiet(old, new, settings.tolerance) for old, new in rounds) else None


def _quiet(old: Lead, new: Lead, tolerance: float) -> bool:
    if new.distinct == old.distinct:
        return True
    moved = max(abs(new.top_gap - old.top_gap), abs(new.s_gap - old.s_gap))
    return new.pair is not None and new.pair == old.pair and moved <= tolerance


def leads(
    candidates: Sequence[Sequence[Candidate]], scores: Sequence[Sequence[float | None]], settings: RoundSettings
) -> list[Lead]:
    """The lead of each prompt, from its distinct candidates in the order of k and their scores (None: unscored)."""
    flat = [one for some in candidates for one in some]
    columns = {
        "prompt_id": pa.array([str(p) for p, some in enumerate(candidates) for _ in some], pa.string()),
        "k": pa.array([one.k for one in flat], pa.int32()),
        "text": pa.array([one.text for one in flat], pa.string()),
        "finish_reason": pa.array([one.finish_reason for one in flat], pa.string()),
        "mas": pa.array([score for some in scores for score in some], pa.float64()),
        "sum_logp": pa.array([one.sum_logp for one in flat], pa.float64()),
        "n_tokens": pa.array([len(one.token_ids) for one in flat], pa.int32()),
    }
    matrix = ScoreMatrix.from_table(pa.table(columns))
    selection = SelectionSettings(rule="m3p", alpha=settings.alpha, delta=settings.delta)
    found: list[Lead] = []
    for block in matrix.blocks():
        here = slice(block.start, block.start + len(block.value))
        found += _leads(block, matrix.prompt_ids[here], candidates[here], selection)
    return found


def _leads(
    block: Block, prompt_ids: pa.StringArray, candidates: Sequence[Sequence[Candidate]], selection: SelectionSettings
) -> list[Lead]:
    choice = choose(block, prompt_ids, selection)
    second = find_winners(_without(block, choice.row, choice.chosen), selection)
    next_loser = choose(_without(block, choice.row, choice.rejected), prompt_ids, selection)
    next_score = np.zeros(len(block.value))
    next_score[next_loser.row] = next_loser.score
    found = [Lead(len(some), None) for some in candidates]
    for row, w, loser, score in zip(choice.row, choice.chosen, choice.rejected, choice.score, strict=True):
        next_top = block.value[row, second.column[row]] if second.found[row] else 0.0
        found[row] = Lead(
            len(candidates[row]),
            (candidates[row][w].k, candidates[row][loser].k),
            float(block.value[row, w] - next_top),
            float(score - next_score[row]),
        )
    return found


def _without(block: Block, rows: np.ndarray, columns: np.ndarray) -> Block:
    """The block with one candidate of each of these rows made unusable."""
    value = block.value.copy()
    can_win = np.ones(value.shape, dtype=bool) if block.can_win is None else block.can_win.copy()
    value[rows, columns], can_win[rows, columns] = np.nan, False
    return replace(block, value=value, can_win=can_win)


@dataclass
class _Prompt:
    drawn: int = 0
    scores: dict[str, float | None] = field(default_factory=dict)
    history: list[Lead] = field(default_factory=list)


class Rounds:
    """Says after each round which prompts go on; an engine takes it as `more`. One call at a time.

    `score` gives a row with `mas` an answer (`MasScorer.score`); each distinct answer of a prompt is scored once. An
    engine may begin prompts again from their first round, as after a batch that did not fit in memory.
    """

    def __init__(
        self, prompts: Sequence[Prompt], settings: RoundSettings, score: Callable[[Batch], Sequence[Mapping]]
    ) -> None:
        self._prompts, self._settings, self._score = prompts, settings, score
        self._open: dict[int, _Prompt] = {}
        self._stopped: dict[int, str] = {}

    def __call__(self, drawn: Sequence[tuple[int, Sequence[Sample]]]) -> list[bool]:
        """For each (index of a prompt, all its samples so far) whether another round is to be drawn."""
        candidates = [distinct(samples) for _, samples in drawn]
        known = [self._open.setdefault(i, _Prompt()) for i, _ in drawn]
        new = [
            [one.text for one in some if one.text not in prompt.scores]
            for some, prompt in zip(candidates, known, strict=True)
        ]
        rows = iter(self._score([(self._prompts[i], texts) for (i, _), texts in zip(drawn, new, strict=True) if texts]))
        for prompt, texts in zip(known, new, strict=True):
            prompt.scores |= {text: next(rows)["mas"] for text in texts}
        scores = [[prompt.scores[one.text] for one in some] for some, prompt in zip(candidates, known, strict=True)]
        go_on = []
        for (i, samples), prompt, lead in zip(drawn, known, leads(candidates, scores, self._settings), strict=True):
            if len(samples) <= prompt.drawn:
                prompt.history.clear()
            prompt.drawn = len(samples)
            prompt.history.append(lead)
            why = settled(prompt.history, self._settings)
            self._stopped.pop(i, None)
            if why:
                self._stopped[i] = why
                del self._open[i]
            go_on.append(why is None)
        return go_on

    def why_stopped(self, i: int) -> str:
        """Why prompt `i`, whose samples are all drawn, got no more; it is forgotten then."""
        self._open.pop(i, None)
        return self._stopped.pop(i, MAX)


def saved(samples: Sequence[int], tokens: Sequence[int], most: int) -> dict[str, float | int]:
    """What stopping early saved against `most` samples for every prompt, given samples and tokens of each prompt.

    The tokens that were not drawn are estimated: a prompt's further answers are as long as those it has.
    """
    drawn, spent = np.asarray(samples, dtype=np.int64), np.asarray(tokens, dtype=np.float64)
    all_samples, all_tokens = most * len(drawn), float((spent / np.maximum(drawn, 1) * most).sum())
    return {
        "samples": int(drawn.sum()),
        "samples at max": all_samples,
        "share of samples saved": 1 - int(drawn.sum()) / all_samples if all_samples else 0.0,
        "tokens": int(spent.sum()),
        "tokens at max, estimated": round(all_tokens),
        "share of tokens saved, estimated": 1 - float(spent.sum()) / all_tokens if all_tokens else 0.0,
    }
