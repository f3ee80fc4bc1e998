"""Which object to read for a byte of a stream, whatever was merged and whatever is not removed yet."""

from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.bucket_ledger.pieces import Piece, Stream, furthest, whole_until
from m3po_dagster.bucket_ledger.writer import FAN, _run

STREAM = Stream("org-vlm", "20260101T000000Z-1-abcd")
LAYOUT = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 15)), max_size=12)


def pieces(layout: list[tuple[int, int]]) -> list[Piece]:
    return [Piece.of(STREAM, start, start + size) for start, size in layout]


@given(LAYOUT)
def test_all_that_is_held_from_the_first_byte_on_is_found(layout):
    held = {byte for start, size in layout for byte in range(start, start + size)}
    first_gap = next(byte for byte in range(100) if byte not in held)
    assert whole_until(pieces(layout)) == first_gap


@given(LAYOUT, st.integers(0, 60))
def test_the_piece_for_a_byte_holds_it_and_leads_furthest(layout, position):
    found = furthest(pieces(layout), position)
    ends = [start + size for start, size in layout if start <= position < start + size]
    assert (found.end if found else None) == max(ends, default=None)


def test_a_piece_is_named_by_its_bytes_in_their_order():
    names = [Piece.of(STREAM, start, start + 5).key for start in (0, 5, 999_999_995)]
    assert names == sorted(names) and names[1] == "org-vlm/20260101T000000Z-1-abcd.0000000005-0000000010.jsonl"


@given(st.integers(0, 2000))
def test_pieces_stay_few_and_whole_however_many_lines_are_added(added):
    laid: list[tuple[int, Piece]] = []
    uploads = 0
    for place in range(added):
        laid.append((0, Piece.of(STREAM, place, place + 1)))
        uploads += 1
        while run := _run(laid, all_of_them=False):
            at = laid.index(run[0])
            laid[at : at + FAN] = [(run[0][0] + 1, Piece.of(STREAM, run[0][1].start, run[-1][1].end))]
            uploads += 1
    assert [piece.start for _, piece in laid[1:]] == [piece.end for _, piece in laid[:-1]]
    assert whole_until(piece for _, piece in laid) == added
    # As many pieces as the digits of the number of lines, written to base FAN, sum to.
    digits, left = [], added
    while left:
        left, digit = divmod(left, FAN)
        digits.append(digit)
    assert len(laid) == sum(digits) and uploads <= added * (1 + 1 / (FAN - 1))
