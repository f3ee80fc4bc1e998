"""Numerics: one name for one engine and precision, and never two in one place."""

import json

import pytest
from tiny_llava import tiny_llava

from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.numerics import MixedNumerics, of_model, of_server, only_one
from m3po_dagster.method.generation.settings import ModelSettings


def test_names():
    assert of_model(ModelSettings(path="m", dtype="bfloat16")) == "transformers/bfloat16"
    assert of_server("vllm", "0.33.0", "bfloat16") == "vllm-0.33.0/bfloat16"


def test_one_is_found_none_is_none_two_are_refused():
    assert only_one([], "here") is None and only_one([None], "here") is None
    assert only_one(["a", None, "a"], "here") == "a"
    with pytest.raises(MixedNumerics, match=r"preference_pairs\[m\|s0\]: .*\(a, b\).*one engine and precision"):
        only_one(["b", "a"], "preference_pairs[m|s0]")


@pytest.mark.parametrize("settings", [{}, {"dtype": "bfloat16"}, {"dtype": "auto"}])
@pytest.mark.parametrize("said", ["", "float16"])
def test_they_are_those_of_the_loaded_model(tmp_path, settings, said):
    """Also where the dtype is left to a config, whether or not that names one."""
    folder = tiny_llava(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps({**config, **({"dtype": said} if said else {})}))
    model = ModelSettings(path=str(folder), device="cpu", **settings)
    assert of_model(model) == load_model(model).numerics
