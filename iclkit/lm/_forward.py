"""The forward pass of a causal LM of ``transformers``: one job after another, on CPU or CUDA, in whichever process.

Models that ``_architecture`` knows run through ``PackedForward``; any other causal LM through its own module, one
padded row per sequence. Both read float32 logits at the needed positions only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iclkit.errors import DataError
from iclkit.lm._architecture import small_windows
from iclkit.lm._decode import Decoder, KVCache, likeliest_tokens, step_all, take_all
from iclkit.lm._module import (
    CachedRows,
    Float32Head,
    WholeRows,
    cache_works,
    context_limit,
    device_of,
    keeps_logits,
    probe_ids,
    refuse_unless_causal,
)
from iclkit.lm._packed import HEAD_ROWS, KV, PackedForward
from iclkit.lm._plan import Plan, Prefix, build_layout, make_plan
from iclkit.lm._shape import ModelShape
from iclkit.lm._tokens import PromptTokenizer, TokenIds, TokenPair
from iclkit.models import load_errors
from iclkit.records import GenerateRequest, Generation, Score

PROBE_TOKENS = 256
PROBE_ROWS = 8
CPU_TOKENS = 2048
GPU_TOKENS = 32768
"""Tokens per pass: more hold more memory and save nothing (docs/performance.md)."""
STEPS_AHEAD = 7
"""Tokens that a GPU writes before the first of them is looked at; those behind an end are thrown away."""


@dataclass(frozen=True, slots=True)
class ForwardJob:
    """What is computed at once, and may be computed by any process: pairs to score, or prompts to continue.

    ``chain``: the kept prefixes that stand before the pairs, outermost first.
    """

    pairs: tuple[TokenPair, ...]
    prompts: tuple[TokenIds, ...] = ()
    requests: tuple[GenerateRequest, ...] = ()
    chain: tuple[Prefix, ...] = ()


def prefix_chain(prefixes: Sequence[Prefix], last: int) -> tuple[Prefix, ...]:
    """Prefix ``last`` and those before it, outermost first; empty for -1."""
    chain: list[Prefix] = []
    while last >= 0:
        chain.append(prefixes[last])
        last = prefixes[last].parent
    return tuple(reversed(chain))


@dataclass(frozen=True, slots=True)
class ForwardResult:
    """A Score per pair or a Generation per prompt, or the reason (a text) why there can be none; and what it took."""

    answers: tuple[Score | Generation | str, ...]
    tokens_computed: int


class ForwardModel:
    """A loaded model that computes jobs. ``packed`` None runs the module itself.

    ``batch_tokens``: tokens per pass (speed and memory, not the answer); None takes what suits the device.
    """

    def __init__(
        self,
        module: Any,
        codec: PromptTokenizer,
        *,
        name: str,
        packed: PackedForward | None,
        batch_tokens: int | None = None,
    ) -> None:
        self.module, self.codec, self.name, self.packed = module, codec, name, packed
        self.batch_tokens = batch_tokens or default_batch_tokens(module, packed is not None)
        self.context_size, unbounded = context_limit(module.config.get_text_config(), codec.tokenizer)
        rows, words = len(module.get_input_embeddings().weight), len(codec.tokenizer)
        self.vocabulary = rows if words > rows else None
        beyond = f"the tokenizer has {words} tokens, the model {rows}: texts with one beyond are not read"
        self.notes = tuple(filter(None, (unbounded, beyond if words > rows else "")))
        self.device: torch.device = device_of(module)
        self._kept: dict[tuple[TokenIds, bool], KV] = {}
        self.long_from = longrope_limit(module.config.get_text_config())
        eos = getattr(module.generation_config, "eos_token_id", None) if module.generation_config else None
        many = eos if isinstance(eos, (list, tuple)) else [eos]
        if wrong := [e for e in many if e is not None and type(e) is not int]:
            raise DataError(
                f"generation_config.json: eos_token_id is {wrong[0]!r}, expected a number or a list of them"
            )
        # a GPU is not asked after each token whether it was the last one: it writes on meanwhile
        self.steps_ahead = 0 if self.device.type == "cpu" else STEPS_AHEAD
        self._eos = {e for e in (*many, codec.eos) if e is not None}
        self._keeps_logits = keeps_logits(module)
        self._cache_works: bool | None = None
        self._tokens_per_second: float | None = None
        self._written_per_second: dict[int, float] = {}  # by the rows that were written together
        self._computed = 0
        if packed is None:
            head = module.get_output_embeddings()
            if head.weight.device.type != "meta":  # one that is fetched for each pass stays as it is
                module.set_output_embeddings(Float32Head(head))
            refuse_unless_causal(module, self.context_size)

    @property
    def shape(self) -> ModelShape:
        """What reading costs: parameters without those of the embeddings, layers, width."""
        config = self.module.config.get_text_config()
        tables = {id(m.weight): m.weight.numel() for m in self._embedding_modules()}
        parameters = sum(p.numel() for p in self.module.parameters() if id(p) not in tables)
        heads = getattr(config, "num_attention_heads", None)
        if not heads:  # recurrent: as wide as its states
            return ModelShape(parameters, config.num_hidden_layers, config.hidden_size)
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        return ModelShape(parameters, config.num_hidden_layers, heads * size)

    def _embedding_modules(self) -> list[Any]:
        modules = (self.module.get_input_embeddings(), self.module.get_output_embeddings())
        return [m for m in modules if m is not None]

    def seconds_for(self, tokens: int) -> float:
        """Wall seconds that reading so many tokens takes here, from a probe of a second or less."""
        if self._tokens_per_second is None:
            size = min(PROBE_TOKENS, self.context_size - 1)
            vocabulary = min(997, len(self.module.get_input_embeddings().weight))
            pairs = [TokenPair(tuple((t * 7 + r) % vocabulary for t in range(size + 1)), size) for r in range(2)]
            best = float("inf")
            for _ in range(2):
                start = time.perf_counter()
                self._compute(pairs, None, None)
                best = min(best, time.perf_counter() - start)
            self._tokens_per_second = 2 * size / best
        return tokens / self._tokens_per_second

    def seconds_to_write(self, tokens: int, rows: int) -> float:
        """Wall seconds that writing so many tokens for ``rows`` prompts takes here, from a probe of a second or so.

        At most eight prompts are tried together: in longer batches writing is quicker than this says.
        """
        rows = min(rows, PROBE_ROWS)
        if rows not in self._written_per_second:
            length, steps = min(16, self.context_size // 2), min(8, self.context_size // 2)
            vocabulary = min(997, len(self.module.get_input_embeddings().weight))
            prompts = [tuple((t * 7 + r) % vocabulary for t in range(length)) for r in range(rows)]
            requests, rate = [GenerateRequest("", steps)] * rows, 0.0
            for _ in range(2):
                start = time.perf_counter()
                written = self._generate_by_kind(prompts, requests)
                count = sum(g.tokens for g in written if isinstance(g, Generation))
                rate = max(rate, max(1, count) / (time.perf_counter() - start))
            self._written_per_second[rows] = rate
        return tokens / self._written_per_second[rows]

    def compute(self, job: ForwardJob) -> ForwardResult:
        """Do one job."""
        before = self._computed
        if self.packed is not None:
            answers = self._answers(job)
        else:  # a module of whatever kind, with its own errors
            with load_errors(f"the architecture of {self.name} fails"):
                answers = self._answers(job)
        return ForwardResult(tuple(answers), self._computed - before)

    def _answers(self, job: ForwardJob) -> list[Any]:
        if job.requests:
            return self._generate_by_kind(job.prompts, job.requests)
        try:
            kept = self._keep(job.chain, self._is_long(len(job.pairs[0].ids) - 1))
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        else:
            return self._compute_in_memory(job.pairs, job.chain[-1] if job.chain else None, kept)
        self._make_room()
        return self._compute_in_memory(job.pairs, None, None)

    def _make_room(self) -> None:
        """Give back what memory can be given. Outside of ``except``: there the error still holds what was computed."""
        self._kept = {}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _is_long(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens is of the long kind; the sequences of a batch are of one kind."""
        return self.long_from is not None and tokens > self.long_from

    def _keep(self, chain: Sequence[Prefix], long: bool) -> KV | None:
        """Keys and values of a chain of prefixes, computed where they are not kept; those of other chains are freed."""
        held: dict[tuple[TokenIds, bool], KV] = {}
        before: KV | None = None
        for prefix in chain:
            key = prefix.ids, long
            before = held[key] = self._kept.get(key) or self._prefill(prefix, before, long)
        self._kept = held
        return before

    def _prefill(self, prefix: Prefix, before: KV | None, long: bool) -> KV:
        assert self.packed is not None
        layout = build_layout([TokenPair((*prefix.ids, 0), len(prefix.ids))], prefix.start)
        self._computed += len(layout.tokens)
        return self.packed.forward(layout, before, keep=True, long=long)[1]

    def _compute_in_memory(self, pairs: Sequence[TokenPair], prefix: Prefix | None, kept: KV | None) -> list[Any]:
        """``_compute``; when memory runs out, in halves."""
        try:
            return [*self._compute(pairs, prefix, kept)]
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        self._make_room()
        if len(pairs) == 1:
            return [self._too_large(len(pairs[0].ids))]
        half = len(pairs) // 2
        return self._compute_in_memory(pairs[:half], prefix, kept) + self._compute_in_memory(pairs[half:], prefix, kept)

    def _too_large(self, tokens: int) -> str:
        return (
            f"out of memory on one sequence of {tokens} tokens with {self.name}: show fewer demonstrations or use a "
            "smaller model"
        )

    @torch.inference_mode()
    def _compute(self, pairs: Sequence[TokenPair], prefix: Prefix | None, kept: KV | None) -> list[Score]:
        if self.packed is None:
            return self._compute_by_module(pairs)
        layout = build_layout(pairs, len(prefix.ids) if prefix else 0)
        self._computed += len(layout.tokens)
        hidden, _ = self.packed.forward(layout, kept, long=self._is_long(len(pairs[0].ids) - 1))
        reader = ScoreReader(layout.read_row, layout.read_token, layout.read_sequence, layout.n_sequences)
        for at in range(0, len(hidden), self.packed.head_rows):
            reader.take(at, self.packed.logits(hidden[at : at + self.packed.head_rows]))
        return reader.scores()

    def _compute_by_module(self, pairs: Sequence[TokenPair]) -> list[Score]:
        """Right-padded rows through the module; padding stands behind every token that is read."""
        fed = [p.ids[:-1] for p in pairs]
        width = max(map(len, fed))
        ids = torch.zeros(len(fed), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for r, row in enumerate(fed):
            ids[r, : len(row)] = torch.tensor(row)
            mask[r, : len(row)] = 1
        self._computed += ids.numel()
        first = min(p.n_context for p in pairs) - 1
        keep = {"logits_to_keep": width - first} if self._keeps_logits else {}
        ids, mask = ids.to(self.device), mask.to(self.device)
        logits = self.module(input_ids=ids, attention_mask=mask, use_cache=False, **keep).logits
        offset = first if self._keeps_logits else 0
        reads = [
            (r, position, pair.ids[position + 1])
            for r, pair in enumerate(pairs)
            for position in range(pair.n_context - 1, len(pair.ids) - 1)
        ]
        sequence, position, token = np.array(reads, np.int64).T
        reader = ScoreReader(np.arange(len(reads)), token, sequence, len(pairs))
        for at in range(0, len(reads), HEAD_ROWS):
            part = slice(at, at + HEAD_ROWS)
            rows = logits[torch.from_numpy(sequence[part]), torch.from_numpy(position[part] - offset)]
            reader.take(at, rows.float())
        return reader.scores()

    # -- generation -----------------------------------------------------------------------------------------------

    def prompt_plan(self, prompts: Sequence[TokenIds]) -> Plan:
        """How the prompts of one job are read before they are continued: as pairs are, shared beginnings once."""
        return make_plan([TokenPair((*p, 0), len(p)) for p in prompts], self.batch_tokens, apart=self.long_from)

    def _generate_by_kind(self, prompts: Sequence[TokenIds], requests: Sequence[GenerateRequest]) -> list[Any]:
        """Continuations. Under longrope, texts that stay short are written together, and those that begin long; one
        that grows from short to long changes all its angles on the way, so it is read again for each token, alone."""
        groups: dict[tuple[bool, bool, int], list[int]] = {}
        for i, (prompt, request) in enumerate(zip(prompts, requests, strict=True)):
            begins, ends = self._is_long(len(prompt)), self._is_long(len(prompt) + request.max_tokens - 1)
            groups.setdefault((begins, ends, i if begins != ends else -1), []).append(i)
        out: list[Any] = [None] * len(prompts)
        for (begins, ends, _), group in groups.items():
            some = [prompts[i] for i in group], [requests[i] for i in group]
            answers = self._generate_in_memory(*some, whole=begins != ends)
            for i, answer in zip(group, answers, strict=True):
                out[i] = answer
        return out

    def _generate_in_memory(
        self, prompts: Sequence[TokenIds], requests: Sequence[GenerateRequest], *, whole: bool
    ) -> list[Any]:
        """Continuations; when memory runs out, in halves. ``whole``: by reading the text again for each token."""
        try:
            if self.packed is not None and not whole:
                return [*self._generate(prompts, requests)]
            return [*self._generate_by_module(prompts, requests, whole=whole)]
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        self._make_room()
        if len(prompts) == 1:
            return [self._too_large(len(prompts[0]) + requests[0].max_tokens)]
        half = len(prompts) // 2
        return [
            *self._generate_in_memory(prompts[:half], requests[:half], whole=whole),
            *self._generate_in_memory(prompts[half:], requests[half:], whole=whole),
        ]

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[TokenIds], requests: Sequence[GenerateRequest]) -> list[Generation]:
        """Read the prompts as the scorer does, shared beginnings once; then write until the last row has ended."""
        assert self.packed is not None
        long = self._is_long(len(prompts[0]))
        rows = KVCache(self.packed, [len(p) for p in prompts], max(r.max_tokens for r in requests), long=long)
        first = torch.empty(len(prompts), self.packed.hidden, device=self.device)
        plan = self.prompt_plan(prompts)
        for batch in plan.batches:
            chain = prefix_chain(plan.prefixes, batch.prefix)
            past = len(chain[-1].ids) if chain else 0
            layout = build_layout([plan.sequences[u] for u in batch.sequences], past)
            self._computed += len(layout.tokens)
            hidden, held = self.packed.forward(layout, self._keep(chain, long), keep=True, long=long)
            last = dict(zip(layout.read_sequence.tolist(), layout.read_row.tolist(), strict=True))
            filled = [(i, j) for j, u in enumerate(batch.sequences) for i in plan.requests_of[u]]
            paths = [
                np.array([*range(past), *(past + r for r in layout.path(j, len(plan.sequences[u].ids) - 1 - past))])
                for j, u in enumerate(batch.sequences)
            ]
            rows.fill([i for i, _ in filled], held, [paths[j] for _, j in filled])
            first[[i for i, _ in filled]] = hidden[[last[j] for _, j in filled]]
        decoders = [
            Decoder(self.codec, row, request, self._eos) for row, request in zip(prompts, requests, strict=True)
        ]
        logits, alive = self.packed.logits(first), list(range(len(decoders)))
        while True:
            writers = [decoders[i] for i in alive]
            if any(w.samples for w in writers):
                tokens = torch.tensor(step_all(writers, logits), device=self.device)
            else:
                ahead = [likeliest_tokens(logits)]
                more = max((w.request.max_tokens - w.tokens for w in writers if not w.finish), default=1) - 1
                for _ in range(min(self.steps_ahead, more, rows.room)):
                    self._computed += len(alive)
                    ahead.append(likeliest_tokens(rows.step(ahead[-1][0])))
                take_all(writers, torch.stack(ahead))
                tokens = ahead[-1][0]
            left = [n for n, w in enumerate(writers) if not w.finish]
            if not left:
                return [d.result() for d in decoders]
            if 2 * len(left) <= len(alive):  # copying what is left costs less than dragging the others along
                rows.keep(left)
                alive, tokens = [alive[n] for n in left], tokens[left]
            self._computed += len(alive)
            logits = rows.step(tokens)

    @torch.inference_mode()
    def _generate_by_module(
        self, prompts: Sequence[TokenIds], requests: Sequence[GenerateRequest], *, whole: bool
    ) -> list[Generation]:
        """All rows together by the module; a row that has ended rides along until the last one has."""
        if self._cache_works is None:
            self._cache_works = cache_works(self.module)
        rows = (CachedRows if self._cache_works and not whole else WholeRows)(self.module, prompts)
        decoders = [
            Decoder(self.codec, row, request, self._eos) for row, request in zip(prompts, requests, strict=True)
        ]
        while True:
            tokens = step_all(decoders, rows.logits())
            if all(d.finish for d in decoders):
                self._computed += rows.computed
                return [d.result() for d in decoders]
            rows.append(tokens)


