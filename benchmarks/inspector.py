"""The inspector's views over a study of the paper's size: 150K prompts x 32 candidates, through HTTP on loopback.

    python benchmarks/inspector.py                   # prints a table, writes benchmarks/inspector.json
    python benchmarks/inspector.py --prompts 3000    # smaller; prints only

Writes a study into a temporary folder: a real artifact store, a real event log of Dagster that names what is current,
texts, token ids and token log-probs of realistic length. Starts `m3po inspect` on it, once with no index and once more
with the index of the first start, and asks for each view many times with other parameters each time. A view's figure is
its p95 against the budget of 200 ms. The same questions are put to DuckDB over the same Parquet files, with one thread
and no index, for the ratio.
"""

import argparse
import http.client
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import dagster as dg
import duckdb
import numpy as np
import pyarrow as pa
import yaml
from machine import machine
from PIL import Image

from m3po_dagster.current import DATA_VERSION_TAG, FINGERPRINT_METADATA
from m3po_dagster.method.selection import SelectionSettings, select_pairs
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.fingerprint import fingerprint
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.storage.tables import (
    ANSWERS,
    CANDIDATES,
    DROPPED,
    FILTERED_INSTRUCTIONS,
    LOGPROBS,
    PAIRS,
    SCORES,
    TableSchema,
    mas_schema,
)

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "m3po_dagster" / "world" / "weights"
PROMPTS, CANDIDATES_A_PROMPT, SHARDS, QUESTIONS = 150_000, 32, 24, 9_000
BUDGET_MS = 200.0
REQUESTS = 60
WORDS = (ROOT / "docs" / "method.md").read_text(encoding="utf-8").split()
MAS = mas_schema(["judge", "clip"], ["accuracy", "adherence", "relevance"])
MADE = {"format": "llava_instruct", "path": "./made.json", "image_root": "./images"}
RECIPES = {
    "base": {},
    "vanilla": {"selection": {"rule": "vanilla"}, "training": {"kind": "dpo"}},
    "m3po": {"selection": {"rule": "m3p", "alpha": 0.5, "delta": 0.1}, "training": {"kind": "dpo"}},
}


class Made:
    """A study folder in the making: commits artifacts and tells the event log."""

    def __init__(self, folder: Path, store: ArtifactStore, instance: dg.DagsterInstance) -> None:
        self.folder, self.store, self.instance = folder, store, instance

    def commit(
        self,
        asset: str,
        partition: str,
        tables: dict[str, tuple[pa.Table, TableSchema]],
        inputs: Sequence[Artifact] = (),
    ) -> Artifact:
        """Commits tables under a fingerprint of their inputs and makes them current."""
        made_from = {
            f"{item.key.asset}[{item.key.partition}]": {**item.key._asdict(), "data_version": item.data_version}
            for item in inputs
        }
        versions = {name: item["data_version"] for name, item in made_from.items()}
        key = fingerprint(asset, partition, "1", {}, versions)
        with self.store.open(asset, partition, key) as draft:
            artifact = draft.commit(
                {name: (table.cast(schema.schema), schema) for name, (table, schema) in tables.items()},
                code_version="1",
                settings={},
                inputs=made_from,
                metadata={"checks": {}},
            )
        self.instance.report_runless_asset_event(
            dg.AssetMaterialization(
                asset,
                partition=partition or None,
                metadata={FINGERPRINT_METADATA: key},
                tags={DATA_VERSION_TAG: artifact.data_version},
            )
        )
        return artifact


