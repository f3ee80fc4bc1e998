"""An answer token by token, shaded by how likely the base model found each one."""

import logging
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from m3po_dagster.method.generation.settings import ModelSettings

SHADES = (-0.1, -0.5, -1.0, -2.0, -4.0)
"""Log-probs in nats that part the shades: shade 0 is at least the first, shade 5 below the last."""

_BOUNDS = tuple(-bound for bound in SHADES)

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Piece:
    """One token: its text, log-prob in nats, and shade from 0 (certain) to 5; None where it is unknown."""

    text: str
    logp: float | None
    shade: int | None


def shade(logp: float | None) -> int | None:
    """The shade of a log-prob."""
    return None if logp is None or logp != logp else bisect_left(_BOUNDS, -logp)


class Decoder:
    """Decodes tokens with the model's own tokenizer; `problem` says why there is none."""

    def __init__(self, model: ModelSettings) -> None:
        self.problem = ""
        self._tokenizer = None
        try:
            self._tokenizer = _tokenizer(model)
        except Exception as error:  # noqa: BLE001  (a tokenizer's libraries raise anything; the text is shown without it)
            self.problem = f"the tokenizer of {model.path} can't be loaded: {str(error).splitlines()[0]}"
            _LOG.warning("%s", self.problem)

    def pieces(self, token_ids: Sequence[int], logps: Sequence[float | None]) -> list[Piece]:
        """The tokens' texts in order; not to be asked of a decoder with a problem.

        The bytes of one character may be spread over tokens: it is shown with the last of them.
        """
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=False)
        pieces = []
        for token, logp in zip(token_ids, logps, strict=True):
            pieces.append(Piece(stream.step(self._tokenizer, token) or "", logp, shade(logp)))
        return pieces


def _tokenizer(model: ModelSettings):
    """A `tokenizers.Tokenizer` from this machine alone. No weights are read and torch is not needed."""
    from tokenizers import Tokenizer

    folder = Path(model.path)
    file = folder / "tokenizer.json"
    if file.is_file():
        return Tokenizer.from_file(str(file))
    if folder.is_absolute() and not folder.is_dir():
        raise FileNotFoundError("there is no such folder")
    from transformers import AutoTokenizer

    # Code that comes with a model is not run to show its tokens; said, since transformers would ask on a terminal.
    found = AutoTokenizer.from_pretrained(
        model.path, revision=model.revision, local_files_only=True, trust_remote_code=False
    )
    return found.backend_tokenizer


@lru_cache(maxsize=2)
def decoder(model: ModelSettings) -> Decoder:
    """The decoder of a model, loaded once."""
    return Decoder(model)
