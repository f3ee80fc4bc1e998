"""What an open_clip model brings: pickles, a tokenizer's code and foreign text towers are refused, hub or folder."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from hostile_models import OWN_TOKENIZER, RunsWhenRead, edited, judge_with_text

from m3po_dagster.method.alignment.clip_encoder import ClipEncoder
from m3po_dagster.method.alignment.open_clip_files import check_files, tokenizer_arguments
from m3po_dagster.world.judge import JUDGE_FOLDER

WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture
def marker(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "was-run"


def judge_with_own_tokenizer(folder, marker, **keywords):
    """The judge's folder with a tokenizer class of its own, and keywords for it in the config."""
    judge_with_text(folder, tokenizer_kwargs=keywords)
    (folder / "own_tokenizer.py").write_text(OWN_TOKENIZER.format(marker=str(marker)))
    auto_map = {"AutoTokenizer": [None, "own_tokenizer.OwnTokenizer"]}
    edited(folder / "tokenizer_config.json", auto_map=auto_map, tokenizer_class="OwnTokenizer")
    return folder


LOADS_CARELESSLY = """
import sys
from m3po_dagster.torchvision_repair import repair_torchvision
repair_torchvision()
import open_clip
open_clip.get_tokenizer("local-dir:" + sys.argv[1])
"""


def test_a_config_can_not_have_its_tokenizers_code_run(tmp_path, marker):
    folder = judge_with_own_tokenizer(tmp_path / "judge", marker, trust_remote_code=True)
    with pytest.raises(ValueError, match="contains custom code"):
        ClipEncoder(str(folder))
    assert not marker.exists()


@pytest.mark.slow
def test_open_clip_alone_would_run_it(tmp_path, marker):
    """It hands the config's keywords to transformers; in a process of its own, since transformers remembers classes."""
    folder = judge_with_own_tokenizer(tmp_path / "judge", marker, trust_remote_code=True)
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    subprocess.run([sys.executable, "-c", LOADS_CARELESSLY, str(folder)], check=True, timeout=120, env=environment)
    assert marker.exists()


@pytest.mark.parametrize("suffix", ["bin", "pth", "pt"])
@pytest.mark.parametrize("beside", [None, "anything.safetensors"])
def test_pickled_weights_of_a_folder_are_never_read(tmp_path, marker, suffix, beside):
    """open_clip prefers some names of pickles to other names of safetensors."""
    import torch

    folder = judge_with_text(tmp_path / "judge")
    (folder / WEIGHTS).unlink()
    if beside:
        shutil.copy(JUDGE_FOLDER / WEIGHTS, folder / beside)
    name = f"open_clip_pytorch_model.{suffix}"
    torch.save({"weights": RunsWhenRead(marker)}, folder / name)
    with pytest.raises(ValueError, match=rf"{folder}.*{name}; reading a pickle can run anything: name a model whose"):
        ClipEncoder(str(folder))
    assert not marker.exists()


def test_a_pickle_beside_the_weights_changes_nothing(tmp_path):
    folder = judge_with_text(tmp_path / "judge")
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"never read")
    theirs, ours = (ClipEncoder(str(where)).encode_texts(["a red circle"]) for where in (JUDGE_FOLDER, folder))
    assert (theirs == ours).all()


def test_a_pickled_file_that_a_study_names_is_never_read(tmp_path, marker):
    import torch

    torch.save({"weights": RunsWhenRead(marker)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=rf"model 'ViT-B-32': its weights are in {tmp_path}/weights\.pt; reading"):
        ClipEncoder("ViT-B-32", str(tmp_path / "weights.pt"))
    assert not marker.exists()


def test_a_text_tower_of_another_repository_is_refused(tmp_path):
    folder = judge_with_text(tmp_path / "judge", hf_model_name="somebody/tower")
    with pytest.raises(ValueError, match=r"takes the text tower from 'somebody/tower', which none of open_clip's own"):
        ClipEncoder(str(folder))


@pytest.mark.parametrize("name", ["roberta-ViT-B-32", "xlm-roberta-base-ViT-B-32"])
def test_a_text_tower_that_open_clips_own_models_have_is_not(name):
    check_files(name, None)
    assert tokenizer_arguments(name) == {"trust_remote_code": False}


def test_open_clips_own_tokenizer_is_told_nothing():
    assert tokenizer_arguments("ViT-B-32") == {}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder in the hub's place; which of its files open_clip takes is open_clip's own rule."""
    import huggingface_hub
    import open_clip

    folder = judge_with_text(tmp_path / "hub")

    def from_folder(repo_id, filename, **how):
        if not (folder / filename).is_file():
            raise FileNotFoundError(filename)
        return str(folder / filename)

    for place in (huggingface_hub, open_clip.pretrained):
        monkeypatch.setattr(place, "hf_hub_download", from_folder)
    return folder


# A name on the hub; a name that open_clip knows, with a tag that stands for one.
@pytest.mark.parametrize("named", [("hf-hub:some/model", None), ("ViT-B-32", "laion2b_s34b_b79k")])
def test_what_is_published_as_a_pickle_alone_is_refused_and_as_safetensors_is_not(hub, named):
    check_files(*named)
    (hub / WEIGHTS).rename(hub / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match=rf"model '{named[0]}': its weights are in .*_model\.bin; reading a pickle"):
        check_files(*named)


def test_the_tokenizer_of_a_name_on_the_hub_gets_no_trust_either(hub):
    assert tokenizer_arguments("hf-hub:some/model") == {"trust_remote_code": False}


def test_a_config_that_is_no_config_is_left_to_open_clip_to_refuse(tmp_path):
    for content in ("[]", "{}", "{", json.dumps({"model_cfg": [1]})):
        folder = judge_with_text(tmp_path / "judge")
        (folder / "open_clip_config.json").write_text(content)
        with pytest.raises((ValueError, TypeError, KeyError)):
            ClipEncoder(str(folder))
