"""A dual encoder of transformers as two functions, image -> vector and text -> vector, that count what they encode."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from m3po_dagster.method.alignment.pretrained import PretrainedSettings, load_pretrained

if TYPE_CHECKING:
    import torch
    from PIL import Image

CHECK_TEXTS = ("a", "a red circle")
# Of vectors of length 1: what padding may move in float32, and steps of a coarser precision.
FLOOR, STEPS = 1e-4, 4


class HfEncoder:
    """Loads a model by transformers' own classes: whatever gives image and text features of one size.

    `n_images`, `n_texts` and `n_tokens` (padding included) count what went through the towers. Raises as
    `load_pretrained`, and ValueError for a model without two such towers.
    """

    def __init__(self, settings: PretrainedSettings, device: str = "cpu", batch_size: int = 64) -> None:
        from transformers import AutoModel

        self.batch_size = batch_size
        self.model, self.processor = load_pretrained(AutoModel, settings, device, "dual encoder")
        self.n_images = self.n_texts = self.n_tokens = 0
        wrong = f"scorer '{settings.name}': model {settings.model!r} ({type(self.model).__name__}) is no dual encoder"
        if not (hasattr(self.model, "get_image_features") and hasattr(self.model, "get_text_features")):
            raise ValueError(f"{wrong}: it has no image and text features")
        self.pads_to_longest = self._padding_changes_nothing(wrong)
        self.n_images = self.n_texts = self.n_tokens = 0

    def encode_images(self, images: "Iterable[Image.Image]") -> np.ndarray:
        """L2-normalised embeddings, shape (number of images, embedding size), float32."""
        import torch

        images, rows = iter(images), []
        while chunk := list(islice(images, self.batch_size)):
            # The parts, as transformers' own pipeline: SigLIP 2's processor would overrule a checkpoint's image sizes.
            inputs = self.processor.image_processor(images=chunk, return_tensors="pt")
            inputs = inputs.to(self.model.device, self.model.dtype)
            with torch.inference_mode():
                rows.append(_normalised(self.model.get_image_features(**inputs).pooler_output))
            self.n_images += len(chunk)
        return np.concatenate(rows) if rows else np.empty((0, 0), np.float32)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """L2-normalised embeddings, shape (number of texts, embedding size), float32; each text must fit.

        Texts of about one length go together, where the model's padding changes nothing.
        """
        if not len(texts):
            return np.empty((0, 0), np.float32)
        order = sorted(range(len(texts)), key=lambda i: self._length(texts[i]))
        rows = [
            self._encode([texts[i] for i in order[start : start + self.batch_size]], self.pads_to_longest)
            for start in range(0, len(texts), self.batch_size)
        ]
        return np.concatenate(rows)[np.argsort(order)]

    def fits(self, text: str) -> bool:
        """Whether the whole text fits the text tower's context."""
        return self._length(text) <= self.context_length

    def knows(self, word: str) -> bool:
        """Whether the tokenizer has tokens for the word."""
        tokenizer = self.processor.tokenizer
        return tokenizer.unk_token_id not in tokenizer(word, add_special_tokens=False)["input_ids"]

    def _length(self, text: str) -> int:
        return len(self.processor.tokenizer(text, verbose=False)["input_ids"])

    def _encode(self, texts: Sequence[str], to_longest: bool) -> np.ndarray:
        import torch

        padding = {"padding": True} if to_longest else {"padding": "max_length", "max_length": self.context_length}
        inputs = self.processor.tokenizer(list(texts), return_tensors="pt", **padding)
        with torch.inference_mode():
            vectors = _normalised(self.model.get_text_features(**inputs.to(self.model.device)).pooler_output)
        self.n_texts += len(texts)
        self.n_tokens += inputs["input_ids"].numel()
        return vectors

    def _padding_changes_nothing(self, wrong: str) -> bool:
        """Whether a short text beside a longer one is encoded as it is when padded to the whole context.

        SigLIP was trained to see the padding, CLIP never sees it. No config says so, and two texts show it. This also
        shows whether the towers go together.
        """
        import torch
        from PIL import Image

        try:
            positions = self.model.config.get_text_config().max_position_embeddings
            self.context_length: int = min(self.processor.tokenizer.model_max_length, positions)
            images = self.encode_images([Image.new("RGB", (64, 64), "red")])
            whole = self._encode(CHECK_TEXTS, to_longest=False)
            longest = self._encode(CHECK_TEXTS, to_longest=True)
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{wrong}: it can't encode an image and a text ({str(error).splitlines()[0]})") from error
        if images.shape[-1:] != whole.shape[-1:] or images.ndim != 2:
            raise ValueError(f"{wrong}: images become {images.shape[1:]} numbers, texts {whole.shape[1:]}")
        tolerance = max(FLOOR, STEPS * torch.finfo(self.model.dtype).eps)
        return bool(np.linalg.norm(whole - longest, axis=1).max() <= tolerance)


def _normalised(vectors: "torch.Tensor") -> np.ndarray:
    import torch

    return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()
