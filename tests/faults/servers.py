"""An OpenAI-compatible server that does what servers should not, and what becomes of a run that asks it."""

from __future__ import annotations

import base64
import gzip
import json
import os
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from .children import call
from .trials import Trial
from .worlds import WORDS, rows, write_jsonl

SECRET = "sk-faults-0123456789-secret"
LABELS = ("animal", "food")


def answer_of(text: str) -> str:
    """The right label of the last text that names a word."""
    at = {label: max(text.rfind(f" {word}") for word in WORDS[label]) for label in LABELS}
    return max(LABELS, key=lambda label: at[label])


class Server(BaseHTTPRequestHandler):
    """``model`` names the fault; anything else is a plain completions server with top_logprobs."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[dict[str, int]] = {}

    def log_message(self, *_: Any) -> None:
        pass

    def _send(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _error(self, code: int, text: str, **headers: str) -> None:
        self._send(code, json.dumps({"error": {"message": text, "type": "invalid_request_error"}}).encode(), **headers)

    def do_GET(self) -> None:
        self._error(404, "not found")

    def do_POST(self) -> None:
        try:
            self._answer()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer(self) -> None:  # one line a fault
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        fault = str(body.get("model", ""))
        number = self.seen[fault] = self.seen.get(fault, 0) + 1
        chat = self.path.split("?")[0].endswith("/chat/completions")
        if fault.startswith("http"):
            return self._error(int(fault[4:7]), f"as asked, with {SECRET} in it")
        if fault == "retry-nan" and number == 1:
            return self._error(429, "slow down", Retry_After="nan")
        if fault == "retry-negative" and number == 1:
            return self._error(429, "slow down", Retry_After="-5")
        if fault == "retry-words" and number == 1:
            return self._error(503, "slow down", Retry_After="soon")
        if fault == "retry-date" and number == 1:
            return self._error(429, "slow down", Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")
        if fault == "filter" and "number 3 " in json.dumps(body):
            return self._error(400, "The response was filtered due to the prompt triggering the content policy")
        if fault == "context" and "number 3 " in json.dumps(body):
            return self._error(400, "This model's maximum context length is 16 tokens")
        if fault == "echo-key":
            return self._send(401, f"bad key {self.headers.get('Authorization')}".encode(), Content_Type="text/plain")
        if fault == "echo-key-encoded":
            text = f"{urllib.parse.quote(SECRET)} {base64.b64encode(SECRET.encode()).decode()} {SECRET[:12]}"
            return self._send(400, text.encode(), Content_Type="text/html")
        if fault == "html":
            return self._send(200, b"<html>gateway</html>", Content_Type="text/html")
        if fault == "empty":
            return self._send(200, b"")
        if fault == "list":
            return self._send(200, b"[]")
        if fault == "number":
            return self._send(200, b"5")
        if fault == "deep":
            return self._send(200, b"[" * 100_000)
        if fault == "not-utf8":
            return self._send(200, b'{"choices": [{"text": "\xff"}]}')
        if fault == "no-choices":
            return self._send(200, b'{"choices": []}')
        if fault == "gzip-garbage":
            return self._send(200, b"no gzip", Content_Encoding="gzip")
        if fault == "gzip-bomb":
            return self._send(200, gzip.compress(b" " * 300_000_000, 1), Content_Encoding="gzip")
        if fault == "redirect-loop":
            return self._send(307, b"", Location=self.path)
        if fault == "close":
            self.close_connection = True
            return None
        if fault == "close-sometimes" and number % 3 == 0:
            self.close_connection = True
            return None
        if fault == "short-body":
            self.send_response(200)
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b'{"choices"')
            self.close_connection = True
            return None
        if fault in ("endless", "drip"):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Connection", "close")
            self.end_headers()
            end = time.monotonic() + 100
            while time.monotonic() < end:
                self.wfile.write(b" " * 65536 if fault == "endless" else b" ")
                self.wfile.flush()
                if fault == "drip":
                    time.sleep(0.2)
            return None
        if not self.path.split("?")[0].endswith("/completions"):
            return self._error(404, "not found")
        return self._send(200, json.dumps(self._completion(fault, chat, body)).encode())

    def _completion(self, fault: str, chat: bool, body: dict[str, Any]) -> dict[str, Any]:
        prompts = [m["content"] for m in body["messages"]][-1:] if chat else body["prompt"]
        prompts = prompts if isinstance(prompts, list) else [prompts]
        choices = [self._choice(fault, chat, str(p), body, n) for n, p in enumerate(prompts)]
        if fault == "fewer":
            choices = choices[:-1]
        if fault == "twice":
            choices = [dict(c, index=0) for c in choices] * 2
        usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
        return {"choices": choices, "usage": "x" if fault == "usage" else usage}

    def _choice(self, fault: str, chat: bool, prompt: str, body: dict[str, Any], index: int) -> dict[str, Any]:
        right = answer_of(prompt)
        values: dict[str, Any] = {label: -0.1 if label == right else -3.0 for label in LABELS}
        odd = {"nan": float("nan"), "minus-infinity": float("-inf"), "positive": 3.0, "null": None, "text": "x",
               "true": True, "placeholder": -9999.0}  # fmt: skip
        if fault in odd:
            values = dict.fromkeys(LABELS, odd[fault])
        if fault == "one-candidate":
            values = {right: values[right]}
        text: Any = right
        finish = "stop"
        if fault == "refused":
            text, finish = None, "content_filter"
        if fault == "blank":
            text = ""
        if fault == "think":
            text = f"<think>could be {LABELS[0]} or {LABELS[1]}</think>\n{right}"
        if fault == "parts":
            text = [{"type": "text", "text": right}]
        if fault == "escape":
            text = f"{right}\x1b]0;owned\x07"
        if not chat:
            shown = f" {text}" if isinstance(text, str) else text
            table = {f" {label}": value for label, value in values.items()}
            first = table.get(f" {right}")
            logprobs = {
                "tokens": [f" {right}"],
                "token_logprobs": [first],
                "top_logprobs": [table],
                "text_offset": [len(prompt)],
            }
            return {
                "index": index,
                "text": shown,
                "logprobs": logprobs if body.get("logprobs") else None,
                "finish_reason": finish,
            }
        tops = [{"token": label, "logprob": value, "bytes": list(label.encode())} for label, value in values.items()]
        first = next((t for t in tops if t["token"] == right), tops[0])
        logprobs = {"content": [{**first, "top_logprobs": tops}]} if body.get("logprobs") else None
        return {
            "index": index,
            "message": {"role": "assistant", "content": text},
            "logprobs": logprobs,
            "finish_reason": finish,
        }


ENDS = ("http400", "http401", "http403", "http404", "http422", "http500", "html", "empty", "list", "number",
        "deep", "not-utf8", "no-choices", "gzip-garbage", "gzip-bomb", "redirect-loop", "close", "short-body",
        "endless", "drip", "echo-key", "echo-key-encoded", "nan", "minus-infinity", "positive", "null", "text", "true",
        "placeholder")  # fmt: skip
"""Faults that no figure can come out of where labels are scored."""
GOES_ON = ("plain", "retry-nan", "retry-negative", "retry-words", "retry-date", "filter", "context",
           "close-sometimes", "one-candidate", "refused", "blank", "think", "parts", "escape", "usage", "fewer",
           "twice")  # fmt: skip


def server_trials(folder: Path, names: tuple[str, ...] | None = None, limit: float = 500) -> Iterator[Trial]:
    """Labels and written answers, over every fault: the right figure or one line, in bounded time; the key nowhere.

    The limit is that of the client: it finds out what a server is in four tries at most, each no longer than its
    timeout of 120 s.
    """
    folder.mkdir(parents=True)
    Server.seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_address[1]}"
    try:
        for name in names or (*ENDS, *GOES_ON):
            for kind in ("labels", "answers"):
                yield _asked(folder / f"{name}-{kind}", name, kind, address, limit)
    finally:
        server.shutdown()
        server.server_close()


def _asked(folder: Path, name: str, kind: str, address: str, limit: float) -> Trial:
    for split, count in (("train", 12), ("test", 8)):
        data = rows(split, count)
        if kind == "answers":
            data = [{"input": r["input"], "output": r["output"]} for r in data]
        write_jsonl(folder / "task" / f"{split}.jsonl", data)
    lm = f"openai:{name}@http://user:{SECRET}@{address}/v1?api_key={SECRET}"
    words = ["eval", "task", "--predictor", "none", "-s", "random", "-k", "2", "--seeds", "1", "--lm", lm, "--json"]
    if kind == "answers":
        words.append("--chat")

    def keys() -> None:
        for key in ("OPENAI_API_KEY", "ICLKIT_API_KEY"):
            os.environ[key] = SECRET

    outcome = call(words, folder, folder / "home", before=keys, limit=limit)
    wrong = outcome.fault
    spellings = {SECRET, urllib.parse.quote(SECRET), base64.b64encode(SECRET.encode()).decode()}
    kept = [f for place in ("runs", "home") for f in (folder / place).rglob("*") if f.is_file()]
    for secret in spellings:
        if secret in outcome.out + outcome.err:
            wrong = wrong or "the key is printed"
        if any(secret.encode() in f.read_bytes() for f in kept):
            wrong = wrong or "the key is stored"
    if not wrong and outcome.code == 0:
        for file in folder.glob("runs/*/rows.jsonl"):
            for row in map(json.loads, filter(None, file.read_text().split("\n"))):
                if not row.get("failure") and row["output"] not in (row["gold"], ""):
                    wrong = f"a wrong answer is recorded: {row['output']!r} for {row['gold']!r}"
        if name in ENDS and kind == "labels" and not name.startswith(("http4", "no-choices")):
            figures = [row for f in folder.glob("runs/*/rows.jsonl") for row in f.read_text().split("\n") if row]
            if figures and not all(json.loads(r).get("failure") or json.loads(r)["output"] in LABELS for r in figures):
                wrong = "rows of a server that gives no figure"
    return Trial(f"server, {kind}", name, wrong)
