"""Embedders by name or folder: what a folder says of itself becomes a format, a backbone and heads."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from iclkit import models
from iclkit.embed._encoder import EncoderBackbone, TextEmbedder
from iclkit.embed._few_shot import FewShotEmbedder, read_example_pairs
from iclkit.embed._folder import Module, folder_hash, read_modules
from iclkit.embed._formats import (
    POOLED,
    EmbeddingFormat,
    Pooling,
    SideFormat,
    lm_template,
)
from iclkit.embed._heads import dense_head, first_dimensions
from iclkit.embed._protocol import Embedder
from iclkit.embed._quick import Note, QuickEmbedder, QuickFolder, leave_note
from iclkit.embed._retriever import Retriever, read_card, retriever_from_card
from iclkit.embed._sentence_transformer import SentenceTransformerEmbedder, load_sentence_transformer
from iclkit.embed._spec import checked_dtype, join_spec, split_spec
from iclkit.errors import ModelError, UsageError
from iclkit.records import Json

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
Dtype = Literal["auto", "fp32", "bf16"]
POOLINGS: dict[str, Pooling] = {
    "mean": "mean",
    "cls": "cls",
    "max": "max",
    "lasttoken": "last",
    "weightedmean": "weighted",
    "mean_sqrt_len_tokens": "sqrt",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """How an embedder is to be loaded: where, in what numbers, and what its user wants in front of texts."""

    dtype: str
    device: torch.device
    threads: int | None
    query_prefix: str | None = None
    document_prefix: str | None = None

    @property
    def prefixed(self) -> bool:
        """Whether a prefix was asked for."""
        return self.query_prefix is not None or self.document_prefix is not None

    def put(self, template: EmbeddingFormat) -> EmbeddingFormat:
        """The template with the prefixes that were asked for in the place of its own."""
        return with_prefixes(template, self.query_prefix, self.document_prefix)


def with_prefixes(template: EmbeddingFormat, query: str | None, document: str | None) -> EmbeddingFormat:
    """The template with these prefixes, those that are not None, in the place of its own."""
    sides = [
        own if prefix is None else replace(own, open=prefix)
        for own, prefix in ((template.query, query), (template.document, document))
    ]
    return replace(template, query=sides[0], document=sides[1])


def load_embedder(
    name_or_path: str,
    *,
    dtype: Dtype | None = None,
    device: str | None = None,
    threads: int | None = None,
    template: EmbeddingFormat | None = None,
    query_prefix: str | None = None,
    document_prefix: str | None = None,
    few: bool = False,
) -> Embedder:
    """An embedder by catalogue name, hub id or folder, with settings behind commas: ``e5-small-v2,dtype=bf16``.

    A sentence-transformers folder is used with its own pooling and its own query and document prompts, any other
    encoder with mean pooling. ``prompteol:MODEL``, ``mean:MODEL``, ``weighted:MODEL`` and ``last:MODEL`` embed with a
    language model; ``icl:EMBEDDER@FILE`` shows any of these the examples of FILE (lines of JSON with ``input`` and
    ``output``) in front of each query. ``template`` replaces prompts and pooling.

    ``query_prefix`` and ``document_prefix`` stand in front of queries and of examples, in the place of the folder's own
    prompts, or of what the catalogue knows that the model was trained with. ``dtype``: fp32, the default; bf16, faster,
    with other nearest neighbours here and there; or auto, bf16 where the hardware computes in it. Pooling and
    normalization are always fp32.

    ``few``: a few queries only will be encoded, perhaps none. Then a BERT-like folder that was loaded on this machine
    before is not loaded in full unless documents are to be encoded: vectors agree to 1e-5, and no torch is imported.

    Only files of the folder are read, as safetensors and text; weights that it lacks are not made up.
    UsageError, DataError or ModelError, in one line.
    """
    bare, said = split_spec(name_or_path)
    given = {"dtype": dtype, "query_prefix": query_prefix, "document_prefix": document_prefix}
    for key, value in given.items():
        if value is not None and said.setdefault(key, value) != value:
            raise UsageError(f"{name_or_path!r} says {key}={said[key]!r}, and {key}={value!r} was given beside it")
    few = few and template is None and device in (None, "cpu") and said.get("dtype", "fp32") == "fp32"
    if few and (":" not in bare or Path(bare).exists()):
        return _load_for_few(bare, said, device, threads)
    place = models.find_device(device)
    numbers = models.resolve_dtype(checked_dtype(said.get("dtype", "fp32")), place)
    name = join_spec(bare, {**said, "dtype": numbers})
    wanted = Wanted(numbers, place, threads, said.get("query_prefix"), said.get("document_prefix"))
    if template is not None and wanted.prefixed:
        raise UsageError("a template says what stands in front of texts; give it, or the prefixes, not both")
    way, colon, rest = bare.partition(":")
    if way == "icl" and colon and template is None:
        return _load_shown(name, rest, said, device, threads)
    if colon and not Path(bare).exists():
        return _load_lm(name, way, rest, wanted, template)
    folder = models.resolve(bare, "embedder")
    with models.load_errors(f"cannot load the embedder {name!r} from {folder}"):
        card = read_card(folder) if template is None else None
        if card and wanted.prefixed:
            raise UsageError(f"the retriever in {folder} writes texts as its training did; it takes no prefixes")
        loaded = _load(name, folder, wanted, template, models.card_of(bare), own_metric=card is not None)
        return retriever_from_card(loaded, card) if card else loaded


def _load_for_few(bare: str, said: Mapping[str, str], device: str | None, threads: int | None) -> Embedder:
    """See ``few`` of ``load_embedder``. ``said``: the settings behind the name."""
    folder, name = models.resolve(bare, "embedder"), join_spec(bare, said)

    def load() -> Embedder:
        return load_embedder(name, device=device, threads=threads)

    with models.load_errors(f"cannot load the embedder {name!r} from {folder}"):
        card, modules = read_card(folder), read_modules(folder)
        if modules and not (_is_simple(modules) and [m.kind for m in modules[2:]] in ([], ["Normalize"])):
            return load()
        settings = FolderSettings.read(folder)
        if settings.dimensions:
            return load()
        words = modules[0] if modules else Module("Transformer", folder)
        written = _folder_template(
            words, _pooling(modules), settings.prompts(models.card_of(bare)), models.card_of(bare)
        )
        prefixes = said.get("query_prefix"), said.get("document_prefix")
        written = with_prefixes(written, *prefixes)
        quick = QuickFolder.of(words.path, written, lambda: folder_hash(folder, modules))
        if quick is None:
            return load()
        note = Note.read(quick.note)
        if note is not None and not (card and any(prefixes)):
            embedder = QuickEmbedder(name, quick, note, lambda: _inner(load()))
            return retriever_from_card(embedder, card) if card else embedder
    whole = load()
    inner = _inner(whole)
    if isinstance(inner, TextEmbedder) and inner.weights == quick.weights:
        leave_note(quick, inner, inner.tokenizer, inner.limit)
    return whole


def _inner(embedder: Embedder) -> Embedder:
    return embedder.inner if isinstance(embedder, Retriever) else embedder


def load_training_base(name_or_path: str) -> Any:
    """The ``SentenceTransformer`` that a training starts from, in fp32 on the CPU, checked as ``load_embedder`` does.

    Its ``prompts["query"]`` and ``prompts["document"]`` are what ``load_embedder`` puts in front of texts of that
    embedder: the folder's own, what the catalogue knows, or the prefixes given behind the name. They have to be used in
    training; a folder that the model is saved to keeps them. UsageError or ModelError, in one line.
    """
    bare, settings = split_spec(name_or_path, known=("query_prefix", "document_prefix"))
    folder = models.resolve(bare, "embedder")
    with models.load_errors(f"cannot train from {folder}"):
        modules = read_modules(folder)
        if not modules:
            _refuse_what_has_no_states(bare, folder)
        query, document = FolderSettings.read(folder).prompts(models.card_of(bare))
        model, _ = load_sentence_transformer(folder, modules, "fp32", "cpu")
        model.prompts = {
            **model.prompts,
            "query": settings.get("query_prefix", query),
            "document": settings.get("document_prefix", document),
        }
        return model


def _load_shown(name: str, spec: str, said: Mapping[str, str], device: str | None, threads: int | None) -> Embedder:
    inner, at, file = spec.rpartition("@")
    if not at:
        raise UsageError(f"{name!r} names no examples; write icl:EMBEDDER@FILE, e.g. icl:{spec}@pairs.jsonl")
    documents = load_embedder(join_spec(inner, said), device=device, threads=threads)
    if not isinstance(documents, TextEmbedder):
        raise UsageError(f"{inner!r} does not take its texts one by one as they are, and cannot be shown examples")
    return FewShotEmbedder(name, documents.with_examples(read_example_pairs(Path(file))), documents)


def _load_lm(name: str, way: str, model: str, wanted: Wanted, template: EmbeddingFormat | None) -> Embedder:
    if template is None:
        template = lm_template(way)
        if wanted.prefixed and way not in POOLED:
            raise UsageError(f"{way} writes a prompt of its own; prefixes go with {', '.join(POOLED)}")
        template = wanted.put(template)
    folder = models.resolve(model, "lm")
    with models.load_errors(f"cannot load the embedder {name!r} from {folder}"):
        # many language models bring code of their own beside the class that transformers has for them
        modules = read_modules(folder, own_code="ignore")
        return _templated(name, folder, modules, wanted, template)


def _load(
    name: str,
    folder: Path,
    wanted: Wanted,
    template: EmbeddingFormat | None,
    card: models.ModelCard | None,
    *,
    own_metric: bool,
) -> Embedder:
    modules = read_modules(folder)
    if template is not None:
        return _templated(name, folder, modules, wanted, template)
    settings = FolderSettings.read(folder)
    if settings.similarity.startswith("dot") and not own_metric:
        log.warning("%s was trained for inner products; cosines are used here, as for every embedder", name)
    prompts = settings.prompts(card)
    if modules and not _is_simple(modules):
        query, document = prompts
        chosen = (
            query if wanted.query_prefix is None else wanted.query_prefix,
            document if wanted.document_prefix is None else wanted.document_prefix,
        )
        prompts = settings.library_prompts
        return SentenceTransformerEmbedder(
            name, folder, modules, chosen, prompts, wanted.dtype, wanted.device, wanted.threads
        )
    if not modules:
        _refuse_what_has_no_states(name, folder)
    words = modules[0] if modules else Module("Transformer", folder)
    template = wanted.put(_folder_template(words, _pooling(modules), prompts, card))
    heads = [dense_head(m) for m in modules if m.kind == "Dense"]
    notes: dict[str, Json] = {"default activation": True} if any(h.by_default for h in heads) else {}
    if settings.dimensions:
        notes["dimensions"] = settings.dimensions
    tail = [first_dimensions(settings.dimensions)] if settings.dimensions else []
    backbone = EncoderBackbone.load(words.path, models.torch_dtype(wanted.dtype), wanted.device)
    weights = folder_hash(folder, modules, backbone.vocabulary)
    return TextEmbedder(name, backbone, template, weights, threads=wanted.threads, heads=heads, tail=tail, notes=notes)


def _templated(
    name: str, folder: Path, modules: Sequence[Module], wanted: Wanted, template: EmbeddingFormat
) -> TextEmbedder:
    """The transformer of a folder under a template that is not the folder's own."""
    if modules and modules[0].kind != "Transformer":
        raise ModelError(f"{folder} begins with a {modules[0].kind}, not with a transformer; a template needs one")
    at = modules[0].path if modules else folder
    backbone = EncoderBackbone.load(at, models.torch_dtype(wanted.dtype), wanted.device)
    weights = folder_hash(folder, tuple(modules), backbone.vocabulary)
    return TextEmbedder(name, backbone, template, weights, threads=wanted.threads)


