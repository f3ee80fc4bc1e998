"""What a server's reply holds: samples with the ids that it sampled and their log-probs, or why a choice can't be used.

A choice counts only whole: ids, one log-prob each, and ids that spell its text with the local model's own vocabulary.
Text is never tokenised again.
"""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, Field, ValidationError

from m3po_dagster.method.generation.samples import Answer, Sample
from m3po_dagster.method.generation.vocabulary import Vocabulary

TOKEN_ID = re.compile(r"token_id:([0-9]+)")
"""How vLLM writes a token as its id."""
ABSENT = -9000.0
"""vLLM's -9999.0 stands for a log-prob it did not compute."""
ROUNDING = 1e-6


class _Token(BaseModel):
    token: str
    logprob: float
    bytes: list[Annotated[int, Field(ge=0, le=255)]] | None = None

    def piece(self) -> bytes:
        return self.token.encode() if self.bytes is None else bytes(self.bytes)


class _LogProbs(BaseModel):
    content: list[_Token] | None = None


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    index: int | None = None
    message: _Message
    finish_reason: str | None = None
    logprobs: _LogProbs | None = None
    # vLLM's name and SGLang's.
    token_ids: list[int] | None = Field(None, validation_alias=AliasChoices("token_ids", "completion_token_ids"))


class _Usage(BaseModel):
    completion_tokens: int


class _Reply(BaseModel):
    choices: list[Any]
    usage: _Usage | None = None
    prompt_token_ids: list[int] | None = None


class UnusableReply(ValueError):
    """A reply, or a choice of one, that gives no sample; the message says why."""


def read_samples(body: bytes, n: int, vocabulary: Vocabulary) -> list[Sample | str | None]:
    """The `n` samples asked for in order: each, or why its choice can't be used, or None where there is no choice.

    Raises UnusableReply for a body that is no chat completion, or has no choice at all.
    """
    choices = _read(body).choices
    if not choices:
        raise UnusableReply("the reply has no choices")
    found: list[Sample | str | None] = [None] * n
    for position, choice in enumerate(choices[:n]):
        try:
            read = _Choice.model_validate(choice)
            place = position if read.index is None or not 0 <= read.index < n else read.index
            found[place] = _sample(read, vocabulary)
        except ValidationError:
            found[position] = "a choice can't be read"
        except UnusableReply as error:
            found[place] = str(error)
    return found


def read_answer(body: bytes, vocabulary: Vocabulary) -> Answer:
    """The greedy answer; no log-probs are needed. Raises UnusableReply."""
    reply = _read(body)
    try:
        choice = _Choice.model_validate(reply.choices[0] if reply.choices else None)
    except ValidationError:
        raise UnusableReply("the choice can't be read" if reply.choices else "no choice was returned") from None
    ended = _finish_reason(choice)
    ids = None if choice.token_ids is None else tuple(choice.token_ids)
    if ids is not None:
        _check_text(choice, ids, vocabulary)
        return Answer(vocabulary.text(ids), len(ids), ended, ids)
    if choice.message.content is None or reply.usage is None:
        raise UnusableReply("the choice has no text, or the reply doesn't count its tokens (usage)")
    return Answer(choice.message.content.strip(), reply.usage.completion_tokens, ended, None)


def read_prompt_ids(body: bytes) -> tuple[int, ...] | None:
    """The prompt's token ids as the server read it; None where it doesn't say. Raises UnusableReply."""
    ids = _read(body).prompt_token_ids
    return None if ids is None else tuple(ids)


def _read(body: bytes) -> _Reply:
    try:
        return _Reply.model_validate_json(body)
    except ValidationError:
        raise UnusableReply("the reply is no chat completion") from None


def _sample(choice: _Choice, vocabulary: Vocabulary) -> Sample:
    finish_reason = _finish_reason(choice)
    tokens = choice.logprobs.content if choice.logprobs else None
    if tokens is None:
        raise UnusableReply("a choice has no log-probs (logprobs): see how the server must be started")
    if not tokens:
        raise UnusableReply("a choice is empty, and its end of sequence is not reported: there is no log-prob of it")
    ids = _token_ids(choice, tokens, vocabulary)
    logps = tuple(token.logprob for token in tokens)
    if finish_reason == "stop" and len(ids) == len(logps) + 1 and ids[-1] in vocabulary.eos:
        ids = ids[:-1]
    if len(ids) != len(logps):
        raise UnusableReply(f"a choice has {len(ids)} token ids and {len(logps)} log-probs")
    if not all(math.isfinite(logp) and ABSENT < logp <= ROUNDING for logp in logps):
        raise UnusableReply("a choice has a log-prob that is none: not finite, above 0, or a placeholder")
    _check_text(choice, ids, vocabulary)
    has_eos = finish_reason != "stop" or ids[-1] in vocabulary.eos
    return Sample(vocabulary.text(ids), ids, finish_reason, tuple(min(logp, 0.0) for logp in logps), has_eos)


def _finish_reason(choice: _Choice) -> Literal["stop", "length"]:
    if choice.finish_reason not in ("stop", "length"):
        raise UnusableReply(f"a choice ended by {choice.finish_reason!r}, which is neither stop nor length")
    return choice.finish_reason


def _token_ids(choice: _Choice, tokens: list[_Token], vocabulary: Vocabulary) -> tuple[int, ...]:
    if choice.token_ids is not None:
        return tuple(choice.token_ids)
    numbers = [TOKEN_ID.fullmatch(token.token) for token in tokens]
    if all(numbers):
        return tuple(int(number[1]) for number in numbers)
    try:
        return vocabulary.ids_of(token.piece() for token in tokens)
    except ValueError as error:
        raise UnusableReply(f"the token ids of a choice are not known: the server gives none, and {error}") from None


def _check_text(choice: _Choice, ids: tuple[int, ...], vocabulary: Vocabulary) -> None:
    if not all(0 <= index < len(vocabulary.tokenizer) for index in ids):
        raise UnusableReply("a choice has token ids beyond the vocabulary of model.path: is that the model it serves?")
    said = choice.message.content or ""
    if not vocabulary.says(ids, said):
        raise UnusableReply(
            f"the token ids of a choice spell {vocabulary.text(ids)[:60]!r} with the vocabulary of model.path, "
            f"its text is {said[:60]!r}: is model.path the model it serves?"
        )
