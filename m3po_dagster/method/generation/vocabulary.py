"""What the served engine needs of the local model's files: its processor, not its weights.

Token ids are those the server sampled. Where it gives them as strings only, they are found here, piece by piece.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from m3po_dagster.method.generation.candidates import normalise
from m3po_dagster.method.generation.encoding import render
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.generation.special_tokens import end_of_sequence, placeholders, suppressed
from m3po_dagster.method.prompt import Prompt
from m3po_dagster.method.remote_code import loading_from
from m3po_dagster.torchvision_repair import repair_torchvision

if TYPE_CHECKING:
    from transformers import ProcessorMixin

SPACE = "\u2581"
"""How SentencePiece writes a space."""
UNREADABLE = "\ufffd"


@dataclass(frozen=True)
class Vocabulary:
    """A processor; the ids that end an answer, those that must not be sampled, the texts that stand for an image."""

    processor: "ProcessorMixin"
    eos: tuple[int, ...]
    suppressed: tuple[int, ...]
    placeholders: tuple[str, ...]

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    def text(self, token_ids: Iterable[int]) -> str:
        """The answer that token ids spell, special tokens left out."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True).strip()

    def says(self, token_ids: Iterable[int], text: str) -> bool:
        """Whether token ids spell a text, but for white space and characters that were cut."""
        mine, theirs = (normalise(one.replace(UNREADABLE, "")) for one in (self.text(token_ids), text))
        return mine == theirs

    def needs_special_tokens(self, prompt: Prompt) -> bool:
        """Whether the tokenizer must put its own begin of sequence before the rendered conversation.

        A template that writes it itself must not get a second one. Raises PromptError as `render`.
        """
        bos = self.tokenizer.bos_token
        return bos is None or not render(self, prompt).startswith(bos)

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt as the processor reads it, image tokens included. Raises OSError for an unreadable image."""
        special = self.needs_special_tokens(prompt)
        read = self.processor(text=[render(self, prompt)], images=[[prompt.open_image()]], add_special_tokens=special)
        return tuple(read["input_ids"][0])

    def ids_of(self, pieces: Iterable[bytes]) -> tuple[int, ...]:
        """The ids of sampled pieces, each given as its own bytes.

        Raises ValueError for a piece that no token has, or several have: guessing would give ids nobody sampled.
        """
        found = []
        for piece in pieces:
            ids = self._ids_by_bytes.get(piece, ())
            if len(ids) != 1:
                problem = "no token" if not ids else f"{len(ids)} tokens"
                raise ValueError(f"{problem} of the local vocabulary spell the piece {piece!r}")
            found.append(ids[0])
        return tuple(found)

    @cached_property
    def _ids_by_bytes(self) -> dict[bytes, tuple[int, ...]]:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
        added, byte_level = set(self.tokenizer.get_added_vocab()), _is_byte_level(self.tokenizer)
        found: defaultdict[bytes, list[int]] = defaultdict(list)
        for token, index in self.tokenizer.get_vocab().items():
            if byte_level and token not in added:
                piece = bytes(byte_of[character] for character in token)
            else:
                piece = _bytes(token)
            found[piece].append(index)
        return {piece: tuple(ids) for piece, ids in found.items()}


def load_vocabulary(model: ModelSettings) -> Vocabulary:
    """Loads the processor and the configuration of a model.

    Raises FileNotFoundError when they can't be found, ValueError as `loading_from`.
    """
    repair_torchvision()
    from transformers import AutoConfig, AutoProcessor, GenerationConfig

    source = loading_from("model", model.path, model.revision, model.trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(model.path, **source)
        processor = AutoProcessor.from_pretrained(model.path, **source)
        try:
            generation = GenerationConfig.from_pretrained(model.path, revision=model.revision)
        except OSError:
            generation = GenerationConfig.from_model_config(config)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"model.path {model.path!r}: a served model needs the config and processor of the same model here: "
            f"{str(error).splitlines()[0]}"
        ) from error
    eos = end_of_sequence(generation, processor.tokenizer)
    return Vocabulary(processor, eos, suppressed(config, processor, eos), placeholders(config, processor))


def _is_byte_level(tokenizer: Any) -> bool:
    decoder = json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder") or {}
    return any(one["type"] == "ByteLevel" for one in (decoder, *decoder.get("decoders", ())))


def _bytes(token: str) -> bytes:
    """The bytes of a SentencePiece entry, or of a special token."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace(SPACE, " ").encode()
