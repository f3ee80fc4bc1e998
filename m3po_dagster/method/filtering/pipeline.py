"""All filters over a shard's rows: every prompt that is not kept is dropped by the first filter that refuses it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from m3po_dagster.method.filtering import conversation as talk
from m3po_dagster.method.filtering.contamination import (
    COCO_ID,
    LOOKS_SAME,
    QUESTION,
    SAME_FILE,
    BenchmarkImages,
    Contamination,
)
from m3po_dagster.method.filtering.conversation import Question, Turns, questions
from m3po_dagster.method.filtering.exact_duplicate import Repeats
from m3po_dagster.method.filtering.identity import prompt_id
from m3po_dagster.method.filtering.image_shape import TOO_ELONGATED, TOO_LARGE, TOO_SMALL, wrong_aspect, wrong_size
from m3po_dagster.method.filtering.images_seen import ImagesSeen
from m3po_dagster.method.filtering.instruction_length import TOO_LONG, TOO_SHORT, wrong_length
from m3po_dagster.method.filtering.language import OTHER_LANGUAGE, other_language
from m3po_dagster.method.filtering.near_duplicate import NEAR_DUPLICATE, NearDuplicates
from m3po_dagster.method.filtering.repetition import REPETITIVE, repetitive
from m3po_dagster.method.filtering.result import Dropped, FilterResult
from m3po_dagster.method.filtering.row import SourceRow, is_usable
from m3po_dagster.method.filtering.settings import FilterSettings

MALFORMED = "malformed record"
TEXT_ONLY = "text-only"
NOT_EXAMINED = "image not examined"

REQUIRED = "required"
"""What `drops` calls the rules that can't be switched off."""


@dataclass(frozen=True)
class Asked:
    """A prompt before the filters."""

    item_id: str
    row: SourceRow
    question: Question

    @property
    def text(self) -> str:
        """The question that is asked."""
        return self.question.messages[-1].text


@dataclass(frozen=True)
class Filter:
    """A filter that is switched on: its name in the study, the reasons it gives, and its rule."""

    name: str
    reasons: tuple[str, ...]
    refuse: Callable[[Asked], Dropped | None]