def _refuse_what_has_no_states(name: str, folder: Path) -> None:
    config = models.read_object(folder / "config.json")
    if any("CausalLM" in str(a) for a in config.get("architectures") or ()):
        raise UsageError(f"{name!r} is a language model; to embed with it, write e.g. prompteol:{name}")
    if config.get("is_encoder_decoder"):
        raise ModelError(
            f"{folder} is an encoder-decoder; take a sentence-transformers folder of it, with modules.json"
        )


def _pooling(modules: Sequence[Module]) -> Module | None:
    return next((m for m in modules if m.kind == "Pooling"), None)


def _is_simple(modules: Sequence[Module]) -> bool:
    """Whether the modules are a transformer, a pooling, dense layers and a normalization, in this order."""
    kinds = [m.kind for m in modules]
    middle = kinds[2:-1] if kinds[-1] == "Normalize" else kinds[2:]
    if kinds[:2] != ["Transformer", "Pooling"] or {*middle} - {"Dense"}:
        return False
    settings = modules[0].settings
    usual = {
        "transformer_task": "feature-extraction",
        "module_output_name": "token_embeddings",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    }
    odd = {k for k, v in settings.items() if v and k not in ("max_seq_length", "do_lower_case") and usual.get(k) != v}
    config = models.read_object(modules[0].path / "config.json")
    return (
        not odd
        and not config.get("is_encoder_decoder")
        and all(
            m.settings.get("module_input_name", "sentence_embedding") == "sentence_embedding"
            and m.settings.get("module_output_name") in (None, "sentence_embedding")
            and not m.settings.get("use_residual")
            for m in modules
            if m.kind == "Dense"
        )
    )


