"""What `m3po data inspect` prints: tables of the facts, the cost with its assumptions, the lines for a study."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import typer
import yaml

from m3po_dagster.cli.store import console
from m3po_dagster.cost.figures import shown

if TYPE_CHECKING:
    from m3po_dagster.cost.estimate import Workload
    from m3po_dagster.datasets.settings import AnySource
    from m3po_dagster.study import Study

SHOWN = 8
LONGEST = 300


def cost_facts(study: "Study | None", work: "Workload", card: str, tokens_per_second: float | None) -> dict:
    """The estimate for a study, or for the paper's setting, with all that it assumes."""
    from m3po_dagster.cost import told
    from m3po_dagster.cost.assumptions import CARDS, Assumptions
    from m3po_dagster.cost.estimate import estimate
    from m3po_dagster.cost.model_facts import model_facts
    from m3po_dagster.cost.plan import PAPER, Plan
    from m3po_dagster.cost.prompt_tokens import with_own_tokens

    plan, assumed = Plan.of(study) if study else PAPER, Assumptions()
    work, model = with_own_tokens(work, plan.model), model_facts(plan.model, assumed)
    cost = estimate(plan, work, model, CARDS[card], assumed, tokens_per_second)
    said = told.assumptions(plan, work, model, CARDS[card], assumed, tokens_per_second)
    return {"of": plan.name, "samples a prompt": told.ends(plan.samples), **told.facts(cost), "assumptions": said}


def snippet(sources: "Mapping[str, AnySource]", turns: str) -> str:
    """The dataset section of a study that has these sources."""
    listed = {}
    for name, source in sources.items():
        given = source.model_dump(mode="json", exclude_defaults=True)
        listed[name] = {key: value for key, value in ({"format": source.format} | given).items() if value}
    return yaml.safe_dump({"dataset": {"turns": turns, "sources": listed}}, sort_keys=False, allow_unicode=True)


def show(facts: Mapping[str, dict], note: str | None, cost: dict | None, lines: str | None) -> None:
    """Prints everything."""
    from m3po_dagster.datasets.readers import READERS

    for name, one in facts.items():
        typer.echo(f"{name}: {READERS[one['format']].name}, {one['path']}")
        _table(_record_rows(one))
        _table(_image_rows(one["images"]))
        _prefixes(one["images"]["prefixes"], one["images"]["other prefixes"])
        _table(_filter_rows(one["filters on the sample"]))
    if note:
        typer.echo(f"note: {note}")
    if cost:
        _cost(cost)
    if lines:
        typer.echo("\nwrite this into your study:\n")
        typer.echo(lines)


def _record_rows(one: dict) -> Iterable[tuple[str, str]]:
    prompts, malformed = one["prompts"], one["malformed"]
    yield "records", f"{one['records']:,} ({one['text only']:,} text only, {one['multi-turn']:,} multi-turn)"
    yield "human turns", _counts(one["human turns"])
    yield "malformed", f"{malformed['records']:,}"
    for kind in malformed["kinds"][:SHOWN]:
        first = kind["examples"][0]
        # Its own words: the kind's have blanks for all that differs.
        yield f"  {kind['records']:,}", f"{_cut(first['detail'])} (record {first['record']}, id {first['id'][:60]})"
    yield from _rest(malformed["kinds"][SHOWN:], malformed["other kinds"], len(malformed["kinds"]), "kinds")
    yield "problems", f"{sum(problem['records'] for problem in one['problems']):,}"
    for problem in one["problems"]:
        first = problem["examples"][0]
        yield f"  {problem['records']:,}", f"{problem['problem']} (record {first['record']}, id {first['id'][:60]})"
    repeated = one["duplicate ids"]
    if repeated["number"]:
        yield "ids that repeat", _number(repeated)
    yield "<image>", _counts(one["<image> in the first question"])
    yield (
        "prompts",
        f"turns first {prompts['first']:,}, last {prompts['last']:,}, each {prompts['each']:,}; with turns "
        f"{prompts['turns']}, {prompts['with an image in place']:,} with an image in place",
    )
    yield "question characters", _counts(one["question characters"])
    yield "answer characters", _counts(one["answer characters"]) or "there are no answers"
    yield "languages (sample)", _counts(one["languages of a sample"], SHOWN)
    yield "of benchmarks", _counts(one["images of benchmarks"]) or "no image is known by its COCO id"
    for name, source in one["ids of benchmarks are from"].items():
        yield f"  {name}", f"ids from {source}"


