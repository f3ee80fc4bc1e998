"""A study of many shards and recipes whose every part is made: what it takes to see how it stands."""

import json
import os
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pyarrow as pa

from m3po_dagster.current import DATA_VERSION_TAG, FINGERPRINT_METADATA, held_heads, read_heads
from m3po_dagster.datasets.image_facts import KIND
from m3po_dagster.graph import STAGES, Head, Part, due, inputs_of, made_from, standings
from m3po_dagster.identity import Identities
from m3po_dagster.storage.file_facts import FileFacts
from m3po_dagster.storage.filesystem import LocalFolder
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.storage.tables import IDENTITY
from m3po_dagster.study import Study

ASKED = ("children", "files", "size", "read")
"""What a store asks of its storage: a listing of one folder, one of all below it, a look at a file, a file whole."""


class KnownIdentities:
    """Of what lies outside, without looking."""

    def __getattr__(self, name: str) -> Callable:
        return lambda study, *key: {"is": [name, *key]}


def wide(study: Study, shards: int, recipes: int) -> Study:
    """The study with so many shards, and with so many recipes that differ in alpha."""
    m3po = study.recipes["m3po"]
    more = {
        f"alpha{n}": m3po.model_copy(update={"selection": m3po.selection.model_copy(update={"alpha": n / 100})})
        for n in range(recipes - 1)
    }
    dataset = study.dataset.model_copy(update={"shards": shards})
    return study.model_copy(update={"dataset": dataset, "recipes": {"base": study.recipes["base"], **more}})


def make_all(study: Study, made: Callable[[Part, str], Head]) -> dict[Part, Head]:
    """The heads of every part, each given to `made`, which makes it."""
    identities, heads = KnownIdentities(), {}
    while todo := due(study, identities, heads):
        for part in todo:
            heads[part] = made(part, made_from(part, study, identities, heads, found="answers"))
    return heads


