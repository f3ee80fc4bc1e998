"""An inspection as JSON values: what `m3po data inspect --json` prints, and what its tables show."""

from m3po_dagster.datasets.image_survey import EXAMPLES, ImageSurvey, shape_quantiles
from m3po_dagster.datasets.inspection import Inspection
from m3po_dagster.datasets.settings import PACKED, AnySource
from m3po_dagster.datasets.tallies import OTHERS, Distinct, Kinds, Lengths

SHARES = {"min": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "max": 1.0}
SHOWN_KINDS = 20


def facts_of(found: Inspection, source: AnySource) -> dict:
    """The counts of an inspection, by name; lengths in characters, sizes in pixels."""
    images = found.images
    return {
        "format": source.format,
        "path": str(source.path),
        "records": found.records,
        "malformed": {
            "records": sum(found.malformed.counts.values()),
            "kinds": [
                {
                    "detail": kind,
                    "records": number,
                    "examples": [
                        {"record": record, "id": identity, "detail": detail}
                        for record, identity, detail in found.malformed.examples.get(kind, ())
                    ],
                }
                for kind, number in _most(found.malformed)
            ],
            "other kinds": _rest(found.malformed),
        },
        "text only": found.text_only,
        "multi-turn": found.multi_turn,
        "human turns": dict(sorted(found.human_turns.items())),
        "problems": [
            {
                "problem": problem,
                "records": number,
                "examples": [
                    {"record": record, "id": identity} for record, identity in found.problems.examples[problem]
                ],
            }
            for problem, number in found.problems.counts.most_common()
        ],
        "<image> in the first question": dict(found.image_token.most_common()),
        "duplicate ids": _counted(found.ids, found.ids.repeats),
        "prompts": {"turns": found.turns, "with an image in place": found.usable, **found.prompts},
        "question characters": _quantiles(found.questions),
        "answer characters": _quantiles(found.answers),
        "languages of a sample": dict(found.languages.most_common()),
        "images of benchmarks": {name: ids.number for name, ids in sorted(found.known.items())},
        "images": _images(images, source) if images is not None else {},
    }


def _images(images: ImageSurvey, source: AnySource) -> dict:
    sizes = images.sizes
    return {
        "root": str(source.image_root),
        "distinct": _counted(images.distinct, images.distinct.number),
        "records an image": _times(images.distinct),
        "inside the files": images.inside_file if source.format in PACKED else None,
        "missing": {
            "records": images.records_missing,
            "images": _counted(images.missing, images.missing.number),
            "examples": _examples(images.missing_prefixes)[:EXAMPLES],
        },
        "outside the root": {"records": sum(images.outside.counts.values()), "examples": _examples(images.outside)},
        "URLs": {
            "records": sum(images.hosts.counts.values()),
            "hosts": dict(_most(images.hosts)),
            "other hosts": _rest(images.hosts),
            "fetched from": list(source.fetch_from),
        },
        "prefixes": [
            {
                "prefix": prefix,
                "records": number,
                "missing": images.missing_prefixes.counts[prefix],
                "folder": str(folder) if (folder := images.prefix_folder(prefix)) else None,
            }
            for prefix, number in _most(images.prefixes)
        ],
        "other prefixes": _rest(images.prefixes),
        "sample": {
            "decoded": len(sizes),
            "no good": [
                {"problem": problem, "images": number, "examples": images.troubles.examples[problem]}
                for problem, number in images.troubles.counts.most_common()
            ],
            "turned by EXIF": sum(look.turned for look in images.looked),
            "pixels": {
                name: dict(zip(("min", "median", "max"), values, strict=True))
                for name, values in shape_quantiles(sizes).items()
            },
        },
    }


def _counted(distinct: Distinct, number: int) -> dict:
    return {"number": number, "exact": distinct.exact}


def _times(distinct: Distinct) -> dict[str, int]:
    """Number of images by their number of records; the last is of all that have so many or more."""
    times = sorted(distinct.times().items())
    shown = {str(often): images for often, images in times[:SHOWN_KINDS]}
    if rest := times[SHOWN_KINDS:]:
        shown[f"{rest[0][0]} and more"] = sum(images for _, images in rest)
    return shown


def _most(kinds: Kinds) -> list[tuple[str, int]]:
    return [(kind, number) for kind, number in kinds.counts.most_common() if kind != OTHERS][:SHOWN_KINDS]


def _rest(kinds: Kinds) -> dict:
    """How many kinds are not shown, and of how many records; not `exact` where more were seen than are told apart."""
    shown, exact = _most(kinds), OTHERS not in kinds.counts
    records = sum(kinds.counts.values()) - sum(number for _, number in shown)
    return {"number": len(kinds.counts) - len(shown) - (not exact), "exact": exact, "records": records}


def _examples(kinds: Kinds[str]) -> list[str]:
    return [example for some in kinds.examples.values() for example in some]


def _quantiles(lengths: Lengths) -> dict[str, int]:
    return dict(zip(SHARES, lengths.quantiles(list(SHARES.values())), strict=False))
