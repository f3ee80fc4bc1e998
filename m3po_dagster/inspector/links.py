"""Addresses of the inspector's pages, for the links in the Dagster UI. No server is asked.

Dagster stores a link with the asset when that is made, so it keeps the address of that time. An asset that is
materialised again gets the address of then, also when its result is found in the store.
"""

import os
from urllib.parse import urlencode

DEFAULT_PORT = 3001
DEFAULT_BASE = f"http://127.0.0.1:{DEFAULT_PORT}"
BASE_VARIABLE = "M3PO_INSPECTOR_URL"
"""Environment variable with the address of an inspector that is served elsewhere than on this machine."""


def base_url() -> str:
    """Where the inspector is served, without a slash at the end."""
    return (os.environ.get(BASE_VARIABLE) or DEFAULT_BASE).rstrip("/")


def prompts_url(shard: str = "", recipe: str = "") -> str:
    """The list of prompts, narrowed to a shard, or to a recipe whose pairs are shown."""
    return _url("/prompts", recipe=recipe, shard=shard)


def tune_url(recipe: str = "") -> str:
    """Alpha and delta sliders that re-select live."""
    return _url("/tune", recipe=recipe)


def answers_url(recipe: str = "") -> str:
    """Benchmark answers of a recipe's adapter beside those of the base model."""
    return _url("/answers", recipe=recipe)


def _url(page: str, **query: str) -> str:
    given = urlencode({name: value for name, value in query.items() if value})
    return f"{base_url()}{page}{'?' + given if given else ''}"
