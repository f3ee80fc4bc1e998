"""Numerics: one name for one engine and precision, and never two in one place."""

import pytest

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
