"""What an open_clip model may bring from outside: weights as safetensors, no code.

open_clip itself would read a `.bin` or `.pt` file, which is a pickle, hand the keywords of a config to transformers,
`trust_remote_code` among them, and take a text tower from whatever repository the config names.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m3po_dagster.method.alignment.scorer import LOCAL_DIR

CONFIG, HUB, SAFE = "open_clip_config.json", "hf-hub:", ".safetensors"
_PICKLED = ("*.bin", "*.pt", "*.pth")
# What open_clip prefers to any pickle of a folder.
_PREFERRED = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
_ADVICE = (
    "reading a pickle can run anything: name a model whose weights are published as safetensors, or convert the file "
    "once where nothing can be lost (torch.load with weights_only=True, then safetensors.torch.save_file)"
)


def check_files(model: str, pretrained: str | None) -> None:
    """Raises ValueError where loading `model` would read a pickle, or start another repository's text tower.

    `model` is as open_clip takes it: local-dir:FOLDER, hf-hub:NAME, or a name it knows with its weights' tag or file.
    What a tag or a name of the hub stands for is downloaded, as loading it would.
    """
    if model.startswith(LOCAL_DIR):
        _check_folder(Path(model.removeprefix(LOCAL_DIR)))
    elif model.startswith(HUB):
        from open_clip.pretrained import download_pretrained_from_hf

        _check_weights(model, download_pretrained_from_hf(model.removeprefix(HUB)))
    elif pretrained is not None:
        _check_known(model, pretrained)
    tower = _text_config(model).get("hf_model_name")
    if tower and tower not in _own_towers():
        raise ValueError(
            f"model {model!r}: its {CONFIG} takes the text tower from {str(tower)[:200]!r}, which none of open_clip's "
            "own models does: name a model whose towers are open_clip's"
        )


def tokenizer_arguments(model: str) -> dict[str, bool]:
    """What `open_clip.get_tokenizer` must be told over what the model's config says: that no code of it is run."""
    # open_clip's own tokenizer takes no such word, and has no code to trust.
    return {"trust_remote_code": False} if _text_config(model).get("hf_tokenizer_name") else {}


def _check_folder(folder: Path) -> None:
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled and not any((folder / name).is_file() for name in _PREFERRED):
        raise ValueError(f"model {str(folder)!r}: its weights may be read from {pickled[0]}; {_ADVICE}")


def _check_known(model: str, pretrained: str) -> None:
    import open_clip

    known = open_clip.get_pretrained_cfg(model.replace("/", "-"), pretrained)
    if known:
        _check_weights(model, open_clip.download_pretrained(known))
    elif Path(pretrained).is_file():
        _check_weights(model, pretrained)


def _check_weights(model: str, file: str) -> None:
    if not file.endswith(SAFE):
        raise ValueError(f"model {model!r}: its weights are in {file}; {_ADVICE}")


def _text_config(model: str) -> Mapping[str, Any]:
    """The model's `text_cfg`; empty for one that open_clip can't read either, which it says itself."""
    import open_clip

    if model.startswith(HUB):
        from huggingface_hub import hf_hub_download

        file = Path(hf_hub_download(model.removeprefix(HUB), CONFIG))
    elif model.startswith(LOCAL_DIR):
        file = Path(model.removeprefix(LOCAL_DIR), CONFIG)
    else:
        return _mapping(open_clip.get_model_config(model.replace("/", "-")), "text_cfg")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return _mapping(_mapping(content, "model_cfg"), "text_cfg")


def _own_towers() -> set[str]:
    import open_clip

    configs = (open_clip.get_model_config(name) for name in open_clip.list_models())
    return {tower for config in configs if (tower := config["text_cfg"].get("hf_model_name"))}


def _mapping(content: Any, key: str) -> Mapping[str, Any]:
    found = content.get(key) if isinstance(content, Mapping) else None
    return found if isinstance(found, Mapping) else {}
