"""What the base model can and gets wrong on unbiased scenes, and how its samples differ.

These are the figures of the model card; the graph measures its recipes with the benchmarks' own rules.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from m3po_dagster.world.language import KINDS, YES_NO_KINDS, Question, claims, true_answer
from m3po_dagster.world.lessons import draw_question
from m3po_dagster.world.negatives import SAMPLINGS, absent_thing
from m3po_dagster.world.scenes import Scene, absent_companions, compose, things_in
from m3po_dagster.world.tiles import Role, load_tiles

DESCRIBE = Question("describe")
MAX_NEW_TOKENS = 64
ANSWERS_AT_ONCE = 128
SAMPLES = 32
SAMPLED_SCENES = 40

Asked = Sequence[tuple[Scene, Question]]


def measure(model, processor, role: Role, scenes: int = 400, seed: int = 0) -> dict[str, float]:
    """Name -> value, in per cent but for counts of objects and of distinct samples.

    The scenes are new ones of `role`'s tiles, drawn from `seed`; every answer is greedy but for the samples' at T = 1.
    """
    rng = np.random.default_rng(seed)
    tiles = load_tiles(role)
    drawn = [compose(tiles, rng, biased=False) for _ in range(scenes)]
    figures = describe_figures(drawn, answers(model, processor, [(scene, DESCRIBE) for scene in drawn]))
    for sampling in SAMPLINGS:
        figures |= _pope_figures(model, processor, drawn, sampling, rng)
    for kind in KINDS:
        if kind != "describe":
            asked = [(scene, draw_question(kind, scene.cells, rng)) for scene in drawn]
            figures[f"right answers, {kind}"] = _share_right(asked, answers(model, processor, asked))
    asked = [
        (scene, draw_question(YES_NO_KINDS[number % len(YES_NO_KINDS)], scene.cells, rng, short=True))
        for number, scene in enumerate(drawn)
    ]
    figures["right answers, bare yes or no asked for"] = _share_right(asked, answers(model, processor, asked))
    return figures | _sample_figures(model, processor, drawn[:SAMPLED_SCENES], seed)


def describe_figures(scenes: Sequence[Scene], descriptions: Sequence[str]) -> dict[str, float]:
    """CHAIR of the descriptions, with what it must be read beside: recall, objects named, share of exact ones."""
    named = invented = found = present = with_invented = exact = companions = 0
    for scene, description in zip(scenes, descriptions, strict=True):
        there = set(things_in(scene.cells))
        said = [claim.thing for claim in claims(description).present]
        wrong = [thing for thing in said if thing not in there]
        named, invented, with_invented = named + len(said), invented + len(wrong), with_invented + bool(wrong)
        companions += sum(thing in absent_companions(scene.cells) for thing in wrong)
        present, found = present + len(there), found + len(there.intersection(said))
        exact += description == true_answer(scene.cells, DESCRIBE)
    return {
        "CHAIR-i": 100 * invented / max(named, 1),
        "CHAIR-s": 100 * with_invented / len(scenes),
        "recall of objects": 100 * found / present,
        "objects named a description": named / len(scenes),
        "exact descriptions": 100 * exact / len(scenes),
        "companions among invented objects": 100 * companions / max(invented, 1),
    }


def answers(model, processor, asked: Asked, samples: int = 1, seed: int | None = None) -> list[str]:
    """`samples` answers a question, together: greedy without a seed, else drawn at temperature 1 from it."""
    import torch
    from PIL import Image

    tokenizer = processor.tokenizer
    never = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, model.config.image_token_id]
    sampling = {"do_sample": True, "num_return_sequences": samples, "top_k": 0} if seed is not None else {}
    at_once = max(1, ANSWERS_AT_ONCE // samples)
    texts = []
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed or 0)
        for start in range(0, len(asked), at_once):
            part = asked[start : start + at_once]
            chats = [
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]}]
                for _, question in part
            ]
            inputs = processor(
                images=[Image.fromarray(scene.pixels) for scene, _ in part],
                text=processor.apply_chat_template(chats, add_generation_prompt=True),
                padding=True,
                return_tensors="pt",
            )
            output = model.generate(**inputs, **sampling, max_new_tokens=MAX_NEW_TOKENS, suppress_tokens=never)
            said = output[:, inputs["input_ids"].shape[1] :]
            texts += tokenizer.batch_decode(said, skip_special_tokens=True)
    return texts


def _pope_figures(model, processor, scenes: Sequence[Scene], sampling, rng: np.random.Generator) -> dict[str, float]:
    asked, labels = [], []
    for scene in scenes:
        there = draw_question("exists", scene.cells, rng, truth=True).thing
        for thing, label in ((there, True), (absent_thing(scene.cells, sampling, rng), False)):
            asked.append((scene, Question("exists", thing=thing, in_image=True)))
            labels.append(label)
    verdicts = [claims(text).verdict for text in answers(model, processor, asked)]
    by_question: dict[str, Counter] = defaultdict(Counter)
    for (_, question), label in zip(asked, labels, strict=True):
        by_question[question.text][label] += 1
    blind = sum(max(counts.values()) for counts in by_question.values())
    return {
        f"POPE {sampling}": 100 * np.mean([said is label for said, label in zip(verdicts, labels, strict=True)]),
        f"POPE {sampling}, yes-ratio": 100 * np.mean([said is True for said in verdicts]),
        f"POPE {sampling}, best answer to each question's text alone": 100 * blind / len(labels),
    }


def _share_right(asked: Asked, texts: Sequence[str]) -> float:
    """Share of answers that say what the true answer says, in its own words."""
    right = [text == true_answer(scene.cells, question) for (scene, question), text in zip(asked, texts, strict=True)]
    return 100 * float(np.mean(right))


def _sample_figures(model, processor, scenes: Sequence[Scene], seed: int) -> dict[str, float]:
    texts = answers(model, processor, [(scene, DESCRIBE) for scene in scenes], SAMPLES, seed)
    groups = [texts[start : start + SAMPLES] for start in range(0, len(texts), SAMPLES)]
    copies = [scene for scene in scenes for _ in range(SAMPLES)]
    return {
        f"distinct descriptions of {SAMPLES} samples": float(np.mean([len(set(group)) for group in groups])),
        "CHAIR-i of samples": describe_figures(copies, texts)["CHAIR-i"],
    }
