"""The description of the service that ``/openapi.json`` gives."""

from __future__ import annotations

from typing import Any

from iclkit import __version__
from iclkit.serve._requests import MAX_K

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}},
        }
    },
}
_QUESTION = {
    "type": "object",
    "required": ["input"],
    "additionalProperties": False,
    "properties": {
        "input": {
            "description": "What to choose demonstrations for: a text, or the fields of the pool's inputs.",
            "anyOf": [
                {"type": "string"},
                {"type": "object", "minProperties": 1, "additionalProperties": {"type": "string"}},
            ],
        },
        "k": {"type": ["integer", "null"], "minimum": 0, "maximum": MAX_K, "description": "How many."},
        "where": {"type": ["object", "null"], "description": "Metadata that demonstrations must have."},
        "exclude": {"type": ["array", "null"], "items": {"type": "string"}, "description": "Ids never to be shown."},
    },
    "example": {"input": "my parcel is late", "k": 4},
}
_TEXTS = {"type": "array", "items": {"type": "string"}}
_PICK = {
    "type": "object",
    "required": ["id", "rank", "score", "input", "output"],
    "properties": {
        "id": {"type": "string"},
        "rank": {"type": "integer", "minimum": 1, "description": "1 is the best."},
        "score": {"type": "number"},
        "input": {"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}]},
        "output": {"type": "string"},
    },
}
_SELECTION = {
    "type": "object",
    "required": ["picks", "notes"],
    "properties": {"picks": {"type": "array", "items": _PICK}, "notes": _TEXTS},
}
_MESSAGES = {
    "type": "object",
    "required": ["messages", "shown", "notes"],
    "properties": {
        "messages": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["role", "content"],
                "properties": {"role": {"type": "string"}, "content": {"type": "string"}},
            },
        },
        "shown": {**_TEXTS, "description": "Ids of the demonstrations, in prompt order."},
        "notes": _TEXTS,
    },
}
_HEALTH = {
    "type": "object",
    "required": ["status", "selector", "examples", "revision"],
    "properties": {
        "status": {"const": "ok"},
        "selector": {"type": "string"},
        "examples": {"type": "integer"},
        "revision": {"type": "integer"},
        "source": {"type": "string", "description": "The hub's repository and commit that it was fetched from."},
    },
}


def _answer(about: str, schema: Any) -> dict[str, Any]:
    return {"description": about, "content": {"application/json": {"schema": schema}}}


def _ask(summary: str, answer: Any) -> dict[str, Any]:
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": {"application/json": {"schema": _QUESTION}}},
            "responses": {
                "200": _answer("Chosen.", answer),
                "400": _answer("The request has to change; one line says how.", _ERROR),
                "401": _answer("No or a wrong X-API-Key.", _ERROR),
                "413": _answer("The body is too large.", _ERROR),
                "503": _answer("The pool or a model cannot be used.", _ERROR),
            },
            "security": [{"key": []}, {}],
        }
    }


def openapi() -> dict[str, Any]:
    """The document, OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "iclkit", "version": __version__, "description": "Demonstrations for a language model."},
        "paths": {
            "/select": _ask("The demonstrations for an input, best first.", _SELECTION),
            "/messages": _ask("The messages to send to a chat API, demonstrations in prompt order.", _MESSAGES),
            "/healthz": {
                "get": {
                    "summary": "Whether it answers.",
                    "responses": {
                        "200": _answer("It does.", _HEALTH),
                        "503": _answer("The pool that it follows cannot be read.", _ERROR),
                    },
                },
            },
            "/metrics": {
                "get": {
                    "summary": "Counters for Prometheus.",
                    "responses": {
                        "200": {"description": "Text.", "content": {"text/plain": {"schema": {"type": "string"}}}},
                        "401": _answer("No or a wrong X-API-Key.", _ERROR),
                    },
                    "security": [{"key": []}, {}],
                }
            },
        },
        "components": {"securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}},
    }
