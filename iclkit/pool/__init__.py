"""What can be shown: the pool of examples, their vectors and the search over them.

A pool is one SQLite file; vectors and key texts stand in it, and the FAISS index beside it is derived from it.
Importing this room loads neither torch nor faiss.
"""

from iclkit.pool._embedder import Embedder, Progress, check_rows, encode_checked
from iclkit.pool._encoder import load_embedder
from iclkit.pool._export import example_dict, exported_example
from iclkit.pool._keys import FieldKey, KeyTransform, RetrievalKeys
from iclkit.pool._readonly import run_read_only
from iclkit.pool._reranker import load_reranker
from iclkit.pool._retriever import CARD, Retriever, RetrieverFormat
from iclkit.pool._spec import split_spec
from iclkit.pool._store import AddReport, DedupeReport, Pool, PoolStats
from iclkit.pool._template import EmbeddingFormat, ExampleProvider, SideFormat, bge_icl, prompt_eol, rare
from iclkit.pool._view import PoolView

__all__ = [
    "CARD",
    "AddReport",
    "DedupeReport",
    "Embedder",
    "EmbeddingFormat",
    "ExampleProvider",
    "FieldKey",
    "KeyTransform",
    "Pool",
    "PoolStats",
    "PoolView",
    "Progress",
    "RetrievalKeys",
    "Retriever",
    "RetrieverFormat",
    "SideFormat",
    "bge_icl",
    "check_rows",
    "encode_checked",
    "example_dict",
    "exported_example",
    "load_embedder",
    "load_reranker",
    "prompt_eol",
    "rare",
    "run_read_only",
    "split_spec",
]
