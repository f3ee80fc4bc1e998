"""The section `trainer`: what it takes, what it refuses, and that no result depends on it."""

from pathlib import Path

import pytest

from m3po_dagster.graph import STAGES, all_parts
from m3po_dagster.identity import Identities
from m3po_dagster.study import load_study
from m3po_dagster.study_errors import StudyError

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "studies" / "easy_scenes.yaml").read_text().replace("../", f"{ROOT}/")


def study(tmp_path, *lines: str):
    path = tmp_path / "study.yaml"
    path.write_text(TEXT + "".join(f"{line}\n" for line in lines))
    return load_study(path)


def test_one_process_on_one_device_saved_every_ten_minutes_unless_told_otherwise(tmp_path):
    trainer = study(tmp_path).trainer
    assert (trainer.kind, trainer.processes, trainer.checkpoint_minutes) == ("local", 1, 10)


def test_no_fingerprint_depends_on_where_a_training_runs(tmp_path):
    one = study(tmp_path)
    other = study(
        tmp_path, "trainer: {kind: accelerate, processes: 4, checkpoint_minutes: 1, per_device_batch_size: 1}"
    )
    identities = Identities(lambda path: "hash")
    compared = 0
    for asset, partition in all_parts(one):
        stage = STAGES[asset]
        # What stands outside is read from its files, which a fresh checkout lacks, and knows no trainer.
        if not stage.outside:
            compared += 1
            assert stage.settings(one, identities, partition) == stage.settings(other, identities, partition), asset
    assert compared > 20


@pytest.mark.parametrize(
    ("trainer", "wanted"),
    [
        ("{kind: accelerate}", r"trainer\.processes: is missing|trainer\.processes"),
        (
            "{kind: accelerate, processes: 3}",
            r"recipes\.\w+\.training: batch_size 8 .* over 3 processes .* are 6 and 9",
        ),
        (
            "{kind: accelerate, processes: 2, per_device_batch_size: 3}",
            r"recipes\.\w+\.training: batch_size 8 gives each of 2 process\(es\) 4 examples .*_size 3 does not divide",
        ),
        ("{kind: accelerate, processes: 2, config_file: zero}", r"'zero' is no configuration that ships \(ddp, "),
        ("{kind: local, processes: 2}", r"trainer\.processes: unknown key"),
        ("{kind: ray}", r"trainer\.kind: there is no 'ray'; name one of 'local', 'accelerate'"),
        ("{kind: local, checkpoint_minutes: -1}", r"trainer\.checkpoint_minutes"),
    ],
)
def test_what_can_not_be_is_refused(tmp_path, trainer, wanted):
    with pytest.raises(StudyError, match=wanted):
        study(tmp_path, f"trainer: {trainer}")


def test_a_model_spread_over_all_gpus_has_none_left_for_other_processes(tmp_path):
    path = tmp_path / "study.yaml"
    (tmp_path / "base.yaml").write_text(TEXT)
    path.write_text(
        "extends: base.yaml\nmodel: {device: auto, device_map: auto}\ntrainer: {kind: accelerate, processes: 2}\n"
    )
    with pytest.raises(StudyError, match=r"trainer\.kind accelerate gives each process a GPU of its own"):
        load_study(path)


def recipe(tmp_path, selection: str, training: str, *lines: str, device: str = "cpu"):
    """The embedded study with one more recipe, and further lines."""
    (tmp_path / "base.yaml").write_text(TEXT)
    added = f"recipes: {{added: {{selection: {selection}, training: {training}}}}}"
    path = tmp_path / "study.yaml"
    path.write_text("\n".join(["extends: base.yaml", f"model: {{device: {device}}}", added, *lines]) + "\n")
    return load_study(path)


DIVIDED = ("trainer: {kind: local, per_device_batch_size: 4}", "trainer: {kind: accelerate, processes: 2}")


@pytest.mark.parametrize("trainer", DIVIDED)
@pytest.mark.parametrize("loss", ["aot", "{sigmoid: 1, aot_unpaired: 0.5}"])
def test_a_loss_across_pairs_is_not_divided(tmp_path, trainer, loss):
    """It would be refused when sampling, judging and selection are paid for."""
    with pytest.raises(StudyError, match=r"added\.training: a loss that sorts .* 2 parts of it: .* kind local"):
        recipe(tmp_path, "{rule: m3p}", f"{{kind: dpo, loss: {loss}}}", trainer)
    assert recipe(tmp_path, "{rule: m3p}", f"{{kind: dpo, loss: {loss}}}").trainer.kind == "local"
    assert recipe(tmp_path, "{rule: m3p}", "{kind: dpo, loss: sigmoid}", trainer).recipes["added"].trains


@pytest.mark.parametrize(
    "selection",
    ["{rule: flipped}", "{rule: random}", "{rule: longest}", "{rule: reward_max_min, reward: clip}"],
)
def test_pairs_are_not_weighed_by_a_gap_that_may_be_none(tmp_path, selection):
    with pytest.raises(StudyError, match=r"recipes\.added: training\.pair_weight mas_gap .*: use pair_weight none, or"):
        recipe(tmp_path, selection, "{kind: dpo, pair_weight: mas_gap}")
    assert recipe(tmp_path, selection, "{kind: dpo}").recipes["added"].trains


@pytest.mark.parametrize(
    "selection",
    ["m3p", "m3p, score: clip", "vanilla", "sweet_spot", "margin_pairs", "reward_max_min, reward: mas"],
)
def test_pairs_of_a_higher_mas_are(tmp_path, selection):
    assert recipe(tmp_path, f"{{rule: {selection}}}", "{kind: dpo, pair_weight: mas_gap}").recipes["added"].trains


@pytest.mark.parametrize(
    ("selection", "training"),
    [("{rule: m3p}", "kind: dpo"), ("{rule: best_only}", "kind: sft"), ("{rule: every_answer}", "kind: rlhf")],
)
def test_four_bits_are_not_trained_on_a_cpu(tmp_path, selection, training):
    refusal = r"recipes\.added\.training: model\.device is cpu, and 4-bit weights .*: use a GPU, 8bit, or no quant"
    with pytest.raises(StudyError, match=refusal):
        recipe(tmp_path, selection, f"{{{training}, quantization: 4bit}}")
    assert recipe(tmp_path, selection, f"{{{training}, quantization: 8bit}}").recipes["added"].trains
    assert recipe(tmp_path, selection, f"{{{training}, quantization: 4bit}}", device="auto").recipes["added"].trains
