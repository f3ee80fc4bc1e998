"""The columns of a score table as arrays, each checked: what it may hold and what a null in it means.

Every function raises ScoreTableError for a column that is missing, there twice, or of a type that can't be meant.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.method.selection_ids import ScoreTableError, first_null

# Beyond this a score is no measurement, and differences and products of scores could overflow.
LARGEST_SCORE = 1e100


def one_column(table: pa.Table, name: str) -> pa.ChunkedArray:
    """The column of that name."""
    found = table.schema.get_all_field_indices(name)
    if not found:
        raise ScoreTableError(
            f"column {name} is missing; the table has {', '.join(table.column_names) or 'no columns'}"
        )
    if len(found) > 1:
        raise ScoreTableError(f"column {name} is there {len(found)} times")
    return table.column(found[0])


def number_column(table: pa.Table, name: str) -> np.ndarray:
    """A numeric column as float64; NaN where it is null or no measurement."""
    column = one_column(table, name)
    kind = column.type
    if not any(
        test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    ):
        raise ScoreTableError(f"column {name} is {kind}; it must hold numbers")
    array = column.cast(pa.float64(), safe=False).to_numpy()
    measured = np.abs(array) <= LARGEST_SCORE
    return array if measured.all() else np.where(measured, array, np.nan)


def k_column(table: pa.Table) -> np.ndarray | None:
    """Each row's k; None where there is no such column or nothing in it."""
    column = _optional_column(table, "k")
    if column is None:
        return None
    if not pa.types.is_integer(column.type):
        raise ScoreTableError(f"column k is {column.type}; it must hold integers")
    if column.null_count:
        raise ScoreTableError(f"column k, row {first_null(column)}: it is null")
    return column.to_numpy()


def cut_column(table: pa.Table) -> np.ndarray | None:
    """True where the answer was cut at the token limit; None where none was."""
    column = _optional_column(table, "finish_reason")
    if column is None:
        return None
    if not pa.types.is_dictionary(column.type):
        column = pc.dictionary_encode(column)
    _need_text(column.type.value_type, "finish_reason")
    array = column.combine_chunks()
    is_cut = pc.fill_null(pc.equal(array.dictionary, "length"), False).to_numpy(zero_copy_only=False)
    unknown = len(is_cut)
    cut = np.append(is_cut, False)[array.indices.cast(pa.int32()).fill_null(unknown).to_numpy()]
    return cut if cut.any() else None


def text_column(table: pa.Table) -> np.ndarray | None:
    """Each row's text as a code (see `text_codes`); None where there is no such column or nothing in it."""
    column = _optional_column(table, "text")
    if column is None:
        return None
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    _need_text(column.type, "text")
    return text_codes(column)


def text_codes(column: pa.ChunkedArray) -> np.ndarray:
    """Equal codes for answers equal in all but letter case, spacing and Unicode form; a null is equal to nothing."""
    plain = pc.utf8_lower(pc.utf8_normalize(column, form="NFKC"))
    plain = pc.utf8_trim_whitespace(pc.replace_substring_regex(plain, r"\s+", " "))
    # A dictionary of more than 2 GiB of different texts needs offsets of 64 bits.
    codes = pc.dictionary_encode(plain.cast(pa.large_string())).combine_chunks().indices
    if codes.null_count == 0:
        return codes.to_numpy()
    missing = codes.is_null().to_numpy(zero_copy_only=False)
    filled = codes.fill_null(0).to_numpy(zero_copy_only=False).copy()
    filled[missing] = -2 - np.arange(np.count_nonzero(missing))
    return filled


def _optional_column(table: pa.Table, name: str) -> pa.ChunkedArray | None:
    """The column, or None where it is absent or holds nothing but nulls."""
    if name not in table.column_names:
        return None
    column = one_column(table, name)
    return None if column.null_count == len(column) else column


def _need_text(kind: pa.DataType, name: str) -> None:
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ScoreTableError(f"column {name} is {kind}; it must hold strings")
