"""Groups of answers: every answer in exactly one request, in an order of chance, and what is asked again."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from m3po_dagster.method.alignment.judge_group import Group, in_groups, named, shown_order
from m3po_dagster.method.alignment.judge_image import ImageUrls, JudgeImage
from m3po_dagster.method.alignment.judge_request import RUBRIC, response_format
from m3po_dagster.method.prompt import Message, Prompt
from tests.served_judge import completion, entry

FIELDS = {"model": "m", "temperature": 0.0, "response_format": response_format(3)}


@pytest.fixture
def prompt(tmp_path) -> Prompt:
    Image.new("RGB", (24, 16), (255, 0, 0)).save(tmp_path / "a b.png")
    return Prompt("p", tmp_path / "a b.png", (Message("user", "Which colour?"),))


def group_of(prompt: Prompt, *texts: str, fields=FIELDS, revision="", urls=None, detail="auto") -> Group:
    ids = named(range(len(texts)))
    image = JudgeImage(prompt.image_path, urls, detail)
    return Group(prompt, image, ids, {key: texts[place] for key, place in ids.items()}, fields, revision)


def reply(*entries: dict) -> str:
    return completion(json.dumps({"seen": "", "grades": list(entries)})).body.decode()


@given(st.integers(0, 70), st.integers(1, 16))
def test_every_answer_is_in_one_group_and_groups_are_even(answers, size):
    groups = in_groups(list(range(answers)), size)
    assert [place for group in groups for place in group] == list(range(answers))
    assert len(groups) == -(-answers // size)
    assert not groups or max(map(len, groups)) - min(map(len, groups)) <= 1
    assert all(1 <= len(group) <= size for group in groups)


def test_the_order_is_chance_that_seed_and_prompt_decide():
    texts = [f"answer {i}" for i in range(8)]
    assert sorted(shown_order(texts, "p", 0)) == list(range(8))
    assert shown_order(texts, "p", 0) == shown_order(texts, "p", 0)
    assert len({tuple(shown_order(texts, prompt_id, seed)) for prompt_id in "pqrs" for seed in range(4)}) == 16
    # Each place is taken by each answer about equally often over many prompts: 1000 / 8 = 125 times.
    counts = [[0] * 8 for _ in texts]
    for number in range(1000):
        for place, answer in enumerate(shown_order(texts, f"prompt {number}", 0)):
            counts[answer][place] += 1
    assert min(map(min, counts)) > 85 and max(map(max, counts)) < 170


def test_what_requests_share_comes_first(prompt):
    """A provider's cache holds prefixes: rubric, then image and conversation, then the answers."""
    _, one = group_of(prompt, "x", "y").next_request()
    _, other = group_of(prompt, "z").next_request()
    system, user = one["messages"]
    assert system == {"role": "system", "content": RUBRIC} and len(RUBRIC) > 1500
    assert user["content"][:2] == other["messages"][1]["content"][:2]
    assert [part["type"] for part in user["content"]] == ["image_url", "text", "text"]
    assert json.loads(user["content"][2]["text"]) == {"answers": [{"id": "A", "text": "x"}, {"id": "B", "text": "y"}]}
    # The schema stands before all of it, so it must be the same however many answers a request has.
    assert one["response_format"] == other["response_format"]
    schema = one["response_format"]["json_schema"]
    item = schema["schema"]["properties"]["grades"]["items"]
    assert schema["strict"] and not schema["schema"]["additionalProperties"] and not item["additionalProperties"]
    assert list(item["properties"]) == item["required"] == ["id", "evidence", "relevance", "accuracy", "adherence"]
    assert item["properties"]["id"]["enum"] == ["A", "B", "C"]


def test_only_what_is_missing_is_asked_for_again_with_what_was_wrong(prompt):
    group = group_of(prompt, "x", "y", "z")
    first = group.next_request()
    assert first[0] == "first"
    group.take(reply(entry("A", 5, 5, 5), entry("B", 9, 5, 5)))
    purpose, body = group.next_request()
    assert purpose == "repair" and group.missing == ["B", "C"]
    assert body["messages"][:2] == first[1]["messages"]
    told = body["messages"][3]["content"]
    assert "B: grade out of range" in told and "C: no grade in the reply" in told and "A:" not in told
    assert 'give "grades" for B, C alone' in told and body["response_format"] == first[1]["response_format"]
    # The repair does not shake what was graded before.
    group.take(reply(entry("A", 1, 1, 1), entry("B", 2, 2, 2), entry("C", 3, 3, 3)))
    assert not group.missing
    assert [score.value for _, score in sorted(group.scores("j").items())] == [1.0, 0.25, 0.5]


