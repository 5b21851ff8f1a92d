"""What turns texts into vectors and judges pairs of texts: encoders, text formats, trained retrievers, rerankers.

Importing this room loads no torch.
"""

from iclkit.embed._cluster import embedding_engine
from iclkit.embed._formats import EmbeddingFormat, ExampleProvider, SideFormat, bge_icl, prompt_eol, rare
from iclkit.embed._load import load_embedder, load_training_base
from iclkit.embed._protocol import (
    BaseEmbedder,
    Embedder,
    EmbedderLike,
    FloatArray,
    Reranker,
    are_unit,
    as_embedder,
    check_rows,
    encode_checked,
    encode_tokens_checked,
    score_checked,
    vector_key,
)
from iclkit.embed._reranker import load_reranker
from iclkit.embed._retriever import CARD, Retriever, RetrieverFormat
from iclkit.embed._spec import absolute_spec, split_spec

__all__ = [
    "CARD",
    "BaseEmbedder",
    "Embedder",
    "EmbedderLike",
    "EmbeddingFormat",
    "ExampleProvider",
    "FloatArray",
    "Reranker",
    "Retriever",
    "RetrieverFormat",
    "SideFormat",
    "absolute_spec",
    "are_unit",
    "as_embedder",
    "bge_icl",
    "check_rows",
    "embedding_engine",
    "encode_checked",
    "encode_tokens_checked",
    "load_embedder",
    "load_reranker",
    "load_training_base",
    "prompt_eol",
    "rare",
    "score_checked",
    "split_spec",
    "vector_key",
]