def measure(study: Study, folder: Path, padding: Mapping[str, int]) -> dict:
    """Everything over one study, which is made in `folder`; `padding`: bytes of pictures in an event, by asset."""
    home, store = folder / "home", ArtifactStore(folder / "store")
    home.mkdir(parents=True)
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
    found: dict[str, object] = {"shards": len(study.shards), "recipes": len(study.recipes)}
    with dg.DagsterInstance.from_config(str(home)) as instance:
        started, heads = time.perf_counter(), {}

        def made(part: Part, fingerprint: str) -> Head:
            refs = {
                f"{asset}[{key}]": {
                    "asset": asset,
                    "partition": key,
                    "fingerprint": heads[asset, key].fingerprint,
                    "data_version": heads[asset, key].data_version,
                }
                for asset, key in inputs_of(*part, study)
            }
            table = pa.table({"fact": ["part"], "value": [json.dumps(part)]}, schema=IDENTITY.schema)
            with store.open(*part, fingerprint) as draft:
                artifact = draft.commit(
                    {"data": (table, IDENTITY)}, code_version="1", inputs=refs, metadata={"checks": {}}
                )
            version = "answers" if STAGES[part[0]].observed else artifact.data_version
            instance.report_runless_asset_event(
                dg.AssetMaterialization(
                    part[0],
                    partition=part[1] or None,
                    metadata={FINGERPRINT_METADATA: fingerprint, "pictures": "x" * padding.get(part[0], 0)},
                    tags={DATA_VERSION_TAG: version},
                )
            )
            heads[part] = Head(fingerprint, version)
            return heads[part]

        make_all(study, made)
        found |= {"parts": len(heads), "s_to_make": time.perf_counter() - started}
        sizes = {
            asset: (store.find(asset, key, head.fingerprint).folder / "manifest.json").stat().st_size
            for (asset, key), head in heads.items()
        }
        found["largest_manifest_kb"] = max(sizes.values()) / 1e3
        found["s_standings"] = cpu_seconds(lambda: standings(study, KnownIdentities(), heads))
        found["s_event_log"] = cpu_seconds(lambda: read_heads(instance))
        found["s_event_log_again"] = cpu_seconds(lambda: read_heads(instance))
        for name, call in {
            "held": lambda: held_heads(instance, store),
            "held_again": lambda: held_heads(instance, store),
            "list": lambda: list(store.list()),
            "gc": lambda: store.gc({(*part, head.fingerprint) for part, head in heads.items()}, older_than=0.0),
        }.items():
            with counted() as asked:
                found[f"s_{name}"] = cpu_seconds(call)
            found[f"asked_{name}"] = dict(asked)
        found["event_log_mb"] = sum(path.stat().st_size for path in home.rglob("*.db*")) / 1e6
    return found


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU seconds of this process for one call."""
    started = time.process_time()
    call()
    return time.process_time() - started


@contextmanager
def counted() -> Iterator[Counter]:
    """Counts what a store asks of its storage meanwhile."""
    asked: Counter = Counter()
    plain = {name: getattr(LocalFolder, name) for name in ASKED}

    def counting(name: str) -> Callable:
        def ask(self: LocalFolder, *given: object, **named: object) -> object:
            asked[name] += 1
            return plain[name](self, *given, **named)

        return ask

    for name in ASKED:
        setattr(LocalFolder, name, counting(name))
    try:
        yield asked
    finally:
        for name, function in plain.items():
            setattr(LocalFolder, name, function)


def images(study: Study, folder: Path, count: int) -> dict:
    """What it takes to see that no image of a dataset changed, and to remember what is known of each."""
    (folder / "images").mkdir(parents=True)
    for number in range(count):
        (folder / "images" / f"{number:012d}.jpg").write_bytes(b"")
    records = folder / "records.json"
    records.write_text("[]", encoding="utf-8")
    (name,) = study.dataset.sources
    source = study.dataset.sources[name].model_copy(update={"path": records, "image_root": folder / "images"})
    study = study.model_copy(update={"dataset": study.dataset.model_copy(update={"sources": {name: source}})})
    paths = sorted((folder / "images").iterdir())
    long_ago = time.time() - 3600
    for path in paths:
        os.utime(path, (long_ago, long_ago))
    facts = FileFacts(folder / "facts.sqlite")
    fact = json.dumps(
        {"sha256": "0" * 64, "width": 640, "height": 480, "phash": "0" * 16, "problem": None, "detail": None}
    )
    time.sleep(2.1)  # a file younger than that is not remembered

    def keep() -> None:
        for path in paths:
            facts.keep(facts.look(path), KIND, fact)

    found = {"images": count}
    found["identity_us"] = 1e6 / count * cpu_seconds(lambda: Identities(lambda path: "0" * 64).dataset(study))
    found["keep_us"] = 1e6 / count * cpu_seconds(keep)
    found["known_us"] = 1e6 / count * cpu_seconds(lambda: [facts.known(facts.look(path), KIND) for path in paths])
    facts.close()
    if not all(FileFacts(folder / "facts.sqlite").known(facts.look(path), KIND) for path in paths[:3]):
        raise AssertionError("nothing was remembered")
    found["bytes_remembered"] = (folder / "facts.sqlite").stat().st_size / count
    return found


def events(home: Path) -> dict[str, dict[str, float]]:
    """Of each asset in a real study's event logs: events, kB an event in the mean; and kB that a run leaves behind."""
    sizes: dict[str, list[int]] = defaultdict(list)
    logs = [path for path in (home / "history" / "runs").glob("*.db") if path.stem]
    index = home / "history" / "runs" / "index.db"
    with sqlite3.connect(f"file:{index}?mode=ro", uri=True) as connection:
        rows = connection.execute(
            "SELECT asset_key, length(event) FROM event_logs WHERE dagster_event_type = 'ASSET_MATERIALIZATION'"
        )
        for key, size in rows:
            sizes[json.loads(key)[0]].append(size)
    runs = [path.stat().st_size for path in logs if path.name != "index.db"]
    return {
        "event_kb": {name: sum(some) / len(some) / 1e3 for name, some in sorted(sizes.items())},
        "runs": len(runs),
        "run_log_kb": sum(runs) / max(1, len(runs)) / 1e3,
        "index_mb": index.stat().st_size / 1e6,
    }
