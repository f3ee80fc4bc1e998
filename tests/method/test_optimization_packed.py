"""A pair as one row: TRL's layout is the oracle of loss, gradient and log-probs; counts and operations are counted."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from optimization_world import World, plain_logp, step, trained_a_little

from m3po_dagster.method.optimization import packed
from m3po_dagster.method.optimization.batches import Batches
from m3po_dagster.method.optimization.dpo import fit_dpo, new_dpo_trainer
from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.optimization.settings import DpoSettings

sys.path.insert(0, str(Path(__file__).parents[1] / "families"))

N = 5  # answers of 2 to 8 tokens, chosen and rejected of uneven lengths
SETTINGS = DpoSettings(beta=0.3, batch_size=N, learning_rate=1e-3, warmup_ratio=0, reference_sample=N)
PACKED = SETTINGS.model_copy(update={"layout": "packed"})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("packed"), N)


def a_step(world, settings: DpoSettings, folder, reference_forward: bool = False):
    """Loss and gradient of a step away from the base model, and the counts of torch's operations and of LM rows."""
    from torch.utils.flop_counter import FlopCounterMode

    loaded, examples = world.load(), world.examples
    batches = Batches(loaded, examples, packed=settings.layout == "packed")
    trainer = trained_a_little(new_dpo_trainer(loaded, batches, examples, settings, 0, str(folder)))
    if reference_forward:
        trainer.precompute_ref_logps = False
    rows = []
    loaded.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    batch = batches.preference([{"row": row} for row in range(len(examples))])
    with FlopCounterMode(display=False) as flops:
        loss, gradients = step(trainer, batch)
    return loss, gradients, rows, flops.get_total_flops()


OPTIONS = [
    {},
    {"loss": {"ipo": 1.0, "sft": 0.5}},
    {"ld_alpha": 0.3},
    {"wpo_weighting": True},
    {"gradient_checkpointing": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ", ".join(options) or "default")
def test_loss_and_gradient_are_those_of_trls_layout(world, tmp_path, options):
    import torch

    expected, expected_gradients, rows, _ = a_step(world, SETTINGS.model_copy(update=options), tmp_path)
    loss, gradients, packed_rows, _ = a_step(world, PACKED.model_copy(update=options), tmp_path)
    assert loss == pytest.approx(expected, abs=1e-6, rel=1e-6)
    mine, theirs = (torch.cat([one.flatten() for one in found]) for found in (gradients, expected_gradients))
    assert theirs.norm() > 1e-2
    assert (mine - theirs).norm() / theirs.norm() < 1e-5
    assert [2 * one for one in packed_rows] == rows == [2 * N] * len(rows)


def test_the_work_is_less_than_half_of_trls_with_a_reference_forward(tmp_path):
    """On LLaVA-1.5's 576 image tokens and its language model's proportions, answers of 32 tokens."""
    from llava_576 import llava_576
    from tiny_llava import tiny_prompts

    from m3po_dagster.method.generation.model import load_model
    from m3po_dagster.method.generation.settings import ModelSettings

    folder = llava_576(tmp_path / "model", hidden_size=64, intermediate_size=172, num_hidden_layers=2)

    examples = [
        PreferenceExample(prompt.prompt_id, prompt, tuple(range(10, 42)), tuple(range(9, 41)), -1.0, -1.0)
        for prompt in tiny_prompts(tmp_path / "images", 2)
    ]
    model = ModelSettings(path=str(folder), device="cpu")
    llava = SimpleNamespace(examples=examples, load=lambda: load_model(model))
    _, _, rows, flops = a_step(llava, SETTINGS, tmp_path, reference_forward=True)
    _, _, stored_rows, stored_flops = a_step(llava, SETTINGS, tmp_path)
    _, _, packed_rows, packed_flops = a_step(llava, PACKED, tmp_path)
    assert (rows, stored_rows, packed_rows) == ([4, 4], [4], [2])
    assert flops > 1.3 * stored_flops
    assert flops > 2.2 * packed_flops


def test_a_packed_run_is_the_other_run(world):
    _, expected = fit_dpo(world.load(), world.examples, SETTINGS, 0)
    _, result = fit_dpo(world.load(), world.examples, PACKED, 0)
    names = ("loss", "grad_norm", "reward_margin", "chosen_logp", "rejected_logp", "token_accuracy")
    for row, other in zip(result.log, expected.log, strict=True):
        assert [row[name] for name in names] == pytest.approx([other[name] for name in names], abs=2e-6, rel=1e-5)
    for row, other in zip(result.margins, expected.margins, strict=True):
        assert row["reward_margin"] == pytest.approx(other["reward_margin"], abs=1e-5)
        assert row["rejected_logp_after"] == pytest.approx(other["rejected_logp_after"], abs=1e-5)


def test_an_answer_of_one_token_is_predicted_by_the_prompt_alone(world):
    eos = world.load().tokenizer.eos_token_id
    examples = []
    for i, (chosen, rejected) in enumerate((((7, 8, 9), (eos,)), ((eos,), (8, 7)), ((9,), (eos,)))):
        prompt = world.examples[i].prompt
        logps = [plain_logp(world.load(), prompt, ids) for ids in (chosen, rejected)]
        examples.append(PreferenceExample(f"pair-{i}", prompt, chosen, rejected, *logps))
    exact = PACKED.model_copy(update={"reference_tolerance": 1e-4, "learning_rate": 1e-12})
    _, result = fit_dpo(world.load(), examples, exact, 0)
    for row, example in zip(result.margins, examples, strict=True):
        assert row["chosen_logp_after"] == pytest.approx(example.ref_chosen_logp, abs=1e-4)
        assert row["rejected_logp_after"] == pytest.approx(example.ref_rejected_logp, abs=1e-4)


@pytest.mark.parametrize("broken", ["_masked", "shift"])
def test_what_moves_a_log_prob_is_refused_before_training(world, monkeypatch, broken):
    """Answers that see each other, and positions that go on: what a model does that knows no such mask or positions."""
    if broken == "_masked":
        monkeypatch.setattr(packed.Rows, "_masked", lambda self, mask, dtype: mask)
    else:
        told = packed.Rows.told
        monkeypatch.setattr(
            packed.Rows, "told", lambda self, given, dtype: {**told(self, given, dtype), "position_ids": self.columns}
        )
    steps = []
    with pytest.raises(
        ValueError, match=r"gives pair pair-\d other log-probs than in TRL's layout, .* use `layout: trl"
    ):
        fit_dpo(world.load(), world.examples, PACKED, 0, lambda step, _: steps.append(step))
    assert steps == []


def test_a_model_that_cannot_keep_answers_apart_is_refused(world):
    loaded = world.load()
    loaded.model.get_decoder().config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="attends by flash_attention_2, which takes no mask of every token"):
        fit_dpo(loaded, world.examples, PACKED, 0)
    loaded = world.load()
    loaded.model.config.get_text_config().sliding_window = 64
    with pytest.raises(ValueError, match=r"has layers \(sliding_attention\) that go by a token's place"):
        fit_dpo(loaded, world.examples, PACKED, 0)


