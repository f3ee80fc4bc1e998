"""Records as the published files of LLaVA-Instruct and ShareGPT4V write them, file by file."""

import json

import pytest

from m3po_dagster.datasets.llava_instruct import read
from m3po_dagster.datasets.record import Record

LIMIT = 1 << 20


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


BUS = [
    human("<image>\nWhat are the colors of the bus in the image?"),
    gpt("The bus in the image is white and red."),
    human("What feature can be seen on the back of the bus?"),
    gpt("The back of the bus features an advertisement."),
    human("Is the bus driving down the street or pulled off to the side?"),
    gpt("The bus is driving down the street, which is crowded with people and other vehicles."),
]
DETAIL = [human("What do you see happening in this image?\n<image>"), gpt("The image depicts a busy street.")]
COMPLEX = [human("<image>\nWhat could be the reason for the crowd?"), gpt("A festival, judging by the banners.")]
SHORT = "\nAnswer the question using a single word or phrase."
CAPTION = [human("<image>\nWhat is this photo about'?"), gpt("In the heart of the image, a red bus stands.")]

FILES = {
    "llava_instruct_150k.json": [
        {"id": "000000033471", "image": "000000033471.jpg", "conversations": BUS},
        {"id": "000000033471", "image": "000000033471.jpg", "conversations": DETAIL},
    ],
    "llava_instruct_80k.json": [{"id": "000000052846", "image": "000000052846.jpg", "conversations": COMPLEX}],
    "conversation_58k.json": [{"id": "000000033471", "image": "000000033471.jpg", "conversations": BUS}],
    "detail_23k.json": [{"id": "000000525439", "image": "000000525439.jpg", "conversations": DETAIL}],
    "complex_reasoning_77k.json": [{"id": "000000391895", "image": "000000391895.jpg", "conversations": COMPLEX}],
    "llava_v1_5_mix665k.json": [
        {"id": "000000033471", "image": "coco/train2017/000000033471.jpg", "conversations": BUS},
        {"id": 2350823, "image": "vg/VG_100K_2/2350823.jpg", "conversations": [human("<image>\nWhere?" + SHORT)]},
        {"id": "wgByO4Y_0", "model": "", "conversations": [gpt("Sure."), human("Write a poem."), gpt("Roses.")]},
        {"id": "0iUZ7CW_0", "conversations": [human("Hello"), gpt("Hello!")], "model": "gpt4"},
    ],
    "sharegpt4v_instruct_gpt4-vision_cap100k.json": [
        {"id": "sa_545504", "image": "sam/images/sa_545504.jpg", "conversations": CAPTION}
    ],
    "share-captioner_coco_lcs_sam_1246k_1107.json": [
        {"id": 0, "image": "llava/llava_pretrain/images/00453/004539375.jpg", "conversations": CAPTION}
    ],
    "sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json": [
        {"id": "d2f61", "image": "share_textvqa/images/8a6c.jpg", "conversations": CAPTION},
        {"id": "landmark", "image": "web-landmark/images/Sacre Coeur.jpg", "conversations": CAPTION},
        {"id": "text", "image": None, "conversations": [human("Hello"), gpt("Hi")]},
    ],
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("indent", [None, 2])
def test_every_published_file_comes_back_as_it_stands(tmp_path, name, indent):
    raws = FILES[name]
    (tmp_path / name).write_text(json.dumps(raws, indent=indent))
    records = list(read(tmp_path / name, LIMIT))
    assert [type(record) for record in records] == [Record] * len(raws)
    assert [record.record for record in records] == list(range(len(raws)))
    for raw, record in zip(raws, records, strict=True):
        assert (record.source_id, record.image) == (str(raw["id"]), raw.get("image"))
        assert record.conversation == tuple((turn["from"], turn["value"]) for turn in raw["conversations"])
    assert len({record.sha256 for record in records}) == len(records)
