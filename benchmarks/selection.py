"""Selection at the paper's size: 150K prompts x 32 candidates, 4.8M rows, in CPU seconds of one thread.

    python benchmarks/selection.py      # prints a table, writes benchmarks/selection.json

Generates two score tables in a temporary folder, one with a continuous MAS and one with a 1-5 judge alone (nearly every
prompt ties at the top). Measures, each in its own process and reading included: the reading alone (the floor of all
that looks at every row), one (alpha, delta) point, a grid of 24 points with the overlap of every two, all of
`m3po select` with ids and pairs, and means of the same pairs in DuckDB, whose arg_max leaves ties between losers open.
Then the grid over ten such tables, 48M rows, one by one. CPU seconds of the best repeat, not wall: other work on the
machine does not count. Peak memory of one repeat.

Then DuckDB, from an SQL text of its own that settles every tie, says which R_w and R_l each prompt has at each point of
the grid, and every one must be the grid's.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import machine

from m3po_dagster.method.selection import SelectionSettings, select_pairs, sweep
from m3po_dagster.method.selection_matrix import ScoreMatrix, read_scores
from m3po_dagster.method.selection_rules import choose
from m3po_dagster.method.selection_sweep import find_front, pick_points

ALPHAS = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0]
DELTAS = [0.0, 0.1, 0.2, 0.3]
POINTS = list(product(ALPHAS, DELTAS))
KINDS = ("continuous_mas", "integer_judge")
REPEATS = 5
MAX_GRID_CPU_SECONDS = 1.0
MAX_GRID_TO_READ = 6.0
MAX_GRID_MB = 600
MAX_SHARDS_CPU_SECONDS = 15.0
"""For ten shards."""


def write_scores(path: Path, prompts: int, candidates: int, integer_judge: bool, seed: int = 0) -> None:
    """A score table as the store lays it out: zstd, row groups of 16K rows, a prompt's candidates adjacent."""
    rng = np.random.default_rng(seed)
    rows = prompts * candidates
    ids = [f"{rng.integers(2**63):016x}" for _ in range(prompts)]
    quality = rng.normal(size=rows)
    judge = np.clip(np.round(3.5 + quality), 1, 5)
    mas = (judge - 1) / 4 if integer_judge else 0.5 * (judge - 1) / 4 + 0.5 * rng.beta(5, 3, rows)
    n_tokens = rng.integers(8, 200, rows).astype(np.int32)
    mean_logp = -rng.gamma(4, 0.1, rows) * np.exp(-0.2 * quality)
    table = pa.table(
        {
            "prompt_id": pa.array(ids).take(pa.array(np.repeat(np.arange(prompts), candidates))),
            "candidate_id": pa.array(f"{name}:{k}" for name in ids for k in range(candidates)),
            "k": np.tile(np.arange(candidates, dtype=np.int32), prompts),
            "mas": mas,
            "sum_logp": mean_logp * n_tokens,
            "n_tokens": n_tokens,
            "finish_reason": pa.array(["stop", "length"]).take(pa.array((rng.random(rows) < 0.02).astype(np.int8))),
        }
    )
    pq.write_table(table, path, compression="zstd", compression_level=3, row_group_size=1 << 14)


def read(paths: Sequence[Path]) -> dict:
    return {"rows": sum(read_scores(path, ids=False).num_rows for path in paths)}


def one_point(paths: Sequence[Path]) -> dict:
    matrix = ScoreMatrix.from_table(read_scores(paths[0], ids=False))
    settings = SelectionSettings()
    gaps = []
    for block in matrix.blocks():
        choice = choose(block, matrix.prompt_ids[block.start : block.start + len(block.value)], settings)
        gaps.append(block.value[choice.row, choice.chosen] - block.value[choice.row, choice.rejected])
    return {"mean_mas_gap": [float(np.concatenate(gaps).mean())]}


def grid(paths: Sequence[Path]) -> dict:
    found = sweep((read_scores(path, ids=False) for path in paths), ALPHAS, DELTAS)
    overlap = found.overlap["overlap"].to_numpy()
    return {
        "mean_mas_gap": found.points["mean_mas_gap"].to_pylist(),
        "distinct_points": found.points["identical_to"].null_count,
        "overlaps": len(overlap),
        "least_overlap": float(overlap.min()),
    }


def select(paths: Sequence[Path]) -> dict:
    return select_pairs(read_scores(paths[0]), SelectionSettings()).stats