def test_a_model_that_raises_at_the_mask_is_refused(world, monkeypatch):
    def unknown(self, mask, dtype):
        raise TypeError("no such mask")

    monkeypatch.setattr(packed.Rows, "_masked", unknown)
    with pytest.raises(
        ValueError, match=r"LlavaForConditionalGeneration can't read a pair as one row \(no such mask\)"
    ):
        fit_dpo(world.load(), world.examples, PACKED, 0)


PAIR = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5))


@hypothesis_settings(max_examples=60, deadline=None)
@given(pairs=st.lists(PAIR, min_size=1, max_size=4))
def test_where_tokens_go_and_what_they_see(pairs):
    """Token by token, as it would be written down by hand."""
    import torch

    answers = [(p, c) for p, c, _ in pairs] + [(p, r) for p, _, r in pairs]
    length = max(p + a for p, a in answers)
    tokens = torch.zeros(len(answers), length, dtype=torch.long)
    labels = torch.full_like(tokens, -100)
    for row, (prompt, answer) in enumerate(answers):
        pair = row % len(pairs)
        tokens[row, :prompt] = 100 * pair + torch.arange(prompt)
        tokens[row, prompt : prompt + answer] = 1000 * (row + 1) + torch.arange(answer)
        labels[row, prompt : prompt + answer] = tokens[row, prompt : prompt + answer]
    rows = packed.Rows(torch.tensor([p for p, _, _ in pairs]), labels)
    told = rows.told({}, torch.float32)
    found, own, mask = rows.packed(tokens), rows.own, told["attention_mask"][:, 0] == 0
    for i, (p, c, r) in enumerate(pairs):
        chosen, rejected = tokens[i].tolist(), tokens[len(pairs) + i].tolist()
        expected = chosen[: p + c - 1] + rejected[p : p + r - 1]
        assert found[i][own[i]].tolist() == expected
        assert told["position_ids"][i][own[i]].tolist() == [*range(p + c - 1), *range(p, p + r - 1)]
        for q in range(len(expected)):
            in_rejected = q >= p + c - 1
            seen = [k for k in range(q + 1) if not (in_rejected and p <= k < p + c - 1)]
            assert mask[i, q].nonzero()[:, 0].tolist() == seen
    # Hidden states that say where they stand: what predicts an answer's token stands just before it.
    states = found[..., None].clone()
    output = rows.predicting(type("Output", (), {"last_hidden_state": states})())
    for row, (prompt, answer) in enumerate(answers):
        before = tokens[row, prompt - 1 : prompt + answer - 1].tolist()
        assert output.last_hidden_state[row, :answer, 0].tolist() == before
        assert rows.answers[row, :answer].tolist() == labels[row, prompt : prompt + answer].tolist()
        assert (rows.answers[row, answer:] == -100).all()
    back = rows.unpacked({"log_probs": rows.answers.float(), "loss": torch.tensor(1.0)})
    assert (back["log_probs"] == labels[:, 1:].masked_fill(labels[:, 1:] == -100, 0)).all()
    assert back["loss"] == 1
