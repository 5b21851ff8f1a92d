"""What can be shown: the pool of examples, their vectors and the search over them.

A pool is one SQLite file, or a folder or URI of LanceDB tables. Vectors and key texts stand in it, and the files beside
it are derived from it. Importing this room loads neither torch nor faiss nor LanceDB.
"""

from iclkit.pool._candidates import CandidateBatch, Candidates, Ranked, Scope, search_notes
from iclkit.pool._export import example_dict, exported_example
from iclkit.pool._find import ExamplePage
from iclkit.pool._index import FlatIndex, VectorIndex
from iclkit.pool._key_transforms import FieldKey, KeyTransform, RetrievalKeys
from iclkit.pool._lists import EXACT_UP_TO, RECALL, ApproximateIndex
from iclkit.pool._migrate import MigrateReport, migrate
from iclkit.pool._place import as_place, discard, in_lance, is_there
from iclkit.pool._readonly import run_read_only
from iclkit.pool._rows import examples_of
from iclkit.pool._store import AddReport, DedupeReport, Pool, PoolStats, as_view, copy_view
from iclkit.pool._terms import TOKENIZERS, TermIndex, Terms, tokenizer
from iclkit.pool._view import PoolOrigin, PoolView

__all__ = [
    "EXACT_UP_TO",
    "RECALL",
    "TOKENIZERS",
    "AddReport",
    "ApproximateIndex",
    "CandidateBatch",
    "Candidates",
    "DedupeReport",
    "ExamplePage",
    "FieldKey",
    "FlatIndex",
    "KeyTransform",
    "MigrateReport",
    "Pool",
    "PoolOrigin",
    "PoolStats",
    "PoolView",
    "Ranked",
    "RetrievalKeys",
    "Scope",
    "TermIndex",
    "Terms",
    "VectorIndex",
    "as_place",
    "as_view",
    "copy_view",
    "discard",
    "example_dict",
    "examples_of",
    "exported_example",
    "in_lance",
    "is_there",
    "migrate",
    "run_read_only",
    "search_notes",
    "tokenizer",
]
