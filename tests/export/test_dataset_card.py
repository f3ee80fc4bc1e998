"""The card of exported pairs: what the hub and a reader find in it."""

import pytest
import yaml
from export_world import ExportWorld, asked
from huggingface_hub import DatasetCard

from m3po_dagster.export.pairs import FORMATS


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_the_card_says_what_how_from_what_and_under_which_licence(world, exported, name):
    out, tally = exported(name)
    card = DatasetCard.load(out / "README.md")
    assert card.data.license == "mit" and card.data.size_categories == ["n<1K"] and name in card.data.tags
    text = card.text
    assert f"{tally.written} preference pairs" in text and "recipe `m3po`: as in the paper" in text
    for licence in ("| source `pictures` | CC-BY-4.0 |", "| base model | not stated in the study |", "| mit |"):
        assert licence in text
    assert "| prompts kept by the filters | 4 |" in text and "| - required: image missing | 6 |" in text
    assert "| pairs selected | 4 |" in text and "| - one_distinct_candidate | 3 |" in text
    assert "| selection | alpha 0.5, rule m3p |" in text
    for shard in world.shards:
        for artifact in (shard.pairs, shard.candidates, shard.instructions, shard.mas, shard.judge, shard.dataset):
            assert text.count(f"| `{artifact.fingerprint}` | `{artifact.data_version}` |") == 1


def test_every_dropped_pair_is_told_with_its_reason(exported):
    out, _ = exported("rlaif-v")
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "* 1 dropped: its prompt has several turns" in text and "Nothing: every selected pair" not in text
    out, _ = exported("trl")
    assert "Nothing: every selected pair is here." in (out / "README.md").read_text(encoding="utf-8")


def test_what_a_recipe_says_can_break_neither_yaml_nor_a_table(tmp_path, exported):
    world = ExportWorld(tmp_path / "odd", {"s0": [asked("A?")]})
    licences = world.study.licences.model_copy(update={"sources": {"pictures": "mine | yours\nand: theirs"}})
    world.study = world.study.model_copy(update={"licences": licences})
    out, _ = exported("trl", of=world)
    _, front, text = (out / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(front)["configs"][0]["data_files"] == [{"split": "train", "path": "data/*.parquet"}]
    assert "| source `pictures` | mine \\| yours and: theirs |" in text