@pytest.mark.parametrize(
    "useless", [completion(None), completion(None, refusal="no"), completion("{ on and on", finish_reason="length")]
)
def test_a_reply_with_nothing_to_mend_is_asked_for_anew(prompt, useless):
    group = group_of(prompt, "x")
    first = group.next_request()
    group.take(useless.body.decode())
    assert group.next_request() == first


@pytest.mark.parametrize(
    "useless", [completion(None), completion(None, refusal="no"), completion("{ on and on", finish_reason="length")]
)
def test_what_is_graded_is_not_asked_for_again_after_a_useless_repair(prompt, useless):
    group = group_of(prompt, "x", "y")
    group.take(reply(entry("A", 5, 5, 5), entry("B", 9, 5, 5)))
    repair = group.next_request()
    group.take(useless.body.decode())
    assert group.next_request() == repair and group.missing == ["B"]


def test_a_repair_that_fails_leaves_the_reason_with_the_id(prompt):
    group = group_of(prompt, "x", "y")
    group.take(reply(entry("A", 5, 5, 5)))
    group.take(completion("I can't mend it").body.decode())
    a, b = (score for _, score in sorted(group.scores("j").items()))
    assert (a.value, b.value, b.reason, b.words) == (1.0, None, "reply can't be read", "I can't mend it")


def test_the_key_holds_all_that_decides_a_reply(prompt, tmp_path):
    base = group_of(prompt, "x", "y").key
    assert group_of(prompt, "x", "y").key == base
    other_image = tmp_path / "other.png"
    Image.new("RGB", (24, 16), (0, 0, 255)).save(other_image)
    turns = (Message("user", "Hi"), Message("assistant", "Hello"), *prompt.messages)
    different = [
        group_of(prompt, "x", "z"),
        group_of(prompt, "y", "x"),
        group_of(prompt, "x"),
        group_of(prompt, "x", "y", revision="2"),
        group_of(prompt, "x", "y", fields={**FIELDS, "model": "n"}),
        group_of(prompt, "x", "y", fields={**FIELDS, "temperature": 1.0}),
        group_of(prompt, "x", "y", fields={**FIELDS, "reasoning_effort": "low"}),
        group_of(prompt, "x", "y", fields={**FIELDS, "response_format": response_format(4)}),
        group_of(prompt, "x", "y", detail="low"),
        group_of(prompt, "x", "y", detail="high"),
        group_of(Prompt("p", other_image, prompt.messages), "x", "y"),
        group_of(Prompt("p", prompt.image_path, turns), "x", "y"),
    ]
    assert len({base, *(group.key for group in different)}) == 13


def test_the_key_does_not_depend_on_where_the_image_lies_or_how_it_travels(prompt, tmp_path):
    base = group_of(prompt, "x").key
    copied = tmp_path / "copy.png"
    copied.write_bytes(prompt.image_path.read_bytes())
    urls = ImageUrls(folder=tmp_path, address="https://images.example/a/")
    assert group_of(Prompt("other id", copied, prompt.messages), "x").key == base
    by_address = group_of(prompt, "x", urls=urls)
    assert by_address.key == base
    _, body = by_address.next_request()
    assert body["messages"][1]["content"][0]["image_url"] == {"url": "https://images.example/a/a%20b.png"}


def test_another_rubric_is_another_key(prompt, monkeypatch):
    base = group_of(prompt, "x").key
    monkeypatch.setattr("m3po_dagster.method.alignment.judge_request.RUBRIC", RUBRIC + " Be strict.")
    assert group_of(prompt, "x").key != base


def test_an_image_outside_the_served_folder_is_sent_itself(prompt, tmp_path):
    """A probe's images, and those of known pairs, lie elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    urls = ImageUrls(folder=tmp_path / "elsewhere", address="https://images.example")
    _, body = group_of(prompt, "x", urls=urls).next_request()
    assert body["messages"][1]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    (tmp_path / "elsewhere" / "link.png").symlink_to(prompt.image_path)
    linked = Prompt("p", tmp_path / "elsewhere" / "link.png", prompt.messages)
    assert (
        "data:" in group_of(linked, "x", urls=urls).next_request()[1]["messages"][1]["content"][0]["image_url"]["url"]
    )


def test_how_often_a_group_is_asked(prompt):
    """Once and once more; what can't be mended not at all, unless a re-run asks anew."""
    group = group_of(prompt, "x", "y")
    assert group.requests_left(0, again=False) == 2 == group.requests_left(5, again=True)
    group.take(reply(entry("A", 5, 5, 5)))
    assert [group.requests_left(turns, again=False) for turns in (1, 2, 3)] == [1, 0, 0]
    for final in (completion(None, refusal="no"), completion("{ on and on", finish_reason="length")):
        group.take(final.body.decode())
        assert (group.requests_left(1, again=False), group.requests_left(1, again=True)) == (0, 2)
    group.take(reply(entry("B", 5, 5, 5)))
    assert group.requests_left(1, again=True) == 0
