"""What transformers itself makes of a prompt: the processor's own way in, `generate`, one plain forward an answer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo import family
from zoo.images import write_prompts

from m3po_dagster.method.generation.model import LoadedModel, load_model
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.prompt import Prompt


@dataclass(frozen=True)
class Zoo:
    """A family's model in a folder, loaded by this project, and as transformers loads it, untouched."""

    name: str
    folder: Path
    loaded: LoadedModel
    plain: Any
    prompts: list[Prompt]


def open_family(name: str, folder: Path) -> Zoo:
    """Writes the family's model and five prompts below `folder` and loads them."""
    from transformers import AutoModelForImageTextToText

    model = family(name, folder / "model")
    return Zoo(
        name,
        model,
        load_model(ModelSettings(path=str(model), device="cpu")),
        AutoModelForImageTextToText.from_pretrained(model).eval(),
        write_prompts(folder / "images"),
    )


def inputs_of(processor: Any, prompt: Prompt):
    """The processor's tensors of one prompt, all of it left to the processor."""
    if processor.chat_template:
        messages = prompt.chat()
        next(m for m in messages if m["role"] == "user")["content"][0]["image"] = prompt.open_image()
        return processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
    text = prompt.question
    if len(prompt.messages) == 3:
        asked, answered, text = (message.text for message in prompt.messages)
        text = f"Question: {asked} Answer: {answered} Question: {text} Answer:"
    inputs = processor(images=prompt.open_image(), text=text, return_tensors="pt")
    inputs.pop("labels", None)
    return inputs


def generated(zoo: Zoo, prompt: Prompt, **kwargs: Any) -> list[tuple[int, ...]]:
    """Token ids of each returned sequence by transformers' generate, cut after the first end of sequence."""
    import torch

    inputs, eos = inputs_of(zoo.loaded.processor, prompt), zoo.loaded.eos
    with torch.inference_mode():
        rows = zoo.plain.generate(
            **inputs,
            suppress_tokens=list(zoo.loaded.suppressed),
            eos_token_id=list(eos),
            pad_token_id=zoo.loaded.tokenizer.pad_token_id,
            **kwargs,
        )
    found = []
    for row in rows[:, inputs["input_ids"].shape[1] :].tolist():
        ends = [i for i, token in enumerate(row) if token in eos]
        found.append(tuple(row[: ends[0] + 1] if ends else row))
    return found


def full_forward(zoo: Zoo, prompt: Prompt, answer: tuple[int, ...]) -> list[float]:
    """Log-prob of each token: prompt and answer through the untouched model at once, no cache, no padding."""
    import torch

    inputs = dict(inputs_of(zoo.loaded.processor, prompt))
    tokens = torch.tensor([answer])
    start = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], tokens], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            # In PaliGemma 1 marks the answer; elsewhere 0 marks text.
            types = torch.full_like(tokens, int(zoo.name == "paligemma"))
            inputs[name] = torch.cat([inputs[name], types], dim=1)
    if "cross_attention_mask" in inputs:
        seen = inputs["cross_attention_mask"]
        inputs["cross_attention_mask"] = torch.cat([seen, seen[:, -1:].expand(-1, len(answer), -1, -1)], dim=1)
    with torch.inference_mode():
        logits = zoo.plain(**inputs, use_cache=False).logits[0, start - 1 : -1]
    return logits.double().log_softmax(dim=-1).gather(1, tokens.T)[:, 0].tolist()
