"""A small table and its commit, for the store's tests; run as a script it is the writer that gets killed."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.content import table_hash
from m3po_dagster.storage.errors import Busy, StoreError
from m3po_dagster.storage.fingerprint import fingerprint
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.storage.tables import TableSchema, column

NUMBERS = TableSchema(
    "numbers",
    ("name",),
    pa.schema(
        [
            column("name", pa.string(), "the number's name"),
            column("value", pa.float64(), "the number", nullable=True),
        ]
    ),
)
PARTS, ROWS = 4, 3


def numbers(index: int, rows: int = ROWS) -> pa.Table:
    """Part `index` of the sample table."""
    names = [f"{index}:{row}" for row in range(rows)]
    return pa.table({"name": names, "value": [index + row / 8 for row in range(rows)]}, schema=NUMBERS.schema)


def key(asset: str = "numbers", partition: str = "m3po|s0", code: str = "1", **inputs: str) -> tuple[str, str, str]:
    """Asset, partition and fingerprint."""
    return asset, partition, fingerprint(asset, partition, code, {"rows": ROWS}, inputs)


def commit(
    store: ArtifactStore, asset: str = "numbers", partition: str = "m3po|s0", code: str = "1", **inputs: Artifact
) -> Artifact:
    """One committed artifact with one table and one file, made from `inputs`."""
    versions = {name: artifact.data_version for name, artifact in inputs.items()}
    with store.open(*key(asset, partition, code, **versions)) as draft:
        (draft.folder() / "note.txt").write_text(f"{asset} {partition} {code}")
        return draft.commit(
            {"data": (numbers(len(code)), NUMBERS)},
            code_version=code,
            settings={"rows": ROWS},
            inputs={name: reference(artifact) for name, artifact in inputs.items()},
        )


def reference(artifact: Artifact) -> dict[str, str]:
    """How a manifest names an input."""
    return {**artifact.key._asdict(), "data_version": artifact.data_version}


def write_in_parts(store: ArtifactStore, made: Callable[[int], None]) -> Artifact:
    """Write the sample artifact part by part, going on after what is there; `made(index)` before each part."""
    with store.open(*key()) as draft:
        if draft.committed:
            return draft.committed
        finished = draft.parts(plan={"parts": PARTS})
        for index in range(PARTS):
            if index not in finished:
                made(index)
                draft.write_part(index, numbers(index), NUMBERS)
        (draft.folder() / "note.txt").write_text("whole")
        table = draft.read_parts()
        return draft.commit({"data": (table, NUMBERS)}, code_version="1", settings={"rows": ROWS})


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process; its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def note(log: Path, text: object) -> None:
    """Append a line; it is there even if the process dies next."""
    with open(log, "a") as file:
        file.write(f"{text}\n")


def kill_at(root: Path, step: int, log: Path) -> None:
    """Write the artifact and die by SIGKILL right before the `step`-th thing that changes a file below `root`."""
    seen = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal seen
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate") or (
            event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]
        )
        if changes and str(arguments[0]).startswith(str(root)):
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    write_in_parts(ArtifactStore(root), lambda index: note(log, index))


def resume(root: Path, log: Path, result: Path) -> None:
    """Write the artifact to its end, and what it is into `result`."""
    artifact = write_in_parts(ArtifactStore(root), lambda index: note(log, index))
    table = artifact.table()
    note(result, json.dumps({"hash": table_hash(table), "rows": table.num_rows, "data": artifact.data_version}))


def kill_everywhere(folder: Path) -> None:
    """Kill a writer at every step, resume, and print for each step what there was before and after."""
    step, outcomes = 0, []
    while not outcomes or outcomes[-1]["code"] == -signal.SIGKILL:
        step += 1
        root, log, result = folder / f"store{step}", folder / f"log{step}", folder / f"result{step}"
        log.touch()
        code = in_child(lambda root=root, step=step, log=log: kill_at(root, step, log))
        before = len(log.read_text().split())
        committed = any(root.glob("*/*/*/manifest.json"))

        resumed = in_child(lambda root=root, log=log, result=result: resume(root, log, result))
        outcome = {"step": step, "code": code, "resumed": resumed, "made before": before, "committed": committed}
        outcome["made"] = [int(index) for index in log.read_text().split()]
        outcomes.append({**outcome, **json.loads(result.read_text())})
    print(json.dumps(outcomes))


def race(folder: Path, rounds: int, writers: int) -> None:
    """Let several writers go for one fingerprint at once, several times; print what each of them met."""
    outcomes = []
    for number in range(rounds):
        root, log = folder / f"store{number}", folder / f"log{number}"
        gate_read, gate_write = os.pipe()

        def compete(root: Path = root, log: Path = log, gate: tuple[int, int] = (gate_read, gate_write)) -> None:
            os.close(gate[1])
            os.read(gate[0], 1)  # returns in all writers when the parent closes its end
            made: list[int] = []
            try:
                write_in_parts(ArtifactStore(root), made.append)
                note(log, "made" if made else "found")
            except Busy as error:
                note(log, "busy" if error.pid else "busy, signing in")

        children = []
        for _ in range(writers):
            child = os.fork()
            if child == 0:
                compete()
                os._exit(0)
            children.append(child)
        os.close(gate_read)
        os.close(gate_write)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        outcomes.append({"codes": codes, "met": sorted(log.read_text().splitlines())})
    print(json.dumps(outcomes))


def unprivileged(root: Path) -> None:
    """Try to write as a user who may not; print the error."""
    if os.getuid() == 0:
        os.setuid(65534)
    try:
        write_in_parts(ArtifactStore(root), lambda index: None)
    except StoreError as error:
        print(json.dumps(str(error)))


if __name__ == "__main__":
    numbers(0)  # Arrow's first table imports pandas: once here, not in every forked writer
    task, place = sys.argv[1], Path(sys.argv[2])
    {"kill": kill_everywhere, "race": lambda where: race(where, 12, 4), "unprivileged": unprivileged}[task](place)
