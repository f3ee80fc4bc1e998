"""Python code that comes with a model's files: never run, unless a study says so of this one model; then it says so.

transformers imports such code from the model's folder or from the hub, with all rights of the process. A model on the
hub is therefore named with the commit that was read: a branch or a tag can be moved to other code tomorrow.
"""

import json
import logging
import re
from pathlib import Path
from typing import Any

TRUST_REMOTE_CODE = (
    "run the Python code that comes with the model's files, with all rights of the process: only for a model whose "
    "code was read, and a hub name needs its commit as `revision`"
)
"""What a study's reference says of the setting."""

_CONFIGS = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
_ELSEWHERE = "--"
"""Between the name of another repository and the class that is taken from it."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LOG = logging.getLogger(__name__)


def check_pinned(model: str, revision: str | None, trust_remote_code: bool) -> None:
    """Raises ValueError for code from the hub that is not pinned by a commit's 40 hex digits."""
    is_folder = Path(model).is_absolute() or Path(model).is_dir()
    if trust_remote_code and not is_folder and not _COMMIT.fullmatch(revision or ""):
        raise ValueError(
            f"trust_remote_code runs code of {model!r} from the hub, whose {revision or 'main branch'!r} can become "
            "other code: give the commit that you read, its 40 hex digits, as revision"
        )


def loading_from(who: str, model: str, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """What `from_pretrained` is told of where a model comes from; `who` names in the log the setting that trusts it.

    Said in either case, since transformers would ask on a terminal what it isn't told. Raises ValueError where a
    trusted model takes code from another repository: neither its commit nor its content was named.
    """
    if trust_remote_code:
        _refuse_code_elsewhere(who, model, revision)
        files = sorted(path.name for path in Path(model).glob("*.py")) if Path(model).is_dir() else []
        what = f"the Python code in {', '.join(files)}" if files else "Python code"
        _LOG.warning(
            "%s: trust_remote_code is on: %s of %s may be run, with all rights of this process", who, what, model
        )
    return {"revision": revision, "trust_remote_code": trust_remote_code}


def _refuse_code_elsewhere(who: str, model: str, revision: str | None) -> None:
    from transformers.utils import cached_file

    for name in _CONFIGS:
        try:
            config = json.loads(Path(cached_file(model, name, revision=revision)).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # Missing or broken: loading says so where it is needed.
        named = json.dumps(config.get("auto_map")) if isinstance(config, dict) else ""
        if _ELSEWHERE in named:
            raise ValueError(
                f"{who}: {name} of {model!r} takes code from another repository ({named[:200]}), which no revision "
                "pins: copy that code into a folder of the model, read it, and name the folder"
            )
