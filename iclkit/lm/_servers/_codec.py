"""The tokenizer of a served model: the server's own, or one that the user names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from iclkit.errors import ModelError
from iclkit.lm._servers._http import Client
from iclkit.lm._servers._parse import NotSupported

_KNOWN_TEXTS = 20_000


class ServerTokenizer:
    """The server's /tokenize and /detokenize (vLLM, SGLang, llama.cpp), as a tokenizer for ``PromptTokenizer``."""

    bos_token_id = eos_token_id = chat_template = None

    def __init__(self, client: Client, root: str, model: str) -> None:
        self._client, self._root, self._model = client, root, model
        self._known: dict[tuple[str, bool], list[int]] = {}

    def __call__(self, text: str | Sequence[str], add_special_tokens: bool = True) -> dict[str, Any]:
        if isinstance(text, str):
            return {"input_ids": self._ids(text, add_special_tokens)}
        return {"input_ids": [self._ids(t, add_special_tokens) for t in text]}

    def _ids(self, text: str, special: bool) -> list[int]:
        if (text, special) not in self._known:
            # vLLM calls them prompt and add_special_tokens, llama.cpp content and add_special; each skips the other's
            body: dict[str, Any] = {"model": self._model, "prompt": text, "content": text, "parse_special": True}
            body |= {"add_special_tokens": special, "add_special": special}
            ids = self._client.post("/tokenize", body, root=self._root).get("tokens")
            if not isinstance(ids, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
                raise NotSupported(f"the server at {self._root} does not tokenize")
            if len(self._known) >= _KNOWN_TEXTS:
                self._known.clear()
            self._known[text, special] = ids
        return self._known[text, special]

    def decode(self, ids: Sequence[int], **_: object) -> str:
        return detokenize(self._client, self._root, self._model, ids)


def detokenize(client: Client, root: str, model: str, ids: Sequence[int]) -> str:
    """The text of token ids, by the server. NotSupported where it does not tell."""
    # vLLM answers with prompt, llama.cpp with content, SGLang with text, of which it drops special tokens unless told
    body = {"model": model, "tokens": [*ids], "skip_special_tokens": False}
    answer = client.post("/detokenize", body, root=root)
    text = next((answer[field] for field in ("prompt", "content", "text") if field in answer), None)
    if not isinstance(text, str):
        raise NotSupported(f"the server at {root} does not turn tokens into text")
    return text


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a catalogue name, a folder or a hub id. ModelError when it does not load."""
    from transformers import AutoTokenizer

    from iclkit.models import catalogue, resolve

    folder = str(resolve(name, "lm", pull=False)) if name in catalogue() else name
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().split("\n")[0]
        raise ModelError(f"tokenizer {name} does not load ({first}); give the model's folder or hub id") from error
