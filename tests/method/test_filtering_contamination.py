import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.datasets.row import ImageFacts
from m3po_dagster.method.filtering import BenchmarkImages, FilterSettings, contaminated, filter_rows
from m3po_dagster.method.known_images.known import NAMES, known_benchmarks
from m3po_dagster.storage.tables import FILTERED_INSTRUCTIONS
from tests.method.source_rows import TELLING, drop_counts, image, row

POPE = 310196
MME = 6040
NEAR, NOT_SO_NEAR = TELLING ^ 0b11011, TELLING ^ 0b11111
KEPT = FILTERED_INSTRUCTIONS.schema


def run(*rows, benchmarks=None, turns="first", **contamination):
    chosen = FilterSettings(contamination=contamination, near_duplicate=False)
    return filter_rows(rows, chosen, turns=turns, benchmarks=benchmarks)


def reasons(result):
    return [(dropped["item_id"], dropped["reason"]) for dropped in result.dropped]


def own(*rows):
    """The images of a study's own benchmarks, as (image_uri, ImageFacts)."""
    return BenchmarkImages(
        benchmark=["chair"] * len(rows),
        image_uri=[uri for uri, _ in rows],
        sha256=[facts.sha256 for _, facts in rows],
        phash=[facts.phash for _, facts in rows],
    )


BENCHMARK = own(
    ("gone.png", ImageFacts()),
    ("val/1.png", image("one", phash=TELLING)),
    ("blank.png", image("blank", phash=1)),
    ("faint.png", image("faint", phash=0b1111)),
)


@pytest.mark.parametrize(
    ("uri", "benchmark"),
    [
        (f"COCO_val2014_{POPE:012}.jpg", "POPE"),
        (f"coco/train2017/{POPE:012}.jpg", "POPE"),
        (f"{POPE:012}.JPG", "POPE"),
        (f"{MME:012}.jpg", "MME"),
    ],
)
def test_an_image_of_a_known_benchmark_goes_under_all_its_names(uri, benchmark):
    (dropped,) = run(row(uri=uri)).dropped
    assert dropped["reason"] == "benchmark image (COCO id)"
    number = POPE if benchmark == "POPE" else MME
    assert dropped["detail"] == f"{uri} is image {number} of {benchmark} (id id0)"


@pytest.mark.parametrize("uri", [f"{POPE}.jpg", f"sa_{POPE:012}.jpg", "000000000009.jpg", f"{POPE:012}/a.png"])
def test_other_names_and_ids_stay(uri):
    assert len(run(row(uri=uri)).kept) == 1


def test_every_id_of_every_list_goes():
    ids = sorted({number for one in known_benchmarks().values() for number in one.coco_ids})
    rows = [row(record=at, uri=f"coco/train2017/{number:012}.jpg") for at, number in enumerate(ids)]
    assert len(ids) > 600
    assert drop_counts(run(*rows)) == {"benchmark image (COCO id)": len(ids)}
    assert len(run(*rows, known=[]).kept) == len(ids)


def test_only_the_named_lists_count():
    rows = [row(uri=f"{POPE:012}.jpg"), row(uri=f"{MME:012}.jpg", record=1)]
    assert reasons(run(*rows, known=["pope"])) == [("toy#0", "benchmark image (COCO id)")]
    assert reasons(run(*rows, known=["mme"])) == [("toy#1", "benchmark image (COCO id)")]


def test_an_image_that_one_row_names_is_known_in_the_others():
    same = image("the same bytes")
    rows = [
        row("What is it?", 0, "a.png", same),
        row("Where?", 1, f"{POPE:012}.jpg", same),
        row("Why not?", 2, "b.png"),
    ]
    result = run(*rows)
    assert reasons(result) == [(f"toy#{n}", "benchmark image (COCO id)") for n in (0, 1)]
    assert result.dropped[0]["detail"].startswith(f"{POPE:012}.jpg is image {POPE} of POPE")


@pytest.mark.parametrize(
    ("facts", "reason", "detail"),
    [
        (image("one"), "benchmark image (same file)", "the same bytes as val/1.png of chair"),
        (image("other", phash=TELLING), "benchmark image (looks the same)", "looks like val/1.png of chair: 0 of 64"),
        (image("other", phash=NEAR), "benchmark image (looks the same)", "looks like val/1.png of chair: 4 of 64"),
        (image("other", phash=NOT_SO_NEAR), None, None),
        (image("blank"), "benchmark image (same file)", "the same bytes as blank.png of chair"),
        (image("other blank", phash=1), None, None),
        (image("nearly faint", phash=0b111), None, None),
        (
            image("as faint", phash=0b11111),
            "benchmark image (looks the same)",
            "looks like faint.png of chair: 1 of 64",
        ),
    ],
)
def test_images_of_the_studys_own_benchmarks_go_by_bytes_and_by_looks(facts, reason, detail):
    asked = row(uri="a.png", facts=facts)
    dropped = run(asked, benchmarks=BENCHMARK).dropped
    assert [one["reason"] for one in dropped] == ([reason] if reason else [])
    assert all(one["detail"].startswith(detail) for one in dropped)
    assert len(run(asked, benchmarks=BENCHMARK, images=False).kept) == 1
    assert len(run(asked).kept) == 1


