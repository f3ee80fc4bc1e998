"""Served judges and a served base model: whether they answer, without asking anything that costs."""

import json
from collections.abc import Iterator

from m3po_dagster.doctor.findings import Finding, note, ok, problem
from m3po_dagster.method.endpoint import Endpoint, EndpointError, EndpointSettings, Refused
from m3po_dagster.study import Study

_PATIENCE = {"timeout": 10.0, "max_retries": 1}
_NOT_FOUND = (404, 405)


def check_endpoints(study: Study) -> Iterator[Finding]:
    """Lists the models of each endpoint that the study names; nothing when it names none."""
    if study.generator.kind == "server":
        yield _endpoint("generator", study.generator)
    asked: list[tuple[str, str, str | None]] = []
    for scorer in study.judge.assessors:
        place = scorer.served and (scorer.base_url, scorer.model, scorer.api_key_env)
        if place and place not in asked:
            asked.append(place)
            yield _endpoint(f"judge.scorers.{scorer.name}", scorer)


def _endpoint(key: str, settings: EndpointSettings) -> Finding:
    where = f"{settings.base_url} (model {settings.model})"
    try:
        endpoint = Endpoint(settings.model_copy(update=_PATIENCE), key)
        models = _names(endpoint.get("/models"))
    except EndpointError as error:
        if error.status in _NOT_FOUND:
            return note(key, f"{where} answers, and lists no models")
        return problem(key, str(error), "")
    except Refused as error:
        return note(key, f"{where} answers, and lists no models ({error})")
    except ValueError as error:  # a key that is not set
        return problem(key, str(error), "")
    if models and settings.model not in models:
        shown = ", ".join(sorted(models)[:5])
        return problem(key, f"{where} answers, and has no such model: it has {shown}", "Correct model or base_url")
    return ok(key, f"{where} answers")


def _names(reply: bytes) -> set[str]:
    """Ids of the models in an endpoint's list; none where the reply is no such list."""
    try:
        listed = json.loads(reply)["data"]
        return {str(item["id"]) for item in listed}
    except (ValueError, KeyError, TypeError):
        return set()
