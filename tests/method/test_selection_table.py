"""What a score table may look like: types, nulls, order and layout; and the error for each one that can't be used."""

import decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from selection_tables import candidates, random_table

from m3po_dagster.method import selection_matrix
from m3po_dagster.method.selection import ScoreTableError, SelectionSettings, select_pairs
from m3po_dagster.method.selection_ids import first_repeated
from m3po_dagster.method.selection_matrix import ScoreMatrix, read_scores

GOOD = candidates([1, 0.5, 0], [-1, -1.5, -9], k=[0, 1, 2], text=["a", "b", "c"], finish_reason=["stop"] * 3)


def replaced(name: str, values: list | pa.Array) -> pa.Table:
    return GOOD.set_column(
        GOOD.column_names.index(name), name, pa.array(values) if isinstance(values, list) else values
    )


def pairs(table: pa.Table) -> list[dict]:
    return select_pairs(table, SelectionSettings()).pairs.to_pylist()


@pytest.mark.parametrize("name", ["prompt_id", "candidate_id", "mas", "sum_logp", "n_tokens"])
def test_a_missing_column_is_named(name):
    with pytest.raises(ScoreTableError, match=f"column {name} is missing; the table has"):
        pairs(GOOD.drop([name]))


def test_a_missing_reward_column_is_named():
    with pytest.raises(ScoreTableError, match="column style is missing"):
        select_pairs(GOOD, SelectionSettings(rule="reward_max_min", reward="style"))


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("mas", ["1", "0", "0"], "column mas is string; it must hold numbers"),
        ("mas", [True, False, False], "column mas is bool"),
        ("sum_logp", ["-1", "-2", "-3"], "column sum_logp is string"),
        ("sum_logp", [-1.0, 2.5, -9.0], r"column sum_logp, row 1: 2.5; .* can't be above 0 \(1 such rows\)"),
        ("n_tokens", [1, 1, 0], "column n_tokens, row 2: 0; an answer has at least 1 token"),
        ("n_tokens", [-4, 1, 0], r"column n_tokens, row 0: -4; .* \(2 such rows\)"),
        ("n_tokens", [1.0, 1.5, 2.0], "column n_tokens, row 1: 1.5; it must be a whole number"),
        ("candidate_id", [None, "b", "c"], "column candidate_id, row 0: the id is null"),
        ("candidate_id", [0.5, 1.5, 2.5], "column candidate_id is double; ids must be strings or integers"),
        ("candidate_id", ["b", "a", "b"], "column candidate_id: 'b' is in rows 0 and 2"),
        ("candidate_id", [7, 8, 7], "column candidate_id: '7' is in rows 0 and 2"),
        ("prompt_id", ["p", None, "p"], "column prompt_id, row 1: the id is null"),
        ("prompt_id", [0.5, 0.5, 0.5], "column prompt_id is double"),
        ("k", [0, 1, 1], "column k: rows 1 and 2 of one prompt both have k = 1"),
        ("k", [0, None, 1], "column k, row 1: it is null"),
        ("k", [0.0, 1.0, 2.0], "column k is double; it must hold integers"),
        ("text", [1, 2, 3], "column text is int64; it must hold strings"),
        ("finish_reason", [1, 2, 3], "column finish_reason is int64"),
    ],
)
def test_a_bad_value_names_column_and_row(name, values, words):
    with pytest.raises(ScoreTableError, match=words):
        pairs(replaced(name, values))


def test_the_row_in_the_message_is_the_tables_own():
    table = pa.concat_tables([candidates([1, 0], [-1, -1], prompt=name) for name in "ab"]).take([2, 0, 3, 1])
    table = table.set_column(table.column_names.index("n_tokens"), "n_tokens", pa.array([1, 1, 0, 1]))
    with pytest.raises(ScoreTableError, match="column n_tokens, row 2: 0"):
        pairs(table)


