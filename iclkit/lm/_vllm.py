"""vLLM in this process, where it is installed: ``vllm:MODEL``.

A thin door: vLLM schedules and batches by itself, so each distinct request is one call to it, scored by its prompt
log-probabilities, which vLLM computes without its prefix cache. Several requests on one long prefix are therefore
faster with the own engine; what vLLM brings is tensor parallelism, quantised models and fast generation.
vLLM requires its own versions of torch and transformers, so it stands in an environment of its own.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from iclkit.errors import ModelError, UnknownName
from iclkit.lm._plan import Plan, make_plan
from iclkit.lm._protocol import OnDone, numbered
from iclkit.lm._token_lm import TokenLM
from iclkit.lm._tokens import PromptTokenizer, TokenIds, TokenPair
from iclkit.records import GenerateRequest, Generation, Json, Score, Usage
from iclkit.registry import parse_spec

CHUNK = 512
"""Requests handed to vLLM at once, and stored together."""


OURS = frozenset({"model", "dtype", "load_format", "tokenizer", "skip_tokenizer_init", "trust_remote_code"})
"""Options of vLLM's engine that are set here, or that would run or read what nobody has checked."""


def open_vllm(spec: str, *, dtype: str = "auto") -> VLLM:
    """The LM at ``vllm:MODEL[,option=value]``: a folder, a catalogue name or a hub id, and options of vLLM's engine by
    its own names (``tensor_parallel_size=2``).

    ModelError when vLLM is not installed or does not load it, UnknownName for an option that this vLLM has not.
    """
    from iclkit.models import load_errors, resolve

    parsed = parse_spec(spec)
    name, options = parsed.name.removeprefix("vllm:"), parsed.settings
    try:
        vllm = import_module("vllm")
    except ImportError as error:
        raise ModelError(
            f"vLLM does not import here ({error}); install it in an environment of its own, or serve the model with "
            "it and use openai:MODEL@URL, or leave out the vllm: prefix"
        ) from error
    kinds = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16"}
    if dtype not in kinds:
        raise ModelError(f"vLLM runs fp32 or bf16, not {dtype}")
    known = sorted({f.name for f in dataclasses.fields(vllm.EngineArgs)} - OURS)
    for option in options:
        if option not in known:
            raise UnknownName("option of vLLM's engine", option, known)
    folder = resolve(name, "lm")
    with load_errors(f"vLLM does not load the model in {folder}"):
        # of itself vLLM would take pickled weights where a folder has both
        engine = vllm.LLM(model=str(folder), dtype=kinds[dtype], load_format="safetensors", **options)
    return VLLM(
        engine,
        vllm.SamplingParams,
        name=name,
        folder=folder,
        dtype=dtype,
        version=vllm.__version__,
        options=options,
    )


class VLLM(TokenLM):
    """An LM that hands token ids to ``vllm.LLM``. ``sampling`` is ``vllm.SamplingParams``."""

    reserved_tokens = 1  # vLLM must generate a token

    def __init__(
        self,
        engine: Any,
        sampling: Any,
        *,
        name: str,
        folder: Path,
        dtype: str,
        version: str,
        options: Mapping[str, Json] | None = None,
    ) -> None:
        from iclkit.models import lm_folder_hash

        self.name, self._engine, self._sampling = name, engine, sampling
        self.codec = PromptTokenizer(engine.get_tokenizer())
        self.fingerprint = f"vllm{version}|{lm_folder_hash(folder, self.codec.files)}|{dtype}"
        self.fingerprint += "".join(f"|{k}={json.dumps(v)}" for k, v in sorted((options or {}).items()))
        self._notes = self.codec.notes
        self.context_size = int(engine.llm_engine.model_config.max_model_len)

    def plan_encoded(self, pairs: Sequence[TokenPair], known: Collection[int] = ()) -> Plan:
        """Each distinct request whole: vLLM shares nothing between prompts whose log-probabilities are asked."""
        return make_plan(pairs, 1, share=False).without(set(known))

    def score_encoded(
        self, pairs: Sequence[TokenPair], on_done: OnDone[Score] | None = None, known: Collection[int] = ()
    ) -> Iterable[tuple[int, Score]]:
        """(request index, score) of every request that is not ``known``."""
        start = time.perf_counter()
        plan = self.plan_encoded(pairs, known)
        sequences = [u for b in plan.batches for u in b.sequences]
        params = self._sampling(max_tokens=1, temperature=0.0, prompt_logprobs=1, detokenize=False)
        out: list[tuple[int, Score]] = []
        for at in range(0, len(sequences), CHUNK):
            part = sequences[at : at + CHUNK]
            prompts = [{"prompt_token_ids": [*plan.sequences[u].ids]} for u in part]
            answers = self._engine.generate(prompts, params, use_tqdm=False)
            done = [
                (i, _score(plan.sequences[u], answer.prompt_logprobs))
                for u, answer in zip(part, answers, strict=True)
                for i in plan.requests_of[u]
            ]
            if on_done is not None:
                on_done(done)
            out.extend(done)
        self._usage += Usage(
            len(pairs),
            len(sequences),
            plan.tokens_asked,
            plan.tokens_computed,
            seconds=time.perf_counter() - start,
        )
        return out

    def generate_encoded(
        self,
        prompts: Sequence[TokenIds],
        requests: Sequence[GenerateRequest],
        on_done: OnDone[Generation] | None = None,
        known: Collection[int] = (),
    ) -> Iterable[tuple[int, Generation]]:
        """(request index, generation) of every request that is not ``known``; choices are scored."""
        start = time.perf_counter()
        todo = [i for i in range(len(requests)) if i not in set(known)]
        out: list[tuple[int, Generation]] = []
        for at in range(0, len(todo), CHUNK):
            part = todo[at : at + CHUNK]
            free = [i for i in part if not requests[i].choices]
            params = [
                self._sampling(
                    max_tokens=requests[i].max_tokens,
                    temperature=requests[i].temperature,
                    seed=requests[i].seed,
                    stop=[*requests[i].stop] or None,
                )
                for i in free
            ]
            texts = [{"prompt_token_ids": [*prompts[i]]} for i in free]
            answers = self._engine.generate(texts, params, use_tqdm=False) if free else []
            done = [
                (i, Generation(a.outputs[0].text, len(a.outputs[0].token_ids), a.outputs[0].finish_reason or "length"))
                for i, a in zip(free, answers, strict=True)
            ]
            bound = [i for i in part if requests[i].choices]
            with numbered(bound):
                done += zip(bound, self._choose([requests[i] for i in bound]) if bound else [], strict=True)
            if on_done is not None:
                on_done(done)
            out.extend(done)
        written = sum(g.tokens for i, g in out if not requests[i].choices)
        self._usage += Usage(
            len(requests),
            len(todo),
            sum(map(len, prompts)),
            sum(len(prompts[i]) for i in todo) + sum(g.tokens for _, g in out),
            tokens_generated=written,
            seconds=time.perf_counter() - start,
        )
        return out


def _score(pair: TokenPair, table: Sequence[Any]) -> Score:
    """From vLLM's per-position {token id: Logprob(logprob, rank)}, which holds the prompt's own token always."""
    tokens = [table[i][pair.ids[i]] for i in range(pair.n_context, len(pair.ids))]
    return Score(float(sum(t.logprob for t in tokens)), len(tokens), all(t.rank == 1 for t in tokens))
