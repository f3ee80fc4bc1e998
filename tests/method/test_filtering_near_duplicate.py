import io

import imagehash
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from m3po_dagster.datasets.row import ROWS, ImageFacts
from m3po_dagster.method.filtering import FilterSettings, ImagesSeen, filter_rows
from m3po_dagster.method.filtering.near_duplicate import is_telling, looks_like
from tests.method.source_rows import TELLING, image, row, said

DEFAULT = FilterSettings()
BITS = [1 << bit for bit in (2, 11, 19, 23, 31, 42, 57, 60)]


def looks(differing):
    """A hash that differs from TELLING in so many bits."""
    return TELLING ^ sum(BITS[:differing])


def seen(*rows):
    return ImagesSeen.of_rows(rows)


def near_duplicates(*rows, images=None, chosen=DEFAULT):
    """Record numbers of the rows that near_duplicate drops, with what the image is said to look like."""
    result = filter_rows(rows, chosen, turns="each", images=images)
    found = [dropped for dropped in result.dropped if dropped["reason"] == "near-duplicate image"]
    return [(dropped["item_id"], dropped["detail"].split(":")[0]) for dropped in found]


def shot(record, differing, name=None, **facts):
    return row(
        uri=f"{record}.png", record=record, facts=image(name or f"bytes {record}", phash=looks(differing), **facts)
    )


def test_an_image_within_six_bits_of_an_earlier_one_goes_with_all_its_prompts():
    rows = [
        shot(0, 0),
        shot(1, 6),
        row(said("Where is it?", "Here.", "And why?"), 2, uri="1.png", facts=shot(1, 6).image),
        shot(3, 7),
        row("How many are there?", 4, uri="copy.png", facts=shot(0, 0).image),
    ]
    assert near_duplicates(*rows) == [
        (item, "looks like the image of toy#0") for item in ("toy#1.0", "toy#2.0", "toy#2.1")
    ]
    closer = FilterSettings(near_duplicate={"distance": 5})
    assert near_duplicates(*rows, chosen=closer) == [("toy#3.0", "looks like the image of toy#1")]


def test_what_was_dropped_drops_nothing():
    assert near_duplicates(shot(0, 0), shot(1, 6), shot(2, 8)) == [("toy#1.0", "looks like the image of toy#0")]


@pytest.mark.parametrize(("name", "facts"), [("image_size", (64, 64)), ("image_aspect", (2000, 300))])
def test_an_image_of_the_wrong_shape_drops_nothing_unless_shapes_do_not_count(name, facts):
    rows = [shot(0, 0, width=facts[0], height=facts[1]), shot(1, 1)]
    assert near_duplicates(*rows) == []
    off = FilterSettings(**{name: False})
    assert near_duplicates(*rows, chosen=off) == [("toy#1.0", "looks like the image of toy#0")]


def test_blank_images_are_like_no_other():
    blanks = [row(uri=f"{bits}.png", record=bits, facts=image(f"blank {bits}", phash=bits)) for bits in (0, 1, 3, 7)]
    assert near_duplicates(*blanks) == []
    assert is_telling(np.array([0, 7, 15, 2**64 - 1, 2**64 - 8, 2**64 - 16], np.uint64)).tolist() == [
        False,
        False,
        True,
        False,
        False,
        True,
    ]


def test_other_shards_count_and_every_shard_is_told_the_same():
    whole = [shot(number, number) for number in range(8)]
    images = seen(*whole)
    alone = [found for one in whole for found in near_duplicates(one, images=images)]
    assert alone == near_duplicates(*whole, images=images) == near_duplicates(*whole)
    assert [item for item, _ in alone] == [f"toy#{number}.0" for number in range(1, 7)]


def test_a_shard_of_another_dataset_is_an_error():
    with pytest.raises(ValueError, match=f"lack the image with sha256 {shot(1, 1).image.sha256}; build them from all"):
        near_duplicates(shot(1, 1), images=seen(shot(0, 0)))


def table(rows):
    """A table of several shards' rows."""
    shards = [pa.Table.from_pylist([one.to_dict() for one in rows[shard::3]], ROWS) for shard in range(3)]
    return pa.concat_tables(shards)


