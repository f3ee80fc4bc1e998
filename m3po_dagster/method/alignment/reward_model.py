"""A vision-language reward model as a scorer: one logit for image, conversation and answer (paper, section 3.3).

A reward model is a language model with a score head, trained on whole conversations in its own chat template. So it is
given the whole conversation with the answer as its last turn, never a part of it.
"""

import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from m3po_dagster.method.alignment.pretrained import LargePretrainedSettings, load_config, load_pretrained
from m3po_dagster.method.alignment.scorer import UNREADABLE_IMAGE, Batch, Score
from m3po_dagster.method.generation.memory import MemoryLimits, fitting, too_little
from m3po_dagster.method.generation.special_tokens import placeholders
from m3po_dagster.method.prompt import Message, Prompt

if TYPE_CHECKING:
    from PIL import Image
    from transformers import BatchFeature, PreTrainedConfig

ANSWERS_AT_ONCE = 8
TOO_LONG = "conversation longer than the model's context"
NAMES_IMAGE = "conversation names the model's image placeholder"
REFUSED = "chat template refuses the conversation"
ALONG_TOKENS = {"input_ids", "attention_mask", "token_type_ids"}


class RewardModelSettings(LargePretrainedSettings):
    """A vision-language reward model: a sequence classifier with one label, asked in its own chat template."""

    kind: Literal["reward_model"] = Field("reward_model", description="logit of a vision-language reward model")
    name: str = Field("reward_model", pattern=r"^[a-z][a-z0-9_]*$", description="column of the MAS table")

    def build(self, device: str = "cpu") -> "RewardModel":
        """Loads the model. Raises as `RewardModel`."""
        return RewardModel(self, device)


