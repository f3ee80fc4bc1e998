"""The base model: packed lessons equal single turns, training follows its seed, the committed weights work."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from m3po_dagster.world.base_model import (
    IGNORED,
    VERDICT_WEIGHT,
    Schedule,
    answer_logits,
    lesson_loss,
    new_lesson,
    patch_classes,
    to_pixel_values,
    train_base_model,
)
from m3po_dagster.world.build import (
    BASE_MODEL_FOLDER,
    SECOND_BASE_FOLDER,
    SECOND_SEED,
    SEED,
    save_base_model,
)
from m3po_dagster.world.language import WORDS, claims, true_answer
from m3po_dagster.world.lessons import draw_turns
from m3po_dagster.world.measure import DESCRIBE, answers, describe_figures, measure
from m3po_dagster.world.scenes import Scene, Thing, compose
from m3po_dagster.world.small_llava import new_llava, new_processor
from m3po_dagster.world.tiles import load_tiles

BRIEF = Schedule(tower_steps=3, tower_scenes=2, llava_steps=3, llava_scenes=2, warmup=1)


@pytest.fixture(scope="module")
def processor():
    return new_processor(WORDS)


@pytest.fixture(scope="module")
def lessons():
    """Three scenes with four turns each."""
    rng = np.random.default_rng(0)
    scenes = [compose(load_tiles("base"), rng, biased=True) for _ in range(3)]
    return scenes, [[(q.text, answer) for q, answer in draw_turns(scene.cells, rng, turns=4)] for scene in scenes]


@pytest.fixture(scope="module")
def committed():
    """The committed model and processor, as a user of the folder loads them."""
    from m3po_dagster.torchvision_repair import repair_torchvision

    repair_torchvision()
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return AutoModelForImageTextToText.from_pretrained(BASE_MODEL_FOLDER), AutoProcessor.from_pretrained(
        BASE_MODEL_FOLDER
    )


def weights_hash(model):
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def alone(model, processor, scene, question, answer):
    """Logits and ids of an answer's tokens from one plain forward over the chat template's text."""
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    image = Image.fromarray(scene.pixels)
    asked = processor(images=image, text=processor.apply_chat_template([user], add_generation_prompt=True))
    whole = processor(images=image, text=processor.apply_chat_template([user, reply]), return_tensors="pt")
    start = len(np.ravel(asked["input_ids"]))
    with torch.no_grad():
        return model(**whole).logits[0, start - 1 : -1], whole["input_ids"][0, start:]


def test_turns_packed_behind_one_prefix_are_as_if_asked_alone(processor, lessons):
    scenes, turns = lessons
    model = new_llava(processor.tokenizer, seed=3)
    with torch.no_grad():
        logits, targets = answer_logits(model, new_lesson(processor, [scene.pixels for scene in scenes], turns))
    singles = [
        alone(model, processor, scene, question, answer)
        for scene, row in zip(scenes, turns, strict=True)
        for question, answer in row
    ]
    assert targets.tolist() == torch.cat([ids for _, ids in singles]).tolist()
    torch.testing.assert_close(logits, torch.cat([single for single, _ in singles]), atol=2e-5, rtol=1e-4)


def test_the_loss_weighs_a_verdict_more(processor, lessons):
    scenes, turns = lessons
    model = new_llava(processor.tokenizer, seed=3)
    lesson = new_lesson(processor, [scene.pixels for scene in scenes], turns)
    verdicts = processor.tokenizer.convert_tokens_to_ids(["▁Yes", "▁No"])
    with torch.no_grad():
        logits, targets = answer_logits(model, lesson)
        loss = lesson_loss(model, lesson, verdicts).item()
    log_probs = torch.log_softmax(logits.double(), dim=-1)
    weighted = [
        (VERDICT_WEIGHT if target in verdicts else 1.0, -row[target].item())
        for row, target in zip(log_probs, targets.tolist(), strict=True)
    ]
    assert any(weight == VERDICT_WEIGHT for weight, _ in weighted)
    assert loss == pytest.approx(sum(w * value for w, value in weighted) / sum(w for w, _ in weighted), rel=1e-5)


def test_only_answers_are_learned_and_end_with_the_end_token(processor, lessons):
    scenes, turns = lessons
    lesson = new_lesson(processor, [scene.pixels for scene in scenes], turns)
    for row, labels, segments in zip(turns, lesson.labels, lesson.segments, strict=True):
        for number, (_, answer) in enumerate(row, start=1):
            learned = labels[(segments == number) & (labels != IGNORED)]
            assert processor.tokenizer.decode(learned) == f"{answer}</s>"
        assert (labels[segments <= 0] == IGNORED).all()


def test_pixel_values_are_the_processors_own(processor, lessons):
    images = [scene.pixels for scene in lessons[0]]
    expected = processor.image_processor([Image.fromarray(image) for image in images], return_tensors="pt")
    torch.testing.assert_close(to_pixel_values(processor, images), expected["pixel_values"], atol=1e-5, rtol=0)


def test_every_patch_is_taught_the_object_of_its_own_cell():
    red, blue = Thing("red", "circle"), Thing("blue", "triangle")
    grid = patch_classes([(red, None, blue, red)]).view(8, 8)
    corners = [grid[:4, :4], grid[:4, 4:], grid[4:, :4], grid[4:, 4:]]
    assert all((corner == corner[0, 0]).all() for corner in corners)
    kinds = [int(corner[0, 0]) for corner in corners]
    assert kinds[0] == kinds[3] != kinds[2] and kinds[1] == 24


def test_the_same_seed_trains_the_same_weights_and_loads_back(tmp_path):
    from transformers import AutoModelForImageTextToText

    seen = []
    model, processor = train_base_model(5, BRIEF, lambda stage, step, steps, loss: seen.append((stage, step, steps)))
    assert seen == [(stage, step, 3) for stage in ("tower", "language") for step in (1, 2, 3)]
    again, _ = train_base_model(5, BRIEF)
    other, _ = train_base_model(6, BRIEF)
    assert weights_hash(model) == weights_hash(again) != weights_hash(other)
    save_base_model(model, processor, tmp_path)
    assert weights_hash(AutoModelForImageTextToText.from_pretrained(tmp_path)) == weights_hash(model)


def test_a_few_steps_already_lower_the_loss():
    losses = {"tower": [], "language": []}
    schedule = Schedule(tower_steps=40, tower_scenes=8, llava_steps=40, llava_scenes=4, warmup=2)
    train_base_model(1, schedule, lambda stage, step, steps, loss: losses[stage].append(loss))
    for stage, values in losses.items():
        assert np.mean(values[-5:]) < 0.8 * np.mean(values[:3]), stage


def test_chair_counts_what_is_named_and_not_there():
    red, blue, teal = Thing("red", "circle"), Thing("blue", "triangle"), Thing("teal", "circle")
    scenes = [Scene((red, None, None, None), np.zeros(0)), Scene((red, teal, None, None), np.zeros(0))]
    said = [f"There is a {red}. There is a {blue}.", f"There is a {red}."]
    figures = describe_figures(scenes, said)
    assert figures["CHAIR-i"] == pytest.approx(100 / 3) and figures["CHAIR-s"] == 50
    assert figures["recall of objects"] == pytest.approx(200 / 3) and figures["objects named a description"] == 1.5
    assert figures["exact descriptions"] == 0 and figures["companions among invented objects"] == 100


def test_the_committed_model_is_small_and_says_how_it_was_made(committed):
    model, _ = committed
    assert sum(file.stat().st_size for file in BASE_MODEL_FOLDER.iterdir()) < 3_000_000
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    card = (BASE_MODEL_FOLDER / "README.md").read_text()
    assert f"seed {SEED}" in card and f"{model.num_parameters():,} parameters" in card


def test_the_second_committed_model_is_another_of_the_same_kind():
    from safetensors.torch import load_file

    folder = SECOND_BASE_FOLDER
    assert sum(file.stat().st_size for file in folder.iterdir()) < 3_000_000
    first, second = (load_file(one / "model.safetensors") for one in (BASE_MODEL_FOLDER, folder))
    assert {name: value.shape for name, value in first.items()} == {name: v.shape for name, v in second.items()}
    assert not torch.equal(*(one["language_model.model.embed_tokens.weight"] for one in (first, second)))
    for name in ("config.json", "tokenizer.json", "processor_config.json"):
        assert (folder / name).read_bytes() == (BASE_MODEL_FOLDER / name).read_bytes(), name
    assert f"--second-base`, seed {SECOND_SEED}" in (folder / "README.md").read_text()


def test_the_committed_model_sees_and_hallucinates(committed):
    figures = measure(*committed, "validation", scenes=60, seed=11)
    assert 10 <= figures["CHAIR-i"] <= 30 and figures["recall of objects"] >= 88
    assert figures["companions among invented objects"] >= 60
    assert figures["POPE random"] >= 85 and figures["POPE adversarial"] <= figures["POPE random"]
    # Places are its weak side, as its card says: "what_at" and "is_at" are not held to this.
    for kind in ("is_shape", "what_shape", "count", "is_count", "is_colour", "bare yes or no asked for"):
        assert figures[f"right answers, {kind}"] >= 75, kind
    assert figures["distinct descriptions of 32 samples"] >= 12


def test_the_committed_model_looks_at_the_image(committed):
    rng = np.random.default_rng(12)
    scenes = [compose(load_tiles("validation"), rng, biased=False) for _ in range(30)]
    blanks = [Scene(scene.cells, np.full_like(scene.pixels, 240)) for scene in scenes]
    seen = describe_figures(scenes, answers(*committed, [(scene, DESCRIBE) for scene in scenes]))
    blind = describe_figures(scenes, answers(*committed, [(scene, DESCRIBE) for scene in blanks]))
    assert blind["recall of objects"] < 0.5 * seen["recall of objects"]


def test_sampled_answers_follow_their_seed_and_survive_tokenizing(committed):
    model, processor = committed
    rng = np.random.default_rng(13)
    scenes = [compose(load_tiles("validation"), rng, biased=False) for _ in range(4)]
    asked = [(scene, question) for scene in scenes for question, _ in draw_turns(scene.cells, rng)]
    one, again, other = (answers(model, processor, asked, samples=4, seed=seed) for seed in (1, 1, 2))
    assert one == again != other and len(one) == 4 * len(asked)
    tokenizer = processor.tokenizer
    for text in one:
        ids = tokenizer(f" {text}").input_ids
        assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids
    assert np.mean([not claims(text).unparsed for text in one]) > 0.95
    assert all(claims(true_answer(scene.cells, question)).unparsed == () for scene, question in asked)
