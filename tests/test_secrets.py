"""No secret in any output or file: the redaction, and the doors at which it is applied."""

from __future__ import annotations

import base64
import html
import json
import logging
import pickle
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iclkit import secrets
from iclkit.errors import DataError, IclkitError, ModelError, RequestError, UnknownName
from iclkit.lm import GenerateRequest
from iclkit.lm._servers import open_openai
from iclkit.secrets import redact, redact_known, remember, split_query, split_userinfo

from .lm.openai_server import ScriptedServer

KEY = "sk-own/Key+0123=456789"
PASSWORD = "p,w=9"


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", {})
    for name in ("OPENAI_API_KEY", "ICLKIT_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


ECHOES: dict[str, Callable[[str], str]] = {
    "plain": lambda k: f"bad key {k}!",
    "upper case": lambda k: f"bad key {k.upper()}",
    "percent": lambda k: f"key%3D{urllib.parse.quote(k, safe='')}",
    "plus": lambda k: urllib.parse.quote_plus(k),
    "twice percent": lambda k: urllib.parse.quote(urllib.parse.quote(k, safe=""), safe=""),
    "base64": b64,
    "base64 of the header": lambda k: b64(f"Bearer {k}"),
    "base64 within": lambda k: b64(f"ab{k} and more"),
    "base64 for addresses": lambda k: base64.urlsafe_b64encode(f"a{k}".encode()).decode(),
    "basic": lambda k: f"Basic {b64(f'ann:{k}')}",
    "hex": lambda k: k.encode().hex(),
    "html": lambda k: f"<p>{html.escape(k)}</p>",
    "json": lambda k: json.dumps({"headers": {"authorization": f"Bearer {k}"}}),
    "cut short": lambda k: f"{k[:14]}…",
    "backwards": lambda k: k[::-1],
}


def spelled(secret: str, text: str) -> bool:
    """Whether so much of the secret can be read in ``text`` that it would help anyone."""
    ways = {f(secret) for f in (str, b64, str.upper, lambda s: urllib.parse.quote(s, safe=""), lambda s: s[::-1])}
    ways |= {secret[:12], secret.encode().hex()}
    return any(w.lower() in text.lower() for w in ways)


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES.keys())
@pytest.mark.parametrize("key", [KEY, "plainkey-without-a-shape", 'odd"<key>\\&1234567', "schlüssel-0123456789"])
def test_a_known_secret_is_hidden_in_every_spelling_in_which_it_is_echoed(echo, key):
    remember(key)
    assert not spelled(key, redact(f"before {echo(key)} after"))
    assert redact(f"before {echo(key)} after").startswith("before ")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://ann:pw@host/v1", "https://***@host/v1"),
        ("https://token@host/v1", "https://***@host/v1"),
        ("https://ann:p@ss/w@host/v1 and more", "https://***@host/v1 and more"),
        ("http://h/v1?api_key=abc&api-version=2", "http://h/v1?api_key=***&api-version=2"),
        ("http://h/v1?a=1&sig=abc%2F;x", "http://h/v1?a=1&sig=***;x"),
        ("Authorization: Bearer abc", "Authorization: Bearer ***"),
        ("{'X-Api-Key': 'abc'}", "{'X-Api-Key': '***'}"),
        ("password=hunter2, retry", "password=***, retry"),
        ("token hf_abcdefghijklmnop is bad", "token *** is bad"),
        ("Incorrect API key provided: sk-ab12****cd34.", "Incorrect API key provided: ***."),
    ],
)
def test_what_is_shaped_like_a_secret_is_hidden(text, shown):
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens: 5000 is more than 4096",
        "unexpected token: x",
        "Basic authentication required",
        "http://127.0.0.1:8000/v1/@me",
        "openai:model@http://127.0.0.1:8000/v1,tokenizer=org/name,revision=3",
        "https://h/openai/deployments/d?api-version=2024-06-01",
        "the key of a row: monkey=3, keys=2",
        "no selector named 'knm'. Did you mean 'knn'?",
        "demos.db, line 3: field 'input' is empty",
    ],
)
def test_ordinary_words_stay(text):
    assert redact(text) == text


