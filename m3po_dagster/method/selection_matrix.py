"""The scores of many prompts' candidates, checked and laid out for selection (section 3.5).

A table holds one row a candidate, in any order. A `ScoreMatrix` holds the same figures flat, a prompt's candidates
adjacent and in the order of k, and hands them out in blocks of (prompts, N) that fit a processor's cache. Where every
prompt has N adjacent rows a block is a view; ragged prompts are padded block by block, so that one long prompt does not
widen all the others.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from m3po_dagster.method.selection_columns import cut_column, k_column, number_column, one_column, text_column
from m3po_dagster.method.selection_ids import ScoreTableError, first_null, id_type, ids_as_strings
from m3po_dagster.method.selection_noise import gaussian_noise
from m3po_dagster.method.selection_settings import MAS, SelectionSettings

REQUIRED_COLUMNS = ("prompt_id", "candidate_id", "mas", "sum_logp", "n_tokens")
OPTIONAL_COLUMNS = ("k", "text", "finish_reason")

# Rounding may leave the log-prob of a certain answer a hair above 0.
LARGEST_LOGP = 1e-3
BLOCK_ELEMENTS = 1 << 17


@dataclass(frozen=True)
class Block:
    """Some prompts as (prompts, N) arrays; the padding of a ragged prompt is unusable like an unscored candidate.

    Columns are in the order of k, so the first of equals is the one with the lower k.
    """

    start: int
    value: np.ndarray  # what the rule ranks by: MAS, a reward or a length; NaN when unusable
    sum_logp: np.ndarray  # 0 where unknown
    n_tokens: np.ndarray  # 1 where unknown
    can_win: np.ndarray | None  # usable and not cut; None: every candidate can
    text: np.ndarray | None  # equal codes: equal text after normalisation

    @cached_property
    def mean_logp(self) -> np.ndarray:
        """Log-prob per token in nats."""
        return self.sum_logp / self.n_tokens

    def confidence(self, scale: str) -> np.ndarray:
        """log P(R | I, Q) in nats, as `mean` per token or as `sum` (section 3.4)."""
        return self.mean_logp if scale == "mean" else self.sum_logp


@dataclass(frozen=True)
class ScoreMatrix:
    """Candidates of P prompts, flat: prompt p owns `lengths[p]` entries from `starts[p]` on, in the order of k."""

    prompt_ids: pa.StringArray
    starts: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray | None  # row of the table each entry comes from; None: the same
    mas: np.ndarray  # MAS or the score that stands for it, noise included; NaN when unscored
    value: np.ndarray  # what the rule ranks by; NaN when unusable
    sum_logp: np.ndarray
    n_tokens: np.ndarray
    can_win: np.ndarray | None
    text: np.ndarray | None
    counts: dict[str, int]  # candidates: all, unscored, without confidence, truncated; left out where there is a bound

    @classmethod
    def from_table(cls, table: pa.Table, settings: SelectionSettings | None = None) -> "ScoreMatrix":
        """Check and lay out a table with columns prompt_id, mas, sum_logp, n_tokens; optional k, text, finish_reason.

        The settings name the column that is ranked by, the noise on it (seeded by candidate_id) and how many of the
        samples there are to be. A candidate whose score is null, NaN, infinite or beyond 1e100 is unscored; one whose
        sum_logp or n_tokens is, is without confidence; one beyond settings.candidates is left out. All stay in the
        counts and are never chosen. Without k, the order of a prompt's rows stands in for it.

        Raises ScoreTableError: a missing or repeated column, a wrong type, a null id, a null or repeated k,
        n_tokens below 1, a log-prob above 0.
        """
        settings = SelectionSettings() if settings is None else settings
        prompt_ids, rows, starts = _layout(table)

        def figures(name: str) -> np.ndarray:
            return _ordered(number_column(table, name), rows)

        sum_logp, n_tokens = figures("sum_logp"), figures("n_tokens")
        stands_for_mas = settings.ranks_by == settings.score
        mas = figures(settings.score if stands_for_mas else MAS)
        if settings.score_noise:
            ids = ids_as_strings(one_column(table, "candidate_id"), "candidate_id")
            noise = settings.score_noise * gaussian_noise(ids, settings.noise_seed)
            mas = mas + _ordered(noise, rows)
        value = mas if stands_for_mas else figures(settings.ranks_by)
        _refuse(n_tokens < 1, rows, "n_tokens", n_tokens, "an answer has at least 1 token")
        _refuse(n_tokens > np.floor(n_tokens), rows, "n_tokens", n_tokens, "it must be a whole number")
        _refuse(sum_logp > LARGEST_LOGP, rows, "sum_logp", sum_logp, "a log-probability can't be above 0")
        truncated, text = cut_column(table), text_column(table)
        scored, confident = ~np.isnan(value), ~np.isnan(sum_logp + n_tokens)
        counts = {
            "candidates": table.num_rows,
            "unscored": int(np.count_nonzero(~scored)),
            "without_confidence": int(np.count_nonzero(~confident)),
            "truncated": 0 if truncated is None else int(np.count_nonzero(truncated)),
        }
        can_win = None if truncated is None else ~_ordered(truncated, rows)
        usable = scored & confident
        if settings.candidates is not None:
            beyond = _sample_numbers(table, rows, starts) >= settings.candidates
            counts["left_out"] = int(np.count_nonzero(beyond))
            usable &= ~beyond
        if not usable.all():
            can_win = usable if can_win is None else usable & can_win
            value = np.where(usable, value, np.nan)
            sum_logp, n_tokens = np.where(confident, sum_logp, 0.0), np.where(confident, n_tokens, 1.0)
        return cls(
            prompt_ids=prompt_ids,
            starts=starts[:-1],
            lengths=np.diff(starts),
            rows=rows,
            mas=mas,
            value=value,
            sum_logp=sum_logp,
            n_tokens=n_tokens,
            can_win=can_win,
            text=None if text is None else _ordered(text, rows),
            counts=counts,
        )

    def blocks(self) -> Iterator[Block]:
        """All prompts in order, in blocks of at most BLOCK_ELEMENTS padded elements (or one prompt)."""
        if not len(self.lengths):
            return
        if (self.lengths == self.lengths[0]).all():
            step = max(1, BLOCK_ELEMENTS // int(self.lengths[0]))
            for start in range(0, len(self.lengths), step):
                yield self._block(start, min(start + step, len(self.lengths)))
        else:
            yield from self._ragged_blocks(0, len(self.lengths))

    def _ragged_blocks(self, start: int, stop: int) -> Iterator[Block]:
        if stop - start == 1 or (stop - start) * int(self.lengths[start:stop].max()) <= BLOCK_ELEMENTS:
            yield self._block(start, stop)
        else:
            middle = (start + stop) // 2
            yield from self._ragged_blocks(start, middle)
            yield from self._ragged_blocks(middle, stop)

    def _block(self, start: int, stop: int) -> Block:
        lengths = self.lengths[start:stop]
        width = int(lengths.max())
        flat = slice(int(self.starts[start]), int(self.starts[stop - 1] + lengths[-1]))
        filled = None if (lengths == width).all() else np.arange(width) < lengths[:, None]

        def padded(array: np.ndarray, padding: float) -> np.ndarray:
            if filled is None:
                return array[flat].reshape(-1, width)
            block = np.full(filled.shape, padding, dtype=array.dtype)
            block[filled] = array[flat]
            return block

        can_win = self.can_win
        if can_win is not None:
            can_win = padded(can_win, False)
        elif filled is not None:
            can_win = filled
        return Block(
            start=start,
            value=padded(self.value, np.nan),
            sum_logp=padded(self.sum_logp, 0.0),
            n_tokens=padded(self.n_tokens, 1.0),
            can_win=can_win,
            text=None if self.text is None else padded(self.text, -1),
        )


def read_scores(path: Path, extra: Iterable[str] = (), ids: bool = True) -> pa.Table:
    """The columns of a Parquet file that selection uses, and `extra` ones; `ids=False` leaves out candidate_id.

    Raises FileNotFoundError, and ScoreTableError when it is no readable Parquet file or lacks a column.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: it is a folder, not a file" if path.is_dir() else f"{path}: no such file")
    wanted = {*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS, *extra} - (set() if ids else {"candidate_id"})
    try:
        # Read as a dictionary: prompts repeat once a candidate, and decoding each copy costs more than all the scores.
        schema = pq.read_schema(path)
        names = schema.names
        repeating = [
            field.name for field in schema if field.name in ("prompt_id", "finish_reason") and field.type == pa.string()
        ]
        with pq.ParquetFile(path, read_dictionary=repeating, pre_buffer=False) as file:
            missing = sorted(({*REQUIRED_COLUMNS, *extra} & wanted) - set(names))
            if missing:
                raise ScoreTableError(f"column {', '.join(missing)} is missing; the file has {', '.join(names)}")
            repeated = sorted({name for name in names if names.count(name) > 1 and name in wanted})
            if repeated:
                raise ScoreTableError(f"column {repeated[0]} is there {names.count(repeated[0])} times")
            return file.read(columns=[name for name in names if name in wanted], use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise ScoreTableError(f"not a readable Parquet file ({str(error).splitlines()[0].rstrip('.')})") from error


def _ordered(array: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    return array if rows is None else array[rows]


def _refuse(wrong: np.ndarray, rows: np.ndarray | None, name: str, values: np.ndarray, why: str) -> None:
    if wrong.any():
        at = np.flatnonzero(wrong)
        entry = int(at[0] if rows is None else at[np.argmin(rows[at])])
        row = entry if rows is None else int(rows[entry])
        raise ScoreTableError(f"column {name}, row {row}: {values[entry]:g}; {why} ({len(at)} such rows)")


def _layout(table: pa.Table) -> tuple[pa.StringArray, np.ndarray | None, np.ndarray]:
    """The prompts' ids, the table row of each entry (None: the same), and where each prompt starts, the end as last."""
    column = one_column(table, "prompt_id")
    kind = id_type(column.type, "prompt_id")
    if not pa.types.is_dictionary(column.type):
        column = pc.dictionary_encode(column.cast(kind))
    array = column.combine_chunks()
    if array.null_count:
        raise ScoreTableError(f"column prompt_id, row {first_null(array)}: the id is null; every row needs one")
    codes, k = array.indices.to_numpy(), k_column(table)
    runs = np.append(0, np.flatnonzero(codes[1:] != codes[:-1]) + 1)[: len(codes)]
    # A dictionary may hold an id twice, hold unused ones, or be in another order than the rows: number by first row.
    names = pc.dictionary_encode(ids_as_strings(pa.chunked_array([array.dictionary]), "prompt_id")).combine_chunks()
    run_codes = names.indices.to_numpy()[codes[runs]]
    seen, first = np.unique(run_codes, return_index=True)
    in_order = np.argsort(first)
    prompt_ids = names.dictionary.take(pa.array(seen[in_order]))
    adjacent = len(seen) == len(runs)
    if adjacent and (k is None or _ascending(k, runs)):
        return prompt_ids, None, np.append(runs, len(codes))
    number = np.empty(len(names.dictionary), dtype=np.int64)
    number[seen[in_order]] = np.arange(len(seen))
    prompts = np.repeat(number[run_codes], np.diff(np.append(runs, len(codes))))
    rows = np.argsort(prompts, kind="stable") if k is None else np.lexsort((k, prompts))
    starts = np.append(0, np.cumsum(np.bincount(prompts)))
    if k is not None and not _ascending(k[rows], starts[:-1]):
        same = np.flatnonzero((np.diff(prompts[rows]) == 0) & (np.diff(k[rows]) == 0))[0]
        pair = sorted((int(rows[same]), int(rows[same + 1])))
        raise ScoreTableError(f"column k: rows {pair[0]} and {pair[1]} of one prompt both have k = {k[pair[0]]}")
    return prompt_ids, rows, starts


def _ascending(k: np.ndarray, starts: np.ndarray) -> bool:
    """Whether k strictly rises inside every prompt."""
    falls = k[1:] <= k[:-1]
    falls[starts[1:] - 1] = False
    return not falls.any()


def _sample_numbers(table: pa.Table, rows: np.ndarray | None, starts: np.ndarray) -> np.ndarray:
    """k of each entry, or its place in its prompt where the table has none."""
    k = k_column(table)
    if k is None:
        return np.arange(table.num_rows) - np.repeat(starts[:-1], np.diff(starts))
    return _ordered(k, rows)