def default_batch_tokens(module: Any, packed: bool) -> int:
    """Tokens per pass for a loaded model: a constant on CPU; on a GPU what half of its free memory holds, a power of
    two, so that little more or less of it changes no batch."""
    weight = next(module.parameters())
    if weight.device.type != "cuda":
        return CPU_TOKENS
    config = module.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 1
    kv = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    bytes_kept = 2 * config.num_hidden_layers * kv * size * weight.element_size()
    wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    passing = 20 * config.hidden_size + 8 * wide + (0 if packed else 6 * config.vocab_size)
    free, _ = torch.cuda.mem_get_info(weight.device)
    # a pass that writes keeps its own keys and values, and those of the rows that grow: four times as many
    tokens = free // 2 // (passing + 5 * bytes_kept)
    return int(min(GPU_TOKENS, max(CPU_TOKENS, 1 << max(tokens, 1).bit_length() - 1)))


class ScoreReader:
    """Turns logits of rows into scores of sequences, a block of rows at a time."""

    def __init__(self, row: Any, token: Any, sequence: Any, n_sequences: int) -> None:
        self._order = np.argsort(row, kind="stable")
        self._row, self._token, self._sequence = row[self._order], token[self._order], sequence[self._order]
        self._logprob = np.zeros(len(row), np.float64)
        self._greedy = np.zeros(len(row), np.bool_)
        self._n_sequences = n_sequences

    def take(self, at: int, logits: Tensor) -> None:
        """``logits`` (R, vocabulary) float32 of rows at : at + R; they are overwritten."""
        low, high = np.searchsorted(self._row, [at, at + len(logits)])
        rows = torch.from_numpy(self._row[low:high] - at).to(logits.device)
        tokens = torch.from_numpy(self._token[low:high]).to(logits.device)
        chosen, highest = logits[rows, tokens], logits.amax(-1)
        greedy = torch.zeros_like(tokens, dtype=torch.bool)
        top = (chosen == highest[rows]).nonzero()[:, 0]
        greedy[top] = logits[rows[top]].argmax(-1) == tokens[top]  # the first of several that are equal
        # logsumexp by hand, in place: torch's takes twenty times as long on a CPU
        highest.masked_fill_(highest.isinf(), 0)
        total = logits.sub_(highest[:, None]).exp_().sum(-1).log_().add_(highest)
        self._logprob[low:high] = (chosen.double() - total[rows].double()).cpu().numpy()
        self._greedy[low:high] = greedy.cpu().numpy()

    def scores(self) -> list[Score]:
        """One score per sequence: log-probabilities added in the order of the tokens."""
        logprob = np.zeros(self._n_sequences)
        count = np.bincount(self._sequence, minlength=self._n_sequences)
        misses = np.bincount(self._sequence, weights=~self._greedy, minlength=self._n_sequences)
        back = np.argsort(self._order, kind="stable")  # the layout's order, which no neighbour can change
        np.add.at(logprob, self._sequence[back], self._logprob[back])
        return [Score(float(p), int(n), bool(m == 0)) for p, n, m in zip(logprob, count, misses, strict=True)]


