"""The asset graph as data: which asset is made from which, by what partition, and when it is due.

No Dagster here. The definitions, the steps, `m3po run` and `m3po status` all read this one table, so they can't
disagree about what follows from what.

An asset partition's *fingerprint* is computed from its settings and the data versions of its inputs, never by running
it. It is *settled* when its inputs are settled and its head (what Dagster's event log holds) carries that fingerprint;
it is *due* when its inputs are settled and the head carries another one, or none.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from m3po_dagster.identity import Identities
from m3po_dagster.storage.fingerprint import fingerprint
from m3po_dagster.study import Study

Part = tuple[str, str]
"""An asset and a partition key; '' when the asset has no partitions."""


@dataclass(frozen=True)
class Head:
    """What the event log says is current for a part. `blocked` names a check it failed that nothing may build on."""

    fingerprint: str
    data_version: str
    blocked: str = ""


@dataclass(frozen=True)
class Stage:
    """One asset: its partition dimensions in Dagster's order (alphabetical), its inputs, and the settings that matter.

    `settings(study, identities, partition)` holds what changes the result and is no input: never a path, a batch size
    or anything else that only says where or how fast. `code_version` changes when the same inputs give another result.
    An `outside` stage is a look at what lies outside the graph; where looking means asking somebody (`observed`), the
    answer found when last asked is part of the fingerprint. `fan_in` stages stand on many parts of one asset.
    """

    asset: str
    dimensions: tuple[str, ...]
    inputs: tuple[str, ...]
    code_version: str
    settings: Callable[[Study, Identities | None, str], object]
    outside: bool = False
    observed: bool = False
    fan_in: bool = False
    loads_model: bool = False


def _nothing(study: Study, identities: Identities, partition: str) -> dict:
    return {}


def _sampling(study: Study, identities: Identities, partition: str) -> dict:
    """How candidates are drawn: what scores between rounds is an input, how many may fail decides no result."""
    settings = study.generation.model_dump(mode="json", exclude={"prompts_per_batch", "part_seconds", "max_failed"})
    if study.generation.scorer is not None:
        del settings["n"]["scorer"]
    return {**settings, "engine": study.generator.identity()}


def _benchmarking(study: Study) -> dict:
    """How benchmarks are answered, and who judges the answers of those that need a judge.

    Apart, for another judge judges anew what was answered. Of engines only a server is named.
    """
    from m3po_dagster.evaluation.registry import judge_identities

    answers = study.answers.model_dump(mode="json", exclude={"questions_per_batch"})
    if study.generator.kind == "server":
        answers["engine"] = study.generator.identity()
    return {"answers": answers, "judges": judge_identities(study.benchmarks), "max_unscored": study.judge.max_unscored}


def _reporting(study: Study, identities: Identities, partition: str) -> dict:
    """What the leaderboard says of the recipes beside their figures, and its title."""
    from dataclasses import asdict

    from m3po_dagster import recipe_roles

    return {
        "study": study.name,
        "compare_with": recipe_roles.references(study),
        "questions": [asdict(question) for question in recipe_roles.questions(study)],
        "curves": [asdict(curve) for curve in recipe_roles.curves(study)],
        "ablated": recipe_roles.ablated(study),
        "same_as": study.aliases(),
        "descriptions": {name: recipe.description for name, recipe in study.recipes.items()},
    }


STAGES: dict[str, Stage] = {
    stage.asset: stage
    for stage in (
        Stage("source_dataset", (), (), "2", lambda study, ids, _: ids.dataset(study), outside=True),
        Stage("base_model", (), (), "1", lambda study, ids, _: ids.model(study), outside=True),
        Stage("sampling_scorer", (), (), "1", lambda study, ids, _: ids.sampling_scorer(study), outside=True),
        Stage("judge_probe", (), (), "2", lambda study, ids, _: ids.served_judge(study), outside=True, observed=True),
        Stage("judge_identity", (), ("judge_probe",), "1", lambda study, ids, _: ids.judge(study), outside=True),
        Stage("benchmark_data", (), (), "2", lambda study, ids, _: ids.benchmarks(study), outside=True),
        Stage("recipe_config", ("recipe",), (), "1", lambda study, ids, key: ids.recipe(study, key), outside=True),
        Stage(
            "filtered_instructions",
            ("shard",),
            ("source_dataset", "benchmark_data"),
            "2",
            lambda study, ids, _: {"filters": study.filters.model_dump(mode="json"), "turns": study.dataset.turns},
        ),
        Stage(
            "candidates",
            ("shard",),
            ("filtered_instructions", "base_model", "sampling_scorer"),
            "3",
            _sampling,
            loads_model=True,
        ),
        Stage(
            "mas_table",
            ("shard",),
            ("candidates", "filtered_instructions", "judge_identity"),
            "4",
            # Bound and controls decide the checks, which are part of the result; a cascade, which answers have a MAS.
            lambda study, ids, _: (
                {"max_unscored": study.judge.max_unscored, "control prompts": study.judge.quality.prompts}
                | ({"cascade": study.judge.cascade.model_dump(mode="json")} if study.judge.cascade else {})
            ),
            loads_model=True,
        ),
        Stage(
            "logprob_table",
            ("shard",),
            ("candidates", "filtered_instructions", "base_model"),
            "3",
            lambda study, ids, _: study.confidence.model_dump(mode="json"),
            loads_model=True,
        ),
        Stage(
            "preference_pairs",
            ("recipe", "shard"),
            ("candidates", "mas_table", "logprob_table", "recipe_config"),
            "3",
            _nothing,
        ),
        Stage(
            "selection_sweep",
            (),
            ("candidates", "mas_table", "logprob_table"),
            "2",
            lambda study, ids, _: study.sweep.model_dump(mode="json"),
            fan_in=True,
        ),
        Stage(
            "lora_adapter",
            ("recipe",),
            ("preference_pairs", "candidates", "filtered_instructions", "base_model", "recipe_config"),
            "2",
            _nothing,
            fan_in=True,
            loads_model=True,
        ),
        Stage(
            "benchmark_scores",
            ("recipe",),
            ("lora_adapter", "base_model", "benchmark_data"),
            "3",
            lambda study, ids, _: _benchmarking(study),
            loads_model=True,
        ),
        Stage("leaderboard", (), ("benchmark_scores", "benchmark_data"), "3", _reporting, fan_in=True),
    )
}
"""Every asset, inputs before what is made from them."""


def upstream_of(*assets: str) -> tuple[str, ...]:
    """The assets and all they stand on, inputs first."""
    wanted, pending = set(), list(assets)
    while pending:
        name = pending.pop()
        if name not in wanted:
            wanted.add(name)
            pending += STAGES[name].inputs
    return tuple(name for name in STAGES if name in wanted)


def partition_keys(stage: Stage, study: Study, fixed: Mapping[str, str] | None = None) -> list[str]:
    """The partition keys of an asset, [''] when it has none; `fixed` pins dimensions to one key."""
    values = {"shard": study.shards, "recipe": list(study.recipes)} | {k: [v] for k, v in (fixed or {}).items()}
    return ["|".join(keys) for keys in product(*(values[dimension] for dimension in stage.dimensions))]


def all_parts(study: Study) -> Iterator[Part]:
    """Every part of the graph, inputs first."""
    for stage in STAGES.values():
        for key in partition_keys(stage, study):
            yield stage.asset, key


def inputs_of(asset: str, partition: str, study: Study) -> list[Part]:
    """The parts a part is made from: dimensions the two share match, others fan in."""
    stage = STAGES[asset]
    own = dict(zip(stage.dimensions, partition.split("|"), strict=False))
    return [(name, key) for name in stage.inputs for key in partition_keys(STAGES[name], study, own)]


def label(part: Part) -> str:
    """How a part is named to a person: `candidates[s0]`."""
    asset, key = part
    return f"{asset}[{key}]" if key else asset


def part_fingerprint(part: Part, study: Study, identities: Identities, heads: Mapping[Part, Head]) -> str | None:
    """The fingerprint the part should carry now, or None when an input was never materialised.

    None too for an observed part that nobody has asked for yet.
    """
    stage = STAGES[part[0]]
    inputs = inputs_of(*part, study)
    if any(upstream not in heads for upstream in inputs):
        return None
    if not stage.observed:
        return made_from(part, study, identities, heads)
    return made_from(part, study, identities, heads, found=heads[part].data_version) if part in heads else None


def made_from(
    part: Part, study: Study, identities: Identities, heads: Mapping[Part, Head], found: str | None = None
) -> str:
    """The fingerprint of a part whose inputs all have heads; `found` is the content of an observed one."""
    stage = STAGES[part[0]]
    versions = {label(upstream): heads[upstream].data_version for upstream in inputs_of(*part, study)}
    settings = stage.settings(study, identities, part[1])
    if stage.observed:
        settings = {"asked": settings, "found": found}
    return fingerprint(part[0], part[1], stage.code_version, settings, versions)


@dataclass(frozen=True)
class Standing:
    """How a part stands.

    `state` is fresh; stale (its inputs, settings or code are not those it was made from, as Dagster sees it too);
    missing (never made, or no longer in the store); blocked (up to date, but it failed a check that forbids to build on
    it); running (a run is at work on it or queued); or pending: nothing it was made from has changed yet, but an input
    is not fresh itself. `waits_for` are the inputs that are not fresh. `problem` says why a thing outside can't be
    looked at, or which check failed; `changes` what changed since a stale part was made, where somebody compared.
    """

    part: Part
    state: str
    waits_for: tuple[Part, ...]
    problem: str = ""
    changes: str = ""

    @property
    def why(self) -> str:
        """One sentence; empty for a fresh part."""
        if self.problem:
            return self.problem
        reason = {
            "fresh": "",
            "missing": "never made, or no longer in the store",
            "stale": self.changes
            or ("changed outside" if STAGES[self.part[0]].outside else "its inputs, settings or code changed"),
            "running": "a run is at work on it or queued",
            "pending": "may change",
        }[self.state]
        if not self.waits_for:
            return reason
        shown = ", ".join(label(part) for part in self.waits_for[:3]) + (" ..." if len(self.waits_for) > 3 else "")
        return f"{reason}; waits for {shown}"


def standings(
    study: Study,
    identities: Identities | None,
    heads: Mapping[Part, Head],
    busy: Collection[Part] = (),
) -> list[Standing]:
    """Every part's standing, inputs first.

    Without identities nothing outside is looked at: what was found at the last look stands. `busy` parts are running.
    """
    settled: set[Part] = set()
    result = []
    for part in all_parts(study):
        waits_for = tuple(upstream for upstream in inputs_of(*part, study) if upstream not in settled)
        state, problem = _state(part, study, identities, heads)
        if part in busy:
            state = "running"
        elif state == "fresh" and waits_for:
            state = "pending"
        elif state == "fresh":
            settled.add(part)
        result.append(Standing(part, state, waits_for, problem))
    return result


def _state(part: Part, study: Study, identities: Identities | None, heads: Mapping[Part, Head]) -> tuple[str, str]:
    """fresh, stale or missing by the part's own inputs, settings and code; and what kept it from being looked at."""
    head, problem = heads.get(part), ""
    if STAGES[part[0]].outside and identities is None:
        return ("fresh" if head else "missing"), ""
    try:
        wanted = part_fingerprint(part, study, identities, heads)
    except (OSError, ValueError) as error:
        wanted, problem = None, str(error)
    if head is None:
        return "missing", problem
    if head.fingerprint == wanted and head.blocked:
        return "blocked", f"its check {head.blocked} failed, so nothing is built on it; the asset's page says why"
    return ("fresh" if head.fingerprint == wanted else "stale"), problem


def due(
    study: Study, identities: Identities | None, heads: Mapping[Part, Head], busy: Collection[Part] = ()
) -> list[Part]:
    """The parts to make now: stale or missing, nobody at work on them, with every input fresh."""
    return [
        item.part
        for item in standings(study, identities, heads, busy)
        if item.state in ("stale", "missing") and not item.waits_for
    ]


def not_settled(part: Part, study: Study, heads: Mapping[Part, Head]) -> list[Standing]:
    """What a part stands on, near and far, that is not fresh by what was found outside at the last look.

    While there is any, parts of one asset may come from different versions of the judge, a recipe or the base model.
    """
    above = ancestors(part, study)
    return [item for item in standings(study, None, heads) if item.part in above and item.state != "fresh"]


def ancestors(part: Part, study: Study) -> set[Part]:
    """Everything a part stands on, near and far."""
    found, pending = set(), list(inputs_of(*part, study))
    while pending:
        upstream = pending.pop()
        if upstream not in found:
            found.add(upstream)
            pending += inputs_of(*upstream, study)
    return found