DUCKDB = """
WITH c AS (SELECT prompt_id, mas, sum_logp / n_tokens AS conf, n_tokens, k, finish_reason FROM read_parquet('{path}')),
w AS (
  SELECT prompt_id, max({{'mas': mas, 'conf': conf, 'tokens': -n_tokens, 'k': -k}}) AS best FROM c
  WHERE finish_reason = 'stop' GROUP BY prompt_id
)
SELECT {columns} FROM (
  SELECT prompt_id, -any_value(best).k AS winner, {losers} FROM c JOIN w USING (prompt_id) WHERE best.mas > mas
  GROUP BY prompt_id
)
"""
SCORE = "(best.mas - mas) - {alpha} * greatest(0, (best.conf - conf) - {delta})"
GAP = f"arg_max(best.mas - mas, {SCORE}) AS loser{{index}}"
LOSER = f"-max({{{{'s': {SCORE}, 'conf': conf, 'tokens': -n_tokens, 'k': -k}}}}).k AS loser{{index}}"


def _duckdb(path: Path, select: str, loser: str, points: list[tuple[float, float]]) -> pa.Table:
    """Both steps of selection in SQL; `select` says what of each prompt's winner and losers is wanted."""
    losers = [loser.format(alpha=alpha, delta=delta, index=index) for index, (alpha, delta) in enumerate(points)]
    with duckdb.connect() as connection:
        connection.execute("SET threads = 1")
        return connection.sql(DUCKDB.format(path=path, columns=select, losers=", ".join(losers))).to_arrow_table()


def _duckdb_means(path: Path, points: list[tuple[float, float]]) -> dict:
    means = ", ".join(f"avg(loser{index})" for index in range(len(points)))
    return {"mean_mas_gap": list(_duckdb(path, means, GAP, points).to_pylist()[0].values())}


def duckdb_one_point(paths: Sequence[Path]) -> dict:
    return _duckdb_means(paths[0], [(0.5, 0.1)])


def duckdb_grid(paths: Sequence[Path]) -> dict:
    return _duckdb_means(paths[0], POINTS)


def pairs_in_duckdb(path: Path) -> pa.Table:
    """prompt_id, k of R_w, and of R_l at each point: loser0, loser1 and so on. Every tie is settled by the SQL text."""
    return _duckdb(path, "*", LOSER, POINTS)


def pairs_of_the_grid(path: Path) -> pa.Table:
    """The same by what `sweep` is made of. In these tables k is the place of a candidate in its prompt."""
    matrix = ScoreMatrix.from_table(read_scores(path, ids=False))
    points = [SelectionSettings(alpha=alpha, delta=delta) for alpha, delta in POINTS]
    prompts, winners, losers = [], [], []
    for block in matrix.blocks():
        front, paired, _ = find_front(block, points[0])
        prompts.append(block.start + paired)
        winners.append(front.winner)
        rows = np.arange(len(paired))
        losers.append([front.column[rows, place] for place in pick_points(front, points)])
    ids = matrix.prompt_ids.take(pa.array(np.concatenate(prompts)))
    columns = {f"loser{index}": np.concatenate(columns) for index, columns in enumerate(zip(*losers, strict=True))}
    return pa.table({"prompt_id": ids, "winner": np.concatenate(winners), **columns})


def differing(path: Path) -> dict:
    """How many pairs there are over all points of the grid, and how many of them DuckDB has otherwise or not at all."""
    ours, theirs = (table.sort_by("prompt_id") for table in (pairs_of_the_grid(path), pairs_in_duckdb(path)))
    total = ours.num_rows * len(POINTS)
    if not ours["prompt_id"].combine_chunks().equals(theirs["prompt_id"].combine_chunks()):
        return {"pairs": total, "differing": total, "why": "other prompts have a pair"}
    same_winner = ours["winner"].to_numpy() == theirs["winner"].to_numpy()
    names = [f"loser{index}" for index in range(len(POINTS))]
    same = sum(int((same_winner & (ours[name].to_numpy() == theirs[name].to_numpy())).sum()) for name in names)
    return {"pairs": total, "differing": total - same}


MEASURES: dict[str, tuple[Callable[[Sequence[Path]], dict], int]] = {
    "read": (read, REPEATS),
    "one_point": (one_point, REPEATS),
    "grid": (grid, REPEATS),
    "select": (select, 2),
    "duckdb_one_point": (duckdb_one_point, 2),
    "duckdb_grid": (duckdb_grid, 2),
}


def measure(name: str, paths: Sequence[Path]) -> dict:
    """Best CPU seconds of the repeats, the peak memory of the first (in MB), and the result for comparison."""
    pa.set_cpu_count(1)
    work, repeats = MEASURES[name]
    seconds, peaks = [], []
    for _ in range(repeats if len(paths) == 1 else 1):
        start = time.process_time()
        result = work(paths)
        seconds.append(time.process_time() - start)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
    return {"cpu_s": min(seconds), "peak_memory_mb": peaks[0], "result": result}


