"""`m3po select`: preference pairs from anybody's table of scored candidates, without a study or a store."""

import json as json_format
import os
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from m3po_dagster.method.selection import ScoreTableError, SelectionResult, SelectionSettings, select_pairs
from m3po_dagster.method.selection_matrix import read_scores
from m3po_dagster.method.selection_settings import FIELDS_OF_RULE

PRINTED_COLUMNS = ("prompt_id", "chosen_id", "rejected_id", "m3p_score", "mas_gap", "logp_gap")
HEAD = 10


def select(
    scores: Annotated[
        Path,
        typer.Argument(
            help="Parquet file, one row a candidate: prompt_id, candidate_id, mas, sum_logp, n_tokens; "
            "optional k, text, finish_reason"
        ),
    ],
    alpha: Annotated[float | None, typer.Option(help="weight of the confidence penalty (default 0.5)")] = None,
    delta: Annotated[float | None, typer.Option(help="margin of the penalty in nats (default 0.1)")] = None,
    rule: Annotated[str, typer.Option(help=f"one of {', '.join(FIELDS_OF_RULE)}", show_default=True)] = "m3p",
    confidence: Annotated[str | None, typer.Option(help="log-prob per token, mean (default), or their sum")] = None,
    allow_bonus: Annotated[bool, typer.Option("--allow-bonus", help="let a likelier loser earn a bonus")] = False,
    min_gap: Annotated[float | None, typer.Option(help="a loser's MAS is lower by more than this (default 0)")] = None,
    min_chosen_mas: Annotated[float | None, typer.Option(help="no pair where the best MAS is lower")] = None,
    reward: Annotated[str | None, typer.Option(help="score column that reward_max_min ranks by")] = None,
    score: Annotated[
        str | None, typer.Option(help="score column that stands for mas: what that scorer alone would choose")
    ] = None,
    score_noise: Annotated[
        float | None, typer.Option(help="standard deviation of Gaussian noise on the score: a noisier judge")
    ] = None,
    noise_seed: Annotated[int | None, typer.Option(help="seed of that noise (default 0)")] = None,
    candidates: Annotated[int | None, typer.Option(help="only samples with k below this, as if N were smaller")] = None,
    max_length_difference: Annotated[
        int | None, typer.Option(help="a loser's tokens differ from R_w's by at most this many")
    ] = None,
    max_pairs: Annotated[int | None, typer.Option(help="most pairs of a prompt in margin_pairs (default 2)")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of vanilla, random and margin_pairs (default 0)")] = None,
    out: Annotated[
        Path | None, typer.Option(help="write the pairs to this Parquet file, dropped prompts to NAME.dropped.parquet")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print one JSON object: pairs, dropped, stats")] = False,
) -> None:
    """Choose preference pairs from a table of scored candidates, one a prompt or more (paper, section 3.5).

    Exit code 0, also when no prompt has a pair; 2 for a file, a table or an option that can't be used.
    """
    given = {
        "alpha": alpha,
        "delta": delta,
        "confidence": confidence,
        "allow_bonus": allow_bonus or None,
        "min_gap": min_gap,
        "min_chosen_mas": min_chosen_mas,
        "reward": reward,
        "score": score,
        "score_noise": score_noise,
        "noise_seed": noise_seed,
        "candidates": candidates,
        "max_length_difference": max_length_difference,
        "max_pairs": max_pairs,
        "seed": seed,
    }
    try:
        settings = SelectionSettings(rule=rule, **{name: value for name, value in given.items() if value is not None})
        if out is not None and out.resolve() == scores.resolve():
            raise ValueError(f"--out {out} is the score table itself: name another file")
        table = read_scores(scores, extra=settings.score_columns)
        result = select_pairs(table, settings)
        written = [] if out is None else _write(result, out)
    except ValidationError as error:
        _fail("; ".join(_sentence(detail) for detail in error.errors()))
    except ScoreTableError as error:
        _fail(f"{scores}: {error}")
    except (ValueError, OSError) as error:
        _fail(str(error))
    if json:
        typer.echo(json_format.dumps(_as_json(result), allow_nan=False))
    else:
        _show(result)
    for path in written:
        typer.echo(f"wrote {path}", err=json)


def _fail(message: str) -> None:
    typer.echo(f"m3po select: {message}", err=True)
    raise typer.Exit(2)


def _sentence(detail: Any) -> str:
    field = ".".join(str(part) for part in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    return f"{field} = {detail['input']}: {message}" if field else message


def _as_json(result: SelectionResult) -> dict[str, Any]:
    return {
        "pairs": result.pairs.select(PRINTED_COLUMNS).to_pylist(),
        "dropped": result.dropped.select(["prompt_id", "reason", "detail"]).to_pylist(),
        "stats": result.stats,
    }


def _write(result: SelectionResult, out: Path) -> list[Path]:
    """Both files whole or neither: written under other names first. Raises OSError naming the path."""
    tables = {out: result.pairs, out.with_name(f"{out.stem}.dropped.parquet"): result.dropped}
    drafts = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in tables}
    try:
        for path, table in tables.items():
            if path.is_dir():
                raise OSError(f"can't write {path}: it is a folder")
            if not path.parent.is_dir():
                raise OSError(f"can't write {path}: there is no folder {path.parent}")
            try:
                pq.write_table(table, drafts[path], compression="zstd", compression_level=3)
            except OSError as error:
                raise OSError(f"can't write {path}: {error.strerror or error}") from error
        for path, draft in drafts.items():
            os.replace(draft, path)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
    return list(tables)


def _show(result: SelectionResult) -> None:
    """The first pairs, then every figure of the statistics, then the reasons for no pair."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=1000)  # a reader at the other end of a pipe wants whole ids and one line a row
    stats = dict(result.stats)
    if result.pairs.num_rows:
        grid = Table(box=None, pad_edge=False)
        for name in PRINTED_COLUMNS:
            grid.add_column(name, overflow="fold")
        for pair in result.pairs.select(PRINTED_COLUMNS).slice(0, HEAD).to_pylist():
            grid.add_row(*(_cell(value) for value in pair.values()))
        console.print(grid)
        if result.pairs.num_rows > HEAD:
            console.print(f"... and {result.pairs.num_rows - HEAD} more")
        console.print()
    reasons = stats.pop("dropped_by_reason")
    figures = Table("figure", "value", box=None, pad_edge=False, show_header=False)
    for name, value in stats.items():
        figures.add_row(name, _cell(value))
        if name == "dropped":
            for reason, count in reasons.items():
                figures.add_row(f"  {reason}", str(count))
    console.print(figures)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
