"""What a server is asked: one prompt, some of its samples, as an OpenAI chat completion request.

Everything that shapes the distribution is said outright: a server would else take it from the model's own
generation_config.json (top-k, a repetition penalty), and the samples would be of another model than the log-probs.
"""

from typing import Any

from m3po_dagster.method.generation.generator_settings import ServerSettings
from m3po_dagster.method.generation.settings import SamplingSettings
from m3po_dagster.method.generation.vocabulary import Vocabulary
from m3po_dagster.method.prompt import Prompt

# The lowest that the API takes: e**-100 is none. A float, for transformers serve takes no other.
NEVER = -100.0


def messages(prompt: Prompt, image: str) -> list[dict]:
    """The conversation, earlier turns included; the image (a data URL) before the text of the first user turn."""
    turns: list[dict[str, Any]] = [{"role": message.role, "content": message.text} for message in prompt.messages]
    first = next(turn for turn in turns if turn["role"] == "user")
    first["content"] = [
        {"type": "image_url", "image_url": {"url": image}},
        {"type": "text", "text": first["content"]},
    ]
    return turns


def prompt_fields(server: ServerSettings, model: str, vocabulary: Vocabulary, prompt: Prompt, image: str) -> dict:
    """What every request about a prompt says. Raises PromptError where the chat template refuses it."""
    body: dict[str, Any] = {
        "model": model,
        "messages": messages(prompt, image),
        "logit_bias": {str(token): NEVER for token in vocabulary.suppressed},
    }
    if server.engine in ("vllm", "sglang"):
        body |= {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    if server.engine == "vllm":
        body |= {
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "add_special_tokens": vocabulary.needs_special_tokens(prompt),
        }
    if server.engine == "sglang":
        body["return_completion_token_ids"] = True
    return body


def sampling_fields(settings: SamplingSettings, seed: int, n: int) -> dict:
    """Asks for `n` samples with their log-probs; sample i is drawn from `seed` + i."""
    return {
        "n": n,
        "seed": seed,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_completion_tokens": settings.max_new_tokens,
        "logprobs": True,
    }


def greedy_fields(max_new_tokens: int) -> dict:
    """Asks for the likeliest-token answer."""
    return {"temperature": 0, "max_completion_tokens": max_new_tokens}