def test_a_short_secret_is_hidden_as_a_word_and_no_placeholder_is(monkeypatch):
    remember("pw", "EMPTY", None, "")
    assert redact("user ann, pw, pwd, empty") == "user ann, ***, pwd, empty"
    assert redact_known("pw", shortest=8) == "pw"


def test_what_the_environment_calls_secret_is_known(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "opaque-token-value")
    monkeypatch.setenv("MY_DB_PASSWORD", "correct horse")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-value")
    assert redact("opaque-token-value; correct horse; false-value") == "***; ***; false-value"


def test_every_error_of_ours_is_without_secrets_and_keeps_that_between_processes():
    remember(KEY)
    for error in (IclkitError(f"a {KEY}"), DataError(f"https://a:b@h {KEY}"), RequestError(3, f"no {KEY}"),
                  UnknownName("model", KEY, ["x"])):  # fmt: skip
        assert KEY not in str(error) + repr(error)
        assert KEY not in str(pickle.loads(pickle.dumps(error)))  # noqa: S301
    assert RequestError(3, "x").index == 3


def test_an_address_is_taken_apart_before_anything_is_written_down():
    assert split_userinfo("openai:m@https://ann:p,w=%41@h:80/v1,scoring=echo") == (
        "openai:m@https://h:80/v1,scoring=echo",
        ("ann", "p,w=A"),
    )
    assert split_userinfo("openai:m@http://h/v1") == ("openai:m@http://h/v1", None)
    bare, sent, shown = split_query("https://h/v1?api-version=2&api_key=secret-value&tenant=ours")
    assert (bare, sent) == ("https://h/v1", "api-version=2&api_key=secret-value&tenant=ours")
    assert shown.startswith("api-version=2&tenant=~")
    assert "ours" not in shown
    other = split_query("https://h/v1?api-version=2&api_key=another-value&tenant=theirs")[2]
    assert other != shown  # another tenant may be another model
    assert split_query("https://h/v1?api-version=2&api_key=new&tenant=ours")[2] == shown  # a new key is not


# -- the doors ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def serve() -> Iterator[Callable[[Any], ScriptedServer]]:
    servers: list[ScriptedServer] = []

    def begin(script: Any) -> ScriptedServer:
        servers.append(ScriptedServer(script))
        return servers[-1]

    yield begin
    for server in servers:
        server.close()


def spec_of(server: ScriptedServer) -> str:
    address = server.url.replace("//", f"//ann:{PASSWORD}@")
    return f"openai:m@{address}?api_key=query-secret-77&api-version=1"


def assert_clean(text: str) -> None:
    for secret in (KEY, PASSWORD, "query-secret-77"):
        assert not spelled(secret, text), text


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES.keys())
@pytest.mark.parametrize("kind", ["html", "json", "200 html", "detail", "reason", "location"])
def test_a_server_that_echoes_what_it_was_sent_is_reported_without_it(serve, monkeypatch, echo, kind):
    monkeypatch.setenv("ICLKIT_API_KEY", KEY)

    def script(path: str, body: Any, headers: dict[str, str]) -> Any:
        words = " ".join(echo(s) for s in (KEY, PASSWORD, "query-secret-77")) + " " + str(headers) + path
        if kind == "html":
            return 400, f"<html>{words}</html>".encode(), {}
        if kind == "200 html":
            return 200, words.encode(), {}
        if kind == "location":
            return 307, b"", {"Location": f"http://a:b@h/{urllib.parse.quote(words)}"}
        return 400, {"error": {"message": words}} if kind == "json" else {"detail": [{"msg": words}]}, {}

    with pytest.raises(ModelError) as caught:
        open_openai(spec_of(serve(script)), backoff=0.01, retries=0)
    assert_clean(str(caught.value) + repr(caught.value.__cause__))
    assert "\n" not in str(caught.value)


def answering(path: str, body: Any, headers: dict[str, str]) -> Any:
    if not path.partition("?")[0].endswith("/chat/completions"):
        return 404, {"error": {"message": f"no page {path} for {headers}"}}, {}
    text = f"late, you said {headers} {path}" if "echo" in str(body) else "late"
    return 200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}, {}