def texts(rng: np.random.Generator, count: int, words: int) -> pa.Array:
    """`count` texts of about `words` words, no two alike."""
    pool = pa.array([" ".join(rng.choice(WORDS, words // 2)) for _ in range(5000)])
    halves = [pool.take(pa.array(rng.integers(0, len(pool), count))) for _ in range(2)]
    number = pa.array(np.arange(count)).cast(pa.string())
    return pa.compute.binary_join_element_wise(*halves, number, " ")


def write_shard(made: Made, shard: str, prompts: int, candidates: int, images: Sequence[str], seed: int) -> None:
    """All tables of a shard."""
    rng = np.random.default_rng(seed)
    ids = pa.array([f"{rng.integers(2**63):016x}{rng.integers(2**63):016x}" for _ in range(prompts)])
    questions = texts(rng, prompts, 12).to_pylist()
    filtered = made.commit(
        "filtered_instructions",
        shard,
        {
            "data": (
                pa.table(
                    {
                        "prompt_id": ids,
                        "image_name": [images[i % len(images)] for i in range(prompts)],
                        "image_uri": [images[i % len(images)] for i in range(prompts)],
                        "image_sha256": ids,
                        "width": np.full(prompts, 96, np.int32),
                        "height": np.full(prompts, 96, np.int32),
                        "messages": pa.array(
                            [[{"role": "user", "text": text}] for text in questions],
                            FILTERED_INSTRUCTIONS.schema.field("messages").type,
                        ),
                        "reference": questions,
                        "source": ["made"] * prompts,
                        "source_id": ids,
                        "turn": np.zeros(prompts, np.int32),
                    }
                ),
                FILTERED_INSTRUCTIONS,
            ),
            "dropped": (DROPPED.schema.empty_table(), DROPPED),
        },
    )
    rows = prompts * candidates
    owner = ids.take(pa.array(np.repeat(np.arange(prompts), candidates)))
    k = np.tile(np.arange(candidates, dtype=np.int32), prompts)
    candidate_id = pa.compute.binary_join_element_wise(owner, pa.array(k).cast(pa.string()), ":")
    n_tokens = rng.integers(20, 100, rows).astype(np.int32)
    offsets = np.append(0, np.cumsum(n_tokens)).astype(np.int32)
    total = int(offsets[-1])
    logps = -rng.gamma(0.5, 0.4, total).astype(np.float32)
    token_logps = pa.ListArray.from_arrays(offsets, pa.array(logps)).cast(CANDIDATES.schema.field("token_logps").type)
    sum_logp = np.add.reduceat(logps.astype(np.float64), offsets[:-1])
    known = {"candidate_id": candidate_id, "prompt_id": owner, "n_tokens": n_tokens, "sum_logp": sum_logp}
    known |= {"token_logps": token_logps, "eos_logp": pa.nulls(rows, pa.float64())}
    text, finish = (
        texts(rng, rows, 60),
        pa.array(["stop", "length"]).take(pa.array((rng.random(rows) < 0.02).astype(int))),
    )
    answers = pa.table(
        {
            **known,
            "k": k,
            "text": text,
            "token_ids": pa.ListArray.from_arrays(offsets, pa.array(rng.integers(5, 60, total).astype(np.int32))),
            "finish_reason": finish,
            "multiplicity": np.ones(rows, np.int32),
            "seed": np.zeros(rows, np.int64),
        }
    )
    sampled = made.commit(
        "candidates",
        shard,
        {
            "data": (answers.select(CANDIDATES.schema.names), CANDIDATES),
            "dropped": (DROPPED.schema.empty_table(), DROPPED),
        },
        [filtered],
    )
    figures = [name for name, kind in zip(MAS.schema.names, MAS.schema.types, strict=True) if kind == pa.float64()]
    scores = {name: np.round(rng.beta(5, 3, rows), 6) for name in figures}
    scores |= {"candidate_id": candidate_id, "prompt_id": owner, "status": ["scored"] * rows}
    scores["words"] = pa.nulls(rows, pa.string())
    mas = made.commit("mas_table", shard, {"data": (pa.table(scores).select(MAS.schema.names), MAS)}, [sampled])
    inside = pa.table({**known, "numerics": ["made"] * rows}).select(LOGPROBS.schema.names)
    logprobs = made.commit("logprob_table", shard, {"data": (inside, LOGPROBS)}, [sampled])
    for recipe, settings in RECIPES.items():
        if settings:
            table = pa.table({**known, "k": k, "finish_reason": finish, "mas": scores["mas"], "text": text})
            found = select_pairs(
                table.drop_columns(["token_logps", "eos_logp"]), SelectionSettings(**settings["selection"])
            )
            pairs = {
                "data": (found.pairs, PAIRS),
                "dropped": (found.dropped.rename_columns(DROPPED.schema.names), DROPPED),
            }
            made.commit("preference_pairs", f"{recipe}|{shard}", pairs, [sampled, mas, logprobs])


def write_answers(made: Made, recipe: str, images: Sequence[str], seed: int) -> None:
    """A recipe's answers to a POPE of the official size."""
    rng = np.random.default_rng(seed)
    answer = np.where(rng.random(QUESTIONS) < 0.5, "Yes, there is one.", "No, there is none.")
    table = pa.table(
        {
            "seed": np.zeros(QUESTIONS, np.int64),
            "benchmark": ["pope"] * QUESTIONS,
            "question_id": [f"random/{number}" for number in range(QUESTIONS)],
            "image_uri": [images[number % len(images)] for number in range(QUESTIONS)],
            "question": [f"Is there a thing of kind {number} in the image?" for number in range(QUESTIONS)],
            "expected": ["yes" if number % 2 else "no" for number in range(QUESTIONS)],
            "answer": answer,
            "n_tokens": np.full(QUESTIONS, 6, np.int32),
        }
    )
    score = {"recipe": recipe, "seed": 0, "benchmark": "pope", "rule": "official", "metric": "accuracy", "n": QUESTIONS}
    score["value"] = 50.0
    scores = pa.Table.from_pylist([{**score, "ci_low": None, "ci_high": None}], schema=SCORES.schema)
    made.commit("benchmark_scores", recipe, {"data": (scores, SCORES), "answers": (table, ANSWERS)})


def write_study(folder: Path, prompts: int, candidates: int) -> None:
    """Study file, images, store and event log."""
    images = [f"{number:02d}.png" for number in range(48)]
    (folder / "images").mkdir()
    for number, name in enumerate(images):
        noise = np.random.default_rng(number).integers(0, 255, (96, 96, 3), np.uint8)
        Image.fromarray(noise).save(folder / "images" / name)
    study = {
        "name": "made",
        "dataset": {"shards": SHARDS, "sources": {"made": MADE}},
        "model": {"path": str(WEIGHTS / "llava"), "device": "cpu"},
        "generation": {"n": candidates},
        "judge": {"scorers": [{"kind": "clip", "name": "clip", "model": str(WEIGHTS / "judge")}]},
        "recipes": RECIPES,
        "benchmarks": {"pope": {"kind": "pope", "labels": {"random": "./pope.json"}, "image_root": "./images"}},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    home = folder / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
    from m3po_dagster.study import load_study

    shards = load_study(folder / "study.yaml").shards
    with dg.DagsterInstance.from_config(str(home)) as instance:
        made = Made(folder, ArtifactStore(folder / "store"), instance)
        for number, shard in enumerate(shards):
            size = prompts // len(shards) + (number < prompts % len(shards))
            write_shard(made, shard, size, candidates, images, number)
            print(f"\rwriting shard {number + 1} of {len(shards)}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        for number, recipe in enumerate(RECIPES):
            write_answers(made, recipe, images, number)


class Server:
    """`m3po inspect` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-c", "from m3po_dagster.cli.main import main; main()", "inspect", "--no-open"]
        command += ["--port", "0", "--study", str(folder / "study.yaml"), "--store", str(folder / "store")]
        started = time.monotonic()
        environment = {**os.environ, "DAGSTER_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        self.address = urlsplit(self.process.stdout.readline().split()[0])
        self.connection = http.client.HTTPConnection(self.address.hostname, self.address.port, timeout=60)
        self.seconds_to_list = self._wait("/prompts", started)
        self.seconds_to_tune = self._wait("/tune?recipe=m3po", started, "being built")

    def _wait(self, address: str, started: float, until_without: str = "") -> float:
        while True:
            status, body = self.get(address)
            if status == 200 and (not until_without or until_without not in body):
                return time.monotonic() - started
            time.sleep(0.2)

    def get(self, address: str) -> tuple[int, str]:
        """Status and body."""
        self.connection.request("GET", address)
        answer = self.connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")

    def peak_memory_mb(self) -> float:
        """Most memory that was resident at once."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024 / 1e6

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def prompt_ids(folder: Path, count: int) -> list[str]:
    """Prompts from all over the study."""
    with duckdb.connect() as connection:
        query = f"SELECT prompt_id FROM read_parquet('{folder}/store/filtered_instructions/*/*/data.parquet')"
        found = [row[0] for row in connection.execute(query).fetchall()]
    return random.Random(0).sample(found, min(count, len(found)))


def views(folder: Path, prompts: int) -> dict[str, Iterator[str]]:
    """Addresses of each view, never the same twice where a result could be kept."""
    rng = random.Random(1)
    words = sorted({word.strip(".,:;()`*").lower() for word in WORDS if word.isalpha() and len(word) > 3})
    ids = prompt_ids(folder, REQUESTS)

    def forever(make: Callable[[], dict], page: str) -> Iterator[str]:
        while True:
            yield f"{page}?{urlencode(make())}"

    last = -(-prompts // 50)
    sorts = ("gap", "-gap", "conf", "-conf", "score", "-score", "spread", "-spread")

    def point() -> dict:
        return {"recipe": "m3po", "alpha": round(rng.uniform(0, 2), 3), "delta": round(rng.uniform(0, 1), 3)}

    def nearly_saved() -> dict:
        """Few pairs change, all over the study: the texts shown lie far apart."""
        return {"recipe": "m3po", "alpha": round(0.5 + rng.uniform(-0.03, 0.03), 5), "delta": 0.1}

    return {
        "overview": forever(dict, "/"),
        "list, by shard order": forever(lambda: {"page": rng.randint(1, last)}, "/prompts"),
        "list, sorted, last page": forever(
            lambda: {"sort": rng.choice(sorts), "gap_min": rng.uniform(-1, 0), "page": last}, "/prompts"
        ),
        "list, gap and confidence range": forever(
            lambda: {"gap_min": rng.uniform(0, 0.4), "conf_max": rng.uniform(-0.1, 0.2), "sort": "-conf"}, "/prompts"
        ),
        "list, search": forever(
            lambda: {"q": f"{rng.choice(words)} {rng.choice(WORDS)}"[:60], "sort": rng.choice(sorts)}, "/prompts"
        ),
        "list, search, one word": forever(
            lambda: {"q": rng.choice(words), "sort": rng.choice(sorts), "gap_min": rng.uniform(-1, 0)}, "/prompts"
        ),
        "prompt": (f"/prompts/{name}?recipe=m3po&sort=-gap" for name in ids),
        "image": (f"/images/{name}" for name in ids),
        "sliders, page": forever(point, "/tune"),
        "sliders, a move": forever(point, "/tune/point"),
        "sliders, a small move": forever(nearly_saved, "/tune/point"),
        "sliders, last page of changes": forever(lambda: point() | {"page": 10**6}, "/tune"),
        "answers, became right": forever(
            lambda: {"recipe": "m3po", "show": "right", "page": rng.randint(1, 100)}, "/answers"
        ),
        "answers, search": forever(lambda: {"recipe": "m3po", "q": f"kind {rng.randint(1, 999)}"}, "/answers"),
    }


def timed(server: Server, addresses: Iterator[str]) -> dict:
    """Milliseconds of REQUESTS requests, one after the other; the first counts too."""
    found = []
    for _, address in zip(range(REQUESTS), addresses, strict=False):
        start = time.perf_counter()
        status, _ = server.get(address)
        found.append(1e3 * (time.perf_counter() - start))
        if status != 200:
            raise RuntimeError(f"{address}: status {status}")
    found.sort()
    return {
        "p50_ms": round(statistics.median(found), 1),
        "p95_ms": round(found[int(0.95 * (len(found) - 1))], 1),
        "max_ms": round(found[-1], 1),
    }


def duckdb_ms(folder: Path) -> dict[str, float]:
    """The same questions without an index: DuckDB over the Parquet files, one thread, best of three."""
    store = folder / "store"
    files = {name: f"read_parquet('{store}/{name}/*/*/data.parquet')" for name in ("mas_table", "logprob_table")}
    scores = f"""c AS (
        SELECT m.prompt_id, m.candidate_id, mas, sum_logp / n_tokens AS conf
        FROM {files["mas_table"]} m JOIN {files["logprob_table"]} l USING (candidate_id))"""
    name = prompt_ids(folder, 1)[0]
    questions = {
        "list, search, one word": f"""
            SELECT f.prompt_id, mas_gap, count(*) OVER ()
            FROM read_parquet('{store}/filtered_instructions/*/*/data.parquet') f
            JOIN read_parquet('{store}/preference_pairs/m3po,*/*/data.parquet') p USING (prompt_id)
            WHERE messages[-1].text ILIKE '%confidence%' ORDER BY mas_gap DESC LIMIT 50""",
        "prompt": f"""
            SELECT c.*, m.*, l.* FROM read_parquet('{store}/candidates/*/*/data.parquet') c
            JOIN {files["mas_table"]} m USING (candidate_id) JOIN {files["logprob_table"]} l USING (candidate_id)
            WHERE c.prompt_id = '{name}' AND m.prompt_id = '{name}' AND l.prompt_id = '{name}'""",
        "sliders, a move": f"""
            WITH {scores}, w AS (SELECT prompt_id, max({{'mas': mas, 'conf': conf}}) AS best FROM c GROUP BY prompt_id)
            SELECT count(*) FROM (
                SELECT arg_max(candidate_id, best.mas - mas - 0.9 * greatest(0, best.conf - conf - 0.1))
                FROM c JOIN w USING (prompt_id) WHERE best.mas > mas GROUP BY prompt_id)""",
    }
    found = {}
    with duckdb.connect() as connection:
        connection.execute("SET threads = 1")
        for view, question in questions.items():
            best = float("inf")
            for _ in range(3):
                start = time.perf_counter()
                connection.execute(question).fetchall()
                best = min(best, 1e3 * (time.perf_counter() - start))
            found[view] = round(best, 1)
    return found


def run(folder: Path, prompts: int, candidates: int) -> dict:
    """Everything measured over the study in `folder`, which is written first."""
    if not (folder / "study.yaml").exists():
        write_study(folder, prompts, candidates)
    report = {"machine": machine(), "prompts": prompts, "candidates": candidates, "requests_a_view": REQUESTS}
    shutil.rmtree(folder / "store" / ".cache" / "inspector", ignore_errors=True)
    first = Server(folder)
    report["first_start"] = {"s_to_list": first.seconds_to_list, "s_to_sliders": first.seconds_to_tune}
    report["first_start"]["peak_memory_mb"] = first.peak_memory_mb()
    first.stop()
    server = Server(folder)
    try:
        report["next_start"] = {"s_to_list": server.seconds_to_list, "s_to_sliders": server.seconds_to_tune}
        report["views"] = {name: timed(server, addresses) for name, addresses in views(folder, prompts).items()}
        report["next_start"]["peak_memory_mb"] = server.peak_memory_mb()
    finally:
        server.stop()
    report["duckdb_ms"] = duckdb_ms(folder)
    slowest = max(report["views"], key=lambda name: report["views"][name]["p95_ms"])
    report["slowest"] = slowest
    report["slowest_p95_to_budget"] = round(report["views"][slowest]["p95_ms"] / BUDGET_MS, 3)
    report["within_budget"] = report["slowest_p95_to_budget"] <= 1
    return report


def show(report: dict) -> None:
    """The table a person reads."""
    print(f"{report['prompts']:,} prompts x {report['candidates']} candidates; {json.dumps(report['machine'])}")
    for name in ("first_start", "next_start"):
        start = report[name]
        print(
            f"{name.replace('_', ' ')}: lists after {start['s_to_list']:.1f} s, "
            f"sliders after {start['s_to_sliders']:.1f} s, peak memory {start['peak_memory_mb']:,.0f} MB"
        )
    print(f"\n{'view':34}{'p50 ms':>9}{'p95 ms':>9}{'max ms':>9}{'DuckDB ms':>11}{'ratio':>8}")
    for name, view in report["views"].items():
        plain = report["duckdb_ms"].get(name)
        against = f"{plain:11,.0f}{plain / view['p50_ms']:8.0f}" if plain else ""
        print(f"{name:34}{view['p50_ms']:9.1f}{view['p95_ms']:9.1f}{view['max_ms']:9.1f}{against}")
    verdict = "within" if report["within_budget"] else "OUTSIDE"
    share = report["slowest_p95_to_budget"]
    print(f"\nslowest: {report['slowest']}, p95 {share:.0%} of {BUDGET_MS:g} ms: {verdict} the budget")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--candidates", type=int, default=CANDIDATES_A_PROMPT)
    parser.add_argument("--folder", type=Path, help="Keep the study here, and use the one that is there already.")
    parser.add_argument("--out", type=Path, help="Write the report here; for the full size beside this script.")
    options = parser.parse_args()
    out = options.out or (Path(__file__).with_suffix(".json") if options.prompts == PROMPTS else None)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report = run(folder, options.prompts, options.candidates)
    show(report)
    if out:
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
