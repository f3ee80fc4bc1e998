"""Distinct candidates: the laws of deduplication, and rows the table accepts."""

from collections import Counter

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from m3po_dagster.method.generation.candidates import distinct, normalise
from m3po_dagster.method.generation.samples import Sample
from m3po_dagster.storage.tables import CANDIDATES

texts = st.text(alphabet="ab \n\tAé\u0301e", max_size=4)
samples = st.lists(
    st.builds(
        Sample,
        text=texts,
        token_ids=st.lists(st.integers(0, 99), min_size=1, max_size=5).map(tuple),
        finish_reason=st.sampled_from(["stop", "length"]),
        token_logps=st.lists(st.floats(-99, 0, width=32), min_size=1, max_size=5).map(tuple),
    ),
    min_size=1,
    max_size=20,
)


def test_normalise_joins_what_reads_the_same():
    assert normalise("  a\n b\t ") == normalise("a b") == "a b"
    assert normalise("cafe\u0301") == normalise("caf\u00e9")
    assert normalise("US") != normalise("us")
    assert normalise("Yes.") != normalise("Yes")


@given(texts)
def test_normalise_is_idempotent(text):
    assert normalise(normalise(text)) == normalise(text)


@given(samples)
def test_distinct_keeps_the_first_and_counts_the_rest(drawn):
    found = distinct(drawn)
    assert sum(candidate.multiplicity for candidate in found) == len(drawn)
    assert Counter(normalise(one.text) for one in drawn) == {normalise(c.text): c.multiplicity for c in found}
    assert [c.k for c in found] == sorted(
        {min(i for i, o in enumerate(drawn) if normalise(o.text) == normalise(one.text)) for one in drawn}
    )
    for candidate in found:
        one = drawn[candidate.k]
        assert (
            candidate.text,
            candidate.token_ids,
            candidate.finish_reason,
            candidate.token_logps,
            candidate.sum_logp,
            candidate.eos_logp,
        ) == (
            one.text,
            one.token_ids,
            one.finish_reason,
            one.token_logps,
            one.sum_logp,
            one.eos_logp,
        )


@settings(deadline=None)
@given(samples)
def test_rows_fit_the_table(drawn):
    rows = [candidate.row("prompt-1", seed=64) for candidate in distinct(drawn)]
    table = pa.Table.from_pylist(rows, schema=CANDIDATES.schema)
    assert set(rows[0]) == set(CANDIDATES.schema.names)
    assert table.column("candidate_id").to_pylist() == [f"prompt-1:{row['k']}" for row in rows]
    assert table.column("n_tokens").to_pylist() == [len(row["token_ids"]) for row in rows]
    assert table.to_pylist() == rows
