"""A served model on loopback: the chat endpoint of a vision-language model that really runs, in vLLM's reply layout.

    with ServedGenerator(loaded) as server:
        ServerSettings(base_url=server.base_url, model=server.model, version="test")

Choice i of a request is drawn from the request's seed + i by the model itself, as vLLM does. `faults` are taken by the
next requests in turn: a `Reply` goes out in place of one, a function changes the choices of one.
"""

import base64
import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from m3po_dagster.method.generation.model import LoadedModel
from m3po_dagster.method.generation.sampler import TransformersEngine
from m3po_dagster.method.generation.samples import Failure, Sample
from m3po_dagster.method.generation.settings import SamplingSettings
from m3po_dagster.method.prompt import Message, Prompt
from tests.loopback import LoopbackServer, Reply, error

Fault = Reply | Callable[[list], list]


class ServedGenerator(LoopbackServer):
    """The server. `bodies` are the requests as they came, `asked` counts the choices asked for by seed.

    `ids` says how token ids are given: "ids" (`token_ids`), "numbers" (tokens as token_id:N), "pieces" (tokens as
    strings). `most_choices` caps `n`. `load` makes the model of an adapter's folder, for /v1/load_lora_adapter.
    `scaled` gives log-probs at the sampling temperature in place of raw ones, `eos` False leaves the end of sequence
    out, `change_logp` makes another engine's rounding.
    """

    def __init__(self, loaded: LoadedModel, folder: Path, key: str | None = None) -> None:
        super().__init__()
        self.folder, self.key, self.model = folder, key, "served-llava"
        self.models: dict[str, LoadedModel] = {self.model: loaded}
        self.faults: deque[Fault] = deque()
        self.bodies: list[dict] = []
        self.asked: Counter[int] = Counter()
        self.ids, self.most_choices, self.logprobs, self.eos = "ids", 10**6, True, True
        self.scaled = False
        self.change_logp: Callable[[float], float] = lambda logp: logp
        self.load: Callable[[Path], LoadedModel] | None = None
        self.before: Callable[[], None] = lambda: None

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Answers one request."""
        self.before()
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            return error(401, f"wrong key: {headers.get('authorization')}")
        asked = json.loads(body)
        if path == "/v1/load_lora_adapter":
            return self._load_adapter(asked)
        if path != "/v1/chat/completions":
            return error(404, f"no such path: {path}")
        if asked["model"] not in self.models:
            return error(404, f"The model `{asked['model']}` does not exist.")
        with self.lock:
            self.bodies.append(asked)
            fault = self.faults.popleft() if self.faults else None
        if isinstance(fault, Reply) and fault.cut is None and not fault.delay:
            return fault
        with self.lock:
            choices, prompt_ids = self._choices(asked)
        tokens = sum(len(choice["logprobs"]["content"]) if choice["logprobs"] else 0 for choice in choices)
        choices = fault(choices) if callable(fault) else choices
        reply = {"object": "chat.completion", "choices": choices, "usage": {"completion_tokens": tokens}}
        if asked.get("return_token_ids"):
            reply["prompt_token_ids"] = prompt_ids
        made = json.dumps(reply).encode()
        if isinstance(fault, Reply):
            return Reply(fault.status, made, fault.headers, fault.cut, fault.delay)
        return Reply(body=made)

    def _load_adapter(self, asked: dict) -> Reply:
        name, folder = asked["lora_name"], Path(asked["lora_path"])
        if self.load is None or not folder.is_dir():
            return error(404, f"no adapter found at {folder}")
        if name in self.models:
            return error(400, f"The lora adapter '{name}' has already been loaded.")
        self.models[name] = self.load(folder)
        return Reply(body=b'"Success"')

    def _choices(self, asked: dict) -> tuple[list[dict], list[int]]:
        loaded, prompt = self.models[asked["model"]], self._prompt(asked["messages"])
        engine, longest = TransformersEngine(loaded), asked["max_completion_tokens"]
        n = min(asked.get("n", 1), self.most_choices)
        assert set(asked["logit_bias"]) == {str(token) for token in loaded.suppressed}
        if asked["temperature"] == 0:
            found = [one for _, one in engine.answer([prompt], longest, 1)]
        else:
            settings = SamplingSettings(
                n=1, temperature=asked["temperature"], top_p=asked["top_p"], max_new_tokens=longest
            )
            seeds = [asked["seed"] + i for i in range(n)]
            self.asked.update(seeds)
            found = []
            for seed in seeds:
                ((_, samples),) = engine.sample([prompt], settings, [seed])
                found += [samples] if isinstance(samples, Failure) else samples
        assert all(isinstance(one, Sample) for one in found), found
        text = loaded.processor.apply_chat_template(prompt.chat(), tokenize=False, add_generation_prompt=True)
        images, special = [prompt.open_image()], asked.get("add_special_tokens", False)
        inputs = loaded.processor(text=[text], images=images, add_special_tokens=special, return_tensors="pt")
        if self.scaled and asked["temperature"]:
            found = [replace(one, token_logps=scaled(loaded, inputs, one, asked["temperature"])) for one in found]
        choices = [self._choice(loaded, asked, index, one) for index, one in enumerate(found)]
        return choices, inputs["input_ids"][0].tolist()

    def _choice(self, loaded: LoadedModel, asked: dict, index: int, sample: Sample) -> dict:
        tokenizer, ids, logps = loaded.tokenizer, list(sample.token_ids), list(sample.token_logps)
        if not self.eos and sample.finish_reason == "stop":
            ids, logps = ids[:-1], logps[:-1]
        logps = [self.change_logp(logp) for logp in logps]
        by_number = self.ids != "pieces" and asked.get("return_tokens_as_token_ids")
        pieces = [piece.replace("▁", " ") for piece in tokenizer.convert_ids_to_tokens(ids)]
        content = [
            {
                "token": f"token_id:{number}" if by_number else piece,
                "bytes": None if by_number else list(piece.encode()),
                "logprob": logp,
                "top_logprobs": [],
            }
            for number, piece, logp in zip(ids, pieces, logps, strict=True)
        ]
        return {
            "index": index,
            "message": {"role": "assistant", "content": sample.text},
            "finish_reason": sample.finish_reason,
            "stop_reason": None,
            "logprobs": {"content": content} if self.logprobs and asked.get("logprobs") else None,
            "token_ids": ids if self.ids == "ids" and asked.get("return_token_ids") else None,
        }

    def _prompt(self, turns: list[dict]) -> Prompt:
        """The prompt that messages with one image, a data URL, stand for."""
        messages, path = [], None
        for turn in turns:
            content = turn["content"]
            if isinstance(content, list):
                pictured, text = content
                picture = base64.b64decode(pictured["image_url"]["url"].partition("base64,")[2])
                path = self.folder / hashlib.sha256(picture).hexdigest()
                path.write_bytes(picture)
                content = text["text"]
            messages.append(Message(turn["role"], content))
        return Prompt("served", path, tuple(messages))


def scaled(loaded: LoadedModel, inputs, sample: Sample, temperature: float) -> tuple[float, ...]:
    """The tokens' log-probs after the logits were divided by the temperature, by one forward over the whole."""
    import torch

    answer = torch.tensor([sample.token_ids])
    ids = torch.cat([inputs["input_ids"], answer], dim=1)
    with torch.inference_mode():
        logits = loaded.model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -answer.shape[1] - 1 : -1]
    return tuple((logits / temperature).log_softmax(dim=-1).gather(1, answer.T)[:, 0].tolist())