def test_a_column_given_twice_is_refused():
    with pytest.raises(ScoreTableError, match="column mas is there 2 times"):
        pairs(GOOD.append_column("mas", GOOD["mas"]))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("mas", [4, 2, 0]),
        ("mas", pa.array([4, 2, 0], pa.int8())),
        ("mas", pa.array([1, 0.5, 0], pa.float32())),
        ("mas", [decimal.Decimal("0.9"), decimal.Decimal("0.7"), decimal.Decimal("0.3")]),
        ("n_tokens", [1.0, 1.0, 1.0]),
        ("n_tokens", pa.array([1, 1, 1], pa.uint16())),
        ("prompt_id", [7, 7, 7]),
        ("prompt_id", pa.array(["p"] * 3).dictionary_encode()),
        ("prompt_id", pa.array(["p"] * 3, pa.large_string())),
        ("candidate_id", [10, 11, 12]),
        ("candidate_id", pa.array(["x", "y", "z"]).dictionary_encode()),
        ("finish_reason", pa.array(["stop", None, "stop"]).dictionary_encode()),
        ("text", pa.array(["a", "b", "c"]).dictionary_encode()),
        ("text", pa.array(["a", "b", "c"], pa.large_string())),
    ],
)
def test_other_types_that_say_the_same_are_taken(name, values):
    (pair,) = pairs(replaced(name, values))
    ids = [str(value) for value in replaced(name, values)["candidate_id"].to_pylist()]
    assert (pair["chosen_id"], pair["rejected_id"]) == (ids[0], ids[1])


def test_a_wholly_unscored_column_without_a_type_is_no_error():
    result = select_pairs(replaced("mas", pa.nulls(3)), SelectionSettings())
    assert result.dropped["reason"].to_pylist() == ["no_scored_candidate"]


def test_missing_token_counts_leave_a_candidate_without_confidence():
    result = select_pairs(replaced("n_tokens", [None, 1, 1]), SelectionSettings())
    assert result.pairs["chosen_id"].to_pylist() == ["p:1"]
    assert result.stats["without_confidence"] == 1


def test_an_absurd_score_is_unscored_and_nothing_overflows():
    (pair,) = pairs(replaced("mas", [1e300, 1.0, 0.0]))
    assert pair["chosen_id"] == "p:1"
    table = candidates([1e100, -1e100], [0, -1e100])
    (pair,) = select_pairs(table, SelectionSettings(alpha=1e6)).pairs.to_pylist()
    assert np.isfinite(pair["m3p_score"])


def test_an_empty_table_gives_empty_tables():
    result = select_pairs(GOOD.slice(0, 0), SelectionSettings())
    assert result.pairs.num_rows == result.dropped.num_rows == result.stats["prompts"] == 0
    assert result.stats["top_tie_share"] is None
    assert result.pairs.schema == select_pairs(GOOD, SelectionSettings()).pairs.schema


def test_a_dictionary_with_unused_repeated_and_unordered_ids():
    """Arrow allows all three; the prompts stay those of the rows, in the rows' order."""
    codes = pa.array([3, 3, 1, 2, 0, 0], pa.int32())
    ids = pa.DictionaryArray.from_arrays(codes, pa.array(["c", "b", "b", "a", "unused"]))
    table = pa.table(
        {
            "prompt_id": ids,
            "candidate_id": list("uvwxyz"),
            "mas": [1, 0, 1, 0, 1, 0],
            "sum_logp": [-1.0] * 6,
            "n_tokens": [1] * 6,
        }
    )
    got = [(row["prompt_id"], row["chosen_id"], row["rejected_id"]) for row in pairs(table)]
    assert got == [("a", "u", "v"), ("b", "w", "x"), ("c", "y", "z")]


def test_chunks_with_their_own_dictionaries():
    parts = [candidates([1, 0], [-1, -1], prompt=name) for name in ("b", "a")]
    encoded = [
        part.set_column(0, "prompt_id", part["prompt_id"].combine_chunks().dictionary_encode()) for part in parts
    ]
    assert [row["prompt_id"] for row in pairs(pa.concat_tables(encoded))] == ["b", "a"]


