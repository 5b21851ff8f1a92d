"""The vLLM door, against a stand-in with vLLM's interface: what is asked of it and how its answers are read."""

import dataclasses
import importlib.util
import sys
from types import SimpleNamespace

import pytest

from iclkit.errors import ModelError, RequestError, UnknownName, UsageError
from iclkit.lm import GenerateRequest, ScoreRequest, load_lm
from iclkit.lm._load import load_torch
from iclkit.lm._vllm import VLLM


class Engine:
    """Answers as ``vllm.LLM.generate`` does, from a loaded torch model."""

    def __init__(self, lm):
        self.lm, self.calls = lm, []
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=lm.context_size))

    def get_tokenizer(self):
        return self.lm.codec.tokenizer

    def generate(self, prompts, params, use_tqdm):
        import torch

        out = []
        for at, prompt in enumerate(prompts):
            own = params if isinstance(params, SimpleNamespace) else params[at]
            ids = prompt["prompt_token_ids"]
            self.calls.append(ids)
            with torch.inference_mode():
                table = torch.log_softmax(self.lm.model.module(torch.tensor([ids])).logits[0].float(), -1)
            listed = [None]
            for i in range(1, len(ids)):
                value = float(table[i - 1, ids[i]])
                rank = int((table[i - 1] > value).sum()) + 1
                listed.append({ids[i]: SimpleNamespace(logprob=value, rank=rank)})
            text = SimpleNamespace(
                text=f"<{own.seed if hasattr(own, 'seed') else ''}>", token_ids=[1], finish_reason="stop"
            )
            out.append(SimpleNamespace(prompt_logprobs=listed, outputs=[text]))
        return out


@pytest.fixture
def lms(tiny_folder):
    folder = tiny_folder()
    own = load_torch(str(folder), dtype="fp32", device="cpu")
    return own, VLLM(Engine(own), SimpleNamespace, name="tiny", folder=folder, dtype="fp32", version="0")


def test_scores_are_read_from_prompt_logprobs(lms):
    own, door = lms
    asks = [ScoreRequest(c, t) for c in ("the quick", "Review: thin . Sentiment:") for t in (" fox", " lazy dog")]
    for got, want in zip(door.score([*asks, asks[0]]), own.score([*asks, asks[0]]), strict=True):
        assert got.logprob == pytest.approx(want.logprob, abs=1e-4)
        assert (got.tokens, got.greedy) == (want.tokens, want.greedy)
    assert len(door._engine.calls) == 4


def test_generation_hands_over_seed_and_choices_are_scored(lms):
    own, door = lms
    asks = [GenerateRequest("the", 3, seed=7), GenerateRequest("the quick", choices=(" fox", " lazy dog"))]
    got = door.generate(asks)
    assert (got[0].text, got[0].finish) == ("<7>", "stop")
    assert got[1] == own.generate(asks[1:])[0]


def test_what_does_not_fit_is_an_error(lms):
    with pytest.raises(RequestError, match="reads 512"):
        lms[1].score([ScoreRequest("quick " * 600, "fox")])


@dataclasses.dataclass
class EngineArgs:
    """Some of the options that vLLM's own class of this name has."""

    model: str = ""
    load_format: str = "auto"
    tensor_parallel_size: int = 1
    max_model_len: int | None = None
    quantization: str | None = None


@pytest.fixture
def installed(lms, monkeypatch):
    """vLLM as it were: what its ``LLM`` was made with."""
    made = []

    def make(**settings):
        if settings.get("tensor_parallel_size", 1) > 2:
            raise ValueError("World size (4) is larger than\nthe number of available GPUs (2)")
        made.append(settings)
        return Engine(lms[0])

    module = SimpleNamespace(LLM=make, EngineArgs=EngineArgs, SamplingParams=SimpleNamespace, __version__="0.33")
    monkeypatch.setitem(sys.modules, "vllm", module)
    return made


def test_options_of_the_engine_are_handed_over_and_stand_in_the_fingerprint(installed, tiny_folder):
    folder = tiny_folder()
    plain = load_lm(f"vllm:{folder}", cache=False, dtype="bf16")
    many = load_lm(f"vllm:{folder},tensor_parallel_size=2,quantization=fp8", cache=False, dtype="bf16")
    common = {"model": str(folder), "dtype": "bfloat16", "load_format": "safetensors"}
    assert installed == [common, {**common, "tensor_parallel_size": 2, "quantization": "fp8"}]
    assert many.fingerprint == plain.fingerprint + '|quantization="fp8"|tensor_parallel_size=2'
    assert many.name == str(folder)


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ("tensor_paralel_size=2", UnknownName, "tensor_parallel_size"),
        ("load_format=pt", UnknownName, "load_format"),
        ("tensor_parallel_size", UsageError, "is not key=value"),
        ("tensor_parallel_size=4", ModelError, r"World size \(4\) is larger than the number"),
    ],
)
def test_options_that_cannot_be_are_one_clear_line(options, kind, says, installed, tiny_folder):
    with pytest.raises(kind, match=says) as caught:
        load_lm(f"vllm:{tiny_folder()},{options}", cache=False)
    assert "\n" not in str(caught.value)


def test_gpus_are_for_the_own_engine(tiny_folder):
    with pytest.raises(UsageError, match="tensor_parallel_size"):
        load_lm(f"vllm:{tiny_folder()}", gpus=2, cache=False)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_error_says_what_to_do():
    with pytest.raises(ModelError, match="openai:MODEL@URL"):
        load_lm("vllm:smollm2-135m", cache=False)
