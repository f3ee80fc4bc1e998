"""Which token ids end an answer, stand for images, or must never be sampled: read off config, processor, tokenizer."""

from typing import Any


def end_of_sequence(generation_config: Any, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end an answer: several in some models, such as the end of a turn beside the end of sequence."""
    return _ids(generation_config.eos_token_id) or _ids(tokenizer.eos_token_id)


def placeholders(config: Any, processor: Any) -> tuple[str, ...]:
    """The texts that the processor or the model would replace by an image or a video."""
    vocabulary = processor.tokenizer.get_vocab()
    ids = {id_ for kind in ("image", "video") for source in (config, processor) for id_ in _modality(source, kind)}
    named = {str(token) for kind in ("image_token", "video_token") if (token := getattr(processor, kind, None))}
    return tuple(sorted(named | {token for token, id_ in vocabulary.items() if id_ in ids}))


def suppressed(config: Any, processor: Any, eos: tuple[int, ...]) -> tuple[int, ...]:
    """The ids that must not be sampled, in order.

    They are the special tokens of the tokenizer (padding, begin of sequence, unknown, roles, image and tile markers)
    and those that config and processor name as a part of an image: an answer with a placeholder in it can't be scored.
    Never the ends of sequence, which many tokenizers also pad with.
    """
    tokenizer = processor.tokenizer
    special = {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}
    for source in (config, processor):
        for kind in ("image", "video", "vision_start", "vision_end", "boi", "eoi"):
            special.update(_modality(source, kind))
    return tuple(sorted(special - set(eos)))


def _modality(source: Any, kind: str) -> tuple[int, ...]:
    names = (f"{kind}_token_id", f"{kind}_token_ids", f"{kind}_token_index")
    return tuple(id_ for name in names for id_ in _ids(getattr(source, name, None)))


def _ids(value: int | list[int | None] | None) -> tuple[int, ...]:
    values = value if isinstance(value, list | tuple) else (value,)
    return tuple(id_ for id_ in values if id_ is not None)