def test_name_fingerprint_notes_and_answers_hold_no_secret_and_the_server_gets_them_all(serve, monkeypatch, caplog):
    monkeypatch.setenv("ICLKIT_API_KEY", KEY)
    server = serve(answering)
    with caplog.at_level(logging.DEBUG):
        lm = open_openai(spec_of(server), backoff=0.01)
        (got,) = lm.generate([GenerateRequest("echo please", 50)])
    assert_clean(" ".join([lm.name, lm.fingerprint, *lm.notes, got.text, repr(lm.config), lm.client.url, caplog.text]))
    assert got.text.startswith("late, you said")
    assert {h["Authorization"] for _, _, h in server.asked} == {f"Basic {b64(f'ann:{PASSWORD}')}"}
    assert all(p.endswith("?api_key=query-secret-77&api-version=1") for p, _, _ in server.asked)


@pytest.mark.parametrize("key", ["schlüssel", "two\nlines", "nul\0"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(monkeypatch, key):
    if "\0" not in key:
        monkeypatch.setenv("ICLKIT_API_KEY", key)
        with pytest.raises(IclkitError, match="no HTTP header can carry") as caught:
            open_openai("openai:m@http://127.0.0.1:9")
        assert key not in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    ["openai:m@ann:hunter22@127.0.0.1:9/v1", "openai:m@http://ann:hunter22@127.0.0.1:9/v1,concurency=3",
     "openai:m@http://ann:hunter22@127.0.0.1:99999/v1", "openai:m@http://ann:hunter22@[::bad/v1",
     "openai:m@http://ann:hunt/er22@127.0.0.1:9/v1", "openai:m@http://127.0.0.1:9/v1?token=hunter22,scoring=x",
     "openai:m@http://ann:hunter22@127.0.0.1:9/v1,oops"],
)  # fmt: skip
def test_a_spec_that_cannot_be_used_is_reported_without_its_password(spec):
    with pytest.raises(IclkitError) as caught:
        open_openai(spec, retries=0)
    assert "hunt" not in str(caught.value)


def everything(folder: Path) -> bytes:
    return b"".join(f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file())


@pytest.mark.parametrize("flags", [[], ["--json"], ["--dry-run"], ["--dry-run", "--json"], ["--debug"]], ids=" ".join)
def test_no_command_writes_or_prints_a_secret(serve, tmp_path, flags):
    task = tmp_path / "task"
    task.mkdir()
    for name, rows in (("train", 6), ("test", 3)):
        lines = [json.dumps({"input": f"{name} {n}", "output": ("late", "lost")[n % 2]}) for n in range(rows)]
        (task / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    out, home = tmp_path / "runs", tmp_path / "home"
    debug = ["--debug"] if "--debug" in flags else []
    command = [sys.executable, "-m", "iclkit", *debug, "eval", str(task), "--lm", spec_of(serve(answering)),
               "-s", "random", "-k", "2", "--out", str(out), *[f for f in flags if f != "--debug"]]  # fmt: skip
    env = {"PATH": "/usr/bin:/bin", "ICLKIT_HOME": str(home), "ICLKIT_API_KEY": KEY, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert_clean(done.stdout + done.stderr)
    assert_clean(everything(out).decode(errors="replace") + everything(home).decode("latin-1"))


def test_the_traceback_of_debug_holds_no_secret(serve):
    def script(path: str, body: Any, headers: dict[str, str]) -> Any:
        return 401, f"<p>{headers} {path}</p>".encode(), {}

    command = [sys.executable, "-m", "iclkit", "--debug", "eval", "x", "--lm", spec_of(serve(script)), "-s", "zero"]
    code = "import sys; from iclkit.lm import load_lm; load_lm(sys.argv[1], cache=False)"
    env = {"PATH": "/usr/bin:/bin", "ICLKIT_API_KEY": KEY, "PYTHONPATH": ":".join(sys.path)}
    for words in (command, [sys.executable, "-c", code, spec_of(serve(script))]):
        done = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
        assert "Traceback" in done.stderr
        assert_clean(done.stdout + done.stderr)