@pytest.mark.parametrize("limit", [1, 7, 100])
def test_block_size_does_not_matter(monkeypatch, limit):
    for regular in (True, False):
        table = random_table(3, prompts=30, regular=regular)
        for rule in ("m3p", "vanilla"):
            whole = select_pairs(table, SelectionSettings(rule=rule)).pairs
            with monkeypatch.context() as patch:
                patch.setattr(selection_matrix, "BLOCK_ELEMENTS", limit)
                assert select_pairs(table, SelectionSettings(rule=rule)).pairs == whole


def test_one_long_prompt_does_not_widen_the_others():
    sizes = [2000, *[3] * 2000]
    table = pa.concat_tables(
        candidates(list(range(size)), [-1.0] * size, prompt=str(n)) for n, size in enumerate(sizes)
    )
    matrix = ScoreMatrix.from_table(table)
    assert sum(block.value.size for block in matrix.blocks()) < 2 * selection_matrix.BLOCK_ELEMENTS
    assert sum(len(block.value) for block in matrix.blocks()) == len(sizes)


def test_a_regular_table_is_not_copied_into_blocks():
    table = candidates([1, 0.5, 0, 0.25], [-1, -2, -3, -1])
    matrix = ScoreMatrix.from_table(table)
    (block,) = matrix.blocks()
    assert matrix.rows is None and block.can_win is None
    assert np.shares_memory(block.value, matrix.value) and np.shares_memory(matrix.value, matrix.mas)


def test_repeated_ids_are_found_across_chunks_and_lengths():
    ids = ["", "a", "ab", "abcdefgh", "abcdefghi", "é", "x" * 100, "x" * 101]
    assert first_repeated(pa.chunked_array([ids[:3], ids[3:]])) is None
    for row, name in enumerate(ids):
        assert first_repeated(pa.chunked_array([ids, ["new", name]])) == (name, row, len(ids) + 1)
    sliced = pa.chunked_array([pa.array(["skip", "skip", *ids]).slice(2)])
    assert first_repeated(sliced) is None
    many = [f"prompt-{n}:{k}" for n in range(5000) for k in range(8)]
    assert first_repeated(pa.chunked_array([many])) is None
    assert first_repeated(pa.chunked_array([many, many[-1:]])) == (many[-1], 39_999, 40_000)


def test_reading_takes_only_what_selection_needs(tmp_path):
    path = tmp_path / "scores.parquet"
    pq.write_table(
        GOOD.append_column("image", pa.array([b"large"] * 3)).append_column("style", pa.array([1, 2, 3])), path
    )
    assert set(read_scores(path).column_names) == set(GOOD.column_names)
    assert set(read_scores(path, extra=["style"]).column_names) == {*GOOD.column_names, "style"}
    assert "candidate_id" not in read_scores(path, ids=False).column_names
    assert pairs(read_scores(path)) == pairs(GOOD)


@pytest.mark.parametrize("prompt", [[7, 7, 7], [{"id": 1}] * 3])
def test_reading_prompt_ids_of_another_type(tmp_path, prompt):
    path = tmp_path / "scores.parquet"
    pq.write_table(replaced("prompt_id", prompt), path)
    if isinstance(prompt[0], int):
        assert pairs(read_scores(path))[0]["prompt_id"] == "7"
    else:
        with pytest.raises(ScoreTableError, match="column prompt_id is struct"):
            pairs(read_scores(path))


def test_reading_what_is_no_table(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"scores\.parquet: no such file"):
        read_scores(tmp_path / "scores.parquet")
    with pytest.raises(FileNotFoundError, match="a folder, not a file"):
        read_scores(tmp_path)
    whole = tmp_path / "whole.parquet"
    pq.write_table(GOOD, whole)
    for content in (b"", b"prompt_id,mas\n1,2\n", whole.read_bytes()[:-20]):
        (tmp_path / "broken.parquet").write_bytes(content)
        with pytest.raises(ScoreTableError, match="not a readable Parquet file"):
            read_scores(tmp_path / "broken.parquet")
    pq.write_table(GOOD.drop(["mas"]).append_column("score", GOOD["mas"]), whole)
    with pytest.raises(ScoreTableError, match=r"column mas is missing; the file has .*score"):
        read_scores(whole)