@dataclass(frozen=True, slots=True)
class FolderSettings:
    """``config_sentence_transformers.json``: prompts by name, the default one's name, dimensions kept, similarity."""

    named: Mapping[str, str]
    default: str
    dimensions: int
    similarity: str

    @classmethod
    def read(cls, folder: Path) -> FolderSettings:
        """ModelError when a field is not of its type; all empty for a folder without the file."""
        file = folder / "config_sentence_transformers.json"
        settings = models.read_object(file) if file.is_file() else {}
        named, default = settings.get("prompts") or {}, settings.get("default_prompt_name") or ""
        dimensions, similarity = settings.get("truncate_dim") or 0, settings.get("similarity_fn_name") or ""
        sound = {
            "prompts": isinstance(named, dict) and all(isinstance(p, str | None) for p in named.values()),
            "default_prompt_name": isinstance(default, str),
            "truncate_dim": type(dimensions) is int and dimensions >= 0,
            "similarity_fn_name": isinstance(similarity, str),
        }
        for name, good in sound.items():
            if not good:
                raise ModelError(f"{file}: {name} is {settings[name]!r}; fetch or copy the model again")
        if default and default not in named:
            raise ModelError(f"{file}: default_prompt_name is {default!r}, and no prompt is called so")
        return cls({k: v or "" for k, v in named.items()}, default, dimensions, similarity)

    def prompts(self, card: models.ModelCard | None) -> tuple[str, str]:
        """What stands in front of queries and of documents: the folder's own prompts, else what the catalogue knows."""
        usual = self.named.get(self.default, "")
        query = self.named.get("query", usual)
        document = next((self.named[n] for n in ("document", "passage", "corpus") if n in self.named), usual)
        if not query and not document and card is not None:
            query, document = card.query_prefix, card.document_prefix
        if others := [n for n, p in self.named.items() if p and p not in (query, document)]:
            log.info("prompts for other uses (%s) are not used; query_prefix and document_prefix set any", others)
        return query, document

    @property
    def library_prompts(self) -> tuple[str, str]:
        """What sentence-transformers itself would put there; empty prompts stand for themselves."""
        return self.named.get("query", ""), self.named.get("document", "")


def _folder_template(
    words: Module, pooling: Module | None, prompts: tuple[str, str], card: models.ModelCard | None
) -> EmbeddingFormat:
    settings = pooling.settings if pooling else {}
    modes = settings.get("pooling_mode") or [
        mode
        for flag, mode in (
            ("cls_token", "cls"),
            ("max_tokens", "max"),
            ("mean_tokens", "mean"),
            ("mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
            ("weightedmean_tokens", "weightedmean"),
            ("lasttoken", "lasttoken"),
        )
        if settings.get(f"pooling_mode_{flag}")
    ]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or any(m not in POOLINGS for m in modes):
        raise ModelError(
            f"{pooling.path if pooling else words.path}: pooling_mode is {modes!r}; known: {', '.join(POOLINGS)}"
        )
    own = words.settings
    query, document = prompts
    unsaid = not own.get("max_seq_length") and card is not None
    return EmbeddingFormat(
        SideFormat(query),
        SideFormat(document),
        tuple(POOLINGS[m] for m in modes) or ("mean",),
        text_only=not settings.get("include_prompt", True),
        joint=True,
        max_tokens=(card.context if unsaid and card else own.get("max_seq_length")) or 0,
        prepare="lower" if own.get("do_lower_case") else "",
    )