_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "alloc_failed",  # cuBLAS, cuDNN
    "could not create a memory",  # oneDNN
    "could not create a primitive",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python ran out of memory."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return any(sign in text for sign in _NO_MEMORY)


def longrope_limit(config: Any) -> int | None:
    """From how many tokens on sequences get the angles of long ones from their first token on; None for no such point.

    A module takes one set of angles for all rows that it is given, by the longest.
    """
    rope = vars(config).get("rope_parameters") or {}
    limit = rope.get("original_max_position_embeddings") if rope.get("rope_type") == "longrope" else None
    return None if limit is None else int(limit)


def matches_module(module: Any, packed: PackedForward) -> bool:
    """Whether the packed forward gives the module's own log-probabilities on a short branching probe: as they are, and
    with windows, and a limit of longrope, that are shorter than the probe."""
    if not _agree(module, packed):
        return False
    with small_windows(module, packed.architecture, _PROBE_WINDOW) as has_windows:
        if has_windows and not _agree(module, packed):
            return False
    if packed.long_from is None:
        return True
    with small_longrope(module, packed, _PROBE_WINDOW):
        return _agree(module, packed, long=True)


_PROBE_WINDOW = 7


@contextmanager
def small_longrope(module: Any, packed: PackedForward, limit: int) -> Iterator[None]:
    """Both with longrope from a few tokens on."""
    rope, before = module.config.rope_parameters, packed.long_from
    try:
        rope["original_max_position_embeddings"] = packed.long_from = limit
        packed.forget_angles()
        yield
    finally:
        rope["original_max_position_embeddings"] = packed.long_from = before
        packed.forget_angles()


def _agree(module: Any, packed: PackedForward, *, long: bool = False) -> bool:
    ids = probe_ids(module, 40)
    pairs = [TokenPair(ids, 24), TokenPair((*ids[:30], *ids[3:13]), 24)]
    layout = build_layout(pairs)
    hidden, _ = packed.forward(layout, long=long)
    got = torch.log_softmax(packed.logits(hidden), -1)
    with torch.inference_mode():
        rows = torch.tensor([p.ids[:-1] for p in pairs], device=packed.device)
        want = torch.log_softmax(module(input_ids=rows, use_cache=False).logits.float(), -1)
    at = layout.positions[layout.rows[layout.read_row]]
    gap = got[layout.read_row, layout.read_token] - want[layout.read_sequence, at, layout.read_token]
    allowed = 1e-3 if packed.dtype == torch.float32 else 1.0  # bf16: a wrong formula is off by far more
    return float(gap.abs().max()) <= allowed
