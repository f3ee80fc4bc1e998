"""Selection at the paper's size: 150K prompts x 32 candidates, 4.8M rows, in CPU seconds of one thread.

    python benchmarks/selection.py              # prints a table, writes benchmarks/selection.json

Generates two score tables in a temporary folder, one with a continuous MAS and one with a 1-5 judge alone (nearly every
prompt ties at the top). Measures, each in its own process and reading included: the reading alone (the floor of all
that looks at every row), one (alpha, delta) point, a grid of 24 points, all of `m3po select` with ids and pairs, and
the same in DuckDB, whose arg_max leaves ties between losers open. CPU seconds of the best repeat, not wall: other work
on the machine does not count. Peak memory of one repeat.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import machine

from m3po_dagster.method.selection import SelectionSettings, select_pairs, sweep
from m3po_dagster.method.selection_matrix import ScoreMatrix, read_scores
from m3po_dagster.method.selection_rules import choose

ALPHAS = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0]
DELTAS = [0.0, 0.1, 0.2, 0.3]
KINDS = ("continuous_mas", "integer_judge")
REPEATS = 5
MAX_GRID_CPU_SECONDS = 1.0
MAX_GRID_TO_READ = 6.0


def write_scores(path: Path, prompts: int, candidates: int, integer_judge: bool) -> None:
    """A score table as the store lays it out: zstd, row groups of 16K rows, a prompt's candidates adjacent."""
    rng = np.random.default_rng(0)
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


def read(path: Path) -> dict:
    return {"rows": read_scores(path, ids=False).num_rows}


def one_point(path: Path) -> dict:
    matrix = ScoreMatrix.from_table(read_scores(path, ids=False))
    settings = SelectionSettings()
    gaps = []
    for block in matrix.blocks():
        choice = choose(block, matrix.prompt_ids[block.start : block.start + len(block.value)], settings)
        row = np.flatnonzero(choice.chosen >= 0)
        gaps.append(block.value[row, choice.chosen[row]] - block.value[row, choice.rejected[row]])
    return {"mean_mas_gap": [float(np.concatenate(gaps).mean())]}


def grid(path: Path) -> dict:
    points = sweep(read_scores(path, ids=False), ALPHAS, DELTAS)
    distinct = points["identical_to"].null_count
    return {"mean_mas_gap": points["mean_mas_gap"].to_pylist(), "distinct_points": distinct}


def select(path: Path) -> dict:
    return select_pairs(read_scores(path), SelectionSettings()).stats


DUCKDB = """
WITH c AS (SELECT prompt_id, mas, sum_logp / n_tokens AS conf, n_tokens, k, finish_reason FROM read_parquet('{path}')),
w AS (
  SELECT prompt_id, max({{'mas': mas, 'conf': conf, 'tokens': -n_tokens, 'k': -k}}) AS best FROM c
  WHERE finish_reason = 'stop' GROUP BY prompt_id
)
SELECT {means} FROM (
  SELECT {losers} FROM c JOIN w USING (prompt_id) WHERE best.mas > mas GROUP BY prompt_id
)
"""
LOSER = "arg_max(best.mas - mas, (best.mas - mas) - {alpha} * greatest(0, (best.conf - conf) - {delta})) AS gap{index}"


def _duckdb(path: Path, points: list[tuple[float, float]]) -> dict:
    losers = [LOSER.format(alpha=alpha, delta=delta, index=index) for index, (alpha, delta) in enumerate(points)]
    means = [f"avg(gap{index})" for index in range(len(points))]
    with duckdb.connect() as connection:
        connection.execute("SET threads = 1")
        query = DUCKDB.format(path=path, means=", ".join(means), losers=", ".join(losers))
        return {"mean_mas_gap": list(connection.execute(query).fetchone())}


def duckdb_one_point(path: Path) -> dict:
    return _duckdb(path, [(0.5, 0.1)])


def duckdb_grid(path: Path) -> dict:
    return _duckdb(path, [(alpha, delta) for alpha in ALPHAS for delta in DELTAS])


MEASURES: dict[str, tuple[Callable[[Path], dict], int]] = {
    "read": (read, REPEATS),
    "one_point": (one_point, REPEATS),
    "grid": (grid, REPEATS),
    "select": (select, 2),
    "duckdb_one_point": (duckdb_one_point, 2),
    "duckdb_grid": (duckdb_grid, 2),
}


def measure(name: str, path: Path) -> dict:
    """Best CPU seconds of the repeats, the peak memory of the first (in MB), and the result for comparison."""
    pa.set_cpu_count(1)
    work, repeats = MEASURES[name]
    seconds, peaks = [], []
    for _ in range(repeats):
        start = time.process_time()
        result = work(path)
        seconds.append(time.process_time() - start)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
    return {"cpu_s": min(seconds), "peak_memory_mb": peaks[0], "result": result}


def run(prompts: int, candidates: int) -> dict:
    """Measure everything; raises AssertionError where numpy and DuckDB disagree."""
    report = {"machine": machine(), "prompts": prompts, "candidates": candidates, "points": len(ALPHAS) * len(DELTAS)}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            path = Path(folder) / f"{kind}.parquet"
            # In a process of its own: a child's peak memory starts from what its parent held.
            shape = ["--prompts", str(prompts), "--candidates", str(candidates)]
            subprocess.run([sys.executable, __file__, "--write", kind, "--path", str(path), *shape], check=True)
            figures = {}
            for name in MEASURES:
                command = [sys.executable, __file__, "--measure", name, "--path", str(path)]
                figures[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            results = {name: figure.pop("result") for name, figure in figures.items()}
            for name in ("one_point", "grid"):
                assert np.allclose(results[name]["mean_mas_gap"], results[f"duckdb_{name}"]["mean_mas_gap"], atol=1e-9)
            floor = figures["read"]["cpu_s"]
            for figure in figures.values():
                figure["times_read"] = figure["cpu_s"] / floor
            report[kind] = {
                "file_mb": path.stat().st_size / 1e6,
                "top_tie_share": results["select"]["top_tie_share"],
                "distinct_points": results["grid"]["distinct_points"],
                "figures": figures,
                "within_bounds": figures["grid"]["cpu_s"] <= MAX_GRID_CPU_SECONDS
                and figures["grid"]["times_read"] <= MAX_GRID_TO_READ,
            }
    return report


def show(report: dict) -> None:
    """The table a person reads."""
    print(f"{report['prompts']:,} prompts x {report['candidates']} candidates; {json.dumps(report['machine'])}")
    for kind in KINDS:
        part = report[kind]
        print(f"\n{kind}: {part['file_mb']:.0f} MB, {part['top_tie_share']:.0%} of the prompts tie at the top")
        print(f"{'':18}{'CPU s':>8}{'x read':>8}{'peak MB':>9}")
        for name, figure in part["figures"].items():
            print(f"{name:18}{figure['cpu_s']:8.2f}{figure['times_read']:8.1f}{figure['peak_memory_mb']:9.0f}")
        verdict = "within" if part["within_bounds"] else "OUTSIDE"
        print(f"{report['points']}-point grid: {verdict} {MAX_GRID_CPU_SECONDS:g} s and {MAX_GRID_TO_READ:g} x read")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=150_000)
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--measure", choices=list(MEASURES), help=argparse.SUPPRESS)
    parser.add_argument("--write", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write_scores(options.path, options.prompts, options.candidates, options.write == "integer_judge")
        return
    if options.measure:
        print(json.dumps(measure(options.measure, options.path)))
        return
    report = run(options.prompts, options.candidates)
    show(report)
    options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
