"""A toy language model behind an OpenAI-compatible server on loopback, with the habits and failures of real ones."""

from __future__ import annotations

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


def distribution(prefix: str) -> dict[str, float]:
    """Log-probabilities of the next token: softmax of hashes."""
    logits = {
        v: hashlib.blake2b(f"{prefix}\x00{v}".encode(), digest_size=2).digest()[0] / 32 + len(v) / 4 for v in VOCABULARY
    }
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
    models. ``most`` candidates at the most. ``trouble`` holds what happens to the next requests: a status, a
    (status, headers) pair, "hang", "garbage", "shape" or "close". ``busy`` seconds per answer.
    """

    def __init__(self, *offers: str, most: int = 10**6, busy: float = 0.0) -> None:
        self.offers, self.most, self.busy = set(offers), most, busy
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
                self.serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

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
                    self.write(status, json.dumps(answer).encode())

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
            return 200, {"data": [{"id": "toy", "max_model_len": 500}, {"id": "other"}]}
        if path == "/tokenize" and "tokenize" in self.offers:
            return 200, {"tokens": [VOCABULARY.index(t) for t in tokenize(body["prompt"])]}
        if path == "/detokenize" and "tokenize" in self.offers:
            return 200, {"prompt": "".join(VOCABULARY[i] for i in body["tokens"])}
        if path == "/v1/completions" and "completions" in self.offers:
            return self.completion(body)
        if path == "/v1/chat/completions" and "chat" in self.offers:
            return self.chat(body)
        return 404, {"error": {"message": "no such page"}}

    def completion(self, body: Any) -> tuple[int, dict[str, Any]]:
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
        tokens = [*(given if echo else []), *said]
        if body.get("logprobs") and self.offers & {"logprobs", "echo"} and (echo or "logprobs" in self.offers):
            before = [*given, *said]
            at = range(len(before) - len(tokens), len(before))
            told = [distribution("".join(before[:i])) for i in at]
            tops = [dict(sorted(d.items(), key=lambda p: -p[1])[: body["logprobs"]]) for d in told]
            values: list[Any] = [d[t] for d, t in zip(told, tokens, strict=True)]
            if echo:
                values[0] = tops[0] = None  # type: ignore[call-overload]
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
        usage = {"prompt_tokens": len(given), "completion_tokens": len(said), "total_tokens": len(given) + len(said)}
        return 200, {"choices": [choice], "usage": usage}

    def chat(self, body: Any) -> tuple[int, dict[str, Any]]:
        if "new" in self.offers and "max_tokens" in body:
            return 400, {"error": {"message": "max_tokens is not supported; use 'max_completion_tokens' instead"}}
        prompt = "".join(f"{m['role']}:{m['content']}\n" for m in body["messages"])
        said = continued(prompt, body.get("max_tokens") or body["max_completion_tokens"])
        choice: dict[str, Any] = {"message": {"content": "".join(said)}, "finish_reason": "length"}
        if body.get("logprobs") and "chat_logprobs" in self.offers:
            rows = []
            for i, token in enumerate(said):
                told = distribution(prompt + "".join(said[:i]))
                tops = sorted(told.items(), key=lambda p: -p[1])[: body["top_logprobs"]]
                named = [{"token": t, "logprob": v, "bytes": [*t.encode()]} for t, v in tops]
                rows.append({"token": token, "logprob": told[token], "top_logprobs": named})
            choice["logprobs"] = {"content": rows}
        return 200, {"choices": [choice], "usage": {"completion_tokens": len(said)}}


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
