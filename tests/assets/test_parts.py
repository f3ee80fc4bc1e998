"""Work in parts: whatever the order and the interruptions, the table is the same and nothing is asked twice."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3po_dagster.assets import parts
from m3po_dagster.assets.parts import PLAN, PartWriter, in_parts
from m3po_dagster.graph import Part
from m3po_dagster.materialise import Work
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.study import load_study

SCHEMA = pa.schema([pa.field("prompt_id", pa.string(), nullable=False), ("k", pa.int32()), ("failure", pa.string())])
PART: Part = ("candidates", "s0")
KEY = (*PART, "f" * 64)
STUDY = load_study("studies/easy_scenes.yaml")


class Interrupted(Exception):
    """What ends a run in these tests."""


@dataclass
class Maker:
    """Gives rows of prompts in an order of its own, two a prompt; ends after some, as a killed run does."""

    order: list[str]
    until: int | None = None
    failing: frozenset[str] = frozenset()
    asked: list[str] = field(default_factory=list)

    def __call__(self, some) -> Iterator[list[dict]]:
        for done, prompt_id in enumerate(sorted(some, key=self.order.index)):
            if done == self.until:
                raise Interrupted
            self.asked.append(prompt_id)
            if prompt_id in self.failing:
                yield [{"prompt_id": prompt_id, "failure": "no"}]
            else:
                yield [{"prompt_id": prompt_id, "k": k} for k in range(2)]


def attempt(root, prompts, make, seconds=60.0, again=lambda kept: (), together=1) -> pa.Table | None:
    """One run over the draft; None when it was interrupted."""
    study = STUDY.model_copy(update={"generation": STUDY.generation.model_copy(update={"part_seconds": seconds})})
    store = ArtifactStore(root)
    with store.open(*KEY) as draft:
        work = Work(PART, study, store, None, {}, {}, lambda line: None, draft)
        try:
            return in_parts(work, {name: name for name in prompts}, make, SCHEMA, "making", again, together)
        except Interrupted:
            return None


@settings(deadline=None, max_examples=40)
@given(
    st.permutations([f"p{n}" for n in range(9)]),
    st.lists(st.integers(0, 5), max_size=4),
    st.sampled_from([0.0001, 60.0]),
)
def test_any_order_and_any_interruptions_give_the_same_table(tmp_path_factory, order, stops, seconds):
    root, prompts = tmp_path_factory.mktemp("store"), [f"p{n}" for n in range(9)]
    expected = attempt(tmp_path_factory.mktemp("other"), prompts, Maker(prompts))
    asked, table = [], None
    for until in [*stops, None]:
        maker = Maker(list(order), until)
        table = attempt(root, prompts, maker, seconds)
        asked += maker.asked
        if table is not None:
            break
    assert table.equals(expected)
    assert table["prompt_id"].to_pylist() == [name for name in prompts for _ in range(2)]
    # What an error or an interrupt finds finished is written: nothing is asked twice.
    assert sorted(asked) == prompts


@pytest.mark.parametrize("together", [1, 3])
def test_what_is_computed_together_comes_into_one_part(tmp_path, together):
    """A killed run then goes on with the same ones side by side as an undisturbed one has."""
    prompts = [f"p{n:02}" for n in range(20)]

    class Slow(Maker):
        def __call__(self, some):
            for rows in super().__call__(some):
                time.sleep(0.003)
                yield rows

    attempt(tmp_path, prompts, Slow(prompts), seconds=0.001, together=together)
    with ArtifactStore(tmp_path).open(*KEY) as draft:
        sizes = [len(draft.read_part(number)["prompt_id"].unique()) for number in draft.parts(PLAN)]
    assert sum(sizes) == 20 and len(sizes) > 3
    assert {size % together for size in sizes[:-1]} == {0} and sizes[-1] % together == 20 % together


def test_what_is_finished_is_written_while_nothing_else_comes(tmp_path):
    """The results of a burst don't wait for the next burst."""
    written = threading.Event()
    store = ArtifactStore(tmp_path)
    with store.open(*KEY) as draft:
        write = draft.write_part

        def noted(*args):
            write(*args)
            written.set()

        draft.write_part = noted
        with PartWriter(draft, SCHEMA, 0.01) as writer:
            writer.add([{"prompt_id": "a", "k": 0}, {"prompt_id": "a", "k": 1}])
            assert written.wait(30)
            assert draft.read_part(0)["k"].to_pylist() == [0, 1]