def apart(*arguments: object) -> str:
    """This script in a process of its own: a child's peak memory starts from what its parent held."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def run(prompts: int, candidates: int, shards: int) -> dict:
    """Measure everything; raises AssertionError where numpy and DuckDB disagree."""
    report = {"machine": machine(), "prompts": prompts, "candidates": candidates, "points": len(POINTS)}
    shape = ["--prompts", prompts, "--candidates", candidates]
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            path = Path(folder) / f"{kind}.parquet"
            apart("--write", kind, "--path", path, *shape)
            figures = {name: json.loads(apart("--measure", name, "--path", path)) for name in MEASURES}
            results = {name: figure.pop("result") for name, figure in figures.items()}
            for name in ("one_point", "grid"):
                assert np.allclose(results[name]["mean_mas_gap"], results[f"duckdb_{name}"]["mean_mas_gap"], atol=1e-9)
            compared = json.loads(apart("--differing", "--path", path))
            assert compared["differing"] == 0, compared
            floor = figures["read"]["cpu_s"]
            for figure in figures.values():
                figure["times_read"] = figure["cpu_s"] / floor
            report[kind] = {
                "file_mb": path.stat().st_size / 1e6,
                "top_tie_share": results["select"]["top_tie_share"],
                "distinct_points": results["grid"]["distinct_points"],
                "overlaps": results["grid"]["overlaps"],
                "least_overlap": results["grid"]["least_overlap"],
                "pairs_compared_with_duckdb": compared["pairs"],
                "pairs_that_differ": compared["differing"],
                "figures": figures,
                "within_bounds": figures["grid"]["cpu_s"] <= MAX_GRID_CPU_SECONDS
                and figures["grid"]["times_read"] <= MAX_GRID_TO_READ
                and figures["grid"]["peak_memory_mb"] < MAX_GRID_MB,
            }
            path.unlink()
    if shards:
        report["sharded"] = run_shards(shards, shape)
    return report


def run_shards(shards: int, shape: Sequence[object]) -> dict:
    """The reading and the grid over many shards, one after the other, once each."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.parquet" for number in range(shards)]
        for number, path in enumerate(paths):
            apart("--write", KINDS[0], "--path", path, "--seed", number, *shape)
        figures = {name: json.loads(apart("--measure", name, "--path", *paths)) for name in ("read", "grid")}
        rows = figures["read"].pop("result")["rows"]
        distinct = figures["grid"].pop("result")["distinct_points"]
        for figure in figures.values():
            figure["times_read"] = figure["cpu_s"] / figures["read"]["cpu_s"]
        return {
            "rows": rows,
            "shards": shards,
            "file_mb": sum(path.stat().st_size for path in paths) / 1e6,
            "distinct_points": distinct,
            "figures": figures,
            "within_bounds": figures["grid"]["cpu_s"] <= MAX_SHARDS_CPU_SECONDS
            and figures["grid"]["peak_memory_mb"] < MAX_GRID_MB,
        }


def show(report: dict) -> None:
    """The table a person reads."""
    print(f"{report['prompts']:,} prompts x {report['candidates']} candidates; {json.dumps(report['machine'])}")
    for kind in KINDS:
        part = report[kind]
        print(f"\n{kind}: {part['file_mb']:.0f} MB, {part['top_tie_share']:.0%} of the prompts tie at the top")
        show_figures(part["figures"])
        verdict = "within" if part["within_bounds"] else "OUTSIDE"
        bounds = f"{MAX_GRID_CPU_SECONDS:g} s, {MAX_GRID_TO_READ:g} x read and {MAX_GRID_MB} MB"
        print(f"{report['points']}-point grid, {part['overlaps']} overlaps: {verdict} {bounds}")
        print(f"DuckDB has {part['pairs_that_differ']} of {part['pairs_compared_with_duckdb']:,} pairs otherwise")
    part = report.get("sharded")
    if part:
        print(f"\n{part['rows']:,} rows in {part['shards']} shards, {part['file_mb']:.0f} MB")
        show_figures(part["figures"])
        print(f"{'within' if part['within_bounds'] else 'OUTSIDE'} {MAX_SHARDS_CPU_SECONDS:g} s and {MAX_GRID_MB} MB")


def show_figures(figures: dict[str, dict]) -> None:
    """A line a measure."""
    print(f"{'':18}{'CPU s':>8}{'x read':>8}{'peak MB':>9}")
    for name, figure in figures.items():
        print(f"{name:18}{figure['cpu_s']:8.2f}{figure['times_read']:8.1f}{figure['peak_memory_mb']:9.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=150_000)
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--shards", type=int, default=10, help="also the grid over so many tables; 0: not")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--measure", choices=list(MEASURES), help=argparse.SUPPRESS)
    parser.add_argument("--differing", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--write", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        judge = options.write == "integer_judge"
        write_scores(options.path[0], options.prompts, options.candidates, judge, options.seed)
    elif options.measure:
        print(json.dumps(measure(options.measure, options.path)))
    elif options.differing:
        print(json.dumps(differing(options.path[0])))
    else:
        report = run(options.prompts, options.candidates, options.shards)
        show(report)
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
