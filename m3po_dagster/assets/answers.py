"""An adapter's answers to a benchmark: an object of the store, asked once, resumed part by part."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.assets.sharing import BASE_ADAPTER
from m3po_dagster.device_use import DeviceUse
from m3po_dagster.evaluation.question import Question
from m3po_dagster.graph import STAGES
from m3po_dagster.lineage.manifests import ADAPTER, recipe_of
from m3po_dagster.materialise import Work, reference
from m3po_dagster.resources.generator import GeneratorResource
from m3po_dagster.s3_files.ahead import ahead
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.fingerprint import fingerprint
from m3po_dagster.storage.tables import ANSWERS

ANSWERS_ASSET = "benchmark_answers"
PART_QUESTIONS = 500
"""Questions a part: what a killed run loses at most, and enough to fill any batch."""
CODE_VERSION = "2"
"""Of the answers alone: another way to score or check them asks nothing again."""


def answered(
    work: Work, generator: GeneratorResource, adapter: Mapping, questions: Mapping[str, Sequence[Question]]
) -> dict[str, Artifact]:
    """One adapter's answers to each benchmark by name, from the store or asked now.

    `adapter` is one of `sharing.adapters_of`. The answers are objects of their own, kept by the adapter's place: a seed
    added to the recipe asks nothing of the others again, a benchmark that was added or changed nothing of the others,
    and an adapter that several recipes share, or the base model, answers once. Raises RuntimeError naming a question
    that can't be asked.
    """
    return {name: _answered(work, generator, adapter, name, asked) for name, asked in questions.items()}


def _answered(
    work: Work, generator: GeneratorResource, adapter: Mapping, name: str, questions: Sequence[Question]
) -> Artifact:
    stage = STAGES["benchmark_scores"]
    is_base = adapter["adapter_id"] == BASE_ADAPTER
    who = adapter["partition"]
    part = (ANSWERS_ASSET, f"{who}|{name}")
    answering = stage.settings(work.study, work.identities, work.partition)["answers"]
    # The questions and images of this benchmark alone: what else the study measures changes no answer.
    settings = {**answering, "benchmark": benchmark_identity(work, name)}
    inputs = {"base_model": reference(work.one("base_model"))}
    if not is_base:
        inputs["adapter"] = {"asset": ADAPTER, "partition": who} | {
            name: adapter[name] for name in ("fingerprint", "data_version")
        }
    versions = {name: item["data_version"] for name, item in inputs.items()}
    key = fingerprint(*part, CODE_VERSION, settings, versions)
    found = work.store.find(*part, key)
    if found is not None:
        return found
    with work.open(*part, key) as draft:
        if draft.committed:
            return draft.committed
        use = DeviceUse(served=work.study.generator.kind == "server")
        starts = list(range(0, max(1, len(questions)), PART_QUESTIONS))
        done = set(draft.parts(plan=starts))
        for number, start in enumerate(starts):
            if number not in done:
                draft.write_part(number, _ask(work, generator, adapter, name, start, questions), ANSWERS)
        return draft.commit(
            {"data": (draft.read_parts(), ANSWERS)},
            code_version=CODE_VERSION,
            settings=settings,
            inputs=inputs,
            metadata=use.facts(),
        )


def benchmark_identity(work: Work, name: str) -> dict:
    """What a benchmark asks about, by content: its questions and its images, whoever judges the answers."""
    found = work.identities.benchmarks(work.study)[name]
    return {key: value for key, value in found.items() if key != "judge files"}


def _ask(
    work: Work,
    generator: GeneratorResource,
    adapter: Mapping,
    name: str,
    start: int,
    questions: Sequence[Question],
) -> pa.Table:
    """The answers to one part of a benchmark's questions."""
    from m3po_dagster.method.generation.adapter import Adapter
    from m3po_dagster.method.generation.samples import Failure

    trained, who = None, "the base model"
    if adapter["adapter_id"] != BASE_ADAPTER:
        seed, key = adapter["seed"], adapter["fingerprint"]
        folder = work.store.find(ADAPTER, adapter["partition"], key).path("files")
        trained, who = Adapter(Path(folder), recipe_of(adapter["partition"]), seed, key), f"seed {seed}"
    settings, of = work.study.answers, len(questions)
    questions = questions[start : start + PART_QUESTIONS]
    with work.progress(f"{who} answering {name}", "question") as advance:
        prompts = [question.prompt() for question in questions]
        engine, given = generator.engine(work.study, trained), {}
        with ahead(prompt.image_path for prompt in prompts):
            for i, answer in engine.answer(prompts, settings.max_new_tokens, settings.questions_per_batch):
                given[i] = answer
                advance(start + len(given), of)
    failed = [answer.reason for _, answer in sorted(given.items()) if isinstance(answer, Failure)]
    if failed:
        raise RuntimeError(f"benchmark {name}: {len(failed)} questions can't be asked, the first: {failed[0]}")
    rows = [
        {
            "seed": adapter["seed"],
            "benchmark": name,
            "question_id": question.question_id,
            "image_uri": question.image_uri,
            "question": question.text,
            "expected": question.expected,
            "answer": given[i].text,
            "n_tokens": given[i].n_tokens,
        }
        for i, question in enumerate(questions)
    ]
    return pa.Table.from_pylist(rows, schema=ANSWERS.schema)


def answers_to(table: pa.Table, seed: int) -> dict[str, str]:
    """One adapter's answers among those to one benchmark, by question_id."""
    mine = table.filter(pc.equal(table["seed"], seed))
    return dict(zip(mine["question_id"].to_pylist(), mine["answer"].to_pylist(), strict=True))
