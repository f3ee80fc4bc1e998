"""Ratings read from CSV: what is read, and how each way of getting it wrong is told."""

from pathlib import Path

import pytest
from PIL import Image

from m3po_dagster.method.alignment.ratings import TOLD_AT_ONCE, RatingsError, by_prompt, read_ratings
from m3po_dagster.method.filtering import prompt_id
from m3po_dagster.storage.fingerprint import file_sha256


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    for name, colour in (("a", "red"), ("b", "blue"), ("copy_of_a", "red")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def written(folder: Path, *rows: str, header: str = "image,question,answer,rating") -> Path:
    path = folder / "ratings.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_an_answer_has_its_prompt_its_image_and_the_mean_of_its_ratings(folder):
    path = written(
        folder,
        "images/a.png,What?,Red.,4",
        'images/b.png,"What, exactly?","Blue,\nand nothing else.",2.5',
        "images/a.png,What?,Red.,5",
        "images/a.png,What?,Green.,1",
    )
    red, blue, green = read_ratings(path)
    assert (red.ratings, red.rating, blue.rating, green.rating) == ((4.0, 5.0), 4.5, 2.5, 1.0)
    assert (blue.prompt.question, blue.answer) == ("What, exactly?", "Blue,\nand nothing else.")
    assert red.image_sha256 == file_sha256(folder / "images" / "a.png")
    assert red.prompt.prompt_id == prompt_id(red.image_sha256, red.prompt.messages) == green.prompt.prompt_id
    assert list(by_prompt([red, blue, green]).values()) == [[0, 2], [1]]


def test_columns_come_in_any_order_others_are_ignored_and_a_byte_order_mark_is_no_name(folder):
    path = written(folder, "x,3,Red.,images/a.png,What?", header="\ufeffnote,rating,answer,image,question")
    assert [one.rating for one in read_ratings(path)] == [3.0]


def test_equal_pictures_are_one_image_whatever_they_are_called(folder):
    one, other = read_ratings(written(folder, "images/a.png,What?,Red.,4", "images/copy_of_a.png,What?,Blue.,2"))
    assert one.image_sha256 == other.image_sha256 and one.prompt.prompt_id == other.prompt.prompt_id
    assert len(by_prompt([one, other])) == 1


def test_images_may_lie_below_another_folder_and_an_answer_may_be_empty(folder):
    (read,) = read_ratings(written(folder, "a.png,What?,,1"), folder / "images")
    assert (read.answer, read.prompt.image_path) == ("", folder / "images" / "a.png")


def test_raters_are_told_apart_where_there_is_a_column(folder):
    header = "rater,image,question,answer,rating"
    (read,) = read_ratings(
        written(folder, "ann,images/a.png,What?,Red.,4", "bob,images/a.png,What?,Red.,2", header=header)
    )
    assert read.ratings == (4.0, 2.0)
    with pytest.raises(RatingsError, match=r"line 3, column rater: 'ann' rated this answer in line 2 already"):
        read_ratings(written(folder, "ann,images/a.png,What?,Red.,4", "ann,images/a.png,What?,Red.,2", header=header))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("images/a.png,What?,Red.,good", r"line 2, column rating: 'good' is no number"),
        ('images/a.png,What?,Red.,"3,5"', r"line 2, column rating: '3,5' is no number \(decimals take a point\)"),
        ("images/a.png,What?,Red.,", r"line 2, column rating: '' is no number"),
        ("images/a.png,What?,Red.,nan", r"line 2, column rating: 'nan' is no finite number"),
        ("images/a.png, ,Red.,3", r"line 2, column question: is empty"),
        (",What?,Red.,3", r"line 2, column image: is empty"),
        ("images/none.png,What?,Red.,3", r"line 2, column image: .*none\.png can't be read: No such file"),
        ("../a.png,What?,Red.,3", r"line 2, column image: '\.\./a\.png' is not a path below"),
        ("/etc/hostname,What?,Red.,3", r"line 2, column image: '/etc/hostname' is not a path below"),
        ("images/a.png,What?,Red, or so.,3", r"line 2: 5 cells where the header has 4 columns"),
        ('images/a.png,What?,"Red.,3', r"line 2: not valid CSV"),
    ],
)
def test_what_is_wrong_with_a_row_is_told_with_its_line_and_column(folder, row, message):
    with pytest.raises(RatingsError, match=rf"ratings\.csv, {message}"):
        read_ratings(written(folder, row))


def test_lines_are_counted_over_line_breaks_in_texts_and_empty_lines(folder):
    path = written(folder, 'images/a.png,What?,"Red\n\nand blue.",3', "", "images/a.png,What?,Red.,x")
    with pytest.raises(RatingsError, match=r"line 6, column rating"):
        read_ratings(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "image,question,answer,score",
            r"line 1: no column 'rating'; there are 'image', 'question', 'answer', 'score'",
        ),
        ("image;question;answer;rating", r"line 1: no column 'image'; there are 'image;question;answer;rating'"),
        ("image,question,answer,rating,rating", r"line 1: the column 'rating' stands twice"),
        ("image,question,answer,rating", r"no ratings, only a header"),
    ],
)
def test_headers(folder, header, message):
    with pytest.raises(RatingsError, match=message):
        read_ratings(written(folder, header=header))


def test_an_empty_file_and_one_that_is_no_text(folder):
    (folder / "ratings.csv").write_bytes(b"")
    with pytest.raises(RatingsError, match="is empty; it needs the columns image, question, answer, rating"):
        read_ratings(folder / "ratings.csv")
    (folder / "ratings.csv").write_bytes(
        "image,question,answer,rating\nimages/a.png,What?,Größer,3\n".encode("latin-1")
    )
    with pytest.raises(RatingsError, match=r"ratings\.csv: not UTF-8 \(byte 0xf6\)"):
        read_ratings(folder / "ratings.csv")


def test_many_problems_are_told_together_and_the_rest_counted(folder):
    with pytest.raises(RatingsError) as caught:
        read_ratings(written(folder, *["images/a.png,What?,Red.,x"] * (TOLD_AT_ONCE + 3)))
    lines = str(caught.value).splitlines()
    assert len(lines) == TOLD_AT_ONCE + 1 and lines[-1] == "and 3 more"
