"""`m3po data inspect` as a person and as a script use it, over files in the published layouts."""

import io
import json
import random
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset, Features, Value
from datasets import Image as HubImage
from PIL import Image
from typer.testing import CliRunner, Result

from m3po_dagster.cli.main import app
from m3po_dagster.datasets.settings import DatasetSettings
from m3po_dagster.method.filtering import FilterSettings, filter_rows
from m3po_dagster.method.known_images.known import known_benchmarks
from m3po_dagster.study import load_study
from tests.datasets.dataset_files import rows_of

ROOT = Path(__file__).parents[2]
LLAVA = ROOT / "m3po_dagster" / "world" / "weights" / "llava"
POPE_ID = "000000310196"
"""COCO id of an image of POPE's, which lies in train2017."""


@pytest.fixture(autouse=True)
def no_study_of_the_environment(monkeypatch):
    monkeypatch.delenv("M3PO_STUDY", raising=False)


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["data", "inspect", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output + result.stderr
    assert "Traceback" not in result.output
    return result


def run_json(*arguments: object, code: int = 0) -> dict:
    def no_token(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(run(*arguments, "--json", code=code).stdout, parse_constant=no_token)


def talk(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


def a_record(identity: str | int, image: str, *texts: str) -> dict:
    return {"id": identity, "image": image, "conversations": talk(*texts)}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Part of ShareGPT4V's mix665k: images of two collections, one of which lies elsewhere, and one that is missing."""
    for name in ("coco/train2017/000000000001.jpg", f"coco/train2017/{POPE_ID}.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((640, 480), 90).convert("RGB").save(tmp_path / name)
    (tmp_path / "big_disk").mkdir()
    Image.effect_noise((300, 400), 90).convert("RGB").save(tmp_path / "big_disk" / "sa_1.jpg")
    coco = "coco/train2017/000000000001.jpg"
    records = [
        a_record("1", coco, "<image>\nWhat is in the picture?", "Noise.", "And what colour is it mostly?", "Grey."),
        a_record(2, f"coco/train2017/{POPE_ID}.jpg", "What stands there?\n<image>", "A bus."),
        a_record("3", "sam/images/sa_1.jpg", "<image>\nDescribe the picture.", "Grey noise."),
        a_record("4", "gqa/images/4.jpg", "<image>\nWhere is it?", "Here."),
        {"id": "5", "conversations": talk("What is two and two?", "Four.")},
        {"id": "6", "image": coco, "conversations": "none"},
    ]
    (tmp_path / "mix.json").write_text(json.dumps(records))
    return tmp_path


def test_everything_about_a_file_as_json(folder):
    found = run_json(folder / "mix.json", "--folder", f"sam/images={folder / 'big_disk'}", "--turns", "each")
    assert list(found["sources"]) == ["mix"]
    facts = found["sources"]["mix"]
    assert (facts["format"], facts["records"], facts["text only"], facts["multi-turn"]) == ("llava_instruct", 6, 1, 1)
    assert facts["malformed"]["records"] == 1
    assert facts["malformed"]["kinds"][0]["examples"] == [
        {"record": 5, "id": "6", "detail": "conversations is a string, expected an array"}
    ]
    assert facts["prompts"] == {"turns": "each", "with an image in place": 4, "first": 4, "last": 4, "each": 5}
    assert facts["images of benchmarks"] == {"pope": 1}
    assert facts["ids of benchmarks are from"] == {"pope": known_benchmarks()["pope"].source}
    images = facts["images"]
    assert images["distinct"] == {"number": 4, "exact": True} and images["missing"]["records"] == 1
    prefixes = {one["prefix"]: (one["records"], one["missing"], one["folder"]) for one in images["prefixes"]}
    assert prefixes == {
        "coco/train2017": (2, 0, str(folder / "coco" / "train2017")),
        "sam/images": (1, 0, str(folder / "big_disk")),
        "gqa/images": (1, 1, None),
    }
    assert images["sample"]["pixels"]["shorter side"] == {"min": 300, "median": 480, "max": 480}
    sifted = facts["filters on the sample"]
    assert (sifted["prompts"], sifted["kept"]) == (4, 3)
    assert [(one["filter"], one["prompts"]) for one in sifted["dropped"]] == [("contamination", 1)]
    assert found["cost"]["of"].startswith("the paper's setting")
    # Three of four prompts of the sample are kept, so of four with an image in place.
    assert found["cost"]["candidates"] == [3 * 32, 3 * 32]
    assert found["cost"]["assumptions"]["judge image"].endswith("over 3 measured images")


def noise(path: Path, number: int) -> None:
    """A picture of coarse noise, as unlike any other as two photographs are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = Image.frombytes("L", (8, 8), random.Random(number).randbytes(64))
    small.resize((160, 120), Image.Resampling.BICUBIC).save(path)


@pytest.mark.parametrize("sample", [50, 20])
def test_the_filters_see_all_records_of_an_image_and_the_estimate_is_of_what_a_run_keeps(tmp_path, sample):
    german = ("Was macht der Mann auf dem Bild?", "Welche Farbe hat der Bus dort?", "Wo steht das rote Auto?")
    records = []
    for number in range(50):
        noise(tmp_path / "images" / f"{number}.png", number)
        for question in ("What is the man in the picture doing?",) * 3 + german:
            records.append(a_record(len(records), f"{number}.png", question))
    (tmp_path / "dup.json").write_text(json.dumps(records))
    found = run_json(tmp_path / "dup.json", "--sample", sample)
    sifted = found["sources"]["dup"]["filters on the sample"]
    assert (sifted["prompts"], sifted["kept"], sifted["records left out"]) == (6 * sample, sample, 0)
    dropped = {one["filter"]: one["prompts"] for one in sifted["dropped"]}
    assert dropped == {"exact_duplicate": 2 * sample, "language": 3 * sample}
    settings = DatasetSettings.model_validate(yaml.safe_load(found["study"])["dataset"])
    kept = len(filter_rows(rows_of(settings), FilterSettings(), turns="first").kept)
    assert found["cost"]["candidates"] == [32 * kept, 32 * kept] and kept == 50


@pytest.mark.parametrize("turns", ["first", "each"])
def test_a_record_that_asks_nothing_costs_no_other_its_place_in_the_estimate(folder, turns):
    coco = "coco/train2017/000000000001.jpg"
    records = [a_record(n, coco, f"What is in place number {n}?", "Noise.", "And beside it?") for n in range(4)]
    records += [{"id": "x", "image": coco, "conversations": talk("What?") * 2}] * 4
    (folder / "odd.json").write_text(json.dumps(records))
    found = run_json(folder / "odd.json", "--turns", turns)
    sifted = found["sources"]["odd"]["filters on the sample"]
    asked = 4 if turns == "first" else 8
    assert (sifted["prompts"], sifted["kept"]) == (asked, asked)
    assert found["cost"]["candidates"] == [32 * asked, 32 * asked]


def test_records_of_an_image_beyond_the_bound_are_told(folder):
    coco = "coco/train2017/000000000001.jpg"
    records = [a_record(n, coco, f"What is in place number {n}?") for n in range(70)]
    (folder / "many.json").write_text(json.dumps(records))
    assert "keep 64 of 64 prompts of the sample's images; 6 records of images" in run(folder / "many.json").stdout


def test_the_lines_for_a_study_are_a_study_s(folder):
    found = run_json(folder / "mix.json", "--folder", f"sam/images={folder / 'big_disk'}", "--take", 4)
    given = yaml.safe_load(found["study"])["dataset"]
    source = DatasetSettings.model_validate(given).sources["mix"]
    assert (source.format, source.take, source.image_root) == ("llava_instruct", 4, folder)
    assert source.folders == {"sam/images": folder / "big_disk"}
    assert source.path == folder / "mix.json"
    settings = yaml.safe_load((ROOT / "studies" / "llava15_7b.yaml").read_text())
    (folder / "mine.yaml").write_text(yaml.safe_dump({**settings, "dataset": given}))
    again = run_json("--study", folder / "mine.yaml")
    assert again["sources"] == found["sources"] and again["study"] is None


def picture_bytes() -> bytes:
    content = io.BytesIO()
    Image.effect_noise((320, 240), 90).convert("RGB").save(content, "PNG")
    return content.getvalue()


def rlaif_v(folder: Path) -> Path:
    columns = {name: ["x", "y"] for name in ("ds_name", "chosen", "rejected", "idx", "image_path")}
    images = [{"bytes": picture_bytes(), "path": None} for _ in range(2)]
    table = {**columns, "question": ["What is in the picture?", "Where was it taken?"], "image": images}
    pq.write_table(pa.table(table), folder / "RLAIF-V-Dataset_000.parquet")
    return folder


def save_to_disk(folder: Path) -> Path:
    features = Features({"image": HubImage(), "question": Value("string"), "answer": Value("string")})
    image = {"bytes": picture_bytes(), "path": None}
    rows = {
        "image": [image, image],
        "question": ["What is in the picture?", "Where was it taken?"],
        "answer": ["Noise.", "Here."],
    }
    Dataset.from_dict(rows, features=features).save_to_disk(folder / "saved")
    return folder / "saved"


def webdataset(folder: Path) -> Path:
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number, question in enumerate(("What is in the picture?", "Where was it taken?")):
            text = json.dumps({"question": question, "answer": "Noise."}).encode()
            for name, content in ((f"{number}.png", picture_bytes()), (f"{number}.json", text)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return folder / "00000.tar"


@pytest.mark.parametrize(
    ("write", "kind", "images"),
    [(rlaif_v, "rlaif_v", 2), (save_to_disk, "huggingface", 1), (webdataset, "webdataset", 2)],
)
def test_datasets_that_hold_their_images(tmp_path, write, kind, images):
    before = run_json(write(tmp_path))
    (facts,) = before["sources"].values()
    assert (facts["format"], facts["records"], facts["images"]["inside the files"]) == (kind, 2, 2)
    assert facts["images"]["distinct"] == {"number": images, "exact": True}
    assert facts["images"]["sample"]["pixels"]["width"]["median"] == 320
    assert facts["prompts"]["with an image in place"] == 2 and facts["answer characters"]["max"] > 0
    assert facts["filters on the sample"]["kept"] == facts["filters on the sample"]["prompts"] == 2
    settings = DatasetSettings.model_validate(yaml.safe_load(before["study"])["dataset"])
    assert [source.format for source in settings.sources.values()] == [kind]


def test_take_counts_the_subset_alone(folder):
    facts = run_json(folder / "mix.json", "--take", 4)["sources"]["mix"]
    assert facts["records"] - facts["malformed"]["records"] == 4


def test_the_tables_say_the_same(folder):
    shown = run(folder / "mix.json").stdout
    for words in (
        "a JSON array in LLaVA-Instruct's layout",
        "6 (1 text only, 1 multi-turn)",
        "conversations is a string, expected an array (record 5, id 6)",
        "prefix: 3, suffix: 1",
        "with turns first, 2 with an image in place",
        "nowhere: give --image-root or --folder",
        "pope: 1",
        "ids from THUDM/CogVLM coco_pope_random.json",
        "GPU-hours sampling",
        "decode_efficiency",
        "write this into your study:",
    ):
        assert words in shown, words


def test_what_is_wrong_is_told_in_the_first_record_s_own_words_with_its_line(tmp_path):
    good = {"image": "a.jpg", "question": "What is this?"}
    asks = [{"image": "a.jpg", "messages": [{"role": role, "content": "Hi."}]} for role in ("system", "tool")]
    # Blank lines are no records: the line that an editor shows is not the record's number.
    lines = [json.dumps(good), "", "", *map(json.dumps, asks), '{"image": "a.jpg", "question": "x', json.dumps(good)]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    shown = " ".join(run(tmp_path / "mine.jsonl").stdout.split())
    said = "line 4: messages[0].role is 'system', expected 'user' or 'assistant' (record 1, id 4)"
    assert f" 2 {said} 1 line 6: no JSON at character 31: Unterminated string (record 3, id #3)" in shown
    assert "'...'" not in shown
    kinds = run_json(tmp_path / "mine.jsonl")["sources"]["mine"]["malformed"]["kinds"]
    assert [(kind["records"], kind["examples"][0]["detail"][:7]) for kind in kinds] == [(2, "line 4:"), (1, "line 6:")]


BAD = [
    {"id": 1.5},
    {"id": "x" * 600},
    {"image": 5},
    {"image": ""},
    {"image": ["a.jpg"]},
    {"image": None, "images": ["a.jpg"]},
    {"question": None},
    {"question": []},
    {"question": "a\0b"},
    {"answer": []},
]
"""Each is wrong in a way of its own."""


@pytest.mark.parametrize(
    ("kinds", "told"), [(8, ""), (9, " 1 and 1 more of 9 kinds "), (10, " 2 and 2 more of 10 kinds ")]
)
def test_kinds_of_malformed_records_that_are_not_listed_are_counted(tmp_path, kinds, told):
    good = {"image": "a.jpg", "question": "What is this?"}
    (tmp_path / "odd.jsonl").write_text("\n".join(json.dumps({**good, **bad}) for bad in [{}, *BAD[:kinds]]))
    shown = " ".join(run(tmp_path / "odd.jsonl").stdout.split())
    assert f" malformed {kinds} " in shown and shown.count("(record ") == 8
    assert told in shown if told else "more of" not in shown


def test_folders_and_hosts_that_are_not_listed_are_counted(tmp_path):
    images = [f"{number}/x/1.jpg" for number in range(23)] + [f"http://h{number}.example/1.jpg" for number in range(23)]
    records = [a_record(image, image, "What is this?") for image in images]
    (tmp_path / "odd.json").write_text(json.dumps(records))
    shown = " ".join(run(tmp_path / "odd.json").stdout.split())
    assert " and 3 more of 23 folders 3 " in shown
    assert "h4.example: 1, and 18 more); fetched from nothing" in shown


def test_what_a_dataset_says_is_neither_markup_nor_control(folder):
    name = "[red]x[/red]\x1b[31m"
    record = {"id": name, "image": f"{name}/a.jpg", "conversations": [{"from": "x", "value": "y"}]}
    good = {"id": "1", "image": f"{name}/a.jpg", "conversations": talk("What is this?")}
    (folder / "hostile.json").write_text(json.dumps([record, good]))
    shown = run(folder / "hostile.json").stdout
    assert "\x1b" not in shown and "[red]x[/red]\ufffd[31m" in shown


def test_a_studys_sources_are_inspected_and_its_own_model_counts(folder):
    settings = yaml.safe_load((ROOT / "studies" / "llava15_7b.yaml").read_text())
    settings["model"] = {"path": str(LLAVA)}
    settings["generation"] = {"n": 4, "max_new_tokens": 16}
    settings["dataset"] = {
        "turns": "last",
        "sources": {
            "one": {"format": "llava_instruct", "path": str(folder / "mix.json"), "image_root": str(folder)},
            "two": {"format": "sharegpt4v", "path": str(folder / "mix.json"), "image_root": str(folder), "take": 1},
        },
    }
    settings["filters"] = {"contamination": False}
    study = folder / "study.yaml"
    study.write_text(yaml.safe_dump(settings))
    found = run_json("--study", study)
    assert list(found["sources"]) == ["one", "two"]
    prompts = sum(one["prompts"]["with an image in place"] for one in found["sources"].values())
    assert found["cost"]["candidates"] == [4 * prompts, 4 * prompts]
    assert "safetensors" in found["cost"]["assumptions"]["parameters"]
    assert "the model's own processor" in found["cost"]["assumptions"]["prompt"]
    assert all(one["prompts"]["turns"] == "last" for one in found["sources"].values())
    assert load_study(study).dataset.sources["two"].take == 1


def test_the_study_of_the_environment_counts(folder, monkeypatch):
    monkeypatch.setenv("M3PO_STUDY", str(ROOT / "studies" / "llava15_7b_judged.yaml"))
    cost = run_json(folder / "mix.json")["cost"]
    assert cost["of"] == "llava15_7b_judged"
    (judge,) = cost["judges"]
    assert (judge["name"], judge["cost"]) == ("llm_judge", [0, 0])


def test_your_own_rate_and_card(folder):
    slow, fast = (
        run_json(folder / "mix.json", "--tokens-per-second", rate)["cost"]["GPU-hours"]["sampling"] for rate in (10, 20)
    )
    assert slow[0] == slow[1] == pytest.approx(2 * fast[0], rel=0.01)
    a100, h100 = (
        run_json(folder / "mix.json", "--card", card)["cost"]["GPU-hours"]["total"][1] for card in ("a100", "h100")
    )
    assert h100 < a100


def test_images_that_may_lie_elsewhere_are_no_failure_but_a_root_without_them_is(folder):
    bare = folder / "far" / "away" / "mix.json"
    bare.parent.mkdir(parents=True)
    bare.write_text((folder / "mix.json").read_text())
    found = run_json(bare)
    assert "--image-root" in found["note"] and found["cost"]["candidates"] == [4 * 32, 4 * 32]
    wrong = run(bare, "--image-root", folder / "big_disk", code=1)
    assert "none of the images of 4 prompts is in place" in wrong.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"id": "1", "conversations": [{"from": "human", "value": "Hello?"}]}]', "no record has an image"),
        ('[{"id": "1", "image": "a.jpg", "conversations": [{"from": "gpt", "value": "Hello."}]}]', "no record has an"),
        ('[{"id": "1", "image": "a.jpg", "conversations": 7}]', "no record has an image"),
        ('[{"id": "1", "conversations": [{"from": "human", "va', "cut short"),
        ('{"question_id": 1, "image": "a.jpg", "text": "Is there?", "label": "yes"}', "POPE"),
        ("", "empty"),
    ],
)
def test_what_gives_no_prompt_fails_with_the_reason_and_status_1(tmp_path, content, said):
    path = tmp_path / "file.json"
    path.write_text(content)
    result = run(path, code=1)
    assert said in result.stderr


def test_a_broken_record_late_in_the_file_is_named(folder):
    path = folder / "mix.json"
    records = json.loads(path.read_text())
    whole = json.dumps(records * 20)
    path.write_text(whole[:-30])
    told = run(path, code=1).stderr
    assert str(path) in told and "record 119" in told and "character" in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name a file or folder to inspect, or a study with --study"),
        (("FILE", "--format", "csv"), "there is no such format"),
        (("FILE", "--folder", "sam"), "PREFIX=DIR"),
        (("FILE", "--folder", "../sam=/x"), "error: folders: '../sam' is no prefix of a relative path"),
        (("TAR", "--folder", "sam=/x"), "--folder: WebDataset tar shards hold their images"),
        (("--study", "STUDY", "--take", "3"), "are for a FILE"),
        (("--study", "nowhere.yaml"), "no such study file"),
    ],
)
def test_options_that_can_t_be_used_have_status_2(folder, arguments, said):
    places = {"FILE": folder / "mix.json", "TAR": webdataset(folder), "STUDY": ROOT / "studies" / "llava15_7b.yaml"}
    result = run(*(places.get(argument, argument) for argument in arguments), code=2)
    assert said in result.stderr and not result.stdout


def test_a_named_format_is_read_as_that(folder):
    assert "not UTF-8" in run(folder / "big_disk" / "sa_1.jpg", "--format", "llava_instruct", code=1).stderr
    assert run_json(folder / "mix.json", "--format", "sharegpt4v")["sources"]["mix"]["format"] == "sharegpt4v"


def test_nothing_is_written_and_no_network_is_asked(folder, monkeypatch):
    before = sorted(folder.rglob("*"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    run(folder / "mix.json")
    assert sorted(folder.rglob("*")) == before
