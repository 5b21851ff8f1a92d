"""A selector as a service: demonstrations and messages over HTTP, and a proxy that adds them to chat requests.

Needs the extra ``iclkit[serve]``. The selector is loaded once; requests that come together are answered together.
"""

from iclkit.serve._app import MAX_BODY, MAX_K, ServeSettings, make_app, workers_for
from iclkit.serve._requests import HttpError, read_body, refusal, refusal_of
from iclkit.serve._run import run_app, run_server

__all__ = [
    "MAX_BODY",
    "MAX_K",
    "HttpError",
    "ServeSettings",
    "make_app",
    "read_body",
    "refusal",
    "refusal_of",
    "run_app",
    "run_server",
    "workers_for",
]
