"""GGUF to a Hugging Face folder with bf16 safetensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iclkit.errors import ModelError
from iclkit.models._device import quiet_transformers
from iclkit.models._loading import check_loaded

# GGUF names the pre-tokenizer instead of holding it, and transformers then takes plain byte-level splitting. The
# tokenizers of these names split every digit off first, which shows where digits follow white space ("\n\n5").
_SINGLE_DIGITS = {"smollm", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}


def gguf_to_safetensors(gguf: Path, out: Path, step: Callable[[float], None]) -> str:
    """Write config, tokenizer and bf16 weights of the file ``gguf`` into the new folder ``out``.

    ``step`` is told the share done, 0 to 1. Returns what was done, for the manifest. ModelError when transformers
    cannot read the file.
    """
    step(0.0)
    import torch
    import transformers
    from gguf import GGUFReader

    source = {"gguf_file": gguf.name, "local_files_only": True}
    with _quiet(lambda done, total: step(0.1 + 0.6 * done / total)):
        try:
            fields = GGUFReader(gguf).fields
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), **source)
            _split_digits(tokenizer, fields)
            step(0.1)
            loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
                str(gguf.parent), dtype=torch.float32, low_cpu_mem_usage=True, output_loading_info=True, **source
            )
        except (ValueError, LookupError, ImportError, RuntimeError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(
                f"{gguf.name} cannot be converted to safetensors: {reason[0]}; llama.cpp may know it: give it as "
                "gguf:PATH"
            ) from error
        check_loaded(loaded, info, gguf)
        step(0.7)
        # A model read from GGUF refuses to be saved: the same weights go into a plain model of the same shape.
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.dtype = torch.bfloat16
        with torch.device("meta"):
            plain = transformers.AutoModelForCausalLM.from_config(config)
        plain.load_state_dict({k: v.to(torch.bfloat16) for k, v in loaded.state_dict().items()}, assign=True)
        plain.tie_weights()
        if loaded.can_generate():
            plain.generation_config = loaded.generation_config
        step(0.8)
        plain.save_pretrained(out)
        tokenizer.save_pretrained(out)
    step(1.0)
    return f"{gguf.name} to bf16 safetensors by transformers {transformers.__version__}"


def _split_digits(tokenizer: Any, fields: Any) -> None:
    field = fields.get("tokenizer.ggml.pre")
    if field is not None and field.contents() in _SINGLE_DIGITS:
        from tokenizers import pre_tokenizers

        backend = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])


@contextmanager
def _quiet(on_tensor: Callable[[int, int], None]) -> Iterator[None]:
    """As ``quiet_transformers``; the bar over the tensors calls ``on_tensor`` instead."""
    from transformers import modeling_gguf_pytorch_utils as reader

    def counted(items: Sequence[Any], *_: object, **__: object) -> Iterator[Any]:
        for done, item in enumerate(items, 1):
            yield item
            on_tensor(done, len(items))

    bar, reader.tqdm = reader.tqdm, counted
    try:
        with quiet_transformers():
            yield
    finally:
        reader.tqdm = bar
