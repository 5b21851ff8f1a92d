"""Any OpenAI-compatible HTTP server as an LM: ``openai:MODEL@URL``.

Opening it finds out what the server can do; afterwards a request that the server refuses while it answers others costs
that request alone (RequestError). Every number is checked before it counts, every word of the server is cleaned of
secrets before it is shown, and what a model writes around its answer (thoughts, the fence around code) is taken off
before stop strings cut it.

Servers differ in the log-probabilities that they give. Probing finds out which of these ways of scoring works, best
first, by its effect; the choice is in ``scoring``, in ``notes`` and in the fingerprint. What was found is remembered
per server and model, and one question shows at the next start that it still holds. How many requests are sent at once
is climbed for (``_pace``), and slowed down where the server refuses or tells that its limits are near.

=============== ======================================================================== ==============================
scoring         how                                                                      exact
=============== ======================================================================== ==============================
token-ids       next-token log-probabilities of the labels' own tokens, one cached       yes
                prompt for each beginning that labels share (vLLM)
native          the same, or the continuation's own rows, from /generate (SGLang)        yes
score           the same from /score, where /generate cannot be reached (SGLang)         yes
echo            /completions repeats the prompt with the log-probability of every token  yes
prompt-logprobs the same as a field of its own (vLLM)                                    yes
next-token      top log-probabilities of the next token, token after token               yes where the server gives as
                                                                                         many as asked and its tokens
                                                                                         are known, else a bound
first-token     the same from /chat/completions, along the server's own answer           up to the first token that
                                                                                         differs from the answer
decisions       /decisions tells a probability for each of the given labels (OpenAI)     among the given labels
forced          the answer is bound to be one of the given labels (structured output)    no: a ranking, no probability
generate        the answer is generated and compared                                     no: a ranking, no probability
=============== ======================================================================== ==============================
"""

from __future__ import annotations

from iclkit.errors import UsageError
from iclkit.lm._servers._batch import BatchFolder, Pending
from iclkit.lm._servers._capabilities import Capabilities, FolderRecords, NoRecords, Records
from iclkit.lm._servers._config import OpenAIConfig, connect
from iclkit.lm._servers._http import Client, HttpConfig, HttpError, RequestRejected
from iclkit.lm._servers._lm import OpenAILM, by_batch
from iclkit.lm._servers._money import Purse, read_context, read_prices
from iclkit.records import Json

__all__ = [
    "BatchFolder",
    "Capabilities",
    "Client",
    "FolderRecords",
    "HttpConfig",
    "HttpError",
    "NoRecords",
    "OpenAIConfig",
    "OpenAILM",
    "Pending",
    "Records",
    "RequestRejected",
    "by_batch",
    "connect",
    "open_openai",
]


def open_openai(
    spec: str,
    records: Records | None = None,
    *,
    reprobe: bool = False,
    price: str | None = None,
    max_cost: float | None = None,
    **settings: Json,
) -> OpenAILM:
    """The LM at ``openai:MODEL@URL``.

    Settings (those of OpenAIConfig and HttpConfig) are keywords, or ride on the name: ``openai:MODEL@URL,key=value``.
    ``records``: where what was found out about servers is kept; None keeps nothing. ``reprobe``: find it out again.
    price: ``in=…,out=…`` per million tokens, or a price file; max_cost: spend no more. Addresses and keys as
    ``connect``. UsageError for a spec or setting that cannot be; ModelError when the server cannot be used.
    """
    model, client, config = connect(spec, **settings)
    if max_cost is not None and price is None:
        raise UsageError("a limit of cost needs prices: give --price in=…,out=… per million tokens, or a price file")
    purse = None if price is None else Purse(read_prices(price, model), max_cost, read_prices(price, model, batch=True))
    context = 0 if price is None else read_context(price, model)
    return OpenAILM(model, client, config, records, reprobe=reprobe, purse=purse, context=context)