def test_the_order_is_that_of_the_study_whatever_the_table_s():
    rows = [
        row(uri="x", record=2, source="b", facts=image("x", phash=looks(0))),
        row(uri="y", record=10, source="a", facts=image("y", phash=looks(1))),
        row(uri="y", record=9, source="a", facts=image("y", phash=looks(1))),
        row(uri="bad", record=0, source="a", facts=ImageFacts("5" * 64, problem="image undecodable")),
        row(uri=None, record=1, source="a"),
    ]
    images = ImagesSeen.of(table(rows), ["a", "b"])
    assert list(zip(images.source.to_pylist(), images.record.tolist(), strict=True)) == [("a", 9), ("b", 2)]
    assert looks_like(images, DEFAULT).tolist() == [-1, 0]
    images = ImagesSeen.of(table(rows), ["b", "a"])
    assert list(zip(images.source.to_pylist(), images.record.tolist(), strict=True)) == [("b", 2), ("a", 9)]
    with pytest.raises(ValueError, match="a row of source 'a'; the study's are b"):
        ImagesSeen.of(table(rows), ["b"])


def test_no_images_are_no_error():
    images = ImagesSeen.of(ROWS.empty_table(), ["a"])
    assert looks_like(images, DEFAULT).tolist() == looks_like(seen(), DEFAULT).tolist() == []


HASHES = st.lists(
    st.tuples(
        st.integers(0, 9).map(lambda number: f"bytes {number}"),
        st.one_of(st.integers(0, 8).map(looks), st.sampled_from([0, 1, 2**64 - 1])),
        st.sampled_from([640, 640, 640, 100]),
    ),
    max_size=14,
    unique_by=lambda made: made[0],
)


def rows_of(made):
    return [
        row(uri=f"{number}.png", record=number, facts=image(name, width, width, phash))
        for number, (name, phash, width) in enumerate(made)
    ]


@given(HASHES, st.integers(0, 10), st.booleans())
def test_images_are_settled_one_by_one_in_dataset_order(made, distance, any_size):
    chosen = FilterSettings(near_duplicate={"distance": distance}, **({"image_size": False} if any_size else {}))
    expected, kept = [], []
    for number, (_, phash, width) in enumerate(made):
        counts = (any_size or width >= 112) and 4 <= phash.bit_count() <= 60
        like = [before for before in kept if (phash ^ made[before][1]).bit_count() <= distance] if counts else []
        expected.append(like[0] if like else -1)
        if counts and not like:
            kept.append(number)
    assert looks_like(seen(*rows_of(made)), chosen).tolist() == expected
    images = ImagesSeen.of(table(rows_of(made)[::-1]), ["toy"])
    assert looks_like(images, chosen).tolist() == expected


@given(HASHES, st.integers(0, 14))
def test_records_added_at_the_end_change_nothing(made, end):
    rows = rows_of(made)
    assert looks_like(seen(*rows), DEFAULT).tolist()[:end] == looks_like(seen(*rows[:end]), DEFAULT).tolist()


def drawn(seed):
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (320, 240), tuple(rng.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(picture)
    for _ in range(10):
        x, y, width, height = rng.integers(0, 300), rng.integers(0, 220), *rng.integers(20, 120, 2)
        draw.ellipse([int(x), int(y), int(x + width), int(y + height)], fill=tuple(rng.integers(0, 256, 3).tolist()))
    return picture


def compressed(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=30)
    return Image.open(io.BytesIO(buffer.getvalue()))


COPIES = {
    "JPEG of quality 30": compressed,
    "half the size": lambda picture: picture.resize((160, 120)),
    "a square": lambda picture: picture.resize((224, 224)),
    "greyscale": lambda picture: picture.convert("L"),
}


def hashed(name, picture):
    return image(name, phash=int(str(imagehash.phash(picture.convert("RGB"))), 16))


@pytest.mark.parametrize("copy", COPIES)
def test_copies_of_real_pictures_go_and_other_pictures_stay(copy):
    originals = [row(uri=f"{n}.png", record=n, facts=hashed(f"{n}", drawn(n))) for n in range(20)]
    copies = [
        row(uri=f"{n}.jpg", record=n, facts=hashed(f"copy of {n - 20}", COPIES[copy](drawn(n - 20))))
        for n in range(20, 40)
    ]
    found = near_duplicates(*originals, *copies)
    assert found == [(f"toy#{n + 20}.0", f"looks like the image of toy#{n}") for n in range(20)]


def test_blank_pictures_of_two_colours_both_stay():
    blanks = [
        row(uri=colour, record=n, facts=hashed(colour, Image.new("RGB", (320, 240), colour)))
        for n, colour in enumerate(("red", "blue", "black", "white"))
    ]
    assert near_duplicates(*blanks) == []
