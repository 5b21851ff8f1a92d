"""What turns texts into vectors and judges pairs of texts: encoders, text formats, trained retrievers, rerankers.

Importing this room loads no torch.
"""

from iclkit.embed._cluster import embedding_engine
from iclkit.embed._cuts import CountsCuts, CutTexts
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
from iclkit.embed._sentence_transformer import cuts_of, lengths_of
from iclkit.embed._spec import absolute_spec, split_spec
from iclkit.embed._torch import token_limit

__all__ = [
    "CARD",
    "BaseEmbedder",
    "CountsCuts",
    "CutTexts",
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
    "cuts_of",
    "embedding_engine",
    "encode_checked",
    "encode_tokens_checked",
    "lengths_of",
    "load_embedder",
    "load_reranker",
    "load_training_base",
    "prompt_eol",
    "rare",
    "score_checked",
    "split_spec",
    "token_limit",
    "vector_key",
]
