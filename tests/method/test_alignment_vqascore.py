"""P(yes): against plain forwards in many families, what the model is asked to do, and on the embedded world's LLaVA."""

from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_llava import tiny_llava, tiny_prompts
from zoo import FAMILIES, MORE, family

import m3po_dagster.world
from m3po_dagster.method.alignment.statements import StatementScorer
from m3po_dagster.method.alignment.vqascore import IN_VAIN, VqaScoreSettings, YesNoAsker
from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.prompt import Message, Prompt
from m3po_dagster.world.language import SHORT_REQUEST
from m3po_dagster.world.scenes import THINGS, compose, things_in
from m3po_dagster.world.small_llava import IMAGE_SIZE, PATCH_SIZE, new_llava, new_processor
from m3po_dagster.world.tiles import load_tiles

LLAVA = Path(m3po_dagster.world.__file__).parent / "weights" / "llava"
ANSWERS = (
    "There is a red circle. A green triangle is on the left of the blue square in this image.",
    "There is a red circle.",
    "Two.",
    "A gray triangle is on the top.",
)
TOKENS_AN_IMAGE = (IMAGE_SIZE // PATCH_SIZE) ** 2
READ_WHOLE = ("instructblip", "paligemma")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def settings(folder):
    return VqaScoreSettings(model=str(folder), short_words=0)


@pytest.fixture(scope="module")
def scorer(settings):
    return settings.build()


@pytest.fixture
def prompts(tmp_path):
    return tiny_prompts(tmp_path / "images", 3)


def plain_share(folder, prompt, statement, template=VqaScoreSettings.model_fields["template"].default):
    """The whole question through one plain forward; the tokens of yes and no found by their texts."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, processor = AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    asked = replace(prompt, messages=(Message("user", template.replace("{text}", statement)),))
    text = (
        processor.apply_chat_template(asked.chat(), tokenize=False, add_generation_prompt=True)
        if processor.chat_template
        else asked.question
    )
    bos = processor.tokenizer.bos_token
    inputs = processor(
        text=[text],
        images=[[prompt.open_image()]],
        return_tensors="pt",
        add_special_tokens=bos is None or not text.startswith(bos),
    )
    inputs.pop("labels", None)
    with torch.no_grad():
        chances = model(**inputs).logits[0, -1].double().softmax(dim=-1)
    texts = {token: processor.tokenizer.decode([token]).strip().lower() for token in range(len(processor.tokenizer))}
    yes, no = (sum(float(chances[token]) for token, text in texts.items() if text == word) for word in ("yes", "no"))
    return yes / (yes + no)


def test_a_value_is_that_of_a_plain_forward(scorer, folder, prompts):
    scored = scorer.score([(prompt, ANSWERS[1:]) for prompt in prompts])
    for prompt, row in zip(prompts, scored, strict=True):
        for answer, score in zip(ANSWERS[1:], row, strict=True):
            assert score.value == pytest.approx(plain_share(folder, prompt, answer), abs=1e-5)
    assert len({round(row[0].value, 5) for row in scored}) == 3
    assert len({round(score.value, 5) for score in scored[0]}) == 3


@pytest.mark.parametrize(
    "name", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE if name not in FAMILIES)]
)
def test_every_family_is_asked_as_a_plain_forward_asks_it(name, tmp_path, prompts):
    folder = family(name, tmp_path / "model")
    scorer = VqaScoreSettings(model=str(folder), short_words=0).build()
    # A question that is read in both directions, or that the image is seen with, can't be read in two parts.
    assert scorer.assessor.together == (name not in READ_WHOLE)
    (row,) = scorer.score([(prompts[0], ANSWERS[1:])])
    for answer, score in zip(ANSWERS[1:], row, strict=True):
        assert score.value == pytest.approx(plain_share(folder, prompts[0], answer), abs=1e-4)


def test_image_and_the_begin_of_the_question_are_read_once(settings, prompts):
    asker = YesNoAsker(settings, load_model(settings.model_settings("cpu")))
    images = []
    asker.loaded.model.model.vision_tower.register_forward_pre_hook(lambda module, args: images.append(len(args[0])))
    again = replace(prompts[0], prompt_id="again")
    StatementScorer(settings, asker).score([(prompt, ANSWERS) for prompt in (*prompts, again)])
    assert sum(images) == asker.counts.images_encoded == asker.counts.prefill_forwards == 3
    assert asker.counts.scoring_forwards == 3
    # Four answers are five sentences, one of which stands twice.
    statements = (ANSWERS[1], ANSWERS[0].removeprefix(ANSWERS[1]).strip(), *ANSWERS[2:])
    questions = [settings.template.replace("{text}", statement) for statement in statements]
    tokens = [asker.loaded.tokenizer(f" USER:<image> {question} ASSISTANT:")["input_ids"] for question in questions]
    begin = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*tokens, strict=False))))
    # The template's first token, and 16 that stand for the image in place of one.
    assert asker.counts.prefill_tokens == 3 * (begin + 1 + TOKENS_AN_IMAGE - 1)
    assert asker.counts.scoring_tokens == 3 * sum(len(one) - begin for one in tokens)


def test_a_value_does_not_depend_on_the_batch(scorer, prompts):
    together = scorer.score([(prompt, ANSWERS) for prompt in prompts])
    for prompt, row in zip(prompts, together, strict=True):
        for answer, score in zip(ANSWERS, row, strict=True):
            ((alone,),) = scorer.score([(prompt, [answer])])
            assert alone.value == pytest.approx(score.value, abs=1e-5)
            assert alone.sub_scores == pytest.approx(dict(score.sub_scores), abs=1e-5)


def test_a_long_sentence_is_asked_about_in_windows(scorer, prompts):
    long = "there is a red circle on the left and " * 30 + "there is a blue triangle."
    score, other = scorer.score([(prompts[0], [long, long.replace("blue triangle", "green square")])])[0]
    assert score.sub_scores["vqascore_statements"] > 1
    assert score.sub_scores["vqascore_seen"] == 1.0
    assert score.value != other.value
    ((strange,),) = scorer.score([(prompts[0], ["there is a zebra."])])
    assert strange.sub_scores["vqascore_seen"] == 0.75


def test_what_cannot_be_asked_is_unscored_and_harms_nobody(scorer, settings, prompts, tmp_path):
    missing = replace(prompts[1], image_path=tmp_path / "missing.png")
    named = "There is an <image> in it."
    rows = scorer.score([(prompts[0], ["", named, ANSWERS[1]]), (missing, [ANSWERS[1]]), (prompts[2], [named])])
    assert [score.reason for row in rows for score in row] == [
        "answer has no words",
        IN_VAIN,
        "scored",
        "image can't be read",
        IN_VAIN,
    ]
    # A context that the image, the question and a short statement fill, but for one place.
    full = replace(scorer.assessor.loaded, context=100)
    lengths = [len(full.tokenizer(answer)["input_ids"]) for answer in ANSWERS[2:]]
    question = settings.template.replace("{text}", "")
    least = TOKENS_AN_IMAGE + len(full.tokenizer(f"<s> USER: {question} ASSISTANT:")["input_ids"])
    tight = YesNoAsker(settings, replace(full, context=least + lengths[0] + 1))
    (short, longer) = tight.assess([(prompts[0], ANSWERS[2:])])[0].values()
    assert isinstance(short, float)
    assert longer == IN_VAIN
    assert tight.assess([(prompts[0], ANSWERS[3:])]) == [{ANSWERS[3]: IN_VAIN}]


def test_the_template_is_what_is_asked(settings, folder, prompts):
    template = "{text} no or yes?"
    ((score,),) = settings.model_copy(update={"template": template}).build().score([(prompts[0], [ANSWERS[1]])])
    assert score.value == pytest.approx(plain_share(folder, prompts[0], ANSWERS[1], template), abs=1e-5)
    assert score.value != pytest.approx(plain_share(folder, prompts[0], ANSWERS[1]), abs=1e-5)
    for wrong in ("Is it true?", "{text} or {text}?"):
        with pytest.raises(ValueError, match=r"write \{text\} once"):
            VqaScoreSettings(model=str(folder), template=wrong)


def test_a_model_without_a_token_for_yes_is_refused(tmp_path):
    processor = new_processor(["no", "maybe"])
    new_llava(processor.tokenizer, seed=0).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"scorer 'vqascore'.*no token for 'yes'"):
        VqaScoreSettings(model=str(tmp_path)).build()


def test_half_precision_changes_little(settings, prompts):
    batch = [(prompts[0], ANSWERS)]
    half = settings.model_copy(update={"dtype": "bfloat16"}).build()
    assert half.assessor.loaded.precision == "bfloat16"
    assert half.assessor.together
    for one, other in zip(half.score(batch)[0], settings.build().score(batch)[0], strict=True):
        assert one.value == pytest.approx(other.value, abs=0.05)


def test_the_embedded_worlds_model_says_yes_to_what_is_there(tmp_path):
    """Asked as it was taught to be: of a thing that is there against one that is not, 3 of 4 times at least."""
    scorer = VqaScoreSettings(
        model=str(LLAVA), short_words=0, template=f"Is there {{text}} in this image? {SHORT_REQUEST}"
    ).build()
    rng, tiles = np.random.default_rng(0), load_tiles("validation")
    batch = []
    for number in range(40):
        scene = compose(tiles, rng, biased=False)
        Image.fromarray(scene.pixels).save(tmp_path / f"{number}.png")
        present = things_in(scene.cells)[0]
        absent = next(thing for thing in rng.permutation(np.array(THINGS, object)) if thing not in scene.cells)
        prompt = Prompt(str(number), tmp_path / f"{number}.png", (Message("user", "Describe the image."),))
        batch.append((prompt, [f"a {present}", f"a {absent}"]))
    found = scorer.score(batch)
    assert {score.sub_scores["vqascore_seen"] for row in found for score in row} == {1.0}
    assert np.mean([present.value > absent.value for present, absent in found]) >= 0.75
    assert scorer.assessor.together
