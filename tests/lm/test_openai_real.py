"""A real OpenAI-compatible server (llama.cpp's) on loopback, serving SmolLM2 with the very weights that torch loads."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from iclkit.errors import ModelError, UnknownName
from iclkit.lm import GenerateRequest, Score, ScoreRequest, load_lm
from iclkit.lm._load import load_torch
from iclkit.lm._servers import OpenAILM, open_openai
from iclkit.records import Message

from ..gguf_files import write_gguf

pytestmark = pytest.mark.models

SERVE = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel = 2048, 2
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1  # spinning threads starve on busy cores
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()  # until the test closes it
"""
SHOTS = "Review: dull and slow\nSentiment: negative\n\nReview: a joy to watch\nSentiment: positive\n\nReview: "
CONTEXTS = [
    SHOTS + text + "\nSentiment:" for text in ("I laughed a lot", "what a waste of 2 hours", "Café-Stück, 10/10!")
]
REQUESTS = [ScoreRequest(c, label) for c in CONTEXTS for label in (" positive", " negative", " rather unremarkable")]


@pytest.fixture(scope="module")
def model(smollm2_path: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(smollm2_path, dtype=torch.float32).eval()
    return loaded, AutoTokenizer.from_pretrained(smollm2_path)


@pytest.fixture(scope="module")
def gguf(model: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("gguf") / "smollm2.gguf"
    core = json.loads(model[1].backend_tokenizer.to_str())
    ids = {**core["model"]["vocab"], **{t["content"]: t["id"] for t in core["added_tokens"]}}
    merges = [m if isinstance(m, str) else " ".join(m) for m in core["model"]["merges"]]
    special = [1, *(t["id"] for t in core["added_tokens"] if t["id"] not in (1, 2)), 2]
    write_gguf(path, model[0], sorted(ids, key=ids.__getitem__), merges, special, model[1].chat_template)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def url(gguf: Path) -> Iterator[str]:
    pytest.importorskip("xllamacpp", reason="the server of llama.cpp is not installed: pip install xllamacpp")
    command = [sys.executable, "-c", SERVE, str(gguf)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), f"the server did not start (exit {process.poll()})"
        yield address
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="module")
def lm(url: str) -> OpenAILM:
    return open_openai(f"openai:smollm2@{url}", concurrency=2)


def naive(model: tuple[Any, Any], requests: Sequence[ScoreRequest]) -> list[Score]:
    """One forward per request, full logits, float32, token by token."""
    import torch

    module, tokenizer = model
    scores = []
    for request in requests:
        start = len(tokenizer(request.context).input_ids)
        ids = tokenizer(request.context + request.continuation).input_ids
        with torch.no_grad():
            logprobs = module(torch.tensor([ids])).logits[0].log_softmax(-1)
        steps = [
            (logprobs[at - 1, ids[at]].item(), logprobs[at - 1].argmax().item() == ids[at])
            for at in range(start, len(ids))
        ]
        scores.append(Score(sum(v for v, _ in steps), len(steps), all(g for _, g in steps)))
    return scores


def test_the_probe_finds_how_this_server_tells_probabilities(lm):
    assert (lm.scoring, lm.endpoint, lm.context_size) == ("next-token", "completions", 1024)
    assert lm.notes == ()


def test_scores_equal_a_naive_float32_loop_over_the_same_weights(lm, model):
    for got, want in zip(lm.score(REQUESTS), naive(model, REQUESTS), strict=True):
        assert got.logprob == pytest.approx(want.logprob, abs=0.01)
        assert (got.tokens, got.greedy) == (want.tokens, want.greedy)


def test_the_servers_tokens_are_the_tokenizers(lm, model):
    for text in (*CONTEXTS, "A\n\n5 and\n 12,345", "  two  spaces ", "<|im_start|>user\nHi<|im_end|>"):
        assert lm.codec.encode([text])[0] == tuple(model[1](text).input_ids)
        assert lm.count_tokens(text) == len(model[1](text).input_ids)


def test_a_local_tokenizer_serves_as_well_as_the_servers(url, lm, smollm2_path):
    local = open_openai(f"openai:smollm2@{url}", tokenizer=str(smollm2_path))
    assert [s.logprob for s in local.score(REQUESTS[:3])] == pytest.approx(
        [s.logprob for s in lm.score(REQUESTS[:3])], abs=0.01
    )


def test_greedy_generation_is_the_models_own(lm, model):
    import torch

    prompt = "The capital of France is"
    ids = model[1](prompt, return_tensors="pt")
    with torch.no_grad():
        whole = model[0].generate(**ids, max_new_tokens=12, do_sample=False, pad_token_id=2)[0]
    text = model[1].decode(whole[ids.input_ids.shape[1] :], skip_special_tokens=True)
    free, cut, chosen = lm.generate(
        [
            GenerateRequest(prompt, 12),
            GenerateRequest(prompt, 12, (".",)),
            GenerateRequest(CONTEXTS[1], choices=(" positive", " negative")),
        ]
    )
    assert (free.text, free.tokens, free.finish) == (text, 12, "length")
    assert (cut.text, cut.finish) == (text.partition(".")[0], "stop")
    want = naive(model, [ScoreRequest(CONTEXTS[1], c) for c in (" positive", " negative")])
    assert chosen.text == (" positive" if want[0].logprob > want[1].logprob else " negative")
    assert chosen.finish == "choice"


def test_chats_are_rendered_by_the_models_own_template(lm, model):
    turns = [Message("system", "Be brief."), Message("user", "Is it {good}?")]
    as_dicts = [{"role": m.role, "content": m.content} for m in turns]
    want = model[1].apply_chat_template(as_dicts, tokenize=False, add_generation_prompt=True)
    assert lm.render_chat(turns) == want


def test_the_same_server_as_a_chat_tells_labels_apart_by_their_first_token(url, model):
    chat = open_openai(f"openai:smollm2@{url}", endpoint="chat")
    assert chat.scoring == "first-token"
    turns = [Message("user", "Answer yes or no: is water wet?")]
    rendered = model[1].apply_chat_template(
        [{"role": "user", "content": turns[0].content}], tokenize=False, add_generation_prompt=True
    )
    want = naive(model, [ScoreRequest(rendered, c) for c in ("Yes", "No")])
    context = chat.render_chat(turns)
    got = chat.score([ScoreRequest(context, c) for c in ("Yes", "No")])
    assert (got[0].logprob > got[1].logprob) == (want[0].logprob > want[1].logprob)
    assert got[0].logprob == pytest.approx(want[0].logprob, abs=0.01)


def test_without_probabilities_the_answer_is_compared_with_the_labels(url):
    lm = open_openai(f"openai:smollm2@{url}", scoring="generate", answer_tokens=3)
    (answer,) = lm.generate([GenerateRequest(CONTEXTS[0], 3, ("\n",))])
    scores = lm.score([ScoreRequest(CONTEXTS[0], c) for c in (" positive", " negative")])
    assert answer.text.strip() in ("positive", "negative")
    assert (scores[0].logprob > scores[1].logprob) == (answer.text.strip() == "positive")


# -- GGUF by path ------------------------------------------------------------------------------------------------------

NOUNS = ("film", "hotel")
WORDS = ("superb", "dreadful", "warm", "boring", "clever", "a mess", "a joy", "too long", "moving", "broken")
PROMPTS = [f"{SHOTS}the {noun} was {word}\nSentiment:" for noun in NOUNS for word in WORDS]


def predictions(scores: Sequence[Score]) -> list[bool]:
    return [a.logprob > b.logprob for a, b in zip(scores[::2], scores[1::2], strict=True)]


@pytest.fixture(scope="module")
def exact(smollm2_path: Path) -> list[Score]:
    own = load_torch(str(smollm2_path), dtype="fp32", workers=1, threads=1)
    return own.score([ScoreRequest(c, label) for c in PROMPTS for label in (" positive", " negative")])


def test_llama_cpp_inside_predicts_what_the_own_engine_does_on_the_same_weights(gguf: Path, exact: list[Score]):
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip install xllamacpp")
    lm = load_lm(f"gguf:{gguf},threads=1", cache=False)
    assert (lm.name, lm.scoring, lm.context_size) == ("smollm2", "next-token", 8192)
    got = lm.score([ScoreRequest(c, label) for c in PROMPTS for label in (" positive", " negative")])
    assert predictions(got) == predictions(exact)
    assert max(abs(a.logprob - b.logprob) for a, b in zip(got, exact, strict=True)) < 0.01
    assert "127.0.0.1" not in lm.fingerprint
    assert load_lm(f"gguf:{gguf},threads=1,context=512", cache=False).fingerprint != lm.fingerprint


def test_a_gguf_file_is_converted_once_and_scores_like_its_weights(
    gguf: Path, exact: list[Score], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ICLKIT_HOME", str(tmp_path))
    lm = load_lm(str(gguf), dtype="fp32", workers=1, threads=1, cache=False)
    got = lm.score([ScoreRequest(c, label) for c in PROMPTS for label in (" positive", " negative")])
    differ = sum(a != b for a, b in zip(predictions(got), predictions(exact), strict=True))
    assert differ == 0  # the weights of SmolLM2 are bf16, which is what conversion keeps
    (folder,) = (tmp_path / "models").glob("gguf-smollm2-*")
    before = folder.stat().st_mtime_ns
    again = load_lm(str(gguf), dtype="fp32", workers=1, threads=1, cache=False)
    assert (again.fingerprint, folder.stat().st_mtime_ns) == (lm.fingerprint, before)


@pytest.mark.parametrize(
    ("content", "spec", "words"),
    [
        (b"<html>", "{path}", "is no GGUF file"),
        (b"<html>", "gguf:{path}", "is no GGUF file"),
        (b"GGUF" + b"\0" * 20, "gguf:{path}", "GGUF"),
        (b"GGUF" + b"\0" * 20, "{path}", "GGUF|gguf"),
        (None, "gguf:{path}", "cannot read"),
        (None, "{path}", "cannot read"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path: Path, monkeypatch, content: bytes | None, spec: str, words: str):
    monkeypatch.setenv("ICLKIT_HOME", str(tmp_path / "home"))
    path = tmp_path / "x.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=words) as caught:
        load_lm(spec.format(path=path), cache=False)
    assert "\n" not in str(caught.value)


def test_a_setting_that_llama_cpp_has_not_is_named(gguf: Path):
    with pytest.raises(UnknownName, match="Did you mean 'context'"):
        load_lm(f"gguf:{gguf},contxt=5", cache=False)
