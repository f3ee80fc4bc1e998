"""BLIP-2's image-text matching head as a scorer: the probability that a statement goes with the image (section 3.3).

The Q-Former looks at image and text together, so it tells apart what two towers confuse. It is small beside the vision
tower: an image goes through the tower once, and its output into the Q-Former with each distinct text.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from m3po_dagster.method.alignment.calibration import Calibration, Identity
from m3po_dagster.method.alignment.pretrained import PretrainedSettings, load_pretrained
from m3po_dagster.method.alignment.statements import Assessment, StatementScorer, StatementSettings
from m3po_dagster.method.alignment.views import encode_views
from m3po_dagster.method.prompt import Prompt

if TYPE_CHECKING:
    import torch
    from PIL import Image

TEXT_TOKENS = 32
"""What BLIP-2 was trained to read at once; it has positions for more, which its published weights never learned."""


class Blip2ItmSettings(PretrainedSettings, StatementSettings):
    """BLIP-2's image-text matching head: Blip2ForImageTextRetrieval of transformers."""

    MEASURE: ClassVar[str] = "probability of a match"

    kind: Literal["blip2_itm"] = Field(
        "blip2_itm", description="probability that the answer's statements go with the image"
    )
    name: str = Field("blip2_itm", pattern=r"^[a-z][a-z0-9_]*$", description="column of the MAS table")
    calibration: Calibration = Field(
        Identity(), description="map of the raw value to [0, 1]; the raw value already lies there"
    )

    def build(self, device: str = "cpu") -> StatementScorer:
        """Loads the model on `device`. Raises as `load_pretrained`."""
        return StatementScorer(self, Blip2Matcher(self, device))


class Blip2Matcher:
    """Probabilities of a match; `n_images` went through the vision tower, `n_pairs` through the Q-Former.

    `n_tokens` are those of the texts, padding included.
    """

    def __init__(self, settings: PretrainedSettings, device: str = "cpu", batch_size: int = 64) -> None:
        from transformers import Blip2ForImageTextRetrieval

        self.batch_size = batch_size
        self.model, self.processor = load_pretrained(
            Blip2ForImageTextRetrieval, settings, device, "BLIP-2 with an image-text matching head"
        )
        self.context_length = min(TEXT_TOKENS, self.model.config.qformer_config.max_position_embeddings)
        self.n_images = self.n_pairs = self.n_tokens = 0

    def fits(self, text: str) -> bool:
        """Whether the text has at most as many tokens as BLIP-2 was trained to read."""
        return self._length(text) <= self.context_length

    def knows(self, word: str) -> bool:
        """Whether the tokenizer has tokens for the word."""
        tokenizer = self.processor.tokenizer
        return tokenizer.unk_token_id not in tokenizer(word, add_special_tokens=False)["input_ids"]

    def assess(self, asked: Sequence[tuple[Prompt, Sequence[str]]]) -> list[Assessment | None]:
        """The probability of a match, in [0, 1]; None for an image that can't be read."""
        seen = encode_views(self, [prompt for prompt, _ in asked], lambda image: [image])
        return [
            None if prompt.image_path not in seen else self._matches(seen[prompt.image_path], texts)
            for prompt, texts in asked
        ]

    def encode_images(self, images: "Iterable[Image.Image]") -> np.ndarray:
        """What the vision tower makes of each image, shape (number of images, patches, width), float32."""
        import torch

        images, rows = iter(images), []
        while chunk := list(islice(images, self.batch_size)):
            pixels = self.processor.image_processor(images=chunk, return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                seen = self.model.vision_model(pixels.to(self.model.device, self.model.dtype)).last_hidden_state
            rows.append(seen.float().cpu().numpy())
            self.n_images += len(chunk)
        return np.concatenate(rows) if rows else np.empty((0, 0, 0), np.float32)

    def _matches(self, seen: np.ndarray, texts: Sequence[str]) -> Assessment:
        """`seen` (1, patches, width): one image's."""
        import torch

        image = torch.from_numpy(seen).to(self.model.device, self.model.dtype)
        ordered = sorted(texts, key=self._length)
        found: dict[str, float] = {}
        for start in range(0, len(ordered), self.batch_size):
            some = ordered[start : start + self.batch_size]
            found |= zip(some, self._probabilities(image, some).tolist(), strict=True)
        return found

    def _probabilities(self, image: "torch.Tensor", texts: Sequence[str]) -> "torch.Tensor":
        """The matching branch of the model's own forward, from where the image is encoded."""
        import torch

        model = self.model
        # Its text is read from position 0, so the padding comes after.
        inputs = self.processor.tokenizer(list(texts), padding=True, padding_side="right", return_tensors="pt")
        inputs = inputs.to(model.device)
        with torch.inference_mode():
            queries = model.query_tokens.expand(len(texts), -1, -1)
            mask = torch.cat([inputs["attention_mask"].new_ones(queries.shape[:2]), inputs["attention_mask"]], dim=1)
            joined = model.qformer(
                query_embeds=model.embeddings(input_ids=inputs["input_ids"], query_embeds=queries),
                query_length=queries.shape[1],
                attention_mask=mask,
                encoder_hidden_states=image.expand(len(texts), -1, -1),
            ).last_hidden_state
            logits = model.itm_head(joined[:, : queries.shape[1]].to(model.itm_head.weight.dtype)).mean(dim=1)
        self.n_pairs += len(texts)
        self.n_tokens += inputs["input_ids"].numel()
        return logits.float().softmax(dim=-1)[:, 1].cpu()

    def _length(self, text: str) -> int:
        return len(self.processor.tokenizer(text, verbose=False)["input_ids"])