def test_a_part_that_cannot_be_written_ends_the_work(tmp_path):
    store = ArtifactStore(tmp_path)
    with store.open(*KEY) as draft:

        def full(*args):
            raise StoreError("no space")

        draft.write_part = full
        with pytest.raises(StoreError, match="no space"), PartWriter(draft, SCHEMA, 0.001) as writer:
            for n in range(10_000):
                writer.add([{"prompt_id": f"{n}"}])
                threading.Event().wait(0.001)
        assert n < 9_999


def test_prompts_asked_again_replace_what_they_had(tmp_path):
    prompts = ["a", "b", "c", "d"]
    failed = Maker(prompts, until=3, failing=frozenset("ac"))
    assert attempt(tmp_path, prompts, failed) is None

    def again(kept):
        return [row["prompt_id"] for row in kept.to_pylist() if row["failure"]]

    # Interrupted while they are asked again: the rest of them are still to be asked, though fewer have failed by now.
    part_of_it = Maker(prompts, until=1)
    assert attempt(tmp_path, prompts, part_of_it, again=again) is None
    rest = Maker(prompts)
    table = attempt(tmp_path, prompts, rest)
    assert (failed.asked, part_of_it.asked, rest.asked) == (["a", "b", "c"], ["a"], ["c", "d"])
    assert table.equals(attempt(tmp_path / "other", prompts, Maker(prompts)))


def test_a_damaged_part_is_asked_again(tmp_path):
    prompts = [f"p{n}" for n in range(6)]
    assert attempt(tmp_path, prompts, Maker(prompts, until=3)) is None
    assert attempt(tmp_path, prompts, Maker(prompts, until=2)) is None
    first, _ = sorted(tmp_path.rglob("*.parquet"))
    first.write_bytes(first.read_bytes()[:-9])
    maker = Maker(prompts)
    table = attempt(tmp_path, prompts, maker)
    assert maker.asked == ["p0", "p1", "p2", "p5"]
    assert table.equals(attempt(tmp_path / "other", prompts, Maker(prompts)))


def test_nothing_to_do_is_an_empty_table(tmp_path):
    assert attempt(tmp_path, [], Maker([])).equals(SCHEMA.empty_table())


def test_parts_of_more_than_two_gib_of_values_are_put_in_order():
    """Lists of nulls take no memory, and end where texts do: at 2**31 values in an array with short offsets."""
    prompts, long = ["a", "b"], 1 << 27

    def piece(prompt_id: str, size: int, counts: bool) -> pa.Table:
        tokens = pa.ListArray.from_arrays(pa.array([0, size], pa.int32()), pa.nulls(size))
        columns = {"prompt_id": [prompt_id], "tokens": tokens, parts.AGAIN: [not counts], parts.PART: [0]}
        return pa.table(columns)

    rows = pa.concat_tables([*(piece("a", long, False) for _ in range(18)), piece("b", 3, True), piece("a", 2, True)])
    assert rows["tokens"].type == pa.list_(pa.null())
    with pytest.raises(pa.ArrowInvalid, match="offset overflow"):
        rows.take(pa.array([19, 18]))
    found = parts._last(rows, prompts)
    assert found["prompt_id"].to_pylist() == prompts
    assert [len(tokens) for tokens in found["tokens"]] == [2, 3]
    assert found.schema == rows.schema
