"""Examples to train a random-weight LLaVA on, their log-probs from one plain unpadded forward an answer."""

from pathlib import Path

from tiny_llava import tiny_llava, tiny_prompts

from m3po_dagster.method.generation.model import LoadedModel, load_model
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.prompt import Prompt

ANSWERS = (
    ("no", "yes"),
    ("a red circle", "the blue square on the left"),
    ("two", "there are three in the image"),
    ("no not red", "I see a triangle and a circle"),
    ("top left", "right"),
)


class World:
    """A model's folder and `n` examples with texts of uneven lengths, or the same pair of words in all of them."""

    def __init__(self, folder: Path, n: int, same_words: bool = False) -> None:
        self.settings = ModelSettings(path=str(tiny_llava(folder / "tiny-model")), device="cpu")
        prompts = tiny_prompts(folder / "images", n)
        loaded = self.load()
        self.texts = [ANSWERS[0 if same_words else i % len(ANSWERS)] for i in range(n)]
        self.examples = []
        for i, (prompt, texts) in enumerate(zip(prompts, self.texts, strict=True)):
            chosen, rejected = ((*self._ids(loaded, text), loaded.tokenizer.eos_token_id) for text in texts)
            self.examples.append(
                PreferenceExample(
                    pair_id=f"pair-{i}",
                    prompt=prompt,
                    chosen_ids=chosen,
                    rejected_ids=rejected,
                    ref_chosen_logp=plain_logp(loaded, prompt, chosen),
                    ref_rejected_logp=plain_logp(loaded, prompt, rejected),
                )
            )

    def load(self, adapter: Path | None = None) -> LoadedModel:
        """The model afresh: training adds layers to the one it is given."""
        return load_model(self.settings, adapter)

    @staticmethod
    def _ids(loaded: LoadedModel, text: str) -> list[int]:
        return loaded.tokenizer(text, add_special_tokens=False)["input_ids"]


def plain_logp(loaded: LoadedModel, prompt: Prompt, answer_ids: tuple[int, ...]) -> float:
    """log P(answer | I, Q) in nats, from the logits of one forward over the one sequence."""
    import torch

    text = loaded.processor.apply_chat_template(prompt.chat(), tokenize=False, add_generation_prompt=True)
    inputs = loaded.processor(images=[prompt.open_image()], text=[text], add_special_tokens=False, return_tensors="pt")
    sequence = torch.cat([inputs["input_ids"], torch.tensor([answer_ids])], dim=1)
    with torch.no_grad():
        logits = loaded.model(input_ids=sequence, pixel_values=inputs["pixel_values"]).logits[0]
    start = inputs["input_ids"].shape[1]
    logps = logits[start - 1 : -1].double().log_softmax(dim=-1)
    return logps[range(len(answer_ids)), list(answer_ids)].sum().item()


def conversations(world: World) -> list[dict]:
    """The pairs as TRL takes them: images and messages."""
    said = [[[{"role": "assistant", "content": text}] for text in texts] for texts in world.texts]
    return [
        {
            "image": example.prompt.open_image(),
            "prompt": [{"role": "user", "content": example.prompt.question}],
            "chosen": chosen,
            "rejected": rejected,
        }
        for example, (chosen, rejected) in zip(world.examples, said, strict=True)
    ]


def trained_a_little(trainer):
    """The trainer, its adapter away from the base model, the same for every trainer of a model."""
    import torch

    generator = torch.Generator().manual_seed(1)
    for name, weight in sorted(trainer.model.named_parameters()):
        if "lora_B" in name:
            weight.data.normal_(std=0.1, generator=generator)
    return trainer


def step(trainer, batch) -> tuple[float, list]:
    """The loss on a batch and the gradient of every weight that is trained."""
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), [weight.grad for weight in trainer.model.parameters() if weight.requires_grad]
