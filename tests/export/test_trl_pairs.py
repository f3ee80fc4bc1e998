"""TRL's layout: what load_dataset gives, and that TRL's own trainer takes a step on it."""

import pyarrow.parquet as pq
import pytest
from export_world import ExportWorld, asked
from tiny_llava import tiny_llava


def test_rows_are_conversations_with_the_image_upright_and_all_that_is_known(world, exported, load):
    out, tally = exported("trl")
    rows = load(str(out))
    assert (len(rows), tally.written, tally.dropped.total(), tally.turned) == (4, 4, 0, 1)
    dialogue, other = rows[1], rows[2]
    assert dialogue["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Is there a circle?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "What color?"},
    ]
    assert dialogue["chosen"] == [{"role": "assistant", "content": "red"}]
    assert dialogue["rejected"] == [{"role": "assistant", "content": "blue"}]
    assert other["prompt"][0]["content"] == world.pairs["s2"][0].turns[0][1]
    assert other["chosen"][0]["content"] == "ein Kreis \u00e9"
    assert [row["images"][0].size for row in rows] == [(8, 4), (8, 4), (4, 8), (4, 4)]
    stored = [row for shard in world.shards for row in shard.pairs.table().to_pylist()]
    for row, pair in zip(rows, stored, strict=True):
        assert {name: row[name] for name in pair} == pair
    assert (rows[0]["chosen_token_ids"], rows[0]["rejected_token_ids"]) == ([4, 5, 2], [6, 7, 8, 2])
    assert rows[3]["source"] == "pictures" and rows[3]["source_id"].startswith("record of ")


def test_referenced_images_are_read_where_they_lie_and_turned_by_datasets(world, exported, load):
    out, _ = exported("trl", "reference")
    rows = load(str(out))
    assert [row["images"][0].size for row in rows] == [(8, 4), (8, 4), (4, 8), (4, 4)]
    held = [
        image
        for file in sorted((out / "data").iterdir())
        for row in pq.read_table(file)["images"].to_pylist()
        for image in row
    ]
    places = ["wide.png", "wide.png", "turned.jpg", "nested/grey.webp"]
    assert held == [{"bytes": None, "path": str(world.images / place)} for place in places]


def test_text_that_looks_like_a_placeholder_stays_as_it_is(tmp_path, exported, load):
    out, tally = exported("trl", of=ExportWorld(tmp_path / "tags", {"s0": [asked("What does <image> do in HTML?")]}))
    assert load(str(out))[0]["prompt"][0]["content"] == "What does <image> do in HTML?" and not tally.dropped


@pytest.mark.slow
def test_trls_own_trainer_takes_a_step(tmp_path, exported, load):
    from m3po_dagster.torchvision_repair import repair_torchvision

    repair_torchvision()
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import DPOConfig, DPOTrainer

    out, _ = exported(
        "trl",
        of=ExportWorld(
            tmp_path / "plain",
            {"s0": [asked("What color is the circle?"), asked("How many are there?", image="turned.jpg")]},
        ),
    )
    folder = tiny_llava(tmp_path / "model")
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    config = DPOConfig(
        output_dir=str(tmp_path / "run"),
        max_length=None,
        max_steps=1,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
    )
    trainer = DPOTrainer(model, args=config, train_dataset=load(str(out)), processing_class=processor)
    batch = next(iter(trainer.get_train_dataloader()))
    placeholder = model.config.image_token_id
    texts = processor.tokenizer.batch_decode(batch["input_ids"][batch["completion_mask"].bool()].unsqueeze(1))
    assert batch["input_ids"].shape[0] == batch["pixel_values"].shape[0] == 4
    assert (batch["input_ids"] == placeholder).sum(dim=1).unique().numel() == 1
    assert {"red", "circle", "blue", "square"} <= {text.strip() for text in texts}
    result = trainer.train()
    assert result.global_step == 1 and torch.isfinite(torch.tensor(result.training_loss))
    assert any(not torch.equal(weight, before[name]) for name, weight in model.named_parameters())
