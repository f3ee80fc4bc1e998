"""Vision-language reward models: against plain forwards, the image reaches them, nothing is cut."""

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
import tiny_scorers
from safetensors.torch import load_file, save_file
from zoo.images import write_prompts

from m3po_dagster.method.alignment.reward_model import (
    NAMES_IMAGE,
    TOO_LONG,
    RewardModel,
    RewardModelSettings,
    classifier_class,
)
from m3po_dagster.method.prompt import Message

# Gemma 3 has a classifier of its own in transformers, the others are made of its parts.
FAMILIES = ("gemma3", "llava", "qwen2_5_vl", "idefics3")
ANSWERS = (
    "There is a red circle, and there are two white dots at the bottom of the picture.",
    "A red square.",
    "Yes.",
    "No, there is no green circle.",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        name: tiny_scorers.saved(partial(tiny_scorers.reward_model, name), tmp_path_factory.mktemp(name))
        for name in FAMILIES
    }


@pytest.fixture(params=FAMILIES)
def folder(request, folders):
    return folders[request.param]


@pytest.fixture
def scorer(folder):
    return RewardModelSettings(model=str(folder)).build()


@pytest.fixture
def prompts(tmp_path):
    return write_prompts(tmp_path)


def plain_logit(folder, prompt, answer):
    """The model below the head in one plain forward over the whole conversation, its last state times the head."""
    import torch
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    chat = [*prompt.chat(), {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    text = processor.apply_chat_template(chat, tokenize=False)
    bos = processor.tokenizer.bos_token
    inputs = processor(
        text=[text],
        images=[[prompt.open_image()]],
        return_tensors="pt",
        add_special_tokens=bos is None or not text.startswith(bos),
    )
    with torch.no_grad():
        state = model(**inputs).last_hidden_state[0, -1]
    return float(load_file(folder / "model.safetensors")["score.weight"][0] @ state)


def test_a_value_is_that_of_a_plain_forward(scorer, folder, prompts):
    scored = scorer.score([(prompt, ANSWERS) for prompt in prompts])
    for prompt, row in zip(prompts, scored, strict=True):
        for answer, score in zip(ANSWERS, row, strict=True):
            assert score.value == pytest.approx(plain_logit(folder, prompt, answer), abs=1e-4)
            assert score.sub_scores == {}


def test_transformers_own_class_gives_the_same(folders, prompts):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoProcessor

    folder = folders["gemma3"]
    scorer = RewardModelSettings(model=str(folder)).build()
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert type(scorer.model) is type(model)
    processor = AutoProcessor.from_pretrained(folder)
    chat = [*prompts[0].chat(), {"role": "assistant", "content": [{"type": "text", "text": ANSWERS[0]}]}]
    text = processor.apply_chat_template(chat, tokenize=False)
    inputs = processor(text=[text], images=[[prompts[0].open_image()]], return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        expected = float(model(**inputs).logits)
    assert scorer.score([(prompts[0], [ANSWERS[0]])])[0][0].value == pytest.approx(expected, abs=1e-5)


def test_image_question_earlier_turns_and_answer_all_reach_the_model(scorer, prompts):
    turns = prompts[4]
    others = (
        turns,
        replace(turns, image_path=prompts[0].image_path),
        replace(turns, messages=(*turns.messages[:-1], Message("user", "Is it red?"))),
        replace(turns, messages=(turns.messages[0], Message("assistant", "Yes."), turns.messages[2])),
    )
    values = [score.value for row in scorer.score([(prompt, ANSWERS[1:3]) for prompt in others]) for score in row]
    assert all(abs(one - other) > 1e-3 for i, one in enumerate(values) for other in values[:i])


def test_a_value_does_not_depend_on_the_batch(scorer, prompts):
    together = scorer.score([(prompt, ANSWERS) for prompt in prompts])
    for prompt, row in zip(prompts, together, strict=True):
        for answer, score in zip(ANSWERS, row, strict=True):
            ((alone,),) = scorer.score([(prompt, [answer])])
            assert alone.value == pytest.approx(score.value, abs=1e-4)


@pytest.mark.parametrize(("name", "images"), [("gemma3", 2), ("llava", 2), ("qwen2_5_vl", 8)])
def test_an_image_is_encoded_once_a_prompt_where_the_model_takes_features(folders, prompts, name, images):
    scorer = RewardModel(RewardModelSettings(model=str(folders[name])), batch_size=3)
    scorer.score([(prompt, [*ANSWERS, ANSWERS[1]]) for prompt in prompts[:2]])
    assert (scorer.n_images, scorer.n_rows) == (images, 2 * len(ANSWERS))


def test_answers_of_like_length_go_together(folders, prompts):
    scorer = RewardModel(RewardModelSettings(model=str(folders["llava"])), batch_size=2)
    shapes = []
    scorer.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    mixed = (ANSWERS[0], ANSWERS[2], ANSWERS[0] + " Yes.", "No.")
    scorer.score([(prompts[0], mixed)])
    assert [rows for rows, _ in shapes] == [2, 2]
    assert shapes[0][1] < shapes[1][1] - 10


def test_a_conversation_longer_than_the_context_is_unscored_never_cut(scorer, prompts):
    long = " ".join(["a red square"] * 400)
    found = scorer.score([(prompts[0], [ANSWERS[0], long, ANSWERS[1]])])[0]
    assert [score.reason for score in found] == ["scored", TOO_LONG, "scored"]
    for score, answer in zip(found[::2], ANSWERS, strict=False):
        assert score.value == pytest.approx(scorer.score([(prompts[0], [answer])])[0][0].value, abs=1e-4)
    # Exactly as long is not longer.
    inputs = scorer._process([scorer._rendered(prompts[0], ANSWERS[0])], [prompts[0].open_image()])
    for room, reason in ((0, "scored"), (-1, TOO_LONG)):
        scorer.context = int(inputs["attention_mask"].sum()) + room
        assert scorer.score([(prompts[0], [ANSWERS[0]])])[0][0].reason == reason


def test_what_cannot_be_scored_is_unscored_and_harms_nobody(scorer, prompts, tmp_path):
    placeholder = scorer._placeholders[0]
    missing = replace(prompts[1], image_path=tmp_path / "missing.png")
    asks = replace(prompts[2], messages=(Message("user", f"What is {placeholder}?"),))
    rows = scorer.score(
        [(prompts[0], ["", f"A {placeholder}.", ANSWERS[1]]), (missing, ANSWERS[:2]), (asks, ANSWERS[:1])]
    )
    assert [[score.reason for score in row] for row in rows] == [
        ["answer has no words", NAMES_IMAGE, "scored"],
        ["image can't be read"] * 2,
        [NAMES_IMAGE],
    ]
    assert scorer.score([]) == []


def test_what_does_not_fit_in_memory_is_done_in_halves(folders, prompts):
    scorer = RewardModelSettings(model=str(folders["llava"])).build()
    expected = scorer.score([(prompts[0], ANSWERS)])[0]
    rows = []

    def small(module, args, kwargs):
        rows.append(len(kwargs["input_ids"]))
        if rows[-1] > limit:
            raise MemoryError

    scorer.model.register_forward_pre_hook(small, with_kwargs=True)
    limit = 1
    for one, other in zip(scorer.score([(prompts[0], ANSWERS)])[0], expected, strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-4)
    assert rows == [4, 2, 1, 1, 1, 1]
    limit = 0
    with pytest.raises(MemoryError, match="scorer 'reward_model': one answer"):
        scorer.score([(prompts[0], ANSWERS[:1])])


@pytest.mark.parametrize("naming", ["of today", "of old"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_files_may_name_weights_as_the_familys_generative_model_does(folders, prompts, tmp_path, name, naming):
    expected = RewardModelSettings(model=str(folders[name])).build()
    shutil.copytree(folders[name], tmp_path, dirs_exist_ok=True)
    old = {
        "model.language_model.": "model." if name == "qwen2_5_vl" else "language_model.model.",
        "model.visual.": "visual.",
        "model.vision_tower.": "vision_tower.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    }

    def renamed(key: str) -> str:
        begin = next((begin for begin in old if key.startswith(begin)), "")
        return old[begin] + key.removeprefix(begin) if begin and naming == "of old" else key

    weights = {renamed(key): value.contiguous() for key, value in expected.model.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    batch = [(prompts[0], ANSWERS)]
    found = RewardModelSettings(model=str(tmp_path)).build().score(batch)[0]
    for one, other in zip(found, expected.score(batch)[0], strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-5)


def test_half_precision_changes_little(folders, prompts):
    settings = RewardModelSettings(model=str(folders["llava"]))
    half = settings.model_copy(update={"dtype": "bfloat16"}).build()
    assert str(half.model.dtype) == "torch.bfloat16"
    for one, other in zip(
        half.score([(prompts[0], ANSWERS)])[0], settings.build().score([(prompts[0], ANSWERS)])[0], strict=True
    ):
        assert one.value == pytest.approx(other.value, abs=0.1)


def test_a_model_that_does_not_see_the_image_is_refused(tmp_path):
    folder = tiny_scorers.saved(partial(tiny_scorers.reward_model, "llava"), tmp_path)
    weights = load_file(folder / "model.safetensors")
    projector = [name for name in weights if "multi_modal_projector" in name]
    save_file(
        weights | {name: weights[name] * 0 for name in projector},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    assert projector
    with pytest.raises(ValueError, match=r"reward_model.*different images have one value"):
        RewardModelSettings(model=str(folder)).build()


def test_a_model_without_a_score_head_is_refused(tmp_path):
    from zoo import family

    with pytest.raises(ValueError, match=r"reward_model.*is no vision-language reward model.*score\.weight"):
        RewardModelSettings(model=str(family("gemma3", tmp_path))).build()


def test_several_labels_or_no_chat_template_are_refused(tmp_path):
    two = tiny_scorers.saved(partial(tiny_scorers.reward_model, "llava", labels=2), tmp_path / "two")
    with pytest.raises(ValueError, match="2 labels, not one"):
        RewardModelSettings(model=str(two)).build()
    folder = tiny_scorers.saved(partial(tiny_scorers.reward_model, "llava"), tmp_path / "bare")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        RewardModelSettings(model=str(folder)).build()


def test_a_head_of_another_size_than_the_config_says_is_refused(tmp_path):
    folder = tiny_scorers.saved(partial(tiny_scorers.reward_model, "llava", labels=3), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"], config["label2id"] = {"0": "reward"}, {"reward": 0}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"reward_model.*no vision-language reward model"):
        RewardModelSettings(model=str(folder)).build()


def test_a_model_of_another_kind_is_refused(tmp_path):
    folder = tiny_scorers.saved(tiny_scorers.clip, tmp_path)
    with pytest.raises(ValueError, match=r"scorer 'reward_model'.*CLIPConfig is no vision-language model's config"):
        RewardModelSettings(model=str(folder)).build()


def test_a_text_classifier_is_refused(tmp_path):
    from transformers import LlamaConfig, LlamaForSequenceClassification
    from zoo.tokens import byte_pairs
    from zoo.weights import TEXT_SIZES, special_ids

    tokenizer = byte_pairs(("<pad>", "<s>", "</s>"), {}, bos="<s>", eos="</s>", pad="<pad>")
    config = LlamaConfig(**TEXT_SIZES, **special_ids(tokenizer), num_labels=1)
    assert classifier_class(config) is LlamaForSequenceClassification
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="its processor takes no images"):
        RewardModelSettings(model=str(tmp_path)).build()
