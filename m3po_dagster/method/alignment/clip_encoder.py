"""An open_clip model as two functions, image -> vector and text -> vector, that count what they encode."""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from m3po_dagster.method.alignment.open_clip_files import check_files, tokenizer_arguments
from m3po_dagster.method.alignment.scorer import LOCAL_DIR
from m3po_dagster.torchvision_repair import repair_torchvision

if TYPE_CHECKING:
    from PIL import Image


class ClipEncoder:
    """Loads a model by open_clip's own loader: a folder (open_clip's local-dir layout) or a name with its weights tag.

    `n_images` and `n_texts` count what went through the towers. Raises RuntimeError when the weights are missing
    (open_clip alone would go on with random ones), ValueError when they are pickled or a text tower comes from
    elsewhere, and what open_clip raises for unknown names or broken folders.
    """

    def __init__(self, model: str, pretrained: str | None = None, device: str = "cpu", batch_size: int = 64) -> None:
        repair_torchvision()
        import open_clip

        if Path(model).is_dir():
            model = f"{LOCAL_DIR}{model}"
        check_files(model, pretrained)
        self.device = device
        self.batch_size = batch_size
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(
            model, pretrained=pretrained, device=device, require_pretrained=True
        )
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(model, **tokenizer_arguments(model))
        self.context_length: int = self.tokenizer.context_length
        self.logit_scale: float = float(self.model.logit_scale.detach().exp())
        self.n_images = 0
        self.n_texts = 0

    def encode_images(self, images: Iterable["Image.Image"]) -> np.ndarray:
        """L2-normalised embeddings, shape (number of images, embedding size), float32."""
        import torch

        images, rows = iter(images), []
        while chunk := list(islice(images, self.batch_size)):
            pixels = torch.stack([self.preprocess(image) for image in chunk]).to(self.device)
            with torch.inference_mode():
                rows.append(self.model.encode_image(pixels, normalize=True).float().cpu().numpy())
            self.n_images += len(chunk)
        return np.concatenate(rows) if rows else np.empty((0, 0), np.float32)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """L2-normalised embeddings, shape (number of texts, embedding size), float32; each text must fit.

        open_clip's tokenizers pad every text to the whole context, which some of its towers were trained to see: texts
        of one length together would save nothing.
        """
        import torch

        rows = []
        for start in range(0, len(texts), self.batch_size):
            chunk = list(texts[start : start + self.batch_size])
            with torch.inference_mode():
                rows.append(
                    self.model.encode_text(self.tokenizer(chunk).to(self.device), normalize=True).float().cpu().numpy()
                )
            self.n_texts += len(chunk)
        return np.concatenate(rows) if rows else np.empty((0, 0), np.float32)

    def fits(self, text: str) -> bool:
        """Whether the whole text fits the text tower's context.

        One more position of context changes the last token exactly when something was cut; this holds for every
        tokenizer of open_clip, with or without a public way to count tokens.
        """
        cut = self.tokenizer([text], context_length=self.context_length)[0]
        longer = self.tokenizer([text], context_length=self.context_length + 1)[0]
        return bool((cut == longer[:-1]).all())

    def knows(self, word: str) -> bool:
        """Whether the tokenizer has tokens for the word; open_clip's own spells any word in bytes."""
        hugging_face = getattr(self.tokenizer, "tokenizer", None)
        if hugging_face is None or hugging_face.unk_token_id is None:
            return True
        return hugging_face.unk_token_id not in hugging_face(word, add_special_tokens=False)["input_ids"]
