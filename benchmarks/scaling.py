"""How what runs without a model grows with prompts, shards and recipes: memory and seconds of a step, bytes, requests.

    .venv/bin/python benchmarks/scaling.py               # prints tables, writes benchmarks/scaling.json
    .venv/bin/python benchmarks/scaling.py --prompts 200 400 --recipes 2 --shards 4 --images 500 --out /tmp/small.json

A shard is generated in two sizes, with 32 answers of 100 tokens a prompt, and every step that needs no model is run
over each in a process of its own; what one more prompt takes is the slope between the two (of steps over all shards a
prompt of any, though one shard is held at a time). A graph of 99 shards is made
whole with few and with more recipes: a real store, a real event log, every part committed; then what `m3po status`
does is timed, and what it asks of the store is counted. Images: what it takes to see that none changed. Where the
embedded study was run (`make demo`), its own tables and events are measured too.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import scaling_graph
import scaling_shard
from machine import machine

ROOT = Path(__file__).parents[1]
PROMPTS, SWEPT_SHARDS, SHARDS, RECIPES, IMAGES = (1000, 4000), 2, 99, (6, 18), 20_000


def shards(sizes: tuple[int, int], folder: Path) -> dict:
    """Each step at both sizes, and what one more prompt takes."""
    steps: dict[str, list[dict]] = {name: [] for name in scaling_shard.STEPS}
    for prompts in sizes:
        made = folder / str(prompts)
        scaling_shard.write_shard(made, prompts, SWEPT_SHARDS)
        for name in steps:
            print(f"\r{prompts} prompts: {name:40}", end="", file=sys.stderr, flush=True)
            copy = shutil.copytree(made, folder / "copy")
            steps[name].append(_apart(copy, name))
            shutil.rmtree(copy)
    print(file=sys.stderr)
    return {
        "prompts": list(sizes),
        "answers": scaling_shard.SAMPLES,
        "tokens_an_answer": scaling_shard.ANSWER_TOKENS,
        "a_prompt": scaling_shard.bytes_a_prompt(folder / str(sizes[-1])),
        "steps": {name: _slope(*measured) | {"measured": measured} for name, measured in steps.items()},
    }


def _apart(store: Path, step: str) -> dict:
    """One step in a process of its own, on one thread."""
    code = (
        "import json; from pathlib import Path; from scaling_shard import measured; "
        f"print(json.dumps(measured(Path({str(store)!r}), {SWEPT_SHARDS}, {step!r})))"
    )
    alone = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(Path(__file__).parent))),
    }
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, env=alone)
    return json.loads(done.stdout)


def _slope(small: dict, large: dict) -> dict:
    more = large["prompts"] - small["prompts"]
    return {
        "kb_a_prompt": 1e3 * (large["peak_mb"] - small["peak_mb"]) / more,
        "cpu_ms_a_prompt": 1e3 * (large["cpu_s"] - small["cpu_s"]) / more,
    }


def show(report: dict) -> None:
    """The tables a person reads."""
    print(json.dumps(report["machine"]))
    print(f"\n{'a prompt of 32 answers':28}{'bytes':>10}{'rows':>7}{'manifest kB':>13}")
    for source in ("shard", "embedded_study"):
        for asset, one in report[source]["a_prompt"].items() if source in report else ():
            print(f"{source[:8] + ' ' + asset:28}{one['bytes']:10,.0f}{one['rows']:7.1f}{one['manifest_kb']:13.1f}")
    print(f"\n{'a step, of one prompt more':36}{'kB':>10}{'CPU ms':>10}")
    for name, one in report["shard"]["steps"].items():
        print(f"{name:36}{one['kb_a_prompt']:10.1f}{one['cpu_ms_a_prompt']:10.2f}")
    for graph in report["graphs"]:
        print(f"\n{graph['shards']} shards, {graph['recipes']} recipes, {graph['parts']:,} parts")
        for name, value in graph.items():
            if name.startswith("s_") and name != "s_to_make":
                print(f"  {name[2:]:20}{value:8.2f} CPU s  {graph.get('asked_' + name[2:], '')}")
        print(f"  event log {graph['event_log_mb']:.1f} MB, largest manifest {graph['largest_manifest_kb']:.0f} kB")
    print("\nimages:", json.dumps(report["images"]))
    if "events" in report:
        print("events of the embedded study:", json.dumps(report["events"], indent=1))


def rounded(value: object) -> object:
    """The report with figures of four digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, nargs=2, default=PROMPTS, help="the two sizes of a shard")
    parser.add_argument("--shards", type=int, default=SHARDS)
    parser.add_argument("--recipes", type=int, nargs="+", default=RECIPES)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--made", type=Path, default=ROOT / ".m3po", help="where the embedded study was run")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    report: dict = {"machine": machine()}
    padding: dict[str, int] = {}
    if (options.made / "dagster").is_dir():
        report["embedded_study"] = {"a_prompt": scaling_shard.bytes_a_prompt(options.made / "store")}
        report["events"] = scaling_graph.events(options.made / "dagster")
        padding = {name: round(1e3 * size) for name, size in report["events"]["event_kb"].items()}
    else:
        print(f"no study was run in {options.made}: its tables are left out (`make demo` runs it)", file=sys.stderr)
    study = scaling_shard.study_of(options.shards)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report["images"] = scaling_graph.images(study, folder, options.images)
        report["shard"] = shards(tuple(options.prompts), folder)
        report["graphs"] = [
            scaling_graph.measure(scaling_graph.wide(study, options.shards, n), folder / f"recipes{n}", padding)
            for n in options.recipes
        ]
    report = rounded(report)
    show(report)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
