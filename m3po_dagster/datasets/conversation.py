"""What a record says, whatever kind of file it lies in: its id, its image and its turns, or why they can't be told."""

SPEAKERS = ("human", "gpt")
MAX_ID_CHARACTERS = 512
ASKING = ("question", "conversations", "messages")
"""Keys of a record that asks: one of them."""

_SPEAKER_OF_ROLE = {"user": "human", "assistant": "gpt"}
_REFERENCES = ("image", "image_url", "path", "url")

Conversation = tuple[tuple[str, str], ...]
"""Turns of (speaker, text), speaker 'human' or 'gpt'."""


class Refused(ValueError):
    """What is wrong with a record, naming the field."""


def conversation_of(record: object) -> Conversation:
    """The turns of a record that asks in one of three forms.

    `question`, with an `answer` or without; `conversations` or `messages`, a list of turns as `turns_of` takes them.
    Raises Refused.
    """
    if not isinstance(record, dict):
        raise Refused(f"a record is an object, this is {kind(record)}")
    forms = [form for form in ASKING if record.get(form) is not None]
    if not forms:
        raise Refused("question is missing, and so are conversations and messages")
    if len(forms) > 1:
        raise Refused(f"both {forms[0]} and {forms[1]} are there, expected one of them")
    if forms == ["question"]:
        return question_and_answer(record["question"], record.get("answer"))
    return turns_of(record[forms[0]], forms[0])


def question_and_answer(question: object, answer: object, fields: tuple[str, str] = ("question", "answer")):
    """One human turn, and one of gpt where there is an answer; `fields` are their names in errors. Raises Refused."""
    asked = ("human", text_of(question, fields[0]))
    return (asked,) if answer is None else (asked, ("gpt", text_of(answer, fields[1])))


def turns_of(turns: object, field: str) -> Conversation:
    """The turns of a list in LLaVA's form, {from: human | gpt, value}, or of chat messages, {role: user | assistant,
    content}.

    Content is a text, or a list of parts {type: text, text} and {type: image}; the texts of several parts are lines.
    Raises Refused naming the turn, also for more than one image.
    """
    if not isinstance(turns, list):
        raise Refused(f"{field} is {kind(turns)}, expected an array")
    if not turns:
        raise Refused(f"{field} is empty")
    images = sum(_images(turn) for turn in turns)
    if images > 1:
        raise Refused(f"{field} holds {images} images, a record has one")
    return tuple(_turn(turn, f"{field}[{number}]") for number, turn in enumerate(turns))


def image_named(record: dict) -> str | None:
    """The image that a record names in its `image`, as `image_of` takes it.

    Raises Refused, also for a record that has `images` alone, as TRL's do: to read it as text-only would lose them.
    """
    if record.get("image") is None and (images := record.get("images")):
        found = f"an array of {len(images)}" if isinstance(images, list) else kind(images)
        raise Refused(f"images is {found}, and image is missing: a record has one image, name it in image")
    return image_of(record.get("image"))


def image_of(value: object, field: str = "image") -> str | None:
    """The path or URL of a record's image as it stands, None for a text-only record. Raises Refused."""
    if value is None:
        return None
    if isinstance(value, list):
        raise Refused(f"{field} is an array of {len(value)}, expected a string: a record has one image")
    if text_of(value, field) == "":
        raise Refused(f"{field} is empty; leave it out for a text-only record")
    return value


def source_id_of(value: object, field: str = "id") -> str:
    """A record's id, text or whole number, as text. Raises Refused."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    text = text_of(value, field)
    if not 0 < len(text) <= MAX_ID_CHARACTERS:
        raise Refused(f"{field} has {len(text)} characters, expected 1 to {MAX_ID_CHARACTERS}")
    return text


def text_of(value: object, field: str) -> str:
    """The value, if it is text that can be stored. Raises Refused."""
    if not isinstance(value, str):
        raise Refused(f"{field} is {kind(value)}, expected a string")
    if "\0" in value:
        raise Refused(f"{field} holds a NUL character")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Refused(f"{field} holds half a surrogate pair, which is no character") from None
    return value


def kind(value: object) -> str:
    """What a value is, in JSON's words where it has one."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"the number {str(value)[:40]}"
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")


def _turn(turn: object, field: str) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise Refused(f"{field} is {kind(turn)}, expected an object")
    if "role" in turn and "from" not in turn:
        return _message(turn, field)
    for key in ("from", "value"):
        if key not in turn:
            raise Refused(f"{field}.{key} is missing")
    speaker = text_of(turn["from"], f"{field}.from")
    if speaker not in SPEAKERS:
        raise Refused(f"{field}.from is {speaker[:40]!r}, expected 'human' or 'gpt'")
    return speaker, text_of(turn["value"], f"{field}.value")


def _message(message: dict, field: str) -> tuple[str, str]:
    role = text_of(message["role"], f"{field}.role")
    if role not in _SPEAKER_OF_ROLE:
        raise Refused(f"{field}.role is {role[:40]!r}, expected 'user' or 'assistant'")
    content = message.get("content")
    if isinstance(content, list):
        parts = [_part(part, f"{field}.content[{number}]") for number, part in enumerate(content)]
        return _SPEAKER_OF_ROLE[role], "\n".join(part for part in parts if part is not None)
    return _SPEAKER_OF_ROLE[role], text_of(content, f"{field}.content")


def _part(part: object, field: str) -> str | None:
    """The text of a part, None for an image."""
    if not isinstance(part, dict):
        raise Refused(f"{field} is {kind(part)}, expected an object")
    if part.get("type") == "text":
        return text_of(part.get("text"), f"{field}.text")
    if part.get("type") != "image":
        raise Refused(f"{field}.type is {str(part.get('type'))[:40]!r}, expected 'text' or 'image'")
    for key in _REFERENCES:
        if part.get(key) is not None:
            raise Refused(f"{field}.{key} names an image; name it in the record's image")
    return None


def _images(turn: object) -> int:
    content = turn.get("content") if isinstance(turn, dict) else None
    parts = content if isinstance(content, list) else []
    return sum(isinstance(part, dict) and part.get("type") == "image" for part in parts)
