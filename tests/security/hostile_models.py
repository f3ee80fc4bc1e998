"""Folders of models as a stranger could publish them: loading one the careless way leaves a file behind."""

import json
import shutil
from pathlib import Path

from m3po_dagster.world.judge import JUDGE_FOLDER

OWN_LLAVA = """\
from pathlib import Path

from transformers import LlavaConfig, LlavaForConditionalGeneration

Path({marker!r}).touch()


class OwnConfig(LlavaConfig):
    model_type = "of_its_own"


class OwnModel(LlavaForConditionalGeneration):
    config_class = OwnConfig
"""
OWN_TOKENIZER = """\
from pathlib import Path

from transformers import PreTrainedTokenizerFast

Path({marker!r}).touch()


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


class RunsWhenRead:
    """Pickled, it is a call: whoever reads the pickle makes the file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def edited(file: Path, **changes) -> None:
    """Changes keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def with_own_model(source: Path, folder: Path, marker: Path) -> Path:
    """A copy of a LLaVA whose config and model are classes of its own file own.py."""
    shutil.copytree(source, folder)
    (folder / "own.py").write_text(OWN_LLAVA.format(marker=str(marker)))
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForImageTextToText": "own.OwnModel"}
    edited(folder / "config.json", model_type="of_its_own", auto_map=auto_map)
    return folder


def judge_with_text(folder: Path, **text_cfg) -> Path:
    """The embedded open_clip judge, keys of its config's `text_cfg` set."""
    shutil.copytree(JUDGE_FOLDER, folder, dirs_exist_ok=True)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"].update(text_cfg)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder
