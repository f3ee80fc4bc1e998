"""The CLIP scorer on a real open_clip model: against a plain computation, what it encodes, what it can't score."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny_llava import tiny_prompts

from m3po_dagster.method.alignment.clip import ClipScorerSettings
from m3po_dagster.method.alignment.clip_encoder import ClipEncoder
from m3po_dagster.method.alignment.sentences import windows
from m3po_dagster.method.alignment.statements import StatementScorer
from m3po_dagster.method.alignment.views import tile_views
from m3po_dagster.method.prompt import Message
from m3po_dagster.torchvision_repair import repair_torchvision
from m3po_dagster.world.judge import JUDGE_FOLDER

ANSWERS = ("There is a red circle. There is a blue triangle.", "There is a red circle.", "Yes.")


@pytest.fixture
def scorer() -> StatementScorer:
    return ClipScorerSettings(model=str(JUDGE_FOLDER), tiles=2).build()


@pytest.fixture
def prompts(tmp_path):
    return tiny_prompts(tmp_path / "images", 3)


def flat(rows) -> list:
    return [(score.value, score.reason, dict(score.sub_scores)) for row in rows for score in row]


def test_values_are_those_of_a_plain_open_clip_computation(prompts):
    repair_torchvision()
    import open_clip
    import torch

    settings = ClipScorerSettings(model=str(JUDGE_FOLDER), tiles=2, quantile=0.25, low_weight=0.3)
    (score,) = settings.build().score([(prompts[0], [ANSWERS[0]])])[0]

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{JUDGE_FOLDER}")
    tokens = open_clip.get_tokenizer(f"local-dir:{JUDGE_FOLDER}")(
        ["There is a red circle.", "There is a blue triangle."]
    )
    image = prompts[0].open_image()
    width, height = image.size
    boxes = [(0, 0, width, height)]
    boxes += [(x, y, x + width // 2, y + height // 2) for y in (0, height // 2) for x in (0, width // 2)]
    with torch.no_grad():
        texts = model.eval().encode_text(tokens)
        views = model.encode_image(torch.stack([preprocess(image.crop(box)) for box in boxes]))
    cosines = torch.nn.functional.cosine_similarity(texts[:, None], views[None], dim=-1).max(dim=1).values.numpy()
    a, b = np.sort(cosines)
    assert score.sub_scores["clip_mean"] == pytest.approx((a + b) / 2, abs=1e-5)
    assert score.sub_scores["clip_low"] == pytest.approx(a + 0.25 * (b - a), abs=1e-5)
    assert score.value == pytest.approx(0.7 * (a + b) / 2 + 0.3 * (a + 0.25 * (b - a)), abs=1e-5)
    assert score.sub_scores["clip_statements"] == 2


def test_images_and_equal_statements_are_encoded_once(scorer, prompts):
    again = replace(prompts[0], prompt_id="again", messages=(Message("user", "Describe the image."),))
    scorer.score([(prompt, ANSWERS) for prompt in (*prompts, again)])
    assert scorer.assessor.encoder.n_images == 3 * (1 + 2 * 2)
    # Two distinct sentences, and Yes joined to four distinct questions, one of which needs two windows.
    joined = [f"{prompt.question} Yes." for prompt in (*prompts, again)]
    assert scorer.assessor.encoder.n_texts == 2 + sum(
        len(windows(text, scorer.assessor.encoder.fits)) for text in joined
    )


def test_without_tiles_only_the_whole_image_is_seen(prompts):
    scorer = ClipScorerSettings(model=str(JUDGE_FOLDER)).build()
    scorer.score([(prompts[0], ANSWERS)])
    assert scorer.assessor.encoder.n_images == 1


def test_a_batch_scores_as_its_answers_alone_and_repeats_itself(scorer, prompts):
    batch = [(prompt, ANSWERS) for prompt in prompts]
    together = scorer.score(batch)
    assert flat(scorer.score(batch)) == flat(together)
    for (prompt, answers), row in zip(batch, together, strict=True):
        for answer, score in zip(answers, row, strict=True):
            ((alone,),) = scorer.score([(prompt, [answer])])
            assert alone.value == pytest.approx(score.value, abs=1e-5)
            assert alone.sub_scores == pytest.approx(dict(score.sub_scores), abs=1e-5)


def test_a_long_sentence_is_seen_whole(scorer, prompts):
    clause = "there is a red circle at the top left, "
    start, long = clause * 2, clause * 9 + "there is a blue triangle."
    assert scorer.assessor.encoder.fits(start.strip())
    assert not scorer.assessor.encoder.fits(long)
    pieces = windows(long, scorer.assessor.encoder.fits)
    assert " ".join(pieces) == long
    (score,) = scorer.score([(prompts[0], [long])])[0]
    assert score.sub_scores["clip_statements"] == len(pieces) > 1
    # The end counts: another object there changes the value.
    (other,) = scorer.score([(prompts[0], [long.replace("blue triangle", "gray rectangle")])])[0]
    assert other.value != score.value


def test_seen_is_the_share_of_words_that_have_tokens(scorer, prompts, tmp_path):
    answers = ["There is a red zebra.", "There is a red circle.\n- a zebra\n- a circle"]
    strange, listed = scorer.score([(prompts[0], answers)])[0]
    # The embedded judge's tokenizer knows the world's words only; a list's marks are no words.
    assert strange.sub_scores["clip_seen"] == pytest.approx(4 / 5)
    assert listed.sub_scores["clip_seen"] == pytest.approx(8 / 9)
    spelled = ClipScorerSettings(model=str(own_tokenizer_model(tmp_path))).build()
    assert [score.sub_scores["clip_seen"] for score in spelled.score([(prompts[0], answers)])[0]] == [1, 1]


def test_a_model_with_open_clips_own_tokenizer_scores_as_it_does_by_itself(prompts, tmp_path):
    repair_torchvision()
    import open_clip
    import torch

    folder = own_tokenizer_model(tmp_path)
    ((score,),) = ClipScorerSettings(model=str(folder)).build().score([(prompts[0], [ANSWERS[1]])])
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    with torch.no_grad():
        text = model.eval().encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")([ANSWERS[1]]))
        image = model.encode_image(preprocess(prompts[0].open_image())[None])
    assert score.value == pytest.approx(float(torch.nn.functional.cosine_similarity(text, image)), abs=1e-5)


@pytest.mark.parametrize("answer", ["", " \n", "... !"])
def test_an_answer_without_a_word_is_unscored(scorer, prompts, answer):
    empty, scored = scorer.score([(prompts[0], [answer, ANSWERS[1]])])[0]
    assert (empty.value, empty.reason) == (None, "answer has no words")
    assert scored.value is not None


def test_an_unreadable_image_is_unscored_and_harms_nobody(scorer, prompts, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(prompts[1].image_path.read_bytes()[:60])
    missing = replace(prompts[2], image_path=tmp_path / "missing.png")
    rows = scorer.score([(prompts[0], ANSWERS), (replace(prompts[1], image_path=broken), ANSWERS), (missing, ["A."])])
    assert [len(row) for row in rows] == [3, 3, 1]
    assert all(score.value is not None for score in rows[0])
    assert {score.reason for row in rows[1:] for score in row} == {"image can't be read"}


def test_an_empty_batch_is_no_error(scorer):
    assert scorer.score([]) == []


def test_views_cover_every_pixel_once():
    image = Image.fromarray(np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3))
    whole, *crops = tile_views(image, 3)
    assert whole is image
    rows = [np.concatenate([np.asarray(crop) for crop in crops[i : i + 3]], axis=1) for i in (0, 3, 6)]
    assert (np.concatenate(rows) == np.asarray(image)).all()


@pytest.mark.parametrize(("tokenizer", "room"), [("hugging face", 24 - 1), ("open_clip's own", 12 - 2)])
def test_fits_is_exact_for_every_kind_of_tokenizer(tmp_path, tokenizer, room):
    folder = JUDGE_FOLDER if tokenizer == "hugging face" else own_tokenizer_model(tmp_path)
    encoder = ClipEncoder(str(folder))
    assert encoder.fits(" ".join(["red"] * room))
    assert not encoder.fits(" ".join(["red"] * (room + 1)))


def test_missing_weights_are_an_error_not_random_numbers(tmp_path):
    folder = own_tokenizer_model(tmp_path)
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(RuntimeError, match="could not be loaded"):
        ClipEncoder(str(folder))


def own_tokenizer_model(folder):
    """A CLIP of a few weights that uses open_clip's own byte-pair tokenizer."""
    repair_torchvision()
    import open_clip
    from safetensors.torch import save_file

    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 8, "layers": 1, "head_width": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    weights = open_clip.CLIP(**config).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "open_clip_model.safetensors")
    return folder
