"""BLIP-2's matching head against the model's own forward, and how often each part of the model runs."""

from dataclasses import replace

import pytest
import tiny_scorers
from tiny_llava import tiny_prompts
from zoo import family

from m3po_dagster.method.alignment.blip2_itm import Blip2ItmSettings, Blip2Matcher
from m3po_dagster.method.alignment.sentences import windows

ANSWERS = ("A red cat. A dog on it.", "A red cat.", "No.", "Two blue dots on a red line.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_scorers.saved(tiny_scorers.blip2_retrieval, tmp_path_factory.mktemp("blip2"))


@pytest.fixture
def settings(folder):
    return Blip2ItmSettings(model=str(folder), short_words=0)


@pytest.fixture
def prompts(tmp_path):
    return tiny_prompts(tmp_path / "images", 3)


@pytest.fixture
def scorer(settings):
    return settings.build()


def test_a_value_is_that_of_a_plain_forward(folder, scorer, prompts):
    import torch
    from transformers import AutoProcessor, Blip2ForImageTextRetrieval

    model, processor = Blip2ForImageTextRetrieval.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    scored = scorer.score([(prompt, ANSWERS[1:]) for prompt in prompts])
    for prompt, row in zip(prompts, scored, strict=True):
        for answer, score in zip(ANSWERS[1:], row, strict=True):
            inputs = processor(images=prompt.open_image(), text=answer, return_tensors="pt")
            with torch.no_grad():
                logits = model(**inputs, use_image_text_matching_head=True).logits_per_image
            assert score.value == pytest.approx(float(logits.softmax(dim=1)[0, 1]), abs=1e-5)
    # Both matter: the image and the text.
    assert len({round(row[0].value, 4) for row in scored}) == 3
    assert len({round(score.value, 4) for score in scored[0]}) == 3


def test_the_vision_tower_runs_once_an_image_and_the_q_former_once_a_distinct_text(settings, prompts):
    scorer = settings.build()
    calls = {"vision": 0, "q-former": 0}

    def counted(part: str):
        def hook(module, args, kwargs, output):
            calls[part] += output.last_hidden_state.shape[0]

        return hook

    model = scorer.assessor.model
    model.vision_model.register_forward_hook(counted("vision"), with_kwargs=True)
    model.qformer.register_forward_hook(counted("q-former"), with_kwargs=True)
    again = replace(prompts[0], prompt_id="again")
    scorer.score([(prompt, ANSWERS) for prompt in (*prompts, again)])
    # Four answers are five sentences, one of which stands twice.
    assert calls == {"vision": 3, "q-former": 3 * 4}
    assert (scorer.assessor.n_images, scorer.assessor.n_pairs) == (3, 12)


def test_texts_are_padded_to_the_longest_of_their_like(settings, prompts):
    matcher = Blip2Matcher(settings, batch_size=2)
    texts = ["a", "two blue dots on a red line", "no", "a red cat on a blue line"]
    lengths = sorted(len(matcher.processor.tokenizer(text)["input_ids"]) for text in texts)
    together = matcher.assess([(prompts[0], texts)])[0]
    assert matcher.n_tokens == 2 * lengths[1] + 2 * lengths[3] < 4 * lengths[3]
    for text in texts:
        assert matcher.assess([(prompts[0], [text])])[0][text] == pytest.approx(together[text], abs=1e-5)


def test_a_value_does_not_depend_on_the_batch(scorer, prompts):
    together = scorer.score([(prompt, ANSWERS) for prompt in prompts])
    for prompt, row in zip(prompts, together, strict=True):
        for answer, score in zip(ANSWERS, row, strict=True):
            ((alone,),) = scorer.score([(prompt, [answer])])
            assert alone.value == pytest.approx(score.value, abs=1e-5)
            assert alone.sub_scores == pytest.approx(dict(score.sub_scores), abs=1e-5)


def test_a_sentence_of_more_than_32_tokens_is_seen_in_windows(scorer, prompts):
    long = "a red line on a blue line and a cat on it and a dog"
    pieces = windows(long, scorer.assessor.fits)
    lengths = [len(scorer.assessor.processor.tokenizer(piece)["input_ids"]) for piece in (long, *pieces)]
    # There would be positions for all of it.
    assert max(lengths[1:]) <= 32 < lengths[0] < scorer.assessor.model.config.qformer_config.max_position_embeddings
    score, other = scorer.score([(prompts[0], [long, long.replace("dog", "cow")])])[0]
    assert score.sub_scores["blip2_itm_statements"] == len(pieces) > 1
    assert score.value != other.value


def test_what_cannot_be_scored_is_unscored_and_harms_nobody(scorer, prompts, tmp_path):
    missing = replace(prompts[1], image_path=tmp_path / "missing.png")
    rows = scorer.score([(prompts[0], ["", ANSWERS[1]]), (missing, [ANSWERS[1]])])
    assert [score.reason for row in rows for score in row] == ["answer has no words", "scored", "image can't be read"]
    ((strange,),) = scorer.score([(prompts[0], ["A red \u732b."])])
    assert strange.sub_scores["blip2_itm_seen"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_changes_little(settings, prompts, dtype):
    batch = [(prompts[0], ANSWERS)]
    half = settings.model_copy(update={"dtype": dtype}).build()
    assert str(half.assessor.model.vision_model.dtype) == f"torch.{dtype}"
    for one, other in zip(half.score(batch)[0], settings.build().score(batch)[0], strict=True):
        assert one.value == pytest.approx(other.value, abs=0.05)


def test_a_blip2_that_was_trained_to_write_has_no_matching_head(tmp_path):
    with pytest.raises(ValueError, match=r"blip2_itm.*is no BLIP-2 with an image-text matching head"):
        Blip2ItmSettings(model=str(family("blip_2", tmp_path))).build()
