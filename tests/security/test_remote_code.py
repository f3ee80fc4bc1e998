"""Code that comes with a model: not run, whoever loads it; where a study trusts it, pinned, run and told."""

import logging
import os
import pty
import subprocess
import sys

import pytest
from hostile_models import edited, with_own_model
from tiny_llava import tiny_llava, tiny_prompts

from m3po_dagster.cost.assumptions import Assumptions
from m3po_dagster.cost.model_facts import model_facts
from m3po_dagster.identity import Identities
from m3po_dagster.inspector.tokens import Decoder
from m3po_dagster.method.alignment.calibration import Linear
from m3po_dagster.method.alignment.hf_clip import HfClipScorerSettings
from m3po_dagster.method.alignment.pretrained import load_config
from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.settings import ModelSettings, SamplingSettings
from m3po_dagster.method.generation.vocabulary import load_vocabulary
from m3po_dagster.study import load_study
from tests.sampling import sample

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tiny_llava(tmp_path_factory.mktemp("plain"))


@pytest.fixture
def marker(tmp_path, monkeypatch):
    # Where transformers copies code to that it runs: not into the user's cache.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "was-run"


@pytest.fixture
def own(plain, tmp_path, marker):
    return with_own_model(plain, tmp_path / "own", marker)


def test_a_model_of_its_own_code_is_refused_and_its_code_not_run(own, marker):
    with pytest.raises(ValueError, match=r"model\.path .* is no vision-language model.*contains custom code"):
        load_model(ModelSettings(path=str(own), device="cpu"))
    assert not marker.exists()


def test_nor_by_what_reads_only_its_words_or_its_size(own, marker):
    settings = ModelSettings(path=str(own), device="cpu")
    with pytest.raises(FileNotFoundError, match="contains custom code"):
        load_vocabulary(settings)
    assert model_facts(settings, Assumptions()).kv_from.startswith("assumed")
    (own / "tokenizer.json").unlink()
    assert Decoder(settings).problem
    assert not marker.exists()


def test_nor_by_a_scorer(own, marker):
    with pytest.raises(ValueError, match=r"scorer 'hf_clip': .*contains custom code"):
        load_config(HfClipScorerSettings(model=str(own)))
    assert not marker.exists()


@pytest.mark.slow
def test_nobody_is_asked_on_a_terminal(own, tmp_path, marker):
    """transformers asks, and takes y for an answer, where it isn't told."""
    (own / "tokenizer.json").unlink()
    code = (
        "import sys; from m3po_dagster.inspector.tokens import Decoder\n"
        "from m3po_dagster.method.generation.settings import ModelSettings\n"
        "print(Decoder(ModelSettings(path=sys.argv[1])).problem)"
    )
    ours, theirs = pty.openpty()
    os.write(ours, b"y\n" * 5)
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(own)],
        stdin=theirs, capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip
    os.close(ours), os.close(theirs)
    assert done.returncode == 0 and "y/N" not in done.stdout + done.stderr
    assert not marker.exists()


def test_trusted_it_answers_as_the_same_model_without_code_and_says_so(own, plain, tmp_path, marker, caplog):
    prompts, sampling = tiny_prompts(tmp_path, 2), SamplingSettings(n=4, max_new_tokens=8)
    with caplog.at_level(logging.WARNING, "m3po_dagster"):
        loaded = load_model(ModelSettings(path=str(own), device="cpu", trust_remote_code=True))
    assert marker.exists() and type(loaded.model).__name__ == "OwnModel"
    said = [record.getMessage() for record in caplog.records if "trust_remote_code" in record.getMessage()]
    assert said == [
        f"model: trust_remote_code is on: the Python code in own.py of {own} may be run, with all rights of this "
        "process"
    ]
    usual = load_model(ModelSettings(path=str(plain), device="cpu"))
    theirs, ours = (sample(model, prompts, sampling, [0, 1]) for model in (usual, loaded))
    assert [[one.token_ids for one in row] for row in ours] == [[one.token_ids for one in row] for row in theirs]


def test_nothing_is_said_of_a_model_that_is_not_trusted(plain, caplog):
    with caplog.at_level(logging.WARNING, "m3po_dagster"):
        load_model(ModelSettings(path=str(plain), device="cpu"))
    assert "trust_remote_code" not in caplog.text


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:12], COMMIT.upper()])
def test_code_from_the_hub_is_pinned_by_a_commit(revision):
    with pytest.raises(ValueError, match="give the commit that you read, its 40 hex digits, as revision"):
        ModelSettings(path="owner/model", revision=revision, trust_remote_code=True)
    with pytest.raises(ValueError, match="give the commit that you read"):
        HfClipScorerSettings(model="owner/model", revision=revision, trust_remote_code=True)
    assert ModelSettings(path="owner/model", revision=COMMIT, trust_remote_code=True).trust_remote_code
    assert not ModelSettings(path="owner/model", revision=revision).trust_remote_code


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "processor_config.json"])
def test_trust_does_not_reach_code_of_another_repository(own, marker, name):
    auto_map = {"AutoConfig": "somebody/else--own.OwnConfig"}
    edited(own / name, auto_map=auto_map)
    with pytest.raises(
        ValueError, match=rf"model: {name} of '{own}' takes code from another repository .*somebody/else"
    ):
        load_model(ModelSettings(path=str(own), device="cpu", trust_remote_code=True))
    assert not marker.exists()


def test_trust_is_part_of_what_a_model_is_and_its_absence_is_not(own):
    def of(**settings):
        scorer = HfClipScorerSettings(model=str(own), calibration=Linear(low=0.0, high=1.0), **settings)
        return scorer.identity()["settings"]

    assert "trust_remote_code" not in of() and of(trust_remote_code=True)["trust_remote_code"] is True
    study = load_study("studies/easy_scenes.yaml")
    trusting = study.model_copy(update={"model": study.model.model_copy(update={"trust_remote_code": True})})
    usual, other = (Identities(lambda path: "").model(one) for one in (study, trusting))
    # What was made before there was such a setting is found again.
    assert set(usual["settings"]) == {"revision", "dtype", "quantization"}
    assert other == {**usual, "settings": {**usual["settings"], "trust_remote_code": True}}


def test_a_line_of_trusted_code_that_changes_makes_it_another_model(own):
    identities = Identities(lambda path: str(hash(path.read_bytes())))
    before = identities.weights(str(own))
    (own / "own.py").write_text((own / "own.py").read_text() + "\n# another line\n")
    after = identities.weights(str(own))
    assert {name for name in before if before[name] != after[name]} == {"own.py"}