def test_the_distance_is_a_setting():
    near, not_so_near = row(facts=image("near", phash=NEAR)), row(facts=image("not so near", phash=NOT_SO_NEAR))
    assert len(run(near, benchmarks=BENCHMARK, distance=3).kept) == 1
    assert drop_counts(run(not_so_near, benchmarks=BENCHMARK, distance=5)) == {"benchmark image (looks the same)": 1}


def test_all_turns_about_a_benchmarks_image_go():
    talk = (("human", "What is it?"), ("gpt", "A bus."), ("human", "And why?"))
    result = run(row(talk, uri=f"{POPE:012}.jpg"), turns="each")
    assert reasons(result) == [(f"toy#0.{turn}", "benchmark image (COCO id)") for turn in (0, 1)]


@pytest.mark.parametrize(
    "question",
    [
        "Is there a snowboard in the image?",
        "<image>\nis there  an ELEPHANT in the image?",
        "Is there a train in this image? Please answer yes or no.",
        'Is the word in the logo "cold"?  Please answer yes or no.',
    ],
)
def test_questions_in_the_form_of_a_benchmarks_go(question):
    assert drop_counts(run(row(question))) == {"benchmark question": 1}
    assert len(run(row(question), templates=False).kept) == 1
    assert len(run(row(question), known=["llava_bench_coco"]).kept) == 1


@pytest.mark.parametrize(
    "question",
    [
        "What are the colors of the bus in the image?",
        "Is there a person visible in the image?",
        "Is the bus driving down the street or pulled off to the side?",
        "Is there a dog in the image? Describe it.",
        "What is this photo about?",
    ],
)
def test_ordinary_questions_stay(question):
    assert len(run(row(question)).kept) == 1


def kept_table(*rows):
    return pa.Table.from_pylist(
        [
            {**filter_rows([one], FilterSettings(contamination=False), turns="first").kept[0], "prompt_id": f"p{at}"}
            for at, one in enumerate(rows)
        ],
        KEPT,
    )


def test_the_count_on_the_result_finds_what_was_not_filtered():
    table = kept_table(
        row(),
        row(uri=f"coco/train2017/{POPE:012}.jpg"),
        row(uri="b.png", facts=image("one")),
        row(uri="c.png", facts=image("looks like one", phash=TELLING)),
    )
    leaks = contaminated(table, NAMES, BENCHMARK)
    assert [(leak.prompt_id, leak.reason) for leak in leaks] == [
        ("p1", "benchmark image (COCO id)"),
        ("p2", "benchmark image (same file)"),
    ]
    assert leaks[0].detail == f"coco/train2017/{POPE:012}.jpg is image {POPE} of POPE"
    assert leaks[1].detail == "b.png has the bytes of val/1.png of chair"
    assert [leak.prompt_id for leak in contaminated(table, ["mme"], None)] == []
    assert contaminated(KEPT.empty_table(), NAMES, BENCHMARK) == []
    with pytest.raises(ValueError, match="popee"):
        contaminated(table, ["popee"], None)


URIS = st.sampled_from(["a.png", f"{POPE:012}.jpg", f"x/COCO_val2014_{MME:012}.jpg", "000000000009.jpg"])
CONTENTS = st.sampled_from([image("one"), image("near", phash=NEAR), image("free"), image("blank")])


@given(st.lists(st.tuples(URIS, CONTENTS), max_size=8))
def test_nothing_is_left_of_what_was_filtered(made):
    rows = [row(f"Question {at}, what is it?", at, uri, facts) for at, (uri, facts) in enumerate(made)]
    result = run(*rows, benchmarks=BENCHMARK)
    assert contaminated(pa.Table.from_pylist(result.kept, KEPT), NAMES, BENCHMARK) == []
    assert len(result.kept) + len(result.dropped) == len(rows)


@pytest.mark.parametrize("order", [1, -1])
def test_an_image_that_looks_like_one_known_by_its_id_goes_with_it(order):
    """Visual Genome has many of COCO's images under numbers of its own."""
    pictures = [
        row(record=0, uri="vg/VG_100K/2354786.jpg", facts=image("vg", phash=NEAR)),
        row(record=1, uri=f"coco/train2017/{POPE:012}.jpg", facts=image("coco", phash=TELLING)),
        row(record=2, uri="vg/VG_100K/1.jpg", facts=image("other", phash=TELLING ^ (2**20 - 1))),
    ][::order]
    chosen = FilterSettings(contamination={"distance": 4})
    result = filter_rows(pictures, chosen, turns="first")
    assert [kept["image_uri"] for kept in result.kept] == ["vg/VG_100K/1.jpg"]


def test_an_image_inside_a_file_is_known_by_what_the_record_calls_it():
    packed = row(uri=".m3po/unpacked/42/42.png", facts=image("one"), name=f"COCO_val2014_{POPE:012}.png")
    assert reasons(run(packed)) == [("toy#0", "benchmark image (COCO id)")]
    (kept,) = filter_rows([packed], FilterSettings(contamination=False), turns="first").kept
    (leak,) = contaminated(pa.Table.from_pylist([kept], KEPT), NAMES, None)
    assert f"COCO_val2014_{POPE:012}.png is image {POPE} of POPE" in leak.detail