def _image_rows(images: dict) -> Iterable[tuple[str, str]]:
    yield (
        "images",
        f"{_number(images['distinct'])} different; records an image: {_counts(images['records an image'], 5)}",
    )
    if images["inside the files"] is not None:
        yield "  inside the files", f"{images['inside the files']:,}"
    missing, outside, urls, sample = (images[name] for name in ("missing", "outside the root", "URLs", "sample"))
    if missing["records"]:
        yield "  missing", f"{_number(missing['images'])}, of {missing['records']:,} records; {missing['examples'][0]}"
    if outside["records"]:
        yield "  outside", f"{outside['records']:,} records, never opened; {outside['examples'][0]}"
    if urls["records"]:
        allowed = ", ".join(urls["fetched from"]) or "nothing: name hosts in fetch_from"
        hosts = _counts(urls["hosts"], 5, urls["other hosts"])
        yield "  URLs", f"{urls['records']:,} records ({hosts}); fetched from {allowed}"
    if sample["decoded"] or sample["no good"]:
        yield "  sample", f"{sample['decoded']:,} decoded, {sample['turned by EXIF']:,} turned by EXIF"
    for trouble in sample["no good"]:
        yield f"  {trouble['images']:,}", f"{trouble['problem']}: {trouble['examples'][0]}"
    for name, values in sample["pixels"].items():
        yield f"  {name}", f"{values['min']:g} to {values['max']:g}, median {values['median']:g}"


def _filter_rows(sifted: dict) -> Iterable[tuple[str, str]]:
    if sifted["prompts"]:
        beyond = (
            f"; {sifted['records left out']:,} records of images that have too many are left out"
            if sifted["records left out"]
            else ""
        )
        yield "filters", f"keep {sifted['kept']:,} of {sifted['prompts']:,} prompts of the sample's images{beyond}"
    for drop in sifted["dropped"]:
        yield f"  {drop['prompts']:,}", f"{drop['filter']}: {drop['reason']}; {drop['example']}"


def _prefixes(prefixes: list[dict], others: dict) -> None:
    from rich.table import Table

    if not prefixes:
        return
    table = Table("folder in the data", "records", "missing", "lies in", box=None)
    for column in table.columns[1:3]:
        column.justify = "right"
    for one in prefixes:
        where = one["folder"] or "nowhere: give --image-root or --folder"
        table.add_row(_plain(one["prefix"]), f"{one['records']:,}", f"{one['missing']:,}", _plain(where))
    for name, value in _rest([], others, len(prefixes), "folders"):
        table.add_row(value, name.strip())
    console().print(table)


def _cost(cost: dict) -> None:
    hours = cost["GPU-hours"]
    typer.echo(f"\nestimate for {cost['of']}, low to high")
    rows = [
        ("candidates", shown(cost["candidates"])),
        ("tokens", f"{shown(cost['generated tokens'])} generated, {shown(cost['tokens read for sampling'])} read"),
    ]
    for judge in cost["judges"]:
        price = "" if judge["cost"] is None else f", cost {shown(judge['cost'])}"
        rows.append(
            (
                judge["name"],
                f"{shown(judge['requests'])} requests of up to {judge['group size']} answers, tokens "
                f"{shown(judge['prompt tokens'])} in, {shown(judge['completion tokens'])} out{price}",
            )
        )
    for scorer in cost["scorers"]:
        counts = [f"{shown(value)} {what}" for what, value in scorer.items() if isinstance(value, list)]
        rows.append((f"scorer {scorer['name']}", f"{', '.join(counts)} ({scorer['kind']})"))
    rows.append(("GPU-hours sampling", shown(hours["sampling"])))
    if any(hours["scoring log-probs"]):
        rows.append(("GPU-hours scoring log-probs", shown(hours["scoring log-probs"])))
    for recipe, one in hours["training"].items():
        rows.append((f"GPU-hours {recipe}", f"{shown(one['a run'])} a run, runs: {one['runs']}"))
    rows.append(("GPU-hours in all", shown(hours["total"])))
    rows += [("disk", ", ".join(f"{name} {shown(size)} GB" for name, size in cost["disk in GB"].items()))]
    _table(rows)
    typer.echo("\nassumed")
    _table(cost["assumptions"].items())


def _table(rows: Iterable[tuple[str, str]]) -> None:
    from rich.table import Table

    table = Table(box=None, show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(*(_plain(text) for text in (name, value)))
    console().print(table)


def _plain(text: str) -> Any:
    from rich.text import Text

    # What stands in a dataset is no markup, and must not speak to the terminal in control characters.
    return Text("".join(character if character.isprintable() else "\ufffd" for character in text))


def _counts(counts: Mapping[str, int], most: int | None = None, others: dict | None = None) -> str:
    shown = list(counts.items())[:most]
    left = len(counts) - len(shown) + (others["number"] if others else 0)
    least = "" if others is None or others["exact"] else "more than "
    more = f", and {least}{left:,} more" if left else ""
    return ", ".join(f"{name}: {number:,}" for name, number in shown) + more


def _rest(unshown: list[dict], others: dict, listed: int, what: str) -> Iterable[tuple[str, str]]:
    """What is left out, as a row: `unshown` of the `listed` kinds, and the others that the facts don't list."""
    left, in_all = len(unshown) + others["number"], listed + others["number"]
    if left:
        records = sum(kind["records"] for kind in unshown) + others["records"]
        told = f"{left:,} more of {in_all:,}" if others["exact"] else f"the rest of more than {in_all:,}"
        yield f"  {records:,}", f"and {told} {what}"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _number(counted: dict) -> str:
    return f"{'' if counted['exact'] else 'about '}{counted['number']:,}"