def filter_rows(
    rows: Iterable[SourceRow],
    settings: FilterSettings,
    *,
    turns: Turns,
    images: ImagesSeen | None = None,
    benchmarks: BenchmarkImages | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FilterResult:
    """Keeps the prompts that pass the study's filters, drops the others with filter, reason and detail (section 4.1).

    `rows` are a shard's, in dataset order: all rows of an image are among them, so that dropping the duplicates of a
    shard drops those of the dataset. `images` are the usable images of the whole dataset, which near_duplicate compares
    with; without them it knows those of `rows` alone. `benchmarks` are the images of the study's own benchmarks.
    `turns` says which questions of a conversation are asked. A dropped item's id is `source#record`, or
    `source#record.turn` where each turn is asked and this one alone is dropped. `progress` is told the rows done and
    their number. Raises ValueError when `images` lacks an image of `rows`.
    """
    rows = list(rows)
    filters = list(_filters(rows, settings, images, benchmarks))
    result = FilterResult(_reasons(rows, filters))
    for done, row in enumerate(rows, start=1):
        _filter_row(row, turns, filters, result)
        if progress:
            progress(done, len(rows))
    return result


def _filter_row(row: SourceRow, turns: Turns, filters: Sequence[Filter], result: FilterResult) -> None:
    item_id = f"{row.source}#{row.record}"
    asked = _unusable(row) or questions(row.conversation or (), turns)
    if isinstance(asked, Dropped):
        result.drop(item_id, row.source_id, REQUIRED, asked)
        return
    result.assistant_first += talk.starts_with_answer(row.conversation)
    for question in asked:
        prompt = Asked(f"{item_id}.{question.turn}" if turns == "each" else item_id, row, question)
        by, why = _refused(prompt, filters)
        if why is None:
            result.kept.append(_kept(prompt))
        else:
            result.drop(prompt.item_id, row.source_id, by, why)


def _unusable(row: SourceRow) -> Dropped | None:
    if row.refused is not None:
        return Dropped(MALFORMED, row.refused)
    if row.image_uri is None:
        return Dropped(TEXT_ONLY, "the record has no image")
    if row.image.problem is not None:
        return Dropped(row.image.problem, row.image.detail or row.image_uri)
    if not is_usable(row.image):
        return Dropped(NOT_EXAMINED, f"hash, size or perceptual hash of {row.image_uri} is missing")
    return None


def _refused(prompt: Asked, filters: Sequence[Filter]) -> tuple[str, Dropped | None]:
    if prompt.question.unusable is not None:
        return REQUIRED, prompt.question.unusable
    for one in filters:
        if (why := one.refuse(prompt)) is not None:
            return one.name, why
    return REQUIRED, None


def _filters(
    rows: Sequence[SourceRow], settings: FilterSettings, images: ImagesSeen | None, benchmarks: BenchmarkImages | None
) -> Iterator[Filter]:
    """The filters that are switched on, cheap ones first."""
    if (size := settings.image_size) is not False:
        yield Filter(
            "image_size",
            (TOO_SMALL, TOO_LARGE),
            lambda it: wrong_size(it.row.image_uri, it.row.image.width, it.row.image.height, size),
        )
    if (aspect := settings.image_aspect) is not False:
        yield Filter(
            "image_aspect",
            (TOO_ELONGATED,),
            lambda it: wrong_aspect(it.row.image_uri, it.row.image.width, it.row.image.height, aspect),
        )
    if (length := settings.instruction_length) is not False:
        yield Filter("instruction_length", (TOO_SHORT, TOO_LONG), lambda it: wrong_length(it.text, length))
    if (language := settings.language) is not False:
        yield Filter("language", (OTHER_LANGUAGE,), lambda it: other_language(it.text, language))
    if (repetition := settings.repetition) is not False:
        yield Filter("repetition", (REPETITIVE,), lambda it: repetitive(it.text, repetition))
    repeats = Repeats(normalised=settings.exact_duplicate)
    yield Filter(
        "exact_duplicate" if settings.exact_duplicate else REQUIRED,
        (repeats.reason,),
        lambda it: repeats(it.item_id, it.row.image.sha256, it.question.messages),
    )
    if settings.near_duplicate is not False:
        mine = list(dict.fromkeys(row.image.sha256 for row in rows if is_usable(row.image)))
        similar = NearDuplicates(mine, ImagesSeen.of_rows(rows) if images is None else images, settings)
        yield Filter("near_duplicate", (NEAR_DUPLICATE,), lambda it: similar(it.row.image.sha256))
    if settings.contamination is not False:
        seen = ImagesSeen.of_rows(rows) if images is None else images
        known = Contamination(rows, settings.contamination, benchmarks, seen)
        yield Filter(
            "contamination",
            (COCO_ID, SAME_FILE, LOOKS_SAME, QUESTION),
            lambda it: known(it.row.image.sha256, it.text),
        )


def _reasons(rows: Sequence[SourceRow], filters: Sequence[Filter]) -> Iterator[tuple[str, str]]:
    """Each filter's reasons; of what is wrong with images, what these rows have."""
    problems = sorted({row.image.problem for row in rows if row.image.problem is not None})
    spoken = (talk.NO_QUESTION, talk.NOT_ALTERNATING, talk.INSTRUCTION_EMPTY, talk.CONTEXT_EMPTY, talk.CONTEXT_LONG)
    for reason in (MALFORMED, TEXT_ONLY, *problems, NOT_EXAMINED, *spoken):
        yield REQUIRED, reason
    for one in filters:
        for reason in one.reasons:
            yield one.name, reason


def _kept(prompt: Asked) -> dict:
    row, question = prompt.row, prompt.question
    return {
        "prompt_id": prompt_id(row.image.sha256, question.messages),
        "image_name": row.image_name,
        "image_uri": row.image_uri,
        "image_sha256": row.image.sha256,
        "width": row.image.width,
        "height": row.image.height,
        "messages": [{"role": message.role, "text": message.text} for message in question.messages],
        "reference": question.reference,
        "source": row.source,
        "source_id": row.source_id,
        "turn": question.turn,
    }
