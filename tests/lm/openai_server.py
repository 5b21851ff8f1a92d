"""A toy language model behind an OpenAI-compatible server on loopback, with the habits and failures of real ones."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = [" positive", " negative", " pos", "itive", " neg", "ative", " Germany", "Germany", " is", " in", "positive"]
VOCABULARY = [*WORDS, *(chr(c) for c in range(32, 127)), "\n", "é", "\x02"]


def tokenize(text: str) -> list[str]:
    """Longest match first, so a token is the longest vocabulary entry that the rest begins with."""
    pieces = []
    while text:
        pieces.append(max((v for v in VOCABULARY if text.startswith(v)), key=len))
        text = text[len(pieces[-1]) :]
    return pieces


@functools.lru_cache(4096)
def distribution(prefix: str) -> dict[str, float]:
    """Log-probabilities of the next token: softmax of the bytes of a hash."""
    hashed = hashlib.shake_128(prefix.encode()).digest(len(VOCABULARY))
    logits = {v: byte / 32 + len(v) / 4 for v, byte in zip(VOCABULARY, hashed, strict=True)}
    norm = math.log(sum(map(math.exp, logits.values())))
    return {v: logit - norm for v, logit in logits.items()}


def truth(context: str, continuation: str) -> tuple[float, int, bool]:
    """(sum of log-probabilities, tokens, greedy) by a plain loop over the tokens of the whole text."""
    whole, head = tokenize(context + continuation), tokenize(context)
    start = next((i for i, (a, b) in enumerate(zip(whole, head, strict=False)) if a != b), len(head))
    total, greedy = 0.0, True
    for at in range(start, len(whole)):
        told = distribution("".join(whole[:at]))
        total += told[whole[at]]
        greedy = greedy and told[whole[at]] == max(told.values())
    return total, len(whole) - start, greedy


def continued(context: str, n: int) -> list[str]:
    tokens: list[str] = []
    while len(tokens) < n:
        told = distribution(context + "".join(tokens))
        tokens.append(max(told, key=lambda v: told[v]))
    return tokens


class ToyServer:
    """``offers`` lists what it can do: completions, chat, echo, prompt_logprobs, logprobs, chat_logprobs, tokenize,
    models, lists (of prompts), logprob_ids (vLLM), generate, score (SGLang; old: it tells probabilities alone), choice,
    schema, grammar (structured output of chats), decisions, stale (a prompt that was asked before is answered with
    other figures).
    ``most`` candidates at the most. ``trouble`` holds what happens to the next requests: a status, a
    (status, headers) pair, "hang", "garbage", "shape" or "close". ``busy`` seconds per answer, ``per_token`` per token
    that goes through the model, one request after the other. ``computed`` counts those tokens: what a prefix cache of
    blocks of 16 tokens knows is left out, where the prompt's own log-probabilities are not asked for.
    """

    def __init__(
        self, *offers: str, most: int = 10**6, busy: float = 0.0, per_token: float = 0.0, window: int = 500
    ) -> None:
        self.offers, self.most, self.busy, self.per_token = set(offers), most, busy, per_token
        self.computed, self.window, self.name = 0, window, "toy"
        self.waits, self.ends = 0, "completed"
        self.files: dict[str, str] = {}
        self.blocks: set[tuple[int, ...]] = set()
        self.seen: set[str] = set()
        self.model = threading.Lock()
        self.trouble: list[Any] = []
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.under_way = self.most_under_way = 0
        self.closing = threading.Event()
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                self.serve(None)

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                form = self.headers["Content-Type"].startswith("multipart/")
                self.serve({"form": data.decode()} if form else json.loads(data))

            def serve(self, body: Any) -> None:
                with outer.lock:
                    outer.asked[self.path] += 1
                    outer.headers.append(dict(self.headers))
                    outer.bodies.append(body or {})
                    outer.times.append(time.monotonic())
                    outer.under_way += 1
                    outer.most_under_way = max(outer.most_under_way, outer.under_way)
                    trouble = outer.trouble.pop(0) if outer.trouble and "completions" in self.path else None
                try:
                    time.sleep(outer.busy)
                    self.reply(trouble, body)
                finally:
                    with outer.lock:
                        outer.under_way -= 1

            def reply(self, trouble: Any, body: Any) -> None:
                if trouble == "hang":
                    outer.closing.wait(30)
                if trouble in ("hang", "close"):
                    self.close_connection = True
                    return
                if trouble == "garbage":
                    self.write(200, b"<html>busy</html>")
                elif trouble == "shape":
                    self.write(200, b'{"choices": {"text": "x"}}')
                elif trouble is not None:
                    status, headers = trouble if isinstance(trouble, tuple) else (trouble, {})
                    said = {"error": {"message": f"trouble {status}, key {self.headers.get('Authorization')}"}}
                    self.write(status, json.dumps(said).encode(), headers)
                else:
                    status, answer = outer.answer(self.path, body)
                    self.write(status, answer if isinstance(answer, bytes) else json.dumps(answer).encode())

            def write(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        if path == "/v1/models" and "models" in self.offers:
            return 200, {"data": [{"id": self.name, "max_model_len": self.window}, {"id": "other"}]}
        if path == "/tokenize" and "tokenize" in self.offers:
            return 200, {"tokens": [VOCABULARY.index(t) for t in tokenize(body["prompt"])]}
        if path == "/detokenize" and "tokenize" in self.offers:
            return 200, {"prompt": "".join(VOCABULARY[i] for i in body["tokens"])}
        if path == "/v1/completions" and "completions" in self.offers:
            return self.completion(body)
        if path == "/v1/chat/completions" and "chat" in self.offers:
            return self.chat(body)
        if "batch" in self.offers and path.startswith(("/v1/files", "/v1/batches")):
            return self.batch(path, body)
        if path == "/v1/decisions" and "decisions" in self.offers:
            return self.decide(body)
        if path == "/v1/score" and "score" in self.offers:
            rows = []
            for ids in body["items"]:
                self.read(ids, True)
                told = distribution("".join(VOCABULARY[i] for i in body["query"] + ids))
                rows.append([told[VOCABULARY[i]] for i in body["label_token_ids"]])
            answer: dict[str, Any] = {"object": "scoring", "scores": [[math.exp(v) for v in row] for row in rows]}
            return 200, answer | ({} if "old" in self.offers else {"token_logprobs": rows})
        if path == "/generate" and "generate" in self.offers:
            return 200, [self.native(ids, body, i) for i, ids in enumerate(body["input_ids"])]  # type: ignore[return-value]
        return 404, {"error": {"message": "no such page"}}

    def read(self, ids: list[int], from_cache: bool) -> int:
        """Send a prompt through the model; how many of its tokens the prefix cache knew."""
        with self.model:
            ends = [tuple(ids[:at]) for at in range(16, len(ids) + 1, 16)]
            known = sum(16 for end in ends if end in self.blocks) if from_cache else 0
            known = min(known, len(ids) - 1)
            self.blocks.update(ends)
            self.computed += len(ids) - known
            time.sleep(self.per_token * (len(ids) - known))
            return known

    def completion(self, body: Any) -> tuple[int, dict[str, Any]]:
        prompts = body["prompt"]
        if isinstance(prompts, str) or not isinstance(prompts[0], list):
            return self.complete(body)
        if "lists" not in self.offers:
            return 400, {"error": {"message": "prompt: one prompt expected"}}
        answers = [self.complete({**body, "prompt": p}) for p in prompts]
        if bad := [a for a in answers if a[0] != 200]:
            return bad[0]
        choices = [{**a["choices"][0], "index": i} for i, (_, a) in enumerate(answers)]
        totals: Counter[str] = Counter()
        for _, a in answers:
            totals.update({k: v for k, v in a["usage"].items() if isinstance(v, int)})
        cached = sum(a["usage"]["prompt_tokens_details"]["cached_tokens"] for _, a in answers)
        return 200, {"choices": choices[::-1], "usage": {**totals, "prompt_tokens_details": {"cached_tokens": cached}}}

    def native(self, ids: list[int], body: Any, number: int) -> dict[str, Any]:
        """An item of SGLang's /generate."""
        given = [VOCABULARY[i] for i in ids]
        told = distribution("".join(given))
        start = body["logprob_start_len"]
        start = len(ids) if start == -1 else start[number]
        self.read(ids[: start + 1], True)
        self.read(ids, True)
        rows: list[Any] = []
        tops: list[Any] = []
        for at in range(start, len(ids)):
            before = distribution("".join(given[:at]))
            rows.append([before[given[at]] if at else None, ids[at], None])
            best = max(before, key=lambda v: before[v])
            tops.append([[before[best], VOCABULARY.index(best), None]])
        best = max(told, key=lambda v: told[v])
        meta: dict[str, Any] = {"input_token_logprobs": rows, "input_top_logprobs": tops}
        if body["sampling_params"]["max_new_tokens"]:
            asked = body.get("token_ids_logprob", [[]] * (number + 1))[number]
            meta |= {
                "output_token_logprobs": [[told[best], VOCABULARY.index(best), None]],
                "output_token_ids_logprobs": [[[told[VOCABULARY[i]], i, None] for i in asked]],
            }
        return {"text": best, "meta_info": meta}

    def batch(self, path: str, body: Any) -> tuple[int, Any]:
        """OpenAI's files and batches. A batch is under way as often as ``waits`` says; lines with "bad" fail."""
        name = path.split("/")[3] if path.count("/") > 2 else ""
        if path == "/v1/files":
            self.files["file-1"] = body["form"].split("application/jsonl\r\n\r\n")[1].split("\r\n--")[0]
            return 200, {"id": "file-1"}
        if path == "/v1/batches":
            return 200, {"id": "batch_1", "status": "validating"}
        if path.startswith("/v1/batches/"):
            self.waits -= 1
            status = "in_progress" if self.waits >= 0 else self.ends
            errors = {"data": [{"message": "no credit"}]}
            return 200, {"id": name, "status": status, "output_file_id": "file-2", "errors": errors}
        lines = []
        for line in self.files["file-1"].splitlines():
            asked = json.loads(line)
            code, answer = self.answer(asked["url"], asked["body"]) if "bad" not in line else (500, {})
            reply = {"custom_id": asked["custom_id"], "response": {"status_code": code, "body": answer}}
            lines.append(json.dumps(reply))
        return 200, "\n".join(lines[::-1]).encode()

    def decide(self, body: Any) -> tuple[int, dict[str, Any]]:
        values = [c["value"] for c in body["questions"][0]["choices"]]
        told = distribution(str(body["input"]))
        weights = {v: math.exp(told.get(v, -5.0)) for v in values}
        total = sum(weights.values())
        probabilities = [{"value": v, "probability": w / total} for v, w in weights.items()]
        answer = {"type": "choice", "choice": max(weights, key=lambda v: weights[v]), "probabilities": probabilities}
        return 200, {"answers": [answer], "usage": {"total_tokens": 9}}

    def complete(self, body: Any) -> tuple[int, dict[str, Any]]:
        prompt = body["prompt"]
        if not isinstance(prompt, str):
            if "tokenize" not in self.offers:
                return 422, {"error": {"message": "prompt: str type expected"}}
            prompt = "".join(VOCABULARY[i] for i in prompt)
        if (body.get("logprobs") or 0) > self.most:
            return 400, {"error": {"message": f"logprobs must be at most {self.most}"}}
        given, said = tokenize(prompt), continued(prompt, body["max_tokens"])
        choice: dict[str, Any] = {"text": "".join(said), "finish_reason": "length", "logprobs": None}
        for stop in body.get("stop", []):
            if stop in choice["text"]:
                choice |= {"text": choice["text"].partition(stop)[0], "finish_reason": "stop"}
        echo = body.get("echo") and "echo" in self.offers
        whole = echo or ("prompt_logprobs" in body and "prompt_logprobs" in self.offers)
        known = self.read([VOCABULARY.index(t) for t in given], from_cache=not whole)
        stale = 3.0 if "stale" in self.offers and prompt in self.seen else 0.0
        self.seen.add(prompt)
        tokens = [*(given if echo else []), *said]
        if body.get("logprobs") and self.offers & {"logprobs", "echo"} and (echo or "logprobs" in self.offers):
            before = [*given, *said]
            at = range(len(before) - len(tokens), len(before))
            told = [distribution("".join(before[:i])) for i in at]
            tops = [dict(sorted(d.items(), key=lambda p: -p[1])[: body["logprobs"]]) for d in told]
            values: list[Any] = [d[t] for d, t in zip(told, tokens, strict=True)]
            if echo:
                values[0] = tops[0] = None  # type: ignore[call-overload]
            if "logprob_ids" in self.offers:
                asked = [VOCABULARY[i] for i in body.get("logprob_token_ids", [])]
                tops = [t and {**t, **{a: d[a] for a in asked}} for t, d in zip(tops, told, strict=True)]
                if body.get("return_tokens_as_token_ids"):
                    tops = [t and {f"token_id:{VOCABULARY.index(a)}": v - stale for a, v in t.items()} for t in tops]
            choice["logprobs"] = {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops}
        if "prompt_logprobs" in body and "prompt_logprobs" in self.offers:
            listed: list[Any] = [None]
            for i in range(1, len(given)):
                ranked = sorted(distribution("".join(given[:i])).items(), key=lambda p: -p[1])
                shown = [(rank, t, v) for rank, (t, v) in enumerate(ranked, 1) if t == given[i]]
                shown += [(1, *ranked[0])] if shown[0][0] > 1 else []
                listed.append(
                    {str(VOCABULARY.index(t)): {"logprob": v, "rank": r, "decoded_token": t} for r, t, v in shown}
                )
            choice["prompt_logprobs"] = listed
        usage: dict[str, Any] = {"prompt_tokens": len(given), "completion_tokens": len(said)}
        usage |= {"total_tokens": len(given) + len(said), "prompt_tokens_details": {"cached_tokens": known}}
        return 200, {"choices": [choice], "usage": usage}

    def chat(self, body: Any) -> tuple[int, dict[str, Any]]:
        if "new" in self.offers and "max_tokens" in body:
            return 400, {"error": {"message": "max_tokens is not supported; use 'max_completion_tokens' instead"}}
        prompt = "".join(f"{m['role']}:{m['content']}\n" for m in body["messages"])
        said = continued(prompt, body.get("max_tokens") or body["max_completion_tokens"])
        bound = self.bound(body, prompt)
        content = "".join(said) if bound is None else bound
        choice: dict[str, Any] = {"message": {"content": content}, "finish_reason": "stop" if bound else "length"}
        if body.get("logprobs") and "chat_logprobs" in self.offers:
            rows = []
            for i, token in enumerate(said):
                told = distribution(prompt + "".join(said[:i]))
                tops = sorted(told.items(), key=lambda p: -p[1])[: body["top_logprobs"]]
                named = [{"token": t, "logprob": v, "bytes": [*t.encode()]} for t, v in tops]
                rows.append({"token": token, "logprob": told[token], "top_logprobs": named})
            choice["logprobs"] = {"content": rows}
        return 200, {"choices": [choice], "usage": {"completion_tokens": len(said)}}

    def bound(self, body: Any, prompt: str) -> str | None:
        """The likeliest of the answers that a chat is bound to, as the binding writes it."""
        names: list[str] = []
        if "choice" in self.offers and "structured_outputs" in body:
            names = body["structured_outputs"]["choice"]
        if "grammar" in self.offers and "grammar" in body:
            names = [json.loads(p) for p in body["grammar"].removeprefix("root ::= ").split(" | ")]
        schema = "schema" in self.offers and "response_format" in body
        if schema:
            names = body["response_format"]["json_schema"]["schema"]["properties"]["answer"]["enum"]
        if not names:
            return None
        best = max(names, key=lambda name: truth(prompt, name)[0])
        return json.dumps({"answer": best}) if schema else best


class ScriptedServer:
    """Answers with what ``script(path, body, headers)`` returns: (status, JSON value or bytes, headers), or an iterator
    of bytes that are written to the socket as they come, status line and all.
    """

    def __init__(self, script: Any) -> None:
        self.asked: list[tuple[str, Any, dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.serve(None)

            def do_POST(self) -> None:
                self.serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def serve(self, body: Any) -> None:
                outer.asked.append((self.path, body, dict(self.headers)))
                answer = script(self.path, body, dict(self.headers))
                try:
                    if not isinstance(answer, tuple):
                        self.close_connection = True
                        for chunk in answer:
                            self.wfile.write(chunk)
                            self.wfile.flush()
                        return
                    status, value, headers = answer
                    data = value if isinstance(value, bytes) else json.dumps(value).encode()
                    self.send_response(status)
                    for name, text in {"Content-Length": str(len(data)), **headers}.items():
                        self.send_header(name, text)
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:  # the client has hung up, which is what some tests are about
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
