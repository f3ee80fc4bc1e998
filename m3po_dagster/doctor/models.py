"""The models a study names: whether their files are here and whole."""

import json
from collections.abc import Iterator
from pathlib import Path

from rich.filesize import decimal

from m3po_dagster.doctor.findings import Finding, note, ok, problem
from m3po_dagster.identity import is_local
from m3po_dagster.study import Study

INDEX = "model.safetensors.index.json"
_COPY = "Copy or download the model again"


def check_models(study: Study) -> Iterator[Finding]:
    """The base model, and each model that a scorer loads here."""
    yield _model("model.path", study.model.path, study.model.revision)
    seen = {study.model.path}
    for scorer in study.judge.assessors:
        path = scorer.local_model
        if path is not None and path not in seen:
            seen.add(path)
            yield _model(f"judge.scorers.{scorer.name}.model", path, None)


def _model(key: str, path: str, revision: str | None) -> Finding:
    if not is_local(path):
        return _on_hub(key, path, revision)
    folder = Path(path)
    if not folder.is_dir():
        return problem(key, f"{path} is no folder here", "Correct the path, or put the model there")
    weights, errors = weights_of(folder)
    if errors:
        return problem(key, f"{path}: {'; '.join(errors)}", _COPY)
    if not weights:
        pickled = sorted(file.name for file in [*folder.glob("*.bin"), *folder.glob("*.pt")])
        said = f"only pickled weights ({pickled[0]}), which are never loaded" if pickled else "no weights"
        return problem(key, f"{path}: {said}", "Save the model as safetensors")
    size = decimal(sum(file.stat().st_size for file in weights))
    return ok(key, f"{path}: weights whole, {size} of safetensors in {len(weights)}")


def weights_of(folder: Path) -> tuple[list[Path], list[str]]:
    """The weight files of a model folder, and what is wrong: one that is cut or missing, or lacks an indexed tensor."""
    from safetensors import SafetensorError, safe_open

    index, errors, names = folder / INDEX, [], {}
    files = sorted(folder.glob("*.safetensors"))
    if index.is_file():
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            errors.append(f"{INDEX} can't be read ({error})")
        files = [folder / name for name in sorted(set(names.values()))]
    for file in files:
        try:
            # Opening checks the header against the file's length: a download that broke off is seen, a flipped bit not.
            with safe_open(file, "np") as tensors:
                lacking = {name for name, where in names.items() if where == file.name} - set(tensors.keys())
        except (SafetensorError, OSError) as error:
            errors.append(f"{file.name} is missing or cut ({error})")
            continue
        if lacking:
            errors.append(f"{file.name} lacks {len(lacking)} tensors of {INDEX}, the first: {min(lacking)}")
    return files, errors


def _on_hub(key: str, name: str, revision: str | None) -> Finding:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = [
            try_to_load_from_cache(name, file, revision=revision) for file in ("config.json", "open_clip_config.json")
        ]
    except HFValidationError:
        return problem(key, f"{name!r} is no folder here and no name on the hub", "Correct it")
    if any(isinstance(one, str) for one in found):
        return ok(key, f"{name}, in the hub's cache on this machine")
    return note(key, f"{name}: not on this machine", "It is downloaded from the hub when it is first needed")
