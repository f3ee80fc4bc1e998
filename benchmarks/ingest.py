"""Reading instruction data: records a second and peak memory, for a small file and one ten times its size.

    .venv/bin/python benchmarks/ingest.py                     # prints a table, writes benchmarks/ingest.json

Files in LLaVA-Instruct's layout are generated, 200,000 records the larger, and read in several ways, each in a process
of its own so that its peak is its own. Values alone: this project's array reader, ijson (the usual streaming parser),
json.load (the whole file at once). Records, checked and hashed: the reader. All that source_dataset does: images looked
at, shards written. Then one shard is filtered, every turn asked. Memory is the peak above what the process held before
it began. What must hold: the peak of the streaming ways does not grow with the file; filtering holds its shard.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import machine
from PIL import Image

RECORDS = (20_000, 200_000)
IMAGES = 500
SHARDS = 8
WAYS = ("array", "ijson", "json.load", "reader", "source_dataset", "filtered_instructions")
TEXT = (
    "what is the color of a bus in this image and how many people stand near it describe the scene where does "
    "woman hold her umbrella which object lies on table left right background weather suggests"
)


def write_images(folder: Path) -> None:
    """Images of 64x48 noise: decoding is real and cheap, the same few serve every record."""
    folder.mkdir()
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:012d}.jpg")


def write_records(path: Path, records: int) -> None:
    """Conversations of one to five questions, as long as LLaVA-Instruct's, a defect in every hundredth record."""
    rng = np.random.default_rng(0)
    words = np.array(TEXT.split())

    def text(mean: int) -> str:
        return " ".join(words[rng.integers(0, len(words), max(3, rng.poisson(mean)))]).capitalize()

    with path.open("w") as file:
        file.write("[")
        for number in range(records):
            turns = []
            for turn in range(int(rng.integers(1, 6))):
                token = "<image>\n" if turn == 0 else ""
                turns += [{"from": "human", "value": f"{token}{text(12)}?"}, {"from": "gpt", "value": f"{text(40)}."}]
            record = {"id": f"{number:012d}", "image": f"{number % IMAGES:012d}.jpg", "conversations": turns}
            if number % 100 == 99:
                del record["conversations"]
            file.write(("," if number else "") + json.dumps(record))
        file.write("]")


def measure(way: str, folder: Path, records: int) -> dict:
    """One way of reading, in this process."""
    from m3po_dagster.datasets.index import DatasetIndex
    from m3po_dagster.datasets.json_array import read_array
    from m3po_dagster.datasets.readers import read_source
    from m3po_dagster.datasets.settings import DatasetSettings
    from m3po_dagster.datasets.shards import read_shard, write_shards
    from m3po_dagster.method.filtering import FilterSettings, filter_rows
    from m3po_dagster.storage.file_facts import FileFacts

    path, shards = folder / f"{records}.json", folder / f"shards-{records}"
    source = {"format": "llava_instruct", "path": path, "image_root": folder / "images"}
    settings = DatasetSettings(sources={"made": source}, shards=SHARDS)
    if way == "ijson":
        import ijson
    if way == "filtered_instructions":
        settings_of_filters = FilterSettings(image_size={"min_side": 16}, contamination=False)
        list(filter_rows([], settings_of_filters, turns="each").kept)
    before, started, cpu = peak_mb(), time.perf_counter(), time.process_time()
    if way == "array":
        done = sum(1 for _ in read_array(path, 1 << 24))
    elif way == "reader":
        done = sum(1 for _ in read_source(settings.sources["made"], 1 << 24))
    elif way == "ijson":
        with path.open("rb") as file:
            done = sum(1 for _ in ijson.items(file, "item"))
    elif way == "json.load":
        done = len(json.loads(path.read_text()))
    elif way == "source_dataset":
        shards.mkdir()
        with DatasetIndex(settings, FileFacts(folder / f"facts-{records}.sqlite")) as index:
            done = sum(found["records"] for found in write_shards(index.rows(), shards, SHARDS).values())
    else:
        found = filter_rows(read_shard(shards / "s0.parquet"), settings_of_filters, turns="each")
        done = len({(row["source_id"]) for row in found.kept} | {row["item_id"] for row in found.dropped})
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"records": done, "seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak_mb() - before}


def peak_mb() -> float:
    """The most memory that this process has held so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Generates, measures each way and size in a process of its own, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, nargs=2, default=RECORDS, help="sizes of the two files")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--measure", nargs=3, metavar=("WAY", "FOLDER", "RECORDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        way, folder, records = options.measure
        print(json.dumps(measure(way, Path(folder), int(records))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images")
        for records in options.records:
            path = folder / f"{records}.json"
            write_records(path, records)
            for way in WAYS:
                command = [sys.executable, __file__, "--measure", way, name, str(records)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found = json.loads(done.stdout)
                mb = path.stat().st_size / 1e6
                rows.append({"way": way, "file_records": records, "file_mb": round(mb, 1), **found})
                rate, peak = found["records"] / found["seconds"], found["peak_mb"]
                print(f"{way:22} {records:8,} records {mb:7.1f} MB: {rate:10,.0f} records/s, {peak:7.1f} MB")
    small, large = options.records
    peaks = {(row["way"], row["file_records"]): row["peak_mb"] for row in rows}
    growth = {way: round(peaks[way, large] - peaks[way, small], 1) for way in WAYS}
    print(f"peak of {large:,} records above that of {small:,}, MB:", growth)
    result = {"machine": machine(), "images": IMAGES, "shards": SHARDS, "rows": rows, "peak_growth_mb": growth}
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
