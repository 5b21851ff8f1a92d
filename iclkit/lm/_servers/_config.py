"""How a server is named and what may be set about it: ``openai:MODEL@URL,key=value``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields

from iclkit.errors import UnknownName, UsageError
from iclkit.lm._servers._http import Client, HttpConfig
from iclkit.records import Json
from iclkit.registry import parse_spec
from iclkit.secrets import redact, split_userinfo

SCORINGS = (
    "token-ids",
    "native",
    "score",
    "echo",
    "prompt-logprobs",
    "next-token",
    "first-token",
    "decisions",
    "forced",
    "generate",
)
"""Ways of scoring in the order in which they are tried."""
ENDPOINTS = ("completions", "chat")
OPENAI_URL = "https://api.openai.com/v1"
_ADDRESS = re.compile(r"openai:(?:(?P<served>.+?)@(?P<url>https?://\S+)|(?P<model>[^@]+))")
_KEYS = (
    (re.compile(r"//[^/]*\.azure\.com(?:[:/]|$)"), "AZURE_OPENAI_API_KEY"),
    (re.compile(r"//(?:[^/]*\.)?openrouter\.ai(?:[:/]|$)"), "OPENROUTER_API_KEY"),
)
"""Variables that hold the key of one provider, by the address that it is for."""


@dataclass(frozen=True, slots=True)
class OpenAIConfig:
    """Settings of a server's LM, beside those of ``HttpConfig``.

    scoring, endpoint: "auto" to find out, or one of SCORINGS, ENDPOINTS. tokenizer: folder or hub id of the model's
    tokenizer, for exact token counts and boundaries where the server does not tokenize. context: tokens that prompt
    and answer may take, where the server does not say. answer_tokens: length of the answers that first-token and
    generate compare. thought_tokens: what a model that thinks first may write beyond its answer. revision: any text;
    another one keeps the cache from mixing two models at one address. reasoning_effort: sent as it is to a model that
    thinks (none, low, medium, high ...). provider: of several hosts behind one address (OpenRouter), the only one to
    ask.
    """

    scoring: str = "auto"
    endpoint: str = "auto"
    tokenizer: str = ""
    context: int = 0
    answer_tokens: int = 12
    revision: str = ""
    thought_tokens: int = 4096
    reasoning_effort: str = ""
    provider: str = ""

    def __post_init__(self) -> None:
        for value, known in ((self.scoring, SCORINGS), (self.endpoint, ENDPOINTS)):
            if value not in ("auto", *known):
                raise UnknownName("way to use a server", value, ("auto", *known))
        for name, minimum in (("context", 0), ("answer_tokens", 1), ("thought_tokens", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise UsageError(f"{name} is {value!r}, which is of the wrong type: expected a whole number")
            if value < minimum:
                raise UsageError(f"{name} is {value}: expected at least {minimum}")
        for name in ("reasoning_effort", "provider"):
            if not isinstance(getattr(self, name), str):
                raise UsageError(f"{name} is {getattr(self, name)!r}, which is of the wrong type: expected a text")

    @property
    def extra(self) -> dict[str, Json]:
        """What every request carries besides its own fields."""
        out: dict[str, Json] = {}
        if self.reasoning_effort:
            out["reasoning_effort"] = self.reasoning_effort
        if self.provider:  # another host could drop log-probabilities, or serve other weights
            out["provider"] = {"order": [self.provider], "allow_fallbacks": False, "require_parameters": True}
        return out


def connect(spec: str, **settings: Json) -> tuple[str, Client, OpenAIConfig]:
    """(model, client, settings) of ``openai:MODEL@URL,key=value``; nothing is sent yet.

    Without @URL it is OPENAI_BASE_URL, else OpenAI's own address where OPENAI_API_KEY is set. The key is
    ICLKIT_API_KEY, else the provider's own variable (AZURE_OPENAI_API_KEY, OPENROUTER_API_KEY), else OPENAI_API_KEY.
    UsageError for a spec or setting that cannot be.
    """
    # a password may hold commas and signs of equality, so it is taken off before the settings are split
    bare, userinfo = split_userinfo(spec)
    parsed = parse_spec(bare)
    address = _ADDRESS.fullmatch(parsed.name)
    url = (address and address["url"]) or ""
    if not url:
        url, userinfo = split_userinfo(os.environ.get("OPENAI_BASE_URL", "").strip())
    if address and not url and os.environ.get("OPENAI_API_KEY"):
        url = OPENAI_URL
    if not address or not url:
        raise UsageError(
            f"{_without_password(bare)!r} is not openai:MODEL@URL, e.g. openai:my-model@http://127.0.0.1:8000/v1 "
            "(without @URL, set OPENAI_API_KEY to ask OpenAI, or OPENAI_BASE_URL for another server)"
        )
    wanted = {**parsed.settings, **settings}
    known = {f.name: kind for kind in (OpenAIConfig, HttpConfig) for f in fields(kind)}
    for name in wanted:
        if name not in known:
            raise UnknownName("setting of openai:MODEL@URL", name, known)
    server_settings, http = (
        {k: v for k, v in wanted.items() if known[k] is kind} for kind in (OpenAIConfig, HttpConfig)
    )
    try:
        config, http_config = OpenAIConfig(**server_settings), HttpConfig(**http)  # type: ignore[arg-type]
    except TypeError as error:
        raise UsageError(f"{spec!r} has a setting of the wrong type: {error}") from error
    client = Client(_with_path(url), _key_for(url), http_config, userinfo)
    return address["served"] or address["model"], client, config


def _key_for(url: str) -> str | None:
    own = [os.environ.get(name) for pattern, name in _KEYS if pattern.search(url)]
    keys = (os.environ.get("ICLKIT_API_KEY"), *own, os.environ.get("OPENAI_API_KEY"))
    return next((key for key in keys if key), None)


def _without_password(spec: str) -> str:
    """A spec that could not be read, without what stands before an @ that is not its first."""
    return redact(re.sub(r"@.*@", "@***@", spec))


def _with_path(url: str) -> str:
    """The address of the API: a bare host gets the customary /v1, the address of a single endpoint loses its end."""
    address, mark, query = url.partition("?")
    address = re.sub(r"/(?:chat/)?completions/?$", "", address).rstrip("/")
    if not re.search(r"//[^/]+/", address):
        address += "/v1"
    return address + mark + query