class RewardModel:
    """Raw logits, on the scale the model was trained to. An image is encoded once a prompt where the model allows it.

    `n_images` went through the vision tower, `n_rows` through the language model. Raises as `load_pretrained`, and
    ValueError for a model with more than one label, without a chat template, or whose value no image moves.
    """

    sub_scores = ()

    def __init__(self, settings: RewardModelSettings, device: str = "cpu", batch_size: int = ANSWERS_AT_ONCE) -> None:
        self.name = settings.name
        self.batch_size = batch_size
        what = "vision-language reward model"
        wrong = f"scorer '{settings.name}': model {settings.model!r} is no {what}"
        config = load_config(settings)
        try:
            classifier = classifier_class(config)
        except ValueError as error:
            raise ValueError(f"{wrong}: {error}") from error
        self.model, self.processor = load_pretrained(classifier, settings, device, what)
        if not hasattr(self.processor, "image_processor"):
            raise ValueError(f"{wrong}: its processor takes no images")
        if self.model.config.num_labels != 1:
            raise ValueError(f"{wrong}: it has {self.model.config.num_labels} labels, not one")
        if not self.processor.chat_template:
            raise ValueError(f"{wrong}: its processor has no chat template to ask it in")
        self._tell_padding()
        self.context: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self._placeholders = placeholders(self.model.config, self.processor)
        self._limits = MemoryLimits()
        self.n_images = self.n_rows = 0
        self._see_that_images_matter(wrong)
        self.n_images = self.n_rows = 0

    def score(self, batch: Batch) -> list[list[Score]]:
        """Equal answers of a prompt are one. Unscored: an answer without a word, an image that can't be read, a
        conversation that is too long, names the image placeholder, or is refused by the chat template.
        """
        return [self._scores(prompt, answers) for prompt, answers in batch]

    def _scores(self, prompt: Prompt, answers: Sequence[str]) -> list[Score]:
        try:
            image = prompt.open_image()
        except OSError:
            return [Score.unscored(UNREADABLE_IMAGE)] * len(answers)
        found: dict[str, Score] = {}
        texts: dict[str, str] = {}
        for answer in dict.fromkeys(answers):
            text = self._rendered(prompt, answer)
            if isinstance(text, Score):
                found[answer] = text
            else:
                texts[answer] = text
        for answer, value in zip(texts, self._values(image, list(texts.values())), strict=True):
            found[answer] = Score.unscored(TOO_LONG) if value is None else Score(value)
        return [found[answer] for answer in answers]

    def _rendered(self, prompt: Prompt, answer: str) -> str | Score:
        """The whole conversation as the model's text, or the score of one that can't be put to it."""
        from jinja2 import TemplateError

        if not re.search(r"\w", answer):
            return Score.unscored("answer has no words")
        said = Prompt(prompt.prompt_id, prompt.image_path, (*prompt.messages, Message("assistant", answer)))
        # A second placeholder would stand for an image that is not there.
        if any(placeholder in message.text for message in said.messages for placeholder in self._placeholders):
            return Score.unscored(NAMES_IMAGE)
        try:
            return self.processor.apply_chat_template(said.chat(), tokenize=False)
        except TemplateError:
            return Score.unscored(REFUSED)

    def _values(self, image: "Image.Image", texts: Sequence[str]) -> list[float | None]:
        """The logit of each text with the image, None for one that is too long; texts of like length go together."""
        found: dict[int, float | None] = {}
        rest = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        encoded: dict[str, Any] = {}
        while rest:
            some = rest[: min(self._limits.answers or self.batch_size, self.batch_size)]
            inputs = self._process([texts[i] for i in some], [image] * len(some))
            if long := self._too_long(inputs):
                # What is left of them is processed again: in the processors' tensors a row is not always a row.
                found |= {some[row]: None for row in long}
                rest = [i for i in rest if i not in found]
                continue
            values = fitting(lambda inputs=inputs: self._logits(self._image_once(inputs, encoded)))
            if values is not None:
                found |= zip(some, values, strict=True)
                rest = rest[len(some) :]
            elif not self._limits.halve_scoring(len(some)):
                raise too_little(f"scorer '{self.name}': one answer", self.model.device.type)
        return [found[i] for i in range(len(texts))]

    def _process(self, texts: Sequence[str], images: "Sequence[Image.Image]") -> "BatchFeature":
        bos = self.processor.tokenizer.bos_token
        inputs = self.processor(
            text=list(texts),
            images=[[image] for image in images],
            padding=True,
            padding_side="right",
            truncation=False,
            return_tensors="pt",
            # A template that writes the begin-of-sequence token itself must not get a second one.
            add_special_tokens=bos is None or not texts[0].startswith(bos),
        )
        return inputs.to(self.model.device, self.model.dtype)

    def _too_long(self, inputs: "BatchFeature") -> list[int]:
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        return [row for row, length in enumerate(lengths) if self.context is not None and length > self.context]

    def _image_once(self, inputs: "BatchFeature", encoded: dict[str, Any]) -> dict[str, Any]:
        """The inputs, all rows of one image, with its features in place of its pixels where the model takes them.

        `encoded` keeps them for the image's other answers.
        """
        import torch

        inner, rows, pixels = self.model.base_model, len(inputs["input_ids"]), inputs.get("pixel_values")
        if (
            pixels is None
            or pixels.ndim != 4
            or pixels.shape[0] != rows
            or set(inputs) - {*ALONG_TOKENS, "pixel_values"}
            or "mm_encoder_outputs" not in inspect.signature(inner.forward).parameters
        ):
            self.n_images += rows
            return dict(inputs)
        if "image" not in encoded:
            with torch.inference_mode():
                encoded["image"] = inner.get_image_features(pixel_values=pixels[:1], return_dict=True)
            self.n_images += 1
        features = encoded["image"].pooler_output
        repeated = [features[0]] * rows if isinstance(features, list | tuple) else features.expand(rows, -1, -1)
        outputs = type(encoded["image"])(pooler_output=repeated)
        return {
            **{name: inputs[name] for name in inputs if name in ALONG_TOKENS},
            "mm_encoder_outputs": {"image": outputs},
        }

    def _logits(self, inputs: dict[str, Any]) -> list[float]:
        import torch

        with torch.inference_mode():
            logits = self.model(**inputs).logits
        self.n_rows += len(logits)
        return logits.float().reshape(len(logits)).tolist()

    def _tell_padding(self) -> None:
        """Says in the config which token pads: the classifier looks for the last that does not."""
        tokenizer = self.processor.tokenizer
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        for config in (self.model.config, self.model.config.get_text_config()):
            config.pad_token_id = tokenizer.pad_token_id

    def _see_that_images_matter(self, wrong: str) -> None:
        """One conversation about four images: where the image does not reach the model, they have one value."""
        drawn = list(_drawn())
        text = self._rendered(
            Prompt("check", Path("drawn"), (Message("user", "Describe the image."),)), "A red circle."
        )
        if isinstance(text, Score):
            raise ValueError(f"{wrong}: {text.reason}")
        inputs = self._process([text] * len(drawn), drawn)
        if len(set(self._logits(dict(inputs)))) == 1:
            raise ValueError(f"{wrong}: {len(drawn)} different images have one value, so it does not see them")


def classifier_class(config: "PreTrainedConfig") -> Any:
    """transformers' own classifier of a model family; made of its parts, as its own are, for one that has none.

    A language model, images and all, under `model` and a linear layer `score` on the last token; its files may name the
    weights as those of the family's generative model do. Raises ValueError for a config without a model.
    """
    from transformers import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        MODEL_MAPPING,
        PreTrainedModel,
    )
    from transformers.conversion_mapping import (
        get_checkpoint_conversion_mapping,
        register_checkpoint_conversion_mapping,
    )
    from transformers.modeling_layers import GenericForSequenceClassification

    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    if not (type(config) in MODEL_MAPPING and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING):
        raise ValueError(f"{type(config).__name__} is no vision-language model's config")
    inner, generative = MODEL_MAPPING[type(config)], MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    name = f"{inner.__name__}ForSequenceClassification"
    names_in_files = [get_checkpoint_conversion_mapping(key) for key in (generative.__name__, config.model_type)]
    if known := next(filter(None, names_in_files), None):
        register_checkpoint_conversion_mapping(name, known, overwrite=True)
    family = next(base for base in inner.__mro__[1:] if issubclass(base, PreTrainedModel))
    return type(name, (GenericForSequenceClassification, family), {})


def _drawn() -> "Iterator[Image.Image]":
    from PIL import Image, ImageDraw

    for color, background in (("red", "white"), ("blue", "black"), ("green", "red"), ("white", "blue")):
        image = Image.new("RGB", (96, 64), background)
        ImageDraw.Draw(image).ellipse((8, 8, 40, 40), fill=color)
        yield image
