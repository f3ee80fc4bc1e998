"""Dual encoders of transformers: CLIP, SigLIP and SigLIP 2 against their own plain forwards, and what they encode."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_scorers
from tiny_llava import tiny_prompts
from zoo import family

from m3po_dagster.method.alignment.hf_clip import HfClipScorerSettings
from m3po_dagster.method.alignment.hf_encoder import HfEncoder
from m3po_dagster.method.alignment.sentences import windows

MODELS = ("clip", "joined", "siglip", "siglip2")
ANSWERS = (
    "There is a red circle. A blue triangle is on the left of the red square in the image.",
    "There is a red circle.",
    "Yes.",
    "It is a red circle, and there are two white dots and a black line at the bottom of the picture.",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: tiny_scorers.saved(getattr(tiny_scorers, name), tmp_path_factory.mktemp(name)) for name in MODELS}


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture
def settings(folders, name):
    return HfClipScorerSettings(model=str(folders[name]))


@pytest.fixture
def prompts(tmp_path):
    return tiny_prompts(tmp_path / "images", 3)


def plain_cosine(folder, image, text):
    """Image and text through one forward of the whole model, the text padded as its documentation has it."""
    import torch
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    inputs = processor.tokenizer(
        [text], padding="max_length", max_length=processor.tokenizer.model_max_length, return_tensors="pt"
    )
    with torch.no_grad():
        found = model(**inputs, **processor.image_processor(images=[image], return_tensors="pt"))
    return float(torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds))


def test_a_value_is_that_of_a_plain_forward(settings, folders, name, prompts):
    scored = settings.build().score([(prompt, [ANSWERS[1]]) for prompt in prompts])
    for prompt, (score,) in zip(prompts, scored, strict=True):
        assert score.value == pytest.approx(plain_cosine(folders[name], prompt.open_image(), ANSWERS[1]), abs=1e-5)
    assert len({round(score.value, 3) for (score,) in scored}) == 3


def test_with_tiles_a_statement_takes_its_best_view(settings, folders, name, prompts):
    tiled = settings.model_copy(update={"tiles": 2}).build()
    ((score,),) = tiled.score([(prompts[0], [ANSWERS[1]])])
    image = prompts[0].open_image()
    width, height = image.size
    boxes = [(0, 0, width, height)]
    boxes += [(x, y, x + width // 2, y + height // 2) for y in (0, height // 2) for x in (0, width // 2)]
    cosines = [plain_cosine(folders[name], image.crop(box), ANSWERS[1]) for box in boxes]
    assert score.value == pytest.approx(max(cosines), abs=1e-5)
    assert tiled.assessor.encoder.n_images == 5


def test_a_value_does_not_depend_on_the_batch(settings, prompts):
    scorer = settings.build()
    together = scorer.score([(prompt, ANSWERS) for prompt in prompts])
    for prompt, row in zip(prompts, together, strict=True):
        for answer, score in zip(ANSWERS, row, strict=True):
            ((alone,),) = scorer.score([(prompt, [answer])])
            assert alone.value == pytest.approx(score.value, abs=1e-5)
            assert alone.sub_scores == pytest.approx(dict(score.sub_scores), abs=1e-5)


def test_images_and_equal_texts_are_encoded_once(settings, prompts):
    scorer = settings.build()
    again = replace(prompts[0], prompt_id="again")
    scorer.score([(prompt, ANSWERS[:2]) for prompt in (*prompts, again)])
    encoder = scorer.assessor.encoder
    sentences = [*ANSWERS[0].split(". "), ANSWERS[1]]
    assert (encoder.n_images, encoder.n_texts) == (3, len({sentence.rstrip(".") for sentence in sentences}))


def test_padding_goes_to_the_longest_of_texts_of_like_length_or_where_it_is_seen_to_the_context(settings, name):
    encoder = HfEncoder(settings, batch_size=2)
    texts = ["a", "a red circle on the left of the blue square", "two", "a red circle and a blue triangle on the left"]
    lengths = sorted(len(encoder.processor.tokenizer(text)["input_ids"]) for text in texts)
    assert lengths[1] < lengths[2]
    vectors = encoder.encode_texts(texts)
    if name in ("clip", "joined"):
        assert encoder.n_tokens == 2 * lengths[1] + 2 * lengths[3] < 4 * lengths[3]
    else:
        assert encoder.n_tokens == 4 * encoder.context_length
    # In the order given, whatever order they went in.
    for text, vector in zip(texts, vectors, strict=True):
        assert encoder.encode_texts([text])[0] == pytest.approx(vector, abs=1e-5)
    assert np.linalg.norm(vectors[0] - vectors[1]) > 0.01


def test_a_long_sentence_is_seen_whole(settings, prompts):
    scorer = settings.build()
    long = "there is a red circle at the top left, " * 9 + "there is a blue triangle."
    fits = scorer.assessor.fits
    pieces = windows(long, fits)
    assert len(pieces) > 1
    tokenizer, context = scorer.assessor.encoder.processor.tokenizer, scorer.assessor.encoder.context_length
    assert all(len(tokenizer(piece)["input_ids"]) <= context for piece in pieces)
    score, other = scorer.score([(prompts[0], [long, long.replace("blue triangle", "green square")])])[0]
    assert score.sub_scores["hf_clip_statements"] == len(pieces)
    assert score.sub_scores["hf_clip_seen"] == 1.0
    assert score.value != other.value


def test_words_the_vocabulary_lacks_are_not_seen(folders, prompts):
    # Bytes spell every word; SigLIP 2's tokenizer here has letters only.
    for name, seen in (("clip", 1.0), ("siglip2", 0.75)):
        scorer = HfClipScorerSettings(model=str(folders[name])).build()
        ((score,),) = scorer.score([(prompts[0], ["A red circle \u732b."])])
        assert score.sub_scores["hf_clip_seen"] == seen


def test_what_cannot_be_scored_is_unscored_and_harms_nobody(settings, prompts, tmp_path):
    missing = replace(prompts[1], image_path=tmp_path / "missing.png")
    scorer = settings.build()
    rows = scorer.score([(prompts[0], ["", "... !", ANSWERS[1]]), (missing, [ANSWERS[1]])])
    assert [score.reason for row in rows for score in row] == [
        "answer has no words",
        "answer has no words",
        "scored",
        "image can't be read",
    ]
    assert scorer.score([]) == []
    assert scorer.score([(prompts[0], [])]) == [[]]
    assert [s.reason for s in scorer.score([(prompts[0], [""])])[0]] == ["answer has no words"]


def test_half_precision_changes_little(settings, prompts):
    batch = [(prompts[0], ANSWERS)]
    half = settings.model_copy(update={"dtype": "bfloat16"}).build()
    assert str(half.assessor.encoder.model.dtype) == "torch.bfloat16"
    for one, other in zip(half.score(batch)[0], settings.build().score(batch)[0], strict=True):
        assert one.value == pytest.approx(other.value, abs=0.05)


@pytest.mark.parametrize("other", ["blip_2", "llava"])
def test_a_model_without_two_towers_is_refused(other, tmp_path):
    folder = family(other, tmp_path)
    with pytest.raises(ValueError, match="is no dual encoder"):
        HfClipScorerSettings(model=str(folder)).build()


def test_missing_weights_are_an_error_not_random_numbers(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny_scorers.saved(tiny_scorers.clip, tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"hf_clip.*no dual encoder.*text_projection\.weight"):
        HfClipScorerSettings(model=str(folder)).build()


def test_pickled_weights_are_not_opened(tmp_path):
    import torch
    from safetensors.torch import load_file

    folder = tiny_scorers.saved(tiny_scorers.clip, tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="safetensors"):
        HfClipScorerSettings(model=str(folder)).build()


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"scorer 'hf_clip'.*nowhere"):
        HfClipScorerSettings(model=str(tmp_path / "nowhere")).build()
